"""The lines that a run records while it trains: its logged values, and the warnings about them."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telecine.base.checks import argument_error, describe
from telecine.base.files import named_errors, open_regular, write_text
from telecine.base.plain_values import as_dataclass
from telecine.runs.numbers import NonNegativeInt

logger = logging.getLogger(__name__)

_FRAME_GRADIENT = "train/frame_gradient_"
# Every validation records it, and no other line.
_VALIDATION_METRIC = "val/psnr"
# The file of a run may be anyone's: the most bytes that are read of a line, and of a file into memory.
_MAX_LINE = 2**20
_MAX_BYTES = 2**30


@dataclass(frozen=True)
class TrainingWarning:
    """A line of `health.jsonl`: one warning of a run."""

    step: NonNegativeInt
    rule: str
    message: str
    remedy: str


class _JSONLines:
    """A file with a JSON object in each line, which grows while a run trains; it need not exist.

    Args:
        path: The file.
        check: Called with the file and the line, for errors, and with the object in it. It raises a `ValueError` if the
            object is not of the kind of this file.
    """

    def __init__(
        self, path: Path, check: Callable[[str, Mapping[str, object]], None] | None = None
    ) -> None:
        self.path = path
        self._check = check

    def append(self, value: Mapping[str, Any]) -> None:
        """Add a line."""
        with named_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return the objects of all lines.

        Raises:
            ValueError: A line is no object of the right kind, or the file is too large.
        """
        if self.path.exists():
            size = self.path.stat().st_size
            if size > _MAX_BYTES:
                contract = f"a file of at most {_MAX_BYTES} bytes"
                raise argument_error(str(self.path), contract, f"{size} bytes", "Check the path.")
        return list(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the objects, with one in memory; see `read`."""
        for number, line in enumerate(self._lines(), 1):
            if line.strip():
                yield self._parse(number, line)

    def _lines(self) -> Iterator[bytes]:
        """Yield the lines, of longer ones only `_MAX_LINE` bytes."""
        if not self.path.exists():
            return
        with named_errors(self.path), open_regular(self.path, follow=False) as file:
            line = file.readline(_MAX_LINE)
            while line:
                if not line.endswith(b"\n") and len(line) < _MAX_LINE:
                    return  # the writing of the last one was interrupted
                yield line
                while line and not line.endswith(b"\n"):  # the rest of a long one
                    line = file.readline(_MAX_LINE)
                line = file.readline(_MAX_LINE)

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        """Return the object in a line; raise a `ValueError` for anything else: the file may be anyone's."""
        name = f"{self.path}, line {number}"
        if len(line) == _MAX_LINE:
            raise argument_error(
                name, "a JSON object", f"a line of at least {_MAX_LINE} bytes", "Remove the line."
            )
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise argument_error(
                name, "a JSON object", f"invalid JSON ({error})", "Remove the line."
            ) from None
        if not isinstance(value, dict):
            raise argument_error(name, "a JSON object", describe(value), "Remove the line.")
        if self._check is not None:
            self._check(name, value)
        return value

    def write(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Replace all lines, atomically."""
        write_text(self.path, "".join(json.dumps(value) + "\n" for value in values))

    def _records(self) -> Iterator[dict[str, Any] | None]:
        """Yield the object of each line, None for a line that cannot be read, such as after a power failure."""
        for number, line in enumerate(self._lines(), 1):
            try:
                record = self._parse(number, line)
            except ValueError as error:
                logger.debug("%s", error)
                yield None
                continue
            yield record if _is_step(record.get("step")) else None

    def last_step(self) -> int:
        """Return the last step, 0 without one."""
        return max((record["step"] for record in self._records() if record is not None), default=0)

    def cut(self, step: int) -> tuple[int, int]:
        """Remove the lines after a step, and those that cannot be read.

        Returns:
            The number of lines that are kept, and the number of lines removed because they cannot be read.
        """
        kept = []
        num_dropped = 0
        for record in self._records():
            if record is None:
                num_dropped += 1
            elif record["step"] <= step:
                kept.append(record)
        self.write(kept)
        return len(kept), num_dropped


class Warnings(_JSONLines):
    """The warnings of a run, `health.jsonl`. An empty file means that nothing was found."""

    def all(self) -> list[TrainingWarning] | None:
        """Return the warnings, or None without a file.

        Raises:
            ValueError: A line is not a warning.
        """
        if not self.path.exists():
            return None
        contract = "lines with step, rule, message and remedy"
        return [
            as_dataclass(TrainingWarning, line, str(self.path), contract, "Remove the line.")
            for line in self.read()
        ]


class History(_JSONLines):
    """The records of a run: `step`, and the logged values by name; the oldest first."""

    file = "metrics.jsonl"

    def __init__(self, path: Path) -> None:
        super().__init__(path, _check_record)

    def validations(self) -> list[dict[str, float]]:
        """Return the records of validations. Lines that do not name their metric are not parsed.

        Raises:
            ValueError: Such a line is not a record.
        """
        named = [
            self._parse(number, line)
            for number, line in enumerate(self._lines(), 1)
            if _VALIDATION_METRIC.encode() in line
        ]
        return validation_records(named)

    @staticmethod
    def gradient_of_frame(frame: int) -> str:
        """Return the name of the logged gradient of a frame."""
        return f"{_FRAME_GRADIENT}{frame:03d}"

    @staticmethod
    def frame_of(name: str) -> int | None:
        """Return the frame of which a logged value is the gradient; None for other values."""
        match = re.fullmatch(rf"{_FRAME_GRADIENT}(\d{{1,9}})", name)
        return int(match[1]) if match else None


def validation_records(records: Iterable[dict[str, float]]) -> list[dict[str, float]]:
    """Return the records of validations, each of which has a PSNR of the held-out clips."""
    return [record for record in records if _VALIDATION_METRIC in record]


def _check_record(name: str, value: Mapping[str, object]) -> None:
    """Raise a `ValueError` unless an object is a record of logged values."""
    wrong = [key for key, number in value.items() if not _is_number(number)]
    if not wrong and not _is_step(value.get("step")):
        wrong = ["step"]
    if wrong:
        contract = "numbers by name, with a whole `step`"
        got = f"{describe(value.get(wrong[0]))} as {wrong[0]!r}"
        raise argument_error(name, contract, got, "Remove the line.")


def _is_number(value: object) -> bool:
    # Of whole numbers those that fit into a float.
    return type(value) is float or (type(value) is int and value.bit_length() < 1024)


def _is_step(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53
