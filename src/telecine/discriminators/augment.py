"""Differentiable augmentation of the discriminators' inputs (Zhao et al., arXiv:2006.10738)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from telecine.base.randomness import Generators, rand
from telecine.base.shapes import RGBA, Video
from telecine.settings import Augmentation

# The fractions of height and width by which "translation" moves at most, and which "cutout" hides.
_MAX_TRANSLATION = 0.125
_CUTOUT = 0.5


def augment(
    videos: Sequence[Video], augmentations: Sequence[Augmentation], generator: Generators
) -> list[Video]:
    """Return videos of one shape `(B, C, T, H, W)` with random changes, which may leave [-1, 1]; the graph is kept.

    Each clip has its own changes, which are the same in all its frames and in all of `videos`: pairs stay pairs.

    Args:
        videos: Clips `(B, C, T, H, W)` in [-1, 1].
        augmentations: Names of the augmentations, in their order.
        generator: Source of the draws, on the videos' device.
    """
    changed = list(videos)
    for name in augmentations:
        count, change = AUGMENTATIONS[name]
        draws = rand((len(videos[0]), count), generator=generator, device=videos[0].device).unbind(
            1
        )
        changed = [change(video, *draws) for video in changed]
    return changed


def color(video: Video, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Video:
    """Change the colours of clips; alpha stays as it is.

    Args:
        video: `(B, C, T, H, W)`.
        brightness: Draws `(B,)` in [0, 1), as all; add -1/2 to 1/2.
        saturation: Multiply the distance of each pixel to its grey by 0 to 2.
        contrast: Multiply the distance to the clip's mean by 1/2 to 3/2.
    """
    if video.shape[1] == RGBA:
        return torch.cat(
            [color(video[:, :3], brightness, saturation, contrast), video[:, 3:]], dim=1
        )
    brightness = brightness.to(video.dtype).view(-1, 1, 1, 1, 1)
    saturation = saturation.to(video.dtype).view(-1, 1, 1, 1, 1)
    contrast = contrast.to(video.dtype).view(-1, 1, 1, 1, 1)
    video = video + (brightness - 0.5)
    grey = video.mean(1, keepdim=True)
    video = grey + 2 * saturation * (video - grey)
    mean = video.mean((1, 2, 3, 4), keepdim=True)
    return mean + (0.5 + contrast) * (video - mean)


def translation(video: Video, vertical: Tensor, horizontal: Tensor) -> Video:
    """Move clips by a whole number of pixels, at most 1/8 of height and width; 0 comes in.

    Args:
        video: `(B, C, T, H, W)`.
        vertical: Draws `(B,)` in [0, 1).
        horizontal: Likewise.
    """
    for dim, draw in ((3, vertical), (4, horizontal)):
        size = video.shape[dim]
        most = round(_MAX_TRANSLATION * size)
        shift = _whole(draw, 2 * most + 1)[:, None] - most
        source = torch.arange(size, device=video.device) + shift
        is_inside = (source >= 0) & (source < size)
        inside = _along_axis(is_inside, dim)
        index = _along_axis(source.clamp(0, size - 1), dim)
        moved = video.gather(dim, index.expand_as(video))
        video = torch.where(inside, moved, 0)
    return video


def cutout(video: Video, vertical: Tensor, horizontal: Tensor) -> Video:
    """Set a rectangle of half the height and width to 0; it may lie partly outside of the frame.

    Args:
        video: `(B, C, T, H, W)`.
        vertical: Draws `(B,)` in [0, 1).
        horizontal: Likewise.
    """
    hidden = torch.ones((), dtype=torch.bool, device=video.device)
    for dim, draw in ((3, vertical), (4, horizontal)):
        size = video.shape[dim]
        length = int(_CUTOUT * size + 0.5)
        first = _whole(draw, size + 1 - length % 2)[:, None] - length // 2
        position = torch.arange(size, device=video.device)
        covered = (position >= first) & (position < first + length)
        hidden = hidden & _along_axis(covered, dim)
    return torch.where(hidden, 0, video)


def _along_axis(values: Tensor, dim: int) -> Tensor:
    """Return values `(B, size)` with the axes of a video, `size` at axis 3 or 4."""
    return values[:, None, None, :, None] if dim == 3 else values[:, None, None, None, :]


def _whole(draw: Tensor, count: int) -> Tensor:
    """Return whole numbers from 0 to below `count` for numbers in [0, 1)."""
    return (count * draw).long().clamp(max=count - 1)


# The number of draws in [0, 1) that an augmentation needs for a clip, and its function.
AUGMENTATIONS: dict[str, tuple[int, Callable[..., Video]]] = {
    "color": (3, color),
    "translation": (2, translation),
    "cutout": (2, cutout),
}
