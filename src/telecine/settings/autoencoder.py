"""The settings of `CausalVAE`, and their checks."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import InitVar, asdict, field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator
from pydantic_core import ArgsKwargs

from telecine.base.checks import argument_error, check_choice
from telecine.settings.group import Count, Integer, NonNegative, Number, Positive, PowerOfTwo, group

ConvolutionKind: TypeAlias = Literal["3d", "2+1d", "depthwise", "2d"]
LARGEST_CODEBOOK = 2**18
# What `size` and `latent` stand for. The latents are those of CogVideoX and Wan 2.1, of Wan 2.2, and of LTX.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"base_channels": 64, "blocks_per_level": 1},
    "small": {"base_channels": 128, "blocks_per_level": 2},
    "base": {"base_channels": 192, "blocks_per_level": 3},
    "large": {"base_channels": 256, "blocks_per_level": 4},
}
LATENTS: dict[str, dict[str, Any]] = {
    "4x8x8": {
        "time_compression": 4,
        "spatial_compression": 8,
        "latent_channels": 16,
        "channel_multipliers": (1, 2),
    },
    "4x16x16": {
        "time_compression": 4,
        "spatial_compression": 16,
        "latent_channels": 48,
        "channel_multipliers": (1, 2, 4),
    },
    "8x32x32": {
        "time_compression": 8,
        "spatial_compression": 32,
        "latent_channels": 128,
        "channel_multipliers": (1, 2, 4, 4),
    },
}


@group
class FlowConfig:
    """How a decoder that generates is trained, by flow matching (arXiv:2210.02747): at random levels of noise.

    A level of 0 is the video, 1 is noise. Levels are logit-normal and then shifted, as in SD3 (arXiv:2403.03206); some
    clips have level 1, where decoding starts, and where it ends in one step.
    """

    prediction: Literal["x0", "velocity"] = "x0"
    """What the network adds to a linear map of the latent: a part of the clean video ("x0"), or of the velocity, which
    is noise less video ("velocity")."""
    level_mean: Number = 0.0
    """Mean of the logit of a noise level in training; a larger one has more noise."""
    level_std: Positive = 1.0
    """Standard deviation of that logit."""
    shift: Positive = 4.0
    """Turns a noise level `t` into `s * t / (1 + (s - 1) * t)`, in training and decoding. Values above 1 move levels
    towards noise.
    Source: LTX-Video's trainer shifts the logit by 0.95 to 2.05, the more the larger the video: from 2.6 to 7.8.
    Drawback: with 1, 0.2 % of clips have a level above 0.95, and one step decodes from 1: 0.3 dB less for the demo."""
    shift_pixels: Count | None = None
    """Pixels of a frame to which `shift` belongs: with n times as many it is sqrt(n) times as large (equation 23 of
    SD3). Left out, it is the same for all sizes."""
    noise_fraction: Annotated[NonNegative, Field(le=1)] = 0.1
    """Fraction of clips, drawn at random, that have level 1 in training: noise alone, from which decoding starts.
    Source: LTX-Video's trainer draws a tenth of the levels without the shift, so that all of them are seen."""
    weighting: Literal["uniform", "velocity"] = "uniform"
    """Weight of each clip's error: 1, or as for an error of the velocity, 1 / level^2, at most 100 ("velocity")."""
    one_step: bool = False
    """Train at level 1 alone, for decoding in one step, as `telecine distill` does."""

    def shift_of(self, height: int, width: int) -> float:
        """Return the shift for frames of a size."""
        if self.shift_pixels is None:
            return self.shift
        return self.shift * math.sqrt(height * width / self.shift_pixels)


