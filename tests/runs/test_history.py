"""What a run records while it trains, and what is kept of it when the run resumes."""

import json
from dataclasses import replace

import pytest

from telecine.runs import Run
from telecine.runs.history import History, _JSONLines, validations
from telecine.runs.run import RunSummary, ValidationClips


class TestRecords:
    def test_are_read_in_order_without_an_unfinished_line(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        lines = [{"step": 1}, {"step": 2, "val/psnr": 3.0}]
        path.write_text("\n\n".join(json.dumps(line) for line in lines) + '\n{"step": 3, "lo')
        assert _JSONLines(path).read() == lines
        assert validations(lines) == lines[1:]

    def test_a_missing_file_has_no_lines(self, tmp_path):
        assert _JSONLines(tmp_path / "none.jsonl").read() == []

    @pytest.mark.parametrize("line", ["{broken", "[1]"])
    def test_a_damaged_line_raises(self, tmp_path, line):
        path = tmp_path / "metrics.jsonl"
        path.write_text(f'{{"step": 1}}\n{line}\n')
        with pytest.raises(ValueError, match=r"metrics.jsonl, line 2` must be a JSON object, but .*Remove the line"):
            _JSONLines(path).read()


def test_records_up_to_the_checkpoint_are_kept(tmp_path):
    for name in ("metrics.jsonl", "health.jsonl"):
        lines = [json.dumps({"step": step}) for step in (0, 10, 20, 30)]
        (tmp_path / name).write_text("\n".join(lines) + '\n{"step": 30, "val')
    for step in (0, 20, 30):
        folder = tmp_path / "validation" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "clips.json").touch()
    assert Run(tmp_path).cut(20, expected=3) == (3, [])
    assert [step for step, _ in Run(tmp_path).validation_folders()] == [0, 20]
    for name in ("metrics.jsonl", "health.jsonl"):
        assert [line["step"] for line in _JSONLines(tmp_path / name).read()] == [0, 10, 20]


def test_lines_that_a_power_failure_has_damaged_are_dropped_and_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n\0\0\0\0\xff": 1}\n{"step": 10}\n[1]\n{"loss": 2}\n{"step": 20}\n\0\0')
    num_kept, notes = Run(tmp_path).cut(20, expected=3)
    assert num_kept == 3
    assert notes == [f"{path}: 3 lines could not be read and are dropped"]
    assert [line["step"] for line in _JSONLines(path).read()] == [0, 10, 20]
    assert Run(tmp_path).cut(20, expected=3) == (3, [])
    _, (note,) = Run(tmp_path).cut(20, expected=6)
    assert note == f"{path}: 3 records up to the checkpoint instead of 6; the curves have a gap"


def test_a_new_run_begins_with_empty_files(tmp_path):
    assert Run(tmp_path).cut(-1) == (0, [])
    assert (tmp_path / "metrics.jsonl").read_text() == (tmp_path / "health.jsonl").read_text() == ""


def validated(folder, records):
    """Return a run with these validations, and a checkpoint of each."""
    run = Run(folder)
    for record in records:
        run.checkpoints.path(record["step"]).mkdir(parents=True)
        run.checkpoints.write_state(run.checkpoints.path(record["step"]), {})
        run.history.append(record)
    return run


@pytest.mark.parametrize(("metric", "best"), [("psnr", 2), ("lpips_alex", 3)])
def test_the_best_validation_is_finite_and_after_the_start(tmp_path, metric, best):
    figures = [(0, 50.0, 0.0), (1, float("nan"), float("nan")), (2, 30.0, 0.4), (3, 20.0, 0.3), (4, float("inf"), -0.0)]
    records = [{"step": step, "val/psnr": psnr, "val/lpips_alex": lpips} for step, psnr, lpips in figures]
    records[-1]["val/lpips_alex"] = float("-inf")
    assert validated(tmp_path / "run", records).best_step(metric, 4) == best
    assert validated(tmp_path / "diverged", records[:2]).best_step(metric, 1) is None


def test_the_earliest_of_equal_validations_is_the_best(tmp_path):
    assert validated(tmp_path, [{"step": step, "val/psnr": 30.0} for step in (1, 2)]).best_step("psnr", 2) == 1


