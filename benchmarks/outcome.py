"""Effect of each part of the objective on held-out clips: Markdown tables and a picture.

    python benchmarks/outcome.py --runs runs/outcome -o outcome.png

Every run is the demo (`telecine train` without arguments), optionally with fewer updates and smaller clips. Runs differ
only in their objective, their discriminators and their seed. The averaged weights of the last step are measured on the
demo's held-out clips. Finished runs are stored in `--runs`: a command that is stopped and started again repeats at most
one run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure import NOT_AVAILABLE, machine, spread, table
from outcome_picture import draw
from outcome_runs import DIVERGED, Outcome, OutcomeFolder, SeedRuns, Variant, plain_values
from PIL import Image

from telecine import Ramp
from telecine.settings import TrainConfig
from training import SMOKE, demo_config

METRICS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips_alex": "LPIPS-Alex",
    "flicker": "flicker",
    "sharpness": "sharpness",
}
DIGITS = {"psnr": 2, "ssim": 3, "lpips_alex": 4, "flicker": 4, "sharpness": 3}
# A run has collapsed if its PSNR is lower than without a GAN and the same seed by more than this, in dB.
COLLAPSE = 1.0
# Diagnostic rules about discriminators that do not help.
DISCRIMINATOR_RULES = ("discriminator_saturated", "discriminator_collapsed")
# Acceptable loss of PSNR from a GAN, in dB; shaded in the picture.
TOLERANCE = 0.3


def with_objective(config: TrainConfig, **settings: Any) -> TrainConfig:
    """Return the settings with changes of the objective."""
    return replace(config, objective=replace(config.objective, **settings))


def without_gan(config: TrainConfig) -> TrainConfig:
    """Train with pixel loss and LPIPS only."""
    return with_objective(config, adversarial_loss_weight=0.0)


def only_pixels(config: TrainConfig) -> TrainConfig:
    """Train with the pixel loss only."""
    return with_objective(without_gan(config), perceptual_weight=0.0)


def with_video_patches(config: TrainConfig) -> TrainConfig:
    """Use a fully convolutional discriminator of videos without a penalty."""
    discriminator = replace(config.discriminator, video="patch", dim=8)
    return with_objective(replace(config, discriminator=discriminator), grad_penalty_loss_weight=0.0)


def with_image_patches(config: TrainConfig) -> TrainConfig:
    """Add a fully convolutional discriminator of single frames."""
    config = with_video_patches(config)
    return replace(config, discriminator=replace(config.discriminator, image="patch"))


def without_adaptive_weight(config: TrainConfig) -> TrainConfig:
    """Use a constant weight of the adversarial term."""
    return with_objective(with_video_patches(config), adaptive_weight={"reference": "none"})


def with_inverted_gate(config: TrainConfig) -> TrainConfig:
    """Use the adversarial term before `disc_start` instead of after it, as in the published reference."""
    weight, start = config.objective.adversarial_loss_weight, config.objective.disc_start
    return with_objective(
        with_video_patches(config),
        disc_start=0,
        gan=replace(config.objective.gan, disc_train_start=0),
        adversarial_loss_weight=Ramp(0.0, start=start, initial=weight),
    )


def unchanged(config: TrainConfig) -> TrainConfig:
    """Return the demo's settings."""
    return config


MSE, BASE, GAN = "MSE", "+ LPIPS", "+ 3D GAN (demo)"
VARIANTS: dict[str, Variant] = {
    MSE: only_pixels,
    BASE: without_gan,
    GAN: unchanged,
    "+ 3D GAN, patches": with_video_patches,
    "+ 2D and 3D GAN, patches": with_image_patches,
    "3D GAN, patches, no adaptive weight": without_adaptive_weight,
    "3D GAN, patches, inverted gate": with_inverted_gate,
}
# These differ from the first step. All others train as BASE does until the discriminators start, and share that part.
NOT_SHARED = (MSE, "3D GAN, patches, inverted gate")
# These are left out of the right panel of the picture, where the others would be too close together.
OUTLIERS = (MSE, "3D GAN, patches, no adaptive weight")


Outcomes = dict[tuple[str, int], Outcome]


def collapsed(outcome: Outcome, base: Outcome) -> bool:
    """Return whether a run has collapsed, compared with the run of the same seed without discriminators."""
    if not (outcome.metrics and base.metrics):
        return not outcome.metrics
    return outcome.metrics["psnr"] < base.metrics["psnr"] - COLLAPSE


def variant_row(name: str, outcomes: Outcomes, seeds: Sequence[int]) -> list[str]:
    """Return a variant's row: each metric over the seeds."""
    runs = [outcomes[name, seed] for seed in seeds]
    cells = [spread([run.metrics[metric] for run in runs if run.metrics], DIGITS[metric]) for metric in METRICS]
    return [name, *cells]


def gains(name: str, metric: str, outcomes: Outcomes, seeds: Sequence[int]) -> list[float]:
    """Return the differences of a metric to the run of the same seed without a GAN, of finite runs."""
    pairs = [(outcomes[name, seed].metrics, outcomes[BASE, seed].metrics) for seed in seeds]
    return [run[metric] - base[metric] for run, base in pairs if run and base]


def gain_row(name: str, outcomes: Outcomes, seeds: Sequence[int]) -> list[str]:
    """Return a variant's row: differences to no GAN, and the numbers of collapses and warnings."""
    cells = [spread(gains(name, metric, outcomes, seeds), DIGITS[metric], "+") for metric in METRICS]
    lower = sum(gain < 0 for gain in gains(name, "lpips_alex", outcomes, seeds))
    num_collapsed = sum(collapsed(outcomes[name, seed], outcomes[BASE, seed]) for seed in seeds)
    num_warned = sum(bool({*DISCRIMINATOR_RULES} & {*outcomes[name, seed].warnings}) for seed in seeds)
    counts = [NOT_AVAILABLE if name == MSE else f"{number} of {len(seeds)}" for number in (num_collapsed, num_warned)]
    return [name, *cells, f"{lower} of {len(seeds)}", *counts]


