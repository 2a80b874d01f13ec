"""The memory and the operations of one update, counted on tensors that have shapes but no values."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from telecine.base.checks import argument_error
from telecine.base.files import read_json
from telecine.base.frozen import Frozen
from telecine.base.memory_counter import MemoryCounter
from telecine.base.terminal import quiet_logger
from telecine.losses.perceptual import LPIPS
from telecine.losses.perceptual.backbones import BACKBONES, backbone_of
from telecine.models import CausalVAE, VideoAutoencoder
from telecine.models.frozen_encoder import FrozenEncoderModel
from telecine.models.interface import check_channels
from telecine.models.load import is_custom, load_autoencoder
from telecine.models.transfer import check_source
from telecine.objective.loss import VideoAutoencoderLoss
from telecine.ops.pass_options import ContextGroup, using_pass_options
from telecine.settings import TrainConfig
from telecine.settings.parse import PUBLISHED
from telecine.training.build import build_autoencoder, build_objective, last_layer_probe, new_state
from telecine.training.distributed import fsdp_blocks
from telecine.training.fake_cuda_autocast import autocast_as_on_cuda
from telecine.training.optimizers import adamw_is_fused, parameters_of, planned
from telecine.training.state import TrainState
from telecine.training.step import MicroBatch, clip_gradients, compute_gradients
from telecine.training.update_memory import (
    AUTOENCODER,
    AVERAGE,
    DATA,
    FROZEN,
    GRADIENTS,
    HALF_PRECISION,
    HOST_COPY,
    LOSSES,
    OPTIMIZER,
    PARAMETERS,
    PERCEPTUAL,
    UpdateMemory,
)

# The logger of errors of fake tensors: a size that a model does not reproduce raises one.
_FAKE_TENSORS = "torch._subclasses.fake_tensor"
_DISCRIMINATORS = {"discr": "image discriminator", "discr_3d": "video discriminator"}


@cache  # one for all: an objective is planned with several models
def _fake_mode() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)  # imports TorchDynamo, which takes seconds


@quiet_logger(_FAKE_TENSORS)
def plan_update(
    config: TrainConfig,
    model: VideoAutoencoder | None = None,
    objective: VideoAutoencoderLoss | None = None,
    *,
    device_type: str,
) -> UpdateMemory:
    """Return the memory and the operations of one update with as many terms on as possible.

    The update runs on tensors that have shapes but no values, so what it allocates is exact: on the CPU, or as on CUDA.

    Args:
        config: The settings; `batch_size` must be a number.
        model: The autoencoder, from `fake_autoencoder`; by default a new one.
        objective: The objective, from `fake_objective`; by default a new one.
        device_type: "cpu", or any other name for a plan as on CUDA.

    Raises:
        ValueError: The model does not take the channels or the size of the clips.
    """
    if device_type != "cpu":
        device_type = "cuda"
    if model is None:
        model = fake_autoencoder(config)
    if objective is None:
        objective = fake_objective(config)
    bucket = max(config.clips.train_buckets, key=lambda bucket: math.prod(bucket.shape))
    check_channels(config.clips, model)
    model.check_clip(*bucket.shape)
    counter = MemoryCounter(LOSSES)
    kernels: AbstractContextManager[None] = nullcontext()
    if device_type != "cpu":
        kernels = autocast_as_on_cuda()
    # The first process of a group has the most rows. Nothing is sent.
    group = ContextGroup(size=config.context_parallel)
    with _fake_mode(), counter, kernels, using_pass_options(context_group=group):
        accelerator = cast(
            Accelerator, _FakeAccelerator(counter, HALF_PRECISION.get(config.mixed_precision))
        )
        probe = last_layer_probe(
            model, config.objective.adaptive_weight, config.temporal_chunk, is_sharded=False
        )
        state = new_state(
            planned(config.optimizer), accelerator, model, objective, probe, seed=config.seed
        )
        state.step = objective.schedule.step_with_most_terms()
        shape = (config.clips_per_pass, config.clips.num_channels, *bucket.shape)
        memory = _count_update(
            state, counter, [shape] * config.gradient_accumulation_steps, device_type
        )
    return replace(memory, num_clips=config.clips_per_pass)


def _count_update(
    state: TrainState, counter: MemoryCounter, shapes: Sequence[tuple[int, ...]], device_type: str
) -> UpdateMemory:
    validation_lpips = fake_lpips("alex")  # a run keeps it on the device for its validations
    _assign_networks(state, validation_lpips, counter)
    _create_optimizer_states(state, counter)
    checkpoint = sum(counter.by_part[part] for part in (PARAMETERS, OPTIMIZER, AVERAGE))
    host_copy = None
    if device_type == "cpu":
        with counter.counting(HOST_COPY):
            host_copy = torch.empty(checkpoint, dtype=torch.uint8)
    resident_by_part = dict(counter.by_part)
    hooks = list(_count_networks(state, counter))
    counter.restart()
    with counter.counting(DATA):
        batches = [MicroBatch(torch.empty(shape), range(shape[0])) for shape in shapes]
    with counter.counting(LOSSES):
        compute_gradients(state, batches)
    with counter.counting(OPTIMIZER):
        for optimizer in state.optimizers.values():  # as in `train_step`, but no value is read
            for group in optimizer.param_groups:
                group["fused"] = adamw_is_fused(device_type)
            clip_gradients(parameters_of(optimizer), state.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state.ema.update()
    for hook in hooks:
        hook.remove()
    del host_copy, validation_lpips
    return UpdateMemory(
        resident_by_part=resident_by_part,
        peak_by_part=counter.peak_by_part,
        largest_by_part=dict(counter.largest_by_part),
        flops_by_part=dict(counter.flops_by_part),
        checkpoint=checkpoint,
    )


def estimate_sharding_saving(model: nn.Module, num_processes: int) -> int:
    """Return about how many bytes a process saves if `num_processes` share the weights of a model."""
    # A process holds its share of the weights, of two optimizer states for each, and of their average. It gathers the
    # weights of two blocks at a time, beside the gradients of one.
    shared = 0
    for weight in model.parameters():
        copies = 4 if weight.requires_grad else 1
        shared += copies * weight.nbytes
    blocks = [sum(weight.nbytes for weight in block.parameters()) for block in fsdp_blocks(model)]
    return round(shared * (1 - 1 / num_processes)) - 3 * max(blocks, default=0)


@quiet_logger(_FAKE_TENSORS)
def fake_autoencoder(config: TrainConfig) -> VideoAutoencoder:
    """Return the autoencoder that `config` names, of tensors that have shapes but no values.

    Models of recipes need no network.
    """
    if config.init is not None:  # which changes no shape
        check_source(config.init)
    with _fake_mode():
        random = _random_autoencoder(config)
        if config.model is not None and random.in_channels != config.clips.num_channels:
            random = random.with_channels(config.clips.num_channels)
        return build_autoencoder(config, random)


def fake_objective(config: TrainConfig) -> VideoAutoencoderLoss:
    """Return the objective of a run, of tensors that have shapes but no values."""
    objective = config.objective
    perceptual = objective.perceptual
    with _fake_mode():
        if perceptual.net in BACKBONES:
            fake_net = fake_lpips(str(perceptual.net))
            objective = replace(objective, perceptual=replace(perceptual, net=fake_net))
        return build_objective(objective, config.discriminator, config.clips, load=False)


def _random_autoencoder(config: TrainConfig) -> VideoAutoencoder:
    if config.model is None:
        return CausalVAE.from_config(config.causal_vae, "causal_vae")
    published = read_json(PUBLISHED).get(config.model)
    if published is not None and not Path(config.model).exists():
        diffusers = cast(Any, import_module("telecine.models.diffusers"))
        return cast(VideoAutoencoder, diffusers.DiffusersAutoencoder.from_config(published))
    if is_custom(config.model):
        contract = "one of telecine or diffusers to be planned"
        got = f"{config.model}, a custom module"
        remedy = "Use `telecine train --dry_run`, which measures one update."
        raise argument_error("model", contract, got, remedy)
    return load_autoencoder(config.model, with_weights=False)


@dataclass
class _FakeAccelerator:
    """The part of Accelerate's class that `compute_gradients` needs. Without a dtype, autocast is off."""

    counter: MemoryCounter
    dtype: torch.dtype | None
    scaler = None

    def backward(self, loss: Tensor) -> None:
        with self.counter.counting(AUTOENCODER):
            loss.backward()

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast("cpu", self.dtype or torch.bfloat16, enabled=self.dtype is not None)


