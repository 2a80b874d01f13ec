"""The help of a command: the settings that most people need, those of a group, or all; without importing PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from telecine.base.checks import argument_error, nearest
from telecine.cli.commands import COMMANDS, Argument
from telecine.cli.settings_source import Setting, as_typed, read_settings
from telecine.settings.recipes import with_config_first
from telecine.settings.yaml_file import read_yaml

ALL = "all"


def help_of(name: str, topic: str = "", typed: Sequence[str] = ()) -> str:
    """Return the help of a command.

    Args:
        name: The command.
        topic: "all", the name of a setting or that of a group, to explain; by default the settings that are used most.
        typed: The command's arguments. The values of the settings files that it would use are shown as defaults.

    Raises:
        ValueError: There is no setting of that name, or a settings file cannot be read.
    """
    command = COMMANDS[name]
    settings = list(read_settings(command.settings)) if command.settings is not None else []
    shown = _select(settings, topic, command.most_used)
    is_short = topic == "" and len(shown) < len(settings)
    parser = argparse.ArgumentParser(
        prog=f"telecine {name}",
        usage=_usage(name),
        description=command.summary,
        epilog=_others(name, settings) if is_short else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    arguments = arguments_of(name) if topic in ("", ALL) else ()
    # What is rarely needed follows the settings.
    last = [
        each for each in arguments if command.most_used and each.names[0].startswith("--") and each != command.config
    ]
    for argument in arguments:
        if argument not in last:
            add_argument(parser, argument)
    add_settings(parser, shown, [read_yaml(file) for file in with_config_first(name, typed)[1]])
    others = parser.add_argument_group("other arguments")
    for argument in last:
        add_argument(others, argument)
    return parser.format_help()


def arguments_of(name: str) -> Sequence[Argument]:
    """Return the arguments of a command that are no settings."""
    command = COMMANDS[name]
    return (*([command.config] if command.settings is not None else []), *command.arguments)


def add_argument(target: argparse.ArgumentParser | argparse._ArgumentGroup, argument: Argument) -> argparse.Action:
    """Add an argument that is no setting to a parser that prints or completes it."""
    text = argument.help.replace("%", "%%")
    return target.add_argument(*argument.names, help=text, **argument.extra)


def add_settings(
    parser: argparse.ArgumentParser, settings: Sequence[Setting], values: Sequence[Any] = ()
) -> list[tuple[argparse.Action, Setting]]:
    """Add settings to a parser that prints or completes them, and return the action of each.

    Args:
        parser: The parser.
        settings: The settings, each group before its own.
        values: The content of settings files, whose values are shown as defaults.
    """
    added = []
    groups = {item.name: parser.add_argument_group(item.name, item.text) for item in settings if item.is_group}
    for item in settings:
        if not item.is_group:
            group, _, last = item.name.rpartition(".")
            defaults = [as_typed(found) for content in values if (found := _value(content, item.name)) is not None]
            kind = f"type: {' | '.join(item.types)}, default: {[item.default, *defaults][-1]}"
            action = groups.get(group, parser).add_argument(
                f"--{item.name}",
                help=f"{' '.join(item.text.split())} ({kind})".replace("%", "%%"),
                metavar=last.upper(),
                choices=item.choices or None,
            )
            added.append((action, item))
    return added


def _select(settings: Sequence[Setting], topic: str, most_used: Sequence[str]) -> list[Setting]:
    by_name = {item.name: item for item in settings}
    if topic == "" and most_used:
        return [by_name[name] for name in most_used]
    if topic in ("", ALL):
        return list(settings)
    found = [item for item in settings if f"{item.name}.".startswith(f"{topic}.")]
    if not found:
        raise argument_error("help", 'the name of a setting or of a group, or "all"', topic, nearest(topic, by_name))
    return found


def _usage(name: str) -> str:
    command = COMMANDS[name]
    positional = [argument.names[0] for argument in command.arguments if not argument.names[0].startswith("-")]
    return " ".join(["telecine", name, *positional, "[--NAME VALUE ...]"])


def _others(name: str, settings: Sequence[Setting]) -> str:
    """Return the lines that say how the other settings are shown."""
    groups = [item for item in settings if item.is_group and "." not in item.name]
    width = max(len(item.name) for item in groups)
    count = sum(not item.is_group for item in settings)
    lines = [f"  {item.name:<{width}}  {item.text.partition('. ')[0].rstrip('.')}" for item in groups]
    title = f"`telecine {name} --help=all` explains all {count} settings, `--help=NAME` one of them or a group:"
    return "\n".join([title, *lines])


def _value(content: Any, name: str) -> Any:
    """Return what a settings file has for a setting, or None if it leaves it out."""
    for part in name.split("."):
        content = content.get(part) if isinstance(content, Mapping) else None
    return content
