"""The latent: its posterior, which an encoder predicts, and the statistics by which generators normalise it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from telecine.base.checks import argument_error, describe
from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators, randn
from telecine.base.shapes import check_same_shape
from telecine.losses import AuxLosses, Moments

# exp(20) and its square are finite in float32, and so is 1 / exp(-30).
_LOGVAR_RANGE = (-30.0, 20.0)
_SMALLEST_STD = 1e-6
# The keys of configurations that normalise each channel of the latent by itself.
MEAN_KEY = "latents_mean"
STD_KEY = "latents_std"
# Those that normalise all channels by the same numbers.
SCALE_KEY = "scaling_factor"
SHIFT_KEY = "shift_factor"
NORMALISATION_KEYS = (MEAN_KEY, STD_KEY, SCALE_KEY, SHIFT_KEY)
Normalisation: TypeAlias = dict[str, float | list[float] | None]
"""Their values."""


class Posterior(Protocol):
    """Distribution of the latent of a video."""

    def sample(self, generator: Generators = None) -> Tensor:
        """Return a sample of the latent; `generator` is one, or one for each clip, or PyTorch's default if None."""

    def mode(self) -> Tensor:
        """Return the most likely latent."""

    def aux(self) -> AuxLosses:
        """Return the auxiliary losses of the latent by name: its moments for the KL divergence, or a quantizer's."""


class DiagonalGaussian:
    """Normal distribution with independent elements of any shape, e.g. `(batch, channel, time, height, width)`.

    Both moments are float32 at least, so that small deviations survive autocast.

    Args:
        mean: The means.
        logvar: The logarithms of the variances, of the same shape. They are clamped to [-30, 20], because a large value
            early in training overflows `exp` and turns the run into NaN.

    Raises:
        ValueError: The shapes of `mean` and `logvar` differ.
    """

    def __init__(self, *, mean: Tensor, logvar: Tensor) -> None:
        check_same_shape(
            "logvar",
            logvar,
            "mean",
            mean,
            remedy="Split the encoder's output into two equal halves.",
        )
        self.mean = at_least_float32(mean)
        self.logvar = at_least_float32(logvar).clamp(*_LOGVAR_RANGE)

    def sample(self, generator: Generators = None) -> Tensor:
        """Return `mean + std * noise` (arXiv:1312.6114, section 2.4), of the mean's shape; the graph is kept."""
        noise = randn(
            self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + (0.5 * self.logvar).exp() * noise

    def mode(self) -> Tensor:
        """Return the mean; the graph is kept."""
        return self.mean

    def aux(self) -> AuxLosses:
        """Return `{"kl_loss": moments}`: the objective computes the divergence with its `nll_reduction`."""
        return {"kl_loss": Moments(self.mean, self.logvar)}


class DeterministicPosterior:
    """A latent without noise, e.g. `(batch, channel, time, height, width)`, and a quantizer's losses by name, 0-d."""

    def __init__(self, latent: Tensor, losses: dict[str, Tensor] | None = None) -> None:
        self.latent = at_least_float32(latent)
        self.losses = losses or {}

    def sample(self, generator: Generators = None) -> Tensor:
        """Return the latent; the graph is kept."""
        return self.latent

    def mode(self) -> Tensor:
        """Return the latent; the graph is kept."""
        return self.latent

    def aux(self) -> AuxLosses:
        """Return the quantizer's losses."""
        return {**self.losses}


def join_posteriors(posteriors: Sequence[Posterior]) -> Posterior:
    """Return the posterior of a clip from the posteriors of its consecutive chunks, without a quantizer's losses.

    Raises:
        TypeError: They are neither normal nor without noise.
    """
    if len(posteriors) == 1:
        return posteriors[0]
    means = []
    logvars = []
    latents = []
    for posterior in posteriors:
        if isinstance(posterior, DiagonalGaussian):
            means.append(posterior.mean)
            logvars.append(posterior.logvar)
        elif isinstance(posterior, DeterministicPosterior):
            latents.append(posterior.latent)
        else:
            contract = "a `DiagonalGaussian` or a `DeterministicPosterior`"
            remedy = "Encode whole clips."
            raise argument_error("posterior", contract, describe(posterior), remedy, TypeError)
    if latents:
        return DeterministicPosterior(torch.cat(latents, dim=2))
    return DiagonalGaussian(mean=torch.cat(means, dim=2), logvar=torch.cat(logvars, dim=2))


class LatentGrid(NamedTuple):
    """How the positions of a latent divide a clip. The names are those of `CausalVAEConfig`."""

    time_compression: int
    """Frames of a position, but for a first frame that is apart."""
    spatial_compression: int
    """Pixels of a position along height and along width."""
    latent_channels: int
    first_frame_apart: bool
    """Whether the first frame has a latent frame of its own."""

    def __str__(self) -> str:
        space = self.spatial_compression
        return f"{self.time_compression} x {space} x {space}"


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation over a data set of each channel of the latent, and of all values together."""

    mean: list[float]
    """The mean of each channel."""
    std: list[float]
    """The standard deviation of each channel."""

    @property
    def overall_mean(self) -> float:
        """The mean of all values: the `shift_factor` of diffusers."""
        return sum(self.mean) / len(self.mean)

    @property
    def overall_std(self) -> float:
        """The standard deviation of all values; 1 over it is the `scaling_factor` of diffusers."""
        squares = sum(m**2 + s**2 for m, s in zip(self.mean, self.std, strict=True)) / len(
            self.mean
        )
        return float(max(squares - self.overall_mean**2, 0.0) ** 0.5)


class ChannelMoments:
    """Sums over the values of each channel of any number of latents, float64 on the CPU; processes can add them."""

    def __init__(self) -> None:
        # Number, sum and sum of squares of each channel.
        self.sums = torch.zeros(3, 0, dtype=torch.float64)

    def add(self, latent: Tensor) -> None:
        """Add a latent `(B, C, ...)`, of as many channels as those before."""
        rows = latent.detach().transpose(0, 1).flatten(1).cpu().double()
        sums = torch.stack(
            [rows.new_full((len(rows),), rows.shape[1]), rows.sum(1), rows.square().sum(1)]
        )
        self.add_sums(sums)

    def add_sums(self, sums: Tensor) -> None:
        """Add the `sums` of other latents, `(3, C)`; without channels, the sums of no latent."""
        if self.sums.shape[1] == 0:
            self.sums = sums
        elif sums.shape[1] > 0:
            self.sums = self.sums + sums

    def statistics(self) -> LatentStatistics:
        """Return the statistics of all added latents; a constant channel can be divided by its standard deviation.

        Raises:
            ValueError: No latent was added.
        """
        if self.sums.shape[1] == 0:
            raise argument_error("latents", "at least one", "none", "Add one.")
        count, total, squares = self.sums
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=_SMALLEST_STD**2)
        return LatentStatistics(mean.tolist(), variance.sqrt().tolist())
