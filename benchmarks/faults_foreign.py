"""Faults of a run's folder that is damaged, or somebody else's: its report, and the settings that evaluation takes."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from faults_inputs import WAYS, in_a_fork, is_one_line
from faults_row import USER_ERROR, Row

from telecine import __main__ as cli
from telecine.evaluation.load_model import load_with_clips
from telecine.runs.checkpoints import step_folders
from telecine.settings import EvaluateConfig

# What a value in JSON or YAML is replaced by.
VALUES = (
    *(
        None,
        True,
        -1,
        0,
        0.5,
        10**400,
        float("nan"),
        float("inf"),
        "",
        "x",
        "../../x",
        "\0",
        "\x1b[31m\nerror: x",
    ),
    *([], {}, [1], {"a": None}, "9" * 5000),
)
SPARSE = 40 * 2**30  # bytes


def foreign(folder: Path, finished: Path, number: int) -> Row:
    """Mutate the folder of a finished run: its report, beside an intact run and alone, and its evaluation must end.

    The report touches nothing outside. Evaluation reads weights through links, as the cache of the Hub has them.
    """
    row = Row(
        "a damaged or foreign run folder is reported, marked, or refused with one line, and no link in it is followed"
    )
    chance = random.Random(0)
    ways = (mutate, mutate, change_value, change_value, link, replace_by_fifo, make_sparse)
    for index in range(number):
        here = folder / f"foreign-{index}"
        run, outside = copy_of(finished, here / "run"), here / "outside"
        outside.mkdir()
        way = ways[index % len(ways)]
        what = way(run, outside, chance)
        held, why = in_a_fork(
            lambda run=run, outside=outside: is_bounded_to(run, finished, outside)
        )
        row.add(held=held, what=f"number {index}, {way.__name__} {what}: {why}")
        shutil.rmtree(here)
    return row


def copy_of(finished: Path, run: Path) -> Path:
    """Copy a run with its newest checkpoint."""
    (_, newest) = step_folders(finished / "checkpoints")[-1]
    older = [path.name for path in newest.parent.iterdir() if path != newest]
    return Path(shutil.copytree(finished, run, ignore=shutil.ignore_patterns(*older)))


def choose(run: Path, chance: random.Random, *patterns: str) -> Path:
    """Return a file or a folder of the run; as often one outside of its checkpoint as one inside."""
    found = sorted(path for pattern in patterns for path in run.rglob(pattern))
    parts = [
        [path for path in found if ("checkpoints" in path.parts) == inside]
        for inside in (False, True)
    ]
    return chance.choice(chance.choice([part for part in parts if part]))


def choose_file(run: Path, chance: random.Random) -> Path:
    """Return a file of the run that is not empty."""
    while not (path := choose(run, chance, "*")).is_file() or path.stat().st_size == 0:
        pass
    return path


def mutate(run: Path, outside: Path, chance: random.Random) -> str:
    """Change, clear, cut or repeat bytes of a file."""
    path, way = choose_file(run, chance), chance.choice(WAYS)
    content = bytearray(path.read_bytes())
    way(content, chance)
    path.write_bytes(content)
    return f"{way.__name__} {path.relative_to(run)}"


def change_value(run: Path, outside: Path, chance: random.Random) -> str:
    """Replace a value in JSON, in a line of it, or in the settings, by one of another type."""
    path = choose(run, chance, "*.json", "metrics.jsonl", "config.yaml")
    lines = (
        path.read_text(encoding="utf-8").splitlines()
        if path.suffix == ".jsonl"
        else [path.read_text("utf-8")]
    )
    index, value = chance.randrange(len(lines)), chance.choice(VALUES)
    if path.suffix == ".yaml":
        lines = lines[0].splitlines()
        index = chance.choice([number for number, line in enumerate(lines) if ": " in line])
        lines[index] = f"{lines[index].partition(':')[0]}: {json.dumps(value)}"
    else:
        content = json.loads(lines[index])
        holder, key = chance.choice([*places(content)])
        holder[key] = value
        lines[index] = json.dumps(content)
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return f"{path.relative_to(run)}, {str(value)[:20]!r}"


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each place in nested values, as the mapping or list and the key or index in it."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield value, key
        yield from places(value[key])


def link(run: Path, outside: Path, chance: random.Random) -> str:
    """Move a file or a folder out of the run, and leave a link to it."""
    path = choose(run, chance, "*")
    path.rename(outside / "moved")
    path.symlink_to(outside / "moved")
    return str(path.relative_to(run))


def replace_by_fifo(run: Path, outside: Path, chance: random.Random) -> str:
    """Put a FIFO in the place of a file; who opens it waits."""
    path = choose_file(run, chance)
    path.unlink()
    os.mkfifo(path)
    return str(path.relative_to(run))


def make_sparse(run: Path, outside: Path, chance: random.Random) -> str:
    """Let a file seem to have 40 GiB."""
    path = choose_file(run, chance)
    os.truncate(path, SPARSE)
    return str(path.relative_to(run))


def is_bounded_to(run: Path, finished: Path, outside: Path) -> bool:
    """Return whether the reports of a run, which touch nothing in a folder outside, and its evaluation end well."""
    read: list[str] = []
    for path in (outside, *outside.rglob("*")):
        os.utime(
            path, (0, path.stat().st_mtime)
        )  # so that reading it shows, where the file system keeps such times
    before = state_of(outside)
    sys.addaudithook(lambda event, arguments: note_read(event, arguments, outside, read))
    page = run.with_name("page.html")
    held = [
        ends_well(lambda: cli.main(["report", str(finished), str(run), "--output", str(page)]), 0),
        page.is_file() and finished.name in page.read_text(encoding="utf-8"),
        ends_well(lambda: cli.main(["report", str(run)]), 0, USER_ERROR),
        read == [],
        state_of(outside) == before,
        ends_well(lambda: settings_of(run), 0, USER_ERROR),
    ]
    if not all(held):
        print(held, read, file=sys.stderr)
    return all(held)


def ends_well(call: Callable[[], int], *codes: int) -> bool:
    """Return whether a command has one of these exit codes, with one line of error unless it is 0."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as errors:
        code = call()
    lines = errors.getvalue().splitlines()
    num_errors = sum(line.startswith("telecine: error: ") for line in lines)
    held = code in codes and num_errors == (code != 0) and all(map(is_one_line, lines))
    held = held and not any(line.startswith("error: ") for line in lines)  # of a value in the files
    if not held:
        print(code, errors.getvalue()[-1000:], file=sys.stderr)
    return held


def settings_of(run: Path) -> int:
    """Load the model and the settings of its clips as `telecine evaluate` does; return the exit code."""
    try:
        load_with_clips(run, EvaluateConfig(), torch.device("cpu"))
    except (ValueError, OSError) as error:
        return cli._fail([str(error)], [])
    return 0


def note_read(event: str, arguments: tuple[Any, ...], outside: Path, read: list[str]) -> None:
    """Note a file or a folder that Python opens or lists outside of the run."""
    if event in ("open", "os.listdir", "os.scandir") and isinstance(
        arguments[0], str | bytes | os.PathLike
    ):
        path = Path(os.path.realpath(os.fsdecode(arguments[0])))
        if path.is_relative_to(outside):
            read.append(f"{event} {path}")


def state_of(folder: Path) -> list[tuple[Path, int, int, int]]:
    """Return what is in a folder, with sizes and the times of the last read and write."""
    found = [(path, path.lstat()) for path in sorted([folder, *folder.rglob("*")])]
    return [(path, stat.st_size, stat.st_atime_ns, stat.st_mtime_ns) for path, stat in found]
