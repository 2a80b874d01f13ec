"""The training loop: update, log, validate, save; go back after a divergence; stop on request."""

from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any

from telecine.base.checks import TrainingError, count
from telecine.base.randomness import keep_random_state
from telecine.data import ClipBatchSampler
from telecine.evaluation.metrics import mean_over_clips
from telecine.report.clips import log_preview, write_clips, write_preview
from telecine.settings import OptimizerConfig
from telecine.training.checkpoint import best_step
from telecine.training.clips import read_batches, read_next
from telecine.training.diagnostics import EMA_BEHIND
from telecine.training.distributed import any_rank
from telecine.training.interrupt import StopRequest
from telecine.training.latent_cache import LatentCache, fill_latent_cache
from telecine.training.latent_normalisation import describe_change, measure_latents
from telecine.training.logging import Monitor, describe_metrics, print_lines, print_warnings
from telecine.training.start import newest_checkpoint
from telecine.training.state import LR_FACTOR, Rollback
from telecine.training.step import DivergenceError, set_learning_rates, train_step
from telecine.training.stopping import StopTogether, saved_on_stop
from telecine.training.trainable import trains_encoder
from telecine.training.training_run import TrainingRun
from telecine.training.validation import Validation, validate_model

# How often a run goes back after a divergence.
_MAX_ROLLBACKS = 3
# Clips on which each validation compares the raw weights with the averaged ones.
_NUM_COMPARED = 4


def train_to_the_end(run: TrainingRun, stop: StopRequest) -> None:
    """Train up to the last step. Every process has to call this.

    Args:
        run: The parts of the run.
        stop: A request to stop after the current update. It may be set on one process only.

    Raises:
        Interrupted: If the run has stopped on request. Its checkpoint is written.
        TrainingError: If the run has diverged, and cannot go back.
        DataError: If clips cannot be read. What was trained before is saved.
    """
    config = run.config
    state = run.state
    with saved_on_stop(run, stop) as stop_together:
        if not _is_validated(run):
            run.console.print(f"validating on {count(len(run.clips.val), 'clip')}")
            validate(run, stop_together)
            # This validation may show that the checkpoint of a resumed run is the best one.
            if state.step > 0:
                run.remove_old_checkpoints()
        # If the run was stopped before it had saved this step.
        if state.step > 0 and _is_due(run, config.save_every):
            _save(run, stop_together)
        if state.step >= config.steps:
            run.console.print(
                f"already trained for {state.step} steps; use a larger --steps to train further"
            )
        if run.latent_cache is not None:
            _fill_latent_cache(run, run.latent_cache, stop_together)
    while state.step < config.steps:
        try:
            with saved_on_stop(run, stop) as stop_together:
                _update_until_the_end(run, stop, stop_together)
            run.checkpointer.wait()
        except DivergenceError as error:
            _go_back(run, error)
    run.checkpointer.wait()  # for the checkpoint of a run that was finished before


def _update_until_the_end(run: TrainingRun, stop: StopRequest, stop_together: StopTogether) -> None:
    config = run.config
    state = run.state
    if config.dynamo_backend != "no":
        print_lines(run.console, ["compiling: the first updates may take minutes"])
    num_clips = config.clips_per_step(run.accelerator.num_processes)
    monitor = Monitor(run.console, num_steps=config.steps, start=state.step, batch_size=num_clips)
    batches = read_batches(
        config, state, run.clips.train, run.latent_cache, should_stop=lambda: stop.is_set
    )
    with closing(batches), monitor:
        while state.step < config.steps:
            micro_batches, error = read_next(batches)
            stop_together(error)
            lr = set_learning_rates(state, config.optimizer, config.steps)
            is_logged = _is_due(run, config.log_every, ahead=1)
            values = train_step(state, micro_batches, measure_update_ratio=is_logged)
            state.log_means.add(values)
            monitor.show(state.step, values)
            if _is_due(run, config.log_every):
                record = state.log_means.pop()
                record["train/lr"] = lr
                record["train/clips_per_second"] = monitor.clips_per_second
                run.records.add(state, record)
            if _is_due(run, config.val_every):
                validate(run, stop_together)
            if _is_due(run, config.save_every):
                _save(run, stop_together)
            monitor.restart_clock()


def _is_due(run: TrainingRun, every: int, *, ahead: int = 0) -> bool:
    """Return whether something that is done every few steps, and at the last one, is done `ahead` steps from now."""
    step = run.state.step + ahead
    return step % every == 0 or step == run.config.steps


def _fill_latent_cache(run: TrainingRun, cache: LatentCache, stop_together: StopTogether) -> None:
    per_step = run.config.gradient_accumulation_steps * run.accelerator.num_processes
    numbers = range(run.state.step * per_step, run.config.steps * per_step)
    sampler = ClipBatchSampler(numbers, run.config.clips_per_pass, per_step)
    fill_latent_cache(
        cache, run.state, run.clips.train, sampler, run.console, before_each=stop_together
    )


def _is_validated(run: TrainingRun) -> bool:
    """Return whether the present step needs no validation, or had it before the run was interrupted."""
    step = run.state.step
    if step > 0 and not _is_due(run, run.config.val_every):
        return True
    is_recorded = any(record["step"] == step for record in run.files.history.validations())
    return any_rank(run.is_main and is_recorded, run.accelerator.device)


