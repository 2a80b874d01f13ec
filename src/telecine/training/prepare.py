"""Builds the parts of a run in the order in which they need each other."""

import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from torch import nn

from telecine.base.checks import Interrupted
from telecine.base.files import mark_output
from telecine.data.mapped import MapDataset
from telecine.data.outputs import check_output
from telecine.losses.perceptual import LPIPS
from telecine.models import (
    VideoAutoencoder,
)
from telecine.models.interface import check_buckets, check_channels
from telecine.runs import Run
from telecine.runs.lock import RunLock
from telecine.runs.summary import RunSummary
from telecine.settings import OptimizerConfig, TrainConfig
from telecine.training.baseline import (
    measure_baseline,
    measure_teacher,
    recorded_linear,
    recorded_teacher,
)
from telecine.training.build import build_accelerator, build_state
from telecine.training.checkpoint import Checkpointer
from telecine.training.clips import Clips, build_clips, map_clips
from telecine.training.distributed import (
    barrier_without_time_limit,
    describe_processes,
    leave_context_group,
    on_first_process,
    seed_other_processes,
)
from telecine.training.first_weights import build_model, fit_baseline, set_linear_maps
from telecine.training.interrupt import stop_on_signal
from telecine.training.latent_cache import open_cache
from telecine.training.logging import print_lines, print_warnings
from telecine.training.memory_limits import (
    describe_on_cpu,
    out_of_memory,
)
from telecine.training.records import Records
from telecine.training.resume import frozen_digests
from telecine.training.start import Start, find_start
from telecine.training.state import TrainState
from telecine.training.training_run import TrainingRun


def prepare(
    config: TrainConfig,
    console: Console,
    autoencoder: nn.Module | None = None,
    *,
    teacher: VideoAutoencoder | None = None,
    dataset: MapDataset | None = None,
    steal_lock: bool = False,
    change_data: bool = False,
) -> TrainingRun:
    """Build the parts of a run, which resumes from the newest intact checkpoint in its folder if there is one.

    The folder stays locked until the run is closed. Every process has to call this.

    Args:
        config: The settings.
        console: Where to print; only the first process does.
        autoencoder: A custom module to train instead of the model that `config.model` names.
        teacher: An autoencoder whose metrics are logged beside the run's.
        dataset: Clips to train on instead of files, see `train`.
        steal_lock: Take over the lock of another process.
        change_data: Resume although `config.data` is other data than the checkpoint's.

    Raises:
        ValueError: If a setting, the data or the folder is wrong.
        TrainingError: If the device is out of memory.
    """
    start_time = time.monotonic()
    set_seed(config.seed)
    accelerator = build_accelerator(config)
    if not accelerator.is_main_process:
        console = Console(quiet=True)
    print_lines(console, describe_processes(accelerator, sharding=config.sharding))
    if config.steps < config.optimizer.warmup_steps:
        print_warnings(console, [describe_short_warmup(config.optimizer, config.steps)])
    with ExitStack() as undo:  # what is undone if an error ends this
        undo.callback(leave_context_group)
        files = Run(config.output_dir)
        lock = RunLock(files.folder, steal=steal_lock)
        undo.callback(lock.release)
        on_first_process(partial(_lock, files, lock, config), accelerator)
        start = find_start(
            config, autoencoder, files, accelerator, console, change_data=change_data
        )
        try:
            run = _build(
                start,
                files,
                lock,
                accelerator,
                console,
                teacher=teacher,
                dataset=dataset,
                start_time=start_time,
                change_data=change_data,
            )
        except torch.OutOfMemoryError as error:
            raise out_of_memory(
                start.config, "at the start", is_custom=start.module is not None
            ) from error
        undo.pop_all()
        return run


def _lock(files: Run, lock: RunLock, config: TrainConfig) -> None:
    """Create the folder of a run if needed, and lock it.

    Raises:
        ValueError: The folder holds the data, another process trains in it, or it has links to other places.
    """
    check_output("output_dir", config.data, str(files.folder))
    files.check_files()
    lock.acquire()
    mark_output(files.folder)


