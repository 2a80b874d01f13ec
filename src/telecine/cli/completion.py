"""Completion of commands, settings, values, recipes and files in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import shtab

from telecine.cli.commands import COMMANDS
from telecine.cli.help import add_argument, add_settings, arguments_of
from telecine.cli.settings_source import read_settings
from telecine.settings.recipes import recipes

# In Bash, `--config` completes recipes and files; in other shells files.
CONFIG = {**shtab.FILE, "bash": "_telecine_config"}
COMPLETE_CONFIG = """
_telecine_config() {{
  compgen -W "{recipes}" -- "$1"
  compgen -f -- "$1"
}}
"""


def script(shell: str) -> str:
    """Return the script that a shell reads at its start."""
    parser = argparse.ArgumentParser(prog="telecine")
    parser.add_argument("--version", action="store_true", help="Print the version.")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        settings = list(read_settings(command.settings)) if command.settings is not None else []
        of_command = commands.add_parser(name, help=command.summary, description=command.summary)
        for argument in arguments_of(name):
            action = add_argument(of_command, argument)
            if action.dest == "config":
                complete(action, CONFIG)
            elif (name, action.dest) == ("recipes", "name"):
                action.choices = list(recipes())
            elif action.nargs != 0 and not action.choices and action.type is None:
                complete(action, shtab.FILE)
        for action, item in add_settings(of_command, settings):
            if "str" in item.types:
                complete(action, shtab.FILE)
    preamble = COMPLETE_CONFIG.format(recipes=" ".join(recipes())) if shell == "bash" else ""
    return shtab.complete(parser, shell, preamble=preamble)


def complete(action: argparse.Action, how: Mapping[str, object]) -> None:
    """Tell shtab how the values of an argument are completed in each shell."""
    action.complete = how  # type: ignore[attr-defined]
