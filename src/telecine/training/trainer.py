"""The training loop: update, log, validate, save, until the last step or until the run is interrupted."""

import gc
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor, nn

from telecine.base.checks import Interrupted, TrainingError, argument_error
from telecine.base.devices import peak_memory
from telecine.base.files import mark_output
from telecine.data import ClipBatchSampler, ClipLoader
from telecine.data.find import check_output
from telecine.evaluation.metrics import mean_over_clips
from telecine.losses.perceptual import LPIPS
from telecine.models.transfer import copy_from
from telecine.report.clips import log_preview, write_clips, write_preview
from telecine.report.page import write_report
from telecine.runs import Run
from telecine.runs.environment import environment
from telecine.runs.lock import RunLock
from telecine.runs.run import RunSummary
from telecine.runs.settings import plain_settings, read_saved_settings, write_settings
from telecine.settings import OptimizerConfig, TrainConfig
from telecine.training.baseline import describe_metrics, prepare_linear, recorded_linear
from telecine.training.build import build_accelerator, build_autoencoder, build_state, custom_module
from telecine.training.checkpoint import Checkpointer
from telecine.training.clips import build_clips, read_next
from telecine.training.diagnostics import EMA_BEHIND, Diagnostics, RecentValues
from telecine.training.distributed import any_rank, barrier_without_time_limit, describe_processes, on_first_process
from telecine.training.hub import create_repository, upload
from telecine.training.interrupt import StopRequest, stop_on_signal
from telecine.training.latent_cache import describe_change, fill_latent_cache, measure_latents, open_cache
from telecine.training.logging import Monitor
from telecine.training.memory_limits import MAX_ON_CPU, describe_on_cpu, largest_batch, out_of_memory
from telecine.training.resume import SavedSettings, check_records
from telecine.training.state import LR_FACTOR, Rollback
from telecine.training.step import DivergenceError, MicroBatch, set_learning_rates, train_step
from telecine.training.trackers import drop_after, start_trackers
from telecine.training.trainable import trains_encoder
from telecine.training.validation import TrainResult, Validation, validate_model

