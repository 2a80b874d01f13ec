"""Errors for unsupported sizes contain the nearest accepted one."""

import pytest

from telecine.models.clip_sizes import check_multiple


@pytest.mark.parametrize(
    ("value", "settings", "accepted", "nearest"),
    [
        (16, {"step": 4, "offset": 1}, r"4k\+1", 17),
        (14, {"step": 4, "offset": 1}, r"4k\+1", 13),
        (-3, {"step": 4, "offset": 1}, r"4k\+1", 1),
        (20, {"step": 8}, "a multiple of 8", 24),
        (0, {"step": 8}, "a multiple of 8", 8),
        (8, {"step": 8, "smallest": 16}, "a multiple of 8", 16),
        (9, {"step": 17, "offset": 5, "smallest": 22}, r"17k\+5", 22),
    ],
)
def test_the_error_contains_the_nearest_accepted_value(value, settings, accepted, nearest):
    message = f"`size` must be {accepted} for this model, but got {value}. Use {nearest}, the nearest accepted value."
    with pytest.raises(ValueError, match=message):
        check_multiple("size", value, **settings)
    check_multiple("size", nearest, **settings)
