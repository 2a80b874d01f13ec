"""What a run has trained on says how its clips are measured, as far as it may."""

import pytest
import torch
import yaml

from telecine.evaluation.config import EvaluateConfig
from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.source import model_source
from telecine.runs import checkpoint_folder

MAIN = {"num_frames": 5, "height": 32, "width": 48}
TRAINING = {
    "buckets": [{**MAIN, "weight": 3.0}, {"num_frames": 1, "height": 64, "width": 64}],
    "image_ratio": 1.0,
    "scale_jitter": 2.0,
    "cache": True,
}


@pytest.fixture
def trained(tiny_model, tmp_path):
    """Return a function that writes what `model_source` reads of a run whose clips have these settings too."""

    def write(**clips):
        checkpoint = checkpoint_folder(tmp_path, 1)
        tiny_model.save_pretrained(checkpoint / "ema")
        (checkpoint / "state.json").write_text("{}")
        (checkpoint / "config.yaml").write_text(yaml.safe_dump({"clips": {**MAIN, **clips}}))
        return tmp_path

    return write


def test_the_size_is_that_of_the_run_and_what_is_for_training_alone_is_left_out(trained):
    clips = model_source(trained(stride=2, **TRAINING), EvaluateConfig(), torch.device("cpu")).clips
    assert (clips.num_frames, clips.height, clips.width, clips.stride) == (5, 32, 48, 2)
    assert (clips.buckets, clips.image_ratio, clips.scale_jitter, clips.cache) == ((), 0.0, 1.0, False)


def test_a_size_that_is_no_bucket_may_be_asked_for(trained):
    config = EvaluateConfig(num_frames=1, height=16, width=32)
    clips = model_source(trained(**TRAINING), config, torch.device("cpu")).clips
    assert (clips.num_frames, clips.height, clips.width) == (1, 16, 32)


@pytest.mark.usefixtures("cached_weights")
def test_what_was_trained_on_images_is_measured_on_videos(trained, videos):
    config = EvaluateConfig(data=str(videos / "one.mp4"), max_clips=1, device="cpu")
    evaluation = evaluate(trained(image_ratio=1.0), config)
    assert (evaluation.protocol.num_clips, evaluation.protocol.num_frames) == (1, 5)
