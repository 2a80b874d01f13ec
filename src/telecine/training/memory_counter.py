"""The memory of live tensors and the operations of matrix products, counted while code runs."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class MemoryCounter(TorchDispatchMode):
    """Counts the bytes of live tensors by the part that made them, and the operations of matrix products.

    It sees what PyTorch allocates for tensors. It does not see the workspaces of convolution kernels, the context of a
    GPU and the fragmentation of its memory.

    Args:
        part: What allocates first.
    """

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part
        """Which part allocates from here on."""
        self.flops: Counter[str] = Counter()
        self.by_part: Counter[str] = Counter()
        self.largest: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self._peak = 0
        self._parts: dict[int, tuple[str, int]] = {}

    def hold(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Count tensors that exist already, or that another part made, as those of `part`."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) in self._parts:
                before, size = self._parts[id(storage)]
                self.by_part[before] -= size
                self._parts[id(storage)] = (part, size)
                self._add(part, size)
            else:
                self._track(storage, part)

    def restart(self) -> None:
        """Forget the peak and the operations so far."""
        self.flops, self._peak, self.at_peak = Counter(), 0, {}
        self.largest = Counter(self.by_part)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # most calls: a fake tensor is asked where it is
            return args[0].fake_device
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for tensor in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self._parts:
                self._track(storage, self.part)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops[self.part] += formula(*args, **kwargs, out_val=out)
        return out

    def _track(self, storage: torch.UntypedStorage, part: str) -> None:
        # PyTorch keeps the Python object of a storage as long as the storage itself, so its end is that of the memory.
        self._parts[id(storage)] = (part, storage.nbytes())
        weakref.finalize(storage, self._free, id(storage)).atexit = False
        self._add(part, storage.nbytes())

    def _add(self, part: str, size: int) -> None:
        self.by_part[part] += size
        self.largest[part] = max(self.largest[part], self.by_part[part])
        if (total := self.by_part.total()) > self._peak:
            self._peak, self.at_peak = total, dict(self.by_part)

    def _free(self, key: int) -> None:
        part, size = self._parts.pop(key)
        self.by_part[part] -= size
