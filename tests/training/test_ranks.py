import io

import pytest
from rich.console import Console

from telecine.training.ranks import is_left_alone
from telecine.training.trainer import Trainer


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, True),
        ({"ACCELERATE_USE_CPU": "True"}, False),  # one process was asked for
        ({"ACCELERATE_USE_CPU": "False", "MASTER_ADDR": "127.0.0.1"}, False),
        ({"MASTER_ADDR": "127.0.0.1"}, False),
    ],
)
def test_what_accelerate_leaves_in_the_environment(monkeypatch, environment, expected):
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_left_alone() == expected


def test_a_run_that_was_left_alone_says_so(tiny, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    said = io.StringIO()
    Trainer(tiny(), Console(file=said, width=200)).close()
    assert "starts one process, however many it is asked for; `torchrun` starts several" in said.getvalue()
