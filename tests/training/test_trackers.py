"""What trackers are told: the name, the settings and the id of a run, which stays the same when the run resumes."""

import importlib.util
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from accelerate.tracking import TensorBoardTracker

from telecine.runs import Run
from telecine.runs.saved_settings import plain_settings
from telecine.training import train
from telecine.training.build import build_accelerator
from telecine.training.trackers import drop_after, start_trackers


class FakeAccelerator:
    """Starts fake trackers, as Accelerate does: `started` has the project and the options of each, by its name."""

    def __init__(self, names):
        self.log_with = names
        self.trackers = []
        self.started = {}
        self.sent = {}

    def init_trackers(self, project, init_kwargs):
        for tracker in self.log_with:
            name = getattr(tracker, "name", tracker)
            self.started[name] = (project, getattr(tracker, "init_kwargs", init_kwargs.get(name)))
            self.trackers.append(
                SimpleNamespace(name=name, store_init_configuration=partial(self.send, name))
            )

    def send(self, name, values):
        self.sent[name] = values


@pytest.fixture
def start(tmp_path, tiny, monkeypatch):
    """Return a function that starts fake trackers of a run."""
    if importlib.util.find_spec("wandb") is None:
        monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
        monkeypatch.setitem(sys.modules, "wandb.errors", SimpleNamespace(Error=RuntimeError))
    (tmp_path / "my_run").mkdir()

    def start_fakes(names, resumed_at=None, **changes):
        config = tiny(trackers=names, output_dir=str(tmp_path / "my_run"), **changes)
        accelerator = FakeAccelerator(names)
        start_trackers(accelerator, plain_settings(config), Run(config.output_dir), resumed_at)
        return accelerator

    return start_fakes


def test_names_project_and_id_of_a_run_and_of_its_resume(start, tmp_path):
    start(("tensorboard",))
    assert not (tmp_path / "my_run" / "tracker.json").exists(), "it needs no id"
    names = ("tensorboard", "wandb", "trackio", "mlflow")
    first = start(names).started
    run_id = first["wandb"][1]["id"]
    for started, step in ((first, 0), (start(names, resumed_at=3).started, 4)):
        assert started == {
            "tensorboard": ("telecine", {"purge_step": step}),
            "wandb": (
                "telecine",
                {
                    "name": "my_run",
                    "id": run_id,
                    "resume": "allow",
                    "dir": str(tmp_path / "my_run"),
                },
            ),
            "trackio": ("telecine", {"name": f"my_run-{run_id}", "resume": "allow"}),
            "mlflow": ("telecine", None),
        }
    new_id = start(names).started["wandb"][1]["id"]
    assert new_id != run_id, "a run that starts from nothing is another one"
    assert json.loads((tmp_path / "my_run" / "tracker.json").read_text()) == {"id": new_id}


def test_options_of_the_user_override_ours_and_settings_are_sent_as_each_tracker_takes_them(start):
    options = {"wandb": {"name": "other", "group": "study"}, "tensorboard": {"flush_secs": 7}}
    names = ("tensorboard", "wandb", "mlflow")
    accelerator = start(names, tracker_options=options, tracker_project="mine", steps=7)
    project, wandb = accelerator.started["wandb"]
    assert project == "mine"
    assert {"name": "other", "group": "study", "resume": "allow"}.items() <= wandb.items()
    assert accelerator.started["tensorboard"][1] == {"flush_secs": 7, "purge_step": 0}
    sent = accelerator.sent
    assert sent.keys() == {"wandb", "mlflow"}
    assert (sent["wandb"]["steps"], sent["wandb"]["optimizer"]["warmup_steps"]) == (7, 2)
    assert (sent["mlflow"]["steps"], sent["mlflow"]["optimizer.warmup_steps"]) == ("7", "2")


def test_an_id_that_is_damaged_is_named(tmp_path):
    (tmp_path / "tracker.json").write_text('{"id": 3}')
    with pytest.raises(
        ValueError, match=r"tracker.json` must be the id of a run in trackers, but got 3"
    ):
        Run(tmp_path).tracker_id(is_new=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "one of 'aim', .*, but got 'tensorbord' .str.. Did you mean `tensorboard`?"),
        ("aim", "installed, but got 'aim'. Run `pip install aim`, or leave it out."),
    ],
)
def test_a_tracker_that_is_misspelt_or_not_installed(tiny, name, message):
    with pytest.raises(ValueError, match=f"`trackers` must be {message}"):
        build_accelerator(tiny(trackers=("tensorboard", name)))


