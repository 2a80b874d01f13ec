"""Escape sequences in names are shown."""

import logging

import pytest

from telecine.base.terminal import PlainConsole, printable
from telecine.cli.main import main

NASTY = "\x1b]0;title\x07\x1b[31m\x9b\u202e\ud800.mp4"
SHOWN = r"\x1b]0;title\x07\x1b[31m\x9b\u202e\ud800.mp4"


def test_printable():
    assert printable(NASTY) == SHOWN
    assert printable("a [b] é 日本\nc") == "a [b] é 日本\nc"


def test_on_the_console(capsys):
    PlainConsole().print(f"wrote {NASTY}", soft_wrap=True)
    assert capsys.readouterr().out == f"wrote {SHOWN}\n"


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
    record = logger.makeRecord("telecine", logging.WARNING, "", 0, "skipped %s", ("\x1b[31m.mp4",), None)
    assert handler.format(record) == r"skipped \x1b[31m.mp4"
