import pytest

VIDEO = [
    "autoencoder step",
    "discriminator step",
    "discriminator step, penalty",
    "update",
    "update, penalty",
]
FRAMES = [f"4 single frames: {title}" for title in VIDEO[:3]]
LAZY_PENALTY = "update, penalty on every 16th step of telecine, every step of the baseline"


@pytest.mark.slow
@pytest.mark.benchmarks
def test_times(run_here, tables_in):
    text = run_here("objective.py", "--smoke", "--configs", "1,16,4,2", "--only", "time")
    assert text.count("## dim 1, 16 px, 4 frames, batch 2") == text.count("##") == 1
    ((header, rows),) = tables_in(text)
    assert header[1:5] == ["telecine", "baseline", "baseline / telecine", "magvit2-pytorch"]
    assert [title for title, *_ in rows] == [*VIDEO, *FRAMES, LAZY_PENALTY]
    for _, telecine, baseline, ratio, *_ in rows:
        expected = float(baseline) / float(telecine)
        assert float(ratio.removesuffix(" x")) == pytest.approx(expected, rel=0.2, abs=0.02)
    seconds = {title: float(cell) for title, cell, *_ in rows}
    mean = (15 * seconds["update"] + seconds["update, penalty"]) / 16
    assert seconds[LAZY_PENALTY] == pytest.approx(mean, rel=0.02)


def test_a_size_that_is_none(run_here):
    error = run_here("objective.py", "--configs", "1,16", returns=2)
    assert "must be dim,size,frames,batch, but got '1,16'" in error
