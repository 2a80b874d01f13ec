"""What each part of the objective does to held-out clips: Markdown tables and a picture.

    python benchmarks/outcome.py --runs runs/outcome -o outcome.png

Every run is the demo (`telecine train` without any setting) with fewer updates and smaller clips, and differs from the
others in its objective, its discriminators and its seed alone. The averaged weights of its last step are measured on
the demo's held-out clips.
What a run came to is kept in `--runs`, so the command can be stopped, and started again without losing more than a run.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from accelerate.utils import set_seed
from outcome_picture import draw
from PIL import Image
from rich.console import Console
from tables import NOTHING, table
from timing import machine
from torch import Tensor, nn

from telecine import Ramp
from telecine.data import Clip, ClipDataset, bytes_from_video, clip_loader
from telecine.evaluation import ReconstructionMetrics
from telecine.files import read_json, write_json
from telecine.perceptual import LPIPS
from telecine.shapes import argument_error
from telecine.training import TrainConfig, TrainingError
from telecine.training.build import Clips, build_accelerator, build_autoencoder, build_clips, build_players
from telecine.training.health import Health
from telecine.training.step import MicroBatch, Players
from training import SMOKE, demo_config, train

METRICS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips_alex": "LPIPS-Alex",
    "flicker": "flicker",
    "sharpness": "sharpness",
}
DIGITS = {"psnr": 2, "ssim": 3, "lpips_alex": 4, "flicker": 4, "sharpness": 3}
# A GAN that costs this much PSNR, in dB, against the run of the same seed without it has collapsed,
COLLAPSE = 1.0
# and so has one whose discriminators are found to be of no use, or that is not finite.
COLLAPSE_RULES = ("discriminator_saturated", "discriminator_collapsed")
DIVERGED = "not_finite"
# How much PSNR a GAN may cost, in dB.
TOLERANCE = 0.3
STARTS = ("disc_train_start", "disc_start")
GAN_WEIGHTS = ("adversarial_loss_weight", "feature_matching_loss_weight")

Variant = Callable[[TrainConfig], TrainConfig]


def with_objective(config: TrainConfig, **settings: Any) -> TrainConfig:
    """Return the settings with others of the objective."""
    return replace(config, objective=replace(config.objective, **settings))


def without_gan(config: TrainConfig) -> TrainConfig:
    """Train on pixels and LPIPS alone."""
    return with_objective(config, **dict.fromkeys(GAN_WEIGHTS, 0.0))


def only_pixels(config: TrainConfig) -> TrainConfig:
    """Train on pixels alone."""
    return with_objective(without_gan(config), perceptual_weight=0.0)


def with_frames_judged(config: TrainConfig) -> TrainConfig:
    """Let a second discriminator judge single frames."""
    return replace(config, discriminator=replace(config.discriminator, image="patch"))


def without_adaptive_weight(config: TrainConfig) -> TrainConfig:
    """Let the adversarial term have its own weight, whatever its gradient."""
    return with_objective(config, adaptive_weight_reference="none")


def with_inverted_gate(config: TrainConfig) -> TrainConfig:
    """Let what discriminators judge count before `disc_start` only, as the published reference does by mistake."""
    start = config.objective.disc_start
    weights = {name: getattr(config.objective, name) for name in GAN_WEIGHTS}
    ending = {name: Ramp(0.0, start=start, initial=weight) for name, weight in weights.items()}
    return with_objective(config, disc_start=0, disc_train_start=0, **ending)


def with_first_frame_apart(config: TrainConfig) -> TrainConfig:
    """Let the trainer's default discriminator judge, with its penalty, in a small size."""
    judge = replace(config.discriminator, video="first_frame", dim=4)
    return with_objective(replace(config, discriminator=judge), grad_penalty_loss_weight=10.0, grad_penalty_every=8)


def unchanged(config: TrainConfig) -> TrainConfig:
    """Train as the demo does."""
    return config


MSE, BASE, GAN = "MSE", "+ LPIPS", "+ 3D GAN"
VARIANTS: dict[str, Variant] = {
    MSE: only_pixels,
    BASE: without_gan,
    GAN: unchanged,
    "+ 2D and 3D GAN": with_frames_judged,
    "3D GAN, first frame apart": with_first_frame_apart,
    "3D GAN, no adaptive weight": without_adaptive_weight,
    "3D GAN, inverted gate": with_inverted_gate,
}
# These differ from the beginning. All others train as BASE does until the discriminators begin to, and share that part.
ALONE = (MSE, "3D GAN, inverted gate")


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    settings: dict[str, Any]
    """Of the run."""
    metrics: dict[str, float]
    """Means over the held-out clips; none of a run that was not finite."""
    warnings: list[str]
    """The rules that warned."""


Outcomes = dict[tuple[str, int], Outcome]


