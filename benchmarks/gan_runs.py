"""The runs of `gan.py`: trained in memory with the trainer's updates, bit for bit, and their results as files."""

from __future__ import annotations

import copy
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import set_seed
from PIL import Image
from rich.console import Console
from torch import Tensor

from telecine import runs
from telecine.base.checks import argument_error
from telecine.base.files import atomic_write, read_json, write_json
from telecine.base.yaml_files import read_yaml
from telecine.data import ClipBatchSampler, ClipLoader
from telecine.models import CausalVAE, LinearAutoencoder
from telecine.models.student import StudentAutoencoder
from telecine.settings import DistillConfig, TrainConfig
from telecine.settings.parse import find_recipe, read_config
from telecine.training.baseline import fit_linear
from telecine.training.build import build_accelerator, build_autoencoder, build_state
from telecine.training.clips import Clips, build_clips
from telecine.training.diagnostics import Diagnostics
from telecine.training.step import DivergenceError, MicroBatch, set_learning_rates, train_step

NO_GAN = "no GAN"
# Listed as the warning of a run that raised `DivergenceError`.
DIVERGED = "not_finite"
# Steps of a teacher whose decoder generates.
TEACHER_STEPS = DistillConfig.teacher_decode_steps
# Settings that have no effect before the discriminators train.
OF_THE_OBJECTIVE = (
    "adversarial_loss_weight",
    "grad_penalty_loss_weight",
    "disc_start",
    "gan",
    "penalty",
    "adaptive_weight",
)
OF_THE_OPTIMIZER = ("disc_lr", "disc_betas")
# Logged values of the time in which the adversarial terms count, and their columns.
HEALTH = {
    "grad_clipped": "clipped",
    "grad_norm": "gradient norm",
    "disc_grad_clipped": "clipped, discriminators",
    "disc_grad_norm": "gradient norm, discriminators",
    "adversarial_gradient_share": "adversarial share",
    "accuracy_real": "accuracy, real",
    "accuracy_fake": "accuracy, fake",
}


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    settings: dict[str, Any]
    """The settings of the run, as plain values."""
    metrics: dict[str, float]
    """Means over clips; empty if a loss or a gradient was not finite."""
    warnings: list[str]
    """The diagnostic rules that warned."""
    health: dict[str, float] = field(default_factory=dict)
    """Means of the values of `HEALTH`."""
    seconds: float = 0.0
    """Processor time of the training, with that of a teacher."""


Outcomes = Mapping[tuple[str, int], Outcome]


class Run:
    """The trainer's updates and its diagnostics, without checkpoints and report.

    With a `teacher`, a saved model whose decoder generates, a student learns to make the same in one step.
    """

    def __init__(
        self, config: TrainConfig, clips: Clips, folder: Path, teacher: Path | None = None
    ) -> None:
        set_seed(config.seed)
        self.config, self.clips = config, clips.train
        self.seconds = 0.0  # processor time of the updates, with those of a loaded start
        self.linear: LinearAutoencoder | None = None  # the start of a model of its own
        model = build_autoencoder(config, None if teacher is None else _student_of(teacher, config))
        if teacher is None:
            linear = fit_linear(model, clips)
            assert isinstance(model, CausalVAE)
            model.copy_linear(linear)
            self.linear = linear
        self.state = build_state(config, build_accelerator(config), model)
        files = runs.Run(folder)
        files.cut(-1)
        self.diagnostics = Diagnostics(files, config, Console(quiet=True))
        self.records: list[tuple[int, dict[str, float]]] = []

    def train_until(self, step: int) -> None:
        """Run the updates up to a step, which is excluded.

        Raises:
            DivergenceError: If a loss or a gradient is not finite.
        """
        state, config = self.state, self.config
        start = time.process_time()
        sampler = ClipBatchSampler(range(state.step, step), config.batch_size)
        for items, batch in zip(sampler, ClipLoader(self.clips, sampler), strict=True):
            set_learning_rates(state, config.optimizer, config.steps)
            video = batch["video"].to(state.accelerator.device)
            state.log_means.add(
                train_step(state, [MicroBatch(video, [index for _, index in items])])
            )
            if state.step % config.log_every == 0:
                self.records.append((state.step, state.log_means.pop()))
                self.diagnostics.check(*self.records[-1])
        self.seconds += time.process_time() - start

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
            "values": self.diagnostics.values,
            "warned": self.diagnostics.warned,
            "seconds": self.seconds,
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
        self.diagnostics.values, self.diagnostics.warned = saved["values"], saved["warned"]
        self.seconds = saved["seconds"]

    def health(self) -> dict[str, float]:
        """Return the mean of each value of `HEALTH` over the updates in which the adversarial terms count."""
        first = self.config.objective.disc_start + self.config.log_every
        records = [each for step, each in self.records if step >= first]
        found = {
            name: [each[f"train/{name}"] for each in records if f"train/{name}" in each]
            for name in HEALTH
        }
        return {name: fmean(values) for name, values in found.items() if values}


