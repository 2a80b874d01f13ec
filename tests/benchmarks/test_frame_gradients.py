"""The table of the frames' shares is printed, and complete."""

import pytest


def test_the_table(run_here):
    header, rule, *lines = run_here("frame_gradients.py", "--smoke").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rule.count("|") == header.count("|") == 5
    assert [row[1] for row in rows] == ["9"] * 5 + ["17"] * 5
    names = [row[0] for row in rows]
    assert names[:5] == names[5:]
    assert len(set(names)) == 5
    for _, frames, ratio, shares in rows:
        values = [float(share) for share in shares.split()]
        assert len(values) == int(frames)
        assert sum(values) / len(values) == pytest.approx(1, abs=0.01)
        others = sum(values[1:]) / (len(values) - 1)
        assert float(ratio) == pytest.approx(values[0] / others, rel=0.05)
