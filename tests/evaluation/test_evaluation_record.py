"""The protocol describes a measurement as plain JSON, and metrics state what they compute."""

import json
from dataclasses import asdict

import pytest
import torch

from telecine.evaluation import EvaluationRecord
from telecine.evaluation.metrics import METRICS


def test_a_protocol_describes_the_measurement():
    protocol = EvaluationRecord(
        data="clips/",
        num_clips=12,
        num_frames=9,
        height=64,
        width=64,
        resize="none",
        crop="center",
        metrics={},
        better={},
    )
    values = json.loads(json.dumps(asdict(protocol)))
    assert values["value_range"] == [-1.0, 1.0]
    assert values["versions"].keys() == {"python", "telecine", "torch", "torchmetrics", "av"}
    assert torch.__version__.startswith(values["versions"]["torch"].split("+")[0])
    assert (values["num_clips"], values["fps"], values["frame_stride"], values["crop"]) == (
        12,
        None,
        1,
        "center",
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "psnr",
            "dB; 10 log10(2^2 / mean squared error over all pixels of a clip in [-1, 1]), at most 100; "
            "mean over clips; larger is better",
        ),
        (
            "ssim",
            "Wang et al. 2004; RGB frames in [0, 1], Gaussian window 11 x 11 with sigma 1.5, borders reflected and "
            "counted, k1 0.01, k2 0.03; mean over channels, pixels, frames, then clips; larger is better",
        ),
        (
            "flat_grid",
            "levels of 8 bits; root mean square over clips of grey and of the 8 colours of -0.8 and 0.8 in [-1, 1], of "
            "the difference of a pixel from the mean of its frame; smaller is better",
        ),
        (
            "grid_8",
            "dB; spectral power of grey rows and columns at a period of 8 pixels over the geometric mean of that at "
            "the frequencies beside it, in the reconstruction, over the same in the input; mean over the 25% flattest "
            "patches of 32 x 32 of the input's frames (less their mean and slope), then clips; nearest to 0 is better",
        ),
    ],
)
def test_evaluations_compare_with_those_of_earlier_versions(name, text):
    """The text of a metric in `protocol.json` must not change: figures with other texts do not compare."""
    assert METRICS[name].describe() == text


def test_a_distance_of_sets_names_the_number_of_clips():
    text = METRICS["fvd"].describe(averaging="300 clips")
    assert text.endswith("center crop, in [-1, 1]; 300 clips; smaller is better")
