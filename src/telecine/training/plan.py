"""Memory and operations of one update, counted from the shapes of its tensors, without their values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from telecine.autoencoders import CausalVAE, VideoAutoencoder
from telecine.autoencoders.student import StudentAutoencoder
from telecine.base.frozen import Frozen
from telecine.base.precision import at_least_float32
from telecine.perceptual import LPIPS
from telecine.perceptual.backbones import BACKBONES, backbone_of
from telecine.settings import TrainConfig
from telecine.training.build import (
    build_autoencoder,
    build_objective,
    build_optimizers,
    last_layer_of,
    without_weights,
)
from telecine.training.memory_counter import MemoryCounter
from telecine.training.optim import MovingAverage, clip_gradients, parameters_of
from telecine.training.state import TrainState
from telecine.training.step import MicroBatch, accumulate_gradients

if TYPE_CHECKING:
    from accelerate import Accelerator

# Sizes that a model does not reproduce are found by errors, which PyTorch would print one by one.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)

DeviceType = Literal["cpu", "cuda"]

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
# The parts that a checkpoint saves.
SAVED = (PARAMETERS, OPTIMIZER, AVERAGE)
DISCRIMINATORS = {"discr": "image discriminator", "discr_3d": "video discriminator"}

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Operators that autocast computes in float32 on CUDA but not on the CPU, as far as autoencoders use them, from
# https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float32. The first convert their inputs,
# the others return another dtype.
CUDA_CONVERTS = (
    *("exp", "log", "rsqrt", "reciprocal", "softplus", "group_norm", "layer_norm", "native_layer_norm"),
    *("rms_norm", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "upsample_bilinear2d", "upsample_trilinear3d"),
    *("upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
)
CUDA_RETURNS = ("sum", "sum.dim_IntList", "cumsum", "softmax.int", "log_softmax.int", "linalg_vector_norm")


@dataclass(frozen=True)
class UpdatePlan:
    """Bytes of one process, by part, and the operations of one update."""

    held: dict[str, int]
    """Between two updates, but for the gradients, which are freed then."""
    at_peak: dict[str, int]
    """When an update holds the most. What a part computes in the backward counts as its own."""
    largest: dict[str, int]
    """The most that each part holds at any time, not all at once."""
    flops: dict[str, int]
    """Floating-point operations of matrix products and convolutions by part, twice the number of multiplications."""
    checkpoint: int
    """The copy of the state from which checkpoints are written, in the memory of the first process' host; if weights
    are sharded, their copy is divided over the processes. A plan for the CPU counts it among the parts."""

    @property
    def peak(self) -> int:
        """The most that an update holds at once."""
        return sum(self.at_peak.values())

    @property
    def between(self) -> int:
        """What the networks and optimizers hold between two updates."""
        return sum(self.held.values())

    @property
    def without_clips(self) -> int:
        """At least what an update would hold if clips were empty: with all gradients, and copies in the optimizer."""
        return self.between + self.largest[GRADIENTS] + self.largest[OPTIMIZER] - self.held[OPTIMIZER]

    @property
    def discriminator_flops(self) -> int:
        """The operations that an update without discriminators saves."""
        return sum(flops for part, flops in self.flops.items() if "discriminator" in part)


class FakeAccelerator:
    """What `accumulate_gradients` needs of Accelerate's class, for one process.

    Args:
        counter: Told when the backward of the autoencoder begins.
        dtype: That of autocast; None without.
    """

    scaler = None
    num_processes = 1

    def __init__(self, counter: MemoryCounter, dtype: torch.dtype | None) -> None:
        self.counter = counter
        self.dtype = dtype

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients."""
        self.counter.part = AUTOENCODER
        loss.backward()

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Do nothing, as there is one process."""
        return nullcontext()

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in mixed precision."""
        return torch.autocast("cpu", self.dtype or torch.bfloat16, enabled=self.dtype is not None)


@contextmanager
def float32_as_on_cuda() -> Iterator[None]:
    """Make the CPU's autocast compute in float32 what that of CUDA does, as PyTorch for CPUs has no fake GPU."""
    library = torch.library.Library("aten", "IMPL")
    try:
        for name in (*CUDA_CONVERTS, *CUDA_RETURNS):
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(name, _in_float32(operator, converts=name in CUDA_CONVERTS), "AutocastCPU")
        yield
    finally:
        library._destroy()


