"""What a run is compared with on its validation clips: a matrix with the same latent, and the teacher of a student."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from rich.console import Console
from torch import nn

from telecine.base.precision import tf32
from telecine.base.shapes import Video
from telecine.base.terminal import with_progress
from telecine.data import Clip
from telecine.evaluation import ReconstructionMetrics
from telecine.evaluation.metrics import mean_over_clips
from telecine.models import CustomAutoencoder, LinearAutoencoder, VideoAutoencoder
from telecine.runs import Run
from telecine.training.clips import Clips
from telecine.training.logging import describe_metrics, print_lines

# Training clips that the baseline is fitted to: with ten times as many it is 0.01 dB better on the clips of the demo.
NUM_CLIPS = 300
# These metrics are logged beside those of each validation, under a prefix, so that every plot shows them.
_LINEAR = "linear/"
_TEACHER = "teacher/"


class NoBaselineError(ValueError):
    """The latent of a model has no linear autoencoder for the clips of a run."""


def fit_linear(
    model: VideoAutoencoder, clips: Clips, console: Console | None = None
) -> LinearAutoencoder:
    """Return the linear autoencoder of a model's latent, fitted to training clips.

    Args:
        model: The model, which is not changed.
        clips: The clips of the run.
        console: Where it is printed that the baseline is fitted, if anywhere.

    Raises:
        NoBaselineError: Its patches cannot have the shape of the latent's positions.
    """
    linear = model.linear_autoencoder(*clips.val[0]["video"].shape[1:])
    if linear is None and isinstance(model, CustomAutoencoder):
        raise NoBaselineError(f"{type(model.module).__name__} has no method `linear_autoencoder`")
    if linear is None:
        reason = "the frames or pixels of a clip do not divide evenly over the positions of this model's latent"
        raise NoBaselineError(reason)
    for bucket in clips.train.config.train_buckets:
        if not linear.encoder.accepts(*bucket.shape):
            raise NoBaselineError(f"clips of {bucket} do not consist of its patches")
    if console is not None:
        print_lines(console, [f"fitting the linear baseline to {NUM_CLIPS} clips"])
    return linear.fit(training_clips(clips))


def training_clips(
    clips: Clips, description: str = "fitting the linear baseline"
) -> Iterator[Video]:
    """Yield the clips that a linear map is fitted to, each `(1, C, T, H, W)`, with progress on the console.

    Args:
        clips: The clips of the run.
        description: The text beside the progress.
    """
    for number in with_progress(range(NUM_CLIPS), description):
        yield clips.train[number]["video"][None]


def measure_baseline(
    baseline: LinearAutoencoder,
    val: Sequence[Clip],
    perceptual: Mapping[str, nn.Module],
    console: Console,
    device: torch.device,
) -> dict[str, float]:
    """Print the metrics of the baseline on held-out clips, and return them by their names in the log.

    Args:
        baseline: The baseline, which is moved to the device.
        val: The held-out clips.
        perceptual: The perceptual metrics of a validation by name.
        console: Where they are printed.
        device: Where it is measured.
    """
    metrics = measure_linear(baseline, val, perceptual, device)
    print_lines(console, [f"linear baseline: held-out {describe_metrics(metrics)}"])
    return {f"{_LINEAR}{name}": value for name, value in metrics.items()}


def measure_teacher(
    teacher: VideoAutoencoder,
    val: Sequence[Clip],
    perceptual: Mapping[str, nn.Module],
    console: Console,
    device: torch.device,
) -> dict[str, float]:
    """Print the metrics of a student's teacher on held-out clips, and return them by their names in the log.

    Args:
        teacher: The teacher, which is back on the CPU afterwards.
        val: The held-out clips.
        perceptual: The perceptual metrics of a validation by name.
        console: Where they are printed.
        device: Where it is measured.
    """
    teacher.to(device).eval()

    def reconstruct(video: Video) -> Video:
        return teacher(video, sample_posterior=False).video

    with torch.random.fork_rng(devices=[]):
        metrics = _measure(reconstruct, val, perceptual, device)
    teacher.to("cpu")
    print_lines(console, [f"teacher: held-out {describe_metrics(metrics)}"])
    return {f"{_TEACHER}{name}": value for name, value in metrics.items()}


def measure_linear(
    linear: LinearAutoencoder,
    val: Sequence[Clip],
    perceptual: Mapping[str, nn.Module],
    device: torch.device,
) -> dict[str, float]:
    """Return the mean of each metric of the baseline over held-out clips.

    Args:
        linear: The baseline, which is moved to the device.
        val: The held-out clips.
        perceptual: The perceptual metrics of a validation by name.
        device: Where it is measured.
    """
    return _measure(linear.to(device), val, perceptual, device)


@tf32(False)
@torch.no_grad()
def _measure(
    reconstruct: Callable[[Video], Video],
    val: Sequence[Clip],
    perceptual: Mapping[str, nn.Module],
    device: torch.device,
) -> dict[str, float]:
    """Return the mean of each metric of reconstructions over held-out clips."""
    metrics = ReconstructionMetrics(perceptual, range_is_known=True)
    for clip in val:
        target = clip["video"][None].to(device)
        metrics.update(reconstruction=reconstruct(target), target=target)
    return mean_over_clips(metrics.per_clip())


def recorded_linear(files: Run) -> dict[str, float]:
    """Return the metrics of the linear baseline that a run has logged, or nothing if it has none."""
    return _recorded(files, _LINEAR)


def recorded_teacher(files: Run) -> dict[str, float]:
    """Return the metrics of the teacher that a run has logged, or nothing if it has none."""
    return _recorded(files, _TEACHER)


def _recorded(files: Run, prefix: str) -> dict[str, float]:
    first: dict[str, float] = next(iter(files.history), {})
    return {name: value for name, value in first.items() if name.startswith(prefix)}
