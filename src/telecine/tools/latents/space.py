"""What is measured of a latent space, with the definition of each measure, and the report of `telecine latents`."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Column, Table

from telecine.evaluation.latent_statistics import DEAD_FRACTION, HIGH_FREQUENCY, num_dead
from telecine.tools.latents.decoding import HALF, NO_TRANSFORM
from telecine.tools.latents.denoising import LatentProbe

DEFINITIONS: dict[str, str] = {
    "latent": "the mode of the posterior",
    "channels": "kurtosis: 3 for a normal distribution; dead: a standard deviation of at most "
    f"{DEAD_FRACTION:g} times the largest",
    "effective_rank": "exp of the entropy of the covariance eigenvalues' shares",
    "viv": "velocity irreducible variance (arXiv 2606.03578, equation 5) per value: what the best predictor of the "
    "velocity, noise less latent, leaves of it if latents are normal, mean over all levels; pi/2 for white noise; one "
    "covariance (channels times positions, 5 flip-flops) for all clips instead of one for each class; without dead "
    "channels",
    "frechet": "between the features of the clips and of what is decoded: reconstructions; and, as interpolated FID "
    "(arXiv 2603.05630), latents halfway to the nearest other clip's (cosine similarity, spherical interpolation, of "
    "channels of mean 0 and variance 1; the authors' code draws one of the ten nearest)",
    "spectrum": "share of the spatial power by frequency in cycles per position, channels standardised, the mean of "
    f"each frame left out; high_frequencies: the share above {HIGH_FREQUENCY:g}. Of the video: scaled down to the "
    "latent's height and width, one frame for each latent frame",
    "autocorrelation": "of positions 1, 2, ... apart, channels standardised; space: mean of both directions",
    "equivariance": "mean squared error, in [0, 4], and PSNR of the decoded transformed latent against the transformed "
    "video; scale_1/2: bilinear, antialiased, and left out if half of a clip is smaller than the model's smallest; "
    "turn_90: counterclockwise",
    "noise": "PSNR against the video of the decoded latent plus normal noise, by its standard deviation in units of "
    "each channel's",
    "codes": "of a discrete bottleneck: share of the codebook that occurs in the clips, entropy of the frequencies in "
    "bits, and 2 to that power; means over the codes of a position",
    "drift": "from the base model's latent of the same clips: correlation of each channel, and |z - z_base| / |z_base|",
    "probe": "of the latents of unseen videos, normalised by channel, with normal noise of the level: squared error of "
    "the velocity (noise less latent) that a transformer predicts, which flow matching trained on the latents of the "
    "data, as a share of what the best linear denoiser of patches leaves (Wiener filter of the same latents)",
}
"""The definition of each measure, as `latents.json` has it."""

_CODE_LABELS = {
    "codes_used": "codes used",
    "code_entropy": "entropy of the codes, bits",
    "code_perplexity": "perplexity of the codes",
}


@dataclass(frozen=True)
class Channels:
    """Statistics of each channel, and the indices of dead ones."""

    mean: list[float]
    std: list[float]
    kurtosis: list[float]
    dead: list[int]


@dataclass(frozen=True)
class Spectrum:
    """Share of the spatial power at each frequency, and at high ones, of the latent and of the scaled-down video."""

    frequency: list[float]
    latent: list[float]
    video: list[float]
    high_frequencies: dict[str, float]
    """By "latent" and "video"."""


@dataclass(frozen=True)
class LatentSpace:
    """The measures of one model; `DEFINITIONS` says how each is defined."""

    title: str
    shape: list[int]
    """Of the latent of a clip: channels, frames, height, width."""
    channels: Channels
    eigenvalues: list[float]
    effective_rank: float
    viv: float | None
    """Velocity irreducible variance; None if there are too few latents for it."""
    spectrum: Spectrum
    autocorrelation: dict[str, list[float]]
    """By "space" and "time" of the latent, "video_space" and "video_time" of the scaled-down video."""
    equivariance: dict[str, dict[str, float]]
    """`mse` and `psnr` by transformation; "none" is the reconstruction."""
    noise_psnr: dict[str, float]
    """By the noise's standard deviation in units of each channel's."""
    codes: dict[str, float] = field(default_factory=dict)
    """See `code_usage`. Empty for a continuous latent."""
    nested_psnr: dict[str, float] = field(default_factory=dict)
    """By the number of channels to which the latent is cut, of a model with nested channels."""
    drift: dict[str, list[float] | float] = field(default_factory=dict)
    """`correlation` of each channel and `relative_error`, if there is a base model."""
    frechet: dict[str, float] = field(default_factory=dict)
    """Distances to the clips of the reconstructions and of decoded interpolated latents; empty without a network."""
    probe: LatentProbe | None = None
    """The quality of a generator trained on the latent; None if none was trained."""

    def table_values(self) -> dict[str, float]:
        """Return the values of a line of a table."""
        errors = []
        for transform, measured in self.equivariance.items():
            if transform != NO_TRANSFORM:
                errors.append(measured["mse"])
        left_out = "" if HALF in self.equivariance else f" without {HALF}"
        values = {
            "channels": float(len(self.channels.std)),
            "dead channels": num_dead(self.channels.std),
            "mean std": sum(self.channels.std) / len(self.channels.std),
            "effective rank": self.effective_rank,
            "high frequencies": self.spectrum.high_frequencies["latent"],
            "high frequencies of the video": self.spectrum.high_frequencies["video"],
            "PSNR, dB": self.equivariance[NO_TRANSFORM]["psnr"],
            "PSNR with noise 0.2, dB": self.noise_psnr["0.2"],
            f"equivariance error{left_out}, MSE": sum(errors) / len(errors),
        }
        if self.viv is not None:
            values["VIV"] = self.viv
        for name, distance in self.frechet.items():
            values[f"Frechet distance, {name}"] = distance
        for number, psnr in self.nested_psnr.items():
            values[f"PSNR with {number} channels, dB"] = psnr
        for name, value in self.codes.items():
            values[_CODE_LABELS[name]] = value
        drift = self.drift.get("relative_error")
        if isinstance(drift, float):
            values["drift from the base"] = drift
        if self.probe is not None:
            values.update(self.probe.table_values())
        return values


@dataclass(frozen=True)
class LatentReport:
    """The measures of all models on the same clips, and the protocol: the content of `latents.json`."""

    models: list[LatentSpace]
    protocol: dict[str, object]

    def summary(self) -> list[tuple[str, list[str]]]:
        """Return the lines of a table: a name, and the value of each model."""
        values_of_models = [space.table_values() for space in self.models]
        names: dict[str, None] = {}
        for values in values_of_models:
            names.update(dict.fromkeys(values))
        lines = []
        for name in names:
            cells = []
            for values in values_of_models:
                cells.append(f"{values[name]:.4g}" if name in values else "-")
            lines.append((name, cells))
        return lines

    def print_to(self, console: Console) -> None:
        """Print a few numbers about each model."""
        columns = [Column(space.title, overflow="fold") for space in self.models]
        table = Table("latent", *columns)
        for name, values in self.summary():
            table.add_row(name, *values)
        console.print(table)
