"""The protocol describes a measurement as plain JSON."""

import json

import pytest
import torch

from telecine.evaluation import METRIC_DEFINITIONS, EvaluationProtocol


def protocol(**changes):
    values = {
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
        "absent": (("ms_ssim", "too small"),),
    }
    return EvaluationProtocol(**{**values, **changes})


def test_describes_the_measurement():
    values = protocol().as_dict()
    assert values["metrics"] == {name: METRIC_DEFINITIONS[name] for name in ("psnr", "lpips_alex")}
    assert values["backbones"] == {"lpips_alex": "AlexNet, sha256 1234"}
    assert values["absent"] == {"ms_ssim": "too small"}
    assert values["value_range"] == [-1.0, 1.0]
    assert values["versions"].keys() == {"python", "telecine", "torch", "torchmetrics", "av"}
    assert torch.__version__.startswith(values["versions"]["torch"].split("+")[0])
    assert (values["num_clips"], values["fps"], values["frame_stride"], values["crop"]) == (12, 12.5, 1, "center")


def test_is_written_as_json(tmp_path):
    protocol().write(tmp_path / "protocol.json")
    assert json.loads((tmp_path / "protocol.json").read_text()) == protocol().as_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["protocol.json"]


def test_other_metrics_need_a_definition():
    with pytest.raises(ValueError, match="Add them to `definitions`"):
        protocol(metrics=("psnr", "fvd"))
    described = protocol(metrics=("psnr", "fvd"), definitions=(("fvd", "of 500 clips; smaller is better"),))
    assert described.as_dict()["metrics"]["fvd"] == "of 500 clips; smaller is better"
    assert [described.better(name) for name in ("psnr", "fvd")] == ["larger", "smaller"]


def test_counts_are_positive():
    for name in ("num_clips", "num_videos", "num_frames", "height", "width", "frame_stride"):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive int"):
            protocol(**{name: 0})
