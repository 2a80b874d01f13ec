"""Checkpoints: saving and loading the state of a run."""

from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict, cast

from accelerate.utils import broadcast_object_list
from torch import distributed as dist

from telecine.base.files import digest_of, flush
from telecine.evaluation.metrics import METRICS
from telecine.models import VideoAutoencoder
from telecine.models.latent import LatentStatistics
from telecine.models.pretrained import check_tensors
from telecine.runs import Run
from telecine.runs.saved_settings import write_settings
from telecine.settings import TrainConfig
from telecine.training import tensor_files
from telecine.training.distributed import on_every_process
from telecine.training.logging import IntervalMeans
from telecine.training.optimizers import load_optimizer, optimizer_tensors
from telecine.training.resume import describe_changes
from telecine.training.state import Rollback, TrainState
from telecine.training.step import DivergenceError
from telecine.training.tensor_files import EMA, MODEL, OBJECTIVE_FILE, HostCopy, load_tensors
from telecine.training.weight_files import WeightFiles, check_same_architecture

# The parts of which each process has a shard if the weights are sharded. Other parts are files of the first process.
_SHARDED = (MODEL, EMA, "optimizer")


class LatentRecord(TypedDict):
    """The statistics of the latent that saved models carry, and how they were measured."""

    step: int
    num_clips: int
    mean: list[float]
    std: list[float]


class PlainState(TypedDict):
    """What a checkpoint holds beside tensors. Its file has the same keys."""

    step: int
    ema_updates: int
    num_processes: int
    clips_per_step: int
    scaler: dict[str, Any] | None
    """The state of the gradient scaler of float16."""
    base: str | None
    """`WeightFiles.base`."""
    interval: dict[str, tuple[float, int]]
    """`IntervalMeans.sums`: the values that were logged since the last record."""
    num_records: int
    rollbacks: list[Rollback]
    latents: LatentRecord | None


