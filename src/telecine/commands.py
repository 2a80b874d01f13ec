"""The commands of `telecine` and what they do, without the libraries that running one needs."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from itertools import pairwise

from telecine import __version__

USER_ERROR = 2
INTERRUPTED = 130

SUMMARIES = {
    "train": "Train a video autoencoder. Run the same command again to resume from the newest checkpoint.",
    "distill": "Train a small decoder, or autoencoder, for the latents of another one; otherwise as `train`.",
    "plan": "Print the memory, operations and time of a training run, and what fits a device; nothing is trained.",
    "evaluate": "Measure the reconstructions of an autoencoder, or given videos; or compare two evaluations.",
    "reconstruct": "Encode and decode a video with an autoencoder, and write the result.",
    "latents": "Measure the latent spaces of autoencoders (channels, spectrum, equivariance, noise, drift), on a page.",
    "report": "Write a page about runs: their clips, curves, settings and warnings. It needs no network.",
    "checkpoint": "Verify that the files of a run's checkpoints are those that were written.",
    "weights": "Download, verify or list the frozen networks of LPIPS.",
}


def answer(typed: Sequence[str]) -> int | None:
    """Answer `--help`, `--version` and what names no command. Return the exit code, or None for a command."""
    if typed and typed[0] in SUMMARIES:
        return None
    parser = argparse.ArgumentParser(
        prog="telecine",
        description="Train, evaluate and use video autoencoders.",
        epilog="`telecine COMMAND --help` explains a command and its settings.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in SUMMARIES.items():
        commands.add_parser(name, help=summary)
    if {"-h", "--help", "--version"} & set(typed):
        parser.parse_args(typed)  # prints, and exits
    if not typed:
        return fail(f"a command is missing. Use one of: {', '.join(SUMMARIES)}.")
    similar = difflib.get_close_matches(typed[0], SUMMARIES, n=1, cutoff=0.5)
    remedy = f"Did you mean `telecine {similar[0]}`?" if similar else f"Use one of: {', '.join(SUMMARIES)}."
    return fail(f"`{typed[0]}` is not a command. {remedy}")


def typed_values(option: str, arguments: Sequence[str]) -> list[str]:
    """Return the values of an option on the command line. Those in a settings file are not among them."""
    apart = [value for name, value in pairwise(arguments) if name == option]
    return apart + [argument.removeprefix(f"{option}=") for argument in arguments if argument.startswith(f"{option}=")]


def fail(message: str) -> int:
    """Print one error on standard error and return its exit code."""
    print(f"telecine: error: {printable(message)}", file=sys.stderr)
    return USER_ERROR


def printable(text: str) -> str:
    """Return a text with control characters, halves of surrogate pairs and the like as escapes, such as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
