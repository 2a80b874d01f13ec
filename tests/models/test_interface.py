"""A model is checked for the sizes and the channels of clips before training."""

import pickle
from types import SimpleNamespace

import pytest

from telecine.models import CausalVAE, ClipPosition, clip_sizes
from telecine.models.interface import check_buckets, check_channels
from telecine.settings import Bucket, CausalVAEConfig, ClipConfig


def test_a_model_is_checked_for_every_bucket():
    config = CausalVAEConfig(4, 4, 4, patch_size=2, base_channels=8, blocks_per_level=1)
    model = CausalVAE(config)
    valid = [Bucket(17, 32, 32), Bucket(1, 64, 32)]
    check_buckets(valid, model, images=True)
    with pytest.raises(
        ValueError, match=r"a clip of 16x32x32\. .*17.*next larger accepted size is 17x32x32\."
    ):
        check_buckets([*valid, Bucket(16, 32, 32)], model, images=False)
    with pytest.raises(ValueError, match=r"a clip of 17x30x32\. .*accepted size is 17x32x32"):
        check_buckets([*valid, Bucket(17, 30, 32)], model, images=False)


class VideoOnly:
    """Accepts clips of 4 frames or more."""

    def check_clip(self, num_frames, height, width):
        if num_frames < 4:
            raise ValueError(f"{num_frames} frames are too few.")

    def covering_clip(self, num_frames, height, width):
        return max(4, num_frames), height, width


def test_a_model_is_checked_for_images():
    check_buckets([Bucket(8, 32, 32)], VideoOnly(), images=False)
    message = r"but got an image of 1x32x32\. 1 frames are too few\. .*accepted size is 4x32x32"
    with pytest.raises(ValueError, match=message):
        check_buckets([Bucket(8, 32, 32)], VideoOnly(), images=True)


@pytest.mark.parametrize(("channels", "number"), [("grey", 1), ("rgba", 4)])
def test_channels_that_a_model_lacks_are_one_error_with_its_own(channels, number):
    model = SimpleNamespace(in_channels=3)
    check_channels(ClipConfig(), model)
    message = rf'of 3 channels.* got "{channels}".* `--causal_vae.in_channels {number}`'
    with pytest.raises(ValueError, match=message):
        check_channels(ClipConfig(channels=channels), model)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        (b"interface\nClipPosition", ClipPosition),
        (b"clip_sizes\n_Probe", clip_sizes._ModelFunction),
    ],
)
def test_pickled_models_may_have_these_names_of_classes(name, cls):
    assert pickle.loads(b"ctelecine.models." + name + b"\n.") is cls
