"""Streams of the diffusers classes that keep frames from one chunk of a clip to the next."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from telecine.base.shapes import Video
from telecine.models.clip_sizes import ClipSizes
from telecine.models.diffusers import wan
from telecine.models.diffusers.outputs import Decoded, DiffusersModel, LatentPosterior
from telecine.models.latent import DeterministicPosterior, DiagonalGaussian, Posterior
from telecine.models.stream import ChunkSizes, StreamDecoder, StreamEncoder

CACHE_ATTRIBUTE = "prev_features"
"""The attribute of layers of Magvit with the frames that they keep. Others keep them among the arguments."""
# Frames of a latent frame of Magvit.
_MAGVIT_TIME_COMPRESSION = 4


class ChunkedCalls(NamedTuple):
    """How a model computes a clip in chunks of another length than its own: the fields of `Family` of these names."""

    encoder: Callable[..., LatentPosterior]
    decoder: Callable[..., Decoded]


@dataclass(frozen=True)
class Streaming:
    """How the encoder and the decoder of a class are called for the chunks of a stream."""

    new_cache: Callable[[DiffusersModel, str], Any]
    """From the model and "encoder" or "decoder" to what that part keeps before the first chunk."""
    call: Callable[[DiffusersModel, Tensor, Any, bool], Tensor]
    """From the encoder or the decoder, a chunk, what is kept, which changes, and whether the chunk is the first one, to
    the output."""
    time: int | str
    """Frames of a latent frame, or the model's setting that says so."""
    chunk: int
    """Frames of a chunk in which the class computes long clips. The first chunk has `first` frames: one more, or 1."""
    multiple: int
    """The number of frames after the first one must be a multiple of this."""
    first: int = 1
    """Frames of the first chunk."""
    set_chunk: Callable[[DiffusersModel, int], ChunkedCalls | None] | None = None
    """For classes whose chunks may also be multiples of `chunk`: from the model and the number of frames of its chunks
    to how it is called now, or None if that stays. The norms of other classes depend on the chunk."""
    has_variance: bool = True
    """Whether the second half of the encoder's channels are log-variances; else they are left out."""

    @property
    def accepts_multiples(self) -> bool:
        """Whether chunks may also be multiples of `chunk`."""
        return self.set_chunk is not None

    def frames(self, num_frames: int | None) -> ChunkSizes:
        """Return the chunks of a video, of at most `num_frames` frames if the class has a choice."""
        others = self.chunk
        if self.accepts_multiples and num_frames is not None:
            others *= max(num_frames // others, 1)
        return ChunkSizes(self.first, others, self.multiple, offset=1)

    def latent_frames(self, module: DiffusersModel, num_frames: int | None) -> ChunkSizes:
        """Return the chunks of the latent of `frames`."""
        frames = self.frames(num_frames)
        time = module.config[self.time] if isinstance(self.time, str) else self.time
        first = 1 + (self.first - 1) // time
        return ChunkSizes(first, frames.others // time, self.multiple // time, offset=1)

    def encoder(
        self, module: DiffusersModel, sizes: ClipSizes, num_frames: int | None
    ) -> StreamEncoder:
        """Return a stream of the model's encoder, which checks height and width of the first chunk."""
        cache = self.new_cache(module, "encoder")
        compute = partial(self._encode, module, sizes, cache)
        return StreamEncoder(compute, self.frames(num_frames))

    def decoder(self, module: DiffusersModel, num_frames: int | None) -> StreamDecoder:
        """Return a stream of the model's decoder."""
        cache = self.new_cache(module, "decoder")
        compute = partial(self._decode, module, cache)
        return StreamDecoder(compute, self.latent_frames(module, num_frames))

    def _encode(
        self, module: DiffusersModel, sizes: ClipSizes, cache: Any, video: Video, num_before: int
    ) -> Posterior:
        if num_before == 0:
            sizes.check_frame_size(*video.shape[3:])
        video = wan.patched(module, video.to(next(module.parameters()).dtype))
        moments = self.call(module.encoder, video, cache, num_before == 0)
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
        video = self.call(module.decoder, latent, cache, num_before == 0)
        return wan.unpatched(module, video)


def _new_list(module: DiffusersModel, part: str) -> list[Any]:
    return [None] * module._cached_conv_counts[part]


def _call_with_list(
    network: DiffusersModel, chunk: Tensor, cache: list[Any], is_first: bool
) -> Tensor:
    """Call a network of Wan or QwenImage; those that want to know are told which chunk is the first."""
    options = wan.options_of_first_call(network) if is_first else {}
    return network(chunk, feat_cache=cache, feat_idx=[0], **options)


def _new_dict(module: DiffusersModel, part: str) -> dict[str, Any]:
    return {}


def _call_with_dict(
    network: DiffusersModel, chunk: Tensor, cache: dict[str, Any], is_first: bool
) -> Tensor:
    """Call a network of CogVideoX, which returns what it keeps."""
    output, kept = network(chunk, conv_cache=cache or None)
    cache.update(kept)
    return output


def _new_tree(module: DiffusersModel, part: str) -> Any:
    if hasattr(module, f"_make_{part}_cache"):
        return getattr(module, f"_make_{part}_cache")()
    return getattr(module, part).make_cache()


def _call_with_tree(network: DiffusersModel, chunk: Tensor, cache: Any, is_first: bool) -> Tensor:
    return network(chunk, cache)


def _call_with_layers(
    network: DiffusersModel, chunk: Tensor, cache: dict[str, Tensor], is_first: bool
) -> Tensor:
    """Call a network of Magvit, whose layers keep frames: give them the stream's frames, and take the new ones."""
    layers = {
        name: layer for name, layer in network.named_modules() if hasattr(layer, CACHE_ATTRIBUTE)
    }
    for name, layer in layers.items():
        setattr(layer, CACHE_ATTRIBUTE, cache.get(name))
    try:
        output = network(chunk)
        for name, layer in layers.items():
            cache[name] = getattr(layer, CACHE_ATTRIBUTE)
        return output
    finally:
        for layer in layers.values():
            setattr(layer, CACHE_ATTRIBUTE, None)


def _set_chunk_of_magvit(module: DiffusersModel, num_frames: int) -> None:
    module.num_sample_frames_batch_size = num_frames
    module.num_latent_frames_batch_size = num_frames // _MAGVIT_TIME_COMPRESSION


def _set_chunk_of_wan(module: DiffusersModel, num_frames: int) -> ChunkedCalls:
    """Return calls with larger chunks than those of the class."""
    num_latent_frames = num_frames // wan.TIME_COMPRESSION
    return ChunkedCalls(
        encoder=partial(wan.encode_in_chunks, num_frames=num_frames),
        decoder=partial(wan.decode_in_chunks, num_latent_frames=num_latent_frames),
    )


COGVIDEOX = Streaming(_new_dict, _call_with_dict, time=4, multiple=8, chunk=8, first=9)
KANDINSKY_6_SR = Streaming(_new_tree, _call_with_tree, time=4, multiple=4, chunk=16, first=17)
# It returns three frames less for a last chunk of 4.
KVAE_VIDEO = Streaming(
    _new_tree,
    _call_with_tree,
    time="temporal_compress_times",
    multiple=8,
    chunk=16,
    first=17,
    has_variance=False,
)
MAGVIT = Streaming(
    _new_dict, _call_with_layers, time=4, multiple=4, chunk=4, set_chunk=_set_chunk_of_magvit
)
WAN = Streaming(
    _new_list, _call_with_list, time=4, multiple=4, chunk=4, set_chunk=_set_chunk_of_wan
)
"""The autoencoder of Qwen-Image streams like that of Wan."""
