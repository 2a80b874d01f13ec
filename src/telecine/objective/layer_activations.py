"""The gradient of the last layer's weight where the weight cannot be differentiated: from the layer's activations."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from telecine.base.shapes import Scalar
from telecine.objective.gradient_probes import GradientProbe
from telecine.ops.checkpoint_call import CheckpointedCall
from telecine.ops.eager_gradients import differentiate
from telecine.ops.pass_options import pass_options

# The arguments of a call, which may include frames that a causal layer cached in the call before.
_Inputs: TypeAlias = tuple[tuple[object, ...], dict[str, object]]


@dataclass
class _RecordedCalls:
    """The calls of the layer in one checkpointed block, or a single one outside of blocks."""

    block: CheckpointedCall | None
    """The block, which computes the arguments again."""
    inputs: list[_Inputs] = field(default_factory=list)
    """The arguments of each call; empty for those in a block, which does not keep them."""
    outputs: list[Tensor] = field(default_factory=list)


class LayerActivations(GradientProbe):
    """The inputs and outputs of a linear or convolution layer since `clear()`; replaces its weight as `last_layer`.

    It is for weights that cannot be an input of `torch.autograd.grad`: those that are sharded over processes, and those
    whose gradient needs the backward of all checkpointed chunks at once. The layer's outputs can be inputs, and give
    the same gradient in three steps:

    1. Record: a forward hook keeps the arguments and the output of each call. In a checkpointed block, which does not
       keep the arguments, it keeps the block's call instead.
    2. Recompute: `gradients` differentiates the losses with respect to the outputs, and runs each recorded block
       again, without a graph, for the layer's arguments.
    3. Differentiate: the layer is called once more with these arguments, and its output is differentiated with respect
       to the weight. The layer is linear in its weight, so the weight may have any value, such as 0.

    Args:
        layer: The module that owns `weight`. Its output must be linear in the weight, as it is for convolutions.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self._is_recording = True
        self._recorded: list[_RecordedCalls] = []
        layer.register_forward_hook(self._record, with_kwargs=True)

    def clear(self) -> None:
        """Forget the recorded calls. Call it before each forward pass of the autoencoder."""
        self._recorded = []

    def __getstate__(self) -> dict[str, object]:
        # A copy, such as that of an averaged model, records nothing: nobody would clear its calls.
        return {**vars(self), "_is_recording": False, "_recorded": []}

    @property
    def has_gradient(self) -> bool:
        """Whether there is a recorded call. All of them have graphs."""
        return len(self._recorded) > 0

    def gradients(self, losses: Sequence[Scalar]) -> list[Tensor | None]:
        """Return `d loss / d weight` for each loss, `None` if it does not depend on it. The graphs are kept."""
        outputs = [output for calls in self._recorded for output in calls.outputs]
        output_gradients = [differentiate(loss, outputs, retain_graph=True) for loss in losses]
        sums: list[Tensor | None] = [None] * len(losses)
        index_of_call = 0
        for calls in self._recorded:
            all_inputs = calls.inputs
            if calls.block is not None:  # the inputs in one block are in memory at a time
                all_inputs = self._inputs_in(calls.block, len(calls.outputs))
            for inputs in all_inputs:
                for index, gradients in enumerate(output_gradients):
                    gradient = gradients[index_of_call]
                    if gradient is None:
                        continue
                    part = self._weight_gradient_of_call(inputs, gradient)
                    before = sums[index]
                    sums[index] = part if before is None else before + part
                index_of_call += 1
        return sums

    def _inputs_in(self, block: CheckpointedCall, num_calls: int) -> list[_Inputs]:
        """Run a checkpointed block again, and return the layer's arguments in it.

        Raises:
            RuntimeError: The layer is called another number of times.
        """
        inputs: list[_Inputs] = []

        def keep(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            inputs.append((args, kwargs))

        with torch.no_grad(), self.layer.register_forward_pre_hook(keep, with_kwargs=True):
            block.run()
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
        self._is_recording = False
        try:
            with torch.enable_grad():
                output = functional_call(self.layer, zeros, args, kwargs)
        finally:
            self._is_recording = True
        return torch.autograd.grad(output, zeros["weight"], grad_outputs=grad_output)[0]

    def _record(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor
    ) -> None:
        block: CheckpointedCall | None = pass_options().checkpointed_call
        is_recomputed = block is not None and not block.is_first_run
        if not self._is_recording or not output.requires_grad or is_recomputed:
            return
        if block is None:
            self._recorded.append(_RecordedCalls(None, [(args, kwargs)], [output]))
        elif self._recorded and self._recorded[-1].block is block:
            self._recorded[-1].outputs.append(output)
        else:
            self._recorded.append(_RecordedCalls(block, outputs=[output]))
