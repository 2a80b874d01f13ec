"""The training run: validate, update, record, save, until the last step or until asked to stop."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import broadcast_object_list, set_seed
from rich.console import Console
from torch import Tensor, nn

from telecine.data import clip_loader
from telecine.evaluation.metrics import mean_over_clips
from telecine.files import read_json
from telecine.perceptual import LPIPS
from telecine.report.clips import write_clips
from telecine.report.curves import draw_curves
from telecine.report.environment import write_environment
from telecine.report.page import write_report
from telecine.report.records import read_records, validations
from telecine.report.settings import flat_settings, read_settings, side_by_side_settings
from telecine.report.video import write_mp4
from telecine.runs import (
    CONFIG_FILE,
    CURVES_FILE,
    METRICS_FILE,
    REPORT_FILE,
    STATE_FILE,
    VIDEO_FILE,
    checkpoint_folder,
    checkpoints,
)
from telecine.shapes import argument_error, describe
from telecine.training.build import Clips, build_accelerator, build_autoencoder, build_clips, build_players
from telecine.training.checkpoint import (
    check_whole,
    load_optimizer,
    load_tensors,
    optimizer_tensors,
    random_states,
    save_tensors,
    set_random_state,
    write_checkpoint,
)
from telecine.training.config import TrainConfig, weight_ramps
from telecine.training.console import Monitor
from telecine.training.health import EMA_BEHIND, Health
from telecine.training.hub import create_repository, upload
from telecine.training.interrupt import Interrupted, StopRequest, stop_on_signal
from telecine.training.journal import Journal, best_validation
from telecine.training.ranks import any_rank, is_left_alone
from telecine.training.schedule import lr_scale, set_lr
from telecine.training.step import MicroBatch, update
from telecine.training.validation import Validation, validate
from telecine.training.weight_files import WeightFiles, check_same_architecture

# Folder of a run in which its trackers keep what they need.
TRACKER_PROJECT = "tensorboard"
# The weights that decide which discriminators there are, and whether averages of their logits are kept.
DECIDING_WEIGHTS = ("adversarial_loss_weight", "multiscale_adversarial_loss_weight", "lecam_loss_weight")
# Clips on which the raw weights are compared with the averaged ones at each validation.
NUM_COMPARED = 4
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
            "report": self.run / REPORT_FILE,
            "side by side": self.run / VIDEO_FILE,
            "curves": self.run / CURVES_FILE,
            "figures": self.run / METRICS_FILE,
            "settings": self.run / CONFIG_FILE,
            "checkpoint": self.checkpoint,
        }


def train(config: TrainConfig, *, autoencoder: nn.Module | None = None, console: Console | None = None) -> TrainResult:
    """Train an autoencoder as `config` says; where the run's folder holds a checkpoint, go on from there.

    Launched in several processes, as by `torchrun`, every one of them calls this and gets the result.

    Args:
        config: The settings; they are written to the run's folder.
        autoencoder: A module of your own to train in place of what `config.model` names; see `as_video_autoencoder`.
        console: Where progress is shown; standard output by default. Only the first process shows any.

    Returns:
        The run's folder and its first and last validation.

    Raises:
        ValueError: If a setting, the data or the checkpoint does not fit.
        TypeError: If a module of your own returns something else than video.
        TrainingError: If the data, a term of the loss or a gradient stops being finite.
        Interrupted: If the run was asked to stop; the checkpoint is written then.
    """
    trainer = Trainer(config, console or Console(markup=False, highlight=False), autoencoder)
    try:
        with stop_on_signal() as stop:
            trainer.run(stop)
        return trainer.result()
    finally:
        trainer.close()


class Trainer:
    """A run and its state: players, clips, journal, and the number of updates done."""

    def __init__(self, config: TrainConfig, console: Console, autoencoder: nn.Module | None = None) -> None:
        self.config = config
        self.folder = Path(config.output_dir)
        self.done = 0
        self.saved: int | None = None
        found = checkpoints(self.folder)
        if found:
            check_whole(found[-1][1])
            check_same_networks(config, found[-1][1])
        set_seed(config.seed)
        self.accelerator = build_accelerator(config)
        self.console = console if self.accelerator.is_main_process else Console(quiet=True)
        self._say_where()
        uploads = config.push_to_hub and self.accelerator.is_main_process
        self.hub_repository = create_repository(config) if uploads else None
        model = build_autoencoder(config, autoencoder)
        with self.accelerator.main_process_first():  # which indexes the videos; the others read its index
            self.clips = build_clips(config, model)
        self.weights = WeightFiles(model, is_sharded=config.sharding != "none")
        self.players = build_players(config, self.accelerator, model)
        self.perceptual: dict[str, nn.Module] = {"lpips_alex": LPIPS("alex").to(self.accelerator.device)}
        self._describe()
        interval = self._load(*found[-1]) if found else {}
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.done < config.steps:  # else nothing is trained with these settings
                (self.folder / CONFIG_FILE).write_text(as_yaml(config), encoding="utf-8")
            write_environment(self.folder, self.accelerator.device)
        # TensorBoard forgets what a run that was cut off had shown after its last checkpoint.
        purge = {"tensorboard": {"purge_step": self.done + 1}} if found else {}
        self.accelerator.init_trackers(TRACKER_PROJECT, init_kwargs=purge)
        step = self.done if found else -1
        is_first = self.accelerator.is_main_process
        self.journal = Journal(self.folder, self.accelerator, step=step, interval=interval)
        self.health = Health(self.folder, config, self.console, step=step, writes=is_first)

    @property
    def clips_per_step(self) -> int:
        """Clips of an update, over all processes."""
        return self.config.batch_size * self.config.gradient_accumulation_steps * self.accelerator.num_processes

    def run(self, stop: StopRequest) -> None:
        """Train from the last checkpoint to the last step, then write the report and upload what was asked for.

        Raises:
            Interrupted: If asked to stop.
        """
        if self.done < self.config.steps:
            self._train(stop)
        else:
            self.console.print(f"already trained for {self.done} steps; a larger --steps goes on")
        self._publish()

    def _train(self, stop: StopRequest) -> None:
        if self.done == 0:
            self._validate()
        monitor = Monitor(self.console, num_steps=self.config.steps, start=self.done, batch_size=self.clips_per_step)
        with monitor:
            for batches in self._steps():
                self._step(batches, monitor)
                if any_rank(stop.is_set, self.accelerator.device) and self.done < self.config.steps:
                    raise Interrupted(self._save())

    def _publish(self) -> None:
        """Write the report and upload the weights; a run that had failed at that does it when it is called again."""
        if self.accelerator.is_main_process:
            write_report([self.folder])
        if self.hub_repository is not None:
            last = self._read_result()
            upload(self.hub_repository, last.checkpoint, self.config, last.last, steps=self.done)

    def result(self) -> TrainResult:
        """Return where the run is and what it reached; every process has to call this."""
        results = [self._read_result() if self.accelerator.is_main_process else None]
        (result,) = broadcast_object_list(results)
        assert result is not None
        return result

    def close(self) -> None:
        """Write what the trackers still hold, and let go of the networks, then of the other processes.

        Gloo's threads may outlive the interpreter's teardown where the wrapper of a model does.
        """
        del self.players
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()

    def _steps(self) -> Iterator[list[MicroBatch]]:
        """Yield the micro-batches of each step that is left, on this process' device."""
        loader = clip_loader(
            self.clips.train,
            batch_size=self.config.batch_size,
            start_step=self.done,
            num_steps=self.config.steps,
            rank=self.accelerator.process_index,
            num_ranks=self.accelerator.num_processes,
            num_micro_batches=self.config.gradient_accumulation_steps,
        )
        batches: list[MicroBatch] = []
        for items, batch in zip(loader.sampler, loader, strict=True):
            video = batch["video"].to(self.accelerator.device, non_blocking=True)
            batches.append(MicroBatch(video, [index for _, index in items]))
            if len(batches) == self.config.gradient_accumulation_steps:
                yield batches
                batches = []

    def _step(self, batches: list[MicroBatch], monitor: Monitor) -> None:
        settings = self.config.optimizer
        scale = lr_scale(settings, self.done, self.config.steps)
        set_lr(self.players.optimizer, settings.lr * scale)
        if self.players.disc_optimizer is not None:
            set_lr(self.players.disc_optimizer, settings.disc_lr * scale)
        values = update(self.players, batches, self.done, measures_update=self._due(self.config.log_every, 1))
        self.done += 1
        self.journal.collect(values)
        monitor.show(self.done, values)
        if self._due(self.config.log_every):
            speed = {"train/lr": settings.lr * scale, "train/clips_per_second": monitor.clips_per_second}
            self.health.look(self.done, self.journal.write_means(self.done, **speed))
        if self._due(self.config.val_every):
            self._validate()
        if self._due(self.config.save_every):
            self._save()
        monitor.rest()

    def _due(self, every: int, ahead: int = 0) -> bool:
        done = self.done + ahead
        return done % every == 0 or done == self.config.steps

    def _validate(self) -> None:
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        with self.players.ema.applied():
            result = validate(self.players.autoencoder, self.clips.val, self.perceptual, rank=rank, num_ranks=num_ranks)
        gap = self._raw_gain(result)
        if self.accelerator.is_main_process:
            self._record(result, gap)
        is_best = self.accelerator.is_main_process and self.done > 0 and self._best_step() == self.done
        if any_rank(is_best, self.accelerator.device):
            self._save()

    def _raw_gain(self, averaged: Validation) -> dict[str, float]:
        """Return by how much a few clips are better without the moving average, once there is one."""
        if self.done == 0:
            return {}
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        few = self.clips.val[:NUM_COMPARED]
        raw = validate(self.players.autoencoder, few, {}, rank=rank, num_ranks=num_ranks).metrics["psnr"]
        return {EMA_BEHIND: raw - mean_over_clips(averaged.per_clip[: len(few)])["psnr"]}

    def _record(self, result: Validation, gap: dict[str, float]) -> None:
        self.journal.write(self.done, {f"val/{name}": value for name, value in result.metrics.items()} | gap)
        self.health.look(self.done, gap)
        self.journal.preview(self.done, result.picture, self.clips.fps)
        write_clips(self.folder, self.done, result.clips, fps=self.clips.fps)
        write_mp4(self.folder / VIDEO_FILE, looped(result.picture, self.clips.fps), self.clips.fps)
        draw_curves(read_records(self.folder / METRICS_FILE), self.folder / CURVES_FILE)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
        self.console.print(f"step {self.done}: held-out {numbers}")

    def _best_step(self) -> int | None:
        """Return the step of the best validation after the start, by the metric that the run was asked to go by.

        It is one of those whose checkpoint is there, or the present one: others were not kept, as nobody had asked.
        """
        if self.config.best_metric is None:
            return None
        kept = {step for step, _ in checkpoints(self.folder)} | {self.done}
        records = [record for record in read_records(self.folder / METRICS_FILE) if record["step"] in kept]
        best = best_validation(records, self.config.best_metric)
        return None if best is None else int(best["step"])

    def _save(self) -> Path:
        """Write the checkpoint of this step, unless it has been written already, and return its folder."""
        folder = checkpoint_folder(self.folder, self.done)
        if self.saved != self.done:
            if self.accelerator.is_main_process:
                keep, best = self.config.keep, self._best_step()
                write_checkpoint(self.folder, self.done, self._write, keep=keep, best=best)
            else:
                self._write(None)
            self.accelerator.wait_for_everyone()
            self.saved = self.done
        return folder

    def _write(self, folder: Path | None) -> None:
        """Write everything that the run goes on from; a process without a folder hands in its part alone."""
        players = self.players
        self.weights.save(players.autoencoder, folder, "model")
        with players.ema.applied():
            self.weights.save(players.autoencoder, folder, "ema")
        tensors = {
            "objective": players.objective.state_dict(),
            "random": random_states(self.accelerator.device),
            **{name: optimizer_tensors(optimizer) for name, optimizer in self._optimizers().items()},
        }
        if folder is None:
            return
        for name, by_name in tensors.items():
            save_tensors(folder / f"{name}.safetensors", by_name)
        (folder / CONFIG_FILE).write_text(as_yaml(self.config), encoding="utf-8")
        scaler = self.accelerator.scaler
        state = {
            "step": self.done,
            "ema_updates": players.ema.num_updates,
            "num_processes": self.accelerator.num_processes,
            "clips_per_step": self.clips_per_step,
            "scaler": scaler.state_dict() if scaler else None,
            "base": self.weights.base,
            "interval": self.journal.interval,
        }
        (folder / STATE_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")

    def _load(self, step: int, folder: Path) -> dict[str, tuple[float, int]]:
        """Go on from a checkpoint, and return what was collected for the next record."""
        players = self.players
        state = read_json(folder / STATE_FILE)
        check_same_architecture(players.autoencoder, folder / "model", self.config.model or "causal_vae")
        self.weights.check_base(state.get("base"))
        with players.ema.applied():
            self.weights.load(players.autoencoder, folder / "ema")
        players.ema.num_updates = state["ema_updates"]
        self.weights.load(players.autoencoder, folder / "model")
        players.objective.load_state_dict(load_tensors(folder / "objective.safetensors"))
        for name, optimizer in self._optimizers().items():
            load_optimizer(optimizer, folder / f"{name}.safetensors")
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        states = load_tensors(folder / "random.safetensors")
        set_random_state(states, self.accelerator.process_index, self.accelerator.device)
        self.done = self.saved = step
        self.console.print(f"going on from {folder}", soft_wrap=True)
        self._say_what_differs(state, saved_settings(folder))
        if changed := changed_settings(self.config, folder):
            self.console.print(f"settings changed since then: {', '.join(changed)}", soft_wrap=True)
        interval: dict[str, tuple[float, int]] = state.get("interval", {})
        return interval

    def _say_what_differs(self, state: dict[str, Any], settings: dict[str, Any]) -> None:
        """Say which model's weights are gone on with, and where that is not exact.

        It takes the same processes and clips of a step.
        """
        if settings["model"] != self.config.model:
            self.console.print(
                f"the model is now {self.config.model} instead of {settings['model']}: the run goes on with its own "
                "weights",
                soft_wrap=True,
            )
        if state["clips_per_step"] != self.clips_per_step:
            self.console.print(
                f"an update now has {self.clips_per_step} clips instead of {state['clips_per_step']}: the order of "
                "clips goes on from another place, and the learning rates may need to change"
            )
        elif state["num_processes"] != self.accelerator.num_processes:
            self.console.print(
                f"now {self.accelerator.num_processes} processes instead of {state['num_processes']}: clips and the "
                "noise drawn for them stay the same; sums are rounded differently, and a model's own randomness, such "
                "as dropout, is another"
            )

    def _optimizers(self) -> dict[str, Any]:
        optimizers = {"optimizer": self.players.optimizer, "disc_optimizer": self.players.disc_optimizer}
        return {name: optimizer for name, optimizer in optimizers.items() if optimizer is not None}

    def _read_result(self) -> TrainResult:
        records = validations(read_records(self.folder / METRICS_FILE))
        if not records:
            remedy = "Give the run another folder, or a larger --steps."
            raise argument_error(str(self.folder / METRICS_FILE), "a file with a validation", "none", remedy)
        first, last = (
            {name.removeprefix("val/"): value for name, value in record.items() if name.startswith("val/")}
            for record in (records[0], records[-1])
        )
        return TrainResult(self.folder, checkpoints(self.folder)[-1][1], first, last)

    def _say_where(self) -> None:
        accelerator, sharding = self.accelerator, self.config.sharding
        several = f" in each of {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
        spread = f", weights sharded by {sharding}" if sharding != "none" else ""
        self.console.print(
            f"computing on {accelerator.device.type}{several}{spread}, mixed precision: {self.config.mixed_precision}"
        )
        if is_left_alone():
            self.console.print(
                "`accelerate launch --cpu` starts one process, however many it is asked for; `torchrun` starts several"
            )

    def _describe(self) -> None:
        """Say what is trained on what."""
        players = self.players
        model = sum(weight.numel() for weight in players.autoencoder.parameters())
        trained = sum(weight.numel() for weight in players.autoencoder.parameters() if weight.requires_grad)
        judges = sum(weight.numel() for weight in players.objective.get_trainable_parameters())
        clips: Clips = self.clips
        part = "" if trained == model else f" ({trained / 1e6:.2f} M of them trained)"
        skipped = f", {clips.num_skipped} skipped" if clips.num_skipped else ""
        self.console.print(
            f"{model / 1e6:.2f} M parameters{part}, {judges / 1e6:.2f} M in discriminators; "
            f"{clips.num_videos} videos{skipped}, {len(clips.val)} held-out clips"
        )


def looped(frames: Tensor, fps: float) -> Tensor:
    """Repeat a short clip until it is long enough to be watched."""
    return frames.repeat(max(1, math.ceil(MIN_SECONDS * fps / len(frames))), 1, 1, 1)


def as_yaml(config: TrainConfig) -> str:
    """Return the settings as YAML that `--config` reads."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False)


def saved_settings(folder: Path) -> dict[str, Any]:
    """Return the settings that a checkpoint was written with."""
    settings: dict[str, Any] = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return settings


def changed_settings(config: TrainConfig, folder: Path) -> list[str]:
    """Say what each setting was in a checkpoint and is now, where the two differ; the model has a line of its own."""
    settings = side_by_side_settings([read_settings(folder), flat_settings(yaml.safe_load(as_yaml(config)))])
    return [
        f"{setting.name} {setting.values[0]} -> {setting.values[1]}"
        for setting in settings
        if setting.differs and setting.name not in ("model", "output_dir")
    ]


def check_same_networks(config: TrainConfig, folder: Path) -> None:
    """Raise a `ValueError` that names the first setting in which the networks differ from a checkpoint's."""
    saved = network_settings(saved_settings(folder))
    for name, value in network_settings(yaml.safe_load(as_yaml(config))).items():
        if saved.get(name) != value:
            remedy = "Give the run another folder with --output_dir, or go back to the old setting."
            raise argument_error(name, f"{saved.get(name)!r} as in {folder}", describe(value), remedy)


def network_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide which weights there are, of what shape, by their dotted names."""
    networks = {
        f"{group}.{name}": value
        for group in ("causal_vae", "discriminator", "trainable")
        for name, value in settings[group].items()
    }
    # A base model may have moved; whether it is the same comes out when it is there.
    networks["model"] = "left out" if settings["model"] is None else "given"
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
