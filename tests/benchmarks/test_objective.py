import importlib.util

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
HAS_MAGVIT2 = importlib.util.find_spec("magvit2_pytorch") is not None


def factor(cell):
    assert cell.endswith(" x")
    return float(cell.removesuffix(" x"))


def about(ratio):
    """Compare with a ratio of rounded figures."""
    return pytest.approx(ratio, rel=0.2, abs=0.02)


def assert_ratios(header, rows, ratio):
    """Assert that the ratios fit the figures, and that magvit2-pytorch is in the rows of single frames only."""
    assert header[1:3] == ["telecine", "baseline"]
    for title, telecine, baseline, to_baseline, other, to_other in rows:
        assert factor(to_baseline) == about(ratio(float(telecine), float(baseline)))
        if title in FRAMES and HAS_MAGVIT2:
            assert factor(to_other) == about(ratio(float(telecine), float(other)))
        else:
            assert other == to_other == "n/a"


@pytest.mark.slow
def test_times(run_here, tables_in):
    text = run_here("objective.py", "--smoke", "--configs", "1,16,4,2", "--only", "time")
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## dim 1, 16 px, 4 frames, batch 2"
    ]
    (times,) = tables_in(text)
    assert times[0][3:] == ["baseline / telecine", "magvit2-pytorch", "magvit2-pytorch / telecine"]
    assert [title for title, *_ in times[1]] == [*VIDEO, *FRAMES, LAZY_PENALTY]
    assert_ratios(*times, ratio=lambda telecine, other: other / telecine)
    by_title = {title: cells for title, *cells in times[1]}
    lazy, plain, with_penalty = (
        float(by_title[title][0]) for title in (LAZY_PENALTY, "update", "update, penalty")
    )
    assert lazy == pytest.approx((15 * plain + with_penalty) / 16, rel=0.02)
    assert by_title[LAZY_PENALTY][1] == by_title["update, penalty"][1]


def test_a_size_that_is_none(run_here):
    error = run_here("objective.py", "--configs", "1,16", returns=2)
    assert "must be dim,size,frames,batch, but got '1,16'" in error
