"""Whether a change of the code changes a bit of what trainings produce.

    python benchmarks/same_bits.py against CHECKOUT               # this checkout and another one, in one run
    python benchmarks/same_bits.py record --src CHECKOUT/src -o A.json
    python benchmarks/same_bits.py compare A.json B.json

Each case of `same_bits_cases.py` trains 40 steps with `python -m telecine train` in a process of its own, on the CPU
and on one thread. Compared are all tensors of the last checkpoint (networks, moving average, optimizers, random states)
and `metrics.jsonl` without clocks.

`against` holds on any machine, and names the tensors and the values that differ. Hashes that were recorded hold for one
kind of processor and one version of PyTorch: others round sums differently. `results/same_bits.json` has those of the
second version of the autoencoder; its entry `made` says with what and on what they were made. Exit status 0: the same;
1: not the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from same_bits_cases import CASES, NUM_STEPS, Case, prepare
from torch import Tensor

from telecine.training.tensor_files import SHARDS, saved_tensors

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
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.num_processes)]
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
        raise ValueError(f"--src must be the folder that holds the package `telecine`, but got {src}.")


def tensors_by_file(run: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of the run's only checkpoint by the path of their file; shards of an optimizer are joined."""
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    paths = [path for path in checkpoint.rglob("*.safetensors") if path.parent.name != SHARDS]
    found = {str(path.relative_to(checkpoint)): load_file(path) for path in paths}
    if (checkpoint / SHARDS).is_dir():  # the weights in them are those of "model" and "ema", too
        optimizer = saved_tensors(checkpoint, "optimizer")
        found["optimizer.safetensors"] = {name: optimizer.read(name) for name in optimizer.whole}
    return dict(sorted(found.items()))


def digest(tensors: dict[str, Tensor]) -> str:
    """Return the sha256 of the names, types, shapes and bytes of all tensors."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state.update(as_bytes(tensor))
    return state.hexdigest()


def as_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor on the CPU; they tell 0 from -0 and one NaN from another."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def records(run: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl` without clocks, and without what some versions do not measure."""
    lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
    left_out = (CLOCK, "latent/")
    return [
        {name: value for name, value in json.loads(line).items() if not any(part in name for part in left_out)}
        for line in lines
    ]


def digests(run: Path) -> dict[str, str]:
    """Return the sha256 of the metrics and of every tensor file of a run, by name."""
    metrics = "\n".join(json.dumps(record, sort_keys=True) for record in records(run))
    found = {METRICS: hashlib.sha256(metrics.encode()).hexdigest()}
    return found | {name: digest(tensors) for name, tensors in tensors_by_file(run).items()}


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
        elif digest({"": ours[name]}) != digest({"": theirs[name]}):
            one, other = ours[name], theirs[name]
            same_shape = one.shape == other.shape
            far = f"by {(one.double() - other.double()).abs().max():.3g}" if same_shape else "in shape"
            yield f"{name} differs {far}"


def against(arguments: argparse.Namespace) -> bool:
    """Train every case with both checkouts, print what differs, and return whether nothing does."""
    src, other = arguments.src.resolve(), arguments.checkout.resolve() / "src"
    check_package(src)
    check_package(other)
    all_same = True
    for name in arguments.cases:
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            runs = [
                train(CASES[name], where, Path(folder), arguments.steps)
                for where, folder in ((src, first), (other, second))
            ]
            all_same &= report(name, list(differences(*runs)), f"{len(digests(runs[0]))} files")
    return all_same


def record(arguments: argparse.Namespace) -> bool:
    """Train every case with one checkout and write the hashes."""
    src = arguments.src.resolve()
    check_package(src)
    cases = {}
    for name in arguments.cases:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            cases[name] = digests(train(CASES[name], src, Path(folder), arguments.steps))
        print(f"{name}: {len(cases[name])} files, {time.perf_counter() - start:.0f} s", flush=True)
    text = json.dumps({"made": made(src, arguments.steps), "cases": cases}, indent=2)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    return True


def made(src: Path, num_steps: int) -> dict[str, Any]:
    """Return how hashes are made, and on what."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=src, capture_output=True, text=True, check=False)
    return {
        "command": "python benchmarks/same_bits.py record --src CHECKOUT/src -o FILE",
        "commit": commit.stdout.strip() or "unknown",
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "pytorch": torch.__version__,
        "python": platform.python_version(),
        "steps": num_steps,
        "threads": 1,
    }


def processor() -> str:
    """Return the processor's name, family and model, as Linux calls them."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in info.read_text(encoding="utf-8").splitlines())
    values = {key.strip(): value.strip() for key, _, value in pairs}
    name = values.get("model name", platform.machine())
    return f"{name}, family {values.get('cpu family')}, model {values.get('model')}"


def compare(arguments: argparse.Namespace) -> bool:
    """Print which files differ between two recordings, and return whether none does."""
    one, other = (json.loads(path.read_text(encoding="utf-8")) for path in arguments.files)
    for key in ("processor", "capability", "pytorch", "steps"):
        if one["made"][key] != other["made"][key]:
            print(f"not comparable: {key} is {one['made'][key]} and {other['made'][key]}")
    all_same = True
    for name in sorted(one["cases"].keys() ^ other["cases"].keys()):
        print(f"{name}: only in one of the files")
    for name in sorted(one["cases"].keys() & other["cases"].keys()):
        ours, theirs = one["cases"][name], other["cases"][name]
        files = sorted(ours.keys() | theirs.keys())
        lines = [f"{file} differs" for file in files if ours.get(file) != theirs.get(file)]
        all_same &= report(name, lines, f"{len(files)} files")
    return all_same


def report(name: str, lines: list[str], compared: str) -> bool:
    """Print what differs in a case, and return whether nothing does."""
    print(f"{name}: {f'{len(lines)} differences' if lines else 'the same'} in {compared}", flush=True)
    for line in lines[:MOST_SHOWN]:
        print(f"  {line}", flush=True)
    if len(lines) > MOST_SHOWN:
        print(f"  and {len(lines) - MOST_SHOWN} more", flush=True)
    return not lines


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    training = argparse.ArgumentParser(add_help=False)
    training.add_argument("--src", type=Path, default=SRC, help="folder of the package; this checkout's by default")
    training.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="all by default")
    training.add_argument("--steps", type=int, default=NUM_STEPS, help="updates of each training")
    parser = argparse.ArgumentParser(description="Compare what trainings produce, bit for bit.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("against", parents=[training], help="train with two checkouts and compare")
    command.add_argument("checkout", type=Path, help="the other checkout")
    command.set_defaults(run=against)
    command = commands.add_parser("record", parents=[training], help="train and write the hashes")
    command.add_argument("-o", "--output", type=Path, required=True, help="the JSON file to write")
    command.set_defaults(run=record)
    command = commands.add_parser("compare", help="compare two files of hashes")
    command.add_argument("files", type=Path, nargs=2, metavar=("A", "B"))
    command.set_defaults(run=compare)
    return parser.parse_args()


def main() -> int:
    """Run a command; 0 where nothing differs, else 1."""
    arguments = parse_arguments()
    return 0 if arguments.run(arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
