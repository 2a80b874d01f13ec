"""Faults of processes that train: kills, signals, a second run in the folder, and two ranks of which one ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.context import ForkProcess
from pathlib import Path
from threading import Barrier

import torch
from faults_inputs import samples
from faults_row import INTERRUPTED, USER_ERROR, Row
from safetensors.torch import load_file

from telecine import __main__ as cli
from telecine import runs
from telecine.data import sample_videos
from telecine.runs.lock import RunLock
from telecine.runs.saved_settings import as_yaml
from telecine.settings import (
    CausalVAEConfig,
    ClipConfig,
    DiscriminatorConfig,
    ObjectiveConfig,
    TrainableConfig,
    TrainConfig,
)
from telecine.training.interrupt import STOP_SIGNALS

FORK = multiprocessing.get_context("fork")
NUM_STEPS = 12
# Seconds after a step within which a signal is sent; about as long as a step takes.
WITHIN = 0.5
# Seconds that a process may take for its whole run, on a busy machine.
LIMIT = 400.0
NUM_STARTERS = 10
# Updates of the generator of a probe.
PROBE_STEPS = 40


def tiny(output: Path) -> TrainConfig:
    """Return the settings of a run of a few seconds, with discriminators."""
    return TrainConfig(
        data=str(sample_videos()[0]),
        output_dir=str(output),
        steps=NUM_STEPS,
        batch_size=1,
        device="cpu",
        trackers=(),
        log_every=1,
        val_every=NUM_STEPS,
        val_clips=1,
        save_every=1,
        linear_baseline=False,
        latent_clips=2,
        linear_start=False,
        process_timeout=40.0,
        clips=ClipConfig(num_frames=5, height=32, width=32, num_workers=1, timeout=10.0),
        causal_vae=CausalVAEConfig(
            time_compression=4,
            spatial_compression=4,
            latent_channels=4,
            patch_size=2,
            base_channels=8,
            blocks_per_level=1,
        ),
        objective=ObjectiveConfig(disc_start=0, perceptual_weight=0.0, adversarial_loss_weight=0.5),
        discriminator=DiscriminatorConfig(video="patch", dim=2),
    )


@dataclass
class Run:
    """A process that trains: a fork of this one, which has imported everything."""

    process: ForkProcess
    config: TrainConfig
    log: Path

    def step(self) -> int:
        """Return the last step that was recorded."""
        path = Path(self.config.output_dir) / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        # The last line may be incomplete.
        found = [
            int(match[1]) for line in lines if (match := re.match(r'{"step": (\d+),.*}$', line))
        ]
        return max(found, default=0)

    def wait_for(self, step: int) -> bool:
        """Wait until a step is recorded, and return whether the process still runs."""
        while self.process.is_alive() and self.step() < step:
            time.sleep(0.02)
        return self.process.is_alive()

    def send(self, number: int) -> None:
        """Send a signal to the process alone."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> tuple[int | None, str]:
        """Wait for the end, and return the exit code and the errors. None is the code of one that had to be killed."""
        self.process.join(LIMIT)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        return code, self.log.with_suffix(".err").read_text(encoding="utf-8")


def start(
    config: TrainConfig, name: str = "process", environment: Mapping[str, str] | None = None
) -> Run:
    """Start a process that trains."""
    folder = Path(config.output_dir)
    settings, log = (folder.with_name(f"{folder.name}.{suffix}") for suffix in ("yaml", name))
    settings.write_text(as_yaml(config), encoding="utf-8")
    words = ["train", "--config", str(settings)]
    process = FORK.Process(target=run_command, args=(words, log, environment or {}))
    process.start()
    return Run(process, config, log)


def run_command(words: list[str], log: Path, environment: Mapping[str, str]) -> None:
    """Run telecine in this process, a fork, and end it; what it prints is in two files beside `log`."""
    os.setsid()
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(cli.main(words))


