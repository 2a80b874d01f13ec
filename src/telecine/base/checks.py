"""Checks of arguments, the texts of their errors, and the errors that end a run.

A check takes the name and the value of an argument, returns the value, or raises a `ValueError` that names the
contract, the value and a remedy. `remedy` replaces the general remedy where a caller knows a better one.
"""

import difflib
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

T = TypeVar("T")


class ArgumentError(ValueError):
    """An argument or a setting is wrong.

    Args:
        text: What is wrong with it, such as "must be even, but got 3. Add one."; the message is this after the name.
        name: The argument, a setting by its dotted name, or a file; empty if the text is the whole message.
    """

    def __init__(self, text: str, name: str = "") -> None:
        super().__init__(f"{_quoted(name)} {text}" if name else text)
        self.text = text
        self.name = name


_NUM_LISTED = 3  # texts that `first_few` returns
# What is used elsewhere and not here, with what to use instead.
_INSTEAD = {
    "fp8": "Use bf16: fp8 is for large matrix products, and an autoencoder consists of convolutions.",
    "resume_from_checkpoint": "The same command resumes the run in its `output_dir`.",
}
# Names that settings and values have elsewhere, with their names here.
_OTHER_NAMES = {
    "bf16": "mixed_precision",
    "checkpoint_every": "save_every",
    "checkpointing_steps": "save_every",
    "epochs": "steps",
    "fp16": "mixed_precision",
    "gpu": "cuda",
    "learning_rate": "optimizer.lr",
    "max_train_steps": "steps",
    "lpips_weight": "objective.perceptual_weight",
    "recipe": "config",
    "save_steps": "save_every",
    "wandb": "trackers",
}


def describe(value: object) -> str:
    """Describe a value for an error: a tensor by dtype, shape and device, anything else by its `repr` and type."""
    # Takes a second to import; without it, nothing is a tensor.
    torch: Any = sys.modules.get("torch")
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
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def argument_error(
    name: str, contract: str, got: object, remedy: str = "", error: type[Exception] = ArgumentError
) -> Exception:
    """Build the error of an invalid argument.

    Args:
        name: The argument, or a file. Words that begin with "the " get no backticks.
        contract: What it must be.
        got: What it is. A `str` is printed as it is; pass `describe(value)` where the value itself may be a `str`.
        remedy: What to do, as a sentence.
        error: The class of the error. An `ArgumentError` keeps the name.
    """
    if not isinstance(got, str):
        got = describe(got)
    text = f"must be {contract}, but got {got}. {remedy}".rstrip()
    if issubclass(error, ArgumentError):
        return error(text, name)
    return error(f"{_quoted(name)} {text}")


def _quoted(name: str) -> str:
    """Return a name in backticks; words such as "the model" stay as they are."""
    return name if name.startswith("the ") else f"`{name}`"


def in_millions(number: int) -> str:
    """Return a number of parameters as "1.38 M" or, below ten thousand, as it is."""
    return str(number) if number < 10_000 else f"{number / 1e6:.2f} M"


def nearest(word: str, candidates: Iterable[str], *, prefix: str = "") -> str:
    """Return "Did you mean `...`?" for a mistyped word, or an empty text if no candidate is near.

    The nearest candidate is the name that telecine has for the word, or the shortest one that contains all parts of it,
    or the one with the most similar spelling. A few words have another sentence.

    Args:
        word: What was typed. Dashes and underscores are the same.
        candidates: The words that exist.
        prefix: What stands before the candidate in the sentence.
    """
    name = word.lstrip("-").replace("-", "_")
    if name in _INSTEAD:
        return _INSTEAD[name]
    words = {candidate.lstrip("-"): candidate for candidate in candidates}
    match = _OTHER_NAMES.get(name.rpartition(".")[2])
    if match not in words:
        parts = _parts(name)
        with_parts = [candidate for candidate in words if parts <= _parts(candidate)]
        alike = difflib.get_close_matches(name, words, n=1)
        match = min(with_parts, key=len) if with_parts else next(iter(alike), None)
    return "" if match is None else f"Did you mean `{prefix}{words[match]}`?"


def _parts(name: str) -> set[str]:
    return set(name.replace(".", "_").split("_"))


def suggestion(word: object, candidates: Iterable[str]) -> str:
    """Return a sentence that suggests the candidate nearest to `word`, or that lists all candidates."""
    candidates = list(candidates)
    return nearest(str(word), candidates) or f"Use one of: {', '.join(candidates)}."


def check_type(name: str, value: object, kind: type, remedy: str) -> None:
    """Check that an argument is of a class.

    Args:
        name: The argument.
        value: Its value.
        kind: The class.
        remedy: What to do, as a sentence.

    Raises:
        ValueError: It is of another class.
    """
    if not isinstance(value, kind):
        raise argument_error(name, f"of the class `{kind.__name__}`", describe(value), remedy)


def check_count(name: str, value: object, *, at_least: int = 1, remedy: str = "") -> int:
    """Return an int that is large enough.

    Args:
        name: The argument.
        value: Its value.
        at_least: The smallest value.
        remedy: What to do, as a sentence.

    Raises:
        ValueError: The value is smaller, or no int; a bool is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        contract = "a positive int" if at_least == 1 else f"an int of at least {at_least}"
        raise argument_error(name, contract, describe(value), remedy or f"Use {at_least} or more.")
    return value


def check_positive(
    name: str, value: object, *, remedy: str = "Leave it out for the default."
) -> float:
    """Return a finite number above 0 as a float.

    Args:
        name: The argument.
        value: Its value.
        remedy: What to do, as a sentence.

    Raises:
        ValueError: The value is another number, or no number; a bool is none.
    """
    if not _is_number(value) or not 0 < value < math.inf:
        raise argument_error(name, "a finite number above 0", describe(value), remedy)
    return float(value)


def check_fraction(name: str, value: object, *, remedy: str = "Use 0 for no averaging.") -> float:
    """Return a number from 0 to below 1, such as the decay of an average, as a float.

    Args:
        name: The argument.
        value: Its value.
        remedy: What to do, as a sentence.

    Raises:
        ValueError: The value is another number, or no number; a bool is none.
    """
    if not _is_number(value) or not 0 <= value < 1:
        raise argument_error(name, "a number from 0 to below 1", describe(value), remedy)
    return float(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_choice(name: str, value: object, choices: Iterable[T], *, remedy: str = "") -> T:
    """Return the value if it is one of the choices.

    Args:
        name: The argument.
        value: Its value.
        choices: The values that it may have.
        remedy: What to do, as a sentence; by default the nearest choice.

    Raises:
        ValueError: It is none of them.
    """
    choices = list(choices)
    for choice in choices:
        if value == choice:
            return choice
    names = ", ".join(repr(choice) for choice in choices)
    remedy = remedy or suggestion(value, [str(choice) for choice in choices])
    raise argument_error(name, f"one of {names}", describe(value), remedy)


class SettingsError(ArgumentError):
    """Settings have errors, each with the dotted name of its setting. Its message is the first one's."""

    def __init__(self, errors: Sequence[ArgumentError]) -> None:
        super().__init__(errors[0].text, errors[0].name)
        self.errors = errors


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
    parts = []
    if num_videos:
        parts.append(count(num_videos, "video"))
    if num_images:
        parts.append(count(num_images, "image"))
    return " and ".join(parts)


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def first_few(texts: Sequence[str]) -> str:
    """Return the first few texts, and the number of the others."""
    shown = "; ".join(texts[:_NUM_LISTED])
    num_more = len(texts) - _NUM_LISTED
    return f"{shown}; and {num_more} more" if num_more > 0 else shown
