"""Random numbers for a batch of clips, from one generator or from one generator per clip.

With one generator per clip, the numbers of a clip depend neither on the other clips of its batch nor on the process
that computes it, so a run draws the same numbers on one device as on many.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from telecine.base.checks import argument_error

# One generator, one per clip, or None for PyTorch's default.
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None


def rand(
    shape: Sequence[int],
    *,
    generator: Generators,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return uniform numbers in [0, 1).

    Args:
        shape: `(B, ...)`.
        generator: Their source, on a device of the same type.
        device: Where they are drawn.
        dtype: Their type, PyTorch's default if `None`.
    """
    return _draw(partial(torch.rand, device=device, dtype=dtype), shape, generator, device)


def randn(
    shape: Sequence[int],
    *,
    generator: Generators,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return standard normal numbers.

    Args:
        shape: `(B, ...)`.
        generator: Their source, on a device of the same type.
        device: Where they are drawn.
        dtype: Their type, PyTorch's default if `None`.
    """
    return _draw(partial(torch.randn, device=device, dtype=dtype), shape, generator, device)


def randint(
    high: int, shape: Sequence[int], *, generator: Generators, device: torch.device
) -> Tensor:
    """Return uniform integers in [0, high).

    Args:
        high: Above the largest number.
        shape: `(B, ...)`.
        generator: Their source, on a device of the same type.
        device: Where they are drawn.
    """
    return _draw(partial(torch.randint, high, device=device), shape, generator, device)


def numbers_for_batch(name: str, *, count: int, generator: Generators) -> list[float]:
    """Return uniform numbers in [0, 1) for a choice that the host makes for a whole batch, such as a size.

    With one generator per clip, they are a function of the first one's seed and of `name`: a second call returns the
    same numbers. With one generator, or PyTorch's default, they are drawn.

    Args:
        name: What they are for.
        count: How many.
        generator: Their source. One on an accelerator costs a host sync.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        source = random.Random(seed_of(generator[0].initial_seed(), name))
        return [source.random() for _ in range(count)]
    device = torch.device("cpu") if generator is None else generator.device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
    return torch.rand(count, generator=generator, device=device, dtype=dtype).tolist()


def _draw(
    draw: Callable[..., Tensor], shape: Sequence[int], generator: Generators, device: torch.device
) -> Tensor:
    if generator is None:
        return draw(tuple(shape), generator=None)
    if isinstance(generator, torch.Generator):
        _check_device(generator, device)
        return draw(tuple(shape), generator=generator)
    for clip_generator in generator:
        _check_device(clip_generator, device)
    if len(generator) != shape[0]:
        remedy = "Pass one generator, or a sequence with one per clip."
        raise argument_error(
            "generator", f"one generator or {shape[0]}", f"{len(generator)} of them", remedy
        )
    return torch.stack(
        [draw(tuple(shape[1:]), generator=clip_generator) for clip_generator in generator]
    )


def _check_device(generator: torch.Generator, device: torch.device) -> None:
    if generator.device.type != device.type:
        remedy = f'Create it with `torch.Generator("{device.type}")`.'
        raise argument_error(
            "generator", f"on {device}", f"a generator on {generator.device}", remedy
        )


def clip_generators(seed: int, clips: Iterable[int], device: torch.device) -> list[torch.Generator]:
    """Return an independent generator for each clip.

    Args:
        seed: The seed of the run.
        clips: The numbers of the clips in the run.
        device: The device of the generators.
    """
    return [torch.Generator(device).manual_seed(seed_of(seed, clip)) for clip in clips]


def keep_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Return a context after which PyTorch's default generators, of the CPU and of a device, are as before."""
    devices = []
    if device.type == "cuda":
        devices.append(device)
    return torch.random.fork_rng(devices)


def seed_of(*names: int | str) -> int:
    """Return a hash of all `names` as a seed in [0, 2**63): the seeds of consecutive numbers are unrelated."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
