"""The perceptual term: which frames are compared, how many at a time, and with which weight each clip counts."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from telecine.objective.arguments import check_frames, check_interval
from telecine.objective.carry import carry
from telecine.objective.region import frame_weights
from telecine.perceptual import Perceptual, in_chunks, pick_frames, sample_frame_indices
from telecine.precision import at_least_float32
from telecine.randomness import Generators
from telecine.shapes import Scalar, Video


class PerceptualTerm(nn.Module):
    """LPIPS, or another distance of frames, of frames sampled from each clip.

    Args:
        net: "vgg", "alex", an `LPIPS`, or a callable, as `Perceptual` takes it.
        weights: The weights of "vgg".
        num_frames: How many frames of each clip, or "all".
        stride: Choose among every n-th frame.
        chunk_size: How many frames at a time; `None` for all at once.
    """

    def __init__(
        self, net: Any, weights: Any, *, num_frames: int | Literal["all"], stride: int, chunk_size: int | None
    ) -> None:
        super().__init__()
        self.num_frames = check_frames(num_frames)
        self.stride = check_interval("perceptual_stride", stride)
        self.chunk_size = chunk_size if chunk_size is None else check_interval("perceptual_chunk_size", chunk_size)
        self.distance = Perceptual(net, weights=weights if net == "vgg" else None)

    @property
    def has_features(self) -> bool:
        """Whether there are features to take Gram matrices of."""
        return self.distance.has_features

    def forward(
        self,
        *,
        reconstruction: Video,
        target: Video,
        weight: Tensor | None,
        gram: bool,
        generator: Generators,
        eager: bool,
    ) -> tuple[Scalar, Scalar]:
        """Return the mean distance over the sampled frames, and that of their Gram matrices, 0 unless `gram`.

        Args:
            reconstruction: Video `(B, C, T, H, W)`.
            target: Video of the same shape.
            weight: Weight of each clip `(B,)`, or None for 1.
            gram: Compare Gram matrices as well.
            generator: Source of the random frames.
            eager: Take each chunk's gradient before the next chunk's turn; without a `chunk_size`, a chunk is then
                one frame of each clip.
        """
        indices = sample_frame_indices(reconstruction, self.num_frames, generator, stride=self.stride)
        # In float32, as they are compared: splitting half precision has a backward that CPU autocast refuses.
        frames, targets = (at_least_float32(pick_frames(video, indices)) for video in (reconstruction, target))
        shares = frame_weights(weight, indices)

        def term(x: Tensor, y: Tensor, share: Tensor) -> tuple[Scalar, ...]:
            distance = in_chunks(
                partial(self.distance, gram=gram), reconstruction=x, target=y, chunk_size=self.chunk_size
            )
            return tuple((share * value).sum() for value in (distance if gram else distance[:1]))

        size = (self.chunk_size or len(indices)) if eager else len(frames)
        chunks = zip(frames.split(size), targets.split(size), shares.split(size), strict=True)
        if eager:
            values = [carry(partial(term, y=y, share=share), x) for x, y, share in chunks]
        else:
            values = [term(x, y, share) for x, y, share in chunks]
        lpips, *rest = (torch.stack(column).sum() for column in zip(*values, strict=True))
        return lpips, rest[0] if rest else torch.zeros_like(lpips)
