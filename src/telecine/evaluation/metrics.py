"""Reconstruction quality of every clip, its course over the frames, and the means over clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from telecine.evaluation.definitions import DEFINITIONS, GRID_PERIODS, METRIC_DEFINITIONS
from telecine.evaluation.grid import grid_excess
from telecine.evaluation.motion import flicker
from telecine.evaluation.pixels import ms_ssim, psnr, sharpness, ssim
from telecine.precision import at_least_float32, autocast_off
from telecine.shapes import VALUE_RANGE, Frames, Video, argument_error, check_range, check_video, nearest

__all__ = ["METRIC_DEFINITIONS", "ReconstructionMetrics", "applicable", "mean_over_clips", "psnr", "ssim"]

Metric = Callable[..., Tensor]

# Called as `metric(reconstruction=, target=)`: on clips (B, 3, T, H, W), returning (B,).
CLIP_METRICS: dict[str, Metric] = {
    "psnr": psnr,
    "flicker": flicker,
    "sharpness": sharpness,
    **{f"grid_{period}": partial(grid_excess, period=period) for period in GRID_PERIODS},
}
# On frames (N, 3, H, W), returning (N,); a clip has the mean over its frames.
FRAME_METRICS: dict[str, Metric] = {"ssim": ssim, "ms_ssim": ms_ssim}
BUILT_IN = ("psnr", "ssim", "ms_ssim", "flicker", "sharpness", *(f"grid_{period}" for period in GRID_PERIODS))


def applicable(names: Sequence[str], *, num_frames: int, height: int, width: int) -> tuple[list[str], dict[str, str]]:
    """Divide metrics into those that clips of this size have, and the reason why they lack each of the others."""
    reasons = {name: DEFINITIONS[name].obstacle(num_frames, height, width) for name in names}
    absent = {name: reason for name, reason in reasons.items() if reason is not None}
    return [name for name in names if name not in absent], absent


def mean_over_clips(per_clip: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each metric over clips, every clip with the same weight.

    Raises:
        ValueError: there is no clip.
    """
    if not per_clip:
        raise argument_error("per_clip", "the values of at least one clip", "none", "Call `update` before `compute`.")
    return {name: sum(clip[name] for clip in per_clip) / len(per_clip) for name in per_clip[0]}


