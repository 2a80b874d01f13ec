"""Checkpoints: saving and loading the state of a run, and which settings may change when it resumes."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, cast

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from telecine.autoencoders import VideoAutoencoder
from telecine.autoencoders.latent_statistics import LatentStatistics
from telecine.autoencoders.pretrained import mismatches
from telecine.checks import argument_error, describe
from telecine.files import read_json
from telecine.objective.weights import as_ramp
from telecine.report.settings import flat_settings, read_settings, side_by_side_settings
from telecine.runs import CONFIG_FILE, HEALTH_FILE, METRICS_FILE, STATE_FILE, checkpoint_folder
from telecine.settings_file import read_yaml
from telecine.training.checkpoint_files import (
    flush,
    load_optimizer,
    load_tensors,
    optimizer_tensors,
    random_states,
    save_tensors,
    set_random_state,
    write_checkpoint,
)
from telecine.training.config import TrainConfig
from telecine.training.host_copy import HostCopy
from telecine.training.logging import IntervalMeans
from telecine.training.rollback import Rollback
from telecine.training.state import TrainState
from telecine.training.step import DivergenceError
from telecine.training.validation import best_step
from telecine.training.weight_files import WeightFiles, check_same_architecture

# Nested settings, as YAML has them.
Settings: TypeAlias = dict[str, Any]


# Names of the parts of a state in errors; "optimizer" and the like are also those of their files.
MODEL = "model"
AVERAGES = "averaged weights"


class SavedStatistics(TypedDict):
    """The statistics of the latent that the saved models carry."""

    step: int
    """At which they were measured, with the averaged weights: not that of the checkpoint if the run was interrupted."""
    num_clips: int
    mean: list[float]
    std: list[float]


class SavedState(TypedDict):
    """What `state.json` holds."""

    step: int
    ema_updates: int
    num_processes: int
    clips_per_step: int
    scaler: dict[str, float] | None
    base: str | None
    interval: dict[str, tuple[float, int]]
    num_records: int
    rollbacks: list[Rollback]
    latents: SavedStatistics | None
    """None if the encoder is not trained, or before the first measurement."""


class Checkpointer:
    """Saves and loads the state of a run. Every process has to call its methods, except `close`.

    Saving copies the state to the memory of the host. The first process writes the copy in a thread while training
    continues, one checkpoint at a time. An error of the thread is raised by the next `save` or `wait`.

    Args:
        config: The settings of the run; each checkpoint holds them.
        model: The autoencoder, before it is sharded.
        is_main: Whether this is the first process.
    """

    def __init__(self, config: TrainConfig, model: VideoAutoencoder, *, is_main: bool) -> None:
        self.config = config
        self.run = Path(config.output_dir)
        self.weights = WeightFiles(model, is_main=is_main, is_sharded=config.sharding != "none")
        self.saved_step: int | None = None
        self.latents: SavedStatistics | None = None
        self._is_main = is_main
        self._copies: defaultdict[str, HostCopy] = defaultdict(lambda: HostCopy(is_main=is_main))
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None
        self._is_pending = False

    def set_latent_statistics(self, state: TrainState, statistics: LatentStatistics) -> None:
        """Set the statistics of the latent, measured now, that the saved models carry from the next save on."""
        self.latents = SavedStatistics(
            step=state.step, num_clips=self.config.latent_clips, mean=statistics.mean, std=statistics.std
        )
        state.autoencoder.set_latent_statistics(statistics)

    def save(self, state: TrainState) -> Path:
        """Copy the state and begin to write the checkpoint of the present step, unless it has been; return its folder.

        Raises:
            DivergenceError: A value of the last save's state was not finite; its checkpoint was not written.
            OSError: The last save's checkpoint could not be written.
        """
        if self.saved_step != state.step:
            self.wait()
            self._copy(state)
            if self._is_main:
                self._written = self._executor.submit(self._write, self._saved_state(state))
            self._is_pending = True
            self.saved_step = state.step
        return checkpoint_folder(self.run, state.step)

    @property
    def has_failed(self) -> bool:
        """Whether the last save has ended with an error, which `wait` raises. Other processes do not know."""
        return self._written is not None and self._written.done() and self._written.exception() is not None

    def wait(self) -> None:
        """Wait until the last save is on the disk.

        Raises:
            DivergenceError, OSError: As `save`, on every process.
        """
        if (error := self.wait_for_error()) is not None:
            raise error

    def wait_for_error(self) -> BaseException | None:
        """Wait until the last save is on the disk, and return its error, on every process."""
        if not self._is_pending:
            return None
        outcome = [self.close()]
        broadcast_object_list(outcome)
        (error,) = outcome
        self._is_pending = False
        if error is not None:
            self.saved_step = None
        return error

    def close(self) -> BaseException | None:
        """Wait until the thread is done, and return the error that nothing has raised yet."""
        if self._written is None:
            return None
        error, self._written = self._written.exception(), None
        return error

    def _copy(self, state: TrainState) -> None:
        self.weights.update_copy(state.autoencoder)
        if self.latents is not None and self.weights.copy is not None:
            self.weights.copy.set_latent_statistics(statistics_of(self.latents))
        tensors = {
            AVERAGES: state.ema.averages,
            "objective": state.objective.state_dict(),
            "random": random_states(state.accelerator.device),
            **{name: optimizer_tensors(optimizer) for name, optimizer in state.optimizers.items()},
        }
        for name, by_name in tensors.items():
            self._copies[name].update(by_name)

    def _saved_state(self, state: TrainState) -> SavedState:
        scaler = state.accelerator.scaler
        return {
            "step": state.step,
            "ema_updates": state.ema.num_updates,
            "num_processes": state.accelerator.num_processes,
            "clips_per_step": clips_per_step(self.config, state.accelerator),
            "scaler": scaler.state_dict() if scaler else None,
            "base": self.weights.base,
            "interval": dict(state.log_means.sums),
            "num_records": state.num_records,
            "rollbacks": list(state.rollbacks),
            "latents": self.latents,
        }

    def _write(self, saved: SavedState) -> None:
        """Write a checkpoint from the copies, in a thread. The records up to its step are on the disk before it."""
        self._check_finite(saved["step"])
        flush([self.run / METRICS_FILE, self.run / HEALTH_FILE])
        best = best_step(self.run, self.config.best_metric, saved["step"])
        keep = self.config.keep
        write_checkpoint(self.run, saved["step"], lambda folder: self._fill(folder, saved), keep=keep, best=best)

    def _check_finite(self, step: int) -> None:
        assert self.weights.copy is not None
        groups = {MODEL: self.weights.copy.state_dict(), **{name: copy.tensors for name, copy in self._copies.items()}}
        name = first_not_finite(groups)
        if name is not None:
            message = f"`{name}` is not finite after step {step}. No checkpoint was written."
            raise DivergenceError(message, name)

    def _fill(self, folder: Path, saved: SavedState) -> None:
        self.weights.save(folder, MODEL)
        self.weights.put_into_copy(self._copies[AVERAGES].tensors)
        self.weights.save(folder, "ema")
        for name, copy in self._copies.items():
            if name != AVERAGES:
                save_tensors(folder / f"{name}.safetensors", copy.tensors)
        (folder / CONFIG_FILE).write_text(as_yaml(self.config), encoding="utf-8")
        (folder / STATE_FILE).write_text(json.dumps(saved, indent=2), encoding="utf-8")

    def load(self, state: TrainState, folder: Path) -> list[str]:
        """Load a checkpoint into `state`, and return notes for the user: what differs, and what is not exact.

        Raises:
            ValueError: The checkpoint is of another model.
        """
        saved = read_state(folder)
        check_same_architecture(state.autoencoder, folder / "model", self.config.model or "causal_vae")
        self.weights.check_base(saved["base"])
        with state.ema.applied():
            self.weights.load(state.autoencoder, folder / "ema")
        state.ema.num_updates = saved["ema_updates"]
        self.weights.load(state.autoencoder, folder / "model")
        saved_objective = load_tensors(folder / "objective.safetensors")
        if problems := mismatches(state.objective.state_dict(), saved_objective):
            remedy = "Use the previous `objective.terms`, or another --output_dir."
            raise argument_error("objective", f"that of {folder}, whose terms have weights", problems[0], remedy)
        state.objective.load_state_dict(saved_objective)
        for name, optimizer in state.optimizers.items():
            load_optimizer(optimizer, folder / f"{name}.safetensors")
            optimizer.zero_grad(set_to_none=True)  # an update that failed has left gradients
        accelerator = state.accelerator
        if accelerator.scaler and saved["scaler"]:
            accelerator.scaler.load_state_dict(saved["scaler"])
        random = load_tensors(folder / "random.safetensors")
        set_random_state(random, accelerator.process_index, accelerator.device)
        state.log_means = IntervalMeans(saved["interval"])
        state.num_records = saved["num_records"]
        state.rollbacks = [Rollback(*each) for each in saved["rollbacks"]]
        self.latents = saved["latents"]
        if self.latents is not None:
            state.autoencoder.set_latent_statistics(statistics_of(self.latents))
        state.step = self.saved_step = saved["step"]
        return resume_notes(self.config, accelerator, saved, folder)


def read_state(folder: Path) -> SavedState:
    """Return what `state.json` of a checkpoint holds; raise a `ValueError` if another version wrote it."""
    saved = read_json(folder / STATE_FILE)
    if missing := sorted(set(SavedState.__annotations__) - set(saved)):
        contract, got = "that of a checkpoint of this version", f"one without {', '.join(missing)}"
        remedy = "Resume with the version that wrote it, or pass the run as --model with another --output_dir."
        raise argument_error(str(folder / STATE_FILE), contract, got, remedy)
    return cast(SavedState, saved)


def statistics_of(saved: SavedStatistics) -> LatentStatistics:
    """Return the statistics of the latent in `state.json`."""
    return LatentStatistics(saved["mean"], saved["std"])


def first_not_finite(groups: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """Return "name of group" for the first value that is not finite, or None."""
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                return f"{name} of the {group}"
    return None


def clips_per_step(config: TrainConfig, accelerator: Accelerator) -> int:
    """Return the number of clips in an update, over all processes."""
    return config.clips_per_pass * config.gradient_accumulation_steps * accelerator.num_processes


def resume_notes(config: TrainConfig, accelerator: Accelerator, saved: SavedState, folder: Path) -> list[str]:
    """Return lines for the user about a run that resumes: what changed, and what is not exact after the change.

    A resumed run is exact with the same number of processes and of clips in an update.
    """
    notes = [f"resuming from {folder}"]
    model = saved_settings(folder)["model"]
    if model != config.model:
        notes.append(f"the model is now {config.model} instead of {model}; its weights are those of the checkpoint")
    num_clips, num_processes = clips_per_step(config, accelerator), accelerator.num_processes
    if saved["clips_per_step"] != num_clips:
        notes.append(
            f"an update now has {num_clips} clips instead of {saved['clips_per_step']}: the order of the clips changes "
            "from here on, and the learning rates may need to change"
        )
    elif saved["num_processes"] != num_processes:
        notes.append(
            f"now {num_processes} processes instead of {saved['num_processes']}: the clips and the noise drawn for "
            "them stay the same, but sums are rounded differently, and random numbers inside a model, such as for "
            "dropout, differ"
        )
    if changed := changed_settings(config, folder):
        notes.append(f"settings changed since the checkpoint: {', '.join(changed)}")
    return notes


def as_yaml(config: TrainConfig) -> str:
    """Return the settings as YAML that `--config` reads."""
    return yaml.safe_dump(_plain(config), sort_keys=False)


def _plain(config: TrainConfig) -> Settings:
    """Return the settings as they come back from a file: tuples become lists."""
    return cast(Settings, json.loads(json.dumps(asdict(config), default=_dotted_path)))


def _dotted_path(function: object) -> str:
    """Return the path from which a function among the settings, such as a term's, is imported again."""
    name = getattr(function, "__qualname__", "<none>")
    if "<" in name or getattr(function, "__module__", "__main__") == "__main__":
        remedy = "Move it to the top level of a module that can be imported."
        raise argument_error("a setting", "a plain value or an importable function", describe(function), remedy)
    return f"{function.__module__}.{name}"