def test_the_metrics_of_the_first_and_the_last_validation(tmp_path):
    lines = [{"step": step, "val/psnr": float(step), "train/ema_psnr_behind": 0.0} for step in (0, 5, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Run(tmp_path).first_and_last() == ({"psnr": 0.0}, {"psnr": 9.0})


def test_a_finished_run_without_records_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metrics.jsonl` must be a file with a validation, but got none"):
        Run(tmp_path).first_and_last()


def test_validations_on_other_clips_do_not_count(tmp_path):
    run = validated(tmp_path, [{"step": step, "val/psnr": 40.0 - step} for step in (1, 2, 3, 4)])
    clips = ValidationClips(2, 5, 16, 24, "a")
    summary = RunSummary(9, 7, 3, 2, 1, 42, 4, clips, seconds=1.5, peak_memory=None)
    for start, first in ((0, 1), (3, 3), (5, 1)):
        run.write_summary(replace(summary, validated_from=start))
        assert run.best_step("psnr", 4) == first, "without one on the present clips, the best on those before"
        assert run.first_and_last() == ({"psnr": 40.0 - first}, {"psnr": 36.0})


def test_only_validations_with_a_checkpoint_can_be_the_best(tmp_path):
    lines = [{"step": step, "val/psnr": psnr} for step, psnr in ((1, 40.0), (2, 30.0), (3, 20.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Run(tmp_path).best_step("psnr", 3) == 3
    folder = Run(tmp_path).checkpoints.path(2)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    assert Run(tmp_path).best_step("psnr", 3) == 2
    assert Run(tmp_path).best_step(None, 3) is None
    assert Run(tmp_path / "empty").best_step("psnr", 3) is None


class TestValidations:
    def append(self, run, *records):
        for record in records:
            run.history.append(record)

    def test_only_new_lines_are_read(self, tmp_path, monkeypatch):
        run, reader = Run(tmp_path), Run(tmp_path)
        assert reader.history.validations() == []
        self.append(run, {"step": 0, "val/psnr": 1.0}, {"step": 1, "train/lr": 1.0})
        parsed = []
        parse = History._parse
        monkeypatch.setattr(History, "_parse", lambda self, n, line: (parsed.append(n), parse(self, n, line))[1])
        for step in (2, 3, 4):
            assert len(reader.history.validations()) == step - 1
            self.append(run, {"step": step, "val/psnr": 1.0})
        assert [each["step"] for each in reader.history.validations()] == [0, 2, 3, 4]
        assert parsed == [1, 2, 3, 4, 5]

    def test_a_line_that_is_being_written_is_read_later(self, tmp_path):
        run = Run(tmp_path)
        for part in ('{"step": 1, "val', '/psnr": 1.0}\n'):
            assert run.history.validations() == []
            with run.history.path.open("a") as file:
                file.write(part)
        assert run.history.validations() == [{"step": 1, "val/psnr": 1.0}]

    def test_a_history_that_was_cut_is_read_again(self, tmp_path):
        run, reader = Run(tmp_path), Run(tmp_path)
        self.append(run, *({"step": step, "val/psnr": 1.0} for step in range(3)))
        assert len(reader.history.validations()) == 3
        run.cut(1, expected=2)
        assert [each["step"] for each in reader.history.validations()] == [0, 1]
        self.append(run, {"step": 2, "val/psnr": 2.0})
        assert reader.history.validations()[-1] == {"step": 2, "val/psnr": 2.0}
        with pytest.raises(ValueError, match=r"metrics.jsonl, line 4` must be a JSON object"):
            (self.append(run, [1]), reader.history.validations())


@pytest.mark.parametrize("line", ['{"step": 1, "val/psnr": "x"}', '{"step": 1e400}', "[" * 100_000, '{"step": true}'])
def test_records_that_are_none_are_dropped_when_a_run_resumes(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n' + line + '\n{"step": 1}\n' + "\0" * 2**21 + "\n" + "\0" * 2**21)
    num_kept, notes = Run(tmp_path).cut(20, expected=2)
    assert (num_kept, notes) == (2, [f"{path}: 3 lines could not be read and are dropped"])
    assert [record["step"] for record in Run(tmp_path).history.read()] == [0, 1]
