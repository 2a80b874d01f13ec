"""What the command line answers before it imports PyTorch: help, versions, recipes, completions, and mistakes."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import NoReturn

from telecine import __version__
from telecine.cli.commands import COMMANDS, fail


def answer(typed: Sequence[str]) -> int | None:
    """Answer what needs no PyTorch. Return the exit code, or None for any other command.

    Raises:
        ValueError: An argument is wrong, or a settings file cannot be read.
        OSError: A file cannot be read or written.
    """
    if not typed or typed[0] not in COMMANDS:
        return _without_command(typed)
    topics = [word.partition("=")[2] for word in typed if word == "-h" or word.partition("=")[0] == "--help"]
    if topics:
        from telecine.cli.help import help_of  # needs PyYAML, `--version` does not

        print(help_of(typed[0], topics[0], typed[1:]), end="")
    elif typed[0] in WITHOUT_PYTORCH:
        parser = _Parser(prog=f"telecine {typed[0]}", add_help=False, allow_abbrev=False)
        for argument in COMMANDS[typed[0]].arguments:
            parser.add_argument(*argument.names, **argument.extra)
        WITHOUT_PYTORCH[typed[0]](parser.parse_args(typed[1:]))
    else:
        check_names(typed[0], typed[1:])
        return None
    return 0


def check_names(name: str, typed: Sequence[str]) -> None:
    """Refuse an unknown argument before seconds are spent with importing PyTorch.

    Args:
        name: The command.
        typed: Its arguments.

    Raises:
        ValueError: There is no argument of that name.
    """
    from telecine.cli.argument_errors import unknown_argument
    from telecine.cli.settings_source import read_settings

    command = COMMANDS[name]
    settings = list(read_settings(command.settings)) if command.settings is not None else []
    others = ("config", "print_config") if settings else ()  # both are the parser's
    known = {item.name for item in settings} | {*command.options, *others}
    open_ended = tuple(f"{item.name}." for item in settings if not item.is_group)  # a ramp, a dict: the parser knows
    for word in takewhile(lambda word: word != "--", typed):  # all after it is positional
        option = word.partition("=")[0].removeprefix("--")
        if word.startswith("--") and option not in known and not option.startswith(open_ended):
            raise ValueError(unknown_argument(f"--{option}", [*known]))


class _Parser(argparse.ArgumentParser):
    """Raises its errors."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def run_recipes(arguments: argparse.Namespace) -> None:
    """List, show or copy recipes: settings that train well together, for `--config`."""
    from telecine.base.checks import argument_error
    from telecine.settings.recipes import copy_recipe, describe_recipes, find_recipe

    if arguments.action == "list":
        print("\n".join(describe_recipes()))
    elif arguments.name is None:
        raise argument_error("name", "given", "nothing", "`telecine recipes list` prints all names.")
    elif arguments.action == "show":
        sys.stdout.write(find_recipe(arguments.name).read_text(encoding="utf-8"))
    elif arguments.file is None:
        raise argument_error("file", "given", "nothing", f"For example: telecine recipes copy {arguments.name} my.yaml")
    else:
        print(f"written to {copy_recipe(arguments.name, arguments.file)}")


def run_completion(arguments: argparse.Namespace) -> None:
    """Print the script by which a shell completes commands, settings, values and recipes."""
    from telecine.cli.completion import script

    print(script(arguments.shell))


WITHOUT_PYTORCH: dict[str, Callable[[argparse.Namespace], None]] = {
    "recipes": run_recipes,
    "completion": run_completion,
}


def _without_command(typed: Sequence[str]) -> int:
    """Answer `--help`, `--version`, and a mistyped command."""
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
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.summary)
    if {"-h", "--help", "--version"} & set(typed):
        parser.parse_args(typed)  # prints, and exits
    if not typed:
        return fail(f"a command is missing. Use one of: {', '.join(COMMANDS)}.")
    similar = difflib.get_close_matches(typed[0], COMMANDS, n=1, cutoff=0.5)
    remedy = f"Did you mean `telecine {similar[0]}`?" if similar else f"Use one of: {', '.join(COMMANDS)}."
    return fail(f"`{typed[0]}` is not a command. {remedy}")
