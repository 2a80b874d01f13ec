"""The command line of a command: how it is parsed, explained and completed, from its function and its settings."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, is_dataclass
from typing import Any, Literal, NoReturn, get_args, get_origin

from telecine.base.checks import argument_error, nearest
from telecine.base.imports import allow_code
from telecine.cli.commands import ALLOW_CODE, COMMANDS, Command
from telecine.settings.group import Setting, alternatives, choices_of, kind_at, settings_of, type_names
from telecine.settings.parse import Nested, environment_layer, merged, read_layer, typed_layer, validate
from telecine.settings.recipes import default_recipe, recipes

SEVERAL = "It can be given several times: later ones override earlier ones, and settings typed beside it override both."
FILES_HELP = f"A YAML file of settings. {SEVERAL}"
RECIPES_HELP = (
    "A YAML file of settings, or a recipe: demo (CPU, a few minutes), gpu (training from scratch), or one that "
    f"`telecine recipes list` prints. {SEVERAL} Without it: whole with a --model that has weights, else gpu with "
    "--data, else demo; the help shows the values of the one that is used."
)


class _Parser(argparse.ArgumentParser):
    """Raises its errors."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse(name: str, typed: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of a command's function, its settings among them, and the recipes that they are from.

    Raises:
        FileNotFoundError: There is no such settings file or recipe.
        ValueError: An argument is unknown, missing or wrong, or a settings file is.
    """
    command = COMMANDS[name]
    parser = _Parser(prog=f"telecine {name}", add_help=False, allow_abbrev=False)
    _add_arguments(parser, command)
    of_settings, others = _split(command, typed, parser)
    arguments = vars(parser.parse_args(others))
    allow_code(*arguments.pop("allow_code", None) or [])
    if command.settings is None:
        return arguments, []
    arguments.pop("config")
    files = _files(command, typed)
    layers = [read_layer(file) for file in files]
    for layer in layers if command.runs_code else ():
        if "allow_code" in layer:
            remedy = "Code that settings name is run only if you type it: add `--allow_code PACKAGE`."
            got = f"{layer['allow_code']} in a settings file"
            raise argument_error("allow_code", "an argument of the command", got, remedy)
    layers.append(typed_layer(command.settings, of_settings))
    if command.trains:
        layers.append(environment_layer(command.settings))
    return {"settings": validate(command.settings, merged(layers), prefix="--"), **arguments}, files


def _files(command: Command, typed: Sequence[str]) -> list[str]:
    """Return the recipes and settings files of a command with these arguments."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    for name in ("data", "model", "random_weights"):
        parser.add_argument(f"--{name}")
    given = vars(parser.parse_known_args(typed)[0])
    files: list[str] = given.pop("config")
    if files or not command.trains:
        return files
    has_data = command.arguments[0][0].name == "path"
    return [default_recipe({name: text for name, text in given.items() if text is not None}, is_data=has_data)]


