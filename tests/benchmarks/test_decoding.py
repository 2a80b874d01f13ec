import re

import pytest


@pytest.mark.slow
def test_table(run_here, tables_in):
    text = run_here("decoding.py", "--smoke")
    assert text.startswith("2 frames of 16 px, one thread, PyAV ")
    ((header, rows),) = tables_in(text)
    assert header == ["video", "file", "tar file", "memory"]
    assert [name.split(",")[0] for name, *_ in rows] == ["carphone_pristine.mp4", "carphone_pristine-short.mp4"]
    for name, *speeds in rows:
        assert re.fullmatch(r".*, \d+x\d+, a keyframe every \d+ frames", name)
        assert all(float(speed) > 0 for speed in speeds)