class ReconstructionMetrics:
    """Metrics and any perceptual distances, accumulated clip by clip over a whole set.

    Args:
        perceptual: distances by the name they are reported under, e.g. `{"lpips_alex": LPIPS(...)}`. Each is called as
            `module(reconstruction=frames, target=frames)` on frames `(N, 3, H, W)` in [-1, 1] and returns `(N,)`.
        metrics: which of the built-in ones: psnr, ssim, ms_ssim, flicker, sharpness, grid_2, grid_4, grid_8, grid_16.
        frames_per_chunk: how many frames SSIM and the distances see at once, which bounds their memory.

    Raises:
        ValueError: a metric is unknown, a distance is named like a built-in one, or `frames_per_chunk` is not positive.

    Example:
        >>> metrics = ReconstructionMetrics()
        >>> metrics.update(reconstruction=torch.zeros(1, 3, 2, 16, 16), target=torch.ones(1, 3, 2, 16, 16))
        >>> round(metrics.compute()["psnr"], 2)
        6.02
    """

    def __init__(
        self,
        perceptual: Mapping[str, nn.Module] | None = None,
        *,
        metrics: Sequence[str] = ("psnr", "ssim"),
        frames_per_chunk: int = 8,
    ) -> None:
        self.perceptual = dict(perceptual or {})
        self.metrics = tuple(metrics)
        self.frames_per_chunk = frames_per_chunk
        self._per_clip: list[dict[str, float]] = []
        self._curves: list[dict[str, list[float]]] = []
        if frames_per_chunk < 1:
            raise argument_error("frames_per_chunk", "at least 1", frames_per_chunk, "The default is 8.")
        if taken := set(BUILT_IN) & self.perceptual.keys():
            raise argument_error("perceptual", "named unlike a built-in metric", str(sorted(taken)), "Rename it.")
        for name in self.metrics:
            if name not in BUILT_IN:
                raise argument_error("metrics", f"among {', '.join(BUILT_IN)}", repr(name), nearest(name, BUILT_IN))

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that `compute` returns, in its order."""
        return (*self.metrics, *self.perceptual)

    @torch.no_grad()
    def update(self, *, reconstruction: Video, target: Video) -> None:
        """Add the clips of a batch; their values are read at once, so an accelerator is waited for.

        Args:
            reconstruction: `(B, 3, T, H, W)`, clamped to [-1, 1] before anything is measured.
            target: of the same shape, in [-1, 1].

        Raises:
            ValueError: a shape is not `(B, 3, T, H, W)` or differs, the target leaves [-1, 1], a clip is smaller than a
                metric needs, or a distance does not return one value per frame.
        """
        check_pair(reconstruction=reconstruction, target=target)
        with autocast_off(target.device):
            recon = at_least_float32(reconstruction).clamp(*VALUE_RANGE)
            goal = at_least_float32(target).to(recon.dtype)
            curves = self._curves_of(reconstruction=recon, target=goal)
            values = self._values_of(curves, reconstruction=recon, target=goal)
        self._per_clip += rows_of({name: column.tolist() for name, column in values.items()})
        self._curves += rows_of({name: column.tolist() for name, column in curves.items()})

    def compute(self) -> dict[str, float]:
        """Return each metric's mean over all clips so far.

        Raises:
            ValueError: no clip was added.
        """
        return mean_over_clips(self._per_clip)

    def per_clip(self) -> list[dict[str, float]]:
        """Return every clip's values, in the order they were added."""
        return [dict(values) for values in self._per_clip]

    def per_frame(self) -> list[dict[str, list[float]]]:
        """Return the course over every clip's frames of PSNR (of each frame alone) and of the metrics of frames."""
        return [dict(curves) for curves in self._curves]

    def _values_of(self, curves: Mapping[str, Tensor], *, reconstruction: Video, target: Video) -> dict[str, Tensor]:
        clip_metrics = {name: CLIP_METRICS[name] for name in self.metrics if name in CLIP_METRICS}
        values = {name: curve.mean(1) for name, curve in curves.items()}
        for name, metric in clip_metrics.items():
            values[name] = metric(reconstruction=reconstruction, target=target)
        return {name: values[name] for name in self.names}

    def _curves_of(self, *, reconstruction: Video, target: Video) -> dict[str, Tensor]:
        """Return `(B, T)` for each metric of frames."""
        own = {"psnr": psnr, **FRAME_METRICS}
        metrics = {name: own[name] for name in self.metrics if name in own} | self.perceptual
        chunks: dict[str, list[Tensor]] = {name: [] for name in metrics}
        for recon_frames, target_frames in self._frame_chunks(reconstruction, target):
            for name, metric in metrics.items():
                distances = metric(reconstruction=recon_frames, target=target_frames)
                chunks[name].append(check_per_frame(name, distances, len(target_frames)))
        return {name: torch.cat(parts).reshape(len(target), -1) for name, parts in chunks.items()}

    def _frame_chunks(self, *videos: Video) -> Iterator[tuple[Frames, ...]]:
        frames = (rearrange(video, "b c t h w -> (b t) c h w") for video in videos)
        return zip(*(part.split(self.frames_per_chunk) for part in frames), strict=True)


def rows_of(columns: Mapping[str, list]) -> list[dict]:
    """Turn a list for each name into a dict for each item."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def check_pair(*, reconstruction: Video, target: Video) -> None:
    """Raise a `ValueError` unless both are RGB videos of one shape and the target lies in [-1, 1]."""
    check_video("reconstruction", reconstruction)
    check_video("target", target)
    if target.shape[1] != 3:
        raise argument_error("target", "RGB video of shape (B, 3, T, H, W)", target, "Repeat a grey channel 3 times.")
    if reconstruction.shape != target.shape:
        remedy = "Crop both to the same frames and size."
        raise argument_error("reconstruction", f"of the target's shape {tuple(target.shape)}", reconstruction, remedy)
    check_range("target", target)


def check_per_frame(name: str, values: Tensor, num_frames: int) -> Tensor:
    """Return a distance's `values`, or raise a `ValueError` unless there is one per frame."""
    if values.shape != (num_frames,):
        remedy = f"`{name}` must not average over frames."
        raise argument_error(f"perceptual[{name!r}]", f"a module that returns shape ({num_frames},)", values, remedy)
    return values
