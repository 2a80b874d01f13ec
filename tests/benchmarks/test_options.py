"""The table of what each option costs is printed, and complete."""

import re


def test_the_table(run_here):
    title, _, *lines = run_here("options.py", "--smoke").splitlines()
    assert title.startswith("dim 1, 32 px, 4 frames, batch 1; ")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[2][0] == "reference"
    assert all(re.fullmatch(r"\d+\.\d+ s", cell) for cell in rows[2][1:])
    assert len({name for name, *_ in rows[3:]}) == len(rows[3:]) == 31
    assert all(re.fullmatch(r"\d+\.\d+ x|-", cell) for _, *cells in rows[3:] for cell in cells)
    assert rows[-1][2] == "-"
