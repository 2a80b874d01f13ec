"""The protocol states everything beside a result, as plain JSON."""

import json

import pytest
import torch

from telecine.evaluation import METRIC_DEFINITIONS, EvaluationProtocol


def protocol(**changes):
    stated = {
        "data": "clips/, the last fifth of each file",
        "num_clips": 12,
        "num_frames": 9,
        "height": 64,
        "width": 64,
        "resize": "shorter side to 64, bilinear with antialias",
        "crop": "center",
        "metrics": ("psnr", "lpips_alex"),
        "fps": 12.5,
        "backbones": (("lpips_alex", "AlexNet, sha256 1234"),),
    }
    return EvaluationProtocol(**{**stated, **changes})


def test_states_what_was_measured():
    stated = protocol().as_dict()
    assert stated["metrics"] == {name: METRIC_DEFINITIONS[name] for name in ("psnr", "lpips_alex")}
    assert stated["backbones"] == {"lpips_alex": "AlexNet, sha256 1234"}
    assert stated["value_range"] == [-1.0, 1.0]
    assert stated["versions"].keys() == {"python", "telecine", "torch", "torchmetrics", "av"}
    assert torch.__version__.startswith(stated["versions"]["torch"].split("+")[0])
    assert (stated["num_clips"], stated["fps"], stated["frame_stride"], stated["crop"]) == (12, 12.5, 1, "center")


def test_is_written_as_json(tmp_path):
    protocol().write(tmp_path / "protocol.json")
    assert json.loads((tmp_path / "protocol.json").read_text()) == protocol().as_dict()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_further_metric_needs_a_definition():
    with pytest.raises(ValueError, match="Add them to `definitions`"):
        protocol(metrics=("psnr", "fvd"))
    described = protocol(metrics=("psnr", "fvd"), definitions=(("fvd", "of 500 clips; smaller is better"),))
    assert described.as_dict()["metrics"]["fvd"] == "of 500 clips; smaller is better"
    assert [described.better(name) for name in ("psnr", "fvd")] == ["larger", "smaller"]


def test_says_what_is_absent_and_why():
    assert protocol(absent=(("ms_ssim", "too small"),)).as_dict()["absent"] == {"ms_ssim": "too small"}


@pytest.mark.parametrize("name", ["num_clips", "num_videos", "num_frames", "height", "width", "frame_stride"])
def test_counts_are_positive(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1"):
        protocol(**{name: 0})
