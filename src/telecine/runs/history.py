"""The lines that a run records while it trains: its logged values, and the warnings about them."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError

from telecine.base.checks import argument_error, describe
from telecine.base.files import open_regular, write_text

_FRAME_GRADIENT = "train/frame_gradient_"
# The file of a run may be anyone's: the most bytes that are read of a line, and of a file into memory.
_MAX_LINE, _MAX_BYTES = 2**20, 2**30
_adapter: Any = cache(TypeAdapter)
T = TypeVar("T")
Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]


@dataclass(frozen=True)
class TrainingWarning:
    """A line of `health.jsonl`: one warning of a run."""

    step: Count
    rule: str
    message: str
    remedy: str


class _JSONLines:
    """A file with a JSON object in each line, which grows while a run trains; it need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, value: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")

    def read(self) -> list[dict[str, Any]]:
        if self.path.exists() and (size := self.path.stat().st_size) > _MAX_BYTES:
            contract = f"a file of at most {_MAX_BYTES} bytes"
            raise argument_error(str(self.path), contract, f"{size} bytes", "Check the path.")
        return list(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the objects, with one in memory; see `read`."""
        return (self._parse(number, line) for number, line in enumerate(self._lines(), 1) if line.strip())

    def _lines(self, start: int = 0) -> Iterator[bytes]:
        """Yield the lines from a byte on, of longer ones only `_MAX_LINE` bytes."""
        if not self.path.exists():
            return
        with open_regular(self.path, follow=False) as file:
            file.seek(start)
            while line := file.readline(_MAX_LINE):
                if not line.endswith(b"\n") and len(line) < _MAX_LINE:
                    return  # the writing of the last one was interrupted
                yield line
                while line and not line.endswith(b"\n"):
                    line = file.readline(_MAX_LINE)

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        """Return the object in a line; raise a `ValueError` for anything else: the file may be anyone's."""
        contract, value = "a JSON object", None
        try:
            value = json.loads(line.decode("utf-8")) if len(line) < _MAX_LINE else line
            got = describe(value)
        except (ValueError, RecursionError) as error:
            got = f"invalid JSON ({error})"
        if not isinstance(value, dict):
            raise argument_error(f"{self.path}, line {number}", contract, got, "Remove the line.")
        return value

    def write(self, values: Iterable[Mapping[str, Any]]) -> None:
        write_text(self.path, "".join(json.dumps(value) + "\n" for value in values))

    def _with_step(self) -> Iterator[dict[str, Any] | None]:
        """Yield the object of each line, None for one that a power failure has damaged."""
        for number, line in enumerate(self._lines(), 1):
            try:
                record = self._parse(number, line)
            except ValueError:
                record = {}
            yield record if _is_step(record.get("step")) else None

    def last_step(self) -> int:
        """Return the last step, 0 without one."""
        return max((record["step"] for record in self._with_step() if record), default=0)

    def cut(self, step: int) -> tuple[int, int]:
        """Keep the lines up to a step, and return the number of these and of dropped lines, which cannot be read."""
        records = [*self._with_step()]
        kept = [record for record in records if record and record["step"] <= step]
        self.write(kept)
        return len(kept), records.count(None)


class Warnings(_JSONLines):
    """The warnings of a run, `health.jsonl`. An empty file means that nothing was found."""

    def all(self) -> list[TrainingWarning] | None:
        """Return the warnings, or None without a file; raise a `ValueError` if a line is not a warning."""
        texts = str(self.path), "lines with step, rule, message and remedy", "Remove the line."
        return [as_dataclass(TrainingWarning, each, *texts) for each in self.read()] if self.path.exists() else None


class History(_JSONLines):
    """The records of a run: `step`, and the logged values by name; the oldest first."""

    file = "metrics.jsonl"
    # What was read before: where it ended, the number of lines, the last one, and the validations.
    _end, _num_lines, _last = 0, 0, b""
    _validations: tuple[dict[str, float], ...] = ()

    def validations(self) -> list[dict[str, float]]:
        """Return the records of validations. Only lines that were added since the last call are read."""
        if next(self._lines(self._end - len(self._last)), b"") != self._last:  # the run went back, and the file was cut
            self._end, self._num_lines, self._last, self._validations = 0, 0, b"", ()
        for line in self._lines(self._end):
            self._end, self._num_lines, self._last = self._end + len(line), self._num_lines + 1, line
            if line.strip():
                self._validations += tuple(validations([self._parse(self._num_lines, line)]))
        return list(self._validations)

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        record = super()._parse(number, line)
        name = next((name for name, value in record.items() if not _is_number(value)), "step")
        if name != "step" or not _is_step(record.get("step")):
            contract, got = "numbers by name, with a whole `step`", f"{describe(record.get(name))} as {name!r}"
            raise argument_error(f"{self.path}, line {number}", contract, got, "Remove the line.")
        return record

    @staticmethod
    def gradient_of_frame(frame: int) -> str:
        """Return the name of the logged gradient of a frame."""
        return f"{_FRAME_GRADIENT}{frame:03d}"

    @staticmethod
    def frame_of(name: str) -> int | None:
        """Return the frame of which a logged value is the gradient; None for other values."""
        match = re.fullmatch(rf"{_FRAME_GRADIENT}(\d{{1,9}})", name)
        return int(match[1]) if match else None


def as_dataclass(kind: type[T], values: Mapping[str, Any], name: str, contract: str, remedy: str) -> T:
    """Return plain values as a dataclass; raise a `ValueError` if a type or a range is wrong."""
    try:
        return cast(T, _adapter(kind).validate_python(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        value = "no value" if first["type"] == "missing" else describe(first["input"])
        got = f"{value} as `{'.'.join(map(str, first['loc']))}` ({first['msg'][:1].lower()}{first['msg'][1:]})"
        raise argument_error(name, contract, got, remedy) from None


def validations(records: Iterable[dict[str, float]]) -> list[dict[str, float]]:
    """Return those records that are of validations."""
    return [record for record in records if "val/psnr" in record]


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and value.bit_length() < 1024)  # what fits into a float


def _is_step(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53