def is_one_line(errors: str, *words: str) -> bool:
    """Return whether there is one error of telecine with these words, and no traceback."""
    ours = [line for line in errors.splitlines() if line.startswith("telecine: error: ")]
    return len(ours) == 1 and "Traceback" not in errors and all(word in ours[0] for word in words)


def result(config: TrainConfig) -> dict[str, torch.Tensor]:
    """Return all tensors of a run's last checkpoint, and its step."""
    step, folder = runs.Run(Path(config.output_dir)).checkpoints.all()[-1]
    return {"step": torch.tensor(step)} | {
        f"{path.relative_to(folder)}: {name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def is_equal(config: TrainConfig, expected: dict[str, torch.Tensor]) -> bool:
    """Return whether a run ended with these bits."""
    found = result(config)
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) for key in found
    )


def straight(folder: Path) -> dict[str, torch.Tensor]:
    """Return the result of a run without faults."""
    config = tiny(folder / "straight")
    code, errors = start(config).end()
    assert code == 0, errors
    return result(config)


def kills(folder: Path, number: int, expected: dict[str, torch.Tensor]) -> Row:
    """Kill a run at random moments until it is done, and compare it; then begin the next one."""
    row = Row("a run that was killed at any moment ends with the same bits as one that was not")
    interrupt_all(row, tiny(folder / "killed"), number, expected, lambda chance: signal.SIGKILL)
    return row


def kinds(folder: Path, number: int) -> Row:
    """Kill runs of other kinds at random moments, equally often each, and compare each with one that was not killed."""
    row = Row(
        "a killed run of LoRA, of a decoder that generates, or with batches of images ends with the same bits"
    )
    if number == 0:
        return row
    mixed = folder / "mixed"
    mixed.mkdir()
    (mixed / "video.mp4").symlink_to(sample_videos()[0])
    for path in samples(folder / "of-kinds"):
        if path.suffix == ".png":
            path.rename(mixed / path.name)
    base = runs.Run(folder / "straight").checkpoints.all()[-1][1] / "ema"
    config = tiny(folder / "kind")
    configs = (
        replace(config, model=str(base), trainable=TrainableConfig(weights="lora", lora_rank=2)),
        replace(config, causal_vae=replace(config.causal_vae, decoder="flow")),
        replace(config, data=str(mixed), clips=replace(config.clips, image_ratio=0.5)),
    )
    for index, kind in enumerate(configs):
        straight_run = replace(kind, output_dir=str(folder / f"kind-{index}"))
        code, errors = start(straight_run).end()
        assert code == 0, errors
        expected = result(straight_run)
        share = number * (index + 1) // len(configs)
        interrupt_all(row, kind, share, expected, lambda chance: signal.SIGKILL)
    return row


def probes(folder: Path, number: int) -> Row:
    """Kill `telecine latents --probe` at random moments until it is done, and compare its generator and its figures."""
    row = Row("a killed probe of a latent, started again, has the same generator and figures")
    if number == 0:
        return row
    model = runs.Run(folder / "straight").checkpoints.all()[-1][1] / "ema"
    words = ["latents", str(model), "--data", str(sample_videos()[0]), "--max_clips", "4"]
    words += ["--device", "cpu", "--num_frames", "5", "--height", "32", "--width", "32", "--probe"]
    words += ["--probe.val_data", str(sample_videos()[1]), "--probe.num_clips", "32"]
    words += ["--probe.steps", str(PROBE_STEPS), "--probe.batch_size", "4"]
    log = folder / "probe.log"
    straight_output = folder / "probe-straight"
    begin = time.perf_counter()
    process = _start_probe(words, straight_output, log)
    process.join(LIMIT)
    seconds = time.perf_counter() - begin
    assert process.exitcode == 0, log.with_suffix(".err").read_text(encoding="utf-8")
    expected = _probe_result(straight_output)

    chance = random.Random(0)
    output = folder / "probe-killed"
    num_killed = 0
    pending: list[str] = []
    while row.tried < number:
        process = _start_probe(words, output, log)
        if num_killed < number:
            process.join(chance.uniform(0.1, 1) * seconds)
        if num_killed < number and process.is_alive():
            steps = [path.name for path in output.glob("probe/*/checkpoints/*")]
            process.kill()
            process.join()
            num_killed += 1
            pending.append(f"kill {num_killed}, with the checkpoints {sorted(steps)}")
            continue
        process.join(LIMIT)
        errors = log.with_suffix(".err").read_text(encoding="utf-8")
        is_same = process.exitcode == 0 and _is_same_probe(_probe_result(output), expected)
        for what in pending:
            row.add(held=is_same, what=f"{what}; ended with {process.exitcode}, {errors}")
        pending = []
        shutil.rmtree(output)
    return row