class Run:
    """The trainer's updates and its health rules, without its checkpoints and its report."""

    def __init__(self, config: TrainConfig, clips: ClipDataset, folder: Path) -> None:
        set_seed(config.seed)
        self.config, self.clips = config, clips
        self.players = build_players(config, build_accelerator(config), build_autoencoder(config))
        self.health = Health(folder, config, Console(quiet=True), step=-1, writes=True)
        self.logs: list[dict[str, float]] = []

    def go_on(self, first: int, last: int) -> None:
        """Make the updates from one step to another, which is not included.

        Raises:
            TrainingError: If a loss or a gradient is not finite.
        """
        loader = clip_loader(self.clips, batch_size=self.config.batch_size, start_step=first, num_steps=last)
        for step, (items, batch) in enumerate(zip(loader.plan, loader, strict=True), first):
            video = batch["video"].to(self.players.accelerator.device)
            self.logs.append(train(self.players, MicroBatch(video, [index for _, index in items]), self.config, step))
            if (step + 1) % self.config.log_every == 0:
                self.health.look(step + 1, means(self.logs[-self.config.log_every :]))

    def state(self) -> dict[str, Any]:
        """Return a copy of the autoencoder, of its optimizer and of its moving average."""
        model, optimizer, ema = self.players.autoencoder, self.players.optimizer, self.players.ema
        state = {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "averages": ema.averages}
        return copy.deepcopy(state | {"num_updates": ema.num_updates})

    @torch.no_grad()
    def take(self, state: dict[str, Any]) -> None:
        """Go on from a state of another run; the discriminators stay."""
        state, players = copy.deepcopy(state), self.players
        players.autoencoder.load_state_dict(state["weights"])
        players.optimizer.load_state_dict(state["optimizer"])
        for name, average in players.ema.averages.items():
            average.copy_(state["averages"][name])
        players.ema.num_updates = state["num_updates"]


