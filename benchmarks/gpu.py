"""What a card does with the objective and with whole updates, in at most ten minutes: Markdown tables.

    python benchmarks/gpu.py              # every row, as long as the time lasts
    python benchmarks/gpu.py --minutes 4  # the first rows
    python benchmarks/gpu.py --smoke      # tiny sizes, on a CPU too, to test the command

The first table has updates of the objective beside those of the plain baseline (`baseline.py`) in the same rounds. The
second has whole updates of the trainer, both optimizers included: telecine's autoencoder at its GPU default, and
CogVideoX and Wan 2.1 in their published sizes with random weights. The share is that of the rate that a large bfloat16
matrix product reaches on the same card. Host syncs are the waits for the device that the profiler sees in one step.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from accelerate.state import AcceleratorState
from cases import BASELINE, TELECINE, UPDATE, UPDATE_PENALTY, Setup, steps_of
from measure import (
    NOT_AVAILABLE,
    Step,
    count_flops,
    device,
    interleaved,
    machine,
    median_ratio,
    ratio,
    synchronize,
    table,
)
from torch.profiler import ProfilerActivity, profile

from telecine.settings import TrainConfig
from telecine.settings.parse import read_config
from telecine.training.build import build_accelerator, build_autoencoder, build_state
from telecine.training.step import MicroBatch, train_step

MATRIX_SIZE, NUM_PRODUCTS = 8192, 20
WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"}
OBJECTIVE_SETUPS = (Setup(16, 128, 16, 2), Setup(32, 256, 16, 1))
SMOKE_SETUP = Setup(1, 16, 4, 1)
WARMUP, ROUNDS = 2, 5


@dataclass(frozen=True)
class Run:
    """Whole updates of a training run."""

    title: str
    config: TrainConfig
    diffusers_class: str = ""
    """The class of a diffusers model in its default, published size; empty for telecine's own."""
    arguments: tuple[tuple[str, Any], ...] = ()
    """Arguments of the class that differ from the default."""


def matrix_rate(size: int) -> float:
    """Return the operations per second of a product of two bfloat16 matrices."""
    a, b = (torch.randn(size, size, device=device(), dtype=torch.bfloat16) for _ in range(2))
    a @ b
    synchronize()
    start = time.perf_counter()
    for _ in range(NUM_PRODUCTS):
        a @ b
    synchronize()
    return NUM_PRODUCTS * 2 * size**3 / (time.perf_counter() - start)


def count_waits(step: Step) -> str:
    """Return how often the host waits for the device in a step."""
    if not torch.cuda.is_available():
        return NOT_AVAILABLE
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
    return str(sum(event.count for event in profiler.key_averages() if event.key in WAITS))


def peak_memory(step: Step) -> str:
    """Return the peak of all memory that PyTorch has in use during a step, in GiB."""
    if not torch.cuda.is_available():
        return NOT_AVAILABLE
    torch.cuda.reset_peak_memory_stats()
    step()
    synchronize()
    return f"{torch.cuda.max_memory_allocated() / 2**30:.2f}"


def autocast(precision: str) -> AbstractContextManager[Any]:
    """Return the context of a precision."""
    return (
        torch.autocast(device().type, dtype=torch.bfloat16)
        if precision == "bf16"
        else nullcontext()
    )


def objective_rows(setup: Setup, rate: float, *, rounds: int, warmup: int) -> Iterator[list[str]]:
    """Yield a row for each update and precision."""
    steps = {name: steps_of(name, setup) for name in (TELECINE, BASELINE)}
    for precision in ("float32", "bf16"):
        for title in (UPDATE, UPDATE_PENALTY):

            def run(name: str, title: str = title, precision: str = precision) -> None:
                with autocast(precision):
                    steps[name][title]()

            timed: dict[str, Step] = {name: lambda name=name: run(name) for name in steps}  # type: ignore[misc]
            seconds = interleaved(timed, rounds=rounds, warmup=warmup)
            ours = statistics.median(seconds[TELECINE])
            yield [
                setup.title,
                f"{title}, {precision}",
                f"{ours:.4f}",
                f"{statistics.median(seconds[BASELINE]):.4f}",
                ratio(median_ratio(seconds[BASELINE], seconds[TELECINE])),
                peak_memory(timed[TELECINE]),
                peak_memory(timed[BASELINE]),
                f"{count_flops(timed[TELECINE]) / ours / rate:.0%}",
                count_waits(timed[TELECINE]),
            ]


