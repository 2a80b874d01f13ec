"""Runs that are killed, get signals, or share a folder: whole processes with a tiny model on a real clip."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from telecine.runs import Run
from telecine.runs.saved_settings import as_yaml
from telecine.settings import ClipConfig
from telecine.training import train

from ..training.helpers import checkpoint_steps, last_checkpoint, recorder

pytestmark = [pytest.mark.slow, pytest.mark.faults]

NO_PICTURES = Path(__file__).parents[1] / "training" / "no_pictures.py"


def command(config, folder):
    path = folder / "settings.yaml"
    path.write_text(as_yaml(config))
    return [str(NO_PICTURES), "train", "--config", str(path)]


def wait_for_checkpoint(run, config, step):
    run.wait_until(lambda: any(saved >= step for saved in checkpoint_steps(config)))


def long_run(tiny):
    clips = ClipConfig(num_frames=5, height=32, width=32, num_workers=1)
    return tiny(steps=100_000, save_every=2, val_every=100_000, clips=clips)


def test_two_runs_in_one_folder_are_refused(tiny, tmp_path, forks):
    config = long_run(tiny)
    with forks.start(*command(config, tmp_path)) as run:
        wait_for_checkpoint(run, config, 2)
        with pytest.raises(ValueError, match=rf"used by one run at a time.*process {run.pid} on"):
            train(config)
        assert not run.has_ended()


def test_a_killed_run_resumes_from_its_last_checkpoint(tiny, tmp_path, forks):
    config = long_run(tiny)
    with forks.start(*command(config, tmp_path)) as run:
        wait_for_checkpoint(run, config, 4)
        os.kill(run.pid, signal.SIGKILL)
        assert run.wait().returncode == -signal.SIGKILL
    done = checkpoint_steps(config)[-1]
    assert done >= 4
    console = recorder()
    train(replace(config, steps=done + 2), console=console)
    assert f"step-{done:08d}" in console.export_text()
    assert checkpoint_steps(config)[-1] == done + 2
    records = Run(Path(config.output_dir)).history.read()
    steps = [record["step"] for record in records if "train/total_loss" in record]
    assert steps == sorted(set(steps)), "no step twice"


def contents(run):
    """Return the content of each file of a run but for times, and the names of the trackers' folder."""
    files = {}
    for path in run.rglob("*"):
        name = str(path.relative_to(run))
        if path.is_symlink():
            files[name] = os.readlink(path)
        elif name.startswith("tensorboard/"):  # a file for each start
            files[name.rpartition("/")[0]] = "events"
        elif (
            path.suffix == ".mp4"
        ):  # on a busy machine, the encoder writes other bytes now and then
            files[name] = path.stat().st_size > 0
        elif path.is_file() and name != "report.html":
            files[name] = path.read_bytes()
        else:
            files[name] = path.is_dir()
    records = Run(run).history.read()
    files["metrics.jsonl"] = [
        {key: value for key, value in record.items() if key != "train/clips_per_second"}
        for record in records
    ]
    files["summary.json"] = replace(Run(run).summary(), seconds=0.0, peak_memory=None)
    return files


def test_a_run_that_was_killed_leaves_the_folder_of_one_that_was_not(tiny, tmp_path, forks):
    """File by file. It is killed while it writes clips, a video or a checkpoint, and afterwards."""
    config = tiny(steps=8, val_every=2, save_every=2, keep=2, best_metric="psnr")
    folder = Path(config.output_dir)
    straight = tmp_path / "straight"
    arguments = ["-m", "telecine", *command(config, tmp_path)[1:]]
    done = forks.run(*arguments)
    assert done.returncode == 0, done.stderr
    folder.rename(straight)
    moments = (
        "validation/.*.partial",
        ".side_by_side.*",
        "checkpoints/.step-00000004.*",
        "checkpoints/step-00000006",
    )
    num_partial = 0
    for moment in moments:
        with forks.start(*arguments) as run:
            run.wait_until(
                lambda moment=moment: (
                    any(folder.glob(moment)) or any(folder.glob("checkpoints/step-*6"))
                )
            )
            os.kill(run.pid, signal.SIGKILL)
            assert run.wait().returncode == -signal.SIGKILL
        num_partial += any(folder.glob("**/.*.partial"))
    assert num_partial > 0, "a kill in the middle of a write"
    done = forks.run(*arguments)
    assert done.returncode == 0, done.stderr
    before = contents(straight)
    after = contents(folder)
    assert before.keys() == after.keys()
    assert len(before) > 50
    assert [name for name in before if before[name] != after[name]] == []


def test_a_signal_saves_a_checkpoint_and_prints_how_to_resume(tiny, tmp_path, forks, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    config = long_run(tiny)
    with forks.start(*command(config, tmp_path)) as run:
        wait_for_checkpoint(run, config, 2)
        os.killpg(run.pid, signal.SIGTERM)  # also to the workers, as a terminal or a cluster does
        done = run.wait()
    assert done.returncode == 130, done.stderr
    assert "Run the same command again" in done.stdout
    assert "Traceback" not in done.stderr
    assert list(temporary.glob("pymp-*")) == [], "of workers"
    state = json.loads((last_checkpoint(config) / "state.json").read_text())
    assert state["step"] == checkpoint_steps(config)[-1]


def test_a_signal_ends_the_wait_for_a_stopped_worker(tiny, tmp_path, forks):
    config = long_run(tiny)
    with forks.start(*command(config, tmp_path)) as run:
        wait_for_checkpoint(run, config, 2)
        (worker,) = psutil.Process(run.pid).children()
        worker.send_signal(signal.SIGSTOP)
        time.sleep(2)  # until it waits for a batch
        os.kill(run.pid, signal.SIGTERM)
        done = run.wait(timeout=config.clips.timeout / 2)
    assert done.returncode == 130, done.stderr
    assert "Run the same command again" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_has_been_indexed(tiny, tmp_path, forks, monkeypatch, number):
    monkeypatch.setenv("SECONDS_TO_INDEX", "2")
    data = tmp_path / "data"
    data.mkdir()
    for index in range(3 * os.cpu_count()):
        shutil.copy(tiny().data, data / f"{index}.mp4")
    config = tiny(data=str(data), steps=1)
    script, *arguments = command(config, tmp_path)
    script = str(Path(__file__).with_name("slow_to_read.py"))
    with forks.start(script, *arguments) as run:
        run.wait_until(lambda: run.printed().count("indexes") > os.cpu_count())
        os.kill(run.pid, number)
        done = run.wait(timeout=60)
    assert done.returncode == 130, done.stderr
    assert "stopped before the first update; run the same command again to start" in done.stdout
    assert done.stdout.count("indexes") < 3 * os.cpu_count()
    monkeypatch.setenv("SECONDS_TO_INDEX", "0")
    again = forks.run(script, *arguments)
    assert again.returncode == 0, again.stderr
    names = [line for run in (done, again) for line in run.stdout.splitlines() if "indexes" in line]
    assert len(names) == len(set(names)) == 3 * os.cpu_count(), "none is indexed twice"
