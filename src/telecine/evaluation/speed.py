"""How fast autoencoders encode and decode clips, and what that needs: memory, operations and weights."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from telecine.base.files import read_json
from telecine.base.memory_counter import MemoryCounter
from telecine.base.plain_values import as_dataclass
from telecine.models import VideoAutoencoder
from telecine.models.pretrained import DECODER
from telecine.models.unwrapping import unwrapped
from telecine.runs.environment import device_name

SPEED_FILE = "speed.json"

NUM_WARM_UP = 2
"""Calls before those that are measured: the first ones choose kernels and allocate memory."""
MIN_REPETITIONS = 10
MAX_REPETITIONS = 50
MIN_SECONDS = 1.0
"""See `time_in_turns`."""

_CALL = "call"
_HELD = "held"


@dataclass(frozen=True)
class PartSpeed:
    """The speed of an encoder or of a decoder, and what it needs for one clip."""

    frames_per_second: float
    """The median of the repetitions, in frames of the video."""
    slowest: float
    """The same of the slowest repetition."""
    fastest: float
    seconds: list[float]
    """The time of each repetition."""
    memory: int
    """Bytes at the peak that a call allocates, its result included; weights and input are not."""
    flops: int
    """Operations of matrix products and convolutions, two for a multiplication and an addition."""
    weights: int


@dataclass(frozen=True)
class Speed:
    """The speed of an autoencoder, for one clip at a time."""

    encode: PartSpeed
    """To the mode of the posterior."""
    decode: PartSpeed

    @property
    def parts(self) -> dict[str, PartSpeed]:
        """Both parts by what they do."""
        return {"encode": self.encode, "decode": self.decode}

    @staticmethod
    def read(folder: Path) -> "Speed":
        """Read what `evaluate` wrote with `speed`.

        Raises:
            FileNotFoundError: The file is missing.
            ValueError: It is damaged.
        """
        path = folder / SPEED_FILE
        contract = "a file as `telecine evaluate --speed true` wrote it"
        return as_dataclass(Speed, read_json(path), str(path), contract, "Evaluate again.")


def describe_speed(model: VideoAutoencoder, size: Sequence[int]) -> dict[str, Any]:
    """Return what speeds depend on besides the model, for `protocol.json`.

    Args:
        model: One of the models, which computes in the precision of its weights.
        size: Frames, height and width of the clip.
    """
    num_frames, height, width = size
    device = model.last_layer.device
    memory = (
        "tensors that a call makes, counted; weights, input and buffers inside of kernels are not"
    )
    if device.type == "cuda":
        memory = "torch.cuda.max_memory_allocated of a call less what was allocated before"
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": str(model.last_layer.dtype).removeprefix("torch."),
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "batch_size": 1,
        "torch": torch.__version__,
        "timing": f"median of {MIN_REPETITIONS} calls or more, after {NUM_WARM_UP} that are not measured, in turns",
        "memory": memory,
        "flops": "matrix products and convolutions, two for a multiplication and an addition",
    }


@torch.no_grad()
def measure_speed(
    models: Sequence[VideoAutoencoder], num_frames: int, height: int, width: int
) -> list[Speed]:
    """Return the speed of each model for a clip of noise, whose values change nothing.

    The models take turns, so that what else the machine does slows all of them alike.

    Args:
        models: The autoencoders, in eval mode on one device.
        num_frames: Frames of the clip.
        height: Height of a frame in pixels.
        width: Width of a frame in pixels.

    Raises:
        ValueError: A model cannot encode or decode by itself.
    """
    device = models[0].last_layer.device
    encoders: list[_MeasuredPart] = []
    decoders: list[_MeasuredPart] = []
    for model in models:
        clip = _noise((1, model.in_channels, num_frames, height, width), device)
        latent = model.encode(clip).mode()
        held = [*model.parameters(), *model.buffers()]
        encoder_weights = count_weights(model.encoder_model, is_decoder=False)
        decoder_weights = count_weights(model.decoder_model, is_decoder=True)
        encoders.append(_MeasuredPart(_encoding(model, clip), [*held, clip], encoder_weights))
        decoders.append(_MeasuredPart(_decoding(model, latent), [*held, latent], decoder_weights))
    calls = [part.call for part in (*encoders, *decoders)]
    times = time_in_turns(calls, device, min_seconds=MIN_SECONDS)
    encode_times = times[: len(models)]
    decode_times = times[len(models) :]
    speeds = []
    for index in range(len(models)):
        encode = _speed_of_part(encoders[index], encode_times[index], num_frames, device)
        decode = _speed_of_part(decoders[index], decode_times[index], num_frames, device)
        speeds.append(Speed(encode, decode))
    return speeds


@dataclass(frozen=True)
class _MeasuredPart:
    """A call of an encoder or of a decoder."""

    call: Callable[[], object]
    held: list[Tensor]
    """The tensors that it reads: weights, buffers and input."""
    num_weights: int


def _speed_of_part(
    part: _MeasuredPart, seconds: list[float], num_frames: int, device: torch.device
) -> PartSpeed:
    memory, flops = count_needs(part.call, part.held, device)
    return PartSpeed(
        frames_per_second=num_frames / median(seconds),
        slowest=num_frames / max(seconds),
        fastest=num_frames / min(seconds),
        seconds=seconds,
        memory=memory,
        flops=flops,
        weights=part.num_weights,
    )


def time_in_turns(
    calls: Sequence[Callable[[], object]], device: torch.device, *, min_seconds: float
) -> list[list[float]]:
    """Return the seconds of each repetition of each call. They take turns, after `NUM_WARM_UP` rounds without a clock.

    Args:
        calls: What is measured.
        device: Where it computes; on a GPU, the clock stops when all is done.
        min_seconds: More than `MIN_REPETITIONS` are measured until each call took so long in all, on average.
    """
    times: list[list[float]] = [[] for _ in calls]
    total = 0.0
    for repetition in range(NUM_WARM_UP + MAX_REPETITIONS):
        if total >= min_seconds * len(calls) and repetition >= NUM_WARM_UP + MIN_REPETITIONS:
            break
        for call, seconds in zip(calls, times, strict=True):
            _wait_for(device)
            start = time.perf_counter()
            call()
            _wait_for(device)
            if repetition >= NUM_WARM_UP:
                seconds.append(time.perf_counter() - start)
                total += seconds[-1]
    return times


def _encoding(model: VideoAutoencoder, clip: Tensor) -> Callable[[], object]:
    return lambda: model.encode(clip).mode()


def _decoding(model: VideoAutoencoder, latent: Tensor) -> Callable[[], object]:
    return lambda: model.decode(latent)


def _noise(shape: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.rand(shape, generator=generator) - 1).to(device)


def count_needs(
    call: Callable[[], object], held: Iterable[Tensor], device: torch.device
) -> tuple[int, int]:
    """Return the bytes that a call allocates at its peak, and its operations.

    Args:
        call: What is measured.
        held: The tensors that it reads: weights, buffers and input. A view of one is no memory of the call.
        device: Where it computes.
    """
    counter = MemoryCounter(_CALL)
    counter.assign(_HELD, held)
    counter.restart()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with counter:
        call()
    memory = counter.peak_by_part.get(_CALL, 0)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device) - before
    return memory, counter.flops_by_part.total()


def count_weights(model: nn.Module, *, is_decoder: bool) -> int:
    """Return the number of parameters of a model's decoder, or of the rest."""
    numbers = []
    for name, parameter in unwrapped(model).named_parameters():
        if (name.split(".")[0] in DECODER) == is_decoder:
            numbers.append(parameter.numel())
    return sum(numbers)


def _wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