def test_options_of_a_tracker_that_is_not_used_are_refused(tiny):
    with pytest.raises(
        ValueError,
        match=r"`tracker_options` must be of \['tensorboard'\], but got \['wandb'\]. Add",
    ):
        build_accelerator(tiny(trackers=("tensorboard",), tracker_options={"wandb": {}}))


def test_a_wrong_option_is_one_line(tiny, tmp_path):
    options = {"tensorboard": {"flush": 3}}
    config = tiny(trackers=("tensorboard",), tracker_options=options, output_dir=str(tmp_path))
    accelerator = build_accelerator(config)
    with pytest.raises(
        ValueError,
        match=r"`trackers` must be .* that start, but got TypeError .*flush.*`tracker_op",
    ):
        start_trackers(accelerator, plain_settings(config), Run(tmp_path), None)


def test_tensorboard_has_each_step_once_after_a_rollback_and_a_new_start(
    tiny, tmp_path, monkeypatch
):
    """Its files are in its folder whatever the project is."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer.event_file_writer import AtomicCounter

    # Files of one second are read in the order of this number, as text: 10 before 9.
    monkeypatch.setattr(
        "tensorboard.summary.writer.event_file_writer._global_uid", AtomicCounter(0)
    )

    config = tiny(trackers=("tensorboard",), tracker_project="mine", output_dir=str(tmp_path))

    def start_accelerator():
        accelerator = build_accelerator(config)
        start_trackers(accelerator, plain_settings(config), Run(tmp_path), None)
        (tracker,) = accelerator.trackers
        assert isinstance(tracker, TensorBoardTracker)
        return accelerator

    def log(accelerator, *steps):
        for step in steps:
            accelerator.log({"train/lr": float(step)}, step=step)
        accelerator.trackers[0].writer.flush()
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        return [event.step for event in events.Scalars("train/lr")]

    accelerator = start_accelerator()
    assert log(accelerator, 0, 2, 4, 6) == [0, 2, 4, 6]
    drop_after(3, accelerator.trackers)
    assert log(accelerator, 4, 6, 8) == [0, 2, 4, 6, 8]
    accelerator.end_training()
    accelerator = start_accelerator()
    assert log(accelerator, 0, 2) == [0, 2]
    accelerator.end_training()
    assert {path.parent for path in tmp_path.rglob("events.out.*")} == {tmp_path / "tensorboard"}


@pytest.mark.slow
@pytest.mark.usefixtures("with_pictures")
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_a_resumed_run_is_one_run_of_wandb(tiny, monkeypatch):
    """Offline, as on a machine without a network; `wandb sync` sends both folders to one run."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tiny(steps=1, trackers=("wandb",), tracker_options={"wandb": {"group": "study"}})
    folder = train(config).run
    train(replace(config, steps=2))
    run_id = json.loads((folder / "tracker.json").read_text())["id"]
    offline = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(offline) == 2
    assert {path.name.rpartition("-")[2] for path in offline} == {run_id}
    assert all(list(path.rglob("*.mp4")) for path in offline), "a preview of each validation"
    logged = b"".join(path.read_bytes() for path in folder.glob("wandb/offline-run-*/*.wandb"))
    for text in (b"telecine", b"study", b"warmup_steps", b"val/psnr", b"train/total_loss"):
        assert text in logged
    assert b"tensorboard" not in logged


@pytest.mark.slow
@pytest.mark.usefixtures("with_pictures")
@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="needs trackio")
def test_a_resumed_run_is_one_run_of_trackio(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    config = tiny(steps=1, trackers=("trackio",), tracker_project=f"test-{os.getpid()}")
    folder = train(config).run
    train(replace(config, steps=2))
    import trackio

    run_id = json.loads((folder / "tracker.json").read_text())["id"]
    (run,) = trackio.Api().runs(config.tracker_project)
    assert run.name == f"{Path(config.output_dir).name}-{run_id}"
