import pytest


@pytest.mark.slow
def test_table(run_here, tables_in):
    text = run_here("training.py", "--smoke")
    assert text.startswith("2 clips of 5 frames of 32 px; ")
    ((header, rows),) = tables_in(text)
    assert header[1:] == ["steps of the demo", "updates / s", "waited for data"]
    assert [int(steps) for _, steps, *_ in rows] == [1440, 160, 800, 2400]
    assert all(0 <= float(waited.removesuffix("%")) < 100 for *_, waited in rows)
    *phases, whole = rows
    seconds = sum(int(steps) / float(speed) for _, steps, speed, _ in phases)
    assert float(whole[2]) == pytest.approx(2400 / seconds, rel=0.02)
