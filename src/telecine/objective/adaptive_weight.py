"""The adaptive weight: it makes the gradient of an adversarial term as large as that of a reference loss.

As in VQGAN (Esser et al., arXiv:2012.09841, equation 7), by default with the perceptual loss as the reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TypeAlias

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
    Gradients are compared at `grad_at`: the last layer's weight or activations, or the reconstruction.
    """
    reference = references.get(config.reference)
    ones = {name: torch.ones_like(loss) for name, loss in losses.items()}
    if not losses or reference is None or not reference.requires_grad:
        return ones
    if grad_at is None or not grad_at.requires_grad:
        if config.at == "last_layer" and not is_compiling():
            warnings.warn(_NO_LAYER.format("is None" if grad_at is None else "requires no gradient"), stacklevel=2)
        return ones
    reference_norm, *norms = _gradient_norms([reference, *losses.values()], grad_at, of_layer=config.at == "last_layer")
    ratios = [(reference_norm / norm.clamp(min=config.min_norm)).detach() for norm in norms]
    weights = [torch.where(torch.isfinite(ratio), ratio.clamp(max=config.max), 1) for ratio in ratios]
    return dict(zip(losses, weights, strict=True))


def _gradient_norms(
    losses: Sequence[Scalar], grad_at: Tensor | LayerActivations, *, of_layer: bool
) -> Iterator[Scalar]:
    """Yield the float32 2-norm of `d loss / d grad_at` for each loss.

    It is that of the mean of the ranks' losses. Of the reconstruction, ranks have different clips, so the squares add
    up. This is an extra backward from each loss. The graphs are kept.
    """
    gradients: Iterable[Tensor | None]
    if isinstance(grad_at, LayerActivations):
        gradients = grad_at.weight_gradients(losses)
    else:  # one at a time is in memory
        gradients = (gradients_of(loss, [grad_at], retain_graph=True)[0] for loss in losses)
    for gradient in gradients:
        if gradient is None:
            remedy = "Pass the weight of the decoder's last layer, e.g. `model.decoder.conv_out.weight`."
            got = grad_at.layer if isinstance(grad_at, LayerActivations) else grad_at
            raise argument_error("last_layer", "a parameter that `reconstructions` were computed with", got, remedy)
        wide = gradient.detach().float()
        if of_layer:
            yield torch.linalg.vector_norm(average_over_ranks(wide))
        else:
            yield (average_over_ranks(wide.square().sum()) / num_ranks()).sqrt()


# The arguments of a call, which may include frames that a causal layer cached in the call before.
_Inputs: TypeAlias = tuple[tuple[object, ...], dict[str, object]]


class LayerActivations:
    """The inputs and outputs of a linear or convolution layer since `clear()`; replaces its weight as `last_layer`.

    A weight that is sharded over processes cannot be an input of `torch.autograd.grad`, but the layer's output can.
    Inputs that the autoencoder computes again in the backward pass are computed again here, too.

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
        gradients = [gradients_of(loss, outputs, retain_graph=True) for loss in losses]
        found: list[Tensor | None] = [None] * len(losses)
        all_inputs = self._inputs([source for source, _ in calls])
        for inputs, *output_gradients in zip(all_inputs, *gradients, strict=True):
            for index, gradient in enumerate(output_gradients):
                if gradient is not None:
                    part, sum_before = self._weight_gradient_of_call(inputs, gradient), found[index]
                    found[index] = part if sum_before is None else sum_before + part
        return found

    def _inputs(self, sources: Sequence[_Inputs | CheckpointedCall]) -> Iterator[_Inputs]:
        """Yield the layer's arguments in each call; those of one checkpointed call are in memory at a time."""
        for _, group in groupby(sources, key=id):
            source, *others = group
            if isinstance(source, CheckpointedCall):
                yield from self._inputs_in(source, 1 + len(others))
            else:
                yield source

    def _inputs_in(self, checkpointed: CheckpointedCall, expected: int) -> list[_Inputs]:
        """Run a checkpointed call again, and return the layer's arguments in it."""
        found: list[_Inputs] = []
        keep = lambda _, args, kwargs: found.append((args, kwargs))  # noqa: E731
        with torch.no_grad(), self.layer.register_forward_pre_hook(keep, with_kwargs=True):
            checkpointed.run()
        if len(found) != expected:
            called = f"{type(self.layer).__name__} was called {len(found)} times instead of {expected}"
            remedy = "Set `adaptive_weight.at` to `reconstruction`, which needs no layer."
            raise RuntimeError(f"{called} when its checkpointed block was computed again. {remedy}")
        return found

    def _weight_gradient_of_call(self, inputs: _Inputs, grad_output: Tensor) -> Tensor:
        """Return one call's part. The layer is linear, so its gradient holds for any weight, such as 0."""
        device, dtype = grad_output.device, grad_output.dtype
        zeros = {
            name: torch.zeros(p.shape, device=device, dtype=dtype, requires_grad=name == "weight")
            for name, p in self.layer.named_parameters()
        }
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().to(dtype), inputs)
        with torch.enable_grad():
            output = functional_call(self.layer, zeros, args, kwargs)
        return torch.autograd.grad(output, zeros["weight"], grad_outputs=grad_output)[0]

    def _record(self, layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor) -> None:
        # In `functional_call` above, the weight is a plain tensor; that call is not recorded.
        is_forward = isinstance(layer.weight, nn.Parameter)
        around = CheckpointedCall.running()
        is_again = around is not None and not around.is_first_run  # in the backward pass
        if is_forward and not is_again and self._calls is not None and torch.is_grad_enabled():
            self._calls.append((around or (args, kwargs), output))
