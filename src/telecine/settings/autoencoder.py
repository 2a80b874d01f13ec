"""The settings of `CausalVAE`, and their checks. Python 3.10 cannot evaluate an `InitVar` that is text."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import InitVar, asdict, dataclass, field, fields
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

from telecine.base.checks import argument_error, check_choice, check_count, check_positive, check_weight, describe
from telecine.settings.group import TABLES, Count, Settings

# The largest settings, since configurations come from others, too: larger networks would take hours to build. And what
# `size` and `latent` stand for: the latents are those of CogVideoX and Wan 2.1, of Wan 2.2, and of LTX.
_TABLES = TABLES["causal_vae"]
LARGEST_CODEBOOK = 2 ** _TABLES["largest"]["lfq_bits"]


def _check_power_of_two(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 256 or value & (value - 1):
        raise argument_error(name, "a power of two up to 256", describe(value), "Use for example 1, 2, 4 or 8.")
    return value


_PowerOf2: TypeAlias = Annotated[int, _check_power_of_two]
_Levels: TypeAlias = Annotated[int, partial(check_count, at_least=3, remedy="Use 5 or 8; `bottleneck: lfq` has two.")]
_Above0: TypeAlias = Annotated[float, partial(check_positive, remedy="Use 1.")]
_Weight: TypeAlias = Annotated[float, check_weight]


@dataclass(frozen=True)
class FlowConfig(Settings):
    """How a decoder that generates is trained, by flow matching (arXiv:2210.02747): at random levels of noise.

    A level of 0 is the video, 1 is noise. Levels are logit-normal and then shifted, as in SD3 (arXiv:2403.03206).
    """

    prediction: Literal["x0", "velocity"] = "x0"
    """What the network adds to a linear map of the latent: a part of the clean video ("x0"), or of the velocity, which
    is noise less video ("velocity")."""
    level_mean: float = 0.0
    """Mean of the logit of a level in training; a larger one has more noise."""
    level_std: _Above0 = 1.0
    """Standard deviation of that logit."""
    shift: _Above0 = 1.0
    """Turns a level `t` into `s * t / (1 + (s - 1) * t)`, in training and decoding: above 1, more have much noise."""
    shift_pixels: Count | None = None
    """Pixels of a frame to which `shift` belongs: with n times as many it is sqrt(n) times as large (equation 23 of
    SD3). Left out, it is the same for all sizes."""
    weighting: Literal["uniform", "velocity"] = "uniform"
    """Weight of each clip's error: 1, or that of an error of the velocity, 1 / level^2, at most 100 ("velocity")."""
    one_step: bool = False
    """Train at level 1 alone, for decoding in one step, as `telecine distill` does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.level_mean):
            raise argument_error("level_mean", "a finite number", self.level_mean, "Use 0.")

    def shift_of(self, height: int, width: int) -> float:
        """Return the shift for frames of a size."""
        return self.shift * (1.0 if self.shift_pixels is None else math.sqrt(height * width / self.shift_pixels))


@dataclass(frozen=True)
class CausalVAEConfig(Settings):
    """Settings of `CausalVAE`. Multipliers, and factors of height and width, are powers of two."""

    time_compression: Count = 4
    """Frames per latent frame. The first frame has its own, see `first_frame_apart`: 1 + 4k frames become 1 + k."""
    spatial_compression: _PowerOf2 = 8
    """Pixels per latent position along height and along width, a power of two."""
    latent_channels: Count = 16
    """Channels of the latent. More channels keep more detail and compress less."""
    patch_size: _PowerOf2 = 4
    """Side of the pixel blocks that are folded into channels before the first layer, with all frames of a latent frame.
    Larger is faster and coarser."""
    base_channels: Count = 128
    """Channels at the highest resolution."""
    channel_multipliers: tuple[_PowerOf2, ...] = (1, 2)
    """Channels of each level divided by `base_channels`, powers of two, the highest resolution first. The number of
    levels is 1 + log2(spatial_compression / patch_size)."""
    blocks_per_level: Count = 2
    """Residual blocks at each level, in the encoder and in the decoder."""
    time_kernel: Count = 2
    """Latent frames that a residual block of the lowest resolution sees, the current and earlier ones."""
    bottleneck: Literal["gaussian", "fsq", "lfq"] = "gaussian"
    """What limits the latent: noise and a KL divergence ("gaussian"), or a codebook. Each channel is then rounded to
    one of a few values ("fsq", finite scalar quantization) or to -1 or 1 ("lfq", lookup-free quantization), and
    `latent_channels` divided by the channels of a code is the number of codes of a position."""
    fsq_levels: tuple[_Levels, ...] = (8, 5, 5, 5)
    """With "fsq": how many values each channel of a code has. Their product is the size of the codebook."""
    lfq_bits: Count = 8
    """With "lfq": channels of a code; the codebook has 2^bits of them."""
    lfq_entropy_weight: _Weight = 0.1
    """With "lfq": weight of the entropy of each code less that of all codes of a batch, so that all of the codebook is
    used. Like the next, it is multiplied by `objective.quantizer_aux_loss_weight`, which is then 1 or so."""
    lfq_commitment_weight: _Weight = 0.25
    """With "lfq": weight of the squared distance of the encoder's output from its code."""
    nested_channels: tuple[Count, ...] = ()
    """Numbers below `latent_channels`, e.g. [4, 8]. In an update, each clip is decoded from as many of the first latent
    channels, or from all, drawn at random, with 0 in place of the others (arXiv:2508.00413): a generator can then use
    a latent that is cut to one of these numbers."""
    in_channels: Count = 3
    """Channels of the video, see `clips.channels`."""
    first_frame_apart: bool = True
    """Whether the first frame has a latent frame of its own. Without, 4k frames become k, and no clip is an image."""
    decoder: Literal["direct", "flow"] = "direct"
    """The decoder: a function of the latent ("direct"), or one that generates by removing noise from a noisy video, in
    one step or in several ("flow")."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """With "flow": how it is trained."""
    size: InitVar[Literal["tiny", "small", "base", "large"] | None] = None
    """A preset of `base_channels` and `blocks_per_level`, for those that are not set or, in Python, have their
    default: 64 and 1 ("tiny"), 128 and 2 ("small"), 192 and 3 ("base") or 256 and 4 ("large")."""
    latent: InitVar[Literal["4x8x8", "4x16x16", "8x32x32"] | None] = None
    """A preset of the two compressions, `latent_channels` and `channel_multipliers`, for those that are not set or, in
    Python, have their default: 16 channels as CogVideoX and Wan 2.1 ("4x8x8"), 48 as Wan 2.2 ("4x16x16") or 128 as LTX
    ("8x32x32")."""

    def __post_init__(self, size: str | None, latent: str | None) -> None:
        defaults = {item.name: item.default for item in fields(self)}
        for name, value in with_presets({"size": size, "latent": latent}).items():
            if getattr(self, name) == defaults[name]:
                object.__setattr__(self, name, value)
        lists = {"channel_multipliers": ("powers of two", (1, 2)), "fsq_levels": ("numbers of values", (8, 5, 5, 5))}
        for name, (items, example) in lists.items():
            if not isinstance(value := getattr(self, name), (list, tuple)) or not value:
                raise argument_error(name, f"a list of {items}", value, f"Use {example}.")
        super().__post_init__()
        for name, largest in _TABLES["largest"].items():
            self.refuse("largest", getattr(self, name) > largest, name=name, largest=largest)
        self.refuse("patch_size", self.patch_size > self.spatial_compression)
        num_levels = (self.spatial_compression // self.patch_size).bit_length()
        example = tuple(2**i for i in range(num_levels))
        self.refuse("levels", len(self.channel_multipliers) != num_levels, number=num_levels, example=example)
        steps = [max(outer, inner) / min(outer, inner) for outer, inner in self.halvings()]
        self.refuse("steps between levels", max(steps, default=1) > 4)
        self._check_codes()
        of_code = 1 if self.bottleneck == "gaussian" else self.code_channels
        are_codes = all(number < self.latent_channels and number % of_code == 0 for number in self.nested_channels)
        self.refuse("nested_channels", not are_codes, of_code=of_code)

    def _check_codes(self) -> None:
        if self.bottleneck == "gaussian":
            return
        size, codes = self.codebook_size, self.code_channels
        self.refuse("codebook", size > LARGEST_CODEBOOK, got=f"one of {size}", largest=LARGEST_CODEBOOK)
        setting = "fsq_levels" if self.bottleneck == "fsq" else "lfq_bits"
        number = codes * -(-self.latent_channels // codes)
        self.refuse("codes", self.latent_channels % codes, setting=setting, number=number)

    @property
    def code_channels(self) -> int:
        """Channels of a code of a discrete bottleneck."""
        return len(self.fsq_levels) if self.bottleneck == "fsq" else self.lfq_bits

    @property
    def codebook_size(self) -> int:
        """Number of codes of a discrete bottleneck."""
        return math.prod(self.fsq_levels) if self.bottleneck == "fsq" else 2**self.lfq_bits

    @property
    def channels(self) -> list[int]:
        """Channels of each level, the highest resolution first."""
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def folded_channels(self) -> int:
        """Values of a patch: the channels before the first layer and after the last."""
        return self.in_channels * self.time_compression * self.patch_size**2

    def saved(self) -> dict[str, Any]:
        """Return the settings as a model's `config.json` has them: if they matter, those that older versions lack."""
        left_out = {"in_channels"} if self.in_channels == 3 else set()
        left_out |= {"decoder", "flow"} if self.decoder == "direct" else set()
        left_out |= set() if self.nested_channels else {"nested_channels"}
        left_out |= {"first_frame_apart"} if self.first_frame_apart else set()
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def halvings(self) -> Iterator[tuple[int, int]]:
        """Yield the channels before and after each halving of height and width, the highest resolution first."""
        return itertools.pairwise(self.channels)


def with_presets(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings of `CausalVAEConfig` in which those that `size` and `latent` stand for take their place."""
    found: dict[str, Any] = {}
    for name in ("size", "latent"):
        if (chosen := values.get(name)) is not None:
            found |= _TABLES[name][check_choice(f"causal_vae.{name}", chosen, _TABLES[name])]
    return found | {name: value for name, value in values.items() if name not in ("size", "latent")}
