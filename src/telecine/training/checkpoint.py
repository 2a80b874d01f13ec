"""Checkpoints: saving and loading the state of a run."""

from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import distributed as dist

from telecine.base.files import digest_of, flush
from telecine.models import VideoAutoencoder
from telecine.models.latent import LatentStatistics
from telecine.models.pretrained import check_tensors
from telecine.runs import Run
from telecine.runs.settings import write_settings
from telecine.settings import TrainConfig
from telecine.training import tensor_files
from telecine.training.distributed import on_every_process
from telecine.training.logging import IntervalMeans
from telecine.training.resume import SavedSettings
from telecine.training.state import Rollback, TrainState
from telecine.training.step import DivergenceError
from telecine.training.tensor_files import EMA, MODEL, OBJECTIVE_FILE, HostCopy, WeightFiles, load_tensors

# The parts of which each process has a shard if the weights are sharded. Other parts are files of the first process.
_SHARDED = (MODEL, EMA, "optimizer")


class Checkpointer:
    """Saves and loads the state of a run, made before `model` is sharded. All processes have to call all but `close`.

    Saving copies the state to the memory of the host. The first process, or with sharded weights each its own shards,
    writes the copy in a thread while training continues. The next `save` or `wait` raises an error of a thread.
    """

    def __init__(self, config: TrainConfig, model: VideoAutoencoder, *, is_main: bool) -> None:
        self.config, self.run = config, Run(config.output_dir)
        self.saved_step: int | None = None
        # The statistics of the latent that the saved models carry, and when they were measured: not at the step of the
        # checkpoint if the run was interrupted. None if the encoder is not trained, or before the first measurement.
        self.latents: dict[str, Any] | None = None
        self._is_main = is_main
        self._group: dist.ProcessGroup | None = None
        if config.sharding != "none":  # in a group of their own, threads communicate while training does
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=config.process_timeout))
        self.weights = WeightFiles(model, is_sharded=self._group is not None)
        self._copies: defaultdict[str, HostCopy] = defaultdict(lambda: HostCopy(is_main=is_main))
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._buffers: dict[str, set[str]] = {}
        self._written: Future[None] | None = None

    def set_latent_statistics(self, state: TrainState, statistics: LatentStatistics) -> None:
        """Set the statistics of the latent, measured now, which the models of this step are saved with, also again."""
        self.saved_step = None
        self.latents = {"step": state.step, "num_clips": self.config.latent_clips, **vars(statistics)}
        state.autoencoder.set_latent_statistics(statistics)

    def save(self, state: TrainState) -> Path:
        """Copy the state, begin to write the checkpoint of this step unless it is saved, and return its folder."""
        if self.saved_step != state.step:
            self.wait()
            self._copy(state)
            if self._is_main or self._group is not None:
                self._written = self._executor.submit(self._write, self._saved_state(state))
            self.saved_step = state.step
        return self.run.checkpoints.path(state.step)

    @property
    def has_failed(self) -> bool:
        """Whether the last save has ended with an error, which `wait` raises. Other processes do not know."""
        return self._written is not None and self._written.done() and self._written.exception() is not None

    def wait(self) -> None:
        """Wait until the last save is on the disk, and raise its error, on every process."""
        (error,) = broadcast_object_list([self.close()])
        if error is not None:
            self.saved_step = None
            raise error

    def close(self) -> BaseException | None:
        """Wait until the thread of this process is done, and return the error that nothing has raised yet."""
        error, self._written = None if self._written is None else self._written.exception(), None
        return error

    def _copy(self, state: TrainState) -> None:
        tensors = {
            MODEL: state.autoencoder.state_dict(),
            EMA: state.ema.averages,
            "objective": state.objective.state_dict(),
            "random": tensor_files.random_states(state.accelerator.device),
            **{name: tensor_files.optimizer_tensors(optimizer) for name, optimizer in state.optimizers.items()},
        }
        for name, by_name in tensors.items():
            self._copies[name].update(by_name)
        for name, module in ((MODEL, state.autoencoder), ("objective", state.objective)):
            self._buffers[name] = {buffer for buffer, _ in module.named_buffers(remove_duplicate=False)}

    def _saved_state(self, state: TrainState) -> dict[str, Any]:
        scaler = state.accelerator.scaler
        return {
            "step": state.step,
            "ema_updates": state.ema.num_updates,
            "num_processes": state.accelerator.num_processes,
            "clips_per_step": self.config.clips_per_step(state.accelerator.num_processes),
            "scaler": scaler.state_dict() if scaler else None,
            "base": self.weights.base,
            "interval": dict(state.log_means.sums),
            "num_records": state.num_records,
            "rollbacks": list(state.rollbacks),
            "latents": self.latents,
        }

    def _write(self, saved: dict[str, Any]) -> None:
        step, digests = saved["step"], dict[Path, str]()
        folder, *_ = on_every_process(lambda: self._begin(step), self._group)
        if self._group is not None:
            digests = dict(on_every_process(lambda: self._write_shards(folder), self._group))
        if self._is_main:
            self._fill(folder, saved)
            tensor_files.check_headers(folder)
            best = self.run.best_step(self.config.best_metric, step)
            self.run.checkpoints.finish(step, folder, keep=self.config.keep, best=best, known=digests)

    def _begin(self, step: int) -> Path:
        """Check the copies, and return the folder to write to, which the first process creates."""
        for group, copy in self._copies.items():
            buffers = self._buffers.get(group, ())
            for name, tensor in copy.tensors.items():
                # A buffer may be infinite, as the mask of an attention is.
                if tensor.isnan().any() if name in buffers else not tensor.isfinite().all():
                    value = f"{name} of the {'averaged weights' if group == EMA else group}"
                    text = f"`{value}` is not finite after step {step}. No checkpoint was written."
                    raise DivergenceError(text, value)
        if not self._is_main:
            return self.run.folder
        flush([self.run.history.path, self.run.warnings.path])  # records are on the disk before their checkpoint
        return self.run.checkpoints.begin(step)

    def _write_shards(self, folder: Path) -> tuple[Path, str]:
        path = tensor_files.shard_file(folder, dist.get_rank(), dist.get_world_size())
        tensor_files.save_shards(path, {name: self._copies[name] for name in _SHARDED})
        flush([path])
        return path, digest_of(path)

    def _fill(self, folder: Path, saved: dict[str, Any]) -> None:
        latents, written = saved["latents"], (MODEL, EMA) if self._group is None else _SHARDED
        statistics = latents and LatentStatistics(latents["mean"], latents["std"])
        for name in (MODEL, EMA):
            if self._group is None:
                self.weights.save(folder, name, statistics, self._copies[MODEL].tensors | self._copies[name].tensors)
            else:
                self.weights.save_from_shards(folder, name, statistics)
        for name, copy in self._copies.items():
            if name not in written:
                tensor_files.save_tensors(folder / f"{name}.safetensors", copy.tensors)
        write_settings(folder, self.config)
        self.run.checkpoints.write_state(folder, saved)

    def load(self, state: TrainState, folder: Path) -> list[str]:
        """Load a checkpoint into `state`, and return notes for the user: what differs, and what is not exact."""
        saved = self.run.checkpoints.read_state(folder, {*self._saved_state(state)})
        tensor_files.check_same_architecture(state.autoencoder, folder / "model", self.config.model or "causal_vae")
        self.weights.check_base(saved["base"])
        with state.ema.applied():
            self.weights.load(state.autoencoder, folder, EMA)
        state.ema.num_updates = saved["ema_updates"]
        self.weights.load(state.autoencoder, folder, MODEL)
        saved_objective, random = (load_tensors(folder / name) for name in (OBJECTIVE_FILE, "random.safetensors"))
        terms = f"that of {folder}, whose terms have weights"
        remedy = "Use the previous `objective.terms`, or another --output_dir."
        check_tensors(state.objective.state_dict(), saved_objective, name="objective", contract=terms, remedy=remedy)
        state.objective.load_state_dict(saved_objective)
        for name, optimizer in state.optimizers.items():
            tensor_files.load_optimizer(optimizer, tensor_files.saved_tensors(folder, name))
            optimizer.zero_grad(set_to_none=True)  # an update that failed has left gradients
        accelerator = state.accelerator
        if accelerator.scaler and saved["scaler"]:
            accelerator.scaler.load_state_dict(saved["scaler"])
        tensor_files.set_random_state(random, accelerator.process_index, accelerator.device)
        state.log_means = IntervalMeans(saved["interval"])
        state.num_records = saved["num_records"]
        state.rollbacks = [Rollback(*each) for each in saved["rollbacks"]]
        self.latents = saved["latents"] if self.config.latent_clips else None
        if self.latents is not None:
            state.autoencoder.set_latent_statistics(LatentStatistics(self.latents["mean"], self.latents["std"]))
        state.step = self.saved_step = saved["step"]
        return self._notes(accelerator, saved, folder)

    def _notes(self, accelerator: Accelerator, saved: dict[str, Any], folder: Path) -> list[str]:
        notes, settings, model = [f"resuming from {folder}"], SavedSettings(folder), self.config.model
        if (before := settings.values["model"]) != model:
            notes.append(f"the model is now {model} instead of {before}; its weights are those of the checkpoint")
        num_processes = accelerator.num_processes
        num_clips = self.config.clips_per_step(num_processes)
        if saved["clips_per_step"] != num_clips:
            now = f"an update now has {num_clips} clips instead of {saved['clips_per_step']}"
            notes.append(f"{now}: their order changes from here on, and the learning rates may need to change")
        elif saved["num_processes"] != num_processes:
            now = f"now {num_processes} processes instead of {saved['num_processes']}"
            differs = "sums are rounded differently, and random numbers inside a model, such as for dropout, differ"
            notes.append(f"{now}: the clips and the noise drawn for them stay the same, but {differs}")
        if changed := settings.changes(self.config):
            notes.append(f"settings changed since the checkpoint: {', '.join(changed)}")
        return notes
