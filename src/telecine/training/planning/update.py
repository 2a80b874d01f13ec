"""The memory and the operations of one update, counted from the shapes of its tensors, without their values."""

import logging
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from telecine.base.devices import gigabytes
from telecine.base.files import read_json
from telecine.base.frozen import Frozen
from telecine.base.precision import at_least_float32
from telecine.base.yaml_files import read_package_yaml
from telecine.losses.perceptual import LPIPS
from telecine.losses.perceptual.backbones import BACKBONES, backbone_of
from telecine.models import CausalVAE, VideoAutoencoder
from telecine.models.interface import check_channels
from telecine.models.load import without_weights
from telecine.models.student import Student
from telecine.models.transfer import check_source
from telecine.settings import TrainConfig
from telecine.settings.parse import PUBLISHED
from telecine.training.build import build_autoencoder, build_objective, last_layer_of, new_state
from telecine.training.state import TrainState, parameters_of
from telecine.training.step import MicroBatch, accumulate_gradients, clip_gradients

# Sizes that a model does not reproduce are found by errors, which PyTorch would print one by one.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)

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
_DISCRIMINATORS = {"discr": "image discriminator", "discr_3d": "video discriminator"}

TABLES = read_package_yaml(__package__, "tables.yaml")
_REMEDIES: dict[str, list[str]] = TABLES["remedies"]

_WITHOUT_KERNEL = {attrgetter(name)(torch.ops) for name in TABLES["without_kernel"]}
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CUDA_CONVERTS, _CUDA_RETURNS = TABLES["in_float32_on_cuda"].values()


