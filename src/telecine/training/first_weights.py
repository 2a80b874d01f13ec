"""The model of a run, and the weights that a new one starts with."""

from dataclasses import dataclass, field
from typing import cast

import torch
from rich.console import Console

from telecine.models import (
    CausalVAE,
    CustomAutoencoder,
    LinearAutoencoder,
    VideoAutoencoder,
    as_video_autoencoder,
)
from telecine.models.custom_reload import check_reload
from telecine.models.pretrained import digest_of_tensors
from telecine.models.student import StudentAutoencoder
from telecine.models.transfer import copy_matching, load_source
from telecine.runs.summary import RunSummary
from telecine.settings import TrainConfig
from telecine.training.baseline import (
    NUM_CLIPS,
    NoBaselineError,
    fit_linear,
    training_clips,
)
from telecine.training.build import build_autoencoder
from telecine.training.clips import Clips
from telecine.training.logging import print_lines, print_warnings
from telecine.training.start import Start
from telecine.training.trainable import trains_encoder

# After 120 updates the demo has on average the PSNR of its start (benchmarks/results/2026-11-27-objectives.md).
_FEWEST_STEPS = 300
_ENCODER_CHANGES = (
    "the encoder is trained, too: generators that were trained on latents of this model no longer fit; "
    "--config decoder keeps its latents"
)


@dataclass(frozen=True)
class BuiltModel:
    """The model of a run, and where its weights are from."""

    autoencoder: VideoAutoencoder
    """On the CPU."""
    has_new_linear_map: bool
    """Whether it is telecine's own autoencoder, whose linear map is random."""
    copied: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The numbers of parameters from `init`, see `RunSummary.copied`."""
    init_digest: dict[str, str] = field(default_factory=dict)
    """The digest of the weights of `init`, by the name "init"."""


def build_model(start: Start, console: Console) -> BuiltModel:
    """Build the model, with weights of `init` in a new run."""
    config = start.config
    is_resumed = start.checkpoint is not None
    module = start.module
    if module is not None:
        module = as_video_autoencoder(module)
        if isinstance(module, CustomAutoencoder):
            warning = check_reload(module)
            if warning is not None:
                print_warnings(console, [warning])
    model = build_autoencoder(config, module)
    is_trained_on = config.model is not None and not config.random_weights and start.module is None
    if is_trained_on and not is_resumed and trains_encoder(model):
        print_warnings(console, [_ENCODER_CHANGES])
    is_named = start.module is not None or config.model is not None
    if config.init is None or is_resumed:
        return BuiltModel(model, has_new_linear_map=not is_named and not is_resumed)
    source = load_source(config.init, into=model)
    assert isinstance(model, CausalVAE)
    copied = copy_matching(source, into=model)
    print_lines(console, [f"parameters from {config.init}: {RunSummary.describe_copied(copied)}"])
    num_copied, _ = copied["encoder.linear"]
    return BuiltModel(
        model,
        has_new_linear_map=not is_named and num_copied == 0,
        copied=copied,
        init_digest={"init": digest_of_tensors(source.state_dict().items())},
    )


def fit_baseline(
    config: TrainConfig, built: BuiltModel, clips: Clips, console: Console
) -> LinearAutoencoder | None:
    """Return the linear baseline; None if the model has none, or no setting needs it."""
    starts_from_it = config.linear_start and built.has_new_linear_map
    if not starts_from_it and not config.linear_baseline:
        return None
    try:
        return fit_linear(built.autoencoder, clips, console)
    except NoBaselineError as reason:
        console.print(f"no linear baseline: {reason}")
        return None


def set_linear_maps(
    config: TrainConfig,
    built: BuiltModel,
    baseline: LinearAutoencoder | None,
    clips: Clips,
    console: Console,
    device: torch.device,
    teacher: VideoAutoencoder | None,
) -> None:
    """Set new weights to linear maps in place: telecine's own model to the baseline, a student's to its best.

    Args:
        config: The settings: `linear_start`, and the number of steps.
        built: The model, which is changed.
        baseline: The fitted baseline, if there is one.
        clips: The clips of the run.
        console: Where progress is printed.
        device: Where the maps of a student are fitted.
        teacher: The teacher of a student. The maps of a new autoencoder are fitted to its latents.
    """
    model = built.autoencoder
    if not config.linear_start:
        return
    if isinstance(model, StudentAutoencoder):
        console.print(f"fitting the linear map of the student's decoder to {NUM_CLIPS} clips")
        model.to(device).fit_linear_to_latents(
            training_clips(clips, "fitting the student's decoder")
        )
    if not built.has_new_linear_map or baseline is None:
        return
    if teacher is not None:
        console.print(f"fitting the linear maps of the student to {NUM_CLIPS} clips")
        student = cast(CausalVAE, model).to(device)
        videos = training_clips(clips, "fitting the student's linear maps")
        student.fit_linear_to_teacher(teacher.to(device).eval(), videos)
        teacher.to("cpu")
    else:
        cast(CausalVAE, model).copy_linear(baseline)
        if config.steps < _FEWEST_STEPS:
            text = (
                f"{config.steps} steps may end below this linear start, with which training first has to catch up; "
                f"use --steps {_FEWEST_STEPS} or more"
            )
            print_warnings(console, [text])
