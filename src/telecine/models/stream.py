"""Streams: a video is encoded, or a latent decoded, a few frames at a time, with the result of the whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.shapes import Video, check_video
from telecine.models.latent import Posterior, join_posteriors

Output = TypeVar("Output")
ComputeChunk: TypeAlias = Callable[[Tensor, int], Output]
"""From a chunk `(B, C, T, H, W)`, and the number of frames before it, to the output of its frames."""


@dataclass(frozen=True)
class ChunkSizes:
    """The chunks in which a stream is computed, in frames of its input; the last one may be shorter."""

    first: int
    """Frames of the first chunk."""
    others: int
    """Frames of the other chunks."""
    multiple: int = 1
    """Whole inputs have `offset + k * multiple` frames."""
    offset: int = 0
    """See `multiple`."""

    def num_missing(self, num_frames: int) -> int:
        """Return how many frames an input lacks to be a whole one."""
        if num_frames < self.offset:
            return self.offset - num_frames
        return -(num_frames - self.offset) % self.multiple


class Stream(ABC, Generic[Output]):
    """One pass over a video or a latent, which holds all state: several streams of a model may alternate.

    The input is computed in chunks of fixed sizes, without gradients. How many frames each `push` gets therefore
    changes no bit of the output. A stream whose chunk raised an error cannot be continued.

    Args:
        compute: Called with each chunk in order.
        sizes: The chunks.
    """

    name: str

    def __init__(self, compute: ComputeChunk[Output], sizes: ChunkSizes) -> None:
        self.sizes = sizes
        self.num_pushed = 0
        self._compute = compute
        self._pending: Tensor | None = None
        self._num_computed = 0
        self._is_flushed = False

    @property
    def num_missing(self) -> int:
        """The number of frames that have to be pushed before `flush`, for example copies of the last one."""
        return self.sizes.num_missing(self.num_pushed)

    @torch.no_grad()
    def push(self, frames: Tensor) -> Output | None:
        """Return the output of all chunks that are complete with the next frames; None if no chunk is.

        Args:
            frames: The next ones, `(B, C, T, H, W)`, any number of them, or none.

        Raises:
            ValueError: The stream was flushed, or the frames have another shape than those before.
        """
        if frames.ndim == 5 and frames.shape[2] == 0:
            return None
        check_video(self.name, frames)
        if self._is_flushed:
            remedy = "Start a new stream for another video."
            raise argument_error(self.name, "pushed before `flush`", "more after it", remedy)
        self.num_pushed += frames.shape[2]
        if self._pending is not None:
            if frames[:, :, :0].shape != self._pending[:, :, :0].shape:
                batch, channels, _, height, width = self._pending.shape
                contract = f"of the shape of the frames before, ({batch}, {channels}, T, {height}, {width})"
                raise argument_error(self.name, contract, frames, "Use one stream for each video.")
            frames = torch.cat([self._pending.to(frames), frames], dim=2)
        outputs = []
        while frames.shape[2] >= self._next_size:
            size = self._next_size
            outputs.append(self._compute_chunk(frames[:, :, :size]))
            frames = frames[:, :, size:]
        self._pending = frames.clone()  # a view would keep the chunks in memory
        return self._join(outputs)

    @torch.no_grad()
    def flush(self) -> Output | None:
        """Return the output of the frames that are left, and end the stream; None if there are none.

        Raises:
            ValueError: The frames that were pushed are no whole input.
        """
        if self.num_missing > 0:
            contract = f"{self.sizes.offset} + {self.sizes.multiple} k frames before `flush`"
            remedy = f"Push {self.num_missing} more, for example copies of the last one."
            raise argument_error(self.name, contract, f"{self.num_pushed}", remedy)
        self._is_flushed = True
        if self._pending is None or self._pending.shape[2] == 0:
            return None
        chunk = self._pending
        self._pending = None
        return self._join([self._compute_chunk(chunk)])

    @property
    def _next_size(self) -> int:
        return self.sizes.first if self._num_computed == 0 else self.sizes.others

    def _compute_chunk(self, chunk: Tensor) -> Output:
        # Convolutions round differently in another order in memory.
        output = self._compute(chunk.contiguous(), self._num_computed)
        self._num_computed += chunk.shape[2]
        return output

    @abstractmethod
    def _join(self, outputs: Sequence[Output]) -> Output | None:
        """Return the outputs of consecutive chunks as one; None without any."""


class StreamEncoder(Stream[Posterior]):
    """Encodes a video in steps: `push(frames)` returns the posterior of the latent frames that are complete."""

    name = "video"

    def _join(self, outputs: Sequence[Posterior]) -> Posterior | None:
        if not outputs:
            return None
        return join_posteriors(outputs)


class StreamDecoder(Stream[Video]):
    """Decodes a latent in steps: `push(latent)` returns the frames that are complete, not clamped."""

    name = "latent"

    def _join(self, outputs: Sequence[Video]) -> Video | None:
        if not outputs:
            return None
        return torch.cat(list(outputs), dim=2)


def run_stream(stream: Stream[Output], inputs: Iterable[Tensor]) -> Iterator[Output]:
    """Push all frames of an input, and yield the outputs that are complete; the last ones come from `flush`.

    The last frame is repeated until the input is a whole one.

    Args:
        stream: A stream that nothing was pushed to.
        inputs: Consecutive frames, `(B, C, T, H, W)`, at least one.
    """
    last_frame: Tensor | None = None
    for frames in inputs:
        last_frame = frames[:, :, -1:]
        output = stream.push(frames)
        if output is not None:
            yield output
    assert last_frame is not None
    output = stream.push(last_frame.expand(-1, -1, stream.num_missing, -1, -1))
    if output is not None:
        yield output
    output = stream.flush()
    if output is not None:
        yield output
