"""Whether a change of the code changes a bit of what trainings produce.

    python benchmarks/same_bits.py CHECKOUT    # this checkout and another one, in one run

Each case of `same_bits_cases.py` trains 40 steps with `python -m telecine train` in a process of its own, on the CPU
and on one thread. Compared are all tensors of the last checkpoint (networks, moving average, optimizers, random states)
and `metrics.jsonl` without clocks.

Both checkouts train on this machine, since another processor or version of PyTorch rounds sums differently. Exit status
0: the same; 1: not the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from same_bits_cases import CASES, NUM_STEPS, Case, prepare
from torch import Tensor

from telecine.training.tensor_files import SHARDS, load_into, saved_tensors

SRC = Path(__file__).resolve().parents[1] / "src"
METRICS = "metrics.jsonl"
CLOCK = "per_second"
TIMEOUT = 1800
MOST_SHOWN = 10


def train(case: Case, src: Path, folder: Path, num_steps: int) -> Path:
    """Train a case with the code in `src` and return the run's folder.

    Raises:
        RuntimeError: If the training fails.
    """
    settings = prepare(case, folder, num_steps)
    module = ["-m", "telecine", "train", "--config", str(settings)]
    if case.num_processes > 1:
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(case.num_processes),
        ]
        module = [*launcher, *module]
    run_python(module, src, folder)
    return folder / "run"


def run_python(arguments: list[str], src: Path, folder: Path) -> str:
    """Run Python on one thread with the package in `src`, and return what it printed.

    Raises:
        RuntimeError: If it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(src), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} with {src} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def check_package(src: Path) -> None:
    """Raise a `ValueError` unless Python imports telecine from `src`."""
    with tempfile.TemporaryDirectory() as folder:
        find = "from importlib.util import find_spec; print(find_spec('telecine').origin)"
        found = run_python(["-c", find], src, Path(folder)).strip()
    if not Path(found).resolve().is_relative_to(src):
        raise ValueError(
            f"`CHECKOUT/src` must be the folder that holds the package `telecine`, but got {src}."
        )


def tensors_by_file(run: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of the run's only checkpoint by the path of their file; shards of an optimizer are joined."""
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    paths = [path for path in checkpoint.rglob("*.safetensors") if path.parent.name != SHARDS]
    found = {str(path.relative_to(checkpoint)): load_file(path) for path in paths}
    if (checkpoint / SHARDS).is_dir():  # the weights in them are those of "model" and "ema", too
        saved = saved_tensors(checkpoint, "optimizer")
        optimizer = {name: torch.empty_like(tensor, device="cpu") for name, tensor in saved.items()}
        load_into(optimizer, checkpoint, "optimizer")
        found["optimizer.safetensors"] = optimizer
    return dict(sorted(found.items()))


def contents(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """Return type, shape and bytes of a tensor on the CPU; these tell 0 from -0 and one NaN from another."""
    return (
        tensor.dtype,
        tensor.shape,
        tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
    )


def records(run: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl` without clocks, and without what some versions do not measure."""
    lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
    left_out = (CLOCK, "latent/")
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if not any(part in name for part in left_out)
        }
        for line in lines
    ]


def differences(run: Path, other: Path) -> Iterator[str]:
    """Yield a line for each tensor and each metric that differs between two runs, with the first step at which."""
    yield from metric_differences(records(run), records(other))
    files, others = tensors_by_file(run), tensors_by_file(other)
    for name in sorted(files.keys() | others.keys()):
        if name not in files or name not in others:
            yield f"{name}: only in {'the other' if name in others else 'this'} checkout"
        else:
            for line in tensor_differences(files[name], others[name]):
                yield f"{name}: {line}"


def metric_differences(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each metric that differs."""
    if len(ours) != len(theirs):
        yield f"{METRICS}: {len(ours)} lines and {len(theirs)}"
    seen = set()
    for record, other in zip(ours, theirs, strict=False):
        for name in sorted(record.keys() | other.keys()):
            if name not in seen and repr(record.get(name)) != repr(other.get(name)):
                seen.add(name)
                yield f"{METRICS}: {name} is {record.get(name)} and {other.get(name)} at step {record['step']}"


def tensor_differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Iterator[str]:
    """Yield a line for each tensor that differs."""
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            yield f"{name} only in {'the other' if name in theirs else 'this'} checkout"
        elif contents(one := ours[name]) != contents(other := theirs[name]):
            same_shape = one.shape == other.shape
            far = (
                f"by {(one.double() - other.double()).abs().max():.3g}"
                if same_shape
                else "in shape"
            )
            yield f"{name} differs {far}"


def main() -> int:
    """Train every case with both checkouts and print what differs; 0 where nothing does, else 1."""
    parser = argparse.ArgumentParser(
        description="Compare what trainings with two checkouts produce, bit for bit."
    )
    parser.add_argument("checkout", type=Path, help="the other checkout")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), help="all by default"
    )
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="updates of each training")
    arguments = parser.parse_args()
    sources = SRC, arguments.checkout.resolve() / "src"
    for src in sources:
        check_package(src)
    all_same = True
    for name in arguments.cases:
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            folders = Path(first), Path(second)
            runs = [
                train(CASES[name], *each, arguments.steps)
                for each in zip(sources, folders, strict=True)
            ]
            lines = list(differences(*runs))
        print(f"{name}: {f'{len(lines)} differences' if lines else 'the same'}", flush=True)
        for line in lines[:MOST_SHOWN]:
            print(f"  {line}", flush=True)
        if len(lines) > MOST_SHOWN:
            print(f"  and {len(lines) - MOST_SHOWN} more", flush=True)
        all_same &= not lines
    return 0 if all_same else 1


if __name__ == "__main__":
    sys.exit(main())
