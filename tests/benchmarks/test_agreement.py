"""The table of the metrics' agreement is printed, and they agree."""

# scikit-image mirrors borders in another way, which at this size is a tenth of the pixels.
LIMITS = {"scikit-image (other borders)": 5e-3}


def test_the_metrics_agree_with_other_implementations(run_here):
    text = run_here("agreement.py", "--smoke")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    assert len(lines) == 11
    for metric, value, other, difference in lines:
        assert float(value) != 0, metric
        assert float(difference) < LIMITS.get(other, 1e-3), metric
