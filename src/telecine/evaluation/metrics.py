"""Reconstruction quality: PSNR, SSIM and LPIPS of every clip, and their mean over clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from telecine.precision import at_least_float32, autocast_off
from telecine.shapes import VALUE_RANGE, Frames, Video, argument_error, check_range, check_video

# Identical clips would have an infinite PSNR, which no mean survives; rounding to 8 bits alone gives 59 dB.
MAX_PSNR = 100.0
SSIM_SIGMA = 1.5
SSIM_WINDOW = 11

METRIC_DEFINITIONS = {
    "psnr": f"dB; 10 log10(2^2 / mean squared error over all pixels of a clip in [-1, 1]), at most {MAX_PSNR:g}; "
    "mean over clips; larger is better",
    "ssim": f"Wang et al. 2004; RGB frames in [0, 1], Gaussian window {SSIM_WINDOW} x {SSIM_WINDOW} with sigma "
    f"{SSIM_SIGMA}, borders reflected and counted, k1 0.01, k2 0.03; "
    "mean over channels, pixels, frames, then clips; larger is better",
    "lpips_vgg": "LPIPS v0.1, arXiv 1801.03924, VGG16; mean over frames, then clips; smaller is better",
    "lpips_alex": "LPIPS v0.1, arXiv 1801.03924, AlexNet; mean over frames, then clips; smaller is better",
}


def psnr(*, reconstruction: Video, target: Video) -> Tensor:
    """Return the peak signal-to-noise ratio of each clip, `(B,)` in dB, at most `MAX_PSNR`; larger is better.

    One mean squared error is taken over a clip's pixels, so a bad frame weighs what it should, and the peak is the
    width of [-1, 1], which is 2. NaN stays NaN.
    """
    peak = VALUE_RANGE[1] - VALUE_RANGE[0]
    error = (reconstruction - target).square().flatten(1).mean(1)
    return 10 * torch.log10(peak**2 / error.clamp(min=peak**2 * 10 ** (-MAX_PSNR / 10)))


def ssim(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return the structural similarity of each frame, `(N,)` in [-1, 1], 1 for identical ones; larger is better.

    Frames in [-1, 1] are mapped to [0, 1] first: SSIM's luminance term is not invariant to an offset, and published
    values are of non-negative images (Wang et al., doi 10.1109/TIP.2003.819861). As in torchmetrics every pixel counts,
    the window mirrored at the border; the paper and scikit-image leave out a border of 5 pixels.

    Raises:
        ValueError: a frame is smaller than the 11 x 11 window.
    """
    # torchmetrics takes three seconds to import, which `telecine --help` must not wait for.
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(target.shape[-2:]) < SSIM_WINDOW:
        remedy = "Evaluate at a larger size."
        raise argument_error("target", f"frames of at least {SSIM_WINDOW} x {SSIM_WINDOW}", target, remedy)
    preds, goal = (0.5 * (frames + 1) for frames in (reconstruction, target))
    # Releases differ in whether the border counts, so the mean is taken here, over the whole map.
    _, full_map = structural_similarity_index_measure(
        preds, goal, sigma=SSIM_SIGMA, reduction="none", data_range=1.0, return_full_image=True
    )
    return full_map.flatten(1).mean(1)


def mean_over_clips(per_clip: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each metric over clips, every clip with the same weight.

    Raises:
        ValueError: there is no clip.
    """
    if not per_clip:
        raise argument_error("per_clip", "the values of at least one clip", "none", "Call `update` before `compute`.")
    return {name: sum(clip[name] for clip in per_clip) / len(per_clip) for name in per_clip[0]}


def clip_means(per_frame: Tensor, num_clips: int) -> Tensor:
    """Average values `(num_clips * T,)` over each clip's frames, giving `(num_clips,)`."""
    return per_frame.reshape(num_clips, -1).mean(1)


class ReconstructionMetrics:
    """PSNR, SSIM and any perceptual distances, accumulated clip by clip over a whole set.

    Args:
        perceptual: distances by the name they are reported under, e.g. `{"lpips_alex": LPIPS(...)}`. Each is called as
            `module(reconstruction=frames, target=frames)` on frames `(N, 3, H, W)` in [-1, 1] and returns `(N,)`.
        frames_per_chunk: how many frames SSIM and the distances see at once, which bounds their memory.

    Raises:
        ValueError: a distance is named like a built-in metric, or `frames_per_chunk` is not positive.

    Example:
        >>> metrics = ReconstructionMetrics()
        >>> metrics.update(reconstruction=torch.zeros(1, 3, 2, 16, 16), target=torch.ones(1, 3, 2, 16, 16))
        >>> round(metrics.compute()["psnr"], 2)
        6.02
    """

    def __init__(self, perceptual: Mapping[str, nn.Module] | None = None, *, frames_per_chunk: int = 8) -> None:
        self.perceptual = dict(perceptual or {})
        self.frames_per_chunk = frames_per_chunk
        self._per_clip: list[dict[str, float]] = []
        if frames_per_chunk < 1:
            raise argument_error("frames_per_chunk", "at least 1", frames_per_chunk, "The default is 8.")
        if taken := {"psnr", "ssim"} & self.perceptual.keys():
            raise argument_error("perceptual", "named unlike a built-in metric", str(sorted(taken)), "Rename it.")

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that `compute` returns, in its order."""
        return ("psnr", "ssim", *self.perceptual)

    @torch.no_grad()
    def update(self, *, reconstruction: Video, target: Video) -> None:
        """Add the clips of a batch; their values are read at once, so an accelerator is waited for.

        Args:
            reconstruction: `(B, 3, T, H, W)`, clamped to [-1, 1] before anything is measured.
            target: of the same shape, in [-1, 1].

        Raises:
            ValueError: a shape is not `(B, 3, T, H, W)` or differs, the target leaves [-1, 1], a frame is smaller than
                11 x 11, or a distance does not return one value per frame.
        """
        check_pair(reconstruction=reconstruction, target=target)
        with autocast_off(target.device):
            recon = at_least_float32(reconstruction).clamp(*VALUE_RANGE)
            values = self._measure(reconstruction=recon, target=at_least_float32(target).to(recon.dtype))
        columns = {name: column.tolist() for name, column in values.items()}
        self._per_clip += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def compute(self) -> dict[str, float]:
        """Return each metric's mean over all clips so far.

        Raises:
            ValueError: no clip was added.
        """
        return mean_over_clips(self._per_clip)

    def per_clip(self) -> list[dict[str, float]]:
        """Return every clip's values, in the order they were added."""
        return [dict(values) for values in self._per_clip]

    def _measure(self, *, reconstruction: Video, target: Video) -> dict[str, Tensor]:
        values = {"psnr": psnr(reconstruction=reconstruction, target=target)}
        frame_metrics: dict[str, Callable[..., Tensor]] = {"ssim": ssim, **self.perceptual}
        chunks: dict[str, list[Tensor]] = {name: [] for name in frame_metrics}
        for recon_frames, target_frames in self._frame_chunks(reconstruction, target):
            for name, metric in frame_metrics.items():
                distances = metric(reconstruction=recon_frames, target=target_frames)
                chunks[name].append(check_per_frame(name, distances, len(target_frames)))
        return values | {name: clip_means(torch.cat(parts), len(target)) for name, parts in chunks.items()}

    def _frame_chunks(self, *videos: Video) -> Iterator[tuple[Frames, ...]]:
        frames = (rearrange(video, "b c t h w -> (b t) c h w") for video in videos)
        return zip(*(part.split(self.frames_per_chunk) for part in frames), strict=True)


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
