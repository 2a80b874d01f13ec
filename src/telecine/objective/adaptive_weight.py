"""The adaptive weight: it makes the gradient of an adversarial term as large as that of a reference loss.

As in VQGAN (Esser et al., arXiv:2012.09841, equation 7), by default with the perceptual loss as the reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from telecine.base.checks import argument_error
from telecine.base.shapes import Scalar
from telecine.objective.eager import gradients_of
from telecine.ops.checkpointing import CheckpointedCall
from telecine.ops.ranks import average_over_ranks, num_ranks
from telecine.settings import AdaptiveWeightConfig

_NO_LAYER = (
    "`last_layer` {}, so that the adaptive weight is 1 instead of the ratio of two gradients. Pass the weight of the "
    'decoder\'s last layer, which is trained, or choose `adaptive_weight={{"at": "reconstruction"}}` or '
    '`{{"reference": "none"}}`.'
)


def adaptive_weights(
    config: AdaptiveWeightConfig,
    losses: Mapping[str, Scalar],
    references: Mapping[str, Scalar],
    grad_at: Tensor | LayerActivations | None,
) -> dict[str, Scalar]:
    """Return the weight of each generator loss by name; 1 if there are no gradients to compare.

    The weight is `min(|grad reference| / max(|grad loss|, min_norm), max)`, without a graph; 1 if it is not finite.

    Args:
        config: The settings.
        losses: The generator losses by name.
        references: What they may be compared with, by the names of `config.reference`.
        grad_at: Where gradients are compared: the last layer's weight or activations, or the reconstruction.

    Raises:
        ValueError: A loss does not depend on `grad_at`.
    """
    ones = {name: torch.ones_like(loss) for name, loss in losses.items()}
    reference = references.get(config.reference)
    if not losses or reference is None or not reference.requires_grad:
        return ones
    if grad_at is None or not grad_at.requires_grad:
        if config.at == "last_layer" and not is_compiling():
            warnings.warn(
                _NO_LAYER.format("is None" if grad_at is None else "requires no gradient"),
                stacklevel=2,
            )
        return ones
    norms = gradient_norms([reference, *losses.values()], grad_at, at=config.at)
    reference_norm = next(norms)
    weights = {}
    for name, norm in zip(losses, norms, strict=True):
        ratio = (reference_norm / norm.clamp(min=config.min_norm)).detach()
        weights[name] = torch.where(torch.isfinite(ratio), ratio.clamp(max=config.max), 1)
    return weights


def gradient_norms(
    losses: Sequence[Scalar],
    grad_at: Tensor | LayerActivations,
    *,
    at: Literal["last_layer", "reconstruction"],
) -> Iterator[Scalar]:
    """Yield the float32 2-norm of `d loss / d grad_at` for each loss. The graphs are kept.

    It is that of the mean of the ranks' losses. Of the reconstruction, ranks have different clips, so the squares add
    up. This is an extra backward from each loss.

    Args:
        losses: Scalars.
        grad_at: What to differentiate.
        at: Whether this is the last layer, which ranks share, or the reconstruction.

    Raises:
        ValueError: A loss does not depend on `grad_at`.
    """
    gradients: Iterable[Tensor | None]
    if isinstance(grad_at, LayerActivations):
        gradients = grad_at.weight_gradients(losses)
    else:  # one at a time is in memory
        gradients = (gradients_of(loss, [grad_at], retain_graph=True)[0] for loss in losses)
    for gradient in gradients:
        if gradient is None:
            remedy = (
                "Pass the weight of the decoder's last layer, e.g. `model.decoder.conv_out.weight`."
            )
            got = grad_at.layer if isinstance(grad_at, LayerActivations) else grad_at
            raise argument_error(
                "last_layer", "a parameter that `reconstructions` were computed with", got, remedy
            )
        wide = gradient.detach().float()
        if at == "last_layer":
            yield torch.linalg.vector_norm(average_over_ranks(wide))
        else:
            yield (average_over_ranks(wide.square().sum()) / num_ranks()).sqrt()


# The arguments of a call, which may include frames that a causal layer cached in the call before.
_Inputs: TypeAlias = tuple[tuple[object, ...], dict[str, object]]


class LayerActivations:
    """The inputs and outputs of a linear or convolution layer since `clear()`; replaces its weight as `last_layer`.

    It is for weights that cannot be an input of `torch.autograd.grad`: those that are sharded over processes, and those
    whose gradient needs the backward of all checkpointed chunks at once. The layer's outputs can be inputs, and give
    the same gradient in three steps:

    1. Record: a forward hook keeps the arguments and the output of each call. In a checkpointed block, which does not
       keep the arguments, it keeps the block's call instead.
    2. Recompute: `weight_gradients` differentiates the losses with respect to the outputs, and runs each recorded block
       again, without a graph, for the layer's arguments.
    3. Differentiate: the layer is called once more with these arguments, and its output is differentiated with respect
       to the weight. The layer is linear in its weight, so the weight may have any value, such as 0.

    Args:
        layer: The module that owns `weight`. Its output must be linear in the weight, as it is for convolutions.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        # The layer's arguments, or the call around it that computes them again if activations are not kept; its output.
        # None in a copy, such as an averaged model: nothing would ever clear its calls.
        self._calls: list[tuple[_Inputs | CheckpointedCall, Tensor]] | None = []
        layer.register_forward_hook(self._record, with_kwargs=True)

    def clear(self) -> None:
        """Drop the recorded calls. Call it before each forward pass of the autoencoder."""
        self._calls = []

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_calls": None}

    @property
    def requires_grad(self) -> bool:
        """Whether any recorded output has a graph."""
        return any(output.requires_grad for _, output in self._calls or [])

    def weight_gradients(self, losses: Sequence[Scalar]) -> list[Tensor | None]:
        """Return `d loss / d weight` for each loss, `None` if it does not depend on it. The graphs are kept."""
        calls = [(source, output) for source, output in self._calls or [] if output.requires_grad]
        outputs = [output for _, output in calls]
        output_gradients = [gradients_of(loss, outputs, retain_graph=True) for loss in losses]
        sums: list[Tensor | None] = [None] * len(losses)
        for call, inputs in enumerate(self._inputs([source for source, _ in calls])):
            for index, gradients in enumerate(output_gradients):
                gradient = gradients[call]
                if gradient is None:
                    continue
                part = self._weight_gradient_of_call(inputs, gradient)
                before = sums[index]
                sums[index] = part if before is None else before + part
        return sums

    def _inputs(self, sources: Sequence[_Inputs | CheckpointedCall]) -> Iterator[_Inputs]:
        """Yield the layer's arguments in each call; those of one checkpointed call are in memory at a time."""
        for _, group in groupby(sources, key=id):
            calls = list(group)
            source = calls[0]
            if isinstance(source, CheckpointedCall):
                yield from self._inputs_in(source, len(calls))
            else:
                yield source

    def _inputs_in(self, checkpointed: CheckpointedCall, num_calls: int) -> list[_Inputs]:
        """Run a checkpointed call again, and return the layer's arguments in it.

        Raises:
            RuntimeError: The layer is called another number of times.
        """
        inputs: list[_Inputs] = []

        def keep(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            inputs.append((args, kwargs))

        with torch.no_grad(), self.layer.register_forward_pre_hook(keep, with_kwargs=True):
            checkpointed.run()
        if len(inputs) != num_calls:
            called = (
                f"{type(self.layer).__name__} was called {len(inputs)} times instead of {num_calls}"
            )
            remedy = "Set `adaptive_weight.at` to `reconstruction`, which needs no layer."
            raise RuntimeError(f"{called} when its checkpointed block was computed again. {remedy}")
        return inputs

    def _weight_gradient_of_call(self, inputs: _Inputs, grad_output: Tensor) -> Tensor:
        """Return the part of one call in the gradient of the weight, computed with a weight of 0."""
        device, dtype = grad_output.device, grad_output.dtype
        zeros = {
            name: torch.zeros(p.shape, device=device, dtype=dtype, requires_grad=name == "weight")
            for name, p in self.layer.named_parameters()
        }
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().to(dtype), inputs)
        with torch.enable_grad():
            output = functional_call(self.layer, zeros, args, kwargs)
        return torch.autograd.grad(output, zeros["weight"], grad_outputs=grad_output)[0]

    def _record(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor
    ) -> None:
        # In `functional_call` above, the weight is a plain tensor; that call is not recorded.
        is_forward = isinstance(layer.weight, nn.Parameter)
        around = CheckpointedCall.running()
        is_again = around is not None and not around.is_first_run  # in the backward pass
        if is_forward and not is_again and self._calls is not None and torch.is_grad_enabled():
            self._calls.append((around or (args, kwargs), output))
