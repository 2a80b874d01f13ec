"""The command `telecine plan`."""

from typing import Annotated

from telecine.base.terminal import console
from telecine.settings import TrainConfig


def plan(
    settings: TrainConfig,
    *,
    memory: Annotated[
        str | None,
        "Memory of the device to plan for, e.g. 80GiB. By default what is free on the device at hand.",
    ] = None,
    num_processes: Annotated[
        int, "Number of processes that sharding is planned for, and that may share a clip."
    ] = 8,
) -> None:
    """Print the memory and operations of an update, and what fits a device."""
    from telecine.tools.plan import plan as planning

    console.say("counting the memory and the operations of an update, without computing it")
    planning.plan(settings, memory, num_processes).print_to(console)
