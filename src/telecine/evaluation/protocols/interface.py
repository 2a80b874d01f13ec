"""What an evaluation asks of a protocol."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from telecine.base.shapes import Video
from telecine.data import Clip, Span, VideoInfo
from telecine.evaluation.metrics.metric_set import MetricSet
from telecine.models import VideoAutoencoder
from telecine.settings import EvaluateConfig


class ClipProtocol(Protocol):
    """Which clips are measured, how they are read and reconstructed, and which metrics they have."""

    def select(self, infos: Sequence[VideoInfo]) -> list[Span]:
        """Return the frames of each clip; raise a `ValueError` if the videos do not fit."""

    def read(self, span: Span, file: VideoInfo | None = None) -> Clip | None:
        """Return a clip in [-1, 1]. Log and return None if it cannot be decoded.

        Args:
            span: The clip.
            file: A file with as many frames, from which the same frames are read. None: that of the clip.
        """

    def reconstruct(self, model: VideoAutoencoder, span: Span, target: Video) -> Video:
        """Return the reconstruction of a clip, `(1, C, T, H, W)`.

        Args:
            model: The autoencoder.
            span: Where the clip is in its video.
            target: The clip, `(1, C, T, H, W)` in [-1, 1].
        """

    def measured_values(self, video: Tensor) -> Tensor:
        """Return an input or a reconstruction with the values that are measured, in [-1, 1]."""

    def load_metrics(
        self, spans: Sequence[Span], config: EvaluateConfig, device: torch.device
    ) -> MetricSet:
        """Load the metrics that are defined for the clips.

        Args:
            spans: The clips.
            config: The settings.
            device: Where the networks are.
        """

    def describe(self, spans: Sequence[Span]) -> dict[str, Any]:
        """Return the fields of `EvaluationRecord` that say how clips were selected, read and measured."""
