"""Reconstruction metrics of every clip and frame, and their means over clips."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from telecine.base.checks import argument_error, check_choice
from telecine.base.precision import at_least_float32, autocast_off
from telecine.base.shapes import RGBA, VALUE_RANGE, Video, check_range, check_same_shape, check_video
from telecine.evaluation.pixel_metrics import CLIP_METRICS, FRAME_METRICS, psnr
from telecine.evaluation.protocol import DEFINITIONS, GRID_PERIODS
from telecine.losses.perceptual import as_rgb

KNOWN_METRICS = {**CLIP_METRICS, **FRAME_METRICS}
# What is measured without a protocol.
BUILT_IN_METRICS = ("psnr", "ssim", "ms_ssim", "flicker", "sharpness", *(f"grid_{period}" for period in GRID_PERIODS))
_ALPHA_METRICS = ("psnr_alpha", "psnr_composite")
_FRAMES_PER_CHUNK = 8  # of SSIM, MS-SSIM and the distances; bounds memory


def mean_over_clips(per_clip: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over clips, with equal weights; raise a `ValueError` if there is no clip."""
    if not per_clip:
        raise argument_error("per_clip", "the values of at least one clip", "none", "Call `update` before `compute`.")
    return {name: sum(clip[name] for clip in per_clip) / len(per_clip) for name in per_clip[0]}


class ReconstructionMetrics:
    """Accumulates built-in metrics and perceptual distances clip by clip.

    Distances and metrics of frames, but for PSNR, are of RGB, see `as_rgb`, or of all channels that are not colours. Of
    RGBA, there are also `_ALPHA_METRICS`.

    Args:
        perceptual: Distances by the name they are reported under, e.g. `{"lpips_alex": LPIPS(...)}`. Each is called as
            `module(reconstruction=frames, target=frames)` on frames `(N, 3, H, W)` in [-1, 1] and returns `(N,)`.
        metrics: The built-in metrics to compute: those of `BUILT_IN_METRICS`, or of a published protocol.

    Raises:
        ValueError: A metric is unknown, or a distance has the name of a built-in one.

    Example:
        >>> metrics = ReconstructionMetrics()
        >>> metrics.update(reconstruction=torch.zeros(1, 3, 2, 16, 16), target=torch.ones(1, 3, 2, 16, 16))
        >>> round(metrics.compute()["psnr"], 2)
        6.02
    """

    def __init__(
        self, perceptual: Mapping[str, nn.Module] | None = None, *, metrics: Sequence[str] = ("psnr", "ssim")
    ) -> None:
        self.perceptual = dict(perceptual or {})
        self.metrics = tuple(metrics)
        self._per_clip: list[dict[str, float]] = []
        self._per_frame: list[dict[str, list[float]]] = []
        if taken := KNOWN_METRICS.keys() & self.perceptual.keys():
            contract = "distances with other names than the built-in metrics"
            raise argument_error("perceptual", contract, str(sorted(taken)), "Rename it.")
        for name in self.metrics:
            check_choice("metrics", name, KNOWN_METRICS)

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
        check_range("target", target)
        for name in self.metrics:
            if reason := DEFINITIONS[name].unavailable_reason(*target.shape[2:]):
                contract = f"large and long enough for {name}, which {reason}"
                raise argument_error("target", contract, target, f"Leave `{name}` out.")
        with autocast_off(target.device):
            reconstruction = at_least_float32(reconstruction).clamp(*VALUE_RANGE)
            target = at_least_float32(target).to(reconstruction.dtype)
            per_frame = self._measure_frames(reconstruction=reconstruction, target=target)
            per_clip = {name: values.mean(1) for name, values in per_frame.items()}
            of_alpha = _ALPHA_METRICS if target.shape[1] == RGBA else ()
            for name in (*self.metrics, *of_alpha):
                if name in CLIP_METRICS:
                    per_clip[name] = CLIP_METRICS[name](reconstruction=reconstruction, target=target)
        self._per_clip += _rows({name: per_clip[name] for name in (*self.metrics, *self.perceptual, *of_alpha)})
        self._per_frame += _rows(per_frame)

    def compute(self) -> dict[str, float]:
        """Return each metric's mean over all clips so far; raise a `ValueError` if there is none."""
        return mean_over_clips(self._per_clip)

    def per_clip(self) -> list[dict[str, float]]:
        """Return the metrics of every clip, in the order in which they were added."""
        return [dict(values) for values in self._per_clip]

    def per_frame(self) -> list[dict[str, list[float]]]:
        """Return the values of every clip's frames, for PSNR (of the frame alone) and metrics of single frames."""
        return [dict(values) for values in self._per_frame]

    def _measure_frames(self, *, reconstruction: Video, target: Video) -> dict[str, Tensor]:
        """Return `(B, T)` for PSNR and each metric of single frames."""
        built_in = {"psnr": psnr, **FRAME_METRICS}
        metrics = {name: built_in[name] for name in self.metrics if name in built_in} | self.perceptual
        chunks: dict[str, list[Tensor]] = {name: [] for name in metrics}
        frames = (rearrange(video, "b c t h w -> (b t) c h w") for video in (reconstruction, target))
        for recon_frames, target_frames in zip(*(part.split(_FRAMES_PER_CHUNK) for part in frames), strict=True):
            in_rgb = {"reconstruction": as_rgb(recon_frames), "target": as_rgb(target_frames)}
            for name, metric in metrics.items():
                as_stored = {"reconstruction": recon_frames, "target": target_frames}
                values = metric(**(as_stored if metric is psnr else in_rgb))
                if values.shape != (len(target_frames),):
                    contract = f"a module that returns shape ({len(target_frames)},)"
                    remedy = f"`{name}` must not average over frames."
                    raise argument_error(f"perceptual[{name!r}]", contract, values, remedy)
                chunks[name].append(values)
        return {name: torch.cat(parts).reshape(len(target), -1) for name, parts in chunks.items()}


def _rows(columns: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    values = (column.tolist() for column in columns.values())
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