def fake_lpips(net: str) -> LPIPS:
    """Return LPIPS with empty weights: fake ones inside a `FakeTensorMode`."""
    weights = {name: torch.empty(shape) for name, shape in backbone_of(net).tensor_shapes().items()}
    return LPIPS(net, weights=weights)


def _assign_networks(state: TrainState, validation_lpips: LPIPS, counter: MemoryCounter) -> None:
    for network in (state.autoencoder, state.objective):
        counter.assign(PARAMETERS, network.parameters())
        counter.assign(PARAMETERS, network.buffers())
    counter.assign(AVERAGE, state.ema.averages.values())
    if isinstance(state.autoencoder, FrozenEncoderModel):
        teacher = state.autoencoder.encoder_model
        counter.assign(FROZEN, teacher.parameters())
        counter.assign(FROZEN, teacher.buffers())
    for module in [*state.objective.modules(), *validation_lpips.modules()]:
        if isinstance(module, Frozen):
            counter.assign(FROZEN, module.tensors())


def _create_optimizer_states(state: TrainState, counter: MemoryCounter) -> None:
    for optimizer in state.optimizers.values():
        for weight in parameters_of(optimizer):
            weight.grad = torch.empty_like(weight)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for states in optimizer.state.values():
            counter.assign(
                OPTIMIZER, [value for value in states.values() if isinstance(value, Tensor)]
            )


def _count_networks(state: TrainState, counter: MemoryCounter) -> Iterator[Any]:
    """Count memory by network with hooks, and yield the hooks, which the caller removes.

    Memory that is allocated after the call of a network, and before the call of the next one, counts as the first
    network's. So the loss of logits counts as its discriminator's. The autoencoder's memory ends with its call.
    """

    def switch_to(part: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            counter.part = part

        return hook

    def count_gradient(weight: Tensor) -> None:
        if weight.grad is not None:
            counter.assign(GRADIENTS, [weight.grad])

    objective = state.objective
    yield state.model.register_forward_pre_hook(switch_to(AUTOENCODER))
    yield state.model.register_forward_hook(switch_to(LOSSES))
    if objective.perceptual.distance is not None:
        yield objective.perceptual.distance.register_forward_pre_hook(switch_to(PERCEPTUAL))
    for discriminator in objective.discriminators:
        title = _DISCRIMINATORS.get(
            discriminator.name, f"discriminator at 1/{discriminator.factor}"
        )
        yield discriminator.module.register_forward_pre_hook(switch_to(title))
    for optimizer in state.optimizers.values():
        for weight in parameters_of(optimizer):
            yield weight.register_post_accumulate_grad_hook(count_gradient)
