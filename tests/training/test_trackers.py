"""What trackers are told: the name, the settings and the id of a run, which stays the same when the run resumes."""

import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from accelerate.tracking import TensorBoardTracker
from rich.console import Console

from telecine.runs import Run
from telecine.runs.settings import plain_settings
from telecine.training import train
from telecine.training.build import build_accelerator
from telecine.training.trackers import drop_after, start_trackers


def quiet():
    return Console(quiet=True)


class FakeAccelerator:
    """Starts fake trackers, as Accelerate does."""

    def __init__(self, names):
        self.log_with, self.started, self.sent = names, [], {}
        self.trackers = []

    def init_trackers(self, project, init_kwargs):
        for each in self.log_with:
            name = getattr(each, "name", each)
            self.started.append((name, project, getattr(each, "init_kwargs", init_kwargs.get(name))))
            keep = lambda values, name=name: self.sent.__setitem__(name, values)  # noqa: E731
            self.trackers.append(SimpleNamespace(name=name, store_init_configuration=keep))


@pytest.fixture
def started(tmp_path, tiny, monkeypatch):
    """Return a function that starts fake trackers of a run."""
    if importlib.util.find_spec("wandb") is None:
        monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
        monkeypatch.setitem(sys.modules, "wandb.errors", SimpleNamespace(Error=RuntimeError))
    (tmp_path / "my_run").mkdir()

    def start(names, resumed_at=None, **changes):
        config = tiny(trackers=names, output_dir=str(tmp_path / "my_run"), **changes)
        accelerator = FakeAccelerator(names)
        start_trackers(accelerator, plain_settings(config), Run(config.output_dir), resumed_at)
        return accelerator

    return start


def test_names_project_and_id_of_a_run_and_of_its_resume(started, tmp_path):
    names = ("tensorboard", "wandb", "trackio", "mlflow")
    first, resumed = started(names).started, started(names, resumed_at=3).started
    again = started(names).started
    assert [name for name, *_ in first] == [*names]
    assert {project for _, project, _ in first} == {"telecine"}
    ids = [dict(zip(names, run, strict=True))["wandb"][2]["id"] for run in (first, resumed, again)]
    assert ids[0] == ids[1] != ids[2], "a run that starts from nothing is another one"
    assert json.loads((tmp_path / "my_run" / "tracker.json").read_text()) == {"id": ids[2]}
    wandb = {"name": "my_run", "id": ids[0], "resume": "allow", "dir": str(tmp_path / "my_run")}
    trackio = {"name": f"my_run-{ids[0]}", "resume": "allow"}
    assert [options for *_, options in first] == [{"purge_step": 0}, wandb, trackio, None]
    assert [options for *_, options in resumed] == [{"purge_step": 4}, wandb, trackio, None]


def test_options_of_the_user_override_ours(started):
    options = {"wandb": {"name": "other", "group": "study"}, "tensorboard": {"flush_secs": 7}}
    run = started(("wandb", "tensorboard"), tracker_options=options, tracker_project="mine").started
    assert run[0][1] == "mine"
    assert {"name": "other", "group": "study", "resume": "allow"}.items() <= run[0][2].items()
    assert run[1][2] == {"flush_secs": 7, "purge_step": 0}


def test_settings_are_sent_as_each_tracker_takes_them(started):
    sent = started(("tensorboard", "wandb", "mlflow"), steps=7).sent
    assert sent.keys() == {"wandb", "mlflow"}
    assert (sent["wandb"]["steps"], sent["wandb"]["optimizer"]["warmup_steps"]) == (7, 2)
    assert (sent["mlflow"]["steps"], sent["mlflow"]["optimizer.warmup_steps"]) == ("7", "2")


def test_tensorboard_alone_needs_no_id(started, tmp_path):
    started(("tensorboard",))
    assert not (tmp_path / "my_run" / "tracker.json").exists()


