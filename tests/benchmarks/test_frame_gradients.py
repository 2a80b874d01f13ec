import pytest


@pytest.mark.slow
def test_table(run_here, tables_in):
    ((_, rows),) = tables_in(run_here("frame_gradients.py", "--smoke"))
    names = list(dict.fromkeys(name for name, *_ in rows))
    assert [row[:2] for row in rows] == [[name, num_frames] for num_frames in ("9", "17") for name in names]
    for _, num_frames, ratio, gradients in rows:
        values = [float(value) for value in gradients.split()]
        assert len(values) == int(num_frames)
        assert sum(values) / len(values) == pytest.approx(1, abs=0.01)
        assert float(ratio) == pytest.approx(values[0] * (len(values) - 1) / sum(values[1:]), rel=0.05)
