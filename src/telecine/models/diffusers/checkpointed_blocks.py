"""Gradient checkpointing of the blocks of a diffusers model, and a check that it keeps the gradients."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call

from telecine.base.checks import argument_error
from telecine.base.precision import autocast_off
from telecine.base.randomness import keep_random_state
from telecine.models.clip_sizes import ClipSizes
from telecine.models.diffusers.family import class_names, clear_caches
from telecine.models.diffusers.outputs import DiffusersModel
from telecine.models.diffusers.streams import CACHE_ATTRIBUTE
from telecine.ops.checkpoint_call import checkpoint_call, checkpoint_module
from telecine.ops.pass_options import WHOLE_CLIPS, using_pass_options
from telecine.ops.wrap_forward import unwrap_forward

# Relative difference of all gradients that rounding may cause. The wrong ones found differ by 0.5 and more.
_MAX_DIFFERENCE = 1e-2
# A clip of this many frames, or a few more, is more than one chunk of the models that work in chunks.
_NUM_FRAMES = 5
# The parameter of `ModelMixin.enable_gradient_checkpointing`.
_FUNCTION = "gradient_checkpointing_func"


def enable_checked(module: DiffusersModel, blocks: Sequence[str], sizes: ClipSizes) -> None:
    """Enable a diffusers model's gradient checkpointing, if it keeps the gradients of a tiny clip.

    Args:
        module: The model. If it has no values, as in a plan of the memory, there are no gradients to compare.
        blocks: See `enable`.
        sizes: The sizes that the model reproduces.

    Raises:
        ValueError: The class does not support it, or gradients change.
    """
    if not hasattr(module, "enable_gradient_checkpointing"):
        raise _unsupported(module, "one without it")
    if any(isinstance(weight, FakeTensor) for weight in module.parameters()):
        enable(module, blocks)
        return
    expected = _gradients(sizes)
    enable(module, blocks)
    try:
        gradients = _gradients(sizes)
    except RuntimeError as error:
        _disable(module, blocks)
        raise _unsupported(
            module, f"one whose backward pass fails with it ({type(error).__name__})"
        ) from error
    changes = [a - b for a, b in zip(gradients, expected, strict=True)]
    difference = float(nn.utils.get_total_norm(changes) / nn.utils.get_total_norm(expected))
    if not difference <= _MAX_DIFFERENCE:  # also true for NaN
        _disable(module, blocks)
        raise _unsupported(module, f"one whose gradients change by {difference:.0%} with it")


def enable(module: DiffusersModel, blocks: Sequence[str]) -> None:
    """Enable gradient checkpointing.

    Args:
        module: The model.
        blocks: The classes of blocks that are recomputed, `Family.checkpointed_blocks`; without any, the model's own
            checkpointing is used.

    Raises:
        ValueError: The class does not support it.
    """
    if not blocks:
        _enable_own(module)
        return
    recomputed = _modules_of(module, blocks)
    if not recomputed:
        raise _unsupported(module, f"one without the blocks of its class, {', '.join(blocks)}")
    for block in recomputed:
        checkpoint_module(block, CACHE_ATTRIBUTE)


def _enable_own(module: DiffusersModel) -> None:
    """Enable the model's own checkpointing, with our function if it takes one, as classes of diffusers do."""
    enable_own = module.enable_gradient_checkpointing
    arguments = {}
    if _FUNCTION in inspect.signature(enable_own).parameters:
        # Ours remembers the processes that share a clip.
        arguments[_FUNCTION] = checkpoint_call
    try:
        enable_own(**arguments)
    except ValueError as error:
        raise _unsupported(module, "one that does not support it") from error


def _disable(module: DiffusersModel, blocks: Sequence[str]) -> None:
    """Disable checkpointing, and clear the caches that a failed backward pass left."""
    if not blocks:
        module.disable_gradient_checkpointing()
    for block in _modules_of(module, blocks):
        unwrap_forward(block)
    clear_caches(module)


def _modules_of(module: DiffusersModel, classes: Sequence[str]) -> list[nn.Module]:
    return [block for block in module.modules() if set(classes) & set(class_names(type(block)))]


def _unsupported(module: DiffusersModel, got: str) -> Exception:
    contract = "a model whose gradients stay the same with gradient checkpointing"
    return argument_error(
        type(module).__name__, contract, got, "Train it without `model_gradient_checkpointing`."
    )


def _gradients(sizes: ClipSizes) -> list[Tensor]:
    """Return the gradients of all trained weights for a fixed tiny clip; buffers and random state do not change."""
    reconstruct = sizes.reconstruct
    weights = [weight for weight in reconstruct.parameters() if weight.requires_grad]
    is_frozen = not weights  # for LoRA
    if is_frozen:
        reconstruct.requires_grad_(True)
        weights = list(reconstruct.parameters())
    device = weights[0].device
    buffers = {name: buffer.clone() for name, buffer in reconstruct.named_buffers()}
    with (
        torch.enable_grad(),
        autocast_off(device),
        keep_random_state(device),
        using_pass_options(context_group=WHOLE_CLIPS),
    ):
        torch.manual_seed(0)
        video = 2 * torch.rand(1, sizes.in_channels, *_checked_clip(sizes)) - 1
        output = functional_call(reconstruct, buffers, (video.to(device),))
        loss = (output * torch.randn(output.shape).to(output)).mean()
        gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
    if is_frozen:
        reconstruct.requires_grad_(False)
    clear_caches(sizes.model)
    return list(gradients)


def _checked_clip(sizes: ClipSizes) -> tuple[int, int, int]:
    """Return the size of a few small frames, or of one if the model does not support more."""
    num_frames, height, width = sizes.smallest
    for length in range(_NUM_FRAMES, 4 * _NUM_FRAMES):
        if sizes.reproduces_length(length):
            return length, height, width
    return num_frames, height, width
