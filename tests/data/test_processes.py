"""Data that several processes read: what is logged of it, and that it is the same."""

import logging

import pytest
from torch import distributed as dist

from telecine.data import DataError
from telecine.data.processes import check_same_data, log_in_first_process

logger = logging.getLogger("telecine.data.find")


def read(rank):
    with log_in_first_process(rank):
        logger.warning("skipped a.mp4")
        raise DataError("nothing can be decoded")


@pytest.mark.parametrize(("rank", "logged"), [(0, ["skipped a.mp4"]), (1, [])])
def test_the_first_process_logs_what_all_read(caplog, rank, logged):
    with pytest.raises(DataError, match="nothing can be decoded"):
        read(rank)
    assert caplog.messages == logged
    logger.warning("afterwards")
    assert caplog.messages == [*logged, "afterwards"]


def test_other_data_in_another_process_is_refused(monkeypatch):
    def gather(gathered, own):
        gathered[:] = [own, "other", own, "other"]

    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    message = "`data` must be the same in all processes, but got other clips in process 1, 3 than in process 0"
    with pytest.raises(ValueError, match=message):
        check_same_data("own", "clips")
