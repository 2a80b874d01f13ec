"""The perceptual term: which frames are compared, how many at a time, and with which weight each clip counts."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from telecine.objective.arguments import check_frames, check_interval
from telecine.objective.region import mean_over_frames
from telecine.perceptual import Perceptual, in_chunks, pick_frames, sample_frame_indices
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
        generator: torch.Generator | None,
    ) -> tuple[Scalar, Scalar]:
        """Return the mean distance over the sampled frames, and that of their Gram matrices, 0 unless `gram`.

        Args:
            reconstruction: Video `(B, C, T, H, W)`.
            target: Video of the same shape.
            weight: Weight of each clip `(B,)`, or None for 1.
            gram: Compare Gram matrices as well.
            generator: Source of the random frames.
        """
        indices = sample_frame_indices(reconstruction, self.num_frames, generator, stride=self.stride)
        distance = in_chunks(
            partial(self.distance, gram=gram),
            reconstruction=pick_frames(reconstruction, indices),
            target=pick_frames(target, indices),
            chunk_size=self.chunk_size,
        )
        zero = torch.zeros((), device=reconstruction.device)
        return mean_over_frames(distance.lpips, weight), mean_over_frames(distance.gram, weight) if gram else zero
