"""What each part of the objective does to held-out clips: Markdown tables and a picture.

    python benchmarks/outcome.py --runs runs/outcome -o outcome.png

Every run is the demo (`telecine train` without any setting), if asked with fewer updates and smaller clips, and differs
from the others in its objective, its discriminators and its seed alone. The averaged weights of its last step are
measured on the demo's held-out clips. What a run came to is kept in `--runs`, so the command can be stopped, and
started again without losing more than a run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from outcome_picture import draw
from outcome_runs import DIVERGED, Outcome, Seed, Shelf, Variant, plain
from PIL import Image
from tables import NOTHING, table
from timing import machine

from telecine import Ramp
from telecine.training import TrainConfig
from training import SMOKE, demo_config

METRICS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips_alex": "LPIPS-Alex",
    "flicker": "flicker",
    "sharpness": "sharpness",
}
DIGITS = {"psnr": 2, "ssim": 3, "lpips_alex": 4, "flicker": 4, "sharpness": 3}
# A GAN that costs this much PSNR, in dB, against the run of the same seed without it has collapsed.
COLLAPSE = 1.0
# What says that discriminators were of no use for a while.
USELESS = ("discriminator_saturated", "discriminator_collapsed")
# How much PSNR a GAN may cost, in dB.
TOLERANCE = 0.3


def with_objective(config: TrainConfig, **settings: Any) -> TrainConfig:
    """Return the settings with others of the objective."""
    return replace(config, objective=replace(config.objective, **settings))


def without_gan(config: TrainConfig) -> TrainConfig:
    """Train on pixels and LPIPS alone."""
    return with_objective(config, adversarial_loss_weight=0.0)


def only_pixels(config: TrainConfig) -> TrainConfig:
    """Train on pixels alone."""
    return with_objective(without_gan(config), perceptual_weight=0.0)


def with_patches(config: TrainConfig) -> TrainConfig:
    """Let a fully convolutional discriminator judge instead of the demo's, and go without a penalty."""
    judge = replace(config.discriminator, video="patch", dim=8)
    return with_objective(replace(config, discriminator=judge), grad_penalty_loss_weight=0.0)


def with_patches_of_frames(config: TrainConfig) -> TrainConfig:
    """Let a second such discriminator judge single frames."""
    config = with_patches(config)
    return replace(config, discriminator=replace(config.discriminator, image="patch"))


def without_adaptive_weight(config: TrainConfig) -> TrainConfig:
    """Let the adversarial term have its own weight, whatever its gradient."""
    return with_objective(with_patches(config), adaptive_weight_reference="none")


def with_inverted_gate(config: TrainConfig) -> TrainConfig:
    """Let the discriminators train at once, and count before `disc_start` only, as in the published reference."""
    weight, start = config.objective.adversarial_loss_weight, config.objective.disc_start
    ending = Ramp(0.0, start=start, initial=weight)
    return with_objective(with_patches(config), disc_start=0, disc_train_start=0, adversarial_loss_weight=ending)


def unchanged(config: TrainConfig) -> TrainConfig:
    """Train as the demo does."""
    return config


MSE, BASE, GAN = "MSE", "+ LPIPS", "+ 3D GAN (demo)"
VARIANTS: dict[str, Variant] = {
    MSE: only_pixels,
    BASE: without_gan,
    GAN: unchanged,
    "+ 3D GAN, patches": with_patches,
    "+ 2D and 3D GAN, patches": with_patches_of_frames,
    "3D GAN, patches, no adaptive weight": without_adaptive_weight,
    "3D GAN, patches, inverted gate": with_inverted_gate,
}
# These differ from the beginning. All others train as BASE does until the discriminators begin to, and share that part.
ALONE = (MSE, "3D GAN, patches, inverted gate")
# These come out so differently that the others could not be told apart beside them.
FAR = (MSE, "3D GAN, patches, no adaptive weight")


Outcomes = dict[tuple[str, int], Outcome]


def collapsed(outcome: Outcome, base: Outcome) -> bool:
    """Say whether the discriminators spoiled a run, in comparison with the one of the same seed without them."""
    if not (outcome.metrics and base.metrics):
        return not outcome.metrics
    return outcome.metrics["psnr"] < base.metrics["psnr"] - COLLAPSE


def spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Return mean and standard deviation over seeds as a cell."""
    if not values:
        return NOTHING
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.{digits}f}{deviation}"


def variant_row(name: str, outcomes: Outcomes, seeds: Sequence[int]) -> list[str]:
    """Return a variant's line: each metric over the seeds."""
    own = [outcomes[name, seed] for seed in seeds]
    cells = [spread([run.metrics[metric] for run in own if run.metrics], DIGITS[metric]) for metric in METRICS]
    return [name, *cells]


def gains(name: str, metric: str, outcomes: Outcomes, seeds: Sequence[int]) -> list[float]:
    """Return by how much a metric is larger than without a GAN, for each seed whose run is finite."""
    pairs = [(outcomes[name, seed].metrics, outcomes[BASE, seed].metrics) for seed in seeds]
    return [own[metric] - base[metric] for own, base in pairs if own and base]


