"""What another process than the first logs of data that all read."""

import logging

import pytest

from telecine.data import DataError
from telecine.data.first_process import log_in_first_process

logger = logging.getLogger("telecine.data.find")


def test_another_process_logs_what_it_held_back_if_its_data_differ(caplog):
    with log_in_first_process(1) as held_back:
        logger.warning("skipped %s", "a.mp4")
    logger.warning("afterwards")
    assert caplog.messages == ["afterwards"]
    held_back.log_all()
    held_back.log_all()
    assert caplog.messages == ["afterwards", "skipped a.mp4"]


def read(rank):
    with log_in_first_process(rank):
        logger.warning("skipped a.mp4")
        raise DataError("nothing can be decoded")


@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_logs_what_led_to_an_error(caplog, rank):
    with pytest.raises(DataError, match="nothing can be decoded"):
        read(rank)
    assert caplog.messages == ["skipped a.mp4"]


def test_handlers_of_users_get_what_is_held_back_later_or_never():
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    package = logging.getLogger("telecine")
    package.addHandler(handler)
    try:
        with log_in_first_process(1) as held_back:
            logger.warning("skipped a.mp4")
        assert records == []
        held_back.log_all()
        assert [record.getMessage() for record in records] == ["skipped a.mp4"]
    finally:
        package.removeHandler(handler)
