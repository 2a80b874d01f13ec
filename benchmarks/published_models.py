"""Memory and operations of an update of published autoencoders, and plans against measured peaks.

    python benchmarks/published_models.py planned
    python benchmarks/published_models.py recipes
    python benchmarks/published_models.py measured

Weights are random. `planned` takes the default arguments of diffusers' classes, the recipe `gpu` and one clip, and
plans for a GPU. `recipes`
plans the recipes of these models, to fine-tune all weights on each kind of hardware. `measured` runs real updates of
small clips on this machine, each in a new process, and compares the peak above the memory before with the plan for it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import Step, extra_peak, machine, table

from telecine.base.files import read_json
from telecine.settings import DiscriminatorConfig, TrainConfig
from telecine.settings.parse import PUBLISHED as CONFIGURATIONS
from telecine.settings.parse import read_config
from telecine.training.build import build_accelerator, build_autoencoder, build_state
from telecine.training.memory import fake_autoencoder, plan_update
from telecine.training.step import MicroBatch, train_step
from telecine.training.update_memory import DATA, UpdateMemory

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "telecine (gpu)": {},
    "CogVideoX": {"_class_name": "AutoencoderKLCogVideoX"},
    "Wan 2.1": {"_class_name": "AutoencoderKLWan"},
    "Wan 2.2": read_json(CONFIGURATIONS)["Wan-AI/Wan2.2-TI2V-5B-Diffusers"],
    "LTX": {"_class_name": "AutoencoderKLLTXVideo"},
    "HunyuanVideo": {"_class_name": "AutoencoderKLHunyuanVideo"},
    "Cosmos": {"_class_name": "AutoencoderKLCosmos"},
    "Mochi": {"_class_name": "AutoencoderKLMochi"},
    "Allegro": {"_class_name": "AutoencoderKLAllegro"},
    "Stable Diffusion": read_json(CONFIGURATIONS)["stabilityai/sd-vae-ft-mse"],
    "Flux": read_json(CONFIGURATIONS)["black-forest-labs/FLUX.1-schnell"],
    "DC-AE": read_json(CONFIGURATIONS)["mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers"],
}
# The recipe of each, and the kinds of hardware that there are recipes for.
RECIPES = {
    "CogVideoX": "cogvideox",
    "Wan 2.1": "wan2.1",
    "Wan 2.2": "wan2.2",
    "LTX": "ltx",
    "HunyuanVideo": "hunyuanvideo",
    "Cosmos": "cosmos",
    "Mochi": "mochi",
    "Stable Diffusion": "sd_vae",
    "Flux": "flux_vae",
    "DC-AE": "dc_ae",
}
HARDWARE: Mapping[str, str] = {"cpu": "cpu", "24gb": "cuda", "80gb": "cuda"}
PLANNED_SIZE = (17, 256, 256)
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "checkpointing": {"model_gradient_checkpointing": True},
    "bf16": {"mixed_precision": "bf16"},
    "both": {"model_gradient_checkpointing": True, "mixed_precision": "bf16"},
}
SMALL_WAN = {"_class_name": "AutoencoderKLWan", "base_dim": 32}
SMALL_COG = {"_class_name": "AutoencoderKLCogVideoX", "block_out_channels": [32, 64, 64, 128]}


def with_model(config: TrainConfig, values: Mapping[str, Any], folder: Path) -> TrainConfig:
    """Return the settings with a diffusers model of this configuration, or telecine's own if it is empty."""
    if not values:
        return config
    path = folder / f"{abs(hash(json.dumps(values)))}.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return replace(config, model=str(path))


def with_size(config: TrainConfig, size: tuple[int, int, int]) -> TrainConfig:
    """Return the settings with clips of this size."""
    frames, height, width = size
    return replace(
        config, clips=replace(config.clips, num_frames=frames, height=height, width=width)
    )


def plan_of(config: TrainConfig, device_type: str) -> UpdateMemory:
    """Return the plan of one update."""
    return plan_update(config, fake_autoencoder(config), device_type=device_type)


def planned_rows(folder: Path, names: list[str]) -> Iterator[list[str]]:
    """Yield a row for each published model."""
    recipe = replace(read_config("gpu"), batch_size=1, mixed_precision="no")
    for name in names:
        config = with_model(recipe, PUBLISHED[name], folder)
        model = fake_autoencoder(config)
        config = with_size(config, model.covering_clip(*PLANNED_SIZE))
        num_weights = sum(weight.numel() for weight in model.parameters())
        plans = {
            title: plan_of(replace(config, **changes), "cuda")
            for title, changes in SWITCHES.items()
        }
        plan = plans["as it is"]
        peaks = [gibibytes(each.peak) for each in plans.values()]
        clips = config.clips
        size = f"{clips.num_frames} x {clips.height} x {clips.width}"
        flops = f"{plan.flops / 1e12:.1f}"
        yield [name, size, f"{num_weights / 1e6:.0f}", gibibytes(plan.resident), *peaks, flops]


