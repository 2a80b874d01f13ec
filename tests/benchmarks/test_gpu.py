import pytest
from accelerate.state import AcceleratorState


@pytest.fixture
def own_accelerator():
    """Leave no precision behind for the other tests of this process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
@pytest.mark.benchmarks
def test_tables(run_here, tables_in, own_accelerator):
    text = run_here("gpu.py", "--smoke")
    (header, rows), (_, updates) = tables_in(text)
    assert header[2:5] == ["telecine, s", "baseline, s", "ratio"]
    assert [row[1] for row in rows] == [
        f"{step}, {precision}"
        for precision in ("float32", "bf16")
        for step in ("update", "update, penalty")
    ]
    assert all(float(row[2]) > 0 and row[7].endswith("%") for row in rows)
    assert [row[0] for row in updates] == [
        "CausalVAE, GPU default, bf16",
        "Wan 2.1, bf16, chunks of 8 frames",
    ]
    assert all(float(row[2]) > 0 for row in updates)
