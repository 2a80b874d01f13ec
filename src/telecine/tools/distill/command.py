"""The command `telecine distill`."""

from telecine.base.terminal import console
from telecine.settings import DistillConfig
from telecine.settings.argument_kinds import ChangeData, StealLock


def distill(
    settings: DistillConfig,
    *,
    steal_lock: StealLock = False,
    change_data: ChangeData = False,
) -> None:
    """Train a small decoder, or autoencoder, for the latents of another one; otherwise as `train`."""
    from telecine.tools.distill import distillation

    result = distillation.distill(
        settings, console=console, steal_lock=steal_lock, change_data=change_data
    )
    result.print_to(console)