def _student_of(teacher: Path, config: TrainConfig) -> StudentAutoencoder:
    """Return the student of a saved model, as `telecine distill --student teacher` builds it."""
    loaded = CausalVAE.from_pretrained(teacher)
    loaded.set_decoding(steps=TEACHER_STEPS)
    student = StudentAutoencoder.of(
        loaded, str(teacher), CausalVAE.from_pretrained, config.causal_vae
    )
    student.imitate(loaded)
    return student


class Runs:
    """The runs of a file of settings, and their outcomes in a folder, with two small files for each.

    Args:
        path: A YAML file: for each name, changes of the demo's settings, or the name of a recipe that has them. Names
            that end with "no GAN" are the runs that those after them are compared with. `teacher` names the run whose
            averaged weights a run distils.
        folder: Where outcomes are, or will be.
        share: The share of the updates that is run, of those before the discriminators start as well.
    """

    def __init__(self, path: Path, folder: Path, share: float = 1.0) -> None:
        self.share = share
        self.settings: dict[str, dict[str, Any]] = {
            name: read_yaml(find_recipe(each)) if isinstance(each, str) else each
            for name, each in read_yaml(path).items()
        }
        self.teachers = {
            name: each.pop("teacher") for name, each in self.settings.items() if "teacher" in each
        }
        self.bases: dict[str, str] = {}
        base = ""
        for name in self.settings:
            base = name if name.endswith(NO_GAN) else base
            if not base:
                raise argument_error(
                    str(path),
                    f"runs of which the first ends with {NO_GAN!r}",
                    name,
                    "Add that run.",
                )
            self.bases[name] = base
        self.folder = folder

    def config(self, name: str, seed: int) -> TrainConfig:
        """Return the settings of a run."""
        config = read_config(read_yaml(find_recipe("demo")), self.settings[name])
        objective, gan = config.objective, config.objective.gan
        gan = replace(gan, disc_train_start=round(gan.disc_train_start * self.share))
        objective = replace(objective, disc_start=round(objective.disc_start * self.share), gan=gan)
        steps = round(config.steps * self.share)
        return replace(config, steps=steps, objective=objective, seed=seed, trackers=())

    def path(self, name: str, seed: int, suffix: str) -> Path:
        """Return the path of a file of a run."""
        return self.folder / f"{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}-{seed}{suffix}"

    def outcome(self, name: str, seed: int) -> Outcome | None:
        """Return the outcome of a run, or `None` if it is not finished.

        Raises:
            ValueError: If the outcome has other settings.
        """
        path = self.path(name, seed, ".json")
        if not path.exists():
            return None
        outcome = Outcome(**read_json(path))
        if outcome.settings != plain_values(self.config(name, seed)):
            raise argument_error(
                "--runs", "a folder of runs with these settings", str(path), "Use another folder."
            )
        return outcome

    def outcomes(self, names: Sequence[str], seeds: Sequence[int]) -> Outcomes:
        """Return the outcomes of all finished runs among these, and of those that they are compared with."""
        needed = dict.fromkeys([*names, *(self.bases[name] for name in names)])
        found = {(name, seed): self.outcome(name, seed) for name in needed for seed in seeds}
        return {key: outcome for key, outcome in found.items() if outcome is not None}

    def pictures(self, names: Sequence[str], seed: int) -> dict[str, Image.Image]:
        """Return the frames of those runs that have any, by name."""
        paths = {name: self.path(name, seed, ".png") for name in names}
        return {name: Image.open(path) for name, path in paths.items() if path.exists()}

    def train(
        self, name: str, seed: int, measure: Callable[[Run], tuple[dict[str, float], Tensor]]
    ) -> None:
        """Train a run, and write its outcome and its frames.

        Args:
            name: Of the run.
            seed: Of the weights, the clips and all sampling.
            measure: Returns metrics of the averaged weights, and frames as bytes `(H, W, 3)`.
        """
        config, base = self.config(name, seed), self.config(self.bases[name], seed)
        clips = build_clips(config, build_autoencoder(config))
        outcome, frames = Outcome(plain_values(config), {}, [DIVERGED]), None
        teacher = self.path(self.teachers[name], seed, "") if name in self.teachers else None
        with tempfile.TemporaryDirectory() as folder:
            run = Run(config, clips, Path(folder), teacher)
            try:
                if shares_start(config, base):
                    run.load(self._start(self.bases[name], seed, clips))
                run.train_until(config.steps)
            except DivergenceError as error:
                print(error, file=sys.stderr)
            else:
                metrics, frames = measure(run)
                if name in self.teachers.values():
                    with run.state.ema.applied():
                        run.state.autoencoder.save_pretrained(self.path(name, seed, ""))
                of_teacher = (
                    self.outcome(self.teachers[name], seed) if name in self.teachers else None
                )
                seconds = run.seconds + (of_teacher.seconds if of_teacher is not None else 0.0)
                warnings = sorted(run.diagnostics.warned)
                outcome = replace(
                    outcome,
                    metrics=metrics,
                    warnings=warnings,
                    health=run.health(),
                    seconds=round(seconds, 1),
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        if frames is not None:
            Image.fromarray(frames.numpy()).save(self.path(name, seed, ".png"))
        write_json(
            self.path(name, seed, ".json"), asdict(outcome)
        )  # last: it marks the run as finished
        print(f"{name}, seed {seed}: {outcome.metrics or DIVERGED}", file=sys.stderr, flush=True)

    def _start(self, name: str, seed: int, clips: Clips) -> dict[str, Any]:
        """Return the state of a run without a GAN at the step from which the discriminators of others train.

        It is read from a file if one has it.
        """
        config, path = self.config(name, seed), self.path(f"start of {name}", seed, ".pt")
        settings = plain_values(config)
        if path.exists():
            saved: dict[str, Any] = torch.load(path, weights_only=False)
            if saved["settings"] == settings:
                return saved
        with tempfile.TemporaryDirectory() as folder:
            run = Run(config, clips, Path(folder))
            run.train_until(config.objective.gan.disc_train_start)
            saved = {**run.save(), "settings": settings}
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda partial: torch.save(saved, partial))
        return saved


def shares_start(config: TrainConfig, base: TrainConfig) -> bool:
    """Return whether a run trains as its base does until the base's discriminators would start."""
    first = base.objective.gan.disc_train_start
    if min(config.objective.gan.disc_train_start, config.objective.disc_start) < first:
        return False
    ours, others = (plain_values(each) for each in (config, base))
    for each in (ours, others):
        del each["discriminator"]
        for name in OF_THE_OBJECTIVE:
            del each["objective"][name]
        for name in OF_THE_OPTIMIZER:
            del each["optimizer"][name]
    return bool(ours == others)


def plain_values(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as they are after a round trip through JSON."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return settings
