"""What a run records while it trains, and what is kept of it when the run resumes."""

import json
import os
import shutil
from dataclasses import asdict, replace

import pytest

from telecine.runs import Run
from telecine.runs.history import History, TrainingWarning
from telecine.runs.summary import RunSummary, ValidationSet

FILES = ("metrics.jsonl", "health.jsonl")


def write_lines(path, *lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def steps(records):
    return [record["step"] for record in records]


def test_records_are_read_in_order_without_an_unfinished_line(tmp_path):
    run = Run(tmp_path)
    assert run.history.read() == []
    run.history.path.write_text('{"step": 1}\n\n{"step": 2, "val/psnr": 3.0}\n{"step": 3, "lo')
    assert run.history.read() == [{"step": 1}, {"step": 2, "val/psnr": 3.0}]
    assert run.history.validations() == [{"step": 2, "val/psnr": 3.0}]
    with run.history.path.open("a") as file:
        file.write('ss": 3.0}\n{"step": 4, "val/psnr": 1.0}\n')
    assert run.history.validations()[1:] == [{"step": 4, "val/psnr": 1.0}]


def test_warnings_are_read(tmp_path):
    run = Run(tmp_path)
    assert run.warnings.all() is None
    warning = TrainingWarning(3, "a_rule", "a message", "a remedy")
    run.warnings.append(asdict(warning))
    assert run.warnings.all() == [warning]
    run.warnings.append({"step": 3, "rule": "a_rule"})
    with pytest.raises(
        ValueError, match=r"health.jsonl` must be lines with step, .* got no value as `message`"
    ):
        run.warnings.all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "a JSON object, but got invalid JSON"),
        ("[1]", "a JSON object, but got"),
        ("[" * 100_000, "a JSON object, but got invalid JSON"),
        ("\0" * 2**21, "a JSON object, but got a line of at least 1048576 bytes"),
        (
            '{"step": 1, "val/psnr": "x"}',
            "numbers by name, with a whole `step`, but got 'x' .* as 'val/psnr'",
        ),
        ('{"step": 1e400}', "numbers by name, with a whole `step`, but got inf"),
        ('{"step": true}', "numbers by name, with a whole `step`, but got True"),
        ('{"loss": 2}', "numbers by name, with a whole `step`, but got None .* as 'step'"),
    ],
)
def test_a_damaged_line_is_named_and_dropped_when_the_run_resumes(tmp_path, line, message):
    run = Run(tmp_path)
    run.history.path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 1}}\n')
    with pytest.raises(
        ValueError, match=rf"metrics.jsonl, line 2` must be {message}.*Remove the line"
    ):
        run.history.read()
    assert run.cut(20, expected=2) == (
        2,
        [f"{run.history.path}: 1 lines could not be read and are dropped"],
    )
    assert steps(run.history.read()) == [0, 1]
    assert run.cut(20, expected=2) == (2, [])
    assert run.cut(20, expected=6) == (
        2,
        [f"{run.history.path}: 2 records up to the checkpoint instead of 6; the curves have a gap"],
    )


def test_a_file_that_is_too_large_is_refused(tmp_path):
    run = Run(tmp_path)
    run.history.path.touch()
    os.truncate(run.history.path, 2**31)
    with pytest.raises(
        ValueError, match=r"metrics.jsonl` must be a file of at most 1073741824 bytes"
    ):
        run.history.read()


def test_records_up_to_the_checkpoint_are_kept(tmp_path):
    for name in FILES:
        write_lines(tmp_path / name, *({"step": step} for step in (0, 10, 20, 30)))
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"step": 30, \xff')
    for step in (0, 20, 30):
        folder = tmp_path / "validation" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "clips.json").touch()
    assert Run(tmp_path).cut(20, expected=3) == (3, [])
    assert [step for step, _ in Run(tmp_path).validation_folders()] == [0, 20]
    for name in FILES:
        assert steps(json.loads(line) for line in (tmp_path / name).read_text().splitlines()) == [
            0,
            10,
            20,
        ]
    assert Run(tmp_path).history.last_step() == 20
    assert Run(tmp_path).cut(-1) == (0, []), "a new run begins with empty files"
    assert [(tmp_path / name).read_text() for name in FILES] == ["", ""]


