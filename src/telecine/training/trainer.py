"""The training loop: update, log, validate, save, until the last step or until the run is interrupted."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from accelerate.utils import broadcast_object_list, set_seed
from rich.console import Console
from torch import nn

from telecine.base.checks import Interrupted, TrainingError, argument_error
from telecine.base.files import mark_output
from telecine.data.find import check_output
from telecine.evaluation.metrics import mean_over_clips
from telecine.perceptual import LPIPS
from telecine.report.page import write_report
from telecine.runs import Run
from telecine.runs.checkpoints import step_of
from telecine.runs.environment import environment
from telecine.runs.lock import RunLock
from telecine.runs.settings import read_saved_settings, write_settings
from telecine.settings import OptimizerConfig, TrainConfig
from telecine.training.baseline import describe_metrics, prepare_linear, recorded_linear
from telecine.training.build import build_accelerator, build_autoencoder, build_state
from telecine.training.checkpoint import Checkpointer, clips_per_step
from telecine.training.clips import build_clips, read_batches, read_next
from telecine.training.diagnostics import EMA_BEHIND, Diagnostics, RecentValues
from telecine.training.distributed import any_rank, describe_processes, on_first_process
from telecine.training.hub import create_repository, upload
from telecine.training.interrupt import StopRequest, interrupt_on_signal
from telecine.training.latents import describe_change, fill_latent_cache, measure_latents, open_cache
from telecine.training.logging import MetricsLogger, Monitor
from telecine.training.planning.capacity import largest_batch
from telecine.training.planning.speed import describe_on_cpu
from telecine.training.resume import check_same_data, check_same_networks
from telecine.training.state import LR_FACTOR, Rollback
from telecine.training.step import DivergenceError, MicroBatch, describe_warmup, set_learning_rates, train_step
from telecine.training.summary import SummaryWriter
from telecine.training.trainable import trains_encoder
from telecine.training.validation import TrainResult, Validation, read_result, validate, write_pictures

# How often a run goes back after a divergence.
_MAX_ROLLBACKS = 3
# Subfolder of a run for the files of its trackers.
_TRACKER_PROJECT = "tensorboard"
# Clips on which each validation compares the raw weights with the averaged ones.
_NUM_COMPARED = 4


class Trainer:
    """A training run: its state, clips, logs and checkpoints."""

    def __init__(
        self,
        config: TrainConfig,
        console: Console,
        autoencoder: nn.Module | None = None,
        *,
        steal_lock: bool = False,
        change_data: bool = False,
    ) -> None:
        self.start = time.monotonic()
        self.config = config
        self.files = Run(config.output_dir)
        set_seed(config.seed)
        self.accelerator = build_accelerator(config)
        self.is_main = self.accelerator.is_main_process
        self.console = console if self.is_main else Console(quiet=True)
        processes = describe_processes(self.accelerator, sharding=config.sharding)
        for line in (*processes, *describe_warmup(config.optimizer, config.steps)):
            self.console.print(line, soft_wrap=True)
        self.lock: RunLock | None = None
        on_first_process(lambda: self._take_lock(config.data, steal=steal_lock), self.accelerator)
        try:
            self._build(autoencoder, change_data=change_data)
        except BaseException:
            self._release_lock()
            raise

    def _take_lock(self, data: str | None, *, steal: bool) -> None:
        check_output("output_dir", data, self.files.folder)
        self.lock = RunLock(self.files.folder, steal=steal)
        mark_output(self.files.folder)

    def _release_lock(self) -> None:
        if self.lock is not None:
            self.lock.release()

    def _newest_intact(self) -> Path | None:
        """Return the newest checkpoint that is not damaged, or None."""
        found, notes = on_first_process(self.files.checkpoints.newest_intact, self.accelerator)
        for note in notes:
            self.console.print(f"warning: {note}", soft_wrap=True)
        return found

    def _build(self, autoencoder: nn.Module | None, *, change_data: bool) -> None:
        """Build everything that the run needs, and load the newest checkpoint that is not damaged."""
        found = self._newest_intact()
        if found is not None:
            check_same_networks(self.config, found)
            if not change_data:
                check_same_data(self.config.data, found)
        self.config = config = self._with_batch_size(found, is_own=autoencoder is not None)
        name = config.hub_model_id or self.files.folder.resolve().name
        self.hub_repository = create_repository(name) if config.push_to_hub and self.is_main else None
        model = build_autoencoder(config, autoencoder)
        self.console.print("reading the videos, and decoding them" if config.clips.cache else "reading the videos")
        with interrupt_on_signal():  # so that the index of what was read is saved
            self.clips = build_clips(config, model)
        if found is None and autoencoder is None and self.accelerator.device.type == "cpu":
            describe = partial(describe_on_cpu, config, model, num_processes=self.accelerator.num_processes)
            if (line := on_first_process(describe, self.accelerator)) is not None:
                self.console.print(line, soft_wrap=True)
        self.perceptual: dict[str, nn.Module] = {"lpips_alex": LPIPS("alex").to(self.accelerator.device)}
        self.linear: dict[str, float] = {}
        if self.is_main and found is None:  # the other processes get the weights that it starts from
            self.linear = prepare_linear(
                model,
                self.clips,
                self.perceptual,
                self.console,
                self.accelerator.device,
                start=config.linear_start,
                is_new=autoencoder is None and config.model is None,
                measure=config.linear_baseline,
            )
        self.normalisation = model.latent_normalisation()
        self.checkpointer = Checkpointer(config, model, is_main=self.is_main)
        self.state = build_state(config, self.accelerator, model, is_resumed=found is not None)
        self.console.print(f"{self.state.describe_size(config.steps)}; {self.clips.describe()}", soft_wrap=True)
        for note in self.checkpointer.load(self.state, found) if found is not None else ():
            self.console.print(note, soft_wrap=True)
        self.latents = open_cache(config.latent_cache, model, self.clips.train, self.accelerator)
        self.is_resumed = found is not None
        self._open_logs()
        if self.is_resumed:
            self.linear = recorded_linear(self.files)
        if self.lock is not None:
            self.files.remove_residue(self.lock.taken_at)
            self._remove_old_checkpoints()

    def _with_batch_size(self, found: Path | None, *, is_own: bool) -> TrainConfig:
        """Return the settings with the checkpoint's batch size, or the largest that fits, in place of "auto".

        Raises:
            ValueError: Not one clip fits, or the autoencoder is a custom module, which cannot be planned.
        """
        config = self.config
        if config.batch_size != "auto":
            return config
        if found is not None:
            return replace(config, batch_size=read_saved_settings(found)["batch_size"])
        if is_own:
            raise argument_error("batch_size", "a number for a custom module", '"auto"', "Choose one.")
        config = replace(config, batch_size=largest_batch(config, self.accelerator))
        self.console.print(f"batch size {config.batch_size} in each process, the largest that fits by the plan")
        return config

    def _open_logs(self) -> None:
        step = self.state.step
        if self.is_main:
            self.files.folder.mkdir(parents=True, exist_ok=True)
            if step < self.config.steps:  # otherwise nothing is trained with these settings
                write_settings(self.files.folder, self.config)
            self.files.write_environment(environment(self.accelerator.device))
            clips = clips_per_step(self.config, self.accelerator)
            self.summary = SummaryWriter(
                self.files, self.state, self.clips, clips, self.start, self.is_resumed, self.console
            )
        # TensorBoard drops what an interrupted run logged after its last checkpoint.
        purge = {"tensorboard": {"purge_step": step + 1}} if self.is_resumed else {}
        self.accelerator.init_trackers(_TRACKER_PROJECT, init_kwargs=purge)
        self._continue_records()

    def _continue_records(self) -> None:
        """Drop the records after the present step, which an interrupted run or a rollback has left."""
        if self.is_main:
            step = self.state.step if self.is_resumed else -1
            self.state.num_records, notes = self.files.cut(step, expected=self.state.num_records)
            for note in notes:
                self.console.print(f"warning: {note}", soft_wrap=True)
        self.logger = MetricsLogger(self.files, self.accelerator)
        recent, rollbacks = RecentValues(self.config), self.state.rollbacks
        self.diagnostics = Diagnostics(self.files, recent, self.console, enabled=self.is_main, rollbacks=rollbacks)

    def run(self, stop: StopRequest) -> None:
        """Train up to the last step.

        Raises:
            Interrupted: `stop` was set on a process.
        """
        if not self._is_validated():
            self.console.print(f"validating on {len(self.clips.val)} clips")
            self.validate(stop)
            if self.is_main and self.is_resumed:  # this validation may show that the checkpoint is the best
                self._remove_old_checkpoints()
        if self.state.step >= self.config.steps:
            self.console.print(f"already trained for {self.state.step} steps; use a larger --steps to train further")
        if self.latents is not None:
            with self._saved_if_stopped(stop) as check_stop:
                fill_latent_cache(
                    self.latents,
                    self.state,
                    self.clips.train,
                    self.console,
                    num_steps=self.config.steps,
                    batch_size=self.config.clips_per_pass,
                    num_micro_batches=self.config.gradient_accumulation_steps,
                    before_each=check_stop,
                )
        while self.state.step < self.config.steps:
            self._train(stop)

    def _remove_old_checkpoints(self) -> None:
        best = self.files.best_step(self.config.best_metric, self.state.step)
        self.files.checkpoints.remove_old(keep=self.config.keep, best=best)

    @contextmanager
    def _saved_if_stopped(self, stop: StopRequest) -> Iterator[Callable[[], None]]:
        """Yield a function that ends the block if a process has to stop; the state is saved then.

        Raises:
            Interrupted: `stop` was set on a process.
        """

        def check_stop() -> None:
            if any_rank(stop.is_set, self.accelerator.device):
                raise Interrupted(None)

        try:
            yield check_stop
        except Interrupted:
            saved = self.checkpointer.save(self.state) if self.state.step > 0 else None
            self.checkpointer.wait()
            raise Interrupted(saved) from None

    def _is_validated(self) -> bool:
        """Return whether the present step needs no validation, or had it before the run was interrupted."""
        step = self.state.step
        if step > 0 and not self._is_due(self.config.val_every):
            return True
        validated = [record["step"] for record in self.files.history.validations()]
        return any_rank(self.is_main and step in validated, self.accelerator.device)

    def _train(self, stop: StopRequest) -> None:
        """Train up to the last step, or to a divergence after which the run goes back."""
        try:
            self._update_until_the_end(stop)
            self.checkpointer.wait()
        except DivergenceError as error:
            self._go_back(error)

    def _go_back(self, error: DivergenceError) -> None:
        """Load the newest checkpoint and lower the learning rates, if `on_divergence` says so.

        Raises:
            TrainingError: It does not, there is no checkpoint, or the run went back as often as it may.
        """
        failed = self.checkpointer.wait_for_error()
        if failed is not None and not isinstance(failed, DivergenceError):
            raise failed
        found, past, step = self._newest_intact(), self.state.rollbacks, self.state.step
        if self.config.on_divergence == "stop" or found is None or len(past) == _MAX_ROLLBACKS:
            to = None if found is None else step_of(found)
            raise TrainingError(f"{error} {_remedy(self.config.optimizer, to, len(past))}") from error
        self.checkpointer.load(self.state, found)
        self.state.rollbacks = [*past, Rollback(step, self.state.step, error.value)]
        self.console.print(f"warning: {self.state.rollbacks[-1].describe(len(past) + 1)}", soft_wrap=True)
        self.is_resumed = True
        self._continue_records()

    def _update_until_the_end(self, stop: StopRequest) -> None:
        """The training loop."""
        config = self.config
        num_clips = clips_per_step(config, self.accelerator)
        with Monitor(self.console, num_steps=config.steps, start=self.state.step, batch_size=num_clips) as monitor:
            for batches in self._batches_until(stop):
                lr = set_learning_rates(self.state, config.optimizer, config.steps)
                values = train_step(self.state, batches, measure_update_ratio=self._is_due(config.log_every, ahead=1))
                self.state.log_means.add(values)
                monitor.show(self.state.step, values)
                if self._is_due(config.log_every):
                    self._log({"train/lr": lr, "train/clips_per_second": monitor.clips_per_second})
                if self._is_due(config.val_every):
                    self.validate(stop)
                if self._is_due(config.save_every):
                    self._measure_latents()
                    self.checkpointer.save(self.state)
                monitor.restart_clock()

    def _batches_until(self, stop: StopRequest) -> Iterator[list[MicroBatch]]:
        """Yield the micro-batches of each remaining step; before each update, save and raise if a process has to stop.

        Raises:
            Interrupted: `stop` was set on a process, or another process could not read its batch.
            DataError, OSError, RuntimeError: This process could not read its batch.
        """
        batches = self.batches(stop)
        while self.state.step < self.config.steps:
            batch, error = read_next(batches)
            has_to_stop = stop.is_set or error is not None or self.checkpointer.has_failed
            if any_rank(has_to_stop, self.accelerator.device):
                saved = self.checkpointer.save(self.state)
                self.checkpointer.wait()
                if error is not None:
                    note = f"cannot read the clips of step {self.state.step}; saved {saved}"
                    self.console.print(note, soft_wrap=True)
                raise error or Interrupted(saved)
            yield batch

    def batches(self, stop: StopRequest) -> Iterator[list[MicroBatch]]:
        """Yield the micro-batches of each remaining step, see `read_batches`."""
        return read_batches(
            self.clips.train,
            self.accelerator,
            batch_size=self.config.clips_per_pass,
            num_micro_batches=self.config.gradient_accumulation_steps,
            start_step=self.state.step,
            num_steps=self.config.steps,
            latents=self.latents,
            should_stop=lambda: stop.is_set,
        )

    def _is_due(self, every: int, *, ahead: int = 0) -> bool:
        step = self.state.step + ahead
        return step % every == 0 or step == self.config.steps

    def _log(self, speed: dict[str, float]) -> None:
        """Record the means of the updates since the last record, and check them."""
        self._add_record(self.state.log_means.pop() | speed)

    def _add_record(self, record: dict[str, float]) -> None:
        self.logger.write(self.state.step, record)
        self.diagnostics.check(self.state.step, record)
        self.state.num_records += 1
        if self.is_main:
            self.summary.write()

    def validate(self, stop: StopRequest) -> None:
        """Validate the averaged weights, record the result, and save a checkpoint if it is the best one.

        Raises:
            Interrupted: `stop` was set on a process. When the run resumes, it starts with this validation.
        """
        step, rank, num_ranks = self.state.step, self.accelerator.process_index, self.accelerator.num_processes
        ranks = {"rank": rank, "num_ranks": num_ranks}
        with self._saved_if_stopped(stop) as check_stop, self.state.ema.applied():
            clips, perceptual = self.clips.val, self.perceptual
            result = validate(self.state.autoencoder, clips, perceptual, before_each=check_stop, **ranks)
        lag: dict[str, float] = {}
        if step > 0:
            few = self.clips.val[:_NUM_COMPARED]
            raw = validate(self.state.autoencoder, few, {}, **ranks).metrics["psnr"]
            lag = {EMA_BEHIND: raw - mean_over_clips(result.per_clip[: len(few)])["psnr"]}
        if self.is_main:
            self._record(result, lag)
        if self.config.best_metric is not None:
            self.checkpointer.wait()  # the checkpoint that is being written may be the best one so far
        is_best = self.is_main and step > 0 and self.files.best_step(self.config.best_metric, step) == step
        if any_rank(is_best, self.accelerator.device):
            self._measure_latents()
            self.checkpointer.save(self.state)

    def _measure_latents(self) -> None:
        """If the encoder is trained, measure the latent of the averaged weights, which the next checkpoint carries."""
        state, num_clips = self.state, self.config.latent_clips
        known = self.checkpointer.latents
        if num_clips == 0 or not trains_encoder(state.autoencoder) or (known and known["step"] == state.step):
            return
        with state.ema.applied():
            statistics = measure_latents(state.autoencoder, self.clips.train, num_clips, self.accelerator)
        if statistics is None:
            return
        self.checkpointer.set_latent_statistics(state, statistics)
        if state.step == self.config.steps:
            change = describe_change(self.normalisation, state.autoencoder.latent_normalisation())
            self.console.print(f"normalisation of the latent over {num_clips} clips: {change}", soft_wrap=True)

    def _record(self, result: Validation, lag: dict[str, float]) -> None:
        step, fps = self.state.step, self.clips.fps
        values = {f"val/{name}": value for name, value in result.metrics.items()} | self.linear | lag
        values |= {f"latent/{name}": value for name, value in result.latent.items()}
        self._add_record(values)
        self.logger.preview(step, result.picture, fps)
        write_pictures(self.files, step, result, fps=fps)
        self.console.print(f"step {step}: held-out {describe_metrics(result.metrics)}", soft_wrap=True)
        if result.latent:
            self.console.print(f"step {step}: latent {describe_metrics(result.latent)}", soft_wrap=True)

    def publish(self) -> None:
        """Write the report, and upload the weights if `push_to_hub` is set; a finished run does so each time."""
        if self.is_main:
            write_report([self.files.folder])
        if self.hub_repository is not None:
            result = read_result(self.files)
            upload(self.hub_repository, result.checkpoint, self.config.model, result.last, steps=self.state.step)

    def result(self) -> TrainResult:
        """Return the folder of the run and its first and last validation; every process has to call this."""
        results = [read_result(self.files) if self.is_main else None]
        (result,) = broadcast_object_list(results)
        assert result is not None
        return result

    def close(self) -> None:
        """Wait for the last checkpoint, flush the trackers, and free the networks before the process group ends.

        Gloo's threads can outlive the interpreter if a model's wrapper does.
        """
        if (error := self.checkpointer.close()) is not None:  # another error ended the run before this one was raised
            self.console.print(f"warning: {error}", soft_wrap=True)
        del self.state
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()
        self._release_lock()


def _remedy(optimizer: OptimizerConfig, step: int | None, num_rollbacks: int) -> str:
    """Return what to do after a divergence that ends the run.

    Args:
        optimizer: The settings of the run.
        step: That of the newest checkpoint, None without one.
        num_rollbacks: How often the run went back already.
    """
    settings = f"--optimizer.lr {LR_FACTOR * optimizer.lr:g} --optimizer.disc_lr {LR_FACTOR * optimizer.disc_lr:g}"
    resumes = "it starts again, as it has no checkpoint" if step is None else f"it resumes from step {step}"
    tried = f"It went back {num_rollbacks} times already. " if num_rollbacks else ""
    return f"{tried}Run the same command with {settings}: {resumes}."