def validate(run: TrainingRun, stop_together: StopTogether) -> None:
    """Validate the averaged weights, record the result, and save a checkpoint if it is the best one.

    Every process has to call this.

    Args:
        run: The parts of the run.
        stop_together: That of `saved_on_stop`. If it ends the validation, nothing is recorded.
    """
    config = run.config
    state = run.state
    model = state.autoencoder
    clips = run.clips.val
    bit_depth = config.clips.bit_depth
    device = run.accelerator.device
    # What a model draws here must not change what the updates draw.
    with keep_random_state(device), state.ema.applied():
        result = validate_model(model, clips, run.perceptual, bit_depth, before_each=stop_together)
    gap: dict[str, float] = {}
    if state.step > 0:
        with keep_random_state(device):
            raw = validate_model(model, clips[:_NUM_COMPARED], {}).metrics["psnr"]
        averaged = mean_over_clips(result.per_clip[:_NUM_COMPARED])["psnr"]
        gap[EMA_BEHIND] = raw - averaged
    if run.is_main:
        # Before the record, which ends the validation.
        write_clips(run.files, state.step, result.clips, fps=result.fps)
    record = {f"val/{name}": value for name, value in result.metrics.items()}
    record |= run.linear_metrics | run.teacher_metrics | gap
    record |= {f"latent/{name}": value for name, value in result.latent.items()}
    run.records.add(state, record)
    if run.is_main:
        _show(run, result)
    if config.best_metric is not None:
        run.checkpointer.wait()  # the checkpoint that is being written may be the best one so far
    is_best = (
        run.is_main
        and state.step > 0
        and best_step(run.files, config.best_metric, state.step) == state.step
    )
    if any_rank(is_best, run.accelerator.device):
        _save(run, stop_together)


def _show(run: TrainingRun, result: Validation) -> None:
    step = run.state.step
    log_preview(run.accelerator.trackers, step, result.picture, result.fps)
    write_preview(run.files.video_file, result.picture, result.fps)
    print_lines(run.console, [f"step {step}: held-out {describe_metrics(result.metrics)}"])
    if result.latent:
        print_lines(run.console, [f"step {step}: latent {describe_metrics(result.latent)}"])


def _save(run: TrainingRun, stop_together: StopTogether) -> None:
    """Save a checkpoint, with the statistics of the averaged weights' latent if the encoder is trained."""
    if run.config.latent_clips > 0 and trains_encoder(run.state.autoencoder):
        statistics = run.checkpointer.latents
        if statistics is None or statistics["step"] != run.state.step:
            _measure_latents(run, stop_together)
    run.checkpointer.save(run.state)


def _measure_latents(run: TrainingRun, stop_together: StopTogether) -> None:
    config = run.config
    state = run.state
    device = run.accelerator.device
    with keep_random_state(device), state.ema.applied():
        statistics = measure_latents(
            state.autoencoder, run.clips.train, config.latent_clips, run.accelerator, stop_together
        )
    if statistics is None:
        return
    run.checkpointer.set_latent_statistics(state, statistics)
    if state.step == config.steps:
        change = describe_change(run.first_normalisation, state.autoencoder.latent_normalisation())
        print_lines(
            run.console, [f"normalisation of the latent over {config.latent_clips} clips: {change}"]
        )


def _go_back(run: TrainingRun, error: DivergenceError) -> None:
    """Load the newest checkpoint and lower the learning rates, or raise a `TrainingError` if the run has to stop."""
    with suppress(DivergenceError):
        run.checkpointer.wait()
    checkpoint = newest_checkpoint(run.files, run.accelerator, run.console)
    state = run.state
    earlier = state.rollbacks
    diverged_at = state.step
    if run.config.on_divergence == "stop" or checkpoint is None or len(earlier) == _MAX_ROLLBACKS:
        saved = None
        if checkpoint is not None:
            saved = run.files.checkpoints.read_state(checkpoint, {"step", "rollbacks"})
        raise TrainingError(
            f"{error} {remedy_for_divergence(run.config.optimizer, saved, len(earlier))}"
        ) from error
    run.checkpointer.load(state, checkpoint)
    rollback = Rollback(diverged_at, state.step, error.value)
    state.rollbacks = [*earlier, rollback]
    print_warnings(run.console, [rollback.describe(len(state.rollbacks))])
    run.records.go_back(state)


def remedy_for_divergence(
    optimizer: OptimizerConfig, saved: Mapping[str, Any] | None, num_rollbacks: int
) -> str:
    """Return what to do after a divergence that ends a run: the same command with lower learning rates.

    Args:
        optimizer: The settings of the learning rates.
        saved: The `step` and the `rollbacks` of the newest checkpoint; `None` without a checkpoint.
        num_rollbacks: How often the run went back.
    """
    # A checkpoint from before the last rollbacks resumes at a higher learning rate than that of the divergence.
    num_saved = 0
    resumes = "it starts again, as it has no checkpoint"
    if saved is not None:
        num_saved = len(saved["rollbacks"])
        resumes = f"it resumes from step {saved['step']}"
    factor = LR_FACTOR ** (num_rollbacks + 1 - num_saved)
    tried = f"It went back {num_rollbacks} times already. " if num_rollbacks else ""
    rates = f"--optimizer.lr {factor * optimizer.lr:g} --optimizer.disc_lr {factor * optimizer.disc_lr:g}"
    return f"{tried}Run the same command with {rates}: {resumes}."
