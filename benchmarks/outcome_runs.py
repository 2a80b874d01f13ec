"""Runs of `outcome.py`: in memory, equal to the trainer's bit for bit, and what they came to, in files."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import set_seed
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from telecine.checks import argument_error
from telecine.data import Clip, ClipDataset, bytes_from_video, clip_loader
from telecine.evaluation import ReconstructionMetrics
from telecine.files import read_json, write_json
from telecine.perceptual import LPIPS
from telecine.training import TrainConfig, TrainingError
from telecine.training.build import Clips, build_accelerator, build_autoencoder, build_clips, build_state
from telecine.training.diagnostics import Diagnostics
from telecine.training.state import TrainState
from telecine.training.step import MicroBatch
from training import demo_config, train

BUILT_IN = ("psnr", "ssim", "flicker", "sharpness")
STARTS = ("disc_train_start", "disc_start")
# What stands among the warnings of a run that raised.
DIVERGED = "not_finite"

Variant = Callable[[TrainConfig], TrainConfig]


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    settings: dict[str, Any]
    """Of the run."""
    metrics: dict[str, float]
    """Means over the held-out clips; none of a run that was not finite."""
    warnings: list[str]
    """The rules that warned."""


class Run:
    """The trainer's updates and its diagnostic rules, without its checkpoints and its report."""

    def __init__(self, config: TrainConfig, clips: ClipDataset, folder: Path) -> None:
        set_seed(config.seed)
        self.config, self.clips = config, clips
        self.train_state = build_state(config, build_accelerator(config), build_autoencoder(config))
        self.diagnostics = Diagnostics(folder, config, Console(quiet=True), step=-1, enabled=True)
        self.logs: list[dict[str, float]] = []

    def go_on(self, first: int, last: int) -> None:
        """Make the updates from one step to another, which is not included.

        Raises:
            TrainingError: If a loss or a gradient is not finite.
        """
        loader = clip_loader(self.clips, batch_size=self.config.batch_size, start_step=first, num_steps=last)
        for step, (items, batch) in enumerate(zip(loader.plan, loader, strict=True), first):
            video = batch["video"].to(self.train_state.accelerator.device)
            self.logs.append(
                train(self.train_state, MicroBatch(video, [index for _, index in items]), self.config, step)
            )
            if (step + 1) % self.config.log_every == 0:
                self.diagnostics.check(step + 1, means(self.logs[-self.config.log_every :]))

    def state(self) -> dict[str, Any]:
        """Return a copy of the autoencoder, its optimizer, its moving average and the state of the diagnostics."""
        model, optimizer, ema = self.train_state.autoencoder, self.train_state.optimizer, self.train_state.ema
        state = {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "averages": ema.averages}
        seen = {"history": self.diagnostics.history, "spoken": self.diagnostics.warned}
        return copy.deepcopy(state | {"num_updates": ema.num_updates} | seen)

    @torch.no_grad()
    def take(self, state: dict[str, Any]) -> None:
        """Go on from a state of another run; the discriminators stay."""
        state, train_state = copy.deepcopy(state), self.train_state
        train_state.autoencoder.load_state_dict(state["weights"])
        train_state.optimizer.load_state_dict(state["optimizer"])
        for name, average in train_state.ema.averages.items():
            average.copy_(state["averages"][name])
        train_state.ema.num_updates = state["num_updates"]
        self.diagnostics.history, self.diagnostics.warned = state["history"], state["spoken"]


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
    def measure(self, state: TrainState) -> tuple[dict[str, float], Tensor]:
        """Return the metrics of the averaged weights, and the frames that are shown of them."""
        metrics = ReconstructionMetrics(self.perceptual, metrics=BUILT_IN)
        model, reconstructions = state.autoencoder.eval(), []
        with state.ema.applied():
            for clip in self.clips:
                target = clip["video"][None].to(state.accelerator.device)
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
    """The runs of a seed, which share their clips and, as far as they are alike, their first part.

    Args:
        seed: Of the weights, of the clips and of all sampling.
        num_steps: Updates of each run; the demo's discriminators start after the same share of them.
        changes: Other settings that differ from the demo's, by group.
        base: What is changed for the runs whose first part is shared.
    """

    def __init__(self, seed: int, num_steps: int, changes: dict[str, Any], base: Variant) -> None:
        demo = demo_config(changes)
        starts = {name: getattr(demo.objective, name) * num_steps // demo.steps for name in STARTS}
        objective = replace(demo.objective, **starts)
        self.config = replace(demo, seed=seed, steps=num_steps, trackers=(), objective=objective)
        self.base = base

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
    def shared(self) -> dict[str, Any]:
        """The state of the base when discriminators begin to train."""
        with tempfile.TemporaryDirectory() as folder:
            run = Run(self.base(self.config), self.clips.train, Path(folder))
            run.go_on(0, self.config.objective.disc_train_start)
            return run.state()

    def outcome(self, variant: Variant, *, shares: bool) -> tuple[Outcome, Tensor | None]:
        """Train a variant and return what came of it, with the frames that are shown of it.

        Args:
            variant: What is changed.
            shares: Whether it trains as the base does until the discriminators begin to.
        """
        config = variant(self.config)
        with tempfile.TemporaryDirectory() as folder:
            run = Run(config, self.clips.train, Path(folder))
            try:
                if shares:
                    run.take(self.shared)
                run.go_on(self.config.objective.disc_train_start if shares else 0, config.steps)
            except TrainingError:
                return Outcome(plain(config), {}, [DIVERGED]), None
            metrics, frames = self.held_out.measure(run.train_state)
            return Outcome(plain(config), metrics, sorted(run.diagnostics.warned)), frames


def plain(config: TrainConfig) -> dict[str, Any]:
    """Return settings as JSON has them."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return settings
