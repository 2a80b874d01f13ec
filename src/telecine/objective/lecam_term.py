"""LeCam regularisation as a term of each discriminator's loss."""

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from telecine.base.shapes import Scalar
from telecine.losses.lecam import LeCam


class LeCamTerm(nn.ModuleDict):
    """LeCam regularisation with running means of the logits for each discriminator, by the discriminator's key."""

    def __init__(self, keys: Iterable[str]) -> None:
        super().__init__({key: LeCam() for key in keys})

    def forward(self, *, key: str, real_logits: Tensor, fake_logits: Tensor) -> Scalar:
        """Return the regulariser of one discriminator's logits; in training mode its means are updated first.

        Args:
            key: The discriminator's `VideoDiscriminator.key`.
            real_logits, fake_logits: Its logits, of any shape.
        """
        return cast(LeCam, self[key])(real=real_logits, fake=fake_logits)
