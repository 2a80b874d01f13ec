"""Which measures of latent spaces the page draws: titles, axes and points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from telecine.tools.latents.decoding import NO_TRANSFORM, TRANSFORMS
from telecine.tools.latents.denoising import LEVELS
from telecine.tools.latents.space import DEFINITIONS, LatentSpace

Points: TypeAlias = list[tuple[float, float]]
TRANSFORM_NAMES = [NO_TRANSFORM, *TRANSFORMS]


def _no_names(spaces: Sequence[LatentSpace]) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class LatentChart:
    """The chart of one measure, with a curve for each model."""

    name: str
    title: str
    x: str
    """The label of the horizontal axis."""
    definition: str
    points: Callable[[LatentSpace], Points]
    """Returns the positions and values of a model; none if it does not have the measure."""
    video_points: Callable[[LatentSpace], Points] | None = None
    """The same of the scaled-down video."""
    scale: str = "linear"
    """The vertical axis: "linear" or "log"."""
    x_names: Callable[[Sequence[LatentSpace]], Sequence[str]] = _no_names
    """Returns the names of the positions 0, 1, ... in the charts of some models; none for numbers."""


def channel_names(spaces: Sequence[LatentSpace]) -> list[str]:
    """Return a name for each channel of the model that has the most."""
    max_channels = max(len(space.channels.std) for space in spaces)
    return [str(index) for index in range(max_channels)]


def _transform_names(spaces: Sequence[LatentSpace]) -> Sequence[str]:
    return TRANSFORM_NAMES


def _numbered(values: list[float], start: int = 1) -> Points:
    return [(index, value) for index, value in enumerate(values, start)]


def _eigenvalue_shares(space: LatentSpace) -> Points:
    total = sum(space.eigenvalues) or 1.0
    return _numbered([value / total for value in space.eigenvalues])


def _equivariance(space: LatentSpace) -> Points:
    return [
        (TRANSFORM_NAMES.index(name), errors["mse"]) for name, errors in space.equivariance.items()
    ]


def _probe(space: LatentSpace) -> Points:
    return [] if space.probe is None else list(zip(LEVELS, space.probe.shares(), strict=True))


def _drift(space: LatentSpace) -> Points:
    correlation = space.drift.get("correlation", [])
    assert isinstance(correlation, list)
    return _numbered(correlation, start=0)


LATENT_CHARTS = [
    LatentChart(
        name="spectrum",
        title="Spectrum: share of the power",
        x="cycles per position",
        definition=DEFINITIONS["spectrum"],
        points=lambda space: list(
            zip(space.spectrum.frequency, space.spectrum.latent, strict=True)
        ),
        video_points=lambda space: list(
            zip(space.spectrum.frequency, space.spectrum.video, strict=True)
        ),
        scale="log",
    ),
    LatentChart(
        name="eigenvalues",
        title="Eigenvalues",
        x="eigenvalue",
        definition="of the channels' covariance, as shares of their sum",
        points=_eigenvalue_shares,
    ),
    LatentChart(
        name="autocorrelation.space",
        title="Autocorrelation, space",
        x="distance",
        definition=DEFINITIONS["autocorrelation"],
        points=lambda space: _numbered(space.autocorrelation["space"]),
        video_points=lambda space: _numbered(space.autocorrelation["video_space"]),
    ),
    LatentChart(
        name="autocorrelation.time",
        title="Autocorrelation, time",
        x="distance",
        definition=DEFINITIONS["autocorrelation"],
        points=lambda space: _numbered(space.autocorrelation["time"]),
        video_points=lambda space: _numbered(space.autocorrelation["video_time"]),
    ),
    LatentChart(
        name="equivariance",
        title="Equivariance error (MSE), smaller is better",
        x="transform",
        x_names=_transform_names,
        definition=DEFINITIONS["equivariance"],
        points=_equivariance,
        scale="log",
    ),
    LatentChart(
        name="noise",
        title="Noise: PSNR (dB), larger is better",
        x="noise / standard deviation",
        definition=DEFINITIONS["noise"],
        points=lambda space: [(float(level), psnr) for level, psnr in space.noise_psnr.items()],
    ),
    LatentChart(
        name="probe",
        title="Probe: share of the linear denoiser's loss, smaller is better",
        x="level of the noise",
        definition=DEFINITIONS["probe"],
        points=_probe,
    ),
    LatentChart(
        name="drift",
        title="Drift: correlation with the base",
        x="channel",
        x_names=channel_names,
        definition=DEFINITIONS["drift"],
        points=_drift,
    ),
]
