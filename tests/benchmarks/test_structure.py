import pytest

CODE = '''"""Docstring,
of two lines."""
from typing import Any

LIMIT = 3


# A comment.
def short(x: Any) -> Any:
    """Docstring."""
    return x


class VideoAutoencoderLoss:
    @property
    def long(self) -> int:
        """Docstring."""

        x: Any = 1
        return x

    def __init__(self, a, b=1, *, c=LIMIT, d=None):
        self.x = a
'''
CONFIG = """
class TrainConfig:
    b: float = 1.0
    c: int = 3
    d: int = 5
    e: int = 6
"""


@pytest.fixture
def structure(benchmark_module):
    return benchmark_module("structure")


def test_figures(structure, tmp_path):
    for name, text in {structure.OBJECTIVE: CODE, structure.TRAIN_CONFIG: CONFIG}.items():
        path = tmp_path / "telecine" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert [value for _, value in structure.figures(tmp_path)] == [
        23,  # lines of the objective
        4,  # arguments
        3,  # repeated settings: b, c, d
        1,  # with another default: d
        2,  # files
        11 + 5,  # lines of code
        3,  # functions
        2,  # short ones
        2,  # lines with `Any`
    ]


@pytest.mark.slow
def test_figures_of_this_checkout(run_here, tables_in):
    ((header, rows),) = tables_in(run_here("structure.py"))
    assert header == ["figure", "value"]
    figures = {name: int(value) for name, value in rows}
    assert figures["lines of `objective/video_autoencoder.py`"] <= 300
    assert figures["constructor arguments of `VideoAutoencoderLoss`"] <= 20
    assert figures["of these, with another default"] == 0
