"""Checks of arguments, the texts of their errors, and the errors that end a run.

A check takes the name and the value of an argument, returns the value, or raises a `ValueError` that names the
contract, the value and a remedy. `remedy` replaces the general remedy where a caller knows a better one.
"""

import difflib
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
# What is used elsewhere and not here, with what to use instead.
_INSTEAD = {"fp8": "Use bf16: fp8 is for large matrix products, and an autoencoder consists of convolutions."}
# Names that settings and values have elsewhere, with their names here.
_ELSEWHERE = json.loads(Path(__file__).with_name("elsewhere.json").read_text(encoding="utf-8"))


def describe(value: object) -> str:
    """Describe a value for an error: a tensor by dtype, shape and device, anything else by its `repr` and type."""
    torch: Any = sys.modules.get("torch")  # takes a second to import; without it, nothing is a tensor
    if torch is not None and isinstance(value, torch.Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    if isinstance(value, int) and value.bit_length() > 300:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to write integers of thousands of digits
    return f"{shorten(repr(value))} ({type(value).__name__})"


def shorten(text: str) -> str:
    """Return a text for an error, cut after 80 characters."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def printable(text: str) -> str:
    """Return a text with control characters, halves of surrogate pairs and the like as escapes, such as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def argument_error(
    name: str, contract: str, got: object, remedy: str, error: type[Exception] = ValueError
) -> Exception:
    """Build the error of an invalid argument: the contract, the value, and the remedy.

    A `str` as `got` is printed as it is; pass `describe(value)` where the value itself may be a `str`.
    """
    got = got if isinstance(got, str) else describe(got)
    return error(f"`{name}` must be {contract}, but got {got}. {remedy}")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "Did you mean `...`?" with the known word that has all parts of `word` or is spelled alike, or ""."""
    if word in _INSTEAD:
        return _INSTEAD[word]
    name, names = word.lstrip("-").replace("-", "_"), {each.lstrip("-"): each for each in known}
    parts = {each: {*each.replace(".", "_").split("_")} for each in (name, *names)}
    matches = sorted((each for each in names if parts[name] <= parts[each]), key=len)
    matches = matches or difflib.get_close_matches(name, names, n=1)
    matches = [here] if (here := _ELSEWHERE.get(name.rpartition(".")[2])) in names else matches
    return f"Did you mean `{names[matches[0]]}`?" if matches else ""


def suggestion(word: object, known: Iterable[str]) -> str:
    """Return a sentence that suggests the known word nearest to `word`, or that lists all known words."""
    known = list(known)
    return nearest(str(word), known) or f"Use one of: {', '.join(known)}."


def check_type(name: str, value: object, kind: type, remedy: str) -> None:
    """Raise a `ValueError` unless `value` is a `kind`."""
    if not isinstance(value, kind):
        raise argument_error(name, f"of the class `{kind.__name__}`", describe(value), remedy)


def check_count(name: str, value: object, *, at_least: int = 1, remedy: str = "") -> int:
    """Return an int that is at least `at_least`; raise a `ValueError` for anything else, bools included."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        contract = "a positive int" if at_least == 1 else f"an int of at least {at_least}"
        raise argument_error(name, contract, describe(value), remedy or f"Use {at_least} or more.")
    return value


def check_step(name: str, value: object, *, remedy: str = "Use 0 to start at the first step.") -> int:
    """Return a whole number >= 0 as an int; a float such as 1e4 is accepted."""
    return int(_number(name, value, "a whole number of steps >= 0", lambda n: 0 <= n < math.inf and n % 1 == 0, remedy))


def check_positive(name: str, value: object, *, remedy: str = "Leave it out for the default.") -> float:
    """Return a finite number above 0 as a float; raise a `ValueError` for anything else."""
    return float(_number(name, value, "a finite number above 0", lambda n: 0 < n < math.inf, remedy))


def check_weight(name: str, value: object, *, remedy: str = "Use 0 to turn the term off.") -> float:
    """Return a finite number >= 0 as a float; raise a `ValueError` for anything else."""
    return float(_number(name, value, "a finite number >= 0", lambda n: 0 <= n < math.inf, remedy))


def check_fraction(name: str, value: object, *, remedy: str = "Use 0 for no averaging.") -> float:
    """Return a number from 0 to below 1, such as the decay of an average, as a float."""
    return float(_number(name, value, "a number from 0 to below 1", lambda n: 0 <= n < 1, remedy))


def check_choice(name: str, value: object, choices: Iterable[T], *, remedy: str = "") -> T:
    """Return `value` if it is one of `choices`; the error suggests the nearest of them."""
    choices = list(choices)
    for choice in choices:
        if value == choice:
            return choice
    known = ", ".join(map(repr, choices))
    raise argument_error(name, f"one of {known}", describe(value), remedy or suggestion(value, map(str, choices)))


def _number(name: str, value: object, contract: str, accepts: Callable[[float], bool], remedy: str) -> int | float:
    """Return an int or a float that `accepts` accepts; raise a `ValueError` for anything else, bools included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not accepts(value):
        raise argument_error(name, contract, describe(value), remedy)
    return value


class SettingsError(ValueError):
    """Settings have mistakes: a sentence for each, which begins with the setting's name. Its text is the first."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__(mistakes[0])
        self.mistakes = mistakes


class OutputError(TypeError):
    """A module or a function of the user's returns something else than it must."""


class TrainingError(RuntimeError):
    """Training cannot go on: it diverged, or the device is out of memory. The last checkpoint is complete."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run can be resumed
    """A signal interrupted the run. `saved` is the folder of the checkpoint, None before the first update."""

    def __init__(self, saved: Path | None) -> None:
        super().__init__(saved)
        self.saved = saved

    def __str__(self) -> str:
        if self.saved is None:
            return "stopped before the first update; run the same command again to start"
        return f"stopped; saved {self.saved}. Run the same command again to resume."


def count_files(num_videos: int, num_images: int) -> str:
    """Return numbers of files as "3 videos", "1 image" or "3 videos and 1 image"."""
    counts = ((num_videos, "video"), (num_images, "image"))
    return " and ".join(count(number, kind) for number, kind in counts if number)


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
