"""The protocol describes a measurement as plain JSON."""

import json
from dataclasses import asdict

import torch

from telecine.evaluation import EvaluationProtocol, latent_measures, pixel_metrics
from telecine.evaluation.frechet import _I3D_SIDE, _TRANSNET_FRAME_SIZE
from telecine.evaluation.protocol import DEFINITIONS, SET_DEFINITIONS
from telecine.losses.reconstruction import MAX_PSNR
from telecine.tools.latents import measures as latents


def test_a_protocol_describes_the_measurement():
    protocol = EvaluationProtocol(
        data="clips/", num_clips=12, num_frames=9, height=64, width=64, resize="none", crop="center", metrics={}
    )
    values = json.loads(json.dumps(asdict(protocol)))
    assert values["value_range"] == [-1.0, 1.0]
    assert values["versions"].keys() == {"python", "telecine", "torch", "torchmetrics", "av"}
    assert torch.__version__.startswith(values["versions"]["torch"].split("+")[0])
    assert (values["num_clips"], values["fps"], values["frame_stride"], values["crop"]) == (12, None, 1, "center")


def test_the_definitions_state_what_the_code_computes():
    window, patch, small = pixel_metrics._SSIM_WINDOW, pixel_metrics._GRID_PATCH, pixel_metrics._UNIFORM_WINDOW
    patches = f"{pixel_metrics._FLAT_FRACTION:.0%} flattest patches of {patch} x {patch}"
    stated = {
        "psnr": [f"at most {MAX_PSNR:g}"],
        "ssim": [f"window {window} x {window} with sigma {pixel_metrics._SSIM_SIGMA},"],
        "ms_ssim": [f"{len(pixel_metrics._MS_SSIM_BETAS)} scales with exponents {pixel_metrics._MS_SSIM_BETAS}"],
        "psnr_frames": [f"at most {MAX_PSNR:g}"],
        "psnr_frames_epsilon": [f"+ {pixel_metrics._PSNR_EPSILON:g})"],
        "ssim_valid": [f"the border of {window // 2} pixels"],
        "ssim_uniform": [f"window {small} x {small},", f"the border of {small // 2} pixels"],
        "pieces_psnr": [f"at most {MAX_PSNR:g}"],
        **{f"grid_{period}": [f"a period of {period} pixels", patches] for period in pixel_metrics.GRID_PERIODS},
    }
    missing = [(name, text) for name, texts in stated.items() for text in texts if text not in DEFINITIONS[name].text]
    assert missing == []
    assert [DEFINITIONS[name].min_side for name in ("ssim", "ssim_valid", "ms_ssim")] == [window, window, 16 * window]
    assert (DEFINITIONS["ssim_uniform"].min_side, DEFINITIONS["grid_2"].min_side) == (small, patch)
    assert f"to {_I3D_SIDE} (" in SET_DEFINITIONS["fvd"].text
    assert "{} x {}".format(*_TRANSNET_FRAME_SIZE) in SET_DEFINITIONS["frechet_transnetv2"].text
    assert f"at most {latent_measures.DEAD_FRACTION:g} times" in latents.DEFINITIONS["channels"]
    assert f"the share above {latent_measures.HIGH_FREQUENCY:g}." in latents.DEFINITIONS["spectrum"]
