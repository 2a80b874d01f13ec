"""What an update needs: bytes by part and operations; the batch that fits; and what makes the largest part smaller."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from telecine.base.devices import in_gib
from telecine.settings import TrainConfig

HALF_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}

# The parts of a run that hold memory, beside each discriminator.
PARAMETERS = "parameters"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer states"
AVERAGE = "moving average"
FROZEN = "frozen networks"
DATA = "data"
AUTOENCODER = "autoencoder"
PERCEPTUAL = "perceptual network"
LOSSES = "losses"
HOST_COPY = "copy for checkpoints"


@dataclass(frozen=True)
class Remedy:
    """What makes the memory of an update smaller, for an error."""

    text: str
    is_used: Callable[[TrainConfig], bool]
    """Whether the settings have it already."""


_CLIPS = (
    Remedy("a smaller --batch_size", lambda config: config.batch_size == 1),
    Remedy("smaller clips", lambda config: False),
)
_CHECKPOINTING = Remedy(
    "--model_gradient_checkpointing true", lambda config: config.model_gradient_checkpointing
)
_HALF_PRECISION = Remedy(
    "--mixed_precision bf16", lambda config: config.mixed_precision in HALF_PRECISION
)
_WEIGHTS = (
    Remedy("--sharding fsdp2 with more processes", lambda config: config.sharding == "fsdp2"),
    Remedy("--trainable.weights lora", lambda config: config.trainable.weights == "lora"),
)
_SMALLER_DISCRIMINATOR = (
    Remedy("--discriminator.video patch", lambda config: config.discriminator.video == "patch"),
    Remedy(
        "--objective.gradient_checkpointing true",
        lambda config: config.objective.gradient_checkpointing,
    ),
    Remedy("a smaller --discriminator.dim", lambda config: False),
)
# What helps if a part is the largest, before `_CLIPS`; any other part is a discriminator.
_REMEDIES: dict[str, tuple[Remedy, ...]] = {
    AUTOENCODER: (_CHECKPOINTING, _HALF_PRECISION),
    PERCEPTUAL: (Remedy("fewer --objective.perceptual.num_frames", lambda config: False),),
    FROZEN: (
        Remedy(
            "--objective.perceptual.net alex",
            lambda config: config.objective.perceptual.net == "alex",
        ),
    ),
    DATA: (),
    LOSSES: (),
    PARAMETERS: _WEIGHTS,
    GRADIENTS: _WEIGHTS,
    OPTIMIZER: _WEIGHTS,
    AVERAGE: _WEIGHTS,
    HOST_COPY: _WEIGHTS,
}


@dataclass(frozen=True)
class UpdateMemory:
    """Bytes of one process by part, and the operations of one update."""

    resident_by_part: dict[str, int]
    """Between two updates, when gradients are freed."""
    peak_by_part: dict[str, int]
    """When an update holds the most; what a part computes in the backward counts as that part's."""
    largest_by_part: dict[str, int]
    """The most that each part holds at any time, not all at once."""
    flops_by_part: dict[str, int]
    """Of matrix products and convolutions: twice the number of multiplications."""
    checkpoint: int
    """The copy of the state for checkpoints, in the memory of the first process' host. On the CPU it is a part, too."""
    num_clips: int = 1
    """Clips that pass through the networks together."""
    saved_by_sharding: int = 0
    """Bytes, for any number of clips; below 0 if each process holds more than a single one would."""

    @property
    def peak(self) -> int:
        """The largest memory of an update."""
        return sum(self.peak_by_part.values()) - self.saved_by_sharding

    @property
    def resident(self) -> int:
        """The memory of networks and optimizers between two updates."""
        return sum(self.resident_by_part.values()) - self.saved_by_sharding

    @property
    def flops(self) -> int:
        """The operations of an update."""
        return sum(self.flops_by_part.values())

    def memory_for(self, num_clips: int) -> int:
        """Return a number of bytes that an update with this many clips does not exceed."""
        at_zero = self._bytes_at_zero_clips(extrapolates_up=num_clips >= self.num_clips)
        return round(at_zero + (self.peak - at_zero) * num_clips / self.num_clips)

    def largest_batch(self, memory: int) -> int:
        """Return the largest number of clips for which `memory_for` is at most this many bytes."""
        at_zero = self._bytes_at_zero_clips(extrapolates_up=memory >= self.peak)
        bytes_of_clips = max(self.peak - at_zero, 1)
        return max((memory - at_zero) * self.num_clips // bytes_of_clips, 0)

    def _bytes_at_zero_clips(self, *, extrapolates_up: bool) -> int:
        """Return the bytes at 0 clips of a linear bound of the memory; at the counted clips the bound is `peak`.

        At each moment of an update the memory is linear in the number of clips n. At 0 clips it is between `resident`
        and `peak_without_clips`. At the counted clips it is at most `peak`. So it is at most

            resident + (peak - resident) * n / counted                        if n >= counted,
            peak_without_clips + (peak - peak_without_clips) * n / counted    if n <= counted.
        """
        return self.resident if extrapolates_up else self.peak_without_clips

    @property
    def peak_without_clips(self) -> int:
        """The most that an update of 0 clips holds: all gradients, and the copies in the optimizer's step."""
        copies = self.largest_by_part[OPTIMIZER] - self.resident_by_part[OPTIMIZER]
        optimizer_step = self.resident + self.largest_by_part[GRADIENTS] + copies
        return min(optimizer_step, self.peak)

    def describe_largest_part(self, config: TrainConfig) -> str:
        """Return the largest part of an update, and what helps that the settings do not have, for an error."""
        part = max(self.peak_by_part, key=self.peak_by_part.__getitem__)
        remedies = _REMEDIES.get(part, _SMALLER_DISCRIMINATOR) + _CLIPS
        texts = [remedy.text for remedy in remedies if not remedy.is_used(config)]
        sizes = f"{in_gib(self.peak_by_part[part])} of {in_gib(self.peak + self.saved_by_sharding)}"
        return f"The largest part of an update, by its plan: {part}, {sizes}. What helps: {', '.join(texts)}."
