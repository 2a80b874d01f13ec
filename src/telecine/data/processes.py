"""Data that several processes read: the first one logs what all of them would, and all have to have the same."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed as dist

from telecine.base.checks import argument_error


@contextmanager
def log_in_first_process(rank: int) -> Iterator[None]:
    """Log what telecine says in the first process only; the others log errors alone.

    Args:
        rank: The number of this process.
    """
    logger = logging.getLogger("telecine")
    level = logger.level
    if rank > 0:
        logger.setLevel(max(logger.getEffectiveLevel(), logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)


def check_same_data(data: object, name: str) -> None:
    """Check that all processes have the same data. Each process of the default group has to call this.

    Args:
        data: What identifies the data of this process.
        name: What the error calls the data.

    Raises:
        ValueError: In every process, if one has other data than the first.
    """
    data_of_ranks: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(data_of_ranks, data)
    others = []
    for rank, data_of_rank in enumerate(data_of_ranks):
        if data_of_rank != data_of_ranks[0]:
            others.append(str(rank))
    if others:
        got = f"other {name} in process {', '.join(others)} than in process 0"
        remedy = "Copy it to all machines, or to a shared disk; `telecine data` says which files a machine cannot use. "
        remedy += "If it is at addresses and was changed, run the same command again."
        raise argument_error("data", "the same in all processes", got, remedy)
