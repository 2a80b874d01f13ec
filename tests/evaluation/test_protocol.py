"""The protocol describes a measurement as plain JSON."""

import json

import pytest
import torch

from telecine.evaluation import METRIC_DEFINITIONS, EvaluationProtocol, latents, pixel_metrics
from telecine.evaluation.frechet import I3D_SIDE, TRANSNET_FRAME_SIZE
from telecine.evaluation.protocol import DEFINITIONS, SET_DEFINITIONS
from telecine.losses.reconstruction import MAX_PSNR


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


def test_the_definitions_state_what_the_code_computes():
    window, patch, small = pixel_metrics.SSIM_WINDOW, pixel_metrics.GRID_PATCH, pixel_metrics.UNIFORM_WINDOW
    patches = f"{pixel_metrics.FLAT_FRACTION:.0%} flattest patches of {patch} x {patch}"
    stated = {
        "psnr": [f"at most {MAX_PSNR:g}"],
        "ssim": [f"window {window} x {window} with sigma {pixel_metrics.SSIM_SIGMA},"],
        "ms_ssim": [f"{len(pixel_metrics.MS_SSIM_BETAS)} scales with exponents {pixel_metrics.MS_SSIM_BETAS}"],
        "psnr_frames": [f"at most {MAX_PSNR:g}"],
        "psnr_frames_epsilon": [f"+ {pixel_metrics.PSNR_EPSILON:g})"],
        "ssim_valid": [f"the border of {window // 2} pixels"],
        "ssim_uniform": [f"window {small} x {small},", f"the border of {small // 2} pixels"],
        "pieces_psnr": [f"at most {MAX_PSNR:g}"],
        **{f"grid_{period}": [f"a period of {period} pixels", patches] for period in pixel_metrics.GRID_PERIODS},
    }
    missing = [(name, text) for name, texts in stated.items() for text in texts if text not in DEFINITIONS[name].text]
    assert missing == []
    assert [DEFINITIONS[name].min_side for name in ("ssim", "ssim_valid", "ms_ssim")] == [window, window, 16 * window]
    assert (DEFINITIONS["ssim_uniform"].min_side, DEFINITIONS["grid_2"].min_side) == (small, patch)
    assert f"to {I3D_SIDE} (" in SET_DEFINITIONS["fvd"].text
    assert "{} x {}".format(*TRANSNET_FRAME_SIZE) in SET_DEFINITIONS["frechet_transnetv2"].text
    assert f"at most {latents.DEAD_FRACTION:g} times" in latents.DEFINITIONS["channels"]
    assert f"the share above {latents.HIGH_FREQUENCY:g}." in latents.DEFINITIONS["spectrum"]
