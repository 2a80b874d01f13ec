"""A student's decoder beside its teacher's on the demo's held-out clips, and updates with cached latents: tables.

    python benchmarks/distillation.py                                  # trains the demo first
    python benchmarks/distillation.py --teacher runs/demo --steps 2400

The teacher is the demo (`telecine train` without arguments). The student's decoder has 0.4 of its channels, less than a
quarter of its weights; it is distilled with the demo's settings, its objective among them, and `--steps` updates. The
first table is of the averaged weights and the same held-out clips. The last one has updates of the teacher's decoder
alone, without discriminators, with the encoder in each update and with latents as `--latent_cache` keeps them. Times
are medians of processor time over rounds in which the compared steps take turns. Finished runs are stored in `--runs`,
and not repeated.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, machine, median_ratio, table
from rich.console import Console

from telecine.autoencoders import VideoAutoencoder
from telecine.autoencoders.load import load_model_or_run
from telecine.evaluation.metrics import mean_over_clips
from telecine.runs.layout import METRICS_FILE, find_checkpoint
from telecine.settings import DistillConfig, TrainableConfig, TrainConfig
from telecine.training import train
from telecine.training.build import build_accelerator, build_autoencoder, build_clips, build_state
from telecine.training.distillation import distill
from telecine.training.latent_cache import LatentCache
from telecine.training.step import MicroBatch, train_step
from telecine.training.validation import read_result, validate
from training import SMOKE, demo_config

ROUNDS = 45
# Of the student's decoder, as a share of its teacher's.
CHANNELS = 0.4


def trained_teacher(config: TrainConfig) -> str:
    """Return the folder of the demo's run, which is trained if that has not been done."""
    if find_checkpoint(Path(config.output_dir)) is None:
        train(config, console=Console(quiet=True))
    return config.output_dir


def trained_student(config: TrainConfig, teacher: str, runs: Path, steps: int) -> str:
    """Return the folder of a run that distils a teacher into a smaller decoder."""
    settings = runs / "student.yaml"
    settings.write_text(f"base_channels: {round(CHANNELS * config.causal_vae.base_channels)}\nblocks_per_level: 1\n")
    values = {item.name: getattr(config, item.name) for item in fields(TrainConfig)}
    values |= {"output_dir": str(runs / "student"), "steps": steps, "val_every": steps, "save_every": steps}
    distill(DistillConfig(**values, teacher=teacher, student=str(settings)), console=Console(quiet=True))
    return str(values["output_dir"])


def rows_of(models: Mapping[str, VideoAutoencoder], config: TrainConfig, rounds: int) -> list[list[str]]:
    """Return the row of each model: weights of the decoder, metrics of the held-out clips, time of decoding one."""
    from telecine.perceptual import LPIPS

    clips = build_clips(config, models["teacher"]).val
    perceptual = {"lpips_alex": LPIPS("alex")}
    metrics = {name: mean_over_clips(validate(model, clips, perceptual).per_clip) for name, model in models.items()}
    with torch.no_grad():
        latent = models["teacher"](clips[0]["video"][None], sample_posterior=False).latent
    assert latent is not None
    seconds = interleaved(
        {name: decoding(model, latent) for name, model in models.items()}, rounds=rounds, clock=time.process_time
    )
    rows = []
    for name, model in models.items():
        decoder = sum(weight.numel() for key, weight in model.named_parameters() if key.startswith("decoder."))
        figures = [f"{metrics[name][key]:.4g}" for key in ("psnr", "ssim", "lpips_alex")]
        faster = f"{median_ratio(seconds['teacher'], seconds[name]):.2f}"
        median = f"{1000 * statistics.median(seconds[name]):.1f}"
        rows.append([name, f"{decoder / 1e3:.0f}", *figures, median, faster])
    return rows


def decoding(model: VideoAutoencoder, latent: torch.Tensor) -> Any:
    """Return a step that decodes a latent."""

    def decode() -> None:
        with torch.no_grad():
            model.decode(latent)

    return decode


def update_rows(config: TrainConfig, teacher: str, folder: Path, rounds: int) -> list[list[str]]:
    """Return rows of the time of an update of the teacher's decoder, with and without cached latents."""
    objective = replace(config.objective, adversarial_loss_weight=0.0, grad_penalty_loss_weight=0.0)
    config = replace(
        config, model=teacher, trainable=TrainableConfig(weights="decoder"), objective=objective, trackers=()
    )
    model = build_autoencoder(config)
    clips = build_clips(config, model).train
    state = build_state(config, build_accelerator(config), model)
    indices = list(range(config.clips_per_pass))
    video = torch.stack([clips[index]["video"] for index in indices])
    folder.mkdir(parents=True, exist_ok=True)
    cache, names = LatentCache(folder), clips.names_at(0, indices)
    with torch.no_grad():
        cache.add(names, model.encode(video))
    cache.write()
    steps = {
        "encoder in each update": lambda: train_step(state, [MicroBatch(video, indices)]),
        "latents from the cache": lambda: train_step(
            state, [MicroBatch(video, indices, cache.read(names, video.device))]
        ),
    }
    seconds = interleaved(
        {name: lambda step=step: step() and None for name, step in steps.items()},
        rounds=rounds,
        clock=time.process_time,
    )
    first = next(iter(steps))
    return [
        [name, f"{1000 * statistics.median(times):.0f}", f"{median_ratio(seconds[first], times):.2f}"]
        for name, times in seconds.items()
    ]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/distillation"), help="folder of the runs")
    parser.add_argument("--teacher", help="a run of the demo; without it, the demo is trained")
    parser.add_argument("--steps", type=int, help="updates of the student; as many as the demo's by default")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and two updates, to test the command")
    return parser.parse_args()


def main() -> None:
    """Train, measure and print."""
    arguments = parse_arguments()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    changes = SMOKE | {"steps": 1, "val_every": 1, "save_every": 1, "linear_baseline": False} if arguments.smoke else {}
    config = replace(demo_config(changes), output_dir=str(arguments.runs / "teacher"), device="cpu", trackers=())
    steps, rounds = arguments.steps or config.steps, 1 if arguments.smoke else ROUNDS
    teacher = arguments.teacher or trained_teacher(config)
    student = trained_student(config, teacher, arguments.runs, steps)
    models = {name: load_model_or_run(run).eval() for name, run in (("teacher", teacher), ("student", student))}
    size = " x ".join(map(str, config.clips.val_bucket.shape))
    print(f"{steps} updates of the student; clips of {size}; metrics as in {METRICS_FILE}; {machine()}\n")
    header = ["decoder", "weights, K", "PSNR, dB", "SSIM", "LPIPS (AlexNet)", "decoding a clip, ms", "times as fast"]
    print(table(header, rows_of(models, config, rounds)))
    start = read_result(Path(student)).first["psnr"]
    print(f"\nthe student before its first update, a linear map of the teacher's latents: {start:.2f} dB")
    print(f"\nupdates of the teacher's decoder, {config.batch_size} clips, without discriminators\n")
    print(table(["update", "ms", "times as fast"], update_rows(config, teacher, arguments.runs / "latents", rounds)))


if __name__ == "__main__":
    main()
