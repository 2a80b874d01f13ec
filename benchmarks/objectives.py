"""Published objectives at equal updates and at equal time: Markdown tables and a picture.

    python benchmarks/videos.py runs/videos
    python benchmarks/objectives.py --videos runs/videos --runs runs/objectives --seeds 1 2

Every run trains the demo's autoencoder from the linear start, with the objective and the discriminators of a recipe.
Clips and rates are the demo's; the rates do not decay. A term that starts after a part of the recipe's updates starts
after the same part of `--updates`. A run goes on until it has made `--updates` updates and taken `--seconds` seconds of
processor time, and is measured at both. Distances of networks, and FSIM, are of every third frame.
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

from gan import HEALTH, HELD_OUT, UNSEEN, Measure, draw, health, health_row, metrics_table
from measure import machine, table
from outcome_runs import DIVERGED, Outcome, OutcomeFolder, Run, plain_values
from torch import Tensor

from telecine.data.find import find_videos
from telecine.recipes import find_recipe
from telecine.settings_file import read_yaml
from telecine.training import TrainConfig, TrainingError
from telecine.training.build import build_autoencoder, build_clips
from telecine.training.config_file import config_from
from training import SMOKE

START = "linear start"
# The recipe that each row is of, and what the clips here or the time make different.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    START: ("demo", {}),
    "no GAN": ("demo", {"objective": {"adversarial_loss_weight": 0.0}}),
    "demo": ("demo", {}),
    "sharp": ("sharp_objective", {}),
    "VidTok": ("vidtok_objective", {}),
    "WF-VAE": ("wf_vae_objective", {}),
    "Open-Sora 2.0": ("open_sora_objective", {}),
    "Cosmos": ("cosmos_objective", {}),
    # Its weight of the latent's terms is for losses of a quantizer; this one is for a KL divergence.
    "magvit2-pytorch": ("magvit2_objective", {"objective": {"quantizer_aux_loss_weight": 1e-6}}),
    # A discriminator of its width, 64, with an exact penalty in each update, takes 32 seconds for one.
    "CogVideo": ("cogvideo_objective", {"discriminator": {"dim": 16}}),
}
# Recipes that change the demo's objective; others replace it.
OWN = ("demo", "sharp_objective")
# Settings that are a number of updates.
STARTS = ("start", "disc_start", "disc_train_start")


def settings_of(name: str, seed: int, num_updates: int, smoke: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a run."""
    demo = read_yaml(find_recipe("demo"))
    recipe, changes = RECIPES[name]
    published = read_yaml(find_recipe(recipe))
    groups = {group: published[group] for group in ("objective", "discriminator") if group in published}
    base = demo if recipe in OWN else {group: demo[group] for group in demo if group not in groups}
    steps = published.get("steps", demo["steps"])
    settings = config_from(*(scaled(each, num_updates / steps) for each in (base, groups, changes, smoke)))
    optimizer = replace(settings.optimizer, schedule="constant")
    # Without worker processes: their time would not be counted. The run ends by its budgets, not by `steps`.
    clips = replace(settings.clips, num_workers=0)
    return replace(settings, seed=seed, optimizer=optimizer, clips=clips, steps=demo["steps"], trackers=())


