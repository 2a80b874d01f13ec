"""The command line from what is typed to an exit code: 0, 2 after a user error, 130 after an interruption."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence

from telecine import __version__
from telecine.base.checks import Interrupted, TrainingError, printable
from telecine.base.imports import how_to_install
from telecine.base.terminal import escape_logs
from telecine.cli.commands import console
from telecine.cli.parser import COMMANDS, help_of, parse
from telecine.settings.parse import ENVIRONMENT
from telecine.settings.validate import SettingsError

USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    typed = sys.argv[1:] if arguments is None else [*arguments]
    try:
        if not typed or typed[0] not in COMMANDS:
            return _without_command(typed)
        topics = [word.partition("=")[2] for word in typed if word == "-h" or word.partition("=")[0] == "--help"]
        if topics:
            print(help_of(typed[0], topics[0], typed[1:]), end="")
        else:
            _run(typed[0], typed[1:])
    except SettingsError as error:
        return _fail(*error.mistakes, typed=typed)
    except (ValueError, OSError, TrainingError) as error:
        return _fail(error, typed=typed)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "telecine":
            raise
        is_missing = isinstance(error, ModuleNotFoundError) and "pip install" not in str(error)
        return _fail(f"{error}. {how_to_install('train')}" if is_missing else error)
    except Interrupted as interruption:
        if _is_first_process():
            console.print(str(interruption), soft_wrap=True)
        return INTERRUPTED
    except KeyboardInterrupt:
        console.print("interrupted")
        return INTERRUPTED
    return 0


def _run(name: str, typed: Sequence[str]) -> None:
    arguments, files = parse(name, typed)
    escape_logs()
    if files == ["demo"] and not any(word.startswith("--config") for word in typed):
        console.print("without --data and --config: the demo, on four sample videos")
    given = [f"{key}={text}" for key, text in sorted(os.environ.items()) if key.startswith(ENVIRONMENT)]
    if given and COMMANDS[name].trains and _is_first_process():
        console.print(f"settings of the environment: {', '.join(given)}", soft_wrap=True)
    COMMANDS[name].run(**arguments)


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _without_command(typed: Sequence[str]) -> int:
    """Answer `--help`, `--version`, and a mistyped command."""
    parser = argparse.ArgumentParser(
        prog="telecine",
        description="Train, evaluate and use video autoencoders.",
        epilog="`telecine COMMAND --help` explains a command and its settings.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.summary)
    if {"-h", "--help", "--version"} & {*typed}:
        parser.parse_args(typed)  # prints, and exits
    every = f"Use one of: {', '.join(COMMANDS)}."
    if not typed:
        return _fail(f"a command is missing. {every}")
    similar = difflib.get_close_matches(typed[0], COMMANDS, n=1, cutoff=0.5)
    return _fail(f"`{typed[0]}` is not a command. {f'Did you mean `telecine {similar[0]}`?' if similar else every}")


def _fail(*errors: Exception | str, typed: Sequence[str] = ()) -> int:
    """Print errors on standard error, a line for each, and return their exit code. Settings are named as typed."""
    options = {word.partition("=")[0][2:] for word in typed if word.startswith("--")}
    short = {"output": "-o"} if "-o" in typed else {}
    for error in errors:
        words = " ".join(str(error).split()).split("`")  # every other one is code, the first the setting
        names = words[1::2]
        as_typed = ["--" * any(f"{name}.".startswith(f"{each}.") for each in options) + name for name in names]
        if names and (as_typed[0] != names[0] or names[0] in short):
            words[1::2] = [short.get(name, name) for name in as_typed]
        print(f"telecine: error: {printable('`'.join(words))}", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