def saved_settings(folder: Path) -> Settings:
    """Return the settings that a checkpoint was written with."""
    return cast(Settings, read_yaml(folder / CONFIG_FILE))


def changed_settings(config: TrainConfig, folder: Path) -> list[str]:
    """Return "name old -> new" for each setting that differs from a checkpoint's, but for the model and the folder."""
    settings = side_by_side_settings([read_settings(folder), flat_settings(_plain(config))])
    return [
        f"{setting.name} {setting.values[0]} -> {setting.values[1]}"
        for setting in settings
        if setting.differs and setting.name not in ("model", "output_dir")
    ]


def check_same_data(config: TrainConfig, folder: Path) -> None:
    """Check that the settings name the data of a checkpoint: another data set is rarely meant to continue a run.

    Raises:
        ValueError: `data` differs.
    """
    saved = saved_settings(folder)["data"]
    if saved is None or config.data is None:
        is_same = saved is config.data
    else:
        is_same = os.path.realpath(saved) == os.path.realpath(config.data)
    if not is_same:
        remedy = "Use another --output_dir for another run, or add --change_data to train this one on other data."
        raise argument_error("data", f"{saved!r} as in {folder}", repr(config.data), remedy)


def check_same_networks(config: TrainConfig, folder: Path) -> None:
    """Check that the settings build the networks of a checkpoint.

    Raises:
        ValueError: A setting differs that changes the networks.
    """
    settings = saved_settings(folder)
    if "gan" not in settings["objective"]:
        contract, got = "a new folder or a run of this version", f"{folder}, written by telecine 0.1"
        raise argument_error("output_dir", contract, got, "Use another --output_dir.")
    saved = network_settings(settings)
    for name, value in network_settings(_plain(config)).items():
        if saved.get(name) != value:
            remedy = "Use the previous value, or another --output_dir."
            raise argument_error(name, f"{saved.get(name)!r} as in {folder}", describe(value), remedy)


