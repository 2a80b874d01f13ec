"""Which clips a model reproduces and which layer is its last, found by passing shapes through it.

Attributes that claim as much are missing or wrong for many classes, and most truncate or pad in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice, pairwise
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from telecine.autoencoders.sizes import ceil_div, check_multiple, progression, size_error
from telecine.precision import autocast_off
from telecine.shapes import argument_error

Size: TypeAlias = tuple[int, int, int]

# Frames to look ahead for the next length that a model reproduces; MiniMax-H3's step is 17.
MAX_STEP = 32
# From so many weights on only shapes are computed; below, tiny clips take less time than the overhead of that.
LARGE_MODEL = 5_000_000
# Of these one fits every known model, and the smallest that fits is cheapest.
LARGE_SIDES = (32, 64, 96, 128, 112)
SIDES = (2, 4, 8, 12, 14, 16, 24, 28, 32, 48, 56, 64, 96, 112, 128)
STEPS = (1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 24, 28, 32, 48, 56, 64)
# What a model raises for a size that it does not take.
REFUSALS = (ValueError, RuntimeError, AssertionError, IndexError, ZeroDivisionError)


@torch.no_grad()
def pass_shape(passage: nn.Module, size: Size, *, on_meta: bool) -> torch.Size:
    """Return the shape that comes out for one clip of a size; neither weights, buffers nor random state change.

    On the meta device only shapes are computed, so that a model of any size takes a fraction of a second.
    """
    device = torch.device("meta") if on_meta else next(passage.parameters()).device
    tensors: dict[str, Tensor] = {name: buffer.clone() for name, buffer in passage.named_buffers()}
    if on_meta:
        named = chain(passage.named_parameters(), passage.named_buffers())
        tensors = {name: torch.empty_like(tensor, device=device) for name, tensor in named}
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), autocast_off(device):
        return functional_call(passage, tensors, (torch.zeros(1, 3, *size, device=device),)).shape


class ClipSizes:
    """The clips that a model reproduces in their own size; every answer is found once and remembered.

    Args:
        passage: a module that maps a clip to its reconstruction without chance.
        model: the part of it that is the model itself, which errors speak of.
    """

    def __init__(self, passage: nn.Module, model: nn.Module) -> None:
        self.passage = passage
        self.model = model
        self.known: dict[Size, bool] = {}
        self.on_meta = sum(weight.numel() for weight in model.parameters()) >= LARGE_MODEL
        self._smallest: Size | None = None
        self._multiple: int | None = None
        self._refusal = ""

    def reproduces(self, size: Size) -> bool:
        """Say whether a clip of a size comes back in this size."""
        if size not in self.known:
            try:
                self.known[size] = pass_shape(self.passage, size, on_meta=self.on_meta)[1:] == (3, *size)
            except REFUSALS as error:
                self.known[size] = False
                self._refusal = f" ({error})"
        return self.known[size]

    def lasts(self, num_frames: int) -> bool:
        """Say whether small clips of this many frames are reproduced."""
        _, height, width = self.smallest
        return self.reproduces((num_frames, height, width))

    @property
    def smallest(self) -> Size:
        """The shortest clip that is reproduced, and of these the smallest square one.

        Raises:
            ValueError: none is, up to 32 frames and 128 pixels.
        """
        if self._smallest is None:
            self._smallest = self._find_smallest()
        return self._smallest

    def _find_smallest(self) -> Size:
        for on_meta in (self.on_meta, not self.on_meta):
            # Shapes alone do not pass through a model that reads values; such a one computes its tiny clips.
            self.on_meta, self.known = on_meta, {}
            candidates = ((time, side, side) for side in LARGE_SIDES for time in range(1, MAX_STEP + 1))
            found = next(filter(self.reproduces, candidates), None)
            if found is not None:
                return next(size for side in SIDES if self.reproduces(size := (found[0], side, side)))
        name = type(self.model).__name__
        remedy = "Wrap it in a module of your own that has the members of `VideoAutoencoder`."
        contract = "an autoencoder of RGB video (B, 3, T, H, W) that returns the size it was given"
        got = f"{name}, which does so for no size up to {MAX_STEP} frames of 128 pixels{self._refusal}"
        raise argument_error("module", contract, got, remedy)

    @property
    def multiple(self) -> int:
        """What height and width have to be a multiple of, beyond those of the smallest clip."""
        if self._multiple is None:
            time, side, _ = self.smallest
            fits = (step for step in STEPS if self.reproduces((time, side + step, side + step)))
            self._multiple = next(fits, side)
        return self._multiple

    def check(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` that names the nearest accepted value unless a clip of this size is reproduced."""
        _, side, _ = self.smallest
        offset = side % self.multiple
        check_multiple("height", height, "rows", step=self.multiple, offset=offset, smallest=side)
        check_multiple("width", width, "columns", step=self.multiple, offset=offset, smallest=side)
        if num_frames < 1 or not self.lasts(num_frames):
            raise self._frames_error(num_frames)

    def cover(self, num_frames: int, height: int, width: int) -> Size:
        """Return the smallest size that is reproduced and covers this one.

        Raises:
            ValueError: the model takes no clip as long.
        """
        covering = next(self._lengths_from(max(num_frames, 1)), None)
        if covering is None:
            raise self._frames_error(num_frames)
        _, side, _ = self.smallest
        rows, columns = (
            side + self.multiple * ceil_div(max(value - side, 0), self.multiple) for value in (height, width)
        )
        return covering, rows, columns

    def _lengths_from(self, num_frames: int) -> Iterator[int]:
        """Yield the lengths that are reproduced among the next ones."""
        return filter(self.lasts, range(num_frames, num_frames + 2 * MAX_STEP + 1))

    def _frames_error(self, num_frames: int) -> Exception:
        below = list(islice(filter(self.lasts, range(num_frames - 1, 0, -1)), 1))
        around = below + list(islice(self._lengths_from(max(num_frames, 1)), 3 - len(below)))
        if not around:
            around = [self.smallest[0]]
        nearest = min(around, key=lambda length: abs(length - num_frames))
        return size_error("num_frames", num_frames, "frames", rule=rule_of(around), nearest=nearest)


def rule_of(lengths: list[int]) -> str:
    """Say in words which numbers three neighbours, or all there are, belong to."""
    steps = {after - before for before, after in pairwise(lengths)}
    if len(lengths) == 3 and len(steps) == 1:
        step = steps.pop()
        return progression(step, lengths[0] % step)
    listed = [str(length) for length in lengths]
    return " or ".join(filter(None, [", ".join(listed[:-1]), listed[-1]]))


def find_last_layer(sizes: ClipSizes) -> str:
    """Return the name, in the model, of the last weight of two or more axes that a decode uses."""
    used: list[str] = []
    modules = sizes.model.named_modules()
    owners = [(f"{name}.weight", module) for name, module in modules if is_layer(module)]
    hooks = [module.register_forward_pre_hook(note(used, name)) for name, module in owners]
    try:
        pass_shape(sizes.passage, sizes.smallest, on_meta=sizes.on_meta)
    finally:
        for hook in hooks:
            hook.remove()
    return used[-1]


def is_layer(module: nn.Module) -> bool:
    """Say whether a module owns a weight of two or more axes."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim >= 2


def note(used: list[str], name: str) -> Callable[..., None]:
    """Return a hook that writes a name down."""

    def hook(module: nn.Module, args: object) -> None:
        used.append(name)

    return hook
