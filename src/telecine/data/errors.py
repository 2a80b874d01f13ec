"""What is raised when the data cannot be used."""

from __future__ import annotations


class DataError(ValueError):
    """The data cannot be used: nothing there, nothing decodable, nothing long enough."""


class DecodeError(DataError):
    """One file, or one place in it, cannot be decoded; the others may be fine."""
