"""Faults of files: a crash at each operation, damage to each file, a disk that takes no more."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit

import torch
from faults_row import Row
from torch import Tensor

from telecine.models import DiagonalGaussian
from telecine.runs import Run
from telecine.runs.checkpoints import DamagedError
from telecine.training.latent_cache import LatentCache
from telecine.training.tensor_files import save_tensors

# What Python reports of operations that change files.
OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink")


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


def write_checkpoint(run: Path, step: int, *, keep: int, best: int | None = None) -> Path:
    """Write a checkpoint whose values depend on its step."""
    checkpoints = Run(run).checkpoints
    folder = checkpoints.begin(step)
    for name in ("ema", "model"):
        (folder / name).mkdir()
        save_tensors(
            folder / name / "model.safetensors", {"weight": torch.full((64,), float(step))}
        )
        (folder / name / "config.json").write_text(f'{{"seed": {step}}}', encoding="utf-8")
    save_tensors(folder / "optimizer.safetensors", {"0.exp_avg": torch.full((64,), float(step))})
    (folder / "state.json").write_text(f'{{"step": {step}}}', encoding="utf-8")
    checkpoints.finish(step, folder, keep=keep, best=best)
    return checkpoints.path(step)


def crashes(folder: Path) -> Row:
    """Stop the write of a third checkpoint at each operation; the newest must be intact and the next write work."""
    row = Row(
        "after a crash at any operation on files, the newest checkpoint is intact, and `best` leads to one"
    )
    crash = Crash()
    for operation in range(1, 10_000):
        run = folder / f"crash-{operation}"
        for step in (1, 2):
            write_checkpoint(run, step, keep=2, best=1)
        crash.left = operation
        try:
            write_checkpoint(run, 3, keep=1, best=3)
        except CrashError:
            is_over = False
        else:
            is_over, crash.left = True, 0
        found, damaged = Run(run).checkpoints.newest_intact()
        has_newest = (
            found in (Run(run).checkpoints.path(2), Run(run).checkpoints.path(3)) and not damaged
        )
        best_after_crash = (run / "best").resolve()
        paths_after_crash = [path.resolve() for _, path in Run(run).checkpoints.all()]
        Run(run).remove_residue(before=time.time() + 60)  # as a run does when it starts
        write_checkpoint(run, 4, keep=1, best=4)
        has_best = best_after_crash in paths_after_crash
        is_clean = sorted(path.name for path in run.iterdir()) == ["best", "checkpoints"]
        held = (
            has_newest
            and has_best
            and is_clean
            and [step for step, _ in Run(run).checkpoints.all()] == [4]
        )
        shutil.rmtree(run)
        if is_over:
            return row
        row.add(held=held, what=f"operation {operation}")
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


def flip_the_first(path: Path, older: Path) -> None:
    """Change one bit of the first byte."""
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def flip_the_last(path: Path, older: Path) -> None:
    """Change one bit of the last byte."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut_half(path: Path, older: Path) -> None:
    """Remove the second half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def reverse(path: Path, older: Path) -> None:
    """Keep the size and every byte, in another order."""
    path.write_bytes(path.read_bytes()[::-1])


def repeat(path: Path, older: Path) -> None:
    """Write the contents twice."""
    path.write_bytes(2 * path.read_bytes())


def use_folder(path: Path, older: Path) -> None:
    """Put a folder in the place of the file."""
    path.unlink()
    path.mkdir()


def use_link(path: Path, older: Path) -> None:
    """Put a link to nothing in the place of the file."""
    path.unlink()
    path.symlink_to("nowhere")


WAYS = (
    *(
        flip_a_bit,
        flip_the_first,
        flip_the_last,
        clear_half,
        cut,
        cut_half,
        empty,
        append,
        reverse,
        repeat,
    ),
    *(remove, use_older, use_folder, use_link),
)


def damage(folder: Path) -> Row:
    """Damage each file of the newest checkpoint in each way: it must be named, set aside, and the older one be used."""
    row = Row(
        "a damaged file is named, the checkpoint is kept aside, and the one before it is used"
    )
    names = [
        *(
            f"{part}/{file}"
            for part in ("ema", "model")
            for file in ("model.safetensors", "config.json")
        ),
        *("optimizer.safetensors", "state.json", "manifest.json"),
    ]
    for name in names:
        for way in WAYS:
            run = folder / "damage"
            first, second = (write_checkpoint(run, step, keep=2) for step in (1, 2))
            way(second / name, first / name)
            found, notes = Run(run).checkpoints.newest_intact()
            aside = second.with_name(f"damaged-{second.name}")
            held = found == first and len(notes) == 1 and str(second) in notes[0] and aside.is_dir()
            row.add(held=held, what=f"{name}: {way.__name__}")
            shutil.rmtree(run)
    return row


def manifest_bits(folder: Path, number: int) -> Row:
    """Flip a bit of the newest manifest: the checkpoint must be named and set aside, and the older one be used."""
    row = Row("one bit of a manifest is damage, and the checkpoint before it is used")
    chance, original = random.Random(0), folder / "bits"
    for step in (1, 2):
        write_checkpoint(original, step, keep=2)
    for _ in range(number):
        run = shutil.copytree(original, folder / "flipped")
        first, second = (checkpoint for _, checkpoint in Run(run).checkpoints.all())
        what = flip_any_bit(second / "manifest.json", chance)
        found, notes = Run(run).checkpoints.newest_intact()
        aside = second.with_name(f"damaged-{second.name}")
        row.add(
            held=found == first and len(notes) == 1 and str(second) in notes[0] and aside.is_dir(),
            what=what,
        )
        shutil.rmtree(run)
    return row


def flip_any_bit(path: Path, chance: random.Random) -> str:
    """Change one bit, and return which one."""
    content = bytearray(path.read_bytes())
    index, bit = chance.randrange(len(content)), chance.randrange(8)
    content[index] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {index}"


def latent_cache(folder: Path, number: int) -> Row:
    """Flip a bit of a latent cache or zero half of it: it must be named, or lack a clip, which is encoded again."""
    row = Row(
        "a flipped bit or a zeroed half of a latent cache is named, and no other latent is read"
    )
    chance, names = random.Random(0), ("a", "b", "c")
    values = torch.randn(2, len(names), 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    original = folder / "latents"
    original.mkdir()
    cache = LatentCache(original)
    cache.add(names, DiagonalGaussian(mean=values[0], logvar=values[1]))
    cache.write()
    for index in range(number):
        copy = shutil.copytree(original, folder / "damaged-latents")
        path = sorted(copy.iterdir())[index // 4 % 2]
        if index % 4 == 0:
            what = "half"
            clear_half(path, path)
        else:
            what = flip_any_bit(path, chance)
        row.add(held=is_named_or_lost(path, names, values), what=what)
        shutil.rmtree(copy)
    return row


def is_named_or_lost(path: Path, names: Sequence[str], values: Tensor) -> bool:
    """Return whether an error names the file of a latent cache, or a clip is missing, or the values are the same."""
    try:
        cache = LatentCache(path.parent)
        if not all(name in cache for name in names):
            return True
        found = cache.read(names, torch.device("cpu"))
    except ValueError as error:
        return str(path.with_suffix("")) in str(error) and "\n" not in str(error)
    return isinstance(found, DiagonalGaussian) and torch.equal(
        torch.stack([found.mean, found.logvar]), values
    )


def all_damaged(folder: Path) -> Row:
    """Without an intact checkpoint a run must refuse to start again by itself."""
    row = Row("if every checkpoint is damaged, the run stops with one line and moves nothing")
    for way in WAYS:
        run = folder / "all"
        first, second = (write_checkpoint(run, step, keep=2) for step in (1, 2))
        for checkpoint in (first, second):
            way(checkpoint / "model" / "model.safetensors", checkpoint / "optimizer.safetensors")
        try:
            Run(run).checkpoints.newest_intact()
        except DamagedError as error:
            row.add(
                held="\n" not in str(error) and first.is_dir() and second.is_dir(),
                what=way.__name__,
            )
        else:
            row.add(held=False, what=way.__name__)
        shutil.rmtree(run)
    return row


def full_disk(folder: Path) -> Row:
    """Let files take only so many bytes: the write of a checkpoint must fail with an `OSError`, and lose nothing.

    A limit on the size of files stands in for a full disk, for which one would have to be root.
    """
    row = Row("a full disk ends the write of a checkpoint, and the newest one stays intact")
    limits = getrlimit(RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing raises an error
    try:
        for size in (*range(0, 400, 50), *range(400, 1400, 100)):
            run = folder / f"full-{size}"
            first = write_checkpoint(run, 1, keep=2)
            setrlimit(RLIMIT_FSIZE, (size, limits[1]))
            try:
                write_checkpoint(run, 2, keep=2)
            except OSError:
                is_full = True
            else:
                is_full = False
            finally:
                setrlimit(RLIMIT_FSIZE, limits)
            found, damaged = Run(run).checkpoints.newest_intact()
            held = found == (first if is_full else Run(run).checkpoints.path(2)) and not damaged
            write_checkpoint(run, 3, keep=1)
            row.add(
                held=held and [step for step, _ in Run(run).checkpoints.all()] == [3],
                what=f"{size} bytes",
            )
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    return row