@group
class CausalVAEConfig:
    """Settings of `CausalVAE`. Multipliers, and factors of height and width, are powers of two.

    Settings have a largest value: configurations may come from others, and larger networks would take hours to build.
    """

    time_compression: Annotated[Count, Field(le=256)] = 4
    """Frames per latent frame. The first frame has its own, see `first_frame_apart`: 1 + 4k frames become 1 + k."""
    spatial_compression: PowerOfTwo = 8
    """Pixels per latent position along height and along width, a power of two."""
    latent_channels: Annotated[Count, Field(le=65536)] = 16
    """Channels of the latent. More channels keep more detail and compress less."""
    patch_size: PowerOfTwo = 4
    """Side of the patches of pixels that become channels before the first layer, with all frames of a latent frame.
    Larger is faster and coarser."""
    base_channels: Annotated[Count, Field(le=65536)] = 128
    """Channels at the highest resolution."""
    channel_multipliers: Annotated[tuple[PowerOfTwo, ...], Field(min_length=1)] = (1, 2)
    """Channels of each level of resolution divided by `base_channels`, powers of two, the highest resolution first. The
    number of levels is 1 + log2(spatial_compression / patch_size)."""
    blocks_per_level: Annotated[Count, Field(le=256)] = 2
    """Residual blocks at each level, in the encoder and in the decoder."""
    time_kernel: Annotated[Count, Field(le=256)] = 2
    """Latent frames that a residual block of the lowest resolution sees, the current and earlier ones."""
    bottleneck: Literal["gaussian", "fsq", "lfq"] = "gaussian"
    """What limits the latent: noise and a KL divergence ("gaussian"), or a codebook. Each channel is then rounded to
    one of a few values ("fsq", finite scalar quantization) or to -1 or 1 ("lfq", lookup-free quantization), and
    `latent_channels` divided by the channels of a code is the number of codes of a position."""
    fsq_levels: Annotated[tuple[Annotated[Integer, Field(ge=3)], ...], Field(min_length=1)] = (
        8,
        5,
        5,
        5,
    )
    """With "fsq": how many values each channel of a code has. Their product is the size of the codebook."""
    lfq_bits: Annotated[Count, Field(le=18)] = 8
    """With "lfq": channels of a code; the codebook has 2^bits of them."""
    lfq_entropy_weight: NonNegative = 0.1
    """With "lfq": weight of the entropy of each code less that of all codes of a batch, so that all of the codebook is
    used. Like the next, it is multiplied by `objective.quantizer_aux_loss_weight`, which is then 1 or so."""
    lfq_commitment_weight: NonNegative = 0.25
    """With "lfq": weight of the squared distance of the encoder's output from its code."""
    nested_channels: tuple[Count, ...] = ()
    """Numbers below `latent_channels`, e.g. [4, 8]. In an update, each clip is decoded from the first 4, the first 8 or
    all latent channels, drawn at random, with 0 in place of the others (arXiv:2508.00413): a generator can then use a
    latent that is cut to one of these numbers."""
    in_channels: Annotated[Count, Field(le=1024)] = 3
    """Channels of the video, see `clips.channels`."""
    first_frame_apart: bool = True
    """Whether the first frame has a latent frame of its own. Without, 4k frames become k, and no clip is an image."""
    decoder: Literal["direct", "flow"] = "direct"
    """The decoder: a function of the latent ("direct"), or one that generates by removing noise from a noisy video, in
    one step or in several ("flow")."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """With "flow": how it is trained."""
    decoder_convolutions: tuple[ConvolutionKind, ...] = ()
    """Convolutions of the decoder's residual blocks, one kind for each level, the highest resolution first; left out,
    "3d" everywhere. "3d": over space and, at the lowest resolution, `time_kernel` latent frames. "2+1d": over space,
    then over time alone (R(2+1)D, arXiv:1711.11248, without an activation between), at the lowest resolution.
    "depthwise": "3d" of each channel by itself, then a map of the channels (arXiv:1704.04861), as in the decoders of
    Turbo-VAED (arXiv:2508.09136). "2d": over space alone, which at the higher resolutions is the same as "3d".
    `telecine prune` fits the cheaper ones to a model with "3d"."""
    size: InitVar[Literal["tiny", "small", "base", "large"] | None] = None
    """A preset of `base_channels` and `blocks_per_level`, for those that are not set: 64 and 1 ("tiny"), 128 and 2
    ("small"), 192 and 3 ("base") or 256 and 4 ("large")."""
    latent: InitVar[Literal["4x8x8", "4x16x16", "8x32x32"] | None] = None
    """A preset of the two compressions, `latent_channels` and `channel_multipliers`, for those that are not set: 16
    channels as CogVideoX and Wan 2.1 ("4x8x8"), 48 as Wan 2.2 ("4x16x16") or 128 as LTX ("8x32x32")."""

    @model_validator(mode="before")
    @classmethod
    def _replace_presets(cls, values: Any) -> Any:
        """Put what presets stand for in the place of arguments that are left out.

        Only from Python: in files, `settings.parse` has replaced presets layer by layer.
        """
        if isinstance(values, Mapping):
            return with_presets(dict(values), prefix="")  # the error of a group adds its own
        if not isinstance(values, ArgsKwargs):
            return values
        names = list(cls.__dataclass_fields__)
        arguments = dict(zip(names, values.args, strict=False)) | (values.kwargs or {})
        for preset, settings in (("size", SIZES), ("latent", LATENTS)):
            name = arguments.get(preset)
            if (
                isinstance(name, str)
                and name in settings
                and settings[name].keys() <= arguments.keys()
            ):
                contract = (
                    "left out if all settings that it stands for are passed, as `replace` does"
                )
                raise argument_error(preset, contract, name, "Create new settings.")
        return with_presets(arguments)

    def __post_init__(self, size: str | None, latent: str | None) -> None:
        if self.patch_size > self.spatial_compression:
            remedy = f"Use {self.spatial_compression} or less."
            raise argument_error(
                "patch_size", "at most `spatial_compression`", self.patch_size, remedy
            )
        num_levels = (self.spatial_compression // self.patch_size).bit_length()
        if len(self.channel_multipliers) != num_levels:
            contract = f"one value for each level, of which there are {num_levels}"
            example = tuple(2**level for level in range(num_levels))
            raise argument_error(
                "channel_multipliers", contract, self.channel_multipliers, f"Use {example}."
            )
        for outer, inner in self.downsamplings():
            if max(outer, inner) > 4 * min(outer, inner):
                contract = "values that change by at most 4 where 2 x 2 positions become one"
                remedy = "Use smaller steps between levels."
                raise argument_error(
                    "channel_multipliers", contract, self.channel_multipliers, remedy
                )
        self._check_convolutions()
        if self.bottleneck != "gaussian":
            self._check_codes()
        group_size = 1 if self.bottleneck == "gaussian" else self.code_channels
        for number in self.nested_channels:
            if number >= self.latent_channels or number % group_size != 0:
                contract = (
                    f"multiples of {group_size} below the {self.latent_channels} `latent_channels`"
                )
                raise argument_error(
                    "nested_channels", contract, number, "All channels need not be listed."
                )

    def _check_convolutions(self) -> None:
        kinds = self.decoder_convolutions
        num_levels = len(self.channel_multipliers)
        if kinds and len(kinds) != num_levels:
            contract = f"one kind for each level, of which there are {num_levels}"
            remedy = "The highest resolution is first."
            raise argument_error("decoder_convolutions", contract, kinds, remedy)
        for level, kind in enumerate(kinds):
            sees_earlier_frames = level == num_levels - 1 and self.time_kernel > 1
            if kind == "2+1d" and not sees_earlier_frames:
                contract = "3d, 2d or depthwise where kernels have one frame"
                got = f"2+1d for level {level}"
                remedy = "Only kernels of the last level have more, with `time_kernel` above 1."
                raise argument_error("decoder_convolutions", contract, got, remedy)

    def _check_codes(self) -> None:
        if self.codebook_size > LARGEST_CODEBOOK:
            contract = f"those of a codebook of at most {LARGEST_CODEBOOK}"
            raise argument_error(
                "fsq_levels", contract, f"one of {self.codebook_size}", "Use less."
            )
        if self.latent_channels % self.code_channels != 0:
            setting = "fsq_levels" if self.bottleneck == "fsq" else "lfq_bits"
            contract = f"a multiple of the {self.code_channels} channels of a code, see `{setting}`"
            next_multiple = self.code_channels * math.ceil(
                self.latent_channels / self.code_channels
            )
            raise argument_error(
                "latent_channels", contract, self.latent_channels, f"Use {next_multiple}."
            )

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
    def has_cheaper_convolutions(self) -> bool:
        """Whether the decoder's residual blocks have other convolutions than "3d"."""
        return any(kind != "3d" for kind in self.decoder_convolutions)

    @property
    def patch_channels(self) -> int:
        """Values of a patch: the channels before the first layer and after the last."""
        return self.in_channels * self.time_compression * self.patch_size**2

    def saved_values(self) -> dict[str, Any]:
        """Return the settings for a model's `config.json`.

        Settings that older versions do not know are left out where they change nothing.
        """
        values = asdict(self)
        if self.in_channels == 3:
            del values["in_channels"]
        if self.decoder == "direct":
            del values["decoder"]
            del values["flow"]
        elif self.flow.noise_fraction == 0:
            del values["flow"]["noise_fraction"]
        if not self.nested_channels:
            del values["nested_channels"]
        if self.first_frame_apart:
            del values["first_frame_apart"]
        if not self.has_cheaper_convolutions:
            del values["decoder_convolutions"]
        return values

    def downsamplings(self) -> Iterator[tuple[int, int]]:
        """Yield the channels before and after each halving of height and width, the highest resolution first."""
        return itertools.pairwise(self.channels)


def with_presets(values: dict[str, Any], prefix: str = "causal_vae.") -> dict[str, Any]:
    """Return settings of `CausalVAEConfig` in which those that `size` and `latent` stand for take their place.

    Args:
        values: Settings and presets.
        prefix: Of the names of settings, for an error.

    Raises:
        ValueError: There is no such preset.
    """
    presets: dict[str, Any] = {}
    size = values.get("size")
    if size is not None:
        presets |= SIZES[check_choice(f"{prefix}size", size, SIZES)]
    latent = values.get("latent")
    if latent is not None:
        presets |= LATENTS[check_choice(f"{prefix}latent", latent, LATENTS)]
    others = {name: value for name, value in values.items() if name not in ("size", "latent")}
    return presets | others
