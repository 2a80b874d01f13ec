"""The training run: validate, update, record, save, until the last step or until asked to stop."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor, nn

from telecine.autoencoders.pretrained import load_weights
from telecine.data import clip_loader
from telecine.files import read_json
from telecine.perceptual import LPIPS
from telecine.report.curves import draw_curves
from telecine.report.video import write_mp4
from telecine.runs import CONFIG_FILE, CURVES_FILE, METRICS_FILE, STATE_FILE, VIDEO_FILE, checkpoint_folder, checkpoints
from telecine.shapes import argument_error, describe
from telecine.training.build import Clips, build_accelerator, build_clips, build_players
from telecine.training.checkpoint import (
    load_optimizer,
    load_tensors,
    random_state,
    save_optimizer,
    save_tensors,
    set_random_state,
    write_checkpoint,
)
from telecine.training.config import TrainConfig, weight_ramps
from telecine.training.console import Monitor
from telecine.training.interrupt import Interrupted, StopRequest, stop_on_signal
from telecine.training.journal import Journal, read_records, validations
from telecine.training.schedule import lr_scale, set_lr
from telecine.training.step import update
from telecine.training.validation import validate

# Folder of a run in which its trackers keep what they need.
TRACKER_PROJECT = "tensorboard"
# The weights that decide which discriminators there are, and whether averages of their logits are kept.
DECIDING_WEIGHTS = ("adversarial_loss_weight", "multiscale_adversarial_loss_weight", "lecam_loss_weight")
# A clip of a third of a second is a flash; it is repeated.
MIN_SECONDS = 4.0


@dataclass(frozen=True)
class TrainResult:
    """Where a run is and what it reached."""

    run: Path
    """The run's folder."""
    checkpoint: Path
    """The last checkpoint."""
    first: dict[str, float]
    """Metrics of the first validation, before training."""
    last: dict[str, float]
    """Metrics of the last validation."""

    def files(self) -> dict[str, Path]:
        """Return the files worth looking at, by what they show."""
        return {
            "side by side": self.run / VIDEO_FILE,
            "curves": self.run / CURVES_FILE,
            "figures": self.run / METRICS_FILE,
            "settings": self.run / CONFIG_FILE,
            "checkpoint": self.checkpoint,
        }


def train(config: TrainConfig, *, console: Console | None = None) -> TrainResult:
    """Train an autoencoder as `config` says; where the run's folder holds a checkpoint, go on from there.

    Args:
        config: The settings; they are written to the run's folder.
        console: Where progress is shown; standard output by default.

    Returns:
        The run's folder and its first and last validation.

    Raises:
        ValueError: If a setting, the data or the checkpoint does not fit.
        TrainingError: If the data, a term of the loss or a gradient stops being finite.
        Interrupted: If the run was asked to stop; the checkpoint is written then.
    """
    trainer = Trainer(config, console or Console(markup=False, highlight=False))
    with stop_on_signal() as stop:
        trainer.run(stop)
    return trainer.result()


