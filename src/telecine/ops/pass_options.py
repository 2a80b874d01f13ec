"""What holds for the passes of networks inside a `with`, and reaches layers deep inside them, as autocast does.

The `forward` of a user's discriminator, or of a layer of diffusers, has no argument for it. Each thread has its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import distributed as dist
from torch import nn


class ContextGroup(NamedTuple):
    """Consecutive ranks that share each clip: each computes the autoencoder on a part of its rows."""

    size: int = 1
    """The number of ranks; 1 if each rank has whole clips."""
    rank: int = 0
    """The rank of this process among them. Rank 0 has the top of the frames."""
    process_group: dist.ProcessGroup | None = None
    """Through which they communicate. None sends nothing, as in a plan: rows of other ranks are 0."""
    latent_rows: int = 0
    """While a network computes rows of a clip: the rows of the clip's latent, which the ranks divide; else 0."""


WHOLE_CLIPS = ContextGroup()
"""The group of a process that shares no clips."""


@dataclass(frozen=True)
class ClipPosition:
    """Where a decoded clip lies in its video. A decoder that draws noise makes it a function of this position."""

    first_frame: int = 0
    """Number of the clip's first frame in its video."""
    frame_size: tuple[int, int] | None = None
    """Height and width of the frame that a tile is part of; None if whole frames are decoded."""
    corner: tuple[int, int] = (0, 0)
    """First row and first column of the tile in its frame."""

    def in_latent(self, time: int, space: int) -> ClipPosition:
        """Return the position in a latent whose cells have `time` frames and `space` x `space` pixels."""
        frame_size = self.frame_size
        if frame_size is not None:
            frame_size = (frame_size[0] // space, frame_size[1] // space)
        corner = (self.corner[0] // space, self.corner[1] // space)
        return ClipPosition(
            first_frame=-(-self.first_frame // time), frame_size=frame_size, corner=corner
        )


@dataclass(frozen=True)
class PassOptions:
    """The options of the passes that run now."""

    is_differentiated_twice: bool = False
    """Whether gradients of a discriminator's output are differentiated, as by a penalty."""
    spectral_norms: dict[nn.Module, Any] | None = None
    """The normalised weights by network; None if passes do not share them."""
    context_group: ContextGroup = WHOLE_CLIPS
    """The ranks that share each clip."""
    clip_position: ClipPosition = ClipPosition()
    """Where a clip that is decoded lies in its video."""
    checkpointed_call: Any = None
    """The outermost `CheckpointedCall` that runs, or None."""


_DEFAULTS = PassOptions()
_OPTIONS: ContextVar[PassOptions] = ContextVar("pass_options", default=_DEFAULTS)


def pass_options() -> PassOptions:
    """Return the options of the passes that run now."""
    return _OPTIONS.get()


def set_pass_options(**changes: Any) -> None:
    """Change fields of `PassOptions` until they are changed again."""
    _OPTIONS.set(replace(_OPTIONS.get(), **changes))


@contextmanager
def using_pass_options(**changes: Any) -> Iterator[None]:
    """Change fields of `PassOptions` inside a `with`."""
    options = pass_options()
    before = {name: getattr(options, name) for name in changes}
    set_pass_options(**changes)
    try:
        yield
    finally:
        set_pass_options(**before)  # other options may have changed meanwhile


def differentiated_twice(on: bool = True) -> AbstractContextManager[None]:
    """Let layers inside prepare for a double backward; an ordinary backward becomes a few percent slower.

    Convolutions take the kernels of `ops/convolution.py`, and frozen networks avoid fused kernels of attention.
    """
    return using_pass_options(is_differentiated_twice=on)


@contextmanager
def shared_spectral_norms() -> Iterator[None]:
    """Let all passes of a network inside share its normalised weights, after one step of the power iteration.

    The weights must not change inside. Contexts inside others have no effect.
    """
    norms = pass_options().spectral_norms
    if norms is None:
        norms = {}
    with using_pass_options(spectral_norms=norms):
        yield


@contextmanager
def clip_position(**changes: Any) -> Iterator[None]:
    """Change fields of the `ClipPosition` of clips that are decoded inside: `first_frame`, `frame_size`, `corner`."""
    position = replace(pass_options().clip_position, **changes)
    with using_pass_options(clip_position=position):
        yield
