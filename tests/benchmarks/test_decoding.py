"""The table of how quickly clips are read is printed, and complete."""

import re


def test_the_table(run_here):
    title, _, header, _, *lines = run_here("decoding.py", "--smoke").splitlines()
    assert title.startswith("2 frames of 16 px, one thread, PyAV ")
    assert header == "| video | file | tar file | memory |"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0].split(",")[0] for row in rows] == ["carphone_pristine.mp4", "carphone_pristine-short.mp4"]
    assert all(re.fullmatch(r".*, \d+x\d+, a keyframe every \d+ frames", name) for name, *_ in rows)
    assert all(len(cells) == 3 and all(float(cell) > 0 for cell in cells) for _, *cells in rows)
