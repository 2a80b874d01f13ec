"""The table of the demo's speed is printed, and complete."""

import pytest


def test_the_table(run_here, tables_in):
    text = run_here("training.py", "--smoke")
    assert text.startswith("2 clips of 5 frames of 32 px; ")
    ((header, lines),) = tables_in(text)
    assert header[1:] == ["steps of the demo", "updates / s", "waited for data"]
    *phases, whole = lines.values()
    assert [int(steps) for steps, *_ in lines.values()] == [260, 40, 300, 600]
    assert all(0 <= float(waited.removesuffix("%")) < 100 for *_, waited in lines.values())
    seconds = sum(int(steps) / float(speed) for steps, speed, _ in phases)
    assert float(whole[1]) == pytest.approx(600 / seconds, rel=0.02)
