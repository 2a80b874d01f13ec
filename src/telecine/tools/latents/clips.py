"""The clips that are measured, read when they are needed, and their latents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.shapes import Video
from telecine.base.terminal import with_progress
from telecine.data import DataError, Span, VideoInfo, bytes_from_video, clips_sha256, pixels_sha256
from telecine.evaluation.load_model import MeasuredModel
from telecine.evaluation.protocols.configured import ConfiguredClips
from telecine.settings import ClipConfig


@dataclass(frozen=True)
class ClipsOnDisk:
    """Clips `(1, C, T, H, W)` on the CPU, each read when it is needed: all of them may be larger than the memory."""

    spans: Sequence[Span]
    clip_protocol: ConfiguredClips
    sha256: str
    """Hash of the pixels of all clips, as evaluations have it."""

    @classmethod
    def find(cls, infos: Sequence[VideoInfo], clip_protocol: ConfiguredClips) -> "ClipsOnDisk":
        """Return the clips of videos that `telecine evaluate` would measure. Clips that are broken are left out.

        Raises:
            ValueError: No clip can be decoded.
        """
        spans = []
        hashes = []
        for span, clip in clip_protocol.read_all(infos):
            spans.append(span)
            hashes.append(pixels_sha256(bytes_from_video(clip["video"])))
        return cls(spans, clip_protocol, clips_sha256(hashes))

    @property
    def config(self) -> ClipConfig:
        """The length, size and stride of a clip."""
        return self.clip_protocol.config

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[Video]:
        for span in self.spans:
            clip = self.clip_protocol.read(span)
            if clip is None:
                got = f"{span.info.source}, which was before"
                raise argument_error(
                    "data", "readable until the end", got, "See the log.", DataError
                )
            yield clip["video"][None]


@torch.no_grad()
def encode_clips(measured: MeasuredModel, videos: ClipsOnDisk | list[Video]) -> Tensor:
    """Return the latents of clips, `(N, C, t, h, w)` in float32 on the CPU.

    Raises:
        ValueError: The model does not offer its latent.
    """
    device = next(measured.model.parameters()).device
    latents = []
    for video in with_progress(videos, "encoding", total=len(videos)):
        latent = measured.model(video.to(device), sample_posterior=False).latent
        if latent is None:
            remedy = "A custom module returns (reconstruction, losses, latent)."
            raise argument_error(
                measured.title, "a model that offers its latent", "one without", remedy
            )
        latents.append(latent.float().cpu())
    return torch.cat(latents)