def recipe_rows(folder: Path, names: list[str]) -> Iterator[list[str]]:
    """Yield a row for each published model: the peak of an update with the recipes of each kind of hardware."""
    for name in names:
        row = [name]
        for hardware, device_type in HARDWARE.items():
            config = with_model(
                read_config(RECIPES[name], "whole", hardware), PUBLISHED[name], folder
            )
            row += [f"{config.clips.num_frames} x {config.clips.height} x {config.clips.width}"]
            row += [gibibytes(plan_of(config, device_type).peak)]
        yield row


def gibibytes(size: int) -> str:
    """Return bytes in GiB."""
    return f"{size / 2**30:.1f}"


def measured_cases(folder: Path) -> dict[str, TrainConfig]:
    """Return the configurations that are measured, by name."""
    demo = replace(
        read_config("demo"), device="cpu", trackers=(), linear_start=False, linear_baseline=False
    )
    gpu = with_size(
        replace(read_config("gpu"), device="cpu", trackers=(), batch_size=1), (9, 64, 64)
    )
    patch = replace(demo, batch_size=1)
    tiny = with_size(patch, (5, 64, 64))
    checkpointed = {"model_gradient_checkpointing": True}
    both = DiscriminatorConfig(video="plain", image="patch", dim=8)
    return {
        "demo, 2 x 9 x 64 x 64": demo,
        "demo, checkpointing": replace(demo, **checkpointed),
        "demo, 1 x 17 x 128 x 128": with_size(patch, (17, 128, 128)),
        "demo, checkpointing, 1 x 17 x 128 x 128": with_size(
            replace(patch, **checkpointed), (17, 128, 128)
        ),
        "demo, plain video and patch image discriminator": replace(demo, discriminator=both),
        "gpu, 1 x 9 x 64 x 64": gpu,
        "small Wan, 1 x 5 x 64 x 64": with_model(tiny, SMALL_WAN, folder),
        "small Wan, 2 x 5 x 64 x 64": with_model(replace(tiny, batch_size=2), SMALL_WAN, folder),
        "small CogVideoX, 1 x 9 x 64 x 64": with_model(
            with_size(patch, (9, 64, 64)), SMALL_COG, folder
        ),
        "small CogVideoX, checkpointing": with_model(
            with_size(replace(patch, **checkpointed), (9, 64, 64)), SMALL_COG, folder
        ),
        "Stable Diffusion, 1 x 1 x 64 x 64": with_model(
            with_size(patch, (1, 64, 64)), PUBLISHED["Stable Diffusion"], folder
        ),
        "LTX, 1 x 9 x 64 x 64": with_model(with_size(patch, (9, 64, 64)), PUBLISHED["LTX"], folder),
    }


def make_update(config: TrainConfig) -> Step:
    """Return an update in which every term is on."""
    torch.manual_seed(0)
    state = build_state(config, build_accelerator(config), build_autoencoder(config))
    clips = config.clips
    video = (
        2 * torch.rand(config.clips_per_pass, 3, clips.num_frames, clips.height, clips.width) - 1
    )
    step = state.objective.schedule.step_with_most_terms()

    def update() -> None:
        state.step = step
        train_step(state, [MicroBatch(video, range(len(video)))])

    return update


def measured_rows(cases: Mapping[str, TrainConfig]) -> Iterator[list[str]]:
    """Yield a row for each configuration: planned and measured peaks above the memory before the update, in MB."""
    for name, config in cases.items():
        plan = plan_of(config, "cpu")
        planned = plan.peak - plan.resident - plan.peak_by_part[DATA]
        measured = extra_peak(make_update, config)
        held = f"{plan.resident / 1e6:.0f}"
        yield [
            name,
            held,
            f"{planned / 1e6:.1f}",
            f"{measured / 1e6:.1f}",
            f"{planned / measured:.2f}",
        ]


def main() -> None:
    """Print one of the tables, a row as soon as it is known."""
    parser = argparse.ArgumentParser(
        description="Print plans of published models, or plans against measured peaks."
    )
    parser.add_argument("table", choices=("planned", "recipes", "measured"))
    parser.add_argument("--only", nargs="+", help="names of rows")
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.table == "planned":
            peaks = [f"peak, {title}" for title in SWITCHES]
            header = ["GiB", "clip", "million weights", "between updates", *peaks, "TFLOP"]
            rows = planned_rows(Path(folder), arguments.only or list(PUBLISHED))
        elif arguments.table == "recipes":
            header = ["GiB", *(cell for name in HARDWARE for cell in ("clip", name))]
            rows = recipe_rows(Path(folder), arguments.only or list(RECIPES))
        else:
            header = [
                "MB",
                "between updates",
                "planned extra peak",
                "measured",
                "planned / measured",
            ]
            cases = measured_cases(Path(folder))
            rows = measured_rows({name: cases[name] for name in arguments.only or cases})
        print(table(header, []), flush=True)
        for row in rows:
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