def _start_probe(words: list[str], output: Path, log: Path) -> ForkProcess:
    process = FORK.Process(target=run_command, args=([*words, "-o", str(output)], log, {}))
    process.start()
    return process


def _probe_result(output: Path) -> tuple[dict[str, torch.Tensor], object]:
    """Return the weights of the generator, and what the page says of the model."""
    (folder,) = output.glob(f"probe/*/checkpoints/step-{PROBE_STEPS:08d}")
    (model,) = json.loads((output / "latents.json").read_text(encoding="utf-8"))["models"]
    model["probe"].pop("seconds")
    return load_file(folder / "ema" / "model.safetensors"), model


def _is_same_probe(
    result: tuple[dict[str, torch.Tensor], object], expected: tuple[dict[str, torch.Tensor], object]
) -> bool:
    weights, figures = result
    expected_weights, expected_figures = expected
    same_names = weights.keys() == expected_weights.keys()
    return (
        same_names
        and all(torch.equal(weights[name], expected_weights[name]) for name in weights)
        and figures == expected_figures
    )


def signals(folder: Path, number: int, expected: dict[str, torch.Tensor]) -> Row:
    """Interrupt a run at random moments until it is done, and compare it; then begin the next one."""
    row = Row(
        "a run that got a signal at any moment saves, exits with code 130, and ends with the same bits"
    )
    # Without other checkpoints: what is not saved at the signal is lost.
    config = replace(tiny(folder / "signalled"), save_every=NUM_STEPS)
    interrupt_all(row, config, number, expected, lambda chance: chance.choice(STOP_SIGNALS))
    return row


def interrupt_all(
    row: Row,
    config: TrainConfig,
    number: int,
    expected: dict[str, torch.Tensor],
    choose: Callable[[random.Random], int],
) -> None:
    """Send signals to runs at random moments until a number of them has been sent and the last run is done."""
    chance, attempt = random.Random(0), 0
    folder = Path(config.output_dir)
    pending: list[tuple[bool, str]] = []
    while row.tried < number:
        run = start(config)
        saved = runs.Run(folder).checkpoints.all()
        begun_at = saved[-1][0] if saved else 0
        step = chance.randint(
            min(begun_at, NUM_STEPS - 1), NUM_STEPS - 1
        )  # the run before may have been done in time
        is_last = row.tried + len(pending) == number
        if not is_last and run.wait_for(step + 1 if step > begun_at else 0):
            time.sleep(chance.uniform(0, WITHIN))
            sent = choose(chance)
            run.send(sent)
            code, errors = run.end()
            held = is_way_out(run, code, errors, sent, trained=step > begun_at)
            pending.append(
                (
                    held,
                    f"run {attempt}, signal {sent} after step {step}, at {run.step()}: {code}, {errors}",
                )
            )
            if code != 0:
                continue
        else:
            code, errors = run.end()
        same = code == 0 and is_equal(config, expected)
        for held, what in pending:
            row.add(held=held and same, what=f"{what}; ended with {code}, equal: {same}, {errors}")
        pending, attempt = [], attempt + 1
        shutil.rmtree(folder)


