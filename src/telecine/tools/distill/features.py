"""The term that compares features inside the decoders of student and teacher."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error, nearest
from telecine.base.frozen import FrozenModule
from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators, keep_random_state, randn
from telecine.base.shapes import Scalar, Video
from telecine.losses.reconstruction import weighted_mean
from telecine.models import LatentAutoencoder, VideoAutoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.causal_blocks import ChannelNorm, Upsample
from telecine.models.unwrapping import unwrapped
from telecine.tools.distill.teacher import generates, load_teacher

SMALLEST_STD = 1e-3


@dataclass(frozen=True)
class FeaturePair:
    """A layer of the teacher, and the features of the student that are compared with it."""

    layer: str
    """The teacher's layer by its name inside the decoder."""
    level: int
    """The student's resolution: 0 is that of the latent, each other one has twice the height and width."""
    first_frame_apart: bool
    """Whether the first latent frame has one frame in this layer; else it has as many as each other one."""


class TeacherFeatures(nn.Module):
    """The squared error of a student's features against a frozen teacher's inside the decoder (arXiv:2508.09136).

    A trained projection maps the student's features at the end of each of its resolutions to the channels of a layer of
    the teacher, whose features are averaged over the frames of a latent frame, and standardised for each channel over
    the batch. The term is the mean over layers. It is 1 if the student's features tell nothing about the teacher's. An
    update decodes once more.

    `pairs` are the layers that are compared, in the order of `projections`.

    Args:
        teacher: A model or a run.
        channels: Channels of the student's levels, see `CausalVAEConfig.channels`.
        layers: Layers of the teacher's decoder by name; by default the last one of each height and width that the
            student has, too; of a decoder of telecine, its last residual block.

    Raises:
        ValueError: The teacher's decoder does not call such a layer, or no layer of such a size.
    """

    def __init__(self, teacher: str, channels: Sequence[int], layers: Sequence[str] = ()) -> None:
        super().__init__()
        self.teacher = FrozenModule(load_teacher(teacher))
        model = self.teacher.in_eval_mode()
        features, scales = features_of_smallest_clip(model)
        names = list(layers) or _last_layers(model, scales, num_levels=len(channels))
        if not names:
            raise layer_error("none of the student's sizes", features)
        decoder_channels = list(reversed(channels))  # from the latent's resolution up
        self.pairs: list[FeaturePair] = []
        projections = []
        for name in names:
            if name not in features:
                raise layer_error(name, features)
            level = _level_of(scales[name], num_levels=len(channels))
            self.pairs.append(
                FeaturePair(name, level, first_frame_apart=features[name].shape[2] == 1)
            )
            student_channels = decoder_channels[level]
            projections.append(nn.Conv3d(student_channels, features[name].shape[1], 1))
        self.projections = nn.ModuleList(projections)

    def forward(
        self,
        *,
        latent: Tensor,
        model: nn.Module,
        generator: Generators = None,
        sample_weight: Tensor | None = None,
    ) -> Scalar:
        """Return the error, 0-d.

        Args:
            latent: `(B, C, t, h, w)`.
            model: The student.
            generator: Draws the noise that student and teacher share if one of them generates: one, or one for each
                clip; PyTorch's default generator if None.
            sample_weight: Weight of each clip, `(B,)`; None for 1.

        Raises:
            ValueError: The student has no decoder of telecine.
        """
        if not isinstance(model, CausalAutoencoder):
            contract = "one with a decoder of telecine"
            remedy = "Use the term in `telecine distill`."
            raise argument_error("model", contract, type(model).__name__, remedy)
        student = model
        noise: Video | None = None
        if student.generates or generates(self.teacher.in_eval_mode()):
            noise = randn(student.decoded_shape(latent), generator=generator, device=latent.device)
        ends = _ends_of_resolutions(student)
        features = decoder_features(student, latent, ends, noise)
        layers = [pair.layer for pair in self.pairs]
        with torch.no_grad():
            targets = decoder_features(self.teacher.in_eval_mode(), latent, layers, noise)
        errors = []
        for pair, projection in zip(self.pairs, self.projections, strict=True):
            x = at_least_float32(projection(features[ends[pair.level]]))
            y = average_frames(
                targets[pair.layer], x.shape[2:], first_frame_apart=pair.first_frame_apart
            )
            y = at_least_float32(y)
            std, mean = torch.std_mean(y, (0, 2, 3, 4), correction=0, keepdim=True)
            standardised = (y - mean) / std.clamp_min(SMALLEST_STD)
            errors.append(weighted_mean((x - standardised).square(), sample_weight))
        return torch.stack(errors).mean()