class Checkpointer:
    """Saves and loads the state of a run. All processes have to call all methods but `take_error`.

    Saving copies the state to the memory of the host. The first process, or with sharded weights each its own shards,
    writes the copy in a thread while training continues. The next `save` or `wait` raises an error of a thread.

    Args:
        config: The settings of the run.
        model: The autoencoder, before it is sharded.
        is_main: Whether this is the first process.

    Attributes:
        saved_step: The step of the last checkpoint; None before it.
        latents: The statistics of the latent that the saved models carry, and when they were measured: not at the step
            of the checkpoint if the run was interrupted. None if the encoder is not trained, or before the first
            measurement.
        copies: The copies in the memory of the host, by the part of the state.
    """

    def __init__(self, config: TrainConfig, model: VideoAutoencoder, *, is_main: bool) -> None:
        self.config = config
        self.files = Run(config.output_dir)
        self.saved_step: int | None = None
        self._is_stale = False  # whether the next save also writes the step of the last one
        self.latents: LatentRecord | None = None
        self._is_main = is_main
        self._is_sharded = config.sharding != "none"
        self._group: dist.ProcessGroup | None = None
        if self._is_sharded:  # in a group of their own, threads communicate while training does
            self._group = dist.new_group(
                backend="gloo", timeout=timedelta(seconds=config.process_timeout)
            )
        self.weights = WeightFiles(model, is_sharded=self._is_sharded)
        self.copies: dict[str, HostCopy] = {}
        self._buffers: dict[str, set[str]] = {}
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None

    def set_latent_statistics(self, state: TrainState, statistics: LatentStatistics) -> None:
        """Set the statistics of the latent that saved models carry. `save` then replaces one of this step, too."""
        self._is_stale = True
        self.latents = LatentRecord(
            step=state.step,
            num_clips=self.config.latent_clips,
            mean=statistics.mean,
            std=statistics.std,
        )
        state.autoencoder.set_latent_statistics(statistics)

    def save(self, state: TrainState) -> Path:
        """Copy the state, begin to write the checkpoint of this step unless it is saved, and return its folder."""
        if self.saved_step != state.step or self._is_stale:
            self.wait()
            self._copy(state)
            if self._is_main or self._is_sharded:
                self._written = self._executor.submit(self._write, self._plain_state(state))
            self.saved_step = state.step
            self._is_stale = False
        return self.files.checkpoints.path(state.step)

    @property
    def has_failed(self) -> bool:
        """Whether the last save has ended with an error, which `wait` raises. Other processes do not know."""
        return (
            self._written is not None
            and self._written.done()
            and self._written.exception() is not None
        )

    def wait(self) -> None:
        """Wait until the last save is on the disk.

        Raises:
            BaseException: The error of the last save, on every process, such as a `DivergenceError` or an `OSError`.
        """
        (error,) = broadcast_object_list([self.take_error()])
        if error is not None:
            self._is_stale = True
            raise error

    def take_error(self) -> BaseException | None:
        """Wait until the thread of this process is done, and return its error, which is then no longer raised."""
        if self._written is None:
            return None
        error = self._written.exception()
        self._written = None
        return error

    def _copy(self, state: TrainState) -> None:
        tensors = {
            MODEL: state.autoencoder.state_dict(),
            EMA: state.ema.averages,
            "objective": state.objective.state_dict(),
            "random": tensor_files.random_states(state.accelerator.device),
        }
        for name, optimizer in state.optimizers.items():
            tensors[name] = optimizer_tensors(optimizer)
        for group, by_name in tensors.items():
            if group not in self.copies:
                self.copies[group] = HostCopy(is_main=self._is_main)
            self.copies[group].update(by_name)
        for group, module in ((MODEL, state.autoencoder), ("objective", state.objective)):
            self._buffers[group] = {
                name for name, _ in module.named_buffers(remove_duplicate=False)
            }

    def _plain_state(self, state: TrainState) -> PlainState:
        scaler = state.accelerator.scaler
        num_processes = state.accelerator.num_processes
        return PlainState(
            step=state.step,
            ema_updates=state.ema.num_updates,
            num_processes=num_processes,
            clips_per_step=self.config.clips_per_step(num_processes),
            scaler=scaler.state_dict() if scaler else None,
            base=self.weights.base,
            interval=dict(state.log_means.sums),
            num_records=state.num_records,
            rollbacks=list(state.rollbacks),
            latents=self.latents,
        )

    def _write(self, plain: PlainState) -> None:
        """Write a checkpoint from the copies, in the thread."""
        step = plain["step"]
        folder, *_ = on_every_process(lambda: self._begin(step), self._group)
        digests: dict[Path, str] = {}
        if self._is_sharded:
            digests.update(on_every_process(lambda: self._write_shards(folder), self._group))
        if self._is_main:
            self._write_files(folder, plain)
            best = best_step(self.files, self.config.best_metric, step)
            self.files.checkpoints.finish(
                step, folder, keep=self.config.keep, best=best, digests=digests
            )

    def _begin(self, step: int) -> Path:
        """Check the copies, and return the folder to write to, which the first process creates."""
        for group, copy in self.copies.items():
            buffers = self._buffers.get(group, set())
            for name, tensor in copy.tensors.items():
                is_valid = not tensor.isnan().any()
                if name not in buffers:  # a buffer may be infinite, as the mask of an attention is
                    is_valid = bool(tensor.isfinite().all())
                if not is_valid:
                    value = f"{name} of the {'averaged weights' if group == EMA else group}"
                    text = f"`{value}` is not finite after step {step}. No checkpoint was written."
                    raise DivergenceError(text, value)
        if not self._is_main:
            return self.files.folder
        # Records are on the disk before their checkpoint.
        flush([self.files.history.path, self.files.warnings.path])
        return self.files.checkpoints.begin(step)

    def _write_shards(self, folder: Path) -> tuple[Path, str]:
        """Write the shards of this process, and return their file and its digest."""
        path = tensor_files.shard_file(folder, dist.get_rank(), dist.get_world_size())
        tensor_files.save_shards(path, {name: self.copies[name] for name in _SHARDED})
        flush([path])
        return path, digest_of(path)

    def _write_files(self, folder: Path, plain: PlainState) -> None:
        """Write all files of a checkpoint but the shards and the manifest."""
        statistics = None
        if plain["latents"] is not None:
            statistics = LatentStatistics(plain["latents"]["mean"], plain["latents"]["std"])
        written: tuple[str, ...] = _SHARDED
        if self._is_sharded:
            self.weights.save_from_shards(folder, MODEL, statistics)
            self.weights.save_from_shards(folder, EMA, statistics)
        else:
            written = (MODEL, EMA)
            raw = self.copies[MODEL].tensors
            self.weights.save(folder, MODEL, statistics, raw)
            self.weights.save(folder, EMA, statistics, raw | self.copies[EMA].tensors)
        for group, copy in self.copies.items():
            if group not in written:
                tensor_files.save_tensors(folder / f"{group}.safetensors", copy.tensors)
        write_settings(folder, self.config)
        self.files.checkpoints.write_state(folder, plain)
        tensor_files.check_headers(folder)

    def load(self, state: TrainState, folder: Path) -> list[str]:
        """Load a checkpoint, and return notes for the user: what differs, and what is not exact.

        Args:
            state: The state of the run, which is overwritten.
            folder: The folder of the checkpoint.

        Raises:
            ValueError: The checkpoint is of another version, of another model, or of other terms.
            DamagedError: A file is missing or damaged.
        """
        keys = PlainState.__required_keys__
        plain = cast(PlainState, self.files.checkpoints.read_state(folder, set(keys)))
        check_same_architecture(
            state.autoencoder, folder / "model", self.config.model or "causal_vae"
        )
        self.weights.check_base(plain["base"])
        with state.ema.applied():
            self.weights.load(state.autoencoder, folder, EMA)
        state.ema.num_updates = plain["ema_updates"]
        self.weights.load(state.autoencoder, folder, MODEL)
        objective = load_tensors(folder / OBJECTIVE_FILE)
        terms = f"that of {folder}, whose terms have weights"
        remedy = "Use the previous `objective.terms`, or another --output_dir."
        check_tensors(
            state.objective.state_dict(), objective, name="objective", contract=terms, remedy=remedy
        )
        state.objective.load_state_dict(objective)
        for name, optimizer in state.optimizers.items():
            load_optimizer(optimizer, folder, name)
            optimizer.zero_grad(set_to_none=True)  # an update that failed has left gradients
        accelerator = state.accelerator
        if accelerator.scaler and plain["scaler"]:
            accelerator.scaler.load_state_dict(plain["scaler"])
        random = load_tensors(folder / "random.safetensors")
        tensor_files.set_random_state(random, accelerator.process_index, accelerator.device)
        state.log_means = IntervalMeans(plain["interval"])
        state.num_records = plain["num_records"]
        state.rollbacks = [Rollback(*rollback) for rollback in plain["rollbacks"]]
        self.latents = plain["latents"] if self.config.latent_clips else None
        if self.latents is not None:
            state.autoencoder.set_latent_statistics(
                LatentStatistics(self.latents["mean"], self.latents["std"])
            )
        state.step = plain["step"]
        self.saved_step = state.step
        self._is_stale = False
        return describe_changes(self.config, folder, plain, accelerator.num_processes)


def best_step(files: Run, metric: str | None, step: int) -> int | None:
    """Return the step of the best validation of a run; None without a metric or before training.

    Args:
        files: The folder of the run.
        metric: The setting `best_metric`.
        step: The present step.
    """
    if metric is None:
        return None
    return files.best_step(
        metric, step, larger_is_better=METRICS[metric].direction.larger_is_better
    )
