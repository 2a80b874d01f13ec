"""Faults of a run, and whether what telecine promises about its checkpoints held: a Markdown table.

    python benchmarks/faults.py
    python benchmarks/faults.py --kills 20

Crashes: writing a checkpoint is stopped at each of its operations on files, one after the other. Damage: each file of
the newest checkpoint is damaged in each of several ways. Kills: a process that trains is killed at random moments,
started again each time, and the weights at its end are compared with those of a run that was not killed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import machine, table
from rich.console import Console
from safetensors.torch import load_file

from telecine.autoencoders import CausalVAEConfig
from telecine.data import ClipConfig, sample_videos
from telecine.manifest import DamagedError
from telecine.runs import MANIFEST_FILE, STATE_FILE, checkpoint_folder, checkpoints
from telecine.training import DiscriminatorConfig, ObjectiveConfig, TrainConfig
from telecine.training.checkpoint import as_yaml
from telecine.training.checkpoint_files import newest_intact, save_tensors, write_checkpoint
from telecine.training.interrupt import StopRequest
from telecine.training.trainer import Trainer

# What Python reports of operations that change files.
OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink")
NUM_STEPS = 12
# Seconds after which a process is killed, from its start: from among its imports to about its end.
KILLED_AFTER = (2.0, 10.0)


@dataclass
class Row:
    """A row of the table."""

    promise: str
    tried: int = 0
    held: int = 0

    def add(self, *, held: bool) -> None:
        """Count an attempt."""
        self.tried += 1
        self.held += held


class CrashError(BaseException):
    """Takes the place of a crash: nothing in telecine catches it."""


class Crash:
    """Raises at an operation on files, counted from 1 from when it is armed. An audit hook cannot be removed again."""

    def __init__(self) -> None:
        self.left = 0
        sys.addaudithook(self._count)

    def _count(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.left == 0 or event not in OPERATIONS:
            return
        self.left -= 1
        if self.left == 0:
            raise CrashError(event)


def fill(seed: int) -> Callable[[Path], None]:
    """Return a function that fills the folder of a checkpoint with what depends on a seed."""

    def write(folder: Path) -> None:
        for name in ("ema", "model"):
            (folder / name).mkdir()
            save_tensors(folder / name / "model.safetensors", {"weight": torch.full((64,), float(seed))})
            (folder / name / "config.json").write_text(f'{{"seed": {seed}}}', encoding="utf-8")
        save_tensors(folder / "optimizer.safetensors", {"0.exp_avg": torch.full((64,), float(seed))})
        (folder / STATE_FILE).write_text(f'{{"step": {seed}}}', encoding="utf-8")

    return write


def crashes(folder: Path) -> Row:
    """Stop the write of a third checkpoint at each operation; the newest must be intact and the next write work."""
    row = Row("after a crash at any operation on files, the newest checkpoint is intact")
    crash = Crash()
    for operation in range(1, 10_000):
        run = folder / f"crash-{operation}"
        for step in (1, 2):
            write_checkpoint(run, step, fill(step), keep=2, best=1)
        crash.left = operation
        try:
            write_checkpoint(run, 3, fill(3), keep=1, best=3)
        except CrashError:
            is_over = False
        else:
            is_over, crash.left = True, 0
        found, damaged = newest_intact(run)
        has_newest = found in (checkpoint_folder(run, 2), checkpoint_folder(run, 3)) and not damaged
        write_checkpoint(run, 4, fill(4), keep=1, best=4)
        is_clean = sorted(path.name for path in run.iterdir()) == ["best", "checkpoints"]
        held = has_newest and is_clean and [step for step, _ in checkpoints(run)] == [4]
        shutil.rmtree(run)
        if is_over:
            return row
        row.add(held=held)
    raise AssertionError("the write never ended")


def flip_a_bit(path: Path, older: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def clear_half(path: Path, older: Path) -> None:
    """Replace the second half by zeros, as after a power failure."""
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


def cut(path: Path, older: Path) -> None:
    """Remove the last byte."""
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path, older: Path) -> None:
    """Remove the contents."""
    path.write_bytes(b"")


def append(path: Path, older: Path) -> None:
    """Add a byte."""
    path.write_bytes(path.read_bytes() + b"\0")


def remove(path: Path, older: Path) -> None:
    """Remove the file."""
    path.unlink()


def use_older(path: Path, older: Path) -> None:
    """Replace the file by that of an older checkpoint."""
    shutil.copyfile(older, path)


WAYS = (flip_a_bit, clear_half, cut, empty, append, remove, use_older)


def damage(folder: Path) -> Row:
    """Damage each file of the newest checkpoint in each way: it must be named, set aside, and the older one be used."""
    row = Row("a damaged file is named, the checkpoint is kept aside, and the one before it is used")
    names = [
        *(f"{part}/{file}" for part in ("ema", "model") for file in ("model.safetensors", "config.json")),
        *("optimizer.safetensors", STATE_FILE, MANIFEST_FILE),
    ]
    for name in names:
        for way in WAYS:
            run = folder / "damage"
            first, second = (write_checkpoint(run, step, fill(step), keep=2) for step in (1, 2))
            way(second / name, first / name)
            found, notes = newest_intact(run)
            aside = second.with_name(f"damaged-{second.name}")
            row.add(held=found == first and len(notes) == 1 and str(second) in notes[0] and aside.is_dir())
            shutil.rmtree(run)
    return row


def all_damaged(folder: Path) -> Row:
    """Without an intact checkpoint a run must refuse to start again by itself."""
    row = Row("if every checkpoint is damaged, the run stops with one line and moves nothing")
    for way in WAYS:
        run = folder / "all"
        first, second = (write_checkpoint(run, step, fill(step), keep=2) for step in (1, 2))
        for checkpoint in (first, second):
            way(checkpoint / "model" / "model.safetensors", checkpoint / "optimizer.safetensors")
        try:
            newest_intact(run)
        except DamagedError as error:
            row.add(held="\n" not in str(error) and first.is_dir() and second.is_dir())
        else:
            row.add(held=False)
        shutil.rmtree(run)
    return row


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
        clips=ClipConfig(num_frames=5, height=32, width=32, num_workers=1),
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


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a run's last checkpoint."""
    _, folder = checkpoints(run)[-1]
    return {
        f"{path.relative_to(folder)}: {name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def kills(folder: Path, number: int) -> Row:
    """Kill a run at random moments; when it is done, compare it and begin the next one."""
    row = Row("a run that was killed at any moment ends with the same bits as one that was not")
    torch.set_num_threads(1)
    straight = tiny(folder / "straight")
    trainer = Trainer(straight, Console(quiet=True))
    trainer.run(StopRequest())
    trainer.close()
    expected = tensors(folder / "straight")
    chance = random.Random(0)
    pending = attempt = 0
    while row.tried < number:
        run = folder / f"killed-{attempt}"
        settings = folder / "settings.yaml"
        settings.write_text(as_yaml(tiny(run)), encoding="utf-8")
        command = [sys.executable, "-m", "telecine", "train", "--config", str(settings)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            try:
                # Once there are enough kills, let it end.
                code = process.wait(None if row.tried + pending == number else chance.uniform(*KILLED_AFTER))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                pending += 1
                continue
        if code != 0:
            row.tried, pending = row.tried + pending + 1, 0
        else:
            found = tensors(run)
            is_equal = found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
            for _ in range(pending):
                row.add(held=is_equal)
            pending = 0
        shutil.rmtree(run)
        attempt += 1
    return row


def main() -> None:
    """Try all faults and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="how often a process is killed; a few seconds each")
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [crashes(folder), damage(folder), all_damaged(folder)]
        if arguments.kills:
            rows.append(kills(folder, arguments.kills))
    print(f"{machine()}; {time.perf_counter() - start:.0f} s\n")
    print(table(["promise", "tried", "held"], [[row.promise, str(row.tried), str(row.held)] for row in rows]))


if __name__ == "__main__":
    main()
