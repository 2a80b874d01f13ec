"""Progress of a loop on a terminal and in a log."""

import io
import sys
from types import SimpleNamespace

import pytest

from telecine.base import progress
from telecine.base.progress import with_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", file := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert list(with_progress(iter(range(3)), "counting", total=3)) == [0, 1, 2]
    assert "counting" in file.getvalue()
    assert "min left" not in file.getvalue()


@pytest.mark.parametrize(("items", "total"), [([0, 1, 2, 3, 4], None), (iter(range(5)), 5)])
def test_a_log_has_a_line_now_and_then(monkeypatch, clock, items, total):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    seen = []
    for item in with_progress(items, "measuring", total):
        clock.now += 20.0
        seen.append(item)
    assert seen == [0, 1, 2, 3, 4]
    assert file.getvalue().splitlines() == ["measuring 2/5  1.0 min left", "measuring 4/5  0.3 min left"]


def test_a_short_loop_prints_nothing_in_a_log(monkeypatch):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    assert list(with_progress(range(3), "counting")) == [0, 1, 2]
    assert file.getvalue() == ""


def test_items_without_a_length_need_a_total():
    with pytest.raises(TypeError, match="`total` must be given for items without a length"):
        list(with_progress(iter(range(3)), "counting"))
