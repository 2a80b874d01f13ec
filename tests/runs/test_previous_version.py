"""Runs of the version before its settings were rewritten (commit 2fd7e47).

`previous_version.zip` has two of them, without reports: `gan`, a CausalVAE with discriminators and LeCam, trained for 4
updates; `wan`, a model of diffusers, for 2. Of each it has the `metrics.jsonl` with which that version trained on, for
twice the updates, of which two are repeated here, and its evaluation.
"""

import json
import zipfile
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from telecine import EvaluateConfig, evaluate, read_config
from telecine.data import sample_videos
from telecine.report.page import write_report
from telecine.runs import Run
from telecine.runs.checkpoints import Checkpoints
from telecine.training import train
from telecine.training.resume import SavedSettings

ARCHIVE = Path(__file__).with_name("previous_version.zip")
RUNS = {"gan": 4, "wan": 2}
# Another processor rounds sums in another way.
TOLERANCE = {"rel": 2e-3, "abs": 2e-3}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("cached_weights", "probe_each_configuration_once"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Unpack the runs into the current folder, which their settings name."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("name", "step"), RUNS.items())
def test_it_resumes_to_the_same_values(folder, name, step, monkeypatch):
    monkeypatch.setattr("telecine.report.clips.MIN_SECONDS", 0.1)  # encoding takes the most time
    (folder / name / "curves.png").write_text("of that version")
    kept = (folder / name / "metrics.jsonl").read_text()
    config = read_config(folder / name / "config.yaml")
    assert config.output_dir == name
    changes = SavedSettings(Run(name).checkpoints.path(step)).changes(config)
    assert sorted(changes) == [
        "clips.colour_matrix bt601 -> auto",
        "clips.file_identity path -> content",
        "clips.holdout earlier -> auto",
        "clips.order independent -> epochs",
    ], "a resumed run keeps the one of that version"
    console = Console(record=True, file=StringIO(), width=1000)
    result = train(replace(config, steps=step + 2), console=console)
    said = console.export_text()
    assert f"resuming from {Run(name).checkpoints.path(step)}\n" in said
    assert f"settings changed since the checkpoint: steps {step} -> {step + 2}\n" in said
    assert "warning" not in said.replace("warning: step", "")
    assert (folder / name / "metrics.jsonl").read_text().startswith(kept)
    records = lines(folder / name / "metrics.jsonl")
    later = lines(folder / f"{name}-later.jsonl")
    expected = [line for line in later if line["step"] <= step + 2]
    assert len(records) == len(expected) > len(kept.splitlines())
    for ours, theirs in zip(records, expected, strict=True):
        assert ours.keys() == theirs.keys()
        measured = ours.keys() - {"train/clips_per_second"}
        assert {key: ours[key] for key in measured} == pytest.approx(
            {key: theirs[key] for key in measured}, **TOLERANCE
        )
    assert Checkpoints.damage_of(result.checkpoint) is None
    assert (folder / name / "curves.png").read_text() == "of that version"
    assert (folder / name / "best").is_symlink() == (name == "gan")


@pytest.mark.parametrize(("name", "step"), RUNS.items())
def test_it_is_reported_and_evaluated(folder, name, step):
    page = write_report([name]).read_text()
    assert "val/psnr" in page
    clips = list((folder / name / "report_videos").glob(f"*-step-{step:08d}-clip-*.mp4"))
    assert (len(clips) > 0) == (name == "gan"), "the clips of the other one were not kept"
    run = Run(name)
    assert (run.summary().clips_per_update, run.environment()["telecine"]) == (2, "0.1.0")
    assert [Checkpoints.damage_of(path) for _, path in run.checkpoints.all()] == [None]
    config = EvaluateConfig(data=str(sample_videos()[0]), max_clips=2, device="cpu")
    expected = json.loads((folder / "evaluated.json").read_text())[name]
    assert evaluate(name, config).metrics == pytest.approx(expected, **TOLERANCE)
