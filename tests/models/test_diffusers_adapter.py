"""Sizes, inputs and classes that the adapter accepts and refuses."""

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKLOutput
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from torch import nn

from telecine.models.diffusers import DiffusersAutoencoder

from .tiny_models import shared


class NotDiffusers(nn.Module):
    """A module with `encode` and `decode` that is not a diffusers model."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv3d(3, 2, 1)
        self.up = nn.Conv3d(2, 3, 1)

    def encode(self, x):
        return self.down(x)

    def decode(self, z):
        return self.up(z)


class OneFrame(NotDiffusers):
    """Only accepts clips of one frame."""

    def encode(self, x):
        return self.down(x[:, :, :1])


def test_no_clip_covers_two_frames_for_a_model_of_one():
    model = DiffusersAutoencoder(OneFrame())
    for check in (model.covering_clip, model.check_clip):
        with pytest.raises(ValueError, match=r"`num_frames` must be 1 .* got 17\. Use 1,"):
            check(17, 32, 32)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 5, 16, 16), "shape"),
        ((1, 1, 5, 16, 16), "Use a model of these channels"),
        ((1, 3, 4, 16, 16), "got 4. Use 5,"),
    ],
)
def test_invalid_videos_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        shared("wan")(torch.zeros(shape))


def test_an_invalid_latent_is_refused():
    with pytest.raises(ValueError, match="latent"):
        shared("wan").decode(torch.zeros(4, 1, 2, 2))


class Plain(ModelMixin, ConfigMixin):
    """A class that is not in the table of families."""

    @register_to_config
    def __init__(self, channels: int = 4):
        super().__init__()
        self.encoder = nn.Conv3d(3, 2 * channels, (1, 2, 2), stride=(1, 2, 2))
        self.decoder = nn.ConvTranspose3d(channels, 3, (1, 2, 2), stride=(1, 2, 2))

    def encode(self, x):
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(self.encoder(x)))

    def decode(self, z):
        return DecoderOutput(sample=self.decoder(z))


class Quantized(Plain):
    """Encoder and decoder return a loss, and the encoder reads a value, which fails on the meta device."""

    def encode(self, x):
        latent = self.encoder(x)[:, : self.config.channels]
        assert latent.detach().mean().item() < 10
        return latent.round() + latent - latent.detach(), latent.square().mean(), {"codes": 1}

    def decode(self, z):
        return DecoderOutput(sample=self.decoder(z), commit_loss=z.square().mean()[None])


class Bare(Plain):
    """The encoder returns a tensor, the decoder a tuple."""

    def encode(self, x):
        return self.encoder(x)[:, : self.config.channels]

    def decode(self, z):
        return (self.decoder(z),)


class WithBatchNorm(Plain):
    """Has buffers that a forward pass changes."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(self.encoder, nn.BatchNorm3d(8))


class EncodesToDict(Plain):
    def encode(self, x):
        return {"z": self.encoder(x)}


class DecodesToDict(Plain):
    def decode(self, z):
        return {"video": self.decoder(z)}


class WithoutDecode(Plain):
    decode = None


class Audio(Plain):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv1d(2, 2, 3)


@pytest.mark.parametrize("cls", [Plain, Quantized, Bare])
def test_an_unknown_class_works(cls, tmp_path):
    model = DiffusersAutoencoder(cls())
    video = torch.rand(2, 3, 3, 8, 6)
    output = model(video)
    assert output.video.shape == video.shape
    assert (
        list(output.aux)
        == {Plain: ["kl_loss"], Quantized: ["quantizer_loss", "commit_loss"], Bare: []}[cls]
    )
    losses = [loss for loss in output.aux.values() if isinstance(loss, torch.Tensor)]
    (output.video.mean() + sum(losses)).backward()
    assert model.module.encoder.weight.grad.any()
    assert model.last_layer is model.module.decoder.weight
    assert (model.sizes.smallest, model.sizes.multiple) == ((1, 2, 2), 2)
    assert not model.sizes.probe.on_meta
    model.save_pretrained(tmp_path)
    loaded = DiffusersAutoencoder.from_pretrained(tmp_path)
    assert type(loaded.module) is cls
    assert torch.equal(loaded(video, False).video, model(video, False).video)


class PlainFrames(Bare):
    """An image autoencoder without variance."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 2, stride=2)
        self.decoder = nn.ConvTranspose2d(4, 3, 2, stride=2)


def test_an_unknown_class_of_images_works():
    model = DiffusersAutoencoder(PlainFrames())
    video = torch.rand(2, 3, 3, 8, 6)
    output = model(video)
    assert output.aux == {}
    expected = model.module.decoder(model.module.encoder(video[:, :, 1]))
    torch.testing.assert_close(output.video[:, :, 1], expected)


class CropsLargeFrames(Plain):
    def decode(self, z):
        return DecoderOutput(sample=self.decoder(z)[..., :128])


def test_another_size_for_large_frames_only_is_an_error():
    model = DiffusersAutoencoder(CropsLargeFrames())
    model(torch.zeros(1, 3, 1, 128, 128))
    with pytest.raises(
        ValueError, match=r"video's shape \(1, 3, 1, 2, 130\), but got .* from CropsLargeFrames"
    ):
        model(torch.zeros(1, 3, 1, 2, 130))


def test_probing_does_not_change_buffers():
    model = DiffusersAutoencoder(WithBatchNorm())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.check_clip(2, 8, 8)
    assert len(before) == 3
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


class WithOwnCheckpointing(NotDiffusers):
    """Enables gradient checkpointing without an argument, unlike classes of diffusers."""

    is_checkpointed = False

    def enable_gradient_checkpointing(self):
        self.is_checkpointed = True


def test_a_method_that_enables_gradient_checkpointing_needs_no_parameter():
    model = DiffusersAutoencoder(WithOwnCheckpointing())
    model.enable_gradient_checkpointing()
    assert model.module.is_checkpointed


def test_gradient_checkpointing_without_support_is_refused():
    with pytest.raises(ValueError, match="one without it"):
        DiffusersAutoencoder(NotDiffusers()).enable_gradient_checkpointing()


@pytest.mark.parametrize(
    ("build", "message"),
    [(nn.Identity, "Identity without `encode`"), (WithoutDecode, "Decode without `decode`")],
)
def test_a_model_without_encode_or_decode_is_refused(build, message):
    with pytest.raises(TypeError, match=message):
        DiffusersAutoencoder(build())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Audio, "Audio, which reproduces no size"),
        (EncodesToDict, "reproduces no size.*the output of `encode` must be"),
        (DecodesToDict, "the output of `decode` must be"),
    ],
)
def test_the_error_for_another_kind_of_model_contains_its_last_error(build, message, monkeypatch):
    monkeypatch.setattr("telecine.models.clip_sizes._MAX_STEP", 2)  # frames, of 32 that are tried
    with pytest.raises(ValueError, match=message):
        DiffusersAutoencoder(build()).check_clip(1, 8, 8)
