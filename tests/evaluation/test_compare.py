"""Comparison of two evaluations, and protocols that do not match."""

import json
import shutil

import pytest
import torch
from PIL import Image

from telecine.evaluation import EvaluationProtocol, mean_over_clips
from telecine.evaluation.compare import MUST_MATCH, check_protocols, compare
from telecine.evaluation.evaluate import Evaluation

METRICS = ("psnr", "ssim", "lpips_alex", "grid_4")
NUM_CLIPS = 15


def write_evaluation(folder, psnr):
    """Write the files of an evaluation with this mean PSNR, as `evaluate` does."""
    folder.mkdir()
    noise = torch.randn(NUM_CLIPS, generator=torch.Generator().manual_seed(0)).tolist()
    clips = [
        {"psnr": psnr + value, "ssim": psnr / 50, "lpips_alex": 1 - psnr / 50, "grid_4": 30 - psnr} for value in noise
    ]
    protocol = EvaluationProtocol(
        data="videos",
        num_clips=NUM_CLIPS,
        num_frames=2,
        height=48,
        width=64,
        resize="none",
        crop="none",
        metrics=METRICS,
        clips_sha256="1234",
        backbones=(("lpips_alex", f"sha256 {'1' * 64}"),),
    )
    rows = [{"source": "a.mp4", "start": index, **clip} for index, clip in enumerate(clips)]
    per_frame = {name: [clips[0][name]] * 2 for name in ("psnr", "ssim", "lpips_alex")}
    Evaluation(mean_over_clips(clips), rows, per_frame, protocol).write(folder)
    return folder


@pytest.fixture(scope="module")
def worse(tmp_path_factory):
    return write_evaluation(tmp_path_factory.mktemp("evaluations") / "worse", 20.0)


@pytest.fixture(scope="module")
def better(tmp_path_factory):
    return write_evaluation(tmp_path_factory.mktemp("evaluations") / "better", 30.0)


def read_protocol(folder):
    return json.loads((folder / "protocol.json").read_text())


def with_protocol(folder, copy, **fields):
    """Copy an evaluation and change its protocol."""
    shutil.copytree(folder, copy)
    (copy / "protocol.json").write_text(json.dumps(read_protocol(folder) | fields))
    return copy


@pytest.mark.slow
def test_the_better_evaluation_is_named_and_written(worse, better, tmp_path):
    comparison = compare(worse, better, output=tmp_path)
    assert {item.name: item.better for item in comparison.differences} == {
        "psnr": "B",
        "ssim": "B",
        "lpips_alex": "B",
        "|grid_4|": "B",
    }
    assert (comparison.num_clips, comparison.warnings) == (NUM_CLIPS, [])
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert (written["A"], written["B"]) == (str(worse), str(better))
    assert (written["confidence"], written["num_clips"]) == (0.95, NUM_CLIPS)
    psnr = written["metrics"]["psnr"]
    assert (psnr["mean"], psnr["verdict"]) == (pytest.approx(10), "B")
    for name in ("comparison.png", "comparison_frames.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(set(picture.convert("L").tobytes())) > 20


def test_the_difference_is_that_of_the_means(worse, better):
    (psnr, *_) = compare(worse, better).differences
    means = [json.loads((folder / "metrics.json").read_text())["psnr"] for folder in (worse, better)]
    assert (psnr.first, psnr.second) == pytest.approx(tuple(means))
    assert psnr.mean == pytest.approx(means[1] - means[0])


def test_an_evaluation_compared_with_itself_is_undecided(worse):
    assert {item.better for item in compare(worse, worse).differences} == {"undecided"}


def test_different_clips_or_settings_raise(worse):
    protocol = read_protocol(worse)
    for name in MUST_MATCH:
        with pytest.raises(ValueError, match=rf"with the same protocol, but got {name}: .* and something else"):
            check_protocols(protocol, protocol | {name: "something else"})


def test_different_networks_raise(worse, better, tmp_path):
    other = with_protocol(better, tmp_path / "other", backbones={"lpips_alex": "sha256 0"})
    with pytest.raises(ValueError, match=r"backbones\.lpips_alex: sha256 1+\.\.\. and sha256 0"):
        compare(worse, other)


def test_other_differences_are_warnings(worse, better, tmp_path):
    other = with_protocol(better, tmp_path / "other", data="elsewhere", versions={"torch": "1"})
    data, versions = compare(worse, other).warnings
    assert data == "data: videos and elsewhere"
    assert f"torch {torch.__version__.split('+')[0]}" in versions


def test_metrics_of_only_one_evaluation_are_a_warning(worse, better, tmp_path):
    protocol = read_protocol(better)
    fewer = {name: protocol["metrics"][name] for name in ("psnr", "ssim")}
    comparison = compare(worse, with_protocol(better, tmp_path / "other", metrics=fewer))
    assert [item.name for item in comparison.differences] == ["psnr", "ssim"]
    assert comparison.warnings == ["only one has grid_4, lpips_alex"]
    with pytest.raises(ValueError, match="share a metric"):
        check_protocols(protocol, protocol | {"metrics": {}})


@pytest.mark.slow
def test_frechet_distances_are_compared_without_an_interval(worse, better, tmp_path):
    folders = []
    for folder, value in ((worse, 90.0), (better, 70.0)):
        metrics = read_protocol(folder)["metrics"] | {"fvd": "of 15 clips"}
        folders.append(with_protocol(folder, tmp_path / folder.name, metrics=metrics))
        figures = json.loads((folders[-1] / "metrics.json").read_text()) | {"fvd": value}
        (folders[-1] / "metrics.json").write_text(json.dumps(figures))
    last = compare(*folders, output=tmp_path / "out").differences[-1]
    assert (last.name, last.mean, last.interval) == ("fvd", -20, None)


def test_a_folder_without_an_evaluation_raises(worse, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"protocol\.json"):
        compare(worse, tmp_path)