def runs(*, smoke: bool) -> list[Run]:
    """Return the training runs in order."""
    config = replace(
        read_config("gpu"), linear_baseline=False, linear_start=False, device=device().type
    )
    small: tuple[tuple[str, Any], ...] = ()
    if smoke:
        config = replace(
            config,
            batch_size=1,
            clips=replace(config.clips, num_frames=9, height=32, width=32),
            causal_vae=replace(config.causal_vae, base_channels=4),
            discriminator=replace(config.discriminator, dim=1),
            objective=replace(
                config.objective, perceptual=replace(config.objective.perceptual, net="alex")
            ),
        )
        small = (("base_dim", 4), ("dim_mult", [1, 1, 1, 1]), ("num_res_blocks", 1))
    bf16 = replace(config, mixed_precision="bf16")
    one = replace(bf16, batch_size=1, model_gradient_checkpointing=True)
    ours = "CausalVAE, GPU default"
    every = [
        Run(f"{ours}, float32", config),
        Run(f"{ours}, bf16", bf16),
        Run(f"{ours}, bf16, channels last", replace(bf16, channels_last=True)),
        Run(f"{ours}, bf16, compiled", replace(bf16, dynamo_backend="inductor")),
        Run("Wan 2.1, bf16, checkpointing", one, "AutoencoderKLWan", small),
        Run(
            "Wan 2.1, bf16, chunks of 8 frames",
            replace(one, temporal_chunk=8),
            "AutoencoderKLWan",
            small,
        ),
        Run("CogVideoX, bf16, checkpointing", one, "AutoencoderKLCogVideoX"),
    ]
    return [every[1], every[5]] if smoke else every


def update_row(run: Run, rate: float, folder: Path, *, rounds: int, warmup: int) -> list[str]:
    """Return a row of whole updates."""
    config = run.config
    if run.diffusers_class:
        (folder / "config.json").write_text(
            json.dumps({"_class_name": run.diffusers_class, **dict(run.arguments)}),
            encoding="utf-8",
        )
        config = replace(config, model=str(folder / "config.json"))
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # its precision is that of the first run otherwise
    try:
        state = build_state(config, build_accelerator(config), build_autoencoder(config))
        clips = config.clips
        shape = (config.batch_size, 3, clips.num_frames, clips.height, clips.width)
        video = 2 * torch.rand(shape, device=device()) - 1

        def step() -> None:
            state.step = config.objective.disc_start + 1  # all terms
            train_step(state, [MicroBatch(video, range(len(video)))])

        seconds = statistics.median(
            interleaved({"update": step}, rounds=rounds, warmup=warmup)["update"]
        )
        size = " x ".join(map(str, shape[2:]))
        return [
            run.title,
            f"{state.describe_size(config.steps)}; {shape[0]} x {size}",
            f"{seconds:.3f}",
            peak_memory(step),
            f"{count_flops(step) / seconds / rate:.0%}",
            count_waits(step),
        ]
    except torch.OutOfMemoryError:
        return [run.title, "out of memory", *[NOT_AVAILABLE] * 4]


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="No row starts later than this.")
    parser.add_argument("--smoke", action="store_true", help="Tiny sizes, to test the command.")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    rate = matrix_rate(64 if arguments.smoke else MATRIX_SIZE)
    repeats = (
        {"rounds": 1, "warmup": 0} if arguments.smoke else {"rounds": ROUNDS, "warmup": WARMUP}
    )
    print(
        f"{machine()}, diffusers {diffusers.__version__}; bfloat16 matrix product: {rate / 1e12:.3g} TFLOP/s\n"
    )
    rows = []
    for setup in (SMOKE_SETUP,) if arguments.smoke else OBJECTIVE_SETUPS:
        if time.monotonic() < end:
            rows += list(objective_rows(setup, rate, **repeats))
    peaks = [f"peak of {name}, GiB" for name in (TELECINE, BASELINE)]
    header = [
        "size",
        "step",
        f"{TELECINE}, s",
        f"{BASELINE}, s",
        "ratio",
        *peaks,
        "share of the rate",
        "host syncs",
    ]
    print(table(header, rows) + "\n")
    rows = []
    for run in runs(smoke=arguments.smoke):
        if time.monotonic() > end:
            print(f"no time for: {run.title}")
            continue
        with TemporaryDirectory() as folder:
            rows.append(update_row(run, rate, Path(folder), **repeats))
        gc.collect()
        torch.cuda.empty_cache()
    print(
        table(["run", "size", "s per update", "peak, GiB", "share of the rate", "host syncs"], rows)
    )


if __name__ == "__main__":
    main()
