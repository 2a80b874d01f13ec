"""What a step consists of: floating-point operations, and the share of its time outside the heavy ones."""

from __future__ import annotations

from typing import Any

import torch
from timing import Step, wait_for_device
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

MATRIX_PRODUCTS = {f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot")}


def count_flops(step: Step) -> int:
    """Return the operations of a step's convolutions and matrix products, forward and backward."""
    with _Counter() as counter:
        step()
    return counter.flops


class _Counter(TorchDispatchMode):
    """Adds up PyTorch's own formulas. Its `FlopCounterMode` refuses a gradient that is taken within a step."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def share_outside(step: Step) -> float:
    """Return which part of a step's time is not spent in convolutions and matrix products, from 0 to 1.

    On the CPU the time between operators counts as well, Python's included, and so does what the profiler adds to it;
    on an accelerator, only the kernels' own.
    """
    on_cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as profiler:
        with record_function("step"):
            step()
        wait_for_device()
    # Kernels are listed a second time by their own names.
    events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    inside = sum(_own_time(event, on_cuda) for event in events if is_heavy(event.key))
    return 1 - inside / sum(_own_time(event, on_cuda) for event in events)


def is_heavy(operator: str) -> bool:
    """Say whether an operator is a convolution, a backward of one, or a matrix product."""
    return operator in MATRIX_PRODUCTS or (operator.startswith("aten::") and "conv" in operator)


def _own_time(event: Any, on_cuda: bool) -> float:
    return event.self_device_time_total if on_cuda else event.self_cpu_time_total
