"""Discrete bottlenecks: the latent of `CausalVAE` as codes, for generators of tokens."""

from typing import Any, cast

from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.imports import how_to_install
from telecine.base.precision import at_least_float32, autocast_off
from telecine.models.latent import DeterministicPosterior
from telecine.ops.ranks import num_ranks
from telecine.settings import CausalVAEConfig

Latent = Float[Tensor, "batch channel time height width"]
_Indices = Int[Tensor, "batch code time height width"]


def build_bottleneck(config: CausalVAEConfig) -> "Bottleneck | None":
    """Return the discrete bottleneck of an autoencoder, or None for a Gaussian one.

    Raises:
        ValueError: The package vector-quantize-pytorch is not installed.
    """
    if config.bottleneck == "gaussian":
        return None
    try:
        import vector_quantize_pytorch as library
    except ImportError as missing:
        contract = '"gaussian" without the package vector-quantize-pytorch'
        got = repr(config.bottleneck)
        raise argument_error("bottleneck", contract, got, how_to_install("discrete")) from missing
    num_codes = config.latent_channels // config.code_channels
    if config.bottleneck == "fsq":
        fsq = library.FSQ(
            list(config.fsq_levels),
            num_codebooks=num_codes,
            keep_num_codebooks_dim=True,
            return_indices=False,  # the library would make a table of all codes at once
        )
        return Bottleneck(fsq, config)
    lfq = library.LFQ(
        num_codebooks=num_codes,
        keep_num_codebooks_dim=True,
        codebook_size=config.codebook_size,
        entropy_loss_weight=config.lfq_entropy_weight,
        commitment_loss_weight=config.lfq_commitment_weight,
    )
    return _LookupFreeBottleneck(lfq, config)


class Bottleneck(nn.Module):
    """Rounds each channel of a latent to one of a few values between -1 and 1, without learned weights.

    Groups of `code_channels` neighbouring channels are the codes of a position, each one of `codebook_size`. The
    gradient passes straight through the rounding (arXiv:1308.3432). Here (FSQ, arXiv:2309.15505) the values are evenly
    spaced, after the latent is bounded by a hyperbolic tangent, and there is no auxiliary loss.
    """

    def __init__(self, quantizer: nn.Module, config: CausalVAEConfig) -> None:
        super().__init__()
        self.quantizer: Any = quantizer  # of the untyped library
        self.code_channels = config.code_channels
        self.codebook_size = config.codebook_size

    def posterior(self, latent: Latent) -> DeterministicPosterior:
        """Return the quantized latent as a posterior without noise, with the auxiliary losses; the graph is kept."""
        return DeterministicPosterior(self.quantize(latent))

    def quantize(self, latent: Latent) -> Latent:
        """Return the quantized latent, in at least float32; the graph is kept."""
        return cast(Latent, self._apply_quantizer(latent)[0])

    def _apply_quantizer(self, latent: Latent, **options: object) -> Any:
        with autocast_off(latent.device):
            return self.quantizer(at_least_float32(latent), **options)

    def indices(self, latent: Latent) -> _Indices:
        """Return the number of each code of a quantized latent, from 0 to below `codebook_size`, as int64."""
        return cast(_Indices, self.quantizer.codes_to_indices(self._codes(latent)).long())

    def latent(self, indices: _Indices) -> Latent:
        """Return the quantized latent of the numbers of its codes."""
        return cast(
            Latent, self.quantizer.indices_to_codes(rearrange(indices, "b g t h w -> b t h w g"))
        )

    def _codes(self, latent: Latent) -> Tensor:
        return rearrange(latent, "b (g c) t h w -> b g t h w c", c=self.code_channels)


class _LookupFreeBottleneck(Bottleneck):
    """Rounds each channel of a latent to its sign: lookup-free quantization (LFQ, MAGVIT-v2, arXiv:2310.05737).

    While it trains there are two auxiliary losses, times the weights of the settings: "entropy_loss", the entropy of
    each position's distribution over the codes less that of their mean over the batch, and "commitment_loss", the
    squared distance of the latent from its code. The former makes the clips of a batch depend on each other.
    """

    def posterior(self, latent: Latent) -> DeterministicPosterior:
        """Return the quantized latent with the losses.

        Raises:
            ValueError: It trains on several processes.
        """
        if not self.training:
            return super().posterior(latent)
        if num_ranks() > 1:
            # vector-quantize-pytorch 1.32 drops the result of its all-reduce, and then divides by the number of ranks.
            remedy = "Train on one device, or use `fsq`."
            raise argument_error(
                "bottleneck", '"fsq" or "gaussian" on several processes', "'lfq'", remedy
            )
        (quantized, _, _), parts = self._apply_quantizer(latent, return_loss_breakdown=True)
        entropy = self.quantizer.entropy_loss_weight * (
            parts.per_sample_entropy - parts.batch_entropy
        )
        commitment = self.quantizer.commitment_loss_weight * parts.commitment
        return DeterministicPosterior(
            quantized, {"entropy_loss": entropy, "commitment_loss": commitment}
        )

    def indices(self, latent: Latent) -> _Indices:
        return cast(_Indices, ((self._codes(latent) > 0) * self.quantizer.mask).sum(-1))