# How often a run goes back after a divergence.
_MAX_ROLLBACKS = 3
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
        self._print(*describe_processes(self.accelerator, sharding=config.sharding))
        self._print(*_describe_warmup(config.optimizer, config.steps))
        self.lock: RunLock | None = None
        on_first_process(lambda: self._take_lock(config.data, steal=steal_lock), self.accelerator)
        self.is_custom = True
        try:
            if autoencoder is None:
                autoencoder = custom_module(config.model, config.model_arguments, random_weights=config.random_weights)
            self.is_custom = autoencoder is not None
            self._build(autoencoder, change_data=change_data)
        except BaseException as error:
            self._release_lock()
            if isinstance(error, torch.OutOfMemoryError):
                raise out_of_memory(self.config, "at the start", is_custom=self.is_custom) from error
            raise

    def _print(self, *lines: str) -> None:
        for line in lines:
            self.console.print(line, soft_wrap=True)

    def _warn(self, notes: Iterable[str]) -> None:
        self._print(*(f"warning: {note}" for note in notes))

    def _take_lock(self, data: str | None, *, steal: bool) -> None:
        check_output("output_dir", data, self.config.output_dir)
        self.files.check_files()
        self.lock = RunLock(self.files.folder, steal=steal)
        mark_output(self.files.folder)

    def _release_lock(self) -> None:
        if self.lock is not None:
            self.lock.release()

    def _newest_intact(self) -> Path | None:
        found, notes = on_first_process(self.files.checkpoints.newest_intact, self.accelerator)
        self._warn(notes)
        if any_rank(found is not None and not found.is_dir(), self.accelerator.device):
            remedy = "Use such a folder, or copy this one to the other machines."
            raise argument_error("output_dir", "a folder that all processes see", str(self.files.folder), remedy)
        return found

    def _build(self, autoencoder: nn.Module | None, *, change_data: bool) -> None:
        found = self._newest_intact()
        self.is_resumed = found is not None
        before = self.before = _summary_before(self.files, self.console) if self.is_main and self.is_resumed else None
        if found is not None:
            saved = SavedSettings(found)
            saved.check_networks(self.config)
            if not change_data:
                saved.check_data(self.config.data, is_same=True)  # which is known once it is read
            self._keep_start(saved.values)
        else:
            self._warn(on_first_process(partial(check_records, self.files), self.accelerator))
        self.config = config = self._with_batch_size(found)
        name = config.hub_model_id or self.files.folder.resolve().name
        self.hub_repository = create_repository(name) if config.push_to_hub and self.is_main else None
        model = build_autoencoder(config, autoencoder)
        self.copied = self._copy_init(model)
        self.console.print("reading the data, and decoding it" if config.clips.cache else "reading the data")
        with stop_on_signal(at_once=Interrupted(found)):  # so that the index of what was read is saved
            clips = self.clips = build_clips(config, model)
        data = self.data = clips.recorded()
        if found is not None and not change_data:
            changes = on_first_process(lambda: saved.check_clips(config, before, data), self.accelerator)
            self._warn([f"the data has changed: {', '.join(changes)}"] if changes else [])
        device = self.accelerator.device
        if found is None and autoencoder is None and device.type == "cpu":
            describe = partial(describe_on_cpu, config, model, num_processes=self.accelerator.num_processes)
            if (line := on_first_process(describe, self.accelerator)) is not None:
                self._print(line)
        # LPIPS knows colours.
        self.perceptual = {"lpips_alex": LPIPS("alex").to(device)} if config.clips.has_colours else {}
        self.linear: dict[str, float] = {}
        with barrier_without_time_limit():  # as it reads clips
            if self.is_main and found is None:  # the other processes get the weights that it starts from
                has_linear = self.copied.get("encoder.linear", (0, 0))[0] > 0
                is_new = autoencoder is None and config.model is None and not has_linear
                self.linear = prepare_linear(model, clips, self.perceptual, self.console, device, config, is_new=is_new)
        self.normalisation = model.latent_normalisation()
        self.checkpointer = Checkpointer(config, model, is_main=self.is_main)
        self.state = build_state(config, self.accelerator, model, is_resumed=self.is_resumed)
        self._print(f"{self.state.describe_size(config.steps)}; {clips.describe()}")
        if found is not None:
            self._print(*self.checkpointer.load(self.state, found))
        self.latents = open_cache(config.latent_cache, model, clips.train, self.accelerator)
        self._open_logs()
        if self.is_main and self.is_resumed and self.summary.validated_from == 0:
            self.linear = recorded_linear(self.files)
        if self.lock is not None:
            self.files.remove_residue(self.lock.taken_at)
            self._remove_old_checkpoints()

    def _keep_start(self, saved: Mapping[str, Any]) -> None:
        """Keep what a run that resumes has started from, and warn if its settings now name something else."""
        config, model, discriminators = self.config, saved.get("init"), saved["discriminator"].get("init")
        pairs = {"init": (config.init, model), "discriminator.init": (config.discriminator.init, discriminators)}
        self._warn(f"`{name}` stays {old!r}, as the run started" for name, (new, old) in pairs.items() if new != old)
        self.config = replace(config, init=model, discriminator=replace(config.discriminator, init=discriminators))

    def _copy_init(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        if self.is_resumed or self.config.init is None:
            return {}
        copied = copy_from(self.config.init, model)
        self._print(f"parameters from {self.config.init}: {RunSummary.describe_copied(copied)}")
        return copied

    def _with_batch_size(self, found: Path | None) -> TrainConfig:
        """Return the settings with the checkpoint's batch size, or the largest that fits, in place of "auto"."""
        if self.config.batch_size != "auto":
            return self.config
        if found is not None:
            return replace(self.config, batch_size=read_saved_settings(found)["batch_size"])
        if self.is_custom:  # its memory cannot be planned
            raise argument_error("batch_size", "a number for a custom module", '"auto"', "Choose one.")
        size = largest_batch(self.config, self.accelerator)
        is_bound = self.accelerator.device.type == "cpu" and size == MAX_ON_CPU
        why = "the most on a CPU, where more are no faster" if is_bound else "the largest that fits by the plan"
        rates = f"learning rates stay {self.config.optimizer.lr:g} and {self.config.optimizer.disc_lr:g}"
        self._print(f"batch size {size} in each process, {why}; {rates}, whatever the batch size")
        return replace(self.config, batch_size=size)

    def _open_logs(self) -> None:
        step = self.state.step
        if self.is_main:
            self.files.write_environment(environment(self.accelerator.device))
            num_clips = self.config.clips_per_step(self.accelerator.num_processes)
            known = {**self.data, "seconds": 0.0, "peak_memory": None, "copied": self.copied}
            self.summary = RunSummary(*self.state.sizes(), clips_per_update=num_clips, **known).after(self.before, step)
            if step < self.config.steps:  # otherwise nothing is trained with these settings
                write_settings(self.files.folder, self.config)
                if self.summary.validated_from > step:
                    self._warn(["other held-out clips: earlier validations and the linear baseline no longer count"])
            if self.before is None:  # the run is new, or its summary damaged
                self.files.write_summary(self.summary)
        self._continue_records()
        resumed_at = step if self.is_resumed else None
        start = partial(start_trackers, self.accelerator, plain_settings(self.config), self.files, resumed_at)
        on_first_process(start, self.accelerator)

    def _continue_records(self) -> None:
        """Drop the records after the present step, which an interrupted run or a rollback has left."""
        if self.is_main:
            step = self.state.step if self.is_resumed else -1
            self.state.num_records, notes = self.files.cut(step, expected=self.state.num_records)
            self._warn(notes)
            rollbacks = self.state.rollbacks
            values = RecentValues(self.config.objective, self.config.optimizer, self.config.steps)
            self.diagnostics = Diagnostics(self.files, values, console=self.console, rollbacks=rollbacks)

    def run(self, stop: StopRequest) -> None:
        """Train up to the last step, or raise `Interrupted` once `stop` is set on a process."""
        if not self._is_validated():
            self.console.print(f"validating on {len(self.clips.val)} clips")
            self.validate(stop)
            if self.is_main and self.is_resumed:  # this validation may show that the checkpoint is the best
                self._remove_old_checkpoints()
        if self.state.step > 0 and self._is_due(self.config.save_every):  # a stop in the validation came before it
            self._save(stop)
        if self.state.step >= self.config.steps:
            self.console.print(f"already trained for {self.state.step} steps; use a larger --steps to train further")
        if self.latents is not None:
            per_step = self.config.gradient_accumulation_steps * self.accelerator.num_processes
            numbers = range(self.state.step * per_step, self.config.steps * per_step)
            sampler = ClipBatchSampler(numbers, self.config.clips_per_pass, per_step)
            with self._saved_if_stopped(stop) as check_stop:
                fill_latent_cache(self.latents, self.state, self.clips.train, sampler, self.console, check_stop)
        while self.state.step < self.config.steps:
            try:
                self._update_until_the_end(stop)
                self.checkpointer.wait()
            except DivergenceError as error:
                self._go_back(error)
        self.checkpointer.wait()  # for that of a run that was finished before

    def _remove_old_checkpoints(self) -> None:
        best = self.files.best_step(self.config.best_metric, self.state.step)
        self.files.checkpoints.remove_old(keep=self.config.keep, best=best)

    @contextmanager
    def _saved_if_stopped(self, stop: StopRequest) -> Iterator[Callable[..., None]]:
        """Yield a function that ends the block if a process has an error or has to stop; then save, and raise."""

        def check_stop(error: Exception | None = None) -> None:
            if any_rank(stop.is_set or error is not None or self.checkpointer.has_failed, self.accelerator.device):
                raise Interrupted(None) from error

        try:
            yield check_stop
        except Interrupted as stopped:
            saved = self.checkpointer.save(self.state) if self.state.step > 0 else None
            self.checkpointer.wait()
            if error := stopped.__cause__:
                self._print(f"cannot read the clips of step {self.state.step}; saved {saved or 'nothing'}")
                raise error from error.__cause__
            raise Interrupted(saved) from None

    def _fork_rng(self) -> AbstractContextManager[None]:
        """Return a context in which the random numbers that a model draws change none of those of the updates."""
        device = self.accelerator.device
        return torch.random.fork_rng([device] if device.type == "cuda" else [])

    def _is_validated(self) -> bool:
        """Return whether the present step needs no validation, or had it before the run was interrupted."""
        step = self.state.step
        if step > 0 and not self._is_due(self.config.val_every):
            return True
        is_recorded = any(record["step"] == step for record in self.files.history.validations())
        return any_rank(self.is_main and is_recorded, self.accelerator.device)

    def _go_back(self, error: DivergenceError) -> None:
        """Load the newest checkpoint and lower the learning rates, or raise a `TrainingError` if the run must stop."""
        with suppress(DivergenceError):
            self.checkpointer.wait()
        found, past, step = self._newest_intact(), self.state.rollbacks, self.state.step
        if self.config.on_divergence == "stop" or found is None or len(past) == _MAX_ROLLBACKS:
            saved = None if found is None else self.files.checkpoints.read_state(found, {"step", "rollbacks"})
            raise TrainingError(f"{error} {_remedy(self.config.optimizer, saved, len(past))}") from error
        self.checkpointer.load(self.state, found)
        self.state.rollbacks = [*past, rollback := Rollback(step, self.state.step, error.value)]
        self._warn([rollback.describe(len(past) + 1)])
        self.is_resumed = True
        drop_after(self.state.step, self.accelerator.trackers)
        self._continue_records()

    def _update_until_the_end(self, stop: StopRequest) -> None:
        config = self.config
        num_clips = config.clips_per_step(self.accelerator.num_processes)
        if config.dynamo_backend != "no":
            self._print("compiling: the first updates may take minutes")
        monitor = Monitor(self.console, num_steps=config.steps, start=self.state.step, batch_size=num_clips)
        with closing(self.batches(stop)) as batches, monitor:
            while self.state.step < config.steps:
                with self._saved_if_stopped(stop) as check_stop:
                    micro_batches, error = read_next(batches)
                    check_stop(error)
                lr = set_learning_rates(self.state, config.optimizer, config.steps)
                is_logged = self._is_due(config.log_every, ahead=1)
                values = train_step(self.state, micro_batches, measure_update_ratio=is_logged)
                self.state.log_means.add(values)
                monitor.show(self.state.step, values)
                if self._is_due(config.log_every):
                    speed = {"train/lr": lr, "train/clips_per_second": monitor.clips_per_second}
                    self._add_record(self.state.log_means.pop() | speed)
                if self._is_due(config.val_every):
                    self.validate(stop)
                if self._is_due(config.save_every):
                    self._save(stop)
                monitor.restart_clock()

    def batches(self, stop: StopRequest) -> Generator[list[MicroBatch], None, None]:
        """Yield the micro-batches of each remaining step, on the device of this process, see `ClipLoader`."""
        clips, accelerator = self.clips.train, self.accelerator
        per_step, num_ranks = self.config.gradient_accumulation_steps, accelerator.num_processes
        numbers = range(self.state.step * per_step, self.config.steps * per_step)
        sampler = ClipBatchSampler(numbers, self.config.clips_per_pass, per_step, accelerator.process_index, num_ranks)
        loader = ClipLoader(clips, sampler, should_stop=lambda: stop.is_set)
        batches: list[MicroBatch] = []
        # On MPS such a copy may read memory that was freed: https://github.com/pytorch/pytorch/issues/139550
        at_once = accelerator.device.type == "mps"
        videos: Iterable[Tensor | None] = (b["video"].to(accelerator.device, non_blocking=not at_once) for b in loader)
        if self.latents is not None and self.state.autoencoder.trains_on_latents:
            videos = repeat(None, len(sampler))
        for items, video in zip(sampler, videos, strict=True):
            posterior = None if self.latents is None else self.latents.read(clips.names_of(items), accelerator.device)
            if video is None:
                assert posterior is not None
                video = posterior.mode()
            batches.append(MicroBatch(video, [index for _, index in items], posterior))
            if len(batches) == self.config.gradient_accumulation_steps:
                yield batches
                batches = []

    def _is_due(self, every: int, *, ahead: int = 0) -> bool:
        step = self.state.step + ahead
        return step % every == 0 or step == self.config.steps

    def _add_record(self, record: dict[str, float]) -> None:
        step = self.state.step
        if self.is_main:
            self.files.history.append({"step": step, **record})
            self.accelerator.log(dict(record), step=step)
            self.diagnostics.check(step, record)
            self.files.write_summary(self.summary.until_now(self.start, peak_memory(self.accelerator.device)))
        self.state.num_records += 1

    def validate(self, stop: StopRequest) -> None:
        """Validate the averaged weights, record the result, and save a checkpoint if it is the best one."""
        step, model, clips = self.state.step, self.state.autoencoder, self.clips.val
        with self._saved_if_stopped(stop) as check_stop, self._fork_rng(), self.state.ema.applied():
            result = validate_model(model, clips, self.perceptual, self.config.clips.bit_depth, before_each=check_stop)
        lag: dict[str, float] = {}
        if step > 0:
            with self._fork_rng():
                raw = validate_model(model, clips[:_NUM_COMPARED], {}).metrics["psnr"]
            lag = {EMA_BEHIND: raw - mean_over_clips(result.per_clip[:_NUM_COMPARED])["psnr"]}
        if self.is_main:
            self._record(result, lag)
        if self.config.best_metric is not None:
            self.checkpointer.wait()  # the checkpoint that is being written may be the best one so far
        is_best = self.is_main and step > 0 and self.files.best_step(self.config.best_metric, step) == step
        if any_rank(is_best, self.accelerator.device):
            self._save(stop)

    def _save(self, stop: StopRequest) -> None:
        self._measure_latents(stop)
        self.checkpointer.save(self.state)

    def _measure_latents(self, stop: StopRequest) -> None:
        """If the encoder is trained, measure the latent of the averaged weights, which the next checkpoint carries."""
        state, num_clips, known = self.state, self.config.latent_clips, self.checkpointer.latents
        if num_clips == 0 or not trains_encoder(state.autoencoder) or (known and known["step"] == state.step):
            return
        with self._saved_if_stopped(stop) as check_stop, self._fork_rng(), state.ema.applied():
            statistics = measure_latents(state.autoencoder, self.clips.train, num_clips, self.accelerator, check_stop)
        if statistics is None:
            return
        self.checkpointer.set_latent_statistics(state, statistics)
        if state.step == self.config.steps:
            change = describe_change(self.normalisation, state.autoencoder.latent_normalisation())
            self._print(f"normalisation of the latent over {num_clips} clips: {change}")

    def _record(self, result: Validation, lag: dict[str, float]) -> None:
        step = self.state.step
        values = {f"val/{name}": value for name, value in result.metrics.items()}
        latent = {f"latent/{name}": value for name, value in result.latent.items()}
        write_clips(self.files, step, result.clips, fps=result.fps)  # first: with its record, a validation is done
        self._add_record(values | self.linear | lag | latent)
        log_preview(self.accelerator.trackers, step, result.picture, result.fps)
        write_preview(self.files.video_file, result.picture, result.fps)
        self._print(f"step {step}: held-out {describe_metrics(result.metrics)}")
        if result.latent:
            self._print(f"step {step}: latent {describe_metrics(result.latent)}")

    def result(self) -> TrainResult:
        """Write the report, upload the weights if `push_to_hub` is set, also again. Every process has to call this."""
        with barrier_without_time_limit():
            if self.is_main:
                try:
                    write_report([self.files.folder])
                except (OSError, ValueError) as error:
                    self._warn([f"no report: {error}"])
            if self.hub_repository is not None:
                result = self._read_result()
                upload(self.hub_repository, result.checkpoint, self.config.model, result.last, steps=self.state.step)
        return on_first_process(self._read_result, self.accelerator)

    def _read_result(self) -> TrainResult:
        first, last = self.files.first_and_last()
        return TrainResult(self.files.folder, self.files.checkpoints.all()[-1][1], first, last)

    def close(self) -> None:
        """Wait for the last checkpoint, flush the trackers, and free the networks before the process group ends."""
        if (error := self.checkpointer.close()) is not None:  # another error ended the run before this one was raised
            self._warn([str(error)])
        del self.state  # Gloo's threads can outlive the interpreter if a model's wrapper does
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()
        self._release_lock()


def _remedy(optimizer: OptimizerConfig, checkpoint: Mapping[str, Any] | None, num_rollbacks: int) -> str:
    """Return what to do after a divergence that ends the run: a rate below the last, from the state of a checkpoint."""
    # A checkpoint from before the last times that the run went back resumes at a higher rate than the last.
    factor = LR_FACTOR ** (num_rollbacks + 1 - len(checkpoint["rollbacks"] if checkpoint else []))
    settings = f"--optimizer.lr {factor * optimizer.lr:g} --optimizer.disc_lr {factor * optimizer.disc_lr:g}"
    resumes = f"it resumes from step {checkpoint['step']}" if checkpoint else "it starts again, as it has no checkpoint"
    tried = f"It went back {num_rollbacks} times already. " if num_rollbacks else ""
    return f"{tried}Run the same command with {settings}: {resumes}."


def _describe_warmup(config: OptimizerConfig, num_steps: int) -> list[str]:
    """Return a line for the console if a run ends inside its warm-up, whose small rates change the weights little."""
    if num_steps >= config.warmup_steps:
        return []
    ends = f"the run ends within its warm-up: after {num_steps} of {config.warmup_steps} steps, "
    reached = f"{num_steps / config.warmup_steps:.2g} of `optimizer.lr` is reached"
    return [f"{ends}{reached}; use a smaller `--optimizer.warmup_steps`"]


def _summary_before(run: Run, console: Console) -> RunSummary | None:
    try:
        return run.summary()
    except ValueError as damaged:
        console.print(f"warning: {damaged} The time before is not counted.", soft_wrap=True)
        return None