def _split(
    command: Command, typed: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the settings that were typed, by name, and all other words."""
    settings, others, rest = [], [], list(typed)
    while rest:
        word = rest.pop(0)
        option, has_value, value = word.partition("=")
        name = option.removeprefix("--")
        if word == "--":  # all after it is positional
            others += [word, *rest]
            rest = []
        elif not word.startswith("--") or option in parser._option_string_actions:
            others.append(word)
        elif command.settings is None or kind_at(command.settings, name) is None:
            raise _unknown(command, option, parser)
        elif not has_value and not rest:
            raise argument_error(option, "followed by a value", "nothing", f"For example `{option} VALUE`.")
        else:
            settings.append((name, value if has_value else rest.pop(0)))
    return settings, others


def _unknown(command: Command, option: str, parser: argparse.ArgumentParser) -> Exception:
    known = [*parser._option_string_actions]
    if command.settings is not None:
        known += [f"--{item.name}" for item in settings_of(command.settings, all_names=True)]
    return ValueError(f"`{option}` is not an argument of this command. {nearest(option, known)}".rstrip())


def _add_arguments(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, command: Command
) -> list[argparse.Action]:
    """Add the arguments of a command that are no settings, and return their actions."""
    added = []
    if command.settings is not None:
        text = RECIPES_HELP if command.trains else FILES_HELP
        added.append(parser.add_argument("--config", action="append", metavar="FILE", help=text))
    for parameter, kind, text in command.arguments:
        names, extra = _argument(parameter, kind)
        added.append(parser.add_argument(*names, help=text.replace("%", "%%"), **extra))
    if command.runs_code:
        added.append(parser.add_argument("--allow_code", action="append", metavar="PACKAGE", help=ALLOW_CODE))
    return added


def _argument(parameter: inspect.Parameter, kind: Any) -> tuple[list[str], dict[str, Any]]:
    """Return the names of an argument and how argparse reads it, from a parameter of a command's function."""
    is_option, is_required = parameter.kind is parameter.KEYWORD_ONLY, parameter.default is parameter.empty
    default = None if is_required else parameter.default
    short = ["-o"] if parameter.name == "output" else []
    names = [*short, f"--{parameter.name}"] if is_option else [parameter.name]
    if kind is bool:
        return names, {"action": "store_true"}
    extra: dict[str, Any] = {"default": default} | ({"required": True} if is_option and is_required else {})
    kind = alternatives(kind)[0]
    if get_origin(kind) is list:
        return names, extra | {"nargs": "+" if is_required else "*"}
    if get_origin(kind) is tuple:
        return names, extra | {"nargs": len(get_args(kind)), "metavar": ("A", "B")}
    if get_origin(kind) is Literal:
        extra["choices"] = [*get_args(kind)]
    elif kind is not str:
        extra["type"] = kind
    return names, extra if is_option or is_required else extra | {"nargs": "?"}


def help_of(name: str, topic: str, typed: Sequence[str]) -> str:
    """Return the help of a command.

    Args:
        name: The command.
        topic: "all", the name of a setting or that of a group, to explain; by default the settings that are used most.
        typed: The command's arguments. The values of the settings files that it would use are shown as defaults.

    Raises:
        ValueError: There is no setting of that name, or a settings file cannot be read.
    """
    command = COMMANDS[name]
    settings = list(settings_of(command.settings)) if command.settings is not None else []
    shown = _select(settings, topic, command.most_used)
    is_short = topic == "" and len(shown) < len(settings)
    positional = [each.name for each, *_ in command.arguments if each.kind is not each.KEYWORD_ONLY]
    parser = argparse.ArgumentParser(
        prog=f"telecine {name}",
        usage=" ".join(["telecine", name, *positional, "[--NAME VALUE ...]"]),
        description=command.summary,
        epilog=_others(name, settings) if is_short else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    if topic in ("", "all"):
        _add_arguments(parser, command)
    words = [word for word in typed if word != "-h" and word.partition("=")[0] != "--help"]
    values = merged(map(read_layer, _files(command, words))) if shown else {}
    for _ in _add_settings(parser, shown, values):
        pass
    return parser.format_help()


def _select(settings: Sequence[Setting], topic: str, most_used: Sequence[str]) -> list[Setting]:
    by_name = {item.name: item for item in settings}
    if topic == "" and most_used:
        return [by_name[name] for name in most_used]
    if topic in ("", "all"):
        return [*settings]
    found = [item for item in settings if f"{item.name}.".startswith(f"{topic}.")]
    if not found:
        raise argument_error("help", 'the name of a setting or of a group, or "all"', topic, nearest(topic, by_name))
    inside = [each for each in alternatives(found[0].kind) if is_dataclass(each) and not found[0].is_group]
    return found + [item for each in inside for item in settings_of(each, f"{topic}.")]  # type: ignore[arg-type]


def _others(name: str, settings: Sequence[Setting]) -> str:
    """Return the lines that say how the other settings are shown."""
    groups = [item for item in settings if item.is_group and "." not in item.name]
    width = max(len(item.name) for item in groups)
    count = sum(not item.is_group for item in settings)
    lines = [f"  {item.name:<{width}}  {item.text.partition('. ')[0].rstrip('.')}" for item in groups]
    title = f"`telecine {name} --help=all` explains all {count} settings, `--help=NAME` one of them or a group:"
    return "\n".join([title, *lines])


def _add_settings(
    parser: argparse.ArgumentParser, settings: Sequence[Setting], values: Nested
) -> Iterator[tuple[argparse.Action, Setting]]:
    """Add settings to a parser that prints or completes them, with the values of files, and yield their actions."""
    groups = {item.name: parser.add_argument_group(item.name, item.text) for item in settings if item.is_group}
    for item in settings:
        if item.is_group:
            continue
        group, _, last = item.name.rpartition(".")
        value: Any = values
        for part in item.name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        value = item.default if value is None else value
        facts = [f"type: {' | '.join(type_names(item.kind))}"]
        if value is not MISSING:
            facts.append(f"default: {value if isinstance(value, str) else json.dumps(value, default=asdict)}")
        action = groups.get(group, parser).add_argument(
            f"--{item.name}",
            help=f"{' '.join(item.text.split())} ({', '.join(facts)})".replace("%", "%%"),
            metavar=last.upper(),
            choices=[*map(str, choices_of(item.kind))] or (["true", "false"] if item.kind is bool else None),
        )
        yield action, item


def completion_script(shell: str) -> str:
    """Return the script that a shell reads at its start."""
    import shtab

    # In Bash, `--config` completes recipes and files; in other shells files.
    preamble = f'\n_telecine_config() {{\n  compgen -W "{" ".join(recipes())}" -- "$1"\n  compgen -f -- "$1"\n}}\n'
    files: Mapping[str, Mapping[str, Any]] = {"config": {**shtab.FILE, "bash": "_telecine_config"}}
    parser = argparse.ArgumentParser(prog="telecine")
    parser.add_argument("--version", action="store_true", help="Print the version.")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        of_command = commands.add_parser(name, help=command.summary, description=command.summary)
        actions = _add_arguments(of_command, command)
        settings = [*settings_of(command.settings)] if command.settings is not None else []
        actions += [
            action for action, item in _add_settings(of_command, settings, {}) if str in alternatives(item.kind)
        ]
        for action in actions:
            if (name, action.dest) == ("recipes", "name"):
                action.choices = [*recipes()]
            elif action.nargs != 0 and not action.choices and action.type is None:
                action.complete = files.get(action.dest, shtab.FILE)  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell, preamble=preamble if shell == "bash" else ""))
