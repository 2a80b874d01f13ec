"""The linear baseline of a run: how well a matrix with the same latent reconstructs the validation clips."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from rich.console import Console
from torch import nn

from telecine.base.precision import tf32
from telecine.base.shapes import Video
from telecine.base.terminal import with_progress
from telecine.data import Clip
from telecine.evaluation import ReconstructionMetrics
from telecine.evaluation.metrics import mean_over_clips
from telecine.models import CausalVAE, CustomAutoencoder, LinearAutoencoder, VideoAutoencoder
from telecine.models.student import StudentAutoencoder
from telecine.runs import Run
from telecine.settings import TrainConfig
from telecine.training.clips import Clips
from telecine.training.logging import print_lines

# Training clips that the baseline is fitted to: with ten times as many it is 0.01 dB better on the clips of the demo.
NUM_CLIPS = 300
# After 120 updates the demo has on average the PSNR of its start (benchmarks/results/2026-11-27-objectives.md).
_FEWEST_STEPS = 300
# The baseline's metrics are logged beside those of each validation, under this prefix, so that every plot shows them.
_PREFIX = "linear/"


def prepare_linear(
    model: VideoAutoencoder,
    clips: Clips,
    perceptual: Mapping[str, nn.Module],
    console: Console,
    device: torch.device,
    config: TrainConfig,
    *,
    is_new: bool,
) -> dict[str, float]:
    """Fit the baseline if `linear_start` or `linear_baseline` asks for it.

    Args:
        model: The autoencoder of the run. A new `CausalVAE` starts with the baseline, and so does a student's decoder.
        clips: The clips of the run.
        perceptual: The perceptual metrics of a validation by name.
        console: Where progress is printed.
        device: Where the baseline is measured.
        config: The settings of the run.
        is_new: Whether the weights of the model are random.

    Returns:
        The metrics of the baseline by their names in the log; empty without one.
    """
    if config.linear_start and isinstance(model, StudentAutoencoder):
        console.print(f"fitting the linear map of the student's decoder to {NUM_CLIPS} clips")
        model.to(device).start_from(training_clips(clips))
    starts_linear = config.linear_start and is_new and isinstance(model, CausalVAE)
    if not starts_linear and not config.linear_baseline:
        return {}
    console.print(f"fitting the linear baseline to {NUM_CLIPS} clips")
    linear = fit_linear(model, clips)
    if isinstance(linear, str):
        console.print(f"no linear baseline: {linear}")
        return {}
    if starts_linear:
        assert isinstance(model, CausalVAE)
        model.start_from(linear)
        if config.steps < _FEWEST_STEPS:
            text = f"{config.steps} steps may end below this linear start, with which training first has to catch up"
            print_lines(console, [f"{text}; use --steps {_FEWEST_STEPS} or more"])
    if not config.linear_baseline:
        return {}
    metrics = measure_linear(linear, clips.val, perceptual, device)
    print_lines(console, [f"linear baseline: held-out {describe_metrics(metrics)}"])
    return {f"{_PREFIX}{name}": value for name, value in metrics.items()}


def fit_linear(model: VideoAutoencoder, clips: Clips) -> LinearAutoencoder | str:
    """Return the linear autoencoder of a model's latent, fitted to training clips, or the reason why there is none."""
    linear = model.linear_autoencoder(*clips.val[0]["video"].shape[1:])
    if linear is None and isinstance(model, CustomAutoencoder):
        return f"{type(model.module).__name__} has no method `linear_autoencoder`"
    if linear is None:
        return "the frames or pixels of a clip do not divide evenly over the positions of this model's latent"
    for bucket in clips.train.config.train_buckets:
        if not linear.encoder.accepts(*bucket.shape):
            return f"clips of {bucket} do not consist of its patches"
    return linear.fit(training_clips(clips))


def training_clips(clips: Clips) -> Iterator[Video]:
    """Yield the clips that the baseline is fitted to, each `(1, C, T, H, W)`, with progress on the console."""
    for index in with_progress(range(NUM_CLIPS), "fitting the linear baseline"):
        yield clips.train[index]["video"][None]


@tf32(False)
@torch.no_grad()
def measure_linear(
    linear: LinearAutoencoder, val: Sequence[Clip], perceptual: Mapping[str, nn.Module], device: torch.device
) -> dict[str, float]:
    """Return the mean of each metric of the baseline over held-out clips.

    Args:
        linear: The baseline, which is moved to the device.
        val: The held-out clips.
        perceptual: The perceptual metrics of a validation by name.
        device: Where it is measured.
    """
    linear.to(device)
    metrics = ReconstructionMetrics(perceptual)
    for clip in val:
        target = clip["video"][None].to(device)
        metrics.update(reconstruction=linear(target), target=target)
    return mean_over_clips(metrics.per_clip())


def recorded_linear(run: Run) -> dict[str, float]:
    """Return the metrics of the baseline that a run has logged, or nothing if it has none."""
    first: dict[str, float] = next(iter(run.history), {})
    return {name: value for name, value in first.items() if name.startswith(_PREFIX)}


def describe_metrics(metrics: Mapping[str, float]) -> str:
    """Return the names and values of metrics in one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