def _build(
    start: Start,
    files: Run,
    lock: RunLock,
    accelerator: Accelerator,
    console: Console,
    *,
    teacher: VideoAutoencoder | None,
    dataset: MapDataset | None,
    start_time: float,
    change_data: bool,
) -> TrainingRun:
    """Build the parts of a run, each from those before it.

    The order matters: each block says what must precede it.
    """
    config = start.config
    device = accelerator.device
    is_main = accelerator.is_main_process
    is_resumed = start.checkpoint is not None

    # The repository comes first: without the right to upload, the run ends before anything is computed.
    hub_repository = None
    if config.push_to_hub and is_main:
        from telecine.training.hub import create_repository  # imports huggingface_hub

        hub_repository = create_repository(config.hub_model_id or files.folder.resolve().name)

    # The model, on the CPU: the next block takes the sizes of clips that it accepts from it.
    built = build_model(start, console)
    model = built.autoencoder

    # The data, and a plan of the memory for its clips before anything large is allocated.
    clips, data = _read_data(
        start, model, accelerator, console, dataset=dataset, change_data=change_data
    )
    if not is_resumed and start.module is None and device.type == "cpu":
        describe = partial(describe_on_cpu, config, model, num_processes=accelerator.num_processes)
        line = on_first_process(describe, accelerator)
        if line is not None:
            print_lines(console, [line])

    # The metrics of a validation, and the linear baseline, from which new weights start. The next block copies these
    # weights to the other processes and into the moving average.
    perceptual = _perceptual_metrics(config, console, device)
    linear_metrics: dict[str, float] = {}
    teacher_metrics: dict[str, float] = {}
    with barrier_without_time_limit():  # the other processes wait while the first one reads clips
        if is_main and not is_resumed:
            baseline = fit_baseline(config, built, clips, console)
            # In the first process alone: `build_state` copies its weights to the others.
            set_linear_maps(config, built, baseline, clips, console, device, teacher)
            if baseline is not None and config.linear_baseline:
                linear_metrics = measure_baseline(baseline, clips.val, perceptual, console, device)
            if teacher is not None:
                teacher_metrics = measure_teacher(teacher, clips.val, perceptual, console, device)

    # The state on the device, new or from the checkpoint. After it, the digests of frozen networks, and the cache,
    # which needs the weights of the encoder.
    checkpointer = Checkpointer(config, model, is_main=is_main)
    state = build_state(config, accelerator, model, is_resumed=is_resumed)
    seed_other_processes(config.seed)
    print_lines(console, [f"{state.describe_size(config.steps)}; {clips.describe()}"])
    if clips.held_out:
        print_lines(console, [f"held out: {clips.held_out}"])
    if start.checkpoint is not None:
        print_lines(console, checkpointer.load(state, start.checkpoint))
    first_normalisation = state.autoencoder.latent_normalisation()
    networks = on_first_process(partial(_digests_of_frozen, start, state), accelerator)
    latent_cache = open_cache(config.latent_cache, model, clips.train, accelerator)

    # The records up to the state's step, which the checkpoint decided.
    num_parameters, num_trained, num_disc_parameters = state.sizes()
    summary = RunSummary(
        num_parameters=num_parameters,
        num_trained=num_trained,
        num_disc_parameters=num_disc_parameters,
        clips_per_update=config.clips_per_step(accelerator.num_processes),
        seconds=0.0,
        peak_memory=None,
        copied=built.copied,
        networks={**networks, **built.init_digest},
        **data,
    ).after(start.summary, state.step)
    records = Records(config, accelerator, console, summary, start_time=start_time)
    records.open(state, has_summary=start.summary is not None, is_resumed=is_resumed)
    if is_main and is_resumed and summary.validated_from == 0:
        linear_metrics = recorded_linear(files)
        teacher_metrics = recorded_teacher(files)
    # The run. Files of before are removed last, when all its parts exist.
    run = TrainingRun(
        config=config,
        accelerator=accelerator,
        console=console,
        files=files,
        lock=lock,
        is_custom=start.module is not None,
        clips=clips,
        state=state,
        checkpointer=checkpointer,
        records=records,
        latent_cache=latent_cache,
        perceptual=perceptual,
        linear_metrics=linear_metrics,
        teacher_metrics=teacher_metrics,
        first_normalisation=first_normalisation,
        hub_repository=hub_repository,
    )
    run.remove_residue()
    run.remove_old_checkpoints()
    return run


def _digests_of_frozen(start: Start, state: TrainState) -> dict[str, str]:
    """Return digests of the networks that the run reads and does not train, after a check that they did not change."""
    networks = frozen_digests({"autoencoder": state.autoencoder, "objective": state.objective})
    if start.saved is not None:
        start.saved.check_frozen_networks(start.config, start.summary, networks)
    return networks


def _read_data(
    start: Start,
    model: VideoAutoencoder,
    accelerator: Accelerator,
    console: Console,
    *,
    dataset: MapDataset | None,
    change_data: bool,
) -> tuple[Clips, dict[str, Any]]:
    """Return the clips, and what the summary records of them, after a check that the checkpoint has the same."""
    config = start.config
    # Mistakes that need no data are reported before it is read.
    check_channels(config.clips, model)
    check_buckets(config.clips.train_buckets, model, images=config.clips.image_ratio > 0)
    console.print("reading the data, and decoding it" if config.clips.cache else "reading the data")
    # A stop loses nothing: the index of the files that were read is saved.
    with stop_on_signal(at_once=Interrupted(start.checkpoint)):
        if dataset is None:
            clips = build_clips(config, model)
        else:
            clips = map_clips(config, dataset)
    data = clips.recorded()
    if start.saved is not None and not change_data:
        changes = on_first_process(
            partial(start.saved.check_clips, config, start.summary, data), accelerator
        )
        if changes:
            print_warnings(console, [f"the data has changed: {', '.join(changes)}"])
    return clips, data


def _perceptual_metrics(
    config: TrainConfig, console: Console, device: torch.device
) -> dict[str, nn.Module]:
    """Return the perceptual metrics of a validation by name; none, with a line on the console, without colours."""
    if config.clips.has_colours:
        return {"lpips_alex": LPIPS("alex").to(device)}
    print_lines(console, ["validation without LPIPS: it needs grey, RGB or RGBA frames"])
    return {}


def describe_short_warmup(config: OptimizerConfig, num_steps: int) -> str:
    """Return a warning about a run that ends inside its warm-up, whose small rates change the weights little."""
    fraction = num_steps / config.warmup_steps
    return (
        f"the run ends within its warm-up: after {num_steps} of {config.warmup_steps} steps, {fraction:.2g} of "
        "`optimizer.lr` is reached; use a smaller `--optimizer.warmup_steps`"
    )
