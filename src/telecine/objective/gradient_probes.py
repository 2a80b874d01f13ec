"""Where the adaptive weight compares gradients: at the weight of a layer, or at the reconstruction."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.precision import at_least_float32
from telecine.base.shapes import Scalar
from telecine.ops.eager_gradients import differentiate
from telecine.ops.ranks import average_over_ranks, num_data_ranks


class GradientProbe(ABC):
    """A tensor at which gradients of losses are compared. A subclass defines how they are computed."""

    is_shared: bool = True
    """Whether ranks share the tensor, as a weight. Of the reconstruction, ranks have different clips."""

    @property
    @abstractmethod
    def has_gradient(self) -> bool:
        """Whether losses of the present forward pass may have a gradient at the tensor."""

    @abstractmethod
    def gradients(self, losses: Sequence[Scalar]) -> Iterable[Tensor | None]:
        """Return the gradient of each loss, None if it does not depend on the tensor. The graphs are kept."""

    @abstractmethod
    def clear(self) -> None:
        """Forget the last forward pass. Call it before each one of the autoencoder."""

    def norms(self, losses: Sequence[Scalar]) -> Iterator[Scalar]:
        """Yield the 2-norm of the gradient of each loss, in float32 at least. The graphs are kept.

        It is that of the mean of the ranks' losses. This is an extra backward from each loss.

        Args:
            losses: Scalars.

        Raises:
            ValueError: A loss does not depend on the tensor.
        """
        for gradient in self.gradients(losses):
            if gradient is None:
                contract = "a parameter that `reconstructions` were computed with"
                remedy = "Pass the weight of the decoder's last layer, e.g. `model.decoder.conv_out.weight`."
                raise argument_error("last_layer", contract, "another one", remedy)
            wide = at_least_float32(gradient.detach())
            if self.is_shared:
                yield torch.linalg.vector_norm(average_over_ranks(wide))
            else:  # the squares of different clips add up
                yield (average_over_ranks(wide.square().sum()) / num_data_ranks()).sqrt()


class TensorProbe(GradientProbe):
    """A tensor that autograd can differentiate losses with respect to.

    Args:
        tensor: A weight, or the reconstruction.
        is_shared: Whether ranks share it.
    """

    def __init__(self, tensor: Tensor, *, is_shared: bool = True) -> None:
        self.tensor = tensor
        self.is_shared = is_shared

    @property
    def has_gradient(self) -> bool:
        """Whether the tensor requires gradients."""
        return self.tensor.requires_grad

    def gradients(self, losses: Sequence[Scalar]) -> Iterator[Tensor | None]:
        """Yield the gradient of each loss: one at a time is in memory."""
        for loss in losses:
            yield differentiate(loss, [self.tensor], retain_graph=True)[0]

    def clear(self) -> None:
        """Do nothing: the tensor belongs to no forward pass, or to one alone."""


def choose_probe(
    at: str, last_layer: Tensor | GradientProbe | None, reconstructions: Tensor
) -> GradientProbe | None:
    """Return where the adaptive weight compares gradients; None if there is no last layer.

    Args:
        at: `AdaptiveWeightConfig.at`.
        last_layer: The weight of the last layer, or how to differentiate with respect to it.
        reconstructions: `(B, C, T, H, W)`.

    Raises:
        ValueError: `last_layer` is something else.
    """
    if isinstance(last_layer, Tensor):
        last_layer = TensorProbe(last_layer)
    if last_layer is not None and not isinstance(last_layer, GradientProbe):
        remedy = "Pass the weight itself, e.g. `model.decoder.conv_out.weight`."
        got = f"a {type(last_layer).__name__}"
        raise argument_error("last_layer", "a tensor or None", got, remedy)
    if at == "reconstruction":
        return TensorProbe(reconstructions, is_shared=False)
    return last_layer
