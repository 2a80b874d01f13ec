"""Data that several processes read: the first process logs what all of them would."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def log_in_first_process(rank: int) -> Iterator[None]:
    """Log warnings of telecine in the first process only; errors are logged in every process.

    Args:
        rank: The number of this process.
    """
    logger = logging.getLogger("telecine")
    level = logger.level
    if rank > 0:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