def test_an_id_that_is_damaged_is_named(tmp_path):
    (tmp_path / "tracker.json").write_text('{"id": 3}')
    with pytest.raises(ValueError, match=r"tracker.json` must be the id of a run in trackers, but got 3"):
        Run(tmp_path).tracker_id(is_new=False)


def test_options_of_a_tracker_that_is_not_used_are_refused(tiny):
    with pytest.raises(ValueError, match=r"`tracker_options` must be of \['tensorboard'\], but got \['wandb'\]. Add"):
        build_accelerator(tiny(trackers=("tensorboard",), tracker_options={"wandb": {}}))


def test_a_wrong_option_is_one_line(tiny, tmp_path):
    options = {"tensorboard": {"flush": 3}}
    config = tiny(trackers=("tensorboard",), tracker_options=options, output_dir=str(tmp_path))
    accelerator = build_accelerator(config)
    with pytest.raises(ValueError, match=r"`trackers` must be .* that start, but got TypeError .*flush.*`tracker_op"):
        start_trackers(accelerator, plain_settings(config), Run(tmp_path), None)


def test_tensorboards_files_stay_where_they_were(tiny, tmp_path):
    config = tiny(trackers=("tensorboard",), tracker_project="mine", output_dir=str(tmp_path))
    accelerator = build_accelerator(config)
    start_trackers(accelerator, plain_settings(config), Run(tmp_path), None)
    (tracker,) = accelerator.trackers
    accelerator.end_training()
    assert isinstance(tracker, TensorBoardTracker)
    assert [path.parent for path in tmp_path.rglob("events.out.*")] == [tmp_path / "tensorboard"]


def test_tensorboard_has_each_step_once_after_a_rollback_and_a_new_start(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny(trackers=("tensorboard",), output_dir=str(tmp_path))

    def logged(*steps):
        for step in steps:
            accelerator.log({"train/lr": float(step)}, step=step)
        for tracker in accelerator.trackers:
            tracker.writer.flush()
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        return [event.step for event in events.Scalars("train/lr")]

    accelerator = build_accelerator(config)
    start_trackers(accelerator, plain_settings(config), Run(tmp_path), None)
    assert logged(0, 2, 4, 6) == [0, 2, 4, 6]
    drop_after(3, accelerator.trackers)
    assert logged(4, 6, 8) == [0, 2, 4, 6, 8]
    accelerator.end_training()
    accelerator = build_accelerator(config)
    start_trackers(accelerator, plain_settings(config), Run(tmp_path), None)
    assert logged(0, 2) == [0, 2]
    accelerator.end_training()


@pytest.mark.slow
@pytest.mark.usefixtures("with_pictures")
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_a_resumed_run_is_one_run_of_wandb(tiny, monkeypatch):
    """Offline, as on a machine without a network; `wandb sync` sends both folders to one run."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tiny(steps=1, trackers=("wandb",), tracker_options={"wandb": {"group": "study"}})
    folder = train(config, console=quiet()).run
    train(replace(config, steps=2), console=quiet())
    of_run = json.loads((folder / "tracker.json").read_text())["id"]
    offline = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(offline) == 2
    assert {path.name.rpartition("-")[2] for path in offline} == {of_run}
    assert all(list(path.rglob("*.mp4")) for path in offline), "a preview of each validation"
    logged = b"".join(path.read_bytes() for each in offline for path in each.glob("*.wandb"))
    for text in (b"telecine", b"study", b"warmup_steps", b"val/psnr", b"train/total_loss"):
        assert text in logged
    assert b"tensorboard" not in logged


@pytest.mark.slow
@pytest.mark.usefixtures("with_pictures")
@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="needs trackio")
def test_a_resumed_run_is_one_run_of_trackio(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    config = tiny(steps=1, trackers=("trackio",), tracker_project=f"test-{os.getpid()}")
    folder = train(config, console=quiet()).run
    train(replace(config, steps=2), console=quiet())
    import trackio

    of_run = json.loads((folder / "tracker.json").read_text())["id"]
    (run,) = trackio.Api().runs(config.tracker_project)
    assert run.name == f"{Path(config.output_dir).name}-{of_run}"
