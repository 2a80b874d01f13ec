"""Two processes of `torchrun`, of which one is killed or stopped."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from telecine.runs import Run
from telecine.runs.checkpoints import Checkpoints
from telecine.runs.lock import OWNER_FILE
from telecine.runs.saved_settings import as_yaml
from telecine.settings import ClipConfig

from ..training.helpers import assert_equal_tensors, checkpoint_steps, last_checkpoint, tensors

pytestmark = [pytest.mark.slow, pytest.mark.faults]

NO_PICTURES = Path(__file__).parents[1] / "training" / "no_pictures.py"
SLOW_TO_READ = Path(__file__).with_name("slow_to_read.py")
NUM_STEPS = 8
FORWARDED = ("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGUSR1")


def command(config, *options, script=NO_PICTURES):
    settings = Path(config.output_dir).with_suffix(".yaml")
    settings.write_text(as_yaml(config))
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", *options)
    return [*torchrun, str(script), "train", "--config", str(settings)]


@pytest.fixture(scope="module")
def make_config(tmp_path_factory, cached_weights, tiny_config):
    """Return a function that creates the settings of a run of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    clips = ClipConfig(num_frames=5, height=32, width=32, num_workers=1, timeout=5.0)
    base = replace(
        tiny_config(folder),
        clips=clips,
        steps=NUM_STEPS,
        save_every=1,
        val_every=NUM_STEPS,
        val_clips=1,
    )

    def make(name, **changes):
        return replace(base, output_dir=str(folder / name), **changes)

    return make


@pytest.fixture(scope="module")
def straight(make_config, forks):
    """Train without faults; return the bits."""
    config = make_config("straight")
    done = forks.run(*command(config))
    assert done.returncode == 0, done.stderr[-2000:]
    return bits(config)


def bits(config):
    assert checkpoint_steps(config)[-1] == NUM_STEPS
    return tensors(last_checkpoint(config))


def ranks_after(run, config, step):
    """Wait for a checkpoint, and return the processes of both ranks."""
    run.wait_until(lambda: any(saved >= step for saved in checkpoint_steps(config)))
    first = json.loads((Path(config.output_dir) / OWNER_FILE).read_text())["pid"]
    (second,) = (child for child in psutil.Process(run.pid).children() if child.pid != first)
    return psutil.Process(first), second


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_restarts_a_run_of_which_a_process_was_killed(make_config, straight, forks, rank):
    config = make_config(f"killed-{rank}")
    with forks.start(*command(config, "--max-restarts", "1")) as run:
        ranks_after(run, config, 3)[rank].kill()
        done = run.wait()
    assert done.returncode == 0, done.stderr[-4000:]
    assert "resuming from" in done.stdout
    assert assert_equal_tensors(bits(config), straight) > 10


@pytest.mark.parametrize(("number", "options"), [(signal.SIGTERM, ()), (signal.SIGUSR1, FORWARDED)])
def test_a_signal_to_torchrun_saves_in_both_processes(
    make_config, straight, forks, number, options
):
    config = make_config(f"stopped-by-{number.name}")
    with forks.start(*command(config, *options)) as run:
        ranks_after(run, config, 3)
        os.kill(run.pid, number)
        done = run.wait()
    assert done.returncode == 1, "torchrun's own code: that of telecine, 130, is lost"
    step, newest = Run(Path(config.output_dir)).checkpoints.all()[-1]
    assert 3 <= step < NUM_STEPS
    assert f"stopped; saved {newest}" in done.stdout
    again = forks.run(*command(config))
    assert again.returncode == 0, again.stderr[-4000:]
    assert assert_equal_tensors(bits(config), straight) > 10


