"""Discriminators that start from those of another run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from telecine.autoencoders.pretrained import MAX_LISTED, mismatches
from telecine.base.checks import argument_error
from telecine.runs.layout import find_checkpoint
from telecine.training.checkpoint_files import load_tensors

if TYPE_CHECKING:
    from telecine.objective import VideoAutoencoderLoss

# Where an objective's state dict has the discriminators.
DISCRIMINATORS = ("discr.", "discr_3d.", "multiscale_discrs.")


def load_discriminators(objective: VideoAutoencoderLoss, source: str) -> None:
    """Copy the discriminators of another run, of its last checkpoint, into an objective.

    Raises:
        ValueError: There is no checkpoint, one of the two runs has no discriminator, or names or shapes differ.
    """
    checkpoint = checkpoint_of(source)
    weights = {name: weight for name, weight in objective.state_dict().items() if name.startswith(DISCRIMINATORS)}
    saved = load_tensors(checkpoint / "objective.safetensors")
    found = {name: weight for name, weight in saved.items() if name.startswith(DISCRIMINATORS)}
    for name, each in (("discriminators of this run", weights), (f"discriminators of {source}", found)):
        if not each:
            remedy = "They are built only for `objective.adversarial_loss_weight`."
            raise argument_error("discriminator.init", f"given with {name}", "none", remedy)
    if problems := mismatches(weights, found):
        more = f" and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        remedy = "Use the `discriminator` settings and the size of the clips of that run."
        contract, got = "a run with the same discriminators", "; ".join(problems[:MAX_LISTED]) + more
        raise argument_error("discriminator.init", contract, got, remedy)
    objective.load_state_dict(found, strict=False)


def checkpoint_of(source: str) -> Path:
    """Return the checkpoint that `discriminator.init` names.

    Raises:
        ValueError: There is none.
    """
    checkpoint = find_checkpoint(Path(source))
    if checkpoint is None:
        got = f"{source!r}, without one"
        raise argument_error("discriminator.init", "a run with a checkpoint", got, "Check the spelling.")
    return checkpoint
