"""Random draws for the clips of a batch: from one generator, or from one for each clip.

With a generator for each clip, what is drawn for a clip does not depend on which others share its batch, nor on which
process has it: a run draws the same on one device as on many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from telecine.shapes import argument_error

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None


def rand(
    shape: Sequence[int], *, generator: Generators, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """Return numbers from [0, 1) of `shape`, `(B, ...)`."""
    return _draw(torch.rand, shape, generator, device=device, dtype=dtype)


def randn(
    shape: Sequence[int], *, generator: Generators, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """Return numbers of N(0, 1) of `shape`, `(B, ...)`."""
    return _draw(torch.randn, shape, generator, device=device, dtype=dtype)


def randint(high: int, shape: Sequence[int], *, generator: Generators, device: torch.device) -> Tensor:
    """Return whole numbers from 0 to below `high` of `shape`, `(B, ...)`."""
    return _draw(lambda size, **options: torch.randint(high, size, **options), shape, generator, device=device)


def _draw(make: Callable[..., Tensor], shape: Sequence[int], generator: Generators, **options: Any) -> Tensor:
    if generator is None or isinstance(generator, torch.Generator):
        return make(tuple(shape), generator=generator, **options)
    check_generators(generator, shape[0], options["device"])
    return torch.stack([make(tuple(shape[1:]), generator=each, **options) for each in generator])


def check_generators(generator: Generators, num_clips: int, device: torch.device) -> None:
    """Raise a `ValueError` unless the generators live on `device` and are one, or one for each clip."""
    given = [] if generator is None else [generator] if isinstance(generator, torch.Generator) else list(generator)
    for each in given:
        if each.device.type != device.type:
            remedy = f'Make it with `torch.Generator("{device.type}")`.'
            raise argument_error("generator", f"on {device}", f"a generator on {each.device}", remedy)
    if not isinstance(generator, torch.Generator | None) and len(given) != num_clips:
        remedy = "Pass one generator, or a sequence with one for each clip."
        raise argument_error("generator", f"one, or {num_clips} of them", f"{len(given)}", remedy)


def clip_generators(seed: int, clips: Iterable[int], device: torch.device) -> list[torch.Generator]:
    """Return a generator for each of a run's clips, which are numbered.

    Each depends on the seed and the clip's number alone, and its stream has nothing to do with its neighbours'.
    """
    return [torch.Generator(device).manual_seed(seed_of(seed, clip)) for clip in clips]


def seed_of(*names: int | str) -> int:
    """Return a seed that depends on all of `names`, and has nothing to do with those of neighbouring numbers."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