def seed_row(seed: int, outcomes: Outcomes) -> list[str]:
    """Return a seed's row: metrics without and with the GAN, and the warnings."""
    base, gan = outcomes[BASE, seed], outcomes[GAN, seed]
    cells = [
        f"{run.metrics[metric]:.{DIGITS[metric]}f}" if run.metrics else NOT_AVAILABLE
        for metric in ("psnr", "lpips_alex", "flicker")
        for run in (base, gan)
    ]
    return [f"{seed}", *cells, ", ".join(gan.warnings) or "none", "yes" if collapsed(gan, base) else "no"]


def print_tables(outcomes: Outcomes, seeds: Sequence[int], gan_seeds: Sequence[int]) -> None:
    """Print all variants, their differences to no GAN, and the demo's GAN for each of `gan_seeds`."""
    print(f"Mean and standard deviation over seeds {seeds[0]} to {seeds[-1]}:\n")
    print(table(["objective", *METRICS.values()], [variant_row(name, outcomes, seeds) for name in VARIANTS]))
    print(f"\nDifference to {BASE} with the same seed:\n")
    header = ["objective", *METRICS.values(), "LPIPS-Alex lower", "collapsed", "warned"]
    rows = [gain_row(name, outcomes, seeds) for name in VARIANTS if name != BASE]
    _, *gan_cells = gain_row(GAN, outcomes, gan_seeds)
    print(table(header, [*rows, [f"{GAN}, seeds {gan_seeds[0]} to {gan_seeds[-1]}", *gan_cells]]))
    print(f"\n{BASE}, and {GAN}:\n")
    columns = [
        f"{METRICS[metric]}{which}" for metric in ("psnr", "lpips_alex", "flicker") for which in ("", " with GAN")
    ]
    print(table(["seed", *columns, "warnings", "collapsed"], [seed_row(seed, outcomes) for seed in gan_seeds]))


def runs_of(seeds: Sequence[int], gan_seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Return the variant and seed of each run, first those of all variants."""
    pairs = [(name, seed) for seed in seeds for name in VARIANTS]
    return pairs + [(name, seed) for seed in gan_seeds if seed not in seeds for name in (BASE, GAN)]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Print and draw the effect of each part of the objective.")
    parser.add_argument("-o", "--output", required=True, help="path of the picture")
    parser.add_argument("--runs", type=Path, required=True, help="folder of finished runs, which are not repeated")
    demo = demo_config({})
    parser.add_argument("--steps", type=int, default=demo.steps, help="number of updates of each run")
    parser.add_argument("--frames", type=int, default=demo.clips.num_frames, help="number of frames of a clip")
    parser.add_argument("--size", type=int, default=demo.clips.height, help="height and width of a clip")
    parser.add_argument("--first-seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of each variant")
    parser.add_argument(
        "--gan-seeds", type=int, default=10, help="number of seeds with the demo's GAN and without a GAN"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny networks, two seeds, two updates, to test the command"
    )
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.steps, arguments.seeds, arguments.gan_seeds = 2, 1, 2
        arguments.frames, arguments.size = 5, 32
    size = {"num_frames": arguments.frames, "height": arguments.size, "width": arguments.size}
    arguments.changes = (SMOKE if arguments.smoke else {}) | {"clips": size}
    return arguments


def collect(folder: OutcomeFolder, seeds: Mapping[int, SeedRuns], runs: Sequence[tuple[str, int]]) -> Outcomes:
    """Return the outcome of each run, and train those that are missing in the folder."""
    outcomes: Outcomes = {}
    for name, number in runs:
        variant, seed = VARIANTS[name], seeds[number]
        outcome = folder.load(name, number, plain_values(variant(seed.config)))
        if outcome is None:
            outcome, frames = seed.train(variant, share_start=name not in NOT_SHARED)
            folder.save(name, number, outcome, frames)
            print(f"{name}, seed {number}: {outcome.metrics or DIVERGED}", file=sys.stderr, flush=True)
        outcomes[name, number] = outcome
    return outcomes


def main() -> None:
    """Train the missing runs, print the tables and draw the picture."""
    arguments = parse_arguments()
    numbers = range(arguments.first_seed, arguments.first_seed + max(arguments.seeds, arguments.gan_seeds))
    by_seed = {number: SeedRuns(number, arguments.steps, arguments.changes, without_gan) for number in numbers}
    seeds, gan_seeds = numbers[: arguments.seeds], numbers[: arguments.gan_seeds]
    folder = OutcomeFolder(arguments.runs)
    outcomes = collect(folder, by_seed, runs_of(seeds, gan_seeds))
    held_out = by_seed[seeds[0]].held_out
    clips = f"clips of {arguments.frames} frames of {arguments.size} px, {len(held_out.clips)} held out"
    print(f"{arguments.steps} updates; {clips}; {machine()}\n")
    print_tables(outcomes, seeds, gan_seeds)
    inputs = Image.fromarray(held_out.preview([clip["video"] for clip in held_out.clips]).numpy())
    pictures = {name: folder.load_frames(name, seeds[0]) for name in VARIANTS}
    points = {key: outcome.metrics for key, outcome in outcomes.items() if outcome.metrics}
    draw(points, {"input": inputs, **pictures}, arguments.output, base=BASE, outliers=OUTLIERS, tolerance=TOLERANCE)


if __name__ == "__main__":
    main()
