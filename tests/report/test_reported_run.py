"""The content of a run's folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from telecine.report.page_videos import best_and_worst
from telecine.report.reported_run import HeldOutMetric, read_run, read_runs, unique_names
from telecine.runs.checkpoints import Checkpoints
from telecine.runs.history import TrainingWarning
from telecine.runs.saved_clips import SavedClip
from telecine.settings.upgrade import DEFAULTS_OF_OLD_RUNS

from .runs import records, write_clips_of, write_run
from .test_summary import SUMMARY


class TestReadRun:
    def test_reads_all_files(self, tmp_path):
        folder = write_run(tmp_path / "run", records(60))
        write_clips_of(folder)
        (folder / "health.jsonl").write_text(
            '{"step": 7, "rule": "a", "message": "b", "remedy": "c"}\n'
        )
        run = read_run(folder, "name")
        clips = {f"clips.{name}": value for name, value in DEFAULTS_OF_OLD_RUNS.items()}
        assert run.steps == 60
        assert run.settings == {"steps": "60", **clips, "clips.height": "64"}
        assert run.held_out() == {
            "psnr": HeldOutMetric(first=11.0, last=21.0, linear=25.4),
            "ssim": HeldOutMetric(first=0.04, last=0.5, linear=None),
            "lpips_alex": HeldOutMetric(first=0.97, last=0.0, linear=None),
        }
        assert run.warnings == [TrainingWarning(7, "a", "b", "c")]
        assert [validation.step for validation in run.validations] == [0, 60]
        assert run.environment == {}

    def test_validations_on_earlier_clips_do_not_count(self, tmp_path):
        run = read_run(write_run(tmp_path / "run", records(60)), "name")
        other_clips = replace(run, summary=replace(SUMMARY, validated_from=21))
        assert other_clips.held_out()["ssim"] == HeldOutMetric(1 / 3, 0.5, linear=None)
        none_yet = replace(run, summary=replace(SUMMARY, validated_from=61))
        assert none_yet.held_out() == run.held_out()

    def test_a_run_that_trains_says_where_it_is(self, tmp_path):
        folder = write_run(tmp_path / "run", [*records(30), {"step": 31, "train/total_loss": 1.0}])
        run = read_run(folder, "x")
        assert run.unfinished == "of 60, measured at 20"
        assert replace(run, records=[]).unfinished == "of 60"
        assert replace(run, records=records(60)).unfinished == ""
        assert replace(run, settings={"steps": "many"}).unfinished == ""

    def test_a_run_that_was_stopped_between_two_records_has_the_step_of_its_checkpoint(
        self, tmp_path
    ):
        folder = write_run(tmp_path / "run", records(20))
        checkpoint = folder / "checkpoints" / "step-00000021"
        checkpoint.mkdir(parents=True)
        Checkpoints.write_state(checkpoint, {"step": 21})
        assert read_run(folder, "x").steps == 21

    def test_a_missing_warnings_file_differs_from_an_empty_one(self, tmp_path):
        folder = write_run(tmp_path / "run", [])
        assert read_run(folder, "x").warnings is None
        (folder / "health.jsonl").touch()
        run = read_run(folder, "x")
        assert run.warnings == []
        assert (run.steps, run.held_out()) == (0, {})

    def test_another_folder_raises(self, tmp_path):
        with pytest.raises(
            ValueError,
            match=r"`runs` must be folders of runs, with metrics.jsonl, .*which has none",
        ):
            read_runs([tmp_path])
        with pytest.raises(ValueError, match=r"which is not a folder"):
            read_runs([tmp_path / "nowhere"])


class TestRunNames:
    @pytest.mark.parametrize(
        ("folders", "names"),
        [
            (["runs/a"], ["a"]),
            (["runs/a", "runs/b"], ["a", "b"]),
            (["x/a/run", "x/b/run"], ["a/run", "b/run"]),
            (["x/a", "y/b/a", "c"], ["x/a", "b/a", "report/c"]),
        ],
    )
    def test_are_unique(self, monkeypatch, folders, names):
        monkeypatch.setattr(Path, "resolve", lambda path: Path("/report") / path)
        assert unique_names([Path(folder) for folder in folders]) == names

    def test_the_same_run_twice_raises(self, tmp_path):
        with pytest.raises(ValueError, match="`runs` must be different folders"):
            unique_names([tmp_path, tmp_path / "." / ""])


class TestBestAndWorst:
    def clip(self, **metrics):
        return SavedClip("clip.mp4", "a.mp4", 0, 9, 64, 64, metrics, [20.0] * 9)

    def test_by_psnr_and_lpips(self):
        clips = [
            self.clip(psnr=20.0, ssim=0.5, lpips_alex=0.1),
            self.clip(psnr=30.0, ssim=0.1, lpips_alex=0.3),
            self.clip(psnr=25.0, ssim=0.2, lpips_alex=0.2),
        ]
        expected = [
            {"rank": "best", "metric": "psnr", "index": 1},
            {"rank": "worst", "metric": "psnr", "index": 0},
            {"rank": "best", "metric": "lpips_alex", "index": 0},
            {"rank": "worst", "metric": "lpips_alex", "index": 1},
        ]
        assert best_and_worst(clips) == expected
        assert best_and_worst(clips[:1]) == []
        assert best_and_worst([]) == []

    def test_ignores_values_that_are_missing_or_not_finite(self):
        nan = float("nan")
        clips = [
            self.clip(psnr=nan, lpips_alex=nan),
            self.clip(psnr=20.0, lpips_alex=0.1),
            self.clip(psnr=30.0),
            self.clip(psnr=float("-inf"), lpips_alex=nan),
        ]
        expected = [
            {"rank": "best", "metric": "psnr", "index": 2},
            {"rank": "worst", "metric": "psnr", "index": 1},
        ]
        assert best_and_worst(clips) == expected, "a single LPIPS is not compared"
