"""Faults of a disk: reads, writes and flushes that fail with EIO, in commands that have to name the file.

`disk_errors.c` takes the place of the system's calls. A C compiler builds it; nothing needs the rights of root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from faults_processes import FORK, LIMIT, run_command, tiny
from faults_row import USER_ERROR, Row

from telecine import runs
from telecine.data import sample_videos
from telecine.runs.saved_settings import as_yaml

SHIM = Path(__file__).with_name("disk_errors.c")

TRAIN = "train --config base.yaml --output_dir broken"
RESUME = "train --config base.yaml --output_dir copy --steps 3"
EVALUATE = "evaluate base --data disk.mp4 --max_clips 1 --output evaluated"
REPORT = "report copy"
# What fails, a pattern of the files that it fails for, what the command has to name, and the command.
CASES = (
    ("EIO_READ", "*/base.yaml", "base.yaml", TRAIN),
    ("EIO_READ", "*/disk.csv", "disk.csv", f"{TRAIN} --data disk.csv"),
    ("EIO_READ", "*/disk.mp4", "disk.mp4", f"{TRAIN} --data disk.mp4"),
    ("EIO_READ", "*/disk.npy", "disk.npy", f"{TRAIN} --data disk.npy"),
    ("EIO_READ", "*/disk.tar", "disk.tar", f"{TRAIN} --data disk.tar"),
    ("EIO_READ", "*/ema/model.safetensors", "model.safetensors", EVALUATE),
    ("EIO_READ", "*/ema/config.json", "config.json", EVALUATE),
    ("EIO_READ", "*/base/*config.yaml", "config.yaml", EVALUATE),
    ("EIO_READ", "*/saved/model.safetensors", "model.safetensors", f"{TRAIN} --model saved"),
    ("EIO_READ", "*/heads.safetensors", "heads.safetensors", EVALUATE),
    ("EIO_WRITE", "*/evaluated/*", "evaluated", EVALUATE),
    ("EIO_WRITE", "*/broken/metrics.jsonl", "metrics.jsonl", TRAIN),
    ("EIO_WRITE", "*/broken/*config.yaml*", "config.yaml", TRAIN),
    ("EIO_WRITE", "*/broken/*environment.json*", "environment.json", TRAIN),
    ("EIO_WRITE", "*/broken/*summary.json*", "summary.json", TRAIN),
    ("EIO_WRITE", "*/broken/*report.html*", "report.html", TRAIN),
    ("EIO_WRITE", "*/broken/validation/*", "validation", TRAIN),
    ("EIO_WRITE", "*/.step-*/.tmp*", "cannot write weights to", TRAIN),
    ("EIO_WRITE", "*/.step-*state.json*", "state.json", TRAIN),
    ("EIO_WRITE", "*/.step-*manifest.json*", "manifest.json", TRAIN),
    ("EIO_FSYNC", "*/.step-*", "step-", TRAIN),
    ("EIO_READ", "*/step-00000002/optimizer.safetensors", "optimizer.safetensors", RESUME),
    ("EIO_READ", "*/step-00000002/state.json", "state.json", RESUME),
    ("EIO_READ", "*/step-00000002/manifest.json", "manifest.json", RESUME),
    ("EIO_READ", "*/copy/metrics.jsonl", "metrics.jsonl", RESUME),
    ("EIO_READ", "*/copy/config.yaml", "config.yaml", RESUME),
    ("EIO_WRITE", "*/copy/*report.html*", "report.html", REPORT),
    ("EIO_READ", "*/copy/metrics.jsonl", "metrics.jsonl", REPORT),
)


def disk_errors(folder: Path, number: int) -> Row:
    """Let one kind of access to one file fail in a command: it has to name the file, without a traceback."""
    row = Row(
        "after an error of the disk, a command names the file, and ends or goes on without it"
    )
    if number == 0:
        return row
    compiler = shutil.which("cc")
    if compiler is None:
        print("no C compiler: errors of the disk were not tried", file=sys.stderr)
        return row
    library = folder / "disk_errors.so"
    build = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"]
    subprocess.run(build, check=True)
    script = [sys.executable, __file__, str(folder / "disk"), str(number)]
    environment = os.environ | {"LD_PRELOAD": str(library)}
    done = subprocess.run(script, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        held, what = json.loads(line)
        row.add(held=held, what=what)
    return row


def main() -> None:
    """Try the cases in a folder, in a process whose calls of the system may fail; print a line of JSON for each."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    number = int(sys.argv[2])
    folder.mkdir()
    os.chdir(folder)
    _prepare()
    for variable, pattern, name, command in CASES[:number]:
        shutil.rmtree("broken", ignore_errors=True)
        shutil.rmtree("copy", ignore_errors=True)
        shutil.rmtree("evaluated", ignore_errors=True)
        shutil.copytree("base", "copy", symlinks=True)
        trace = Path("trace")
        trace.unlink(missing_ok=True)
        environment = {variable: pattern, "EIO_TRACE": str(trace.absolute())}
        code, printed = _run(command, environment)
        has_failed = trace.exists()
        is_named = name in printed and "Traceback" not in printed
        held = has_failed and is_named and code in (0, USER_ERROR)
        what = f"{variable} {pattern}, {command}: failed {has_failed}, {code}, {printed[-1500:]}"
        print(json.dumps([held, what]), flush=True)


def _prepare() -> None:
    """Write a run of two updates, its model apart, and a video as a file, in a list, as an array and in a tar file."""
    shutil.copyfile(sample_videos()[0], "disk.mp4")
    Path("disk.csv").write_text("path\ndisk.mp4\n", encoding="utf-8")
    frames = torch.randint(0, 256, (26, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    np.save("disk.npy", frames.to(torch.uint8).numpy())
    with tarfile.open("disk.tar", "w") as tar:
        tar.add("disk.mp4")
    config = replace(tiny(Path("base").absolute()), steps=2, val_every=2)
    Path("base.yaml").write_text(as_yaml(config), encoding="utf-8")
    code, printed = _run("train --config base.yaml", {})
    assert code == 0, printed
    shutil.copytree(runs.Run(Path("base")).checkpoints.all()[-1][1] / "ema", "saved")


def _run(command: str, environment: dict[str, str]) -> tuple[int | None, str]:
    """Return the exit code of a command in a fork of this process, and what it printed."""
    log = Path("printed").absolute()
    process = FORK.Process(target=run_command, args=(command.split(), log, environment))
    process.start()
    process.join(LIMIT)
    process.kill()
    process.join()
    printed = ""
    for suffix in (".out", ".err"):
        printed += log.with_suffix(suffix).read_text(encoding="utf-8")
    return process.exitcode, printed


if __name__ == "__main__":
    main()