class Trainer:
    """A run and its state: players, clips, journal, and the number of updates done."""

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.config = config
        self.console = console
        self.folder = Path(config.run)
        self.done = 0
        self.saved: int | None = None
        found = checkpoints(self.folder)
        if found:
            check_same_networks(config, found[-1][1])
        set_seed(config.seed)
        accelerator = build_accelerator(config)
        console.print(f"computing on {accelerator.device}, mixed precision: {config.mixed_precision}")
        self.players = build_players(config, accelerator)
        self.clips = build_clips(config)
        self.perceptual: dict[str, nn.Module] = {"lpips_alex": LPIPS("alex").to(accelerator.device)}
        self._describe()
        if found:
            self._load(*found[-1])
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / CONFIG_FILE).write_text(as_yaml(config), encoding="utf-8")
        # TensorBoard forgets what a run that was cut off had shown after its last checkpoint.
        purge = {"tensorboard": {"purge_step": self.done + 1}} if found else {}
        accelerator.init_trackers(TRACKER_PROJECT, init_kwargs=purge)
        self.journal = Journal(self.folder, accelerator, step=self.done if found else -1)

    def run(self, stop: StopRequest) -> None:
        """Train from the last checkpoint to the last step.

        Raises:
            Interrupted: If asked to stop.
        """
        if self.done >= self.config.steps:
            self.console.print(f"already trained for {self.done} steps; a larger --steps goes on")
            return
        if self.done == 0:
            self._validate()
        loader = clip_loader(
            self.clips.train,
            batch_size=self.config.batch_size,
            start_step=self.done,
            num_steps=self.config.steps,
        )
        monitor = Monitor(self.console, num_steps=self.config.steps, start=self.done, batch_size=self.config.batch_size)
        try:
            with monitor:
                for batch in loader:
                    self._step(batch["video"].to(self.players.accelerator.device, non_blocking=True), monitor)
                    if stop.is_set and self.done < self.config.steps:
                        raise Interrupted(self._save())
        finally:
            self.players.accelerator.end_training()  # what the trackers still hold is written

    def result(self) -> TrainResult:
        """Return where the run is and what it reached."""
        records = validations(read_records(self.folder / METRICS_FILE))
        if not records:
            remedy = "Give the run another folder, or a larger --steps."
            raise argument_error(str(self.folder / METRICS_FILE), "a file with a validation", "none", remedy)
        first, last = ({name[4:]: value for name, value in r.items() if "/" in name} for r in (records[0], records[-1]))
        return TrainResult(self.folder, checkpoints(self.folder)[-1][1], first, last)

    def _step(self, video: Any, monitor: Monitor) -> None:
        settings = self.config.optimizer
        scale = lr_scale(settings, self.done, self.config.steps)
        set_lr(self.players.optimizer, settings.lr * scale)
        if self.players.disc_optimizer is not None:
            set_lr(self.players.disc_optimizer, settings.disc_lr * scale)
        values = update(self.players, video, self.done)
        self.done += 1
        self.journal.collect(values)
        monitor.show(self.done, values)
        if self._due(self.config.log_every):
            self.journal.write_means(
                self.done, **{"train/lr": settings.lr * scale, "train/clips_per_second": monitor.clips_per_second}
            )
        if self._due(self.config.val_every):
            self._validate()
        if self._due(self.config.save_every):
            self._save()
        monitor.rest()

    def _due(self, every: int) -> bool:
        return self.done % every == 0 or self.done == self.config.steps

    def _validate(self) -> None:
        result = validate(self.players.averaged, self.clips.val, self.perceptual)
        self.journal.write(self.done, {f"val/{name}": value for name, value in result.metrics.items()})
        self.journal.preview(self.done, result.picture, self.clips.fps)
        write_mp4(self.folder / VIDEO_FILE, looped(result.picture, self.clips.fps), self.clips.fps)
        draw_curves(read_records(self.folder / METRICS_FILE), self.folder / CURVES_FILE)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
        self.console.print(f"step {self.done}: held-out {numbers}")

    def _save(self) -> Path:
        """Write the checkpoint of this step, unless it has been written already, and return its folder."""
        folder = checkpoint_folder(self.folder, self.done)
        if self.saved != self.done:
            write_checkpoint(self.folder, self.done, self._write, keep=self.config.keep)
            self.saved = self.done
        return folder

    def _write(self, folder: Path) -> None:
        players = self.players
        players.autoencoder.save_pretrained(folder / "model")
        players.averaged.save_pretrained(folder / "ema")
        save_tensors(folder / "objective.safetensors", players.loss.state_dict())
        save_tensors(folder / "random.safetensors", random_state())
        for name, optimizer in self._optimizers().items():
            save_optimizer(optimizer, folder / f"{name}.safetensors")
        (folder / CONFIG_FILE).write_text(as_yaml(self.config), encoding="utf-8")
        scaler = players.accelerator.scaler
        state = {
            "step": self.done,
            "ema_updates": int(players.ema.n_averaged),
            "scaler": scaler.state_dict() if scaler else None,
        }
        (folder / STATE_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")

    def _load(self, step: int, folder: Path) -> None:
        players = self.players
        load_weights(players.autoencoder, folder / "model")
        load_weights(players.averaged, folder / "ema")
        players.loss.load_state_dict(load_tensors(folder / "objective.safetensors"))
        for name, optimizer in self._optimizers().items():
            load_optimizer(optimizer, folder / f"{name}.safetensors")
        state = read_json(folder / STATE_FILE)
        players.ema.n_averaged.fill_(state["ema_updates"])
        if players.accelerator.scaler and state["scaler"]:
            players.accelerator.scaler.load_state_dict(state["scaler"])
        set_random_state(load_tensors(folder / "random.safetensors"))
        self.done = self.saved = step
        self.console.print(f"going on from {folder}", soft_wrap=True)

    def _optimizers(self) -> dict[str, Any]:
        optimizers = {"optimizer": self.players.optimizer, "disc_optimizer": self.players.disc_optimizer}
        return {name: optimizer for name, optimizer in optimizers.items() if optimizer is not None}

    def _describe(self) -> None:
        """Say what is trained on what."""
        model = sum(weight.numel() for weight in self.players.model.parameters())
        judges = sum(weight.numel() for weight in self.players.loss.get_trainable_parameters())
        clips: Clips = self.clips
        skipped = f", {clips.num_skipped} skipped" if clips.num_skipped else ""
        self.console.print(
            f"{model / 1e6:.2f} M parameters, {judges / 1e6:.2f} M in discriminators; "
            f"{clips.num_videos} videos{skipped}, {len(clips.val)} held-out clips"
        )


def looped(frames: Tensor, fps: float) -> Tensor:
    """Repeat a short clip until it is long enough to be watched."""
    return frames.repeat(max(1, math.ceil(MIN_SECONDS * fps / len(frames))), 1, 1, 1)


def as_yaml(config: TrainConfig) -> str:
    """Return the settings as YAML that `--config` reads."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False)


def check_same_networks(config: TrainConfig, folder: Path) -> None:
    """Raise a `ValueError` that names the first setting in which the networks differ from a checkpoint's."""
    saved = network_settings(yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    for name, value in network_settings(yaml.safe_load(as_yaml(config))).items():
        if saved.get(name) != value:
            remedy = "Give the run another folder with --run, or go back to the old setting."
            raise argument_error(name, f"{saved.get(name)!r} as in {folder}", describe(value), remedy)


def network_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide which weights there are, of what shape, by their dotted names."""
    networks = {
        f"{group}.{name}": value for group in ("model", "discriminator") for name, value in settings[group].items()
    }
    # The discriminators' linear heads are built for the clips, and only those with a weight are built at all.
    clips = {f"clips.{name}": settings["clips"][name] for name in ("num_frames", "height", "width")}
    objective = settings["objective"]
    ramps = weight_ramps(objective)
    judged = {f"objective.{name} > 0": name in ramps and ramps[name].is_ever_on for name in DECIDING_WEIGHTS}
    kept = {
        "objective.learn_logvar": objective.get("learn_logvar", False),
        "objective.adaptive_weight_decay > 0": objective.get("adaptive_weight_decay", 0.0) > 0,
    }
    return networks | clips | judged | kept