def decoder_features(
    model: VideoAutoencoder,
    latent: Tensor,
    names: Iterable[str],
    noise: Video | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the outputs `(B, c, T, H, W)` of layers of a model's decoder, in the order in which they end.

    Of a single latent frame, only layers that are called once are returned.

    Args:
        model: The model.
        latent: `(B, C, t, h, w)`.
        names: Of the layers, inside the decoder.
        noise: What a model that generates starts from; by default that of its `sampler`.
        seed: Of the noise of another model with a `sampler`, such as LTX-Video.
    """
    names = list(names)
    if len(latent) > 1 and getattr(unwrapped(model), "use_slicing", False):
        # HunyuanVideo 1.5 decodes the clips of a batch one after the other.
        clips = [decoder_features(model, clip, names, seed=seed) for clip in latent.split(1)]
        return {name: torch.cat([clip[name] for clip in clips]) for name in clips[0]}
    with _recorded_outputs(decoder_of(model), names) as outputs:
        if generates(model):
            model.decode(latent, noise)
        elif isinstance(model, LatentAutoencoder) and model.sampler is not None:
            generator = torch.Generator(latent.device).manual_seed(seed)
            with keep_random_state(latent.device):
                torch.manual_seed(seed)
                model.decode(latent, generator=generator)
        else:
            model.decode(latent)
    features: dict[str, Tensor] = {}
    for name, chunks in outputs.items():
        if latent.shape[2] == 1 and len(chunks) > 1:
            continue
        features[name] = torch.cat([_as_clips(chunk, len(latent)) for chunk in chunks], dim=2)
    return features


def _as_clips(x: Tensor, batch: int) -> Tensor:
    """Return features as clips `(B, c, T, H, W)`: they may be of frames, or of frames as clips of one frame."""
    if x.ndim == 5 and len(x) == batch:
        return x
    return rearrange(x.flatten(1, -3), "(b t) c h w -> b c t h w", b=batch)


@torch.no_grad()
def features_of_smallest_clip(
    model: VideoAutoencoder,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the features of all layers of a decoder for one latent frame, and their sides over those of the latent."""
    smallest_clip = torch.zeros(1, model.in_channels, *model.covering_clip(1, 1, 1))
    latent = model.encode(smallest_clip).mode()[:, :, :1]
    names = [name for name, _ in decoder_of(model).named_modules() if name]
    features = {}
    scales = {}
    for name, x in decoder_features(model, latent, names).items():
        # In layers whose channels are last, as some of Mochi's, the last two sizes differ.
        if x.shape[-1] == x.shape[-2]:
            features[name] = x
            scales[name] = x.shape[-1] // latent.shape[-1]
    return features, scales


def _last_layers(model: VideoAutoencoder, scales: Mapping[str, int], num_levels: int) -> list[str]:
    """Return the last layer of each height and width that the student has, too, the smallest first.

    Args:
        model: The teacher.
        scales: The sides of the features of its layers divided by those of the latent.
        num_levels: Resolutions of the student.
    """
    names = list(scales)
    if isinstance(model, CausalAutoencoder):
        names = _ends_of_resolutions(model)
    last = {scales[name]: name for name in names}
    return [last[2**level] for level in range(num_levels) if 2**level in last]


def _level_of(scale: int, num_levels: int) -> int:
    """Return the student's level of a scale, the largest that is no larger: 0 for up to 1, 1 for 2, 2 for 4.

    Args:
        scale: The side of features divided by that of the latent.
        num_levels: Resolutions of the student, each of twice the side of the one before.
    """
    level = 0
    while level + 1 < num_levels and 2 ** (level + 1) <= scale:
        level += 1
    return level


def layer_error(name: str, features: Mapping[str, Tensor]) -> Exception:
    """Return the error of a layer that is not among those of the teacher's decoder."""
    remedy = nearest(name, features) or f"Its last ones are {', '.join(list(features)[-3:])}."
    return argument_error(
        "feature_layers", "layers that the teacher's decoder calls", repr(name), remedy
    )


def _ends_of_resolutions(model: CausalAutoencoder) -> list[str]:
    """Return the name of the last layer of each resolution, inside the decoder."""
    ends = []
    for index, (_, following) in enumerate(pairwise(model.decoder.network)):
        if isinstance(following, (Upsample, ChannelNorm)):
            ends.append(f"network.{index}")
    return ends


def decoder_of(model: nn.Module) -> nn.Module:
    """Return the module `decoder` of a model, or of the model of diffusers that it wraps."""
    return unwrapped(model).get_submodule("decoder")


@contextmanager
def _recorded_outputs(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Yield the outputs of layers by name, in the order in which they end, one for each temporal chunk."""
    outputs: dict[str, list[Tensor]] = {}
    names_of_layers = {module.get_submodule(name): name for name in names}

    def record(layer: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim in (4, 5):
            outputs.setdefault(names_of_layers[layer], []).append(output)

    hooks = [layer.register_forward_hook(record) for layer in names_of_layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def average_frames(video: Tensor, size: Sequence[int], *, first_frame_apart: bool) -> Tensor:
    """Return features averaged to a size.

    Args:
        video: `(B, c, T, H, W)`.
        size: Frames, height and width of the result.
        first_frame_apart: Whether the first frame stays alone; else it is averaged like the others.
    """
    num_frames, height, width = size
    if not first_frame_apart:
        return F.adaptive_avg_pool3d(video, (num_frames, height, width))
    first = F.adaptive_avg_pool3d(video[:, :, :1], (1, height, width))
    if num_frames == 1:
        return first
    others = F.adaptive_avg_pool3d(video[:, :, 1:], (num_frames - 1, height, width))
    return torch.cat([first, others], dim=2)
