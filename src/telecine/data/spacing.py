"""Evenly spaced indices, for a selection that represents the whole."""


def evenly_spaced(total: int, count: int) -> list[int]:
    """Divide the indices from 0 to `total - 1` into `count` equal parts, and return the middle of each."""
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]