def _in_float32(operator: Callable[..., Any], *, converts: bool) -> Callable[..., Any]:
    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if converts:
            x, args, kwargs = tree_map_only(Tensor, at_least_float32, (x, args, kwargs))
        elif x.dtype in HALF.values():
            kwargs = {"dtype": torch.float32, **kwargs}
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            return operator(x, *args, **kwargs)

    return call


@contextmanager
def without_onednn() -> Iterator[None]:
    """Switch oneDNN off: with it, the objective copies the inputs of its convolutions."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextmanager
def as_on(device_type: DeviceType) -> Iterator[None]:
    """Make the CPU allocate what a device would."""
    if device_type == "cpu":
        yield
    else:
        with without_onednn(), float32_as_on_cuda():
            yield


def plan_update(config: TrainConfig, model: VideoAutoencoder, *, device_type: DeviceType) -> UpdatePlan:
    """Return the memory and the operations of one update in which every term is on.

    The update itself runs, with tensors that have shapes but no values: what it allocates is exact.

    Args:
        config: The settings; `batch_size` must be a number.
        model: The autoencoder, see `fake_autoencoder`.
        device_type: The device to plan for.

    Raises:
        ValueError: The model does not reproduce clips of this size, or a setting is wrong.
    """
    bucket = max(config.clips.train_buckets, key=lambda each: each.num_frames * each.height * each.width)
    model.check_clip(bucket.num_frames, bucket.height, bucket.width)
    counter = MemoryCounter(LOSSES)
    with fake_mode_of(model), counter, as_on(device_type):
        state = fake_state(config, model, counter)
        hold_networks(state, counter)
        create_optimizer_states(state, counter)
        checkpoint = sum(counter.by_part[part] for part in SAVED)
        counter.part = HOST_COPY
        copy = torch.empty(checkpoint, dtype=torch.uint8) if device_type == "cpu" else None
        held = dict(counter.by_part)
        hooks = list(switch_parts(state, counter))
        counter.restart()
        counter.part = DATA
        shape = (config.clips_per_pass, 3, bucket.num_frames, bucket.height, bucket.width)
        batches = [MicroBatch(torch.empty(shape), range(shape[0])) for _ in range(config.gradient_accumulation_steps)]
        counter.part = LOSSES
        for batch in batches:
            accumulate_gradients(state, batch, 1 / len(batches), is_last=batch is batches[-1])
        counter.part = OPTIMIZER
        update_weights(state, device_type)
        for hook in hooks:
            hook.remove()
        del copy
    return UpdatePlan(held, counter.at_peak, dict(counter.largest), dict(counter.flops), checkpoint)


def fake_autoencoder(config: TrainConfig) -> VideoAutoencoder:
    """Return the autoencoder that `config` names, of tensors that have shapes but no values.

    Raises:
        ValueError: If it cannot be had, or a setting of it is wrong.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        # The comparison of gradients that enabling it starts with needs values.
        model = build_autoencoder(replace(config, model_gradient_checkpointing=False), without_weights(config))
        if config.model_gradient_checkpointing:
            enable_gradient_checkpointing(model)
        return model


def enable_gradient_checkpointing(model: VideoAutoencoder) -> None:
    """Enable a model's gradient checkpointing without comparing gradients.

    Raises:
        ValueError: The model does not support it.
    """
    if isinstance(model, (CausalVAE, StudentAutoencoder)):
        model.enable_gradient_checkpointing()
        return
    from telecine.autoencoders.diffusers import DiffusersAutoencoder
    from telecine.autoencoders.diffusers.checkpointing import enable

    assert isinstance(model, DiffusersAutoencoder)
    enable(model.module)


def fake_mode_of(model: nn.Module) -> FakeTensorMode:
    """Return the mode that a model's tensors were made in."""
    return cast(FakeTensorMode, next(model.parameters()).fake_mode)  # type: ignore[attr-defined]