def is_way_out(run: Run, code: int | None, errors: str, sent: int, *, trained: bool) -> bool:
    """Return whether a process ended as it should after a signal: with a checkpoint of its last step, no error."""
    if sent == signal.SIGKILL:
        return code == -sent
    if code == 0:  # the last step was done
        return True
    if code == -sent and (
        not trained or run.step() == NUM_STEPS
    ):  # as usual, while it starts or when it is done
        return True
    is_saved = not trained or run.step() == result(run.config)["step"]
    return code == INTERRUPTED and "Traceback" not in errors and "error:" not in errors and is_saved


def two_runs(folder: Path, number: int, expected: dict[str, torch.Tensor]) -> Row:
    """Start a second run in the folder of one that trains."""
    row = Row(
        "a second run in one folder is refused with one line, and the first ends with the same bits"
    )
    chance = random.Random(0)
    for attempt in range(number):
        first = start(tiny(folder / f"two-{attempt}"), "first")
        if first.wait_for(chance.randint(1, NUM_STEPS // 2)):
            code, errors = start(first.config, "second").end()
            refused = code == USER_ERROR and is_one_line(
                errors, f"process {first.process.pid} on", "--steal_lock"
            )
            held = refused and first.end()[0] == 0 and is_equal(first.config, expected)
            row.add(held=held, what=f"attempt {attempt}: {code}, {errors}")
        first.end()
    return row


def starters(folder: Path, number: int) -> Row:
    """Let ten processes take a stale lock at once: one gets it, and the others are refused."""
    row = Row("of processes that start together after a stale lock, one trains")
    run = folder / "starters"
    for count in (
        1,
        *number * (NUM_STARTERS,),
    ):  # the holder of each attempt leaves the stale lock of the next one
        barrier = FORK.Barrier(count)
        processes = [FORK.Process(target=_take_lock, args=(run, barrier)) for _ in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(LIMIT)
        codes = sorted(str(process.exitcode) for process in processes)
        assert (run / ".lock").exists()
        if count > 1:
            row.add(held=codes == ["0", *(count - 1) * [str(USER_ERROR)]], what=f"codes {codes}")
    return row


def _take_lock(run: Path, barrier: Barrier) -> None:
    """Take the lock when all are there, hold it until all have tried, and end without a release, as if killed."""
    barrier.wait(LIMIT)
    locks = []
    try:
        locks.append(RunLock(run).acquire())  # a lock that is not referenced is released
        code = 0
    except ValueError as error:
        code = USER_ERROR if "used by one run at a time" in str(error) else 1
    barrier.wait(LIMIT)
    os._exit(code)


def ranks(folder: Path, number: int) -> Row:
    """Kill or stop either of two processes that train together, at random moments; then train to the end."""
    row = Row("a killed or stopped rank ends the other; the run ends with the same bits")
    if number == 0:
        return row
    config = tiny(folder / "ranks")
    for run in start_two(config):
        code, errors = run.end()
        assert code == 0, errors
    expected = result(config)
    chance = random.Random(0)
    for attempt in range(number):
        config = tiny(folder / f"ranks-{attempt}")
        runs, lost = start_two(config), attempt % 2
        sent = (signal.SIGKILL, signal.SIGSTOP)[attempt // 2 % 2]
        assert runs[0].wait_for(chance.randint(1, NUM_STEPS - 2))
        time.sleep(chance.uniform(0, WITHIN))
        runs[lost].send(sent)
        code, errors = runs[1 - lost].end()
        runs[lost].send(signal.SIGKILL)
        runs[lost].end()
        codes = [run.end()[0] for run in start_two(config)]
        what = f"rank {lost}, signal {sent}: {code}, {errors[-600:]}, then {codes}"
        row.add(held=code != 0 and codes == [0, 0] and is_equal(config, expected), what=what)
    return row


def start_two(config: TrainConfig) -> list[Run]:
    """Start two processes that train together, without a launcher that would end one with the other."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        start(config, f"rank{rank}", {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in (0, 1)
    ]
