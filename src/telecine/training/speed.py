"""An estimate of the time of a run: its operations, divided by the speed of a convolution on the device at hand."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from telecine.settings import TrainConfig
from telecine.training.plan import HALF, UpdatePlan

# The convolution of the calibration: channels and positions of the input, and for how long it is repeated.
CALIBRATION_SHAPE = (1, 128, 5, 32, 32)
CALIBRATION_SECONDS = 0.5


@dataclass(frozen=True)
class Speed:
    """An estimate of the time of a run, from the speed of one kind of layer on the device at hand."""

    flops_per_second: float
    """Of a 3D convolution and its backward."""
    flops: float
    """Of an update with discriminators, the mean over updates with and without the gradient penalty."""
    hours: float
    """Of the whole run; discriminators count from the step at which they train."""

    device: str
    """What was measured."""

    def describe(self) -> str:
        """Return a sentence for the console."""
        seconds = self.flops / self.flops_per_second
        return (
            f"{self.flops / 1e12:.3g} TFLOP an update. Estimate: {seconds:.2g} s an update, {self.hours:.2g} h for the "
            f"run, if all of it were as fast as a 3D convolution on {self.device}, "
            f"{self.flops_per_second / 1e12:.3g} TFLOP/s. Real updates are slower."
        )


def speed_of(config: TrainConfig, plan: UpdatePlan, without_penalty: UpdatePlan, device: torch.device) -> Speed:
    """Measure the device for about a second, and divide the operations of a run by the result."""
    dtype = HALF.get(config.mixed_precision, torch.float32)
    per_second = measured_flops(device, dtype)
    every = config.objective.penalty.every
    flops, without = (sum(each.flops.values()) for each in (plan, without_penalty))
    mean = without + (flops - without) / every
    num_without = min(config.objective.gan.disc_train_start, config.steps)
    total = config.steps * mean - num_without * (mean - without + without_penalty.discriminator_flops)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this machine's {device.type}"
    return Speed(per_second, mean, total / per_second / 3600, f"{name} in {dtype}".replace("torch.", ""))


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a 3D convolution and its backward on a device."""
    channels = CALIBRATION_SHAPE[1]
    x = torch.randn(CALIBRATION_SHAPE, device=device, dtype=dtype, requires_grad=True)
    layer = nn.Conv3d(channels, channels, 3, padding=1, device=device, dtype=dtype)
    flops = 3 * 2 * 27 * channels * x.numel()
    num_passes, seconds = -1, 0.0
    while seconds < CALIBRATION_SECONDS:
        if num_passes == 0:  # the first pass also chooses a kernel
            start = time.perf_counter()
        layer(x).sum().backward()
        assert x.grad is not None
        float(x.grad[0, 0, 0, 0, 0])  # wait for the device
        num_passes += 1
        seconds = time.perf_counter() - start if num_passes > 0 else 0.0
    return flops * num_passes / seconds
