import re

import pytest


@pytest.mark.slow
def test_table(run_here, tables_in):
    options = ("--codecs", "h264", "--heights", "36", "--gops", "6", "--frames", "20", "--clips", "1", "--rounds", "1")
    ((header, rows),) = tables_in(run_here("reading.py", *options))
    assert header[:2] == ["video", "telecine"]
    ((name, *figures),) = rows
    assert re.fullmatch(r"h264, 36p, a keyframe every [567]", name)
    assert all(float(figure) > 0 for figure in figures)
