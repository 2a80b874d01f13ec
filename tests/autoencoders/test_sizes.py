"""Refused sizes name the nearest accepted one."""

import pytest

from telecine.autoencoders.sizes import ceil_div, check_multiple, progression


@pytest.mark.parametrize(("value", "by", "result"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (-1, 4, 0)])
def test_division_rounds_up(value, by, result):
    assert ceil_div(value, by) == result


@pytest.mark.parametrize(
    ("value", "settings", "nearest"),
    [
        (16, {"step": 4, "offset": 1}, 17),
        (14, {"step": 4, "offset": 1}, 13),
        (-3, {"step": 4, "offset": 1}, 1),
        (20, {"step": 8}, 24),
        (0, {"step": 8}, 8),
        (8, {"step": 8, "smallest": 16}, 16),
        (9, {"step": 17, "offset": 5, "smallest": 22}, 22),
    ],
)
def test_the_nearest_is_named(value, settings, nearest):
    rule = progression(settings["step"], settings.get("offset", 0)).replace("+", r"\+")
    says = f"`size` must be {rule}, but got {value}. Give it {nearest} things, not {value}: this model needs {rule}"
    with pytest.raises(ValueError, match=says):
        check_multiple("size", value, "things", **settings)
    check_multiple("size", nearest, "things", **settings)
