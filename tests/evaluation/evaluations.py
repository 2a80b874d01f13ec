"""Evaluations as `evaluate` writes them, with figures that a test makes up."""

import pytest

from telecine.evaluation import EvaluationRecord, mean_over_clips
from telecine.evaluation.metrics import METRICS
from telecine.evaluation.result import Evaluation


def write_evaluation(folder, clips, per_frame=None, **protocol):
    """Write an evaluation without its plots, which other tests draw, and return its folder.

    Args:
        folder: A new folder.
        clips: The metrics of each clip, and maybe its `source`.
        per_frame: Values of each frame.
        protocol: Fields of the protocol.
    """
    folder.mkdir(exist_ok=True)
    rows = [{"source": "a.mp4", "start": index, **clip} for index, clip in enumerate(clips)]
    values = [{name: value for name, value in clip.items() if name != "source"} for clip in clips]
    fields = {
        "data": "videos",
        "num_clips": len(clips),
        "num_frames": 2,
        "height": 48,
        "width": 64,
        "resize": "none",
        "crop": "none",
        "metrics": {name: METRICS[name].describe() for name in values[0]},
        "clips_sha256": "1234",
        **protocol,
    }
    better = {name: METRICS[name].better for name in fields["metrics"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("telecine.evaluation.result.plot_frames", lambda *_: None)
        evaluation = Evaluation(
            mean_over_clips(values),
            rows,
            per_frame or {},
            EvaluationRecord(**{"better": better} | fields),
        )
        evaluation.write(folder)
    return folder
