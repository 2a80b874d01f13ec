"""Published objectives at equal updates and at equal time: Markdown tables and a picture.

    python benchmarks/videos.py runs/videos
    python benchmarks/objectives.py --videos runs/videos --runs runs/objectives --seeds 1 2

Every run trains the demo's autoencoder from the linear start, with the objective and the discriminators of a recipe.
The clips and everything about the optimizers are the demo's: rates, betas, clipping, moving average. Terms that start
later start at the same fraction of the run as in the recipe. Each recipe is run twice: for `--updates` updates, and for
about `--seconds` seconds of processor time, whose number of updates is counted from a few timed ones. The tables have
both of each run. LPIPS, DISTS and FSIM are of every third frame.

"no GAN", "demo" and "sharp" train with LPIPS of AlexNet, and their weights were chosen on these clips. The published
objectives train with LPIPS of VGG16, whose features LPIPS-VGG, DISTS and the Frechet distance compare as well.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gan import HEALTH, HELD_OUT, UNSEEN, Measure, draw, health, health_row, measure_for, metrics_table
from latents import START
from measure import machine, table
from outcome_runs import DIVERGED, Outcome, OutcomeFolder, Run, plain_values
from telecine.training.config_file import config_from

from telecine.settings import TrainConfig
from telecine.settings.recipes import find_recipe
from telecine.settings.yaml_file import read_yaml
from telecine.training.build import Clips, build_autoencoder, build_clips
from telecine.training.step import DivergenceError
from training import SMOKE

# The recipe that each row is of, and its changes for these clips or this machine.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    START: ("demo", {}),
    "no GAN": ("demo", {"objective": {"adversarial_loss_weight": 0.0}}),
    "demo": ("demo", {}),
    "sharp": ("sharp_objective", {}),
    "VidTok": ("vidtok_objective", {}),
    "WF-VAE": ("wf_vae_objective", {}),
    "Open-Sora 2.0, second stage": ("open_sora_objective", {}),
    "Cosmos": ("cosmos_objective", {}),
    # Its weight of the latent's terms is for losses of a quantizer.
    "magvit2-pytorch, weight of the KL 1e-6": ("magvit2_objective", {"objective": {"quantizer_aux_loss_weight": 1e-6}}),
    # With 64 channels and an exact penalty in each update, an update takes half a minute.
    "CogVideo, 16 channels": ("cogvideo_objective", {"discriminator": {"dim": 16}}),
}
# Recipes that change the demo's objective; others replace it.
CHANGES_OF_THE_DEMO = ("demo", "sharp_objective")
# The names of settings that hold the update at which something starts.
STARTS = ("start", "disc_start", "disc_train_start")
# Updates that are timed, after one that is not.
TIMED = 3
LATE = 10**6


def settings_of(name: str, seed: int, num_updates: int, smoke: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a run of a number of updates."""
    demo = read_yaml(find_recipe("demo"))
    recipe, changes = RECIPES[name]
    published = read_yaml(find_recipe(recipe))
    groups = {group: published[group] for group in ("objective", "discriminator") if group in published}
    base = demo if recipe in CHANGES_OF_THE_DEMO else {group: demo[group] for group in demo if group not in groups}
    fraction = num_updates / published.get("steps", demo["steps"])
    # Without worker processes: their time would not be counted.
    run = {"seed": seed, "steps": num_updates, "trackers": [], "device": "cpu", "clips": {"num_workers": 0}}
    return config_from(*(scaled(each, fraction) for each in (base, groups, changes, smoke)), run)


def scaled(settings: Mapping[str, Any], fraction: float) -> dict[str, Any]:
    """Return nested settings with each start multiplied by a fraction."""
    return {
        name: scaled(value, fraction)
        if isinstance(value, Mapping)
        else round(value * fraction)
        if name in STARTS
        else value
        for name, value in settings.items()
    }


def with_start(config: TrainConfig, step: int) -> TrainConfig:
    """Return settings whose discriminators and adversarial terms start at a step."""
    gan = replace(config.objective.gan, disc_train_start=step)
    return replace(config, objective=replace(config.objective, disc_start=step, gan=gan), steps=LATE)


