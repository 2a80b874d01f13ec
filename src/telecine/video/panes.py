"""Layouts of clips: the input, its reconstruction and their difference beside each other."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from telecine.video.frames import (
    MAX_PANE,
    MAX_VIDEO_SIDE,
    as_shown,
    depth_range,
    pad_to_even,
    shrink,
)

AMPLIFICATION = 4.0
"""Factor of the differences that are shown."""
_MIN_PANE_HEIGHT = 192
_LABEL_HEIGHT = 26
_GAP = 4


def side_by_side(
    *,
    inputs: Sequence[Tensor],
    reconstructions: Sequence[Tensor],
    limits: tuple[int, int] | None = None,
) -> Tensor:
    """Lay out input, reconstruction and amplified absolute difference from left to right, one row per clip.

    Small clips are enlarged by an integer factor (nearest neighbour) until a pane has 192 rows or more. What no video
    can show is shrunk.

    Args:
        inputs: Frames `(T, H, W, C)` of each clip, which `as_shown` shows. All have the same shape.
        reconstructions: Their reconstructions, of the same shape.
        limits: The values of the least and the last colour of depth. Default: those of all inputs.

    Returns:
        Frames with labels, `(T, H', W', 3)` with even `H'` and `W'`.
    """
    factor = -(-_MIN_PANE_HEIGHT // inputs[0].shape[1])
    limits = limits or depth_range(torch.cat(list(inputs)))
    rows = []
    for target, reconstruction in zip(inputs, reconstructions, strict=True):
        panes = _make_panes(target, reconstruction, limits)
        row = _join([_enlarge(pane, factor) for pane in panes], dim=2)
        rows.append(row)
    picture = _join(rows, dim=1)
    bar = _label_bar(picture.shape[2], limits).expand(len(picture), -1, -1, -1)
    labelled = torch.cat([bar, picture], dim=1)
    return pad_to_even(shrink(labelled, MAX_VIDEO_SIDE))


def lay_out_panes(*, target: Tensor, reconstruction: Tensor) -> Tensor:
    """Lay out the panes of a clip as even `(T, H', 3 * W', 3)`, without gaps and labels: a player can crop them."""
    # The format has half the resolution of colours: the full one of a clip that is enlarged.
    factor = 2 if target.shape[1] < _MIN_PANE_HEIGHT else 1
    panes = _make_panes(target, reconstruction, depth_range(target))
    return torch.cat([pad_to_even(_enlarge(pane, factor)) for pane in panes], dim=2)


def _make_panes(
    target: Tensor, reconstruction: Tensor, limits: tuple[int, int] | None
) -> tuple[Tensor, Tensor, Tensor]:
    target = target.cpu()
    reconstruction = reconstruction.cpu()
    shown_target = as_shown(target, limits)
    shown_reconstruction = as_shown(reconstruction, limits)
    if limits is None:
        difference = shown_target.float() - shown_reconstruction.float()
    else:  # of the values, not of their colours
        difference = target.float() / 257 - reconstruction.float() / 257
    amplified = difference.abs().mul(AMPLIFICATION).clamp(max=255.0).round().to(torch.uint8)
    return shown_target, shown_reconstruction, amplified.expand(shown_target.shape)


def _enlarge(frames: Tensor, factor: int) -> Tensor:
    """Enlarge frames by a factor, or by less or not at all, so that three of them fit beside each other."""
    frames = shrink(frames, MAX_PANE)
    factor = min(factor, MAX_PANE // max(frames.shape[1:3]))
    return frames.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def _join(panes: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate panes with black gaps between them."""
    gap = torch.zeros_like(panes[0].narrow(dim, 0, 1)).repeat_interleave(_GAP, dim)
    parts = [panes[0]]
    for pane in panes[1:]:
        parts.append(gap)
        parts.append(pane)
    return torch.cat(parts, dim=dim)


def _label_bar(width: int, limits: tuple[int, int] | None) -> Tensor:
    image = Image.new("RGB", (width, _LABEL_HEIGHT))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=15)
    labels = ["input", "reconstruction", f"difference x {AMPLIFICATION:g}"]
    if limits is not None:
        low, high = limits
        labels[0] = f"input, {low} to {high}"
    for index, label in enumerate(labels):
        left = round(index * (width + _GAP) / len(labels)) + 4
        draw.text((left, _LABEL_HEIGHT / 2), label, fill=(235, 235, 235), font=font, anchor="lm")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, _LABEL_HEIGHT, width, 3)