def fake_state(config: TrainConfig, model: VideoAutoencoder, counter: MemoryCounter) -> TrainState:
    """Return the state of a run at a step at which every term is on."""
    objective = build_objective(with_fake_lpips(config), load=False)
    optimizer, disc_optimizer = build_optimizers(config.optimizer, model, objective)
    accelerator = FakeAccelerator(counter, HALF.get(config.mixed_precision))
    return TrainState(
        accelerator=cast("Accelerator", accelerator),
        model=model,
        autoencoder=model,
        objective=objective,
        optimizer=optimizer,
        disc_optimizer=disc_optimizer,
        ema=MovingAverage(model, config.optimizer.ema_decay),
        last_layer=last_layer_of(model, replace(config, sharding="none")),
        grad_clip=config.optimizer.grad_clip,
        seed=config.seed,
        step=objective.weights.busiest_step(),
    )


def with_fake_lpips(config: TrainConfig) -> TrainConfig:
    """Return the settings with an LPIPS that needs no weights in the place of its name."""
    net = config.objective.perceptual.net
    if net not in BACKBONES:
        return config
    perceptual = replace(config.objective.perceptual, net=fake_lpips(str(net)))
    return replace(config, objective=replace(config.objective, perceptual=perceptual))


def fake_lpips(net: str) -> LPIPS:
    """Return an LPIPS without weights."""
    return LPIPS(net, weights={name: torch.empty(shape) for name, shape in backbone_of(net).tensor_shapes().items()})


def hold_networks(state: TrainState, counter: MemoryCounter) -> None:
    """Tell the counter what a run holds before its first update."""
    for network in (state.autoencoder, state.objective):
        counter.hold(PARAMETERS, [*network.parameters(), *network.buffers()])
    counter.hold(AVERAGE, state.ema.averages.values())
    if isinstance(state.autoencoder, StudentAutoencoder):
        teacher = state.autoencoder.latent_model
        counter.hold(FROZEN, [*teacher.parameters(), *teacher.buffers()])

    def hold(tensor: Tensor) -> Tensor:
        counter.hold(FROZEN, [tensor])
        return tensor

    state.objective.add_module("validation", fake_lpips("alex"))
    for module in state.objective.modules():
        if isinstance(module, Frozen):
            module._apply(hold)  # it shows its tensors to nothing else


def create_optimizer_states(state: TrainState, counter: MemoryCounter) -> None:
    """Make the optimizers create what they keep for each weight, as their first step does."""
    for optimizer in state.optimizers.values():
        for weight in parameters_of(optimizer):
            weight.grad = torch.empty_like(weight)
        for group in optimizer.param_groups:
            group["foreach"] = True
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        counter.hold(OPTIMIZER, tensors_of(optimizer))


def tensors_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield what an optimizer keeps."""
    for values in optimizer.state.values():
        yield from (value for value in values.values() if isinstance(value, Tensor))


def switch_parts(state: TrainState, counter: MemoryCounter) -> Iterator[Any]:
    """Tell the counter which network computes, and which tensors are gradients. Yield the hooks to remove."""

    def switch_to(part: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            counter.part = part

        return hook

    objective = state.objective
    yield state.model.register_forward_pre_hook(switch_to(AUTOENCODER))
    yield state.model.register_forward_hook(switch_to(LOSSES))
    if objective.perceptual.distance is not None:
        yield objective.perceptual.distance.register_forward_pre_hook(switch_to(PERCEPTUAL))
    for d in objective.discriminators + objective.multiscale_discriminators:
        title = DISCRIMINATORS.get(d.name, f"discriminator at 1/{d.factor}")
        yield d.module.register_forward_pre_hook(switch_to(title))
    for optimizer in state.optimizers.values():
        for weight in parameters_of(optimizer):
            yield weight.register_post_accumulate_grad_hook(
                lambda weight: counter.hold(GRADIENTS, [] if weight.grad is None else [weight.grad])
            )


def update_weights(state: TrainState, device_type: DeviceType) -> None:
    """Update both networks as `train_step` does, but read no value."""
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            group["foreach"] = device_type == "cuda"  # PyTorch's default, which needs a temporary copy of the weights
        clip_gradients(parameters_of(optimizer), state.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.ema.update()
