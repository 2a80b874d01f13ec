import pytest


@pytest.mark.slow
def test_the_parts_add_up(run_here, tables_in, without_pictures):
    text = run_here("checkpoint.py", "--config", "tiny_4x8x8", "--repeats", "1")
    ((header, rows),) = tables_in(text)
    assert header == ["part", "seconds"]
    *parts, total, _ = [float(seconds) for _, seconds in rows]
    assert [rows[0][0], rows[-2][0]] == ["copying, for which training waits", "all"]
    assert len(parts) == 5
    assert sum(parts) == pytest.approx(total, abs=0.05)
