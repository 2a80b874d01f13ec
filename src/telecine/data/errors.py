"""What is raised when the data cannot be used."""

from __future__ import annotations


class DataError(ValueError):
    """The data cannot be used: nothing there, nothing decodable, nothing long enough."""

    def __str__(self) -> str:
        # A loader's worker sends its error as the text of a traceback, at the end of which stands what was meant.
        text = super().__str__()
        return text.strip().rpartition(f"{type(self).__name__}: ")[2] if "Original Traceback" in text else text


class DecodeError(DataError):
    """One file, or one place in it, cannot be decoded; the others may be fine."""