@dataclass(frozen=True)
class UpdatePlan:
    """Bytes of one process, by part, and the operations of one update."""

    held: dict[str, int]  # between two updates, when gradients are freed
    at_peak: dict[str, int]  # when an update holds the most; what a part computes in the backward counts as its own
    largest: dict[str, int]  # the most that each part holds at any time, not all at once
    flops: dict[str, int]  # of matrix products and convolutions, twice the number of multiplications
    operators: dict[str, int]  # that compute values, each at least one kernel launch on a GPU; views are none
    moved: dict[str, int]  # bytes of the tensors that these operators read and write, if nothing is kept in caches
    # The copy of the state for checkpoints, in the memory of the first process' host; of sharded weights each process
    # copies its shard. A plan for the CPU counts the copy among the parts.
    checkpoint: int
    is_on: tuple[str, ...] = ()  # the remedies that the settings have already
    num_clips: int = 1  # that pass through the networks together
    saved: int = 0  # bytes that are saved for any number of clips, below 0 for more

    @property
    def peak(self) -> int:
        """The largest memory of an update."""
        return sum(self.at_peak.values())

    @property
    def resident(self) -> int:
        """The memory of networks and optimizers between two updates."""
        return sum(self.held.values())

    def memory_for(self, num_clips: int) -> int:
        """Return the bytes that an update with this many clips needs at most.

        The peak is the largest of several moments, each linear in the number of clips. So a line through the planned
        peak and a bound at 0 clips is never below the peak: a batch that fits by the line does fit.
        """
        at_zero = self._at_zero(more=num_clips >= self.num_clips)
        return round(at_zero + (self.peak - self.saved - at_zero) * num_clips / self.num_clips)

    def largest_batch(self, memory: int) -> int:
        """Return how many clips fit into this many bytes."""
        peak = self.peak - self.saved
        at_zero = self._at_zero(more=memory >= peak)
        return max((memory - at_zero) * self.num_clips // max(peak - at_zero, 1), 0)

    def _at_zero(self, *, more: bool) -> int:
        """Return a bound of all moments at 0 clips: from below for more clips than planned, from above for fewer."""
        if more:
            return self.resident - self.saved
        # A moment of empty clips: with all gradients, and the copies in the optimizer.
        step = self.resident + self.largest[GRADIENTS] + self.largest[OPTIMIZER] - self.held[OPTIMIZER]
        return min(step, self.peak) - self.saved

    def describe_largest_part(self) -> str:
        """Return the largest part of an update and its remedies, for an error."""
        part, size = max(self.at_peak.items(), key=lambda item: item[1])
        known = _REMEDIES.get(part, _REMEDIES["discriminators"]) + _REMEDIES["clips"]
        remedies = [each for each in known if each not in self.is_on]
        whole = f"{gigabytes(size)} of {gigabytes(self.peak)}"
        return f"The largest part of an update is by its plan: {part}, {whole}. What helps: {', '.join(remedies)}."


def _remedies_in(config: Any) -> tuple[str, ...]:
    """Return the remedies `--name value` whose value a setting has already; half precision is one value."""
    found = ["a smaller --batch_size"] if config.batch_size == 1 else []
    for remedy in set(chain(*_REMEDIES.values())):
        name, value = remedy.split()[:2]
        now = str(attrgetter(name[2:])(config)).lower() if name.startswith("--") else ""
        if now == value or {now, value} <= {*HALF}:
            found.append(remedy)
    return tuple(found)


class _MemoryCounter(TorchDispatchMode):
    """Counts the bytes of live tensors by the part that made them, and the operations of matrix products."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part  # that allocates from here on
        self.by_part: Counter[str] = Counter()
        self._parts: dict[int, tuple[str, int]] = {}
        self.restart()

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
        self.flops, self.operators, self.moved = Counter[str](), Counter[str](), Counter[str]()
        self._peak, self.at_peak = 0, dict[str, int]()
        self.largest = Counter(self.by_part)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # most calls: a fake tensor is asked where it is
            return args[0].fake_device
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        written = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        for tensor in written:
            if id(storage := tensor.untyped_storage()) not in self._parts:
                self._track(storage, self.part)
        if not func.is_view and func.overloadpacket not in _WITHOUT_KERNEL:
            read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
            self.operators[self.part] += 1
            self.moved[self.part] += sum(each.numel() * each.element_size() for each in read + written)
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


def plan_update(config: TrainConfig, model: VideoAutoencoder | None = None, *, device_type: str) -> UpdatePlan:
    """Return the memory and the operations of one update with every term; `config.batch_size` must be a number.

    The update runs on tensors that have shapes but no values: what it allocates is exact, on the "cpu" or, for another
    `device_type`, as on CUDA. By default the model is that of `fake_autoencoder`.
    """
    model = fake_autoencoder(config) if model is None else model
    bucket = max(config.clips.train_buckets, key=lambda each: math.prod(each.shape))
    check_channels(config.clips, model)
    model.check_clip(*bucket.shape)
    counter = _MemoryCounter(LOSSES)
    fake_mode = cast(FakeTensorMode, next(model.parameters()).fake_mode)  # type: ignore[attr-defined]
    settings, perceptual = config.objective, config.objective.perceptual
    if perceptual.net in BACKBONES:  # made before the counter starts, which counts it if a term uses it
        with fake_mode:
            settings = replace(settings, perceptual=replace(perceptual, net=_fake_lpips(str(perceptual.net))))
    optimizer = replace(config.optimizer, name="adamw")  # kernels of 8 bits need values
    with fake_mode, counter, nullcontext() if device_type == "cpu" else _as_on_cuda():
        objective = build_objective(settings, config.discriminator, config.clips, load=False)
        accelerator = cast(Accelerator, _FakeAccelerator(counter, HALF.get(config.mixed_precision)))
        last_layer = last_layer_of(model, settings.adaptive_weight, config.temporal_chunk, is_sharded=False)
        state = new_state(optimizer, accelerator, model, objective, last_layer, seed=config.seed)
        state.step = objective.schedule.step_with_most_terms()
        shape = config.clips_per_pass, config.clips.num_channels, *bucket.shape
        shapes = [shape] * config.gradient_accumulation_steps
        plan = _count_update(state, counter, shapes, device_type)
        return replace(plan, is_on=_remedies_in(config), num_clips=config.clips_per_pass)


def _count_update(
    state: TrainState, counter: _MemoryCounter, shapes: Sequence[tuple[int, ...]], device_type: str
) -> UpdatePlan:
    _hold_networks(state, counter)
    _create_optimizer_states(state, counter)
    checkpoint = sum(counter.by_part[part] for part in (PARAMETERS, OPTIMIZER, AVERAGE))
    counter.part = HOST_COPY
    copy = torch.empty(checkpoint, dtype=torch.uint8) if device_type == "cpu" else None
    held = dict(counter.by_part)
    hooks = list(_switch_parts(state, counter))
    counter.restart()
    counter.part = DATA
    batches = [MicroBatch(torch.empty(shape), range(shape[0])) for shape in shapes]
    counter.part = LOSSES
    for batch in batches:
        accumulate_gradients(state, batch, 1 / len(batches), is_last=batch is batches[-1])
    counter.part = OPTIMIZER
    for optimizer in state.optimizers.values():  # as in `train_step`, but no value is read
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = device_type != "cpu", False  # as `new_state` chooses
        clip_gradients(parameters_of(optimizer), state.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.ema.update()
    for hook in hooks:
        hook.remove()
    del copy
    largest, flops, operators, moved = map(dict, (counter.largest, counter.flops, counter.operators, counter.moved))
    return UpdatePlan(held, counter.at_peak, largest, flops, operators, moved, checkpoint)


def fake_autoencoder(config: TrainConfig) -> VideoAutoencoder:
    """Return the autoencoder that `config` names, of tensors that have shapes but no values."""
    if config.init is not None:  # which changes no shape
        check_source(config.init)
    with FakeTensorMode(allow_non_fake_inputs=True):
        known = read_json(PUBLISHED).get(config.model or "")
        if known is None or Path(config.model or "").exists():
            random = without_weights(config.model, config.causal_vae)
        else:  # needs no network
            random = cast(Any, import_module("telecine.models.diffusers")).DiffusersAutoencoder.from_config(known)
        if config.model is not None and random.in_channels != config.clips.num_channels:
            random = random.with_channels(config.clips.num_channels)
        model = build_autoencoder(replace(config, model_gradient_checkpointing=False), random)
        if config.model_gradient_checkpointing and isinstance(model, (CausalVAE, Student)):
            model.enable_gradient_checkpointing()
        elif config.model_gradient_checkpointing:
            from telecine.models.diffusers.checkpointing import enable

            enable(cast(Any, model).module)  # without comparing gradients, which needs values
        return model


@dataclass
class _FakeAccelerator:
    """The part of Accelerate's class that `accumulate_gradients` needs. Without a dtype, autocast is off."""

    counter: _MemoryCounter
    dtype: torch.dtype | None
    scaler = None

    def backward(self, loss: Tensor) -> None:
        self.counter.part = AUTOENCODER
        loss.backward()

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast("cpu", self.dtype or torch.bfloat16, enabled=self.dtype is not None)


@contextmanager
def _as_on_cuda() -> Iterator[None]:
    """Make the CPU allocate what CUDA would, as PyTorch for CPUs has no fake GPU: autocast, and no copies by OneDNN."""
    has_onednn = torch._C._get_mkldnn_enabled()
    library = torch.library.Library("aten", "IMPL")
    try:
        torch._C._set_mkldnn_enabled(False)
        for name in (*_CUDA_CONVERTS, *_CUDA_RETURNS):
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(name, _in_float32(operator, converts=name in _CUDA_CONVERTS), "AutocastCPU")
        yield
    finally:
        library._destroy()
        torch._C._set_mkldnn_enabled(has_onednn)


def _in_float32(operator: Callable[..., Any], *, converts: bool) -> Callable[..., Any]:
    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if converts:
            x, args, kwargs = tree_map_only(Tensor, at_least_float32, (x, args, kwargs))
        elif x.dtype in HALF.values():
            kwargs = {"dtype": torch.float32, **kwargs}
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            return operator(x, *args, **kwargs)

    return call


def _fake_lpips(net: str) -> LPIPS:
    return LPIPS(net, weights={name: torch.empty(shape) for name, shape in backbone_of(net).tensor_shapes().items()})


def _hold_networks(state: TrainState, counter: _MemoryCounter) -> None:
    for network in (state.autoencoder, state.objective):
        counter.hold(PARAMETERS, [*network.parameters(), *network.buffers()])
    counter.hold(AVERAGE, state.ema.averages.values())
    if isinstance(state.autoencoder, Student):
        teacher = state.autoencoder.latent_model
        counter.hold(FROZEN, [*teacher.parameters(), *teacher.buffers()])
    state.objective.add_module("validation", _fake_lpips("alex"))
    for module in state.objective.modules():
        if isinstance(module, Frozen):
            counter.hold(FROZEN, module.tensors())


def _create_optimizer_states(state: TrainState, counter: _MemoryCounter) -> None:
    for optimizer in state.optimizers.values():
        for weight in parameters_of(optimizer):
            weight.grad = torch.empty_like(weight)
        for group in optimizer.param_groups:
            group["foreach"] = True
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        kept = (value for values in optimizer.state.values() for value in values.values())
        counter.hold(OPTIMIZER, (value for value in kept if isinstance(value, Tensor)))


def _switch_parts(state: TrainState, counter: _MemoryCounter) -> Iterator[Any]:
    """Count each network's tensors and gradients as those of a part, and yield the hooks to remove."""

    def switch_to(part: str) -> Callable[..., None]:
        return lambda *_: setattr(counter, "part", part)

    objective = state.objective
    yield state.model.register_forward_pre_hook(switch_to(AUTOENCODER))
    yield state.model.register_forward_hook(switch_to(LOSSES))
    if objective.perceptual.distance is not None:
        yield objective.perceptual.distance.register_forward_pre_hook(switch_to(PERCEPTUAL))
    for d in objective.discriminators:
        title = _DISCRIMINATORS.get(d.name, f"discriminator at 1/{d.factor}")
        yield d.module.register_forward_pre_hook(switch_to(title))
    for optimizer in state.optimizers.values():
        for weight in parameters_of(optimizer):
            yield weight.register_post_accumulate_grad_hook(
                lambda weight: counter.hold(GRADIENTS, [] if weight.grad is None else [weight.grad])
            )