def gain_row(name: str, outcomes: Outcomes, seeds: Sequence[int]) -> list[str]:
    """Return a variant's line: differences to the runs of the same seeds without a GAN, and what became of them."""
    cells = [spread(gains(name, metric, outcomes, seeds), DIGITS[metric], "+") for metric in METRICS]
    lower = sum(gain < 0 for gain in gains(name, "lpips_alex", outcomes, seeds))
    num_collapsed = sum(collapsed(outcomes[name, seed], outcomes[BASE, seed]) for seed in seeds)
    num_warned = sum(bool({*USELESS} & {*outcomes[name, seed].warnings}) for seed in seeds)
    fates = [NOTHING if name == MSE else f"{number} of {len(seeds)}" for number in (num_collapsed, num_warned)]
    return [name, *cells, f"{lower} of {len(seeds)}", *fates]


def seed_row(seed: int, outcomes: Outcomes) -> list[str]:
    """Return a seed's line: without and with the GAN, and what was warned of."""
    base, own = outcomes[BASE, seed], outcomes[GAN, seed]
    cells = [
        f"{run.metrics[metric]:.{DIGITS[metric]}f}" if run.metrics else NOTHING
        for metric in ("psnr", "lpips_alex", "flicker")
        for run in (base, own)
    ]
    return [f"{seed}", *cells, ", ".join(own.warnings) or "none", "yes" if collapsed(own, base) else "no"]


def print_tables(outcomes: Outcomes, few: Sequence[int], many: Sequence[int]) -> None:
    """Print all variants over a few seeds, their differences to no GAN, and the seeds of the GAN one by one."""
    print(f"Mean and standard deviation over seeds {few[0]} to {few[-1]}:\n")
    print(table(["objective", *METRICS.values()], [variant_row(name, outcomes, few) for name in VARIANTS]))
    print(f"\nDifference to {BASE} with the same seed:\n")
    header = ["objective", *METRICS.values(), "LPIPS-Alex lower", "collapsed", "warned"]
    rows = [gain_row(name, outcomes, few) for name in VARIANTS if name != BASE]
    of_many = gain_row(GAN, outcomes, many)
    print(table(header, [*rows, [f"{GAN}, seeds {many[0]} to {many[-1]}", *of_many[1:]]]))
    print(f"\n{BASE}, and {GAN}:\n")
    both = [f"{METRICS[metric]}{which}" for metric in ("psnr", "lpips_alex", "flicker") for which in ("", " with GAN")]
    print(table(["seed", *both, "warnings", "collapsed"], [seed_row(seed, outcomes) for seed in many]))


def plan(few: Sequence[int], many: Sequence[int]) -> list[tuple[str, int]]:
    """Return the runs, those first that all variants have."""
    pairs = [(name, seed) for seed in few for name in VARIANTS]
    return pairs + [(name, seed) for seed in many if seed not in few for name in (BASE, GAN)]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Print and draw what each part of the objective does.")
    parser.add_argument("-o", "--output", required=True, help="the picture to write")
    parser.add_argument("--runs", type=Path, required=True, help="folder of what runs came to; finished ones are kept")
    demo = demo_config({})
    parser.add_argument("--steps", type=int, default=demo.steps, help="updates of each run")
    parser.add_argument("--frames", type=int, default=demo.clips.num_frames, help="frames of a clip")
    parser.add_argument("--size", type=int, default=demo.clips.height, help="height and width of a clip")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of all seeds")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each variant")
    parser.add_argument("--gan-seeds", type=int, default=10, help="seeds with the GAN of the demo, and without one")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny networks, two seeds, two updates, to see that it runs"
    )
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.steps, arguments.seeds, arguments.gan_seeds = 2, 1, 2
        arguments.frames, arguments.size = 5, 32
    size = {"num_frames": arguments.frames, "height": arguments.size, "width": arguments.size}
    arguments.changes = (SMOKE if arguments.smoke else {}) | {"clips": size}
    return arguments


def collect(shelf: Shelf, seeds: Mapping[int, Seed], runs: Sequence[tuple[str, int]]) -> Outcomes:
    """Return the outcome of each run, made now where it is missing."""
    outcomes: Outcomes = {}
    for name, number in runs:
        variant, seed = VARIANTS[name], seeds[number]
        found = shelf.find(name, number, plain(variant(seed.config)))
        if found is None:
            found, frames = seed.outcome(variant, shares=name not in ALONE)
            shelf.add(name, number, found, frames)
            print(f"{name}, seed {number}: {found.metrics or DIVERGED}", file=sys.stderr, flush=True)
        outcomes[name, number] = found
    return outcomes


def main() -> None:
    """Make the runs that are missing, print the tables and draw the picture."""
    arguments = parse_arguments()
    numbers = range(arguments.first_seed, arguments.first_seed + max(arguments.seeds, arguments.gan_seeds))
    seeds = {number: Seed(number, arguments.steps, arguments.changes, without_gan) for number in numbers}
    few, many = numbers[: arguments.seeds], numbers[: arguments.gan_seeds]
    shelf = Shelf(arguments.runs)
    outcomes = collect(shelf, seeds, plan(few, many))
    held_out = seeds[few[0]].held_out
    clips = f"clips of {arguments.frames} frames of {arguments.size} px, {len(held_out.clips)} held out"
    print(f"{arguments.steps} updates; {clips}; {machine()}\n")
    print_tables(outcomes, few, many)
    inputs = Image.fromarray(held_out.shown([clip["video"] for clip in held_out.clips]).numpy())
    pictures = {name: shelf.frames(name, few[0]) for name in VARIANTS}
    points = {key: outcome.metrics for key, outcome in outcomes.items() if outcome.metrics}
    draw(points, {"input": inputs, **pictures}, arguments.output, base=BASE, far=FAR, tolerance=TOLERANCE)


if __name__ == "__main__":
    main()