def scaled(settings: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Return nested settings with each start multiplied by `share`."""
    return {
        name: scaled(value, share) if isinstance(value, Mapping) else round(value * share) if name in STARTS else value
        for name, value in settings.items()
    }


class Objectives:
    """The runs of all recipes, and their outcomes in a folder, one for each budget.

    Args:
        folder: Where outcomes are, or will be.
        num_updates: One budget of a run.
        seconds: The other: processor time.
        smoke: Changes of the settings.
    """

    def __init__(self, folder: Path, num_updates: int, seconds: float, smoke: Mapping[str, Any]) -> None:
        self.smoke = smoke
        self.budgets = {"updates": num_updates, "seconds": seconds}
        self.folders = {budget: OutcomeFolder(folder / budget) for budget in self.budgets}

    def config(self, name: str, seed: int) -> TrainConfig:
        """Return the settings of a run."""
        return settings_of(name, seed, int(self.budgets["updates"]), self.smoke)

    def settings(self, name: str, seed: int) -> dict[str, Any]:
        """Return what an outcome depends on."""
        return plain_values(self.config(name, seed)) | self.budgets

    def outcome(self, name: str, seed: int, budget: str) -> Outcome | None:
        """Return the outcome of a finished run at a budget."""
        return self.folders[budget].load(name, seed, self.settings(name, seed))

    def is_finished(self, name: str, seed: int) -> bool:
        """Return whether a run has been measured at each budget."""
        return all(self.outcome(name, seed, budget) for budget in self.budgets)

    def train(self, name: str, seed: int, measure: Measure) -> None:
        """Train a run, and write its outcome and its frames at each budget."""
        config = self.config(name, seed)
        clips = build_clips(config, build_autoencoder(config))
        with tempfile.TemporaryDirectory() as folder:
            run = Run(config, clips, Path(folder))
            spent, remaining = {"updates": 0.0, "seconds": 0.0}, [*self.budgets]
            while remaining:
                if name != START and not advance(run, spent):
                    self.save(name, seed, remaining, Outcome({}, {}, [DIVERGED]), None)
                    return
                reached = [each for each in remaining if name == START or spent[each] >= self.budgets[each]]
                if reached:
                    metrics, frames = measure.averaged(run.state)
                    run.state.autoencoder.train()
                    warnings = sorted(run.diagnostics.warned)
                    self.save(name, seed, reached, Outcome({}, metrics | spent, warnings, health(run)), frames)
                    remaining = [each for each in remaining if each not in reached]

    def save(self, name: str, seed: int, budgets: Sequence[str], outcome: Outcome, frames: Tensor | None) -> None:
        """Write an outcome at budgets."""
        for budget in budgets:
            self.folders[budget].save(name, seed, replace(outcome, settings=self.settings(name, seed)), frames)
        print(f"{name}, seed {seed}, {budgets}: {outcome.metrics or DIVERGED}", file=sys.stderr, flush=True)

    def print_tables(self, names: Sequence[str], seeds: Sequence[int]) -> None:
        """Print the metrics on each set at each budget, and the health of the GANs."""
        for budget, value in self.budgets.items():
            found = {(name, seed): self.outcome(name, seed, budget) for name in names for seed in seeds}
            outcomes = {key: outcome for key, outcome in found.items() if outcome is not None}
            for clips in (UNSEEN, HELD_OUT):
                print(f"\n{clips}, at {value:g} {budget}:\n")
                print(metrics_table(clips, names, seeds, outcomes, dict.fromkeys(self.budgets, 0)))
            print(f"\nwhile the adversarial terms count, up to {value:g} {budget}:\n")
            rows = [health_row(name, seeds, outcomes) for name in names]
            print(table(["run", *HEALTH.values(), "warnings"], rows))


def advance(run: Run, spent: dict[str, float]) -> bool:
    """Do an update, count what it takes, and return whether its losses and gradients were finite."""
    begin = time.process_time()
    try:
        run.train_until(run.state.step + 1)
    except TrainingError as error:
        print(error, file=sys.stderr)
        return False
    spent["updates"] += 1
    spent["seconds"] += time.process_time() - begin
    return True


def main() -> None:
    """Train what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="the folder of benchmarks/videos.py")
    parser.add_argument("--runs", type=Path, required=True, help="folder of finished runs, which are not repeated")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--updates", type=int, default=240, help="one budget of a run")
    parser.add_argument("--seconds", type=float, default=240.0, help="the other: processor time")
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="default: all")
    parser.add_argument("--picture", type=Path, help="where to write a picture of the runs of the first seed")
    parser.add_argument("--print", action="store_true", help="print finished runs, train nothing")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, to test the command")
    arguments = parser.parse_args()
    runs = Objectives(arguments.runs, arguments.updates, arguments.seconds, SMOKE if arguments.smoke else {})
    pairs = [(name, seed) for seed in arguments.seeds for name in arguments.only]
    missing = [] if arguments.print else [pair for pair in pairs if not runs.is_finished(*pair)]
    if missing or arguments.picture:
        unseen = [Path(str(video)) for video in find_videos(arguments.videos / "unseen", name="--videos")]
        measure = Measure(runs.config(*pairs[0]), unseen)
        for name, seed in missing:
            runs.train(name, seed, measure)
        if arguments.picture:
            pictures = runs.folders["updates"].all_frames(arguments.only, arguments.seeds[0])
            draw({"input": measure.inputs(), **pictures}, runs.config(*pairs[0]).clips.width, arguments.picture)
    print(machine())
    runs.print_tables(arguments.only, arguments.seeds)


if __name__ == "__main__":
    main()
