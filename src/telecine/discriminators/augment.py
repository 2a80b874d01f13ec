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


def augment(videos: Sequence[Video], augmentations: Sequence[Augmentation], generator: Generators) -> list[Video]:
    """Return videos of one shape `(B, C, T, H, W)` with random changes, which may leave [-1, 1]; the graph is kept.

    Each clip has its own changes, which are the same in all its frames and in all of `videos`: pairs stay pairs.
    `generator` is on the videos' device.
    """
    changed = list(videos)
    for name in augmentations:
        count, change = AUGMENTATIONS[name]
        draws = rand((len(videos[0]), count), generator=generator, device=videos[0].device).unbind(1)
        changed = [change(video, *draws) for video in changed]
    return changed


def _color(video: Video, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Video:
    """Add up to 1/2, multiply the distance to grey by 0 to 2, and that to the clip's mean by 1/2 to 3/2; not alpha."""
    if video.shape[1] == RGBA:
        return torch.cat([_color(video[:, :3], brightness, saturation, contrast), video[:, 3:]], dim=1)
    draws = (brightness, saturation, contrast)
    brightness, saturation, contrast = (draw.to(video.dtype).view(-1, 1, 1, 1, 1) for draw in draws)
    video = video + (brightness - 0.5)
    grey = video.mean(1, keepdim=True)
    video = grey + 2 * saturation * (video - grey)
    mean = video.mean((1, 2, 3, 4), keepdim=True)
    return mean + (0.5 + contrast) * (video - mean)


def _translation(video: Video, vertical: Tensor, horizontal: Tensor) -> Video:
    """Move by a whole number of pixels, at most 1/8 of height and width; 0 comes in."""
    for dim, draw in ((3, vertical), (4, horizontal)):
        size = video.shape[dim]
        most = round(_MAX_TRANSLATION * size)
        source = torch.arange(size, device=video.device) + _whole(draw, 2 * most + 1)[:, None] - most
        shape = [-1, 1, 1, size, 1] if dim == 3 else [-1, 1, 1, 1, size]
        inside = ((source >= 0) & (source < size)).view(shape)
        moved = video.gather(dim, source.clamp(0, size - 1).view(shape).expand_as(video))
        video = torch.where(inside, moved, 0)
    return video


def _cutout(video: Video, vertical: Tensor, horizontal: Tensor) -> Video:
    """Set a rectangle of half the height and width to 0; it may lie partly outside of the frame."""
    hidden = torch.ones((), dtype=torch.bool, device=video.device)
    for dim, draw in ((3, vertical), (4, horizontal)):
        size = video.shape[dim]
        length = int(_CUTOUT * size + 0.5)
        first = _whole(draw, size + 1 - length % 2)[:, None] - length // 2
        position = torch.arange(size, device=video.device)
        covered = (position >= first) & (position < first + length)
        hidden = hidden & covered.view([-1, 1, 1, size, 1] if dim == 3 else [-1, 1, 1, 1, size])
    return torch.where(hidden, 0, video)


def _whole(draw: Tensor, count: int) -> Tensor:
    """Return whole numbers from 0 to below `count` for numbers in [0, 1)."""
    return (count * draw).long().clamp(max=count - 1)


# How many random numbers in [0, 1) each needs for a clip, and its function.
AUGMENTATIONS: dict[str, tuple[int, Callable[..., Video]]] = {
    "color": (3, _color),
    "translation": (2, _translation),
    "cutout": (2, _cutout),
}
