"""Students of the package's model, with and without the term on the features of the teacher's decoder.

    python benchmarks/videos.py runs/videos
    python benchmarks/teacher_features.py runs/teacher_features --unseen runs/videos/unseen/*

Trains a small decoder for each variant and seed with `telecine distill`'s function, and prints metrics of the averaged
weights on held-out clips of the sample videos and on clips of other videos. A finished run is not trained again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import yaml
from demo import clip_sets, draw, reconstruct_with
from measure import machine, table
from rich.console import Console
from torch import nn

from telecine.autoencoders import load_autoencoder
from telecine.autoencoders.load import load_model_or_run
from telecine.data import Clip
from telecine.evaluation import ReconstructionMetrics
from telecine.evaluation.pixel_metrics import psnr
from telecine.perceptual import LPIPS
from telecine.settings import DistillConfig
from telecine.settings.parse import merged, read_layer
from telecine.settings.validate import validate
from telecine.training.clips import build_clips
from telecine.training.distillation import distill

STUDENT = {"base_channels": 32, "blocks_per_level": 1}
# The settings of the demo, without a GAN and without LPIPS.
COMMON = {
    "teacher": "tiny",
    "steps": 300,
    "val_clips": 1,
    "latent_clips": 1,
    "trackers": [],
    "linear_baseline": False,
    "objective.adversarial_loss_weight": 0.0,
    "objective.perceptual_weight": 0.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "linear start": {"steps": 1},
    "video alone": {},
    "features 0.001": {"feature_weight": 0.001},
    "features 0.01": {"feature_weight": 0.01},
    "features 0.1": {"feature_weight": 0.1},
    "LPIPS 0.01": {"objective.perceptual_weight": 0.01},
    "LPIPS 0.04": {"objective.perceptual_weight": 0.04},
    "teacher's video 0.1": {"teacher_weight": 0.1},
}
DEFAULT = ["video alone", "features 0.01", "LPIPS 0.01", "teacher's video 0.1"]
METRICS = {
    "psnr": "PSNR",
    "psnr_teacher": "PSNR to the teacher",
    "ssim": "SSIM",
    "lpips_alex": "LPIPS-Alex",
    "lpips_vgg": "LPIPS-VGG",
    "sharpness": "sharpness",
    "flicker": "flicker",
    "seconds": "s of training",
}


def settings_of(variant: str, seed: int, folder: Path, steps: int) -> DistillConfig:
    """Return the settings of a run."""
    name = f"{variant.replace(' ', '_').replace(chr(39), '')}-{seed}"
    changes = {"seed": seed, "output_dir": str(folder / name), "student": str(folder / "student.yaml")}
    layers = ["demo", {**COMMON, "steps": steps, "val_every": steps, "save_every": steps}, VARIANTS[variant], changes]
    return validate(DistillConfig, merged(map(read_layer, layers)))


def train(config: DistillConfig) -> float:
    """Train a run unless it is finished; return its processor time in seconds."""
    finished = Path(config.output_dir) / "seconds.json"
    if not finished.exists():
        start = time.process_time()
        distill(config, console=Console(quiet=True))
        finished.write_text(json.dumps(time.process_time() - start))
    return float(json.loads(finished.read_text()))


@torch.no_grad()
def measure(model: nn.Module, clips: Sequence[Clip], perceptual: dict[str, nn.Module]) -> dict[str, float]:
    """Return the mean metrics of a model on clips, against these and against the teacher's reconstruction."""
    metrics = ReconstructionMetrics(perceptual, metrics=("psnr", "ssim", "sharpness", "flicker"))
    teacher, to_teacher = load_autoencoder("tiny").eval(), []
    for clip in clips:
        target = clip["video"][None]
        reconstruction, of_teacher = (reconstruct_with(each)(target) for each in (model, teacher))
        metrics.update(reconstruction=reconstruction, target=target)
        frames = [each[0].transpose(0, 1).clamp(-1, 1) for each in (reconstruction, of_teacher)]
        to_teacher.append(psnr(reconstruction=frames[0], target=frames[1]).mean().item())
    return {**metrics.compute(), "psnr_teacher": fmean(to_teacher)}


def cells(values: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the mean of each metric over seeds, and the standard deviation between them."""
    found = []
    for name in METRICS:
        each = [value[name] for value in values if name in value]
        digits = {"psnr": 2, "psnr_teacher": 2, "seconds": 0, "flicker": 4}.get(name, 3)
        spread = f" ± {stdev(each):.{digits}f}" if len(each) > 1 and name != "seconds" else ""
        found.append(f"{fmean(each):.{digits}f}{spread}" if each else "-")
    return found


def main() -> None:
    """Train and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the runs")
    parser.add_argument("--unseen", nargs="+", type=Path, default=[], help="other videos to measure on")
    parser.add_argument("--clips", type=int, default=2, help="clips of each of these")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 9])
    parser.add_argument("--steps", type=int, default=COMMON["steps"])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=DEFAULT, help="variants")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "student.yaml").write_text(yaml.safe_dump(STUDENT))
    teacher = load_autoencoder("tiny").eval()
    settings = settings_of("video alone", 0, folder, arguments.steps)
    sets = clip_sets(replace(settings, val_clips=arguments.clips), [], arguments.unseen)
    unseen = [clip for clips in sets.values() for clip in clips]
    perceptual: dict[str, nn.Module] = {f"lpips_{net}": LPIPS(net) for net in ("alex", "vgg")}
    held_out = build_clips(replace(settings, val_clips=12), teacher).val
    groups = {"unseen": unseen, "held out": held_out} if unseen else {"held out": held_out}
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    models: dict[str, nn.Module] = {"teacher": teacher}
    for group, clips in groups.items():
        found[group, "teacher"] = [measure(teacher, clips, perceptual)]
    for seed in arguments.seeds:
        for variant in arguments.only:
            config = settings_of(variant, seed, folder, arguments.steps)
            seconds = train(config)
            model = load_model_or_run(config.output_dir).eval()
            models.setdefault(variant, model)
            for group, clips in groups.items():
                values = {**measure(model, clips, perceptual), "seconds": seconds}
                found.setdefault((group, variant), []).append(values)
                print(group, variant, seed, {name: round(value, 4) for name, value in values.items()}, flush=True)
    num_weights = sum(weight.numel() for weight in model.decoder.parameters())
    print(f"\n{machine()}; {arguments.steps} updates; {num_weights} weights; seeds {arguments.seeds}")
    for group, clips in groups.items():
        names = [name for each, name in found if each == group]
        print(f"\n{group}, {len(clips)} clips\n")
        print(table(["run", *METRICS.values()], [[name, *cells(found[group, name])] for name in names]))
        draw([lambda video: video, *map(reconstruct_with, models.values())], clips, folder / f"{group}.png")


if __name__ == "__main__":
    main()
