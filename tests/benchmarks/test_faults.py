import os

import pytest


@pytest.mark.slow
def test_every_promise_is_kept(run_here, tables_in, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # takes most of the time, and no power fails here
    ((header, rows),) = tables_in(run_here("faults.py", "--kills", "0"))
    assert header == ["promise", "tried", "held"]
    tried = [int(row[1]) for row in rows]
    assert len(tried) == 3
    assert min(tried) >= 7
    assert tried[0] > 50, "operations on files"
    assert [int(row[2]) for row in rows] == tried
