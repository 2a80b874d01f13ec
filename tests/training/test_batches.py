"""Reading the batches of a run; `test_trainer.py` reads them in whole runs."""

import pytest

from telecine.data import DataError, ReadingStopped
from telecine.training.batches import read_next


@pytest.mark.parametrize("error", [DataError("deleted"), OSError("unmounted"), RuntimeError("no shared memory")])
def test_errors_of_reading_are_returned(error):
    def batches():
        yield [1]
        raise error

    iterator = batches()
    assert read_next(iterator) == ([1], None)
    assert read_next(iterator) == ([], error)


def test_reading_that_was_stopped_is_no_error():
    def stopped():
        raise ReadingStopped
        yield

    assert read_next(stopped()) == ([], None)