def seconds_of_an_update(config: TrainConfig, clips: Clips) -> float:
    """Return the processor time of an update, a mean over the first ones."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, clips, Path(folder))
        run.train_until(1)
        begin = time.process_time()
        run.train_until(1 + TIMED)
        return (time.process_time() - begin) / TIMED


class Objectives:
    """The runs of all recipes, and their outcomes in a folder, one for each budget.

    Args:
        folder: Where outcomes are, or will be.
        num_updates: The budget of one run of each recipe.
        seconds: That of the other: processor time.
        smoke: Changes of the settings.
    """

    def __init__(self, folder: Path, num_updates: int, seconds: float, smoke: Mapping[str, Any]) -> None:
        self.smoke = smoke
        self.budgets = {"updates": num_updates, "seconds": seconds}
        self.folders = {budget: OutcomeFolder(folder / budget) for budget in self.budgets}

    def settings(self, name: str, seed: int) -> dict[str, Any]:
        """Return what an outcome depends on, but for the speed of the machine."""
        return plain_values(settings_of(name, seed, int(self.budgets["updates"]), self.smoke)) | self.budgets

    def outcome(self, name: str, seed: int, budget: str) -> Outcome | None:
        """Return the outcome of a finished run."""
        return self.folders[budget].load(name, seed, self.settings(name, seed))

    def num_updates(self, name: str, seed: int, budget: str, clips: Clips) -> int:
        """Return the number of updates of a run; for the budget of time some are timed."""
        if name == START:
            return 0
        num_updates = int(self.budgets["updates"])
        if budget == "updates":
            return num_updates
        config = settings_of(name, seed, num_updates, self.smoke)
        before = min(config.objective.gan.disc_train_start / num_updates, 1.0)
        early, late = (seconds_of_an_update(with_start(config, step), clips) for step in (LATE, 0))
        return max(round(self.budgets["seconds"] / (before * early + (1 - before) * late)), 1)

    def train(self, name: str, seed: int, budget: str, measure: Measure) -> None:
        """Train a run, and write its outcome and its frames."""
        config = settings_of(name, seed, int(self.budgets["updates"]), self.smoke)
        clips = build_clips(config, build_autoencoder(config))
        num_updates = self.num_updates(name, seed, budget, clips)
        outcome, frames = Outcome(self.settings(name, seed), {}, [DIVERGED]), None
        with tempfile.TemporaryDirectory() as folder:
            run = Run(settings_of(name, seed, max(num_updates, 1), self.smoke), clips, Path(folder))
            begin = time.process_time()
            try:
                run.train_until(num_updates)
            except DivergenceError as error:
                print(error, file=sys.stderr)
            else:
                spent = {"updates": num_updates, "seconds": time.process_time() - begin}
                metrics, frames = measure.averaged(run.state)
                outcome = replace(outcome, metrics=metrics | spent, warnings=[], health=health(run))
        self.folders[budget].save(name, seed, outcome, frames)
        print(f"{name}, seed {seed}, {budget}: {outcome.metrics or DIVERGED}", file=sys.stderr, flush=True)

    def print_tables(self, names: Sequence[str], seeds: Sequence[int]) -> None:
        """Print the metrics on each set at each budget, and the health of the GANs."""
        for budget, value in self.budgets.items():
            found = {(name, seed): self.outcome(name, seed, budget) for name in names for seed in seeds}
            outcomes = {key: outcome for key, outcome in found.items() if outcome is not None}
            title = f"{value:g} {'updates' if budget == 'updates' else 'seconds of processor time'}"
            for clips in (HELD_OUT, UNSEEN):
                print(f"\n{clips}, {title}:\n")
                print(metrics_table(clips, names, seeds, outcomes, dict.fromkeys(self.budgets, 0)))
            print(f"\nwhile the adversarial terms count, {title}:\n")
            # Most rules of the diagnostics need more records than these runs have: their column is left out.
            rows = [health_row(name, seeds, outcomes)[:-1] for name in names]
            print(table(["run", *HEALTH.values()], rows))


def main() -> None:
    """Train what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="the folder of benchmarks/videos.py")
    parser.add_argument("--runs", type=Path, required=True, help="folder of finished runs, which are not repeated")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--updates", type=int, default=120, help="of one run of each recipe")
    parser.add_argument("--seconds", type=float, default=120.0, help="processor time of the other")
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="default: all")
    parser.add_argument("--picture", type=Path, help="where to write a picture of the runs of the first seed")
    parser.add_argument("--print", action="store_true", help="print finished runs, train nothing")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, to test the command")
    arguments = parser.parse_args()
    runs = Objectives(arguments.runs, arguments.updates, arguments.seconds, SMOKE if arguments.smoke else {})
    keys = [(name, seed, budget) for seed in arguments.seeds for name in arguments.only for budget in runs.budgets]
    missing = [] if arguments.print else [key for key in keys if runs.outcome(*key) is None]
    if missing or arguments.picture:
        config = settings_of(START, arguments.seeds[0], arguments.updates, runs.smoke)
        measure = measure_for(config, arguments.videos)
        for key in missing:
            runs.train(*key, measure)
        if arguments.picture:
            pictures = runs.folders["updates"].all_frames(arguments.only, arguments.seeds[0])
            draw({"input": measure.inputs(), **pictures}, config.clips.width, arguments.picture)
    print(machine())
    runs.print_tables(arguments.only, arguments.seeds)


if __name__ == "__main__":
    main()