def means(logs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each value over the updates that have it."""
    names = {name for log in logs for name in log}
    return {name: fmean(log[name] for log in logs if name in log) for name in names}


@dataclass(frozen=True)
class HeldOut:
    """The clips that runs are measured on, and the distance of AlexNet."""

    clips: list[Clip]
    perceptual: dict[str, nn.Module]

    @torch.no_grad()
    def measure(self, players: Players) -> tuple[dict[str, float], Tensor]:
        """Return the metrics of the averaged weights, and the frames that are shown of them."""
        metrics = ReconstructionMetrics(
            self.perceptual, metrics=[name for name in METRICS if name not in self.perceptual]
        )
        model, reconstructions = players.autoencoder.eval(), []
        with players.ema.applied():
            for clip in self.clips:
                target = clip["video"][None].to(players.accelerator.device)
                reconstructions.append(model(target, sample_posterior=False).video)
                metrics.update(reconstruction=reconstructions[-1], target=target)
        return metrics.compute(), self.shown([video[0] for video in reconstructions])

    def shown(self, videos: Sequence[Tensor]) -> Tensor:
        """Return the middle frame of the first clip of each source, one below the other, as bytes `(H, W, 3)`."""
        sources = [clip["source"] for clip in self.clips]
        first = [sources.index(source) for source in dict.fromkeys(sources)]
        return torch.cat([bytes_from_video(videos[index])[videos[index].shape[1] // 2] for index in first]).cpu()


@dataclass(frozen=True)
class Shelf:
    """Where outcomes are kept: two small files for each run."""

    folder: Path

    def path(self, name: str, seed: int) -> Path:
        """Return the file of a run, without its suffix."""
        return self.folder / f"{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}-{seed}"

    def find(self, name: str, seed: int, settings: dict[str, Any]) -> Outcome | None:
        """Return the outcome of a run, or None if it is not there yet.

        Raises:
            ValueError: If it is that of other settings.
        """
        path = self.path(name, seed).with_suffix(".json")
        if not path.exists():
            return None
        outcome = Outcome(**read_json(path))
        if outcome.settings != settings:
            raise argument_error("--runs", "a folder of runs with these settings", str(path), "Take another folder.")
        return outcome

    def add(self, name: str, seed: int, outcome: Outcome, frames: Tensor | None) -> None:
        """Keep an outcome, and the frames if there are any."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(name, seed)
        if frames is not None:
            Image.fromarray(frames.numpy()).save(path.with_suffix(".png"))
        write_json(path.with_suffix(".json"), asdict(outcome))  # last: it says that the run is finished

    def frames(self, name: str, seed: int) -> Any:
        """Return the frames of a run as a picture, or None of a run that has none."""
        path = self.path(name, seed).with_suffix(".png")
        return Image.open(path) if path.exists() else None


class Seed:
    """The runs of a seed, which share their clips and, as far as they are alike, their first part."""

    def __init__(self, seed: int, num_steps: int, changes: dict[str, Any]) -> None:
        demo = demo_config(changes)
        config = replace(demo, seed=seed, steps=num_steps, trackers=())
        starts = {name: getattr(demo.objective, name) * num_steps // demo.steps for name in STARTS}
        self.config = with_objective(config, **starts)

    def settings(self, name: str) -> TrainConfig:
        """Return the settings of a variant: the demo's, with discriminators that start after the same share of it."""
        return VARIANTS[name](self.config)

    @cached_property
    def clips(self) -> Clips:
        """What is trained on and what is held out."""
        return build_clips(self.config, build_autoencoder(self.config))

    @cached_property
    def held_out(self) -> HeldOut:
        """What is measured."""
        device = build_accelerator(self.config).device
        return HeldOut(self.clips.val, {"lpips_alex": LPIPS("alex").to(device)})

    @cached_property
    def warmed(self) -> dict[str, Any]:
        """The state of BASE when discriminators begin to train."""
        with tempfile.TemporaryDirectory() as folder:
            run = Run(self.settings(BASE), self.clips.train, Path(folder))
            run.go_on(0, self.config.objective.disc_train_start)
            return run.state()

    def outcome(self, name: str) -> tuple[Outcome, Tensor | None]:
        """Train a variant and return what came of it, with the frames that are shown of it."""
        config = self.settings(name)
        with tempfile.TemporaryDirectory() as folder:
            run = Run(config, self.clips.train, Path(folder))
            try:
                self.train(run, shares=name not in ALONE)
            except TrainingError:
                return Outcome(plain(config), {}, [DIVERGED]), None
            metrics, frames = self.held_out.measure(run.players)
            return Outcome(plain(config), metrics, sorted(run.health.spoken)), frames

    def train(self, run: Run, *, shares: bool) -> None:
        """Make all updates of a run, or take over those that it shares."""
        first = self.config.objective.disc_train_start if shares else 0
        if shares:
            run.take(self.warmed)
        run.go_on(first, self.config.steps)


def plain(config: TrainConfig) -> dict[str, Any]:
    """Return settings as JSON has them."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return settings


def collapsed(outcome: Outcome, base: Outcome) -> bool:
    """Say whether the discriminators spoiled a run, in comparison with the one without them."""
    useless = {DIVERGED, *COLLAPSE_RULES} & set(outcome.warnings)
    return bool(useless) or outcome.metrics["psnr"] < base.metrics["psnr"] - COLLAPSE


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
    """Return a variant's line: differences to the runs of the same seeds without a GAN, and how many collapsed."""
    cells = [spread(gains(name, metric, outcomes, seeds), DIGITS[metric], "+") for metric in METRICS]
    lower = sum(gain < 0 for gain in gains(name, "lpips_alex", outcomes, seeds))
    num_collapsed = sum(collapsed(outcomes[name, seed], outcomes[BASE, seed]) for seed in seeds)
    return [name, *cells, f"{lower} of {len(seeds)}", f"{num_collapsed} of {len(seeds)}"]


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
    header = ["objective", *METRICS.values(), "LPIPS-Alex lower", "collapsed"]
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
    parser.add_argument("--steps", type=int, default=240, help="updates of each run; the demo has 600")
    parser.add_argument("--frames", type=int, default=5, help="frames of a clip; the demo has 9")
    parser.add_argument("--size", type=int, default=48, help="height and width of a clip; the demo has 64")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of all seeds")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each variant")
    parser.add_argument("--gan-seeds", type=int, default=10, help="seeds with the GAN of the demo, and without one")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny networks, two seeds, two updates, to see that it runs"
    )
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.steps, arguments.seeds, arguments.gan_seeds, arguments.size = 2, 1, 2, 32
    size = {"num_frames": arguments.frames, "height": arguments.size, "width": arguments.size}
    arguments.changes = (SMOKE if arguments.smoke else {}) | {"clips": size}
    return arguments


def collect(shelf: Shelf, seeds: Mapping[int, Seed], runs: Sequence[tuple[str, int]]) -> Outcomes:
    """Return the outcome of each run, made now where it is missing."""
    outcomes: Outcomes = {}
    for name, number in runs:
        found = shelf.find(name, number, plain(seeds[number].settings(name)))
        if found is None:
            found, frames = seeds[number].outcome(name)
            shelf.add(name, number, found, frames)
            print(f"{name}, seed {number}: {found.metrics or DIVERGED}", file=sys.stderr, flush=True)
        outcomes[name, number] = found
    return outcomes


def main() -> None:
    """Make the runs that are missing, print the tables and draw the picture."""
    arguments = parse_arguments()
    numbers = range(arguments.first_seed, arguments.first_seed + max(arguments.seeds, arguments.gan_seeds))
    seeds = {number: Seed(number, arguments.steps, arguments.changes) for number in numbers}
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
    draw(points, {"input": inputs, **pictures}, arguments.output, base=BASE, apart=MSE, tolerance=TOLERANCE)


if __name__ == "__main__":
    main()
