"""A counter of the memory of live tensors and of the operations of matrix products, for real and for fake tensors."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_flop_count


class MemoryCounter(TorchDispatchMode):
    """Counts the bytes of live tensors by the part that made them, and the operations of matrix products.

    Args:
        part: The part that allocates outside the blocks of `counting`.
    """

    def __init__(self, part: str) -> None:
        super().__init__()
        _register_cpu_attention()
        self.part = part
        self.by_part: Counter[str] = Counter()
        self._parts: dict[int, tuple[str, int]] = {}  # part and bytes of each live storage
        self.restart()

    def restart(self) -> None:
        """Forget the peak and the operations so far, but not the live tensors."""
        self.flops_by_part: Counter[str] = Counter()
        self.peak_by_part: dict[str, int] = {}
        self.largest_by_part = Counter(self.by_part)
        self._peak = 0

    @contextmanager
    def counting(self, part: str) -> Iterator[None]:
        """Count what the `with` block allocates as memory of `part`, until a network of another part is called."""
        outer_part = self.part
        self.part = part
        try:
            yield
        finally:
            self.part = outer_part

    def assign(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Count tensors that exist already, or that another part made, for `part`."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) not in self._parts:
                self._track(storage, part)
                continue
            previous_part, size = self._parts[id(storage)]
            self.by_part[previous_part] -= size
            self._parts[id(storage)] = (part, size)
            self._add(part, size)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # most calls: a fake tensor is asked where it is
            return args[0].fake_device
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in self._parts:
                self._track(tensor.untyped_storage(), self.part)
        count_flops = flop_registry.get(func.overloadpacket)
        if count_flops is not None:
            self.flops_by_part[self.part] += count_flops(*args, **kwargs, out_val=out)
        return out

    def _track(self, storage: torch.UntypedStorage, part: str) -> None:
        # PyTorch keeps the Python object of a storage as long as the storage itself, so its end is that of the memory.
        self._parts[id(storage)] = (part, storage.nbytes())
        weakref.finalize(storage, self._free, id(storage)).atexit = False
        self._add(part, storage.nbytes())

    def _add(self, part: str, size: int) -> None:
        self.by_part[part] += size
        self.largest_by_part[part] = max(self.largest_by_part[part], self.by_part[part])
        total = self.by_part.total()
        if total > self._peak:
            self._peak = total
            self.peak_by_part = dict(self.by_part)

    def _free(self, key: int) -> None:
        part, size = self._parts.pop(key)
        self.by_part[part] -= size


@cache
def _register_cpu_attention() -> None:
    """Tell PyTorch's counter the operations of attention on a CPU, once in a process: it has kernels of GPUs alone."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if attention not in flop_registry:
        register_flop_formula(attention)(_count_attention)


def _count_attention(
    query_shape: Any, key_shape: Any, value_shape: Any, *args: Any, **kwargs: Any
) -> int:
    return int(sdpa_flop_count(query_shape, key_shape, value_shape))