def test_a_process_that_is_killed_while_it_saves_its_shard_leaves_the_last_checkpoint(
    make_config, forks
):
    config = make_config("killed-while-saving", sharding="fsdp2", steps=3, val_every=3)
    script = Path(__file__).with_name("killed_while_saving.py")
    done = forks.run(*command(config, "--max-restarts", "1", script=script))
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"resuming from {config.output_dir}/checkpoints/step-00000001" in done.stdout
    folders = dict(Run(Path(config.output_dir)).checkpoints.all())
    assert list(folders) == [2, 3]
    assert [Checkpoints.damage_of(folder) for folder in folders.values()] == [None] * 2
    hidden = [path.name for path in folders[3].parent.iterdir() if path.name.startswith(".")]
    assert hidden == [], "what the killed process left is removed"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_ends_the_other_after_the_time_limit(make_config, forks, rank):
    config = make_config(f"stopped-{rank}", steps=100_000, val_every=100_000, process_timeout=30.0)
    with forks.start(*command(config)) as run:
        processes = ranks_after(run, config, 2)
        processes[rank].send_signal(signal.SIGSTOP)
        # `torchrun` asks the stopped one to end for half a minute.
        processes[1 - rank].wait(timeout=120)
        processes[rank].kill()
        done = run.wait()
    assert done.returncode == 1
    assert f"local_rank: {1 - rank}" in done.stderr, "torchrun names the first process that failed"


@pytest.mark.parametrize("setting", ["SECONDS_TO_INDEX", "SECONDS_TO_DECODE"])
def test_reading_the_videos_may_take_longer_than_the_time_limit(
    make_config, forks, monkeypatch, tmp_path, setting
):
    monkeypatch.setenv(setting, "16")
    base = make_config(setting.lower(), steps=1)
    shutil.copy(base.data, tmp_path)  # other tests have indexed the original
    clips = replace(base.clips, timeout=2.0, cache=True)
    config = replace(base, data=str(tmp_path), process_timeout=8.0, clips=clips)
    done = forks.run(*command(config, script=SLOW_TO_READ))
    assert done.returncode == 0, done.stderr[-4000:]
    expected = f"process 0 indexes {Path(base.data).name}"
    assert [line for line in done.stdout.splitlines() if "indexes" in line] == [expected], (
        "the other reads the index"
    )


def test_a_process_that_is_killed_while_it_indexes_ends_the_others(
    make_config, forks, monkeypatch, tmp_path
):
    monkeypatch.setenv("SECONDS_TO_INDEX", "600")
    base = make_config("killed-while-indexing")
    shutil.copy(base.data, tmp_path)
    config = replace(base, data=str(tmp_path))
    with forks.start(*command(config, script=SLOW_TO_READ)) as run:
        owner = Path(config.output_dir, OWNER_FILE)
        run.wait_until(lambda: "indexes" in run.printed() and owner.is_file())
        psutil.Process(json.loads(owner.read_text())["pid"]).kill()
        done = run.wait(timeout=60)
    assert done.returncode == 1


def test_a_signal_to_torchrun_keeps_what_has_been_indexed(
    make_config, forks, monkeypatch, tmp_path
):
    monkeypatch.setenv("SECONDS_TO_INDEX", "2")
    base = make_config("stopped-while-indexing", steps=1)
    num_videos = 3 * os.cpu_count()
    for index in range(num_videos):
        shutil.copy(base.data, tmp_path / f"{index}.mp4")
    config = replace(base, data=str(tmp_path))
    with forks.start(*command(config, script=SLOW_TO_READ)) as run:
        run.wait_until(lambda: run.printed().count("indexes") > os.cpu_count())
        os.kill(run.pid, signal.SIGTERM)
        done = run.wait(timeout=60)
    assert "stopped before the first update" in done.stdout
    monkeypatch.setenv("SECONDS_TO_INDEX", "0")
    again = forks.run(*command(config, script=SLOW_TO_READ))
    assert again.returncode == 0, again.stderr[-4000:]
    lines = [line for run in (done, again) for line in run.stdout.splitlines() if "indexes" in line]
    assert sorted(lines) == [f"process 0 indexes {index}.mp4" for index in range(num_videos)]
