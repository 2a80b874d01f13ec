"""Escape sequences in names are shown; progress of a loop on a terminal and in a log."""

import io
import logging
import sys
from types import SimpleNamespace

import pytest
from rich.table import Table

from telecine.__main__ import main
from telecine.base import terminal
from telecine.base.terminal import (
    PlainConsole,
    describe_duration,
    printable,
    quiet_logger,
    with_progress,
)

NASTY = "\x1b]0;title\x07\x1b[31m\x9b\u202e\ud800.mp4"
SHOWN = r"\x1b]0;title\x07\x1b[31m\x9b\u202e\ud800.mp4"


def test_printable():
    assert printable(NASTY) == SHOWN
    assert printable("a [b] é 日本\nc") == "a [b] é 日本\nc"


def test_on_the_console(capsys):
    PlainConsole().print(f"wrote {NASTY}", soft_wrap=True)
    assert capsys.readouterr().out == f"wrote {SHOWN}\n"


def test_no_name_forges_a_line(capsys):
    console = PlainConsole()
    console.print("a: intact\nb: intact", soft_wrap=True)
    table = Table("a name\nof two")
    table.add_row("x\ny")
    console.print(table)
    out = capsys.readouterr().out
    assert out.startswith("a: intact\\nb: intact\n")
    assert "a name\\nof two" in out
    assert "x\\ny" in out


@pytest.mark.parametrize("name", ["\x1b[31m.mp4", "\x1b[31m.yaml"])
def test_in_errors_of_commands(name, tmp_path, capsys):
    assert main(["checkpoint", "verify", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert r"\x1b[31m" in error


def test_in_logs(capsys, monkeypatch):
    logger = logging.getLogger("telecine.test")
    monkeypatch.setattr(logger, "propagate", False)
    main(["checkpoint", "verify", "nowhere"])
    capsys.readouterr()
    handler = logging.lastResort
    record = logger.makeRecord(
        "telecine", logging.WARNING, "", 0, "skipped %s", ("\x1b[31m.mp4",), None
    )
    assert handler.format(record) == r"warning: skipped \x1b[31m.mp4"
    forged = logger.makeRecord(
        "telecine.runs", logging.WARNING, "", 0, "skipped %s", ("a\nb",), None
    )
    assert handler.format(forged) == r"warning: skipped a\nb"


FULL = "\u2588"
EMPTY = "\u2591"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: clock.now))
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
    assert file.getvalue().splitlines() == [
        "measuring 2/5  1 min left",
        "measuring 4/5  20 s left",
    ]


@pytest.fixture
def cell(monkeypatch):
    """Let code take this process for a notebook; return the lines that its cell has shown."""
    lines = []
    handle = SimpleNamespace(update=lambda data, raw: lines.append(data["text/plain"]))
    display = SimpleNamespace(display=lambda data, raw, display_id: handle)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    return lines


def test_a_notebook_has_a_bar(cell, clock):
    for _ in with_progress(range(4), "measuring"):
        clock.now += 90.0
    assert cell[0] == f"{7 * FULL}{23 * EMPTY} 1/4  measuring  4 min 30 s left"
    assert cell[-1] == f"{30 * FULL} 4/4  measuring  0 s left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.291, "0.29 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (320, "5 min 20 s"),
        (7500, "2 h 5 min"),
        (21262.1 * 60, "14 days 18 h"),
        (86400, "1 day"),
    ],
)
def test_durations_are_in_the_units_of_people(seconds, text):
    assert describe_duration(seconds) == text


def test_a_short_loop_prints_nothing_in_a_log(monkeypatch):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    assert list(with_progress(range(3), "counting")) == [0, 1, 2]
    assert file.getvalue() == ""


def test_items_without_a_length_need_a_total():
    with pytest.raises(TypeError, match="has no len"):
        list(with_progress(iter(range(3)), "counting"))


@pytest.mark.parametrize(
    ("least_level", "expected"),
    [(logging.ERROR, ["error", "after"]), (logging.NOTSET, ["warning", "error", "after"])],
)
def test_a_logger_is_quiet_until_the_end(caplog, least_level, expected):
    logger = logging.getLogger("telecine.data")

    def fail():
        logger.warning("warning")
        logger.error("error")
        raise KeyError

    with pytest.raises(KeyError), quiet_logger("telecine", least_level):
        fail()
    logger.warning("after")
    assert caplog.messages == expected


def test_a_logger_logs_nothing_by_default(caplog):
    logger = logging.getLogger("another")
    with quiet_logger("another"):
        logger.critical("text")
        with quiet_logger("another", logging.ERROR):
            logger.critical("text")
    assert caplog.messages == []
