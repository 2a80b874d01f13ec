"""Streams of the diffusers classes that keep frames from one chunk of a clip to the next."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from telecine.base.shapes import Video
from telecine.models.diffusers.checkpointing import ANY_CHUNK, CHUNKS, MAGVIT_CACHE
from telecine.models.diffusers.families import clear_caches
from telecine.models.diffusers.outputs import DiffusersModel
from telecine.models.diffusers.wan import options_of_first_call, patched, unpatched
from telecine.models.latent import DeterministicPosterior, DiagonalGaussian, Posterior
from telecine.models.stream import ChunkSizes, StreamDecoder, StreamEncoder


@dataclass(frozen=True)
class Streaming:
    """How the encoder and the decoder of a class are called for the chunks of a stream."""

    new_cache: Callable[[DiffusersModel, str], Any]
    """From the model and "encoder" or "decoder" to what that part keeps before the first chunk."""
    call: Callable[[DiffusersModel, str, Tensor, Any, bool], Tensor]
    """From the model, "encoder" or "decoder", a chunk, what is kept, which changes, and whether the chunk is the first
    one, to the output."""
    time: int
    """Frames of a latent frame."""
    multiple: int
    """A video has a multiple of so many frames after the first one."""
    first: int = 1
    """Frames of the first chunk."""
    has_variance: bool = True
    """Whether the second half of the encoder's channels are log-variances; else they are left out."""

    def frames(self, module: DiffusersModel, num_frames: int | None) -> ChunkSizes:
        """Return the chunks of a video, of at most `num_frames` frames if the class has a choice."""
        name = type(module).__name__
        others = CHUNKS[name]
        if name in ANY_CHUNK and num_frames is not None:
            others *= max(num_frames // others, 1)
        return ChunkSizes(self.first, others, self.multiple, offset=1)

    def latent_frames(self, module: DiffusersModel, num_frames: int | None) -> ChunkSizes:
        """Return the chunks of the latent of `frames`."""
        frames = self.frames(module, num_frames)
        first = 1 + (self.first - 1) // self.time
        return ChunkSizes(first, frames.others // self.time, self.multiple // self.time, offset=1)

    def encoder(self, module: DiffusersModel, num_frames: int | None) -> StreamEncoder:
        """Return a stream of the model's encoder."""
        cache = self.new_cache(module, "encoder")
        compute = partial(self._encode, module, cache)
        return StreamEncoder(compute, self.frames(module, num_frames))

    def decoder(self, module: DiffusersModel, num_frames: int | None) -> StreamDecoder:
        """Return a stream of the model's decoder."""
        cache = self.new_cache(module, "decoder")
        compute = partial(self._decode, module, cache)
        return StreamDecoder(compute, self.latent_frames(module, num_frames))

    def _encode(
        self, module: DiffusersModel, cache: Any, video: Video, num_before: int
    ) -> Posterior:
        video = patched(module, video.to(next(module.parameters()).dtype))
        moments = self.call(module, "encoder", video, cache, num_before == 0)
        if getattr(module, "quant_conv", None) is not None:
            moments = module.quant_conv(moments)
        mean, logvar = moments.chunk(2, dim=1)
        if not self.has_variance:
            return DeterministicPosterior(mean)
        return DiagonalGaussian(mean=mean, logvar=logvar)

    def _decode(self, module: DiffusersModel, cache: Any, latent: Tensor, num_before: int) -> Video:
        latent = latent.to(next(module.parameters()).dtype)
        if getattr(module, "post_quant_conv", None) is not None:
            latent = module.post_quant_conv(latent)
        video = self.call(module, "decoder", latent, cache, num_before == 0)
        return unpatched(module, video)


def _new_list(module: DiffusersModel, part: str) -> list[Any]:
    return [None] * module._cached_conv_counts[part]


def _call_with_list(
    module: DiffusersModel, part: str, chunk: Tensor, cache: list[Any], is_first: bool
) -> Tensor:
    """Call Wan or QwenImage; decoders that want to know are told which chunk is the first."""
    options = options_of_first_call(module) if is_first and part == "decoder" else {}
    return getattr(module, part)(chunk, feat_cache=cache, feat_idx=[0], **options)


def _new_dict(module: DiffusersModel, part: str) -> dict[str, Any]:
    return {}


def _call_with_dict(
    module: DiffusersModel, part: str, chunk: Tensor, cache: dict[str, Any], is_first: bool
) -> Tensor:
    """Call CogVideoX, which returns what it keeps."""
    output, kept = getattr(module, part)(chunk, conv_cache=cache or None)
    cache.update(kept)
    return output


def _new_tree(module: DiffusersModel, part: str) -> Any:
    if hasattr(module, f"_make_{part}_cache"):
        return getattr(module, f"_make_{part}_cache")()
    return getattr(module, part).make_cache()


def _call_with_tree(
    module: DiffusersModel, part: str, chunk: Tensor, cache: Any, is_first: bool
) -> Tensor:
    return getattr(module, part)(chunk, cache)


def _call_with_layers(
    module: DiffusersModel, part: str, chunk: Tensor, cache: dict[str, Tensor], is_first: bool
) -> Tensor:
    """Call Magvit, whose layers keep the frames: those of the stream are put in before, and taken out after."""
    clear_caches(module)
    layers = {
        name: layer
        for name, layer in getattr(module, part).named_modules()
        if hasattr(layer, MAGVIT_CACHE)
    }
    for name, frames in cache.items():
        setattr(layers[name], MAGVIT_CACHE, frames)
    try:
        output = getattr(module, part)(chunk)
        for name, layer in layers.items():
            cache[name] = getattr(layer, MAGVIT_CACHE)
        return output
    finally:
        clear_caches(module)


STREAMS = {
    "AutoencoderKLCogVideoX": Streaming(_new_dict, _call_with_dict, time=4, multiple=8, first=9),
    "AutoencoderKLKVAEVideo": Streaming(
        _new_tree, _call_with_tree, time=4, multiple=8, first=17, has_variance=False
    ),
    "AutoencoderKLMagvit": Streaming(_new_dict, _call_with_layers, time=4, multiple=4),
    "AutoencoderKLQwenImage": Streaming(_new_list, _call_with_list, time=4, multiple=4),
    "AutoencoderKLWan": Streaming(_new_list, _call_with_list, time=4, multiple=4),
    "Kandinsky6SRVAE": Streaming(_new_tree, _call_with_tree, time=4, multiple=4, first=17),
}
"""The classes that keep frames between chunks, by name. KVAE-Video returns three frames less for a last chunk of 4."""