def network_settings(settings: Settings) -> Settings:
    """Return the settings that decide which weights exist, and their shapes, by their dotted names."""
    networks = {
        f"{group}.{name}": value
        for group in ("causal_vae", "discriminator", "trainable")
        for name, value in settings[group].items()
    }
    networks.pop("discriminator.init", None)  # where they started; theirs are now those of the checkpoint
    # The path of a base model may change. `check_same_architecture` compares the models once they are loaded.
    networks["model"] = "left out" if settings["model"] is None else "given"
    # The discriminators' linear heads depend on the size of the clips, and only discriminators with a weight are built.
    clips = {f"clips.{name}": settings["clips"][name] for name in ("num_frames", "height", "width")}
    # The weights that decide which discriminators exist, and whether averages of their logits are saved.
    # Plain values: functions of the user's that a saved file names are not imported.
    objective = settings["objective"]
    weights = {
        "adversarial_loss_weight": objective["adversarial_loss_weight"],
        "multiscale_adversarial_loss_weight": objective["multiscale_adversarial_loss_weight"],
        "gan.lecam_loss_weight": objective["gan"]["lecam_loss_weight"],
    }
    are_on = {f"objective.{name} > 0": as_ramp(name, weight).is_ever_on for name, weight in weights.items()}
    averages = {
        "objective.reconstruction.learn_logvar": objective["reconstruction"]["learn_logvar"],
        "objective.adaptive_weight.decay > 0": objective["adaptive_weight"]["decay"] > 0,
    }
    return networks | clips | are_on | averages
