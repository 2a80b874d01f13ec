"""Data that several processes read: the first process logs what all of them would."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class HeldBackLog(logging.Handler):
    """What a process does not log as long as the first one logs the same."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Hold back a record."""
        self._records.append(record)

    def log_all(self) -> None:
        """Log all of it: the data of this process is not that of the first one."""
        for record in self._records:
            logging.getLogger(record.name).handle(record)
        self._records.clear()


@contextmanager
def log_in_first_process(rank: int) -> Iterator[HeldBackLog]:
    """Log what telecine says in the first process only.

    Another process holds it back, and logs it at the end if the data cannot be used.

    Args:
        rank: The number of this process.
    """
    held_back = HeldBackLog()
    if rank == 0:
        yield held_back
        return
    try:
        with _the_only_handler(held_back):
            yield held_back
    except (ValueError, OSError):
        held_back.log_all()
        raise


@contextmanager
def _the_only_handler(handler: logging.Handler) -> Iterator[None]:
    """Let a handler get all records of telecine in place of others."""
    logger = logging.getLogger("telecine")
    others = list(logger.handlers)
    propagates = logger.propagate
    for other in others:
        logger.removeHandler(other)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagates
        logger.removeHandler(handler)
        for other in others:
            logger.addHandler(other)
