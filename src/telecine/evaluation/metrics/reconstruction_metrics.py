"""Reconstruction metrics of every clip and frame, and their means over clips."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from telecine.base.checks import argument_error, check_choice
from telecine.base.precision import at_least_float32, autocast_off
from telecine.base.shapes import (
    RGBA,
    VALUE_RANGE,
    Video,
    check_range,
    check_same_shape,
    check_video,
)
from telecine.evaluation.metrics.metric import METRICS, ClipMetric, FrameMetric, PixelMetric
from telecine.losses.perceptual import as_rgb

FRAMES_PER_CHUNK = 8  # of metrics of frames and distances; bounds memory


def default_metrics() -> list[str]:
    """Return the names of the metrics of pixels that are measured without a published protocol."""
    return [
        name
        for name, metric in METRICS.items()
        if isinstance(metric, PixelMetric) and metric.is_default
    ]


def mean_over_clips(per_clip: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over clips, with equal weights.

    Raises:
        ValueError: There is no clip.
    """
    if not per_clip:
        raise argument_error(
            "per_clip", "the values of at least one clip", "none", "Call `update` before `compute`."
        )
    means = {}
    for name in per_clip[0]:
        means[name] = sum(clip[name] for clip in per_clip) / len(per_clip)
    return means


class ReconstructionMetrics:
    """Accumulates built-in metrics and perceptual distances clip by clip.

    Distances and metrics of frames, but for PSNR, are of RGB, see `as_rgb`, or of all channels that are not colours. Of
    RGBA, there are also `psnr_alpha` and `psnr_composite`.

    Args:
        perceptual: Distances by the name they are reported under, e.g. `{"lpips_alex": LPIPS(...)}`. Each is called as
            `module(reconstruction=frames, target=frames)` on frames `(N, 3, H, W)` in [-1, 1] and returns `(N,)`.
        metrics: Names of metrics of pixels: those of `default_metrics()`, or of a published protocol.
        range_is_known: Whether the range of the targets is known to be [-1, 1]. Bright clips without a value below 0
            are then no warning.

    Raises:
        ValueError: A metric is unknown, or a distance has the name of a built-in one.

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
        range_is_known: bool = False,
    ) -> None:
        self.perceptual = dict(perceptual or {})
        self.metrics = tuple(metrics)
        self.range_is_known = range_is_known
        self._per_clip: list[dict[str, float]] = []
        self._per_frame: list[dict[str, list[float]]] = []
        built_in = {
            name: metric for name, metric in METRICS.items() if isinstance(metric, PixelMetric)
        }
        taken = sorted(built_in.keys() & self.perceptual.keys())
        if taken:
            contract = "distances with other names than the built-in metrics"
            raise argument_error("perceptual", contract, str(taken), "Rename it.")
        for name in self.metrics:
            check_choice("metrics", name, built_in)
        self._measured = [built_in[name] for name in self.metrics]
        self._alpha_metrics = []
        for metric in built_in.values():
            if (
                isinstance(metric, ClipMetric)
                and metric.needs_alpha
                and metric not in self._measured
            ):
                self._alpha_metrics.append(metric)

    @torch.no_grad()
    def update(self, *, reconstruction: Video, target: Video) -> None:
        """Measure a batch of clips. Reads the values at once, which synchronizes with an accelerator.

        Args:
            reconstruction: `(B, C, T, H, W)`. Clamped to [-1, 1] before measuring.
            target: Of the same shape, in [-1, 1].

        Raises:
            ValueError: A shape is not `(B, C, T, H, W)`, the shapes differ, the target leaves [-1, 1], a clip is too
                small for a metric, or a distance does not return one value per frame.
        """
        check_video("reconstruction", reconstruction)
        check_video("target", target)
        remedy = "Crop both to the same frames and size."
        check_same_shape("reconstruction", reconstruction, "target", target, remedy=remedy)
        check_range("target", target, range_is_known=self.range_is_known)
        for metric in self._measured:
            reason = metric.unavailable_reason(*target.shape[2:])
            if reason is not None:
                contract = f"large and long enough for {metric.name}, which {reason}"
                raise argument_error("target", contract, target, f"Leave `{metric.name}` out.")
        with autocast_off(target.device):
            reconstruction = at_least_float32(reconstruction).clamp(*VALUE_RANGE)
            target = at_least_float32(target).to(reconstruction.dtype)
            per_frame = self._measure_frames(reconstruction=reconstruction, target=target)
            per_clip = {}
            for metric in self._measured:
                if isinstance(metric, ClipMetric):
                    per_clip[metric.name] = metric.function(
                        reconstruction=reconstruction, target=target
                    )
                else:
                    per_clip[metric.name] = per_frame[metric.name].mean(1)
            for name in self.perceptual:
                per_clip[name] = per_frame[name].mean(1)
            if target.shape[1] == RGBA:
                for metric in self._alpha_metrics:
                    per_clip[metric.name] = metric.function(
                        reconstruction=reconstruction, target=target
                    )
        self._per_clip += _rows(per_clip)
        self._per_frame += _rows(per_frame)

    def compute(self) -> dict[str, float]:
        """Return each metric's mean over all clips so far.

        Raises:
            ValueError: There is no clip.
        """
        return mean_over_clips(self._per_clip)

    def per_clip(self) -> list[dict[str, float]]:
        """Return the metrics of every clip, in the order in which they were added."""
        return [dict(values) for values in self._per_clip]

    def per_frame(self) -> list[dict[str, list[float]]]:
        """Return the values of every clip's frames, for PSNR (of the frame alone) and metrics of single frames."""
        return [dict(values) for values in self._per_frame]

    def _measure_frames(self, *, reconstruction: Video, target: Video) -> dict[str, Tensor]:
        """Return `(B, T)` for PSNR, each metric of single frames and each distance."""
        chunks: dict[str, list[Tensor]] = {}
        recon_frames = rearrange(reconstruction, "b c t h w -> (b t) c h w").split(FRAMES_PER_CHUNK)
        target_frames = rearrange(target, "b c t h w -> (b t) c h w").split(FRAMES_PER_CHUNK)
        for recon, frames in zip(recon_frames, target_frames, strict=True):
            recon_rgb = as_rgb(recon)
            rgb = as_rgb(frames)
            for metric in self._measured:
                if isinstance(metric, FrameMetric):
                    values = metric.function(reconstruction=recon_rgb, target=rgb)
                elif isinstance(metric, ClipMetric) and metric.frame_function is not None:
                    values = metric.frame_function(reconstruction=recon, target=frames)
                else:
                    continue
                chunks.setdefault(metric.name, []).append(values)
            for name, distance in self.perceptual.items():
                values = distance(reconstruction=recon_rgb, target=rgb)
                if values.shape != (len(frames),):
                    contract = f"a module that returns shape ({len(frames)},)"
                    remedy = f"`{name}` must not average over frames."
                    raise argument_error(f"perceptual[{name!r}]", contract, values, remedy)
                chunks.setdefault(name, []).append(values)
        per_frame = {}
        for name, parts in chunks.items():
            per_frame[name] = torch.cat(parts).reshape(len(target), -1)
        return per_frame


def _rows(columns: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return a dict of values for each clip, from a column of values for each metric."""
    value_columns = [column.tolist() for column in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*value_columns, strict=True)]
