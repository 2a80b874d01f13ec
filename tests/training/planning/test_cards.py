import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from telecine.training.planning.capacity import _CARDS, _LAUNCH_SECONDS, _seconds_on, _table_of_cards
from telecine.training.planning.update import UpdatePlan

PLAN = UpdatePlan({}, {}, {}, {"a": 989 * 10**10}, {"a": 100, "b": 400}, {"a": 335 * 10**8, "b": 67 * 10**8}, 0)


def test_a_part_takes_its_arithmetic_or_its_memory():
    seconds = _seconds_on("H100", PLAN, is_half=True)
    assert seconds["launches"] == pytest.approx(500 * _LAUNCH_SECONDS)
    assert seconds["arithmetic"] == pytest.approx(0.01)
    assert seconds["memory"] == pytest.approx(0.01 + 0.002)
    assert seconds["update"] == pytest.approx(0.01 + 0.002)
    assert _seconds_on("H100", PLAN, is_half=False)["arithmetic"] == pytest.approx(0.01 * 989 / 494)


def test_many_small_operators_are_bound_by_launches():
    small = replace(PLAN, operators={"a": 10_000})
    assert _seconds_on("H100", small, is_half=True)["update"] == pytest.approx(10_000 * _LAUNCH_SECONDS)


def test_the_table_says_what_bounds_an_update():
    console = Console(file=io.StringIO(), width=120)
    console.print(_table_of_cards(PLAN, is_half=True))
    console.print(_table_of_cards(replace(PLAN, operators={"a": 10_000}), is_half=True))
    text = console.file.getvalue()
    assert "500 operators" in text
    assert len(re.findall(r"memory +│$", text, re.MULTILINE)) == 2  # A100 does 312 TFLOP/s with 2 TB/s
    assert len(re.findall(r"arithmetic +│$", text, re.MULTILINE)) == 2
    assert len(re.findall(r"launches +│$", text, re.MULTILINE)) == len(_CARDS)
