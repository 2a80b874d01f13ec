"""Evaluations of models and of videos, alone and in two processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import telecine
from telecine.data import ClipConfig, find_videos, index_videos, read_clip, video_from_bytes
from telecine.evaluation import ReconstructionMetrics
from telecine.evaluation.config import EvaluateConfig
from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.metrics import BUILT_IN

pytestmark = pytest.mark.usefixtures("cached_weights")

SMALL = {"num_frames": 5, "height": 32, "width": 48, "device": "cpu"}
LARGE_ONLY = {"ms_ssim"}
PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_a_model(model_folder, tiny_model, videos):
    evaluation = evaluate(model_folder, EvaluateConfig(data=str(videos), max_clips=4, **SMALL))
    assert set(evaluation.metrics) == {*BUILT_IN, "lpips_vgg", "lpips_alex"} - LARGE_ONLY
    assert dict(evaluation.protocol.absent) == {"ms_ssim": "needs frames of at least 176 x 176, not 32 x 48"}
    assert (evaluation.protocol.num_clips, evaluation.protocol.num_videos) == (4, 3)
    assert evaluation.protocol.fps == 25
    clip = evaluation.per_clip[0]
    info = next(info for info in index_videos(find_videos(videos))[0] if str(info.path) == clip["source"])
    size = ClipConfig(height=32, width=48).val_bucket.decode_size(info, 1.0)
    frames = read_clip(info, clip["start"], 5, size=size)
    top, left = ((side - kept) // 2 for side, kept in zip(size, (32, 48), strict=True))
    target = video_from_bytes(frames[:, top : top + 32, left : left + 48])[None]
    metrics = ReconstructionMetrics(metrics=("psnr", "flicker", "grid_8"))
    with torch.no_grad():
        metrics.update(reconstruction=tiny_model(target, sample_posterior=False).video, target=target)
    assert {name: clip[name] for name in metrics.names} == pytest.approx(metrics.compute(), abs=1e-5)


def test_the_course_over_the_frames_is_written_and_drawn(model_folder, videos, tmp_path):
    evaluation = evaluate(model_folder, EvaluateConfig(data=str(videos), max_clips=2, **SMALL), output=tmp_path)
    curves = json.loads((tmp_path / "frames.json").read_text())
    assert curves == evaluation.per_frame
    assert set(curves) == {"psnr", "ssim", "lpips_vgg", "lpips_alex"}
    assert {len(curve) for curve in curves.values()} == {5}
    for name in ("ssim", "lpips_vgg", "lpips_alex"):
        assert sum(curves[name]) / 5 == pytest.approx(evaluation.metrics[name], abs=1e-6)
    with Image.open(tmp_path / "frames.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 20
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.json", "clips.json", "frames.json", "frames.png", "protocol.json"
    }  # fmt: skip


def test_videos_are_measured_at_their_own_size(videos, reconstructions):
    evaluation = evaluate(reconstructions["little"], EvaluateConfig(data=str(videos), num_frames=26, device="cpu"))
    protocol = evaluation.protocol
    assert (protocol.height, protocol.width, protocol.num_clips) == (48, 64, 3)
    assert 30 < evaluation.metrics["psnr"] < 45
    same = evaluate(videos, EvaluateConfig(data=str(videos), num_frames=26, device="cpu"))
    assert same.metrics["psnr"] == pytest.approx(100)
    assert same.metrics["flicker"] == same.metrics["lpips_vgg"] == 0
    assert same.protocol.clips_sha256 == protocol.clips_sha256
    assert (
        protocol.clips_sha256
        != evaluate(videos, EvaluateConfig(data=str(videos), num_frames=5, device="cpu")).protocol.clips_sha256
    )


def test_images_have_no_flicker(model_folder, videos):
    evaluation = evaluate(model_folder, EvaluateConfig(data=str(videos), max_clips=1, **{**SMALL, "num_frames": 1}))
    assert "flicker" not in evaluation.metrics
    assert dict(evaluation.protocol.absent)["flicker"] == "needs at least 2 frames, not 1"


def test_large_frames_have_every_metric(videos, reconstructions):
    config = EvaluateConfig(data=str(videos), num_frames=2, height=176, width=176, max_clips=1, device="cpu")
    evaluation = evaluate(reconstructions["little"], config)
    assert set(evaluation.metrics) == {*BUILT_IN, "lpips_vgg", "lpips_alex"}
    assert evaluation.protocol.absent == ()


def test_a_frechet_distance_carries_its_network_and_its_count(videos, reconstructions, stand_in):
    settings = {"data": str(videos), "num_frames": 10, "features": str(stand_in), "device": "cpu"}
    evaluation = evaluate(reconstructions["much"], EvaluateConfig(**settings))
    assert evaluation.protocol.num_clips == 6
    assert 0 < evaluation.metrics["fvd"] < 0.1
    stated = evaluation.protocol.as_dict()
    assert "6 clips" in stated["metrics"]["fvd"]
    assert stated["backbones"]["fvd"].startswith("stand_in.pt, sha256 ")
    less = evaluate(reconstructions["little"], EvaluateConfig(**settings))
    assert less.metrics["fvd"] < evaluation.metrics["fvd"]


def test_too_few_clips_have_no_frechet_distance(videos, reconstructions, stand_in):
    config = EvaluateConfig(data=str(videos), num_frames=10, max_clips=4, features=str(stand_in), device="cpu")
    evaluation = evaluate(reconstructions["much"], config)
    assert "fvd" not in evaluation.metrics
    reason = dict(evaluation.protocol.absent)["fvd"]
    assert reason == "needs at least 5 clips, not 4: with fewer, the covariance of its 4 features is singular"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "`data` must be a folder of videos, or one video, but got nothing"),
        ({"features": "nowhere.pt"}, "nowhere.pt, which does not exist"),
        ({"num_frames": 6}, "4k\\+1"),
        ({"num_frames": 29}, "at least 29 frames"),
        ({"max_clips": 0}, "`max_clips` must be at least 1"),
    ],
)
def test_refusals(model_folder, videos, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model_folder, EvaluateConfig(**{"data": str(videos), **SMALL, **changes}))


def test_short_clips_are_refused_before_the_network_of_fvd_sees_them(model_folder, videos, stand_in):
    config = EvaluateConfig(data=str(videos), features=str(stand_in), **SMALL)
    with pytest.raises(ValueError, match="`num_frames` must be at least 10 for fvd, but got 5"):
        evaluate(model_folder, config)


def test_two_processes_give_the_same_figures(model_folder, videos, stand_in, tmp_path):
    """5 clips, so that the shares differ."""
    settings = {"data": str(videos), "num_frames": 13, "height": 32, "width": 48, "max_clips": 5, "device": "cpu"}
    settings["features"] = str(stand_in)
    alone = evaluate(model_folder, EvaluateConfig(**settings))
    (line,) = re.findall(r"^torchrun (.*) evaluate ", PAGE, flags=re.MULTILINE)
    command = [sys.executable, "-m", "torch.distributed.run", *line.split()]
    command += ["evaluate", str(model_folder), "--output", str(tmp_path)]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    source = str(Path(telecine.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("lpips_alex") == 1, "one process prints"
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "fvd" in metrics
    assert metrics == pytest.approx(alone.metrics, abs=1e-6, rel=1e-6)
    clips = json.loads((tmp_path / "clips.json").read_text())
    assert [(clip["source"], clip["start"]) for clip in clips] == [
        (clip["source"], clip["start"]) for clip in alone.per_clip
    ]
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    assert protocol == json.loads(json.dumps(alone.protocol.as_dict()))