def validated(folder, records):
    """Return a run with these validations, and a checkpoint of each."""
    run = Run(folder)
    for record in records:
        run.checkpoints.path(record["step"]).mkdir(parents=True)
        run.checkpoints.write_state(run.checkpoints.path(record["step"]), {})
        run.history.append(record)
    return run


@pytest.mark.parametrize(("metric", "best"), [("psnr", 2), ("lpips_alex", 3)])
def test_the_best_validation_is_finite_after_the_start_and_the_earliest_of_equal_ones(
    tmp_path, metric, best
):
    figures = [
        (0, 50.0, 0.0),
        (1, float("nan"), float("nan")),
        (2, 30.0, 0.4),
        (3, 20.0, 0.3),
        (4, 30.0, 0.3),
        (5, float("inf"), float("-inf")),
    ]
    records = [
        {"step": step, "val/psnr": psnr, "val/lpips_alex": lpips} for step, psnr, lpips in figures
    ]
    run = validated(tmp_path / "run", records)
    larger = {"larger_is_better": metric == "psnr"}
    assert run.best_step(metric, 5, **larger) == best
    diverged = validated(tmp_path / "diverged", records[:2])
    assert diverged.best_step(metric, 1, **larger) is None
    assert Run(tmp_path / "empty").best_step(metric, 3, **larger) is None


def test_only_validations_with_a_checkpoint_or_of_this_step_can_be_the_best(tmp_path):
    run = validated(tmp_path, [{"step": step, "val/psnr": 40.0 - step} for step in (1, 2, 3)])
    shutil.rmtree(run.checkpoints.path(1))
    shutil.rmtree(run.checkpoints.path(3))
    assert run.best_step("psnr", 3, larger_is_better=True) == 2
    shutil.rmtree(run.checkpoints.path(2))
    assert run.best_step("psnr", 3, larger_is_better=True) == 3


def test_the_first_and_the_last_validation(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(
        ValueError, match=r"metrics.jsonl` must be a file with a validation, but got none"
    ):
        run.first_and_last()
    for step in (0, 5, 9):
        run.history.append({"step": step, "val/psnr": float(step), "train/ema_psnr_behind": 0.0})
    assert run.first_and_last() == ({"psnr": 0.0}, {"psnr": 9.0})


def test_validations_on_other_clips_do_not_count(tmp_path):
    run = validated(tmp_path, [{"step": step, "val/psnr": 40.0 - step} for step in (1, 2, 3, 4)])
    clips = ValidationSet(2, 5, 16, 24, "a")
    summary = RunSummary(9, 7, 3, 2, 1, 42, 4, clips, seconds=1.5, peak_memory=None)
    for start, first in ((0, 1), (3, 3), (5, 1)):
        run.write_summary(replace(summary, validated_from=start))
        assert run.best_step("psnr", 4, larger_is_better=True) == first, (
            "without one on the present clips, the best on those before"
        )
        assert run.first_and_last() == ({"psnr": 40.0 - first}, {"psnr": 36.0})


def test_validations_are_those_of_the_file_as_it_is_now(tmp_path):
    run = Run(tmp_path)
    reader = Run(tmp_path)
    for step in (0, 1, 2):
        run.history.append({"step": step, "val/psnr": 1.0})
    assert steps(reader.history.validations()) == [0, 1, 2]
    run.cut(1, expected=2)
    run.history.append([4])  # a line of no validation is not parsed
    run.history.append({"step": 5, "val/psnr": 1.0})
    assert steps(reader.history.validations()) == [0, 1, 5]
    run.history.append({"val/psnr": 1.0})
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 5` must be numbers by name"):
        reader.history.validations()


def test_the_gradient_of_a_frame_has_a_name():
    assert History.gradient_of_frame(7) == "train/frame_gradient_007"
    assert [History.frame_of(name) for name in ("train/frame_gradient_007", "train/lr")] == [
        7,
        None,
    ]
