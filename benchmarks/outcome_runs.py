"""The runs of `outcome.py`: trained in memory with the trainer's updates, bit for bit, and their results as files."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from telecine.autoencoders import CausalVAE
from telecine.base.checks import argument_error
from telecine.base.files import read_json, write_json
from telecine.data import Clip, bytes_from_video, clip_loader
from telecine.evaluation import ReconstructionMetrics
from telecine.perceptual import LPIPS
from telecine.settings import TrainConfig
from telecine.training import TrainingError
from telecine.training.baseline import NUM_CLIPS, fit_linear
from telecine.training.build import Clips, build_accelerator, build_autoencoder, build_clips, build_state
from telecine.training.diagnostics import Diagnostics
from telecine.training.records import keep_records
from telecine.training.state import TrainState
from telecine.training.step import MicroBatch, set_learning_rates, train_step
from training import demo_config

BUILT_IN = ("psnr", "ssim", "flicker", "sharpness")
# Listed as the warning of a run that raised `TrainingError`.
DIVERGED = "not_finite"

Variant = Callable[[TrainConfig], TrainConfig]


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    settings: dict[str, Any]
    """The settings of the run, as plain values."""
    metrics: dict[str, float]
    """Means over the held-out clips; empty if a loss or a gradient was not finite."""
    warnings: list[str]
    """The diagnostic rules that warned."""
    health: dict[str, float] = field(default_factory=dict)
    """Means of logged values about the discriminators, where they were asked for."""


class Run:
    """The trainer's updates and its diagnostics, without checkpoints and report."""

    def __init__(self, config: TrainConfig, clips: Clips, folder: Path) -> None:
        set_seed(config.seed)
        self.config, self.clips = config, clips.train
        model = build_autoencoder(config)
        linear = fit_linear(model, clips, NUM_CLIPS)
        assert isinstance(model, CausalVAE)
        assert linear is not None
        model.start_from(linear)
        self.state = build_state(config, build_accelerator(config), model)
        keep_records(folder, step=-1)
        self.diagnostics = Diagnostics(folder, config, Console(quiet=True), enabled=True)
        self.records: list[tuple[int, dict[str, float]]] = []

    def train_until(self, step: int) -> None:
        """Run the updates up to a step, which is excluded.

        Raises:
            TrainingError: If a loss or a gradient is not finite.
        """
        state, config = self.state, self.config
        loader = clip_loader(self.clips, batch_size=config.batch_size, start_step=state.step, num_steps=step)
        for items, batch in zip(loader.sampler, loader, strict=True):
            set_learning_rates(state, config.optimizer, config.steps)
            video = batch["video"].to(state.accelerator.device)
            state.log_means.add(train_step(state, [MicroBatch(video, [index for _, index in items])]))
            if state.step % config.log_every == 0:
                self.records.append((state.step, state.log_means.pop()))
                self.diagnostics.check(*self.records[-1])

    def save(self) -> dict[str, Any]:
        """Return a copy of the state of everything but the discriminators."""
        state = self.state
        saved = {
            "autoencoder": state.autoencoder.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "averages": state.ema.averages,
            "num_averaged": state.ema.num_updates,
            "step": state.step,
            "log_means": state.log_means,
            "history": self.diagnostics.history,
            "warned": self.diagnostics.warned,
        }
        return copy.deepcopy(saved)

    @torch.no_grad()
    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from the saved state of another run. The discriminators do not change."""
        saved, state = copy.deepcopy(saved), self.state
        state.autoencoder.load_state_dict(saved["autoencoder"])
        state.optimizer.load_state_dict(saved["optimizer"])
        for name, average in state.ema.averages.items():
            average.copy_(saved["averages"][name])
        state.ema.num_updates = saved["num_averaged"]
        state.step, state.log_means = saved["step"], saved["log_means"]
        self.diagnostics.history, self.diagnostics.warned = saved["history"], saved["warned"]


@dataclass(frozen=True)
class HeldOut:
    """The held-out clips, and the perceptual distances to measure."""

    clips: list[Clip]
    perceptual: dict[str, nn.Module]

    @torch.no_grad()
    def measure(self, state: TrainState) -> tuple[dict[str, float], Tensor]:
        """Return the metrics of the averaged weights, and the frames of `preview`."""
        metrics = ReconstructionMetrics(self.perceptual, metrics=BUILT_IN)
        model, reconstructions = state.autoencoder.eval(), []
        with state.ema.applied():
            for clip in self.clips:
                target = clip["video"][None].to(state.accelerator.device)
                reconstructions.append(model(target, sample_posterior=False).video)
                metrics.update(reconstruction=reconstructions[-1], target=target)
        return metrics.compute(), self.preview([video[0] for video in reconstructions])

    def preview(self, videos: Sequence[Tensor]) -> Tensor:
        """Return the middle frames of the first clip of each source in a column, as bytes `(H, W, 3)`."""
        sources = [clip["source"] for clip in self.clips]
        first = [sources.index(source) for source in dict.fromkeys(sources)]
        return torch.cat([bytes_from_video(videos[index])[videos[index].shape[1] // 2] for index in first]).cpu()


@dataclass(frozen=True)
class OutcomeFolder:
    """Outcomes in a folder, with two small files for each run."""

    folder: Path

    def path(self, name: str, seed: int) -> Path:
        """Return the path of a run's files without suffix."""
        return self.folder / f"{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}-{seed}"

    def load(self, name: str, seed: int, settings: dict[str, Any]) -> Outcome | None:
        """Return the outcome of a run, or `None` if there is none.

        Raises:
            ValueError: If the outcome has other settings.
        """
        path = self.path(name, seed).with_suffix(".json")
        if not path.exists():
            return None
        outcome = Outcome(**read_json(path))
        if outcome.settings != settings:
            raise argument_error("--runs", "a folder of runs with these settings", str(path), "Use another folder.")
        return outcome

    def save(self, name: str, seed: int, outcome: Outcome, frames: Tensor | None) -> None:
        """Write an outcome, and its frames if there are any."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(name, seed)
        if frames is not None:
            Image.fromarray(frames.numpy()).save(path.with_suffix(".png"))
        write_json(path.with_suffix(".json"), asdict(outcome))  # last: it marks the run as finished

    def load_frames(self, name: str, seed: int) -> Image.Image | None:
        """Return the frames of a run, or `None` if there are none."""
        path = self.path(name, seed).with_suffix(".png")
        return Image.open(path) if path.exists() else None

    def all_frames(self, names: Sequence[str], seed: int) -> dict[str, Image.Image]:
        """Return the frames of those runs that have any, by name."""
        found = {name: self.load_frames(name, seed) for name in names}
        return {name: frames for name, frames in found.items() if frames is not None}


class SeedRuns:
    """The runs with one seed. They share their clips, and those that start alike share that part.

    Args:
        seed: Seed of the weights, the clips and all sampling.
        num_steps: Number of updates of each run. The discriminators start after the same fraction of them as in the
            demo.
        changes: Other differences to the demo's settings, those of a group as a dict.
        base: The variant that the shared part is trained with.
    """

    def __init__(self, seed: int, num_steps: int, changes: Mapping[str, Any], base: Variant) -> None:
        demo = demo_config(changes)
        objective = replace(
            demo.objective,
            disc_start=demo.objective.disc_start * num_steps // demo.steps,
            gan=replace(
                demo.objective.gan, disc_train_start=demo.objective.gan.disc_train_start * num_steps // demo.steps
            ),
        )
        self.config = replace(demo, seed=seed, steps=num_steps, trackers=(), objective=objective)
        self.base = base

    @cached_property
    def clips(self) -> Clips:
        """The training clips and the held-out clips."""
        return build_clips(self.config, build_autoencoder(self.config))

    @cached_property
    def held_out(self) -> HeldOut:
        """The held-out clips and LPIPS of AlexNet."""
        device = build_accelerator(self.config).device
        return HeldOut(self.clips.val, {"lpips_alex": LPIPS("alex").to(device)})

    @cached_property
    def shared_start(self) -> dict[str, Any]:
        """The state of the base at the step at which the discriminators start to train."""
        with tempfile.TemporaryDirectory() as folder:
            run = Run(self.base(self.config), self.clips, Path(folder))
            run.train_until(self.config.objective.gan.disc_train_start)
            return run.save()

    def train(self, variant: Variant, *, share_start: bool) -> tuple[Outcome, Tensor | None]:
        """Train a variant, and return its outcome and its frames.

        Args:
            variant: Changes the settings.
            share_start: Whether the variant trains as the base does until the discriminators start to train.
        """
        config = variant(self.config)
        with tempfile.TemporaryDirectory() as folder:
            run = Run(config, self.clips, Path(folder))
            try:
                if share_start:
                    run.load(self.shared_start)
                run.train_until(config.steps)
            except TrainingError:
                return Outcome(plain_values(config), {}, [DIVERGED]), None
            metrics, frames = self.held_out.measure(run.state)
            return Outcome(plain_values(config), metrics, sorted(run.diagnostics.warned)), frames


def plain_values(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as they are after a round trip through JSON."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return settings
