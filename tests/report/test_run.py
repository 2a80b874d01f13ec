from pathlib import Path

import pytest

from telecine.report.clips import KeptClip
from telecine.report.run import Warned, best_and_worst, read_run, run_names

from .runs import records, write_clips_of, write_run


def kept(**metrics):
    return KeptClip("clip.mp4", "a.mp4", 0, 9, 64, 64, metrics, [20.0] * 9)


def test_a_run_is_read_whole(tmp_path):
    folder = write_run(tmp_path / "run", records(60))
    write_clips_of(folder)
    (folder / "health.jsonl").write_text('{"step": 7, "rule": "a", "message": "b", "remedy": "c"}\n')
    run = read_run(folder, "name")
    assert run.steps == 60
    assert run.settings == {"steps": "60", "clips.height": "64"}
    assert run.held_out() == [("psnr", 11.0, 21.0), ("ssim", 0.04, 0.5), ("lpips_alex", 0.97, 0.0)]
    assert run.warnings == [Warned(7, "a", "b", "c")]
    assert [validation.step for validation in run.validations] == [0, 60]
    assert run.environment == {}
    assert run.video() is None


def test_no_health_log_is_not_an_empty_one(tmp_path):
    folder = write_run(tmp_path / "run", [])
    assert read_run(folder, "x").warnings is None
    (folder / "health.jsonl").touch()
    run = read_run(folder, "x")
    assert run.warnings == []
    assert (run.steps, run.held_out()) == (0, [])


def test_a_warning_without_its_remedy_is_named(tmp_path):
    folder = write_run(tmp_path / "run", [])
    (folder / "health.jsonl").write_text('{"step": 7, "rule": "a", "message": "b"}\n')
    with pytest.raises(ValueError, match=r"health\.jsonl` must be lines with step, rule, message and remedy, but got"):
        read_run(folder, "x")


@pytest.mark.parametrize("what", ["none", "empty"])
def test_what_is_no_run_is_refused(tmp_path, what):
    folder = tmp_path / what
    if what == "empty":
        folder.mkdir()
    with pytest.raises(ValueError, match=r"`runs` must be folders of runs, with metrics.jsonl, but got .*which"):
        read_run(folder, "x")


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/a"], ["a"]),
        (["runs/a", "runs/b"], ["a", "b"]),
        (["x/a/run", "x/b/run"], ["a/run", "b/run"]),
        (["x/a", "y/b/a", "c"], ["x/a", "b/a", "report/c"]),
    ],
)
def test_names_tell_runs_apart(monkeypatch, folders, names):
    monkeypatch.setattr(Path, "resolve", lambda path: Path("/report") / path)
    assert run_names([Path(folder) for folder in folders]) == names


def test_the_same_run_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`runs` must be different folders"):
        run_names([tmp_path, tmp_path / "." / ""])


def test_best_and_worst_by_psnr_and_lpips():
    clips = [
        kept(psnr=20.0, ssim=0.5, lpips_alex=0.1),
        kept(psnr=30.0, ssim=0.1, lpips_alex=0.3),
        kept(psnr=25.0, ssim=0.2, lpips_alex=0.2),
    ]
    expected = [("best psnr", 1), ("worst psnr", 0), ("best lpips_alex", 0), ("worst lpips_alex", 1)]
    assert best_and_worst(clips) == expected
    assert best_and_worst(clips[:1]) == []


def test_what_is_not_finite_does_not_stand_out():
    nan = float("nan")
    clips = [
        kept(psnr=nan, lpips_alex=nan),
        kept(psnr=20.0, lpips_alex=0.1),
        kept(psnr=30.0, lpips_alex=nan),
        kept(psnr=float("-inf"), lpips_alex=nan),
    ]
    assert best_and_worst(clips) == [("best psnr", 2), ("worst psnr", 1)], "one LPIPS is neither best nor worst"


def test_a_figure_that_one_clip_lacks_does_not_stand_out():
    assert best_and_worst([kept(psnr=1.0, lpips_alex=0.1), kept(psnr=2.0)]) == [("best psnr", 1), ("worst psnr", 0)]
