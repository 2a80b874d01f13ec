"""Which clip sizes a model reproduces, and which layer is its last: found by passing tiny clips through it.

Many classes state no or a wrong compression, and most models truncate or pad other sizes without an error.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cached_property, partial
from itertools import chain, islice, pairwise, product
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.func import functional_call

from telecine.base.checks import argument_error
from telecine.base.precision import autocast_off
from telecine.base.randomness import keep_random_state
from telecine.base.shapes import Video
from telecine.models.interface import VideoAutoencoder
from telecine.ops.pass_options import WHOLE_CLIPS, using_pass_options

_Size: TypeAlias = tuple[int, int, int]
"""Frames, height, width."""

# Longest step between accepted numbers of frames that is searched; MiniMax-H3's is 17.
_MAX_STEP = 32
# Models with at least this many weights are probed on the meta device; for smaller ones, real tiny clips are faster.
_LARGE_MODEL = 5_000_000
# One of these sides fits every known model. The smallest that fits is the cheapest.
_LARGE_SIDES = (32, 64, 96, 128, 112, 120, 72)
_SIDES = (*range(2, 21, 2), 24, 28, 32, 36, 40, 48, 56, 60, 64, 72, 96, 112, 120, 128)
_STEPS = (*range(1, 11), 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 60, 64)
# Exceptions that models raise for a size that they do not support.
_UNSUPPORTED_SIZE_ERRORS = (ValueError, RuntimeError, AssertionError, IndexError, ZeroDivisionError)


def check_multiple(
    name: str, value: int, *, step: int, offset: int = 0, smallest: int | None = None
) -> None:
    """Check that a value is `step * k + offset`.

    Args:
        name: What it is, for the error.
        value: The value.
        step: Between accepted values.
        offset: Of accepted values.
        smallest: The smallest accepted value; by default `offset`, or `step` if that is 0.

    Raises:
        ValueError: It is not, or is smaller; the message has the nearest accepted value.
    """
    if smallest is None:
        smallest = offset or step
    nearest = max((value - offset + step // 2) // step * step + offset, smallest)
    if value == nearest:
        return
    above_one = nearest == 1 and value > 1
    if above_one:
        nearest += step
    accepted = _multiples(step, offset)
    raise size_error(name, value, accepted=accepted, nearest=nearest, above_one=above_one)


def _multiples(step: int, offset: int) -> str:
    return f"{step}k+{offset}" if offset else f"a multiple of {step}"


def size_error(
    name: str, value: int, *, accepted: str, nearest: int, above_one: bool = False
) -> Exception:
    """Return the error for a size that a model does not reproduce.

    Args:
        name: What it is.
        value: The value.
        accepted: Which values are accepted.
        nearest: The nearest one.
        above_one: Whether 1 is nearer. One frame is an image, which does not stand in for several frames.
    """
    suffix = " above 1" if above_one else ""
    remedy = f"Use {nearest}, the nearest accepted value{suffix}."
    return argument_error(name, f"{accepted} for this model", str(value), remedy)


class _ModelFunction(nn.Module):
    """A deterministic function of a model and a clip as a module, so that `functional_call` can replace tensors."""

    def __init__(self, module: nn.Module, function: Callable[[Any, Video], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, video: Video) -> Tensor:
        return self.function(self.module, video)


# Pickled models name it so.
_Probe = _ModelFunction


class ShapeProbe:
    """Passes tiny clips through a model for the shapes of its outputs; whether a size is reproduced is cached.

    Args:
        reconstruct: The reconstruction as a function of a clip, with the model inside.
        in_channels: Channels of clips.
        on_meta: Whether clips and weights are on the meta device; otherwise they are on the model's device.

    Attributes:
        error: The text of the last error that the model raised for a size, in brackets; empty without one.
        has_output: Whether the model returned an output for a size, which may be another size.
    """

    def __init__(self, reconstruct: nn.Module, in_channels: int, *, on_meta: bool) -> None:
        self.reconstruct = reconstruct
        self.in_channels = in_channels
        self.on_meta = on_meta
        self.error = ""
        self.has_output = False
        self._is_reproduced: dict[_Size, bool] = {}

    @torch.no_grad()
    def output_shape(self, size: _Size, function: nn.Module | None = None) -> torch.Size:
        """Return the shape of the reconstruction, or of another function's output; buffers and random state stay.

        Args:
            size: Frames, height and width of the clip.
            function: Another function of a clip.
        """
        if function is None:
            function = self.reconstruct
        if self.on_meta:
            device = torch.device("meta")
        else:
            device = next(function.parameters()).device
        # Compiled code would be compiled anew for each size. Before this module is imported, nothing is compiled.
        eager: AbstractContextManager[Any] = nullcontext()
        if "torch._dynamo" in sys.modules:
            eager = torch.compiler.set_stance("force_eager")
        # Each process probes by itself, perhaps without values.
        alone = using_pass_options(context_group=WHOLE_CLIPS)
        # Also for a model of fake tensors, as that of a plan: operations on them take far longer than on tiny clips.
        real = unset_fake_temporarily()
        with real, eager, keep_random_state(device), autocast_off(device), alone:
            tensors = self._tensors_in_place_of(function, device)
            video = torch.zeros(1, self.in_channels, *size, device=device)
            if tensors:
                output: Tensor = functional_call(function, tensors, (video,), tie_weights=False)
            else:
                output = function(video)
        return output.shape

    def _tensors_in_place_of(self, function: nn.Module, device: torch.device) -> dict[str, Tensor]:
        """Return what replaces a function's tensors in a pass: copies of buffers, or zeros if there are no values.

        A tensor that has several names has one substitute.
        """
        named = dict(function.named_buffers(remove_duplicate=False))
        keeps_weights = not self.on_meta and not any(
            isinstance(tensor, FakeTensor)
            for tensor in chain(named.values(), function.parameters())
        )
        if keeps_weights:
            copies = {tensor: tensor.clone() for tensor in named.values()}
        else:
            named |= function.named_parameters(remove_duplicate=False)
            copies = {
                tensor: torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
                for tensor in named.values()
            }
        return {name: copies[tensor] for name, tensor in named.items()}

    def reproduces(self, size: _Size) -> bool:
        """Return whether the output for a clip of this size has the same size.

        Raises:
            ValueError: It has, but with another number of channels, as it then has for all clips.
        """
        if size in self._is_reproduced:
            return self._is_reproduced[size]
        try:
            shape = self.output_shape(size)
        except _UNSUPPORTED_SIZE_ERRORS as error:
            self._is_reproduced[size] = False
            self.error = f" ({error})"
            return False
        self.has_output = True
        self._is_reproduced[size] = shape[2:] == size
        if self._is_reproduced[size] and shape[1] != self.in_channels:
            contract = (
                f"an autoencoder whose output has the {self.in_channels} channels of the clip"
            )
            remedy = "A module of your own declares them as `in_channels`, see docs/channels.md."
            raise argument_error("module", contract, f"the shape {tuple(shape)}", remedy)
        return self._is_reproduced[size]

    def find_smallest(self) -> _Size | None:
        """Return the shortest reproduced clip with the smallest square frames of that length, or None."""
        # Most models take one frame: with it, few passes find the large side that fits.
        one_frame = product(_LARGE_SIDES, (1,))
        more_frames = product(_LARGE_SIDES, range(2, _MAX_STEP + 1))
        for large_side, num_frames in chain(one_frame, more_frames):
            if not self.reproduces((num_frames, large_side, large_side)):
                continue
            for side in _SIDES:
                if self.reproduces((num_frames, side, side)):
                    return num_frames, side, side
        return None


class ClipSizes:
    """The clip sizes that a model reproduces, and its last layer; all are cached.

    Args:
        model: The model.
        reconstruct: From the model and a clip to its reconstruction, without random numbers.
        in_channels: Channels of clips.
        only_side: Height and width of the only frames that it reproduces; None if it reproduces others.
    """

    def __init__(
        self,
        model: nn.Module,
        reconstruct: Callable[[Any, Video], Tensor],
        in_channels: int,
        only_side: int | None = None,
    ) -> None:
        self.model = model
        self.in_channels = in_channels
        self.only_side = only_side
        self.reconstruct = _ModelFunction(model, reconstruct)

    @cached_property
    def _probe_and_smallest(self) -> tuple[ShapeProbe, _Size]:
        """The probe that finds a size which the model reproduces, after hundreds of clips, and the smallest size."""
        is_large = sum(weight.numel() for weight in self.model.parameters()) >= _LARGE_MODEL
        error = ""
        # Models that read values, e.g. with `.item()`, fail on the meta device: they are probed with real clips.
        for on_meta in (is_large, not is_large):
            probe = ShapeProbe(self.reconstruct, self.in_channels, on_meta=on_meta)
            if self.only_side is not None:
                return probe, (1, self.only_side, self.only_side)
            size = probe.find_smallest()
            if size is not None:
                return probe, size
            error = probe.error or error
            if probe.has_output:
                break  # of other sizes, as on the other device, where clips of a large model take hours
        contract = f"an autoencoder of frames (B, {self.in_channels}, T, H, W) whose output has the input's size"
        got = f"{type(self.model).__name__}, which reproduces no size up to {_MAX_STEP} frames of 128 x 128 pixels"
        remedy = "Wrap it in a module whose `forward` maps (B, 3, T, H, W) to the same shape, see docs/own-model.md."
        raise argument_error("module", contract, got + error, remedy)

    @property
    def probe(self) -> ShapeProbe:
        """What passes clips through the model.

        Raises:
            ValueError: No clip is reproduced.
        """
        return self._probe_and_smallest[0]

    @property
    def smallest(self) -> _Size:
        """The shortest clip that is reproduced, with the smallest square frames of that length.

        Raises:
            ValueError: No clip is reproduced.
        """
        return self._probe_and_smallest[1]

    def shape_of(self, function: Callable[[Any, Video], Tensor], size: _Size) -> torch.Size:
        """Return the shape of the output of a function of the model and a clip.

        Args:
            function: For example one that encodes.
            size: Frames, height and width of the clip.
        """
        return self.probe.output_shape(size, _ModelFunction(self.model, function))

    def reproduces_length(self, num_frames: int) -> bool:
        """Return whether small clips of `num_frames` frames are reproduced."""
        _, height, width = self.smallest
        return self.probe.reproduces((num_frames, height, width))

    @cached_property
    def multiple(self) -> int:
        """Step between accepted heights and widths, counted from the smallest clip's."""
        num_frames, side, _ = self.smallest
        if self.only_side is not None:
            return side

        def is_accepted(larger: int) -> bool:
            return self.probe.reproduces((num_frames, larger, larger))

        distance = next(filter(is_accepted, _LARGE_SIDES)) - side or side
        if not is_accepted(side + distance):
            return next((step for step in _STEPS if is_accepted(side + step)), side)
        # The step divides this distance, and a distance that is not accepted excludes all steps that divide it.
        rejected: list[int] = []
        for shorter in range(distance // 2, 0, -1):
            is_excluded = any(longer % shorter == 0 for longer in rejected)
            if distance % shorter or is_excluded:
                continue
            if is_accepted(side + shorter):
                distance = shorter
            else:
                rejected.append(shorter)
        return distance

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the layer that is called last; biases and norms (1-d weights) do not count."""
        return self.model.get_parameter(self._last_layer)

    @cached_property
    def _last_layer(self) -> str:
        called: list[str] = []
        with ExitStack() as hooks:
            for name, module in self.model.named_modules():
                weight = module._parameters.get("weight")
                if weight is not None and weight.ndim >= 2:
                    note = partial(_note, called, f"{name}.weight")
                    hooks.enter_context(module.register_forward_pre_hook(note))
            self.probe.output_shape(self.smallest)
        if not called:
            contract = f"a member of {type(self.model).__name__}"
            got = "no layer with a weight that is called"
            raise argument_error(
                "last_layer", contract, got, "Add the weight where gradients are compared."
            )
        return called[-1]

    def check(self, num_frames: int, height: int, width: int) -> None:
        """Check that a clip of this size is reproduced.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.

        Raises:
            ValueError: It is not; the message has the nearest accepted value.
        """
        self.check_frame_size(height, width)
        if num_frames < 1 or not self.reproduces_length(num_frames):
            raise self._frames_error(num_frames)

    def check_frame_size(self, height: int, width: int) -> None:
        """Check that frames of this size are reproduced.

        Args:
            height: Height in pixels.
            width: Width in pixels.

        Raises:
            ValueError: They are not; the message has the nearest accepted value.
        """
        _, side, _ = self.smallest
        for name, value in (("height", height), ("width", width)):
            if self.only_side is not None and value != self.only_side:
                raise size_error(name, value, accepted=str(self.only_side), nearest=self.only_side)
            check_multiple(
                name, value, step=self.multiple, offset=side % self.multiple, smallest=side
            )

    def cover(self, num_frames: int, height: int, width: int) -> _Size:
        """Return the smallest size that is reproduced and at least this large.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.

        Raises:
            ValueError: There is none.
        """
        lengths = self._accepted_lengths(
            range(max(num_frames, 1), num_frames + 2 * _MAX_STEP + 1), most=1
        )
        if not lengths:
            raise self._frames_error(num_frames)
        _, side, _ = self.smallest
        if self.only_side is not None:
            self.check(lengths[0], max(height, side), max(width, side))
        return lengths[0], self._cover_side(height), self._cover_side(width)

    def _cover_side(self, value: int) -> int:
        """Return the smallest accepted height or width that is at least as large."""
        _, side, _ = self.smallest
        num_steps = -(-max(value - side, 0) // self.multiple)
        return side + self.multiple * num_steps

    def _accepted_lengths(self, candidates: Iterable[int], most: int) -> list[int]:
        """Return the first numbers of frames among candidates that are reproduced, at most `most`."""
        return list(islice(filter(self.reproduces_length, candidates), most))

    def _frames_error(self, num_frames: int) -> Exception:
        below = self._accepted_lengths(range(num_frames - 1, 0, -1), most=1)
        first = max(num_frames, 1)
        above = self._accepted_lengths(range(first, first + 2 * _MAX_STEP + 1), most=3 - len(below))
        around = below + above
        # The larger one of two that are equally near.
        by_distance = sorted(around, key=lambda length: (abs(length - num_frames), -length))
        nearest = by_distance[0]
        above_one = nearest == 1 and num_frames > 1 and len(around) > 1
        if above_one:
            nearest = by_distance[1]
        steps = {after - before for before, after in pairwise(around)}
        if len(around) == 3 and len(steps) == 1:
            step = steps.pop()
            accepted = _multiples(step, around[0] % step)
        elif len(around) == 1:
            accepted = str(around[0])
        else:
            accepted = f"{', '.join(map(str, around[:-1]))} or {around[-1]}"
        return size_error(
            "num_frames", num_frames, accepted=accepted, nearest=nearest, above_one=above_one
        )


def _note(called: list[str], name: str, *_: object) -> None:
    called.append(name)


class ProbedAutoencoder(VideoAutoencoder):
    """An autoencoder whose accepted sizes and last layer are found by passing tiny clips through it."""

    sizes: ClipSizes

    @property
    def in_channels(self) -> int:
        """Channels of the video, as the model declares them."""
        return self.sizes.in_channels

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution or linear layer."""
        return self.sizes.last_layer

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Check that this size is reproduced; the model must not be sharded at the first check.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.

        Raises:
            ValueError: It is not; the message has the nearest accepted value.
        """
        self.sizes.check(num_frames, height, width)

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest accepted size that is at least this large.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.

        Raises:
            ValueError: There is none.
        """
        return self.sizes.cover(num_frames, height, width)
