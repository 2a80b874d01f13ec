"""The command line of a command: how it is parsed, explained and completed, from its function and its settings."""

import argparse
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, is_dataclass
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from telecine import __version__
from telecine.base.checks import argument_error, nearest, suggestion
from telecine.base.imports import allow_code, is_class_path
from telecine.base.yaml_files import parse_yaml, read_package_yaml
from telecine.settings.group import alternatives, choices_of, describe_type, kind_at
from telecine.settings.parse import environment_variables, merged, read_layer, recipes, settings_from
from telecine.settings.train import TrainConfig
from telecine.settings.validate import Nested, Setting, settings_of

F = TypeVar("F", bound=Callable[..., None])
# The help of arguments, and the settings in the help, by command.
_TEXTS: dict[str, dict[str, str]] = read_package_yaml(__package__, "arguments.yaml")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # instead of ending the process
        raise ValueError(message)


@dataclass
class _Command:
    name: str
    run: Callable[..., None]
    runs_code: bool  # whether settings or models may name code of the user's

    def __post_init__(self) -> None:
        hints, parameters = get_type_hints(self.run), inspect.signature(self.run).parameters
        hints.pop("return", None)
        self.summary = inspect.getdoc(self.run) or ""
        self.settings: type | None = hints.pop("settings", None)  # the dataclass of its settings
        # Whether its settings are those of a training run, for which there are recipes.
        self.trains = self.settings is not None and issubclass(self.settings, TrainConfig)
        # The settings that `--help` shows; none for all.
        self.most_used = _TEXTS["most_used"].get(self.name, "").split()
        # Its other arguments, each with its type and its help.
        self.arguments = [(parameters[name], kind, _TEXTS[self.name][name]) for name, kind in hints.items()]

    def _settings(self, *, all_names: bool = False) -> list[Setting]:
        return [*settings_of(self.settings, all_names=all_names)] if self.settings is not None else []

    def parse(self, typed: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the arguments of the function, its settings among them, and the recipes that they are from."""
        parser = self._parser()
        found, others = self._read(parser, typed)
        if others:
            option = others[0].partition("=")[0]
            before = typed[max(typed.index(others[0]) - 2, 0)]
            if not option.startswith("-") and get_origin(kind_at(self.settings, before.removeprefix("--"))) is tuple:
                raise argument_error(before, "a list with commas between its values", f"`{option}` after a space", "")
            known = [*parser._option_string_actions, *(f"--{item.name}" for item in self._settings(all_names=True))]
            similar = nearest(option, known) if option.startswith("-") else ""
            if os.path.exists(option) and "path" not in found and kind_at(self.settings, "data") is not None:
                similar = f"Did you mean `--data {option}`?"
            raise ValueError(f"`{option}` is not an argument of this command. {similar}".rstrip())
        allow_code(*found.pop("allow_code", None) or [])
        texts = found.pop("settings")
        if self.settings is None:
            return found, []
        files = self._files(found.pop("config"), texts)
        return {"settings": settings_from(self.settings, files, texts), **found}, files

    def _read(self, parser: argparse.ArgumentParser, typed: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the arguments in what is typed, `settings` as texts by dotted name, and the words that are neither."""
        for option in dict.fromkeys(word.partition("=")[0] for word in typed if word.startswith("--")):
            # Also what is inside a setting, such as `objective.terms.gram`; all in the order in which they are typed.
            if kind_at(self.settings, option[2:]) is not None and option not in parser._option_string_actions:
                pair = partial(lambda name, text: (name, text), option[2:])
                parser.add_argument(option, dest="settings", action="append", type=pair)
        arguments, others = parser.parse_known_args(typed, argparse.Namespace(settings=[]))
        return vars(arguments), others

    def _files(self, chosen: list[str] | None, texts: Sequence[tuple[str, str]]) -> list[str]:
        """Return the recipes and settings files that were chosen.

        Without any, a training command has "whole" for a `--model` with weights, else "gpu", or "demo" without data.
        """
        if chosen or not self.trains:
            return chosen or []
        texts = [*texts, *((name, os.environ[each]) for name, each in environment_variables().items())]
        given = {name: text for name, text in dict(texts).items() if parse_yaml(text) is not None}
        model = given.get("model", ".json")
        has_weights = not (model.endswith(".json") or is_class_path(model))
        if has_weights and parse_yaml(given.get("random_weights", "")) is not True:
            return ["whole"]
        has_data = given.keys() & {"data", "model"} or any(parameter.name == "path" for parameter, *_ in self.arguments)
        return ["gpu" if has_data else "demo"]

    def _parser(self) -> argparse.ArgumentParser:
        parser = _Parser(add_help=False, allow_abbrev=False)
        if self.settings is not None:
            text = _TEXTS["all"]["recipes" if self.trains else "config"]
            parser.add_argument("--config", action="append", metavar="FILE", help=text)
        others = parser.add_argument_group("other arguments") if self.most_used else parser
        for parameter, kind, text in self.arguments:
            names, extra = _argument(parameter, kind)
            target = parser if parameter.kind is not parameter.KEYWORD_ONLY else others
            target.add_argument(*names, help=text.replace("%", "%%"), **extra)
        if self.runs_code:
            others.add_argument("--allow_code", action="append", metavar="PACKAGE", help=_TEXTS["all"]["allow_code"])
        return parser

    def help(self, topic: str, typed: Sequence[str]) -> str:
        """Return the help about "all", a setting or a group, by default the settings that are used most.

        The values of the settings files that the command would use with what is `typed` are shown as defaults.
        """
        of_values = topic not in ("", "all") and not is_dataclass(kind_at(self.settings, topic))
        settings = self._settings(all_names=of_values)  # also those of a value that may be a group, such as a ramp
        by_name = {item.name: item for item in settings}
        groups = [item for item in settings if item.is_group and "." not in item.name]
        shown, epilog = settings, None
        if topic == "" and self.most_used:
            shown, epilog = [by_name[each] for each in self.most_used], self._other_groups(settings, groups)
        elif topic not in ("", "all"):
            shown = [item for item in settings if f"{item.name}.".startswith(f"{topic}.")]
            if not shown:
                contract = 'the name of a setting or of a group, or "all"'
                remedy = nearest(topic, by_name) or suggestion(topic, ["all", *(item.name for item in groups)])
                raise argument_error("help", contract, topic, remedy)
        of_files = _Parser(add_help=False, allow_abbrev=False)  # other arguments may be missing
        of_files.add_argument("--config", action="append")
        found, _ = self._read(of_files, typed)
        values = merged(map(read_layer, self._files(found["config"], found["settings"])))
        parser = self._parser() if topic in ("", "all") else _Parser(add_help=False)
        positional = [each for each, *_ in self.arguments if each.kind is not each.KEYWORD_ONLY]
        names = [each.name if each.default is each.empty else f"[{each.name}]" for each in positional]
        parser.usage = " ".join(["telecine", self.name, *names, "[--NAME VALUE ...]"])
        parser.description, parser.epilog = self.summary, epilog
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        _add_settings(parser, shown, values)
        return parser.format_help()

    def completed(self) -> argparse.ArgumentParser:
        """Return a parser of all arguments and settings that tells a shell how to complete their values."""
        from shtab import FILE  # takes time that help must not spend

        parser = self._parser()
        _add_settings(parser, self._settings(), {})
        for action in parser._actions:
            kind = kind_at(self.settings, action.dest) or str
            if (self.name, action.dest) == ("recipes", "name"):
                action.choices = [*recipes()]
            elif action.choices is None and action.nargs != 0 and action.type is None:
                action.choices = [*map(str, choices_of(kind))] or (["true", "false"] if kind is bool else None)
                if action.choices is None and str in alternatives(kind):
                    of_bash = {"bash": "_telecine_config"} if action.dest in ("config", "files") else {}
                    action.complete = {**FILE, **of_bash}  # type: ignore[attr-defined]
        return parser

    def _other_groups(self, settings: Sequence[Setting], groups: Sequence[Setting]) -> str:
        width = max(len(item.name) for item in groups)
        count = sum(not item.is_group for item in settings)
        lines = [f"  {item.name:<{width}}  {item.text.partition('. ')[0].rstrip('.')}" for item in groups]
        explained = f"`telecine {self.name} --help=all` explains all {count} settings"
        return "\n".join([f"{explained}, `--help=NAME` one of them or a group:", *lines])


COMMANDS: dict[str, _Command] = {}


def command(*, runs_code: bool = False) -> Callable[[F], F]:
    """Register a function as the command of its name, without the underscore; see `_Command` for the arguments."""

    def register(run: F) -> F:
        name = run.__name__.lstrip("_")
        COMMANDS[name] = _Command(name, run, runs_code)
        return run

    return register


def _argument(parameter: inspect.Parameter, kind: Any) -> tuple[list[str], dict[str, Any]]:
    is_required, kind = parameter.default is parameter.empty, alternatives(kind)[0]
    names = [parameter.name]
    extra: dict[str, Any] = {"default": parameter.default}
    if parameter.kind is parameter.KEYWORD_ONLY:
        names = [*(["-o"] if parameter.name == "output" else []), f"--{parameter.name}"]
        extra["required"] = is_required
    elif not is_required:
        extra["nargs"] = "?"
    if kind is bool:
        return names, {"action": "store_true"}
    if get_origin(kind) is list:
        extra["nargs"] = "+" if is_required else "*"
    elif get_origin(kind) is Literal:
        extra["choices"] = [*get_args(kind)]
    elif kind is not str:
        extra["type"] = kind
    return names, extra


def _add_settings(parser: argparse.ArgumentParser, settings: Sequence[Setting], values: Nested) -> None:
    groups = {item.name: parser.add_argument_group(item.name, item.text) for item in settings if item.is_group}
    for item in (each for each in settings if not each.is_group):
        group, _, last = item.name.rpartition(".")
        value: Any = values
        for part in item.name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        value = item.default if value is None else value
        facts = describe_type(item.kind)
        if value is not MISSING:
            facts += f"; default: {value if isinstance(value, str) else json.dumps(value, default=asdict)}"
        text = f"{' '.join(item.text.split())} ({facts})".replace("%", "%%")
        groups.get(group, parser).add_argument(f"--{item.name}", action="append", metavar=last.upper(), help=text)


def program(*, is_whole: bool = False) -> argparse.ArgumentParser:
    """Return the parser that explains the commands; if it `is_whole`, with their arguments and settings."""
    parser = argparse.ArgumentParser(
        prog="telecine",
        description="Train, evaluate and use autoencoders of video and images.",
        epilog="`telecine COMMAND --help` explains a command and its settings.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.summary, parents=[command.completed()] if is_whole else [])
    return parser


def completion_script(shell: str) -> str:
    """Return the script that a shell reads at its start. Bash completes recipes, too, where other shells have files."""
    import shtab  # takes time that help must not spend

    names = " ".join(recipes())
    preamble = f'\n_telecine_config() {{\n  compgen -W "{names}" -- "$1"\n  compgen -f -- "$1"\n}}\n'
    return str(shtab.complete(program(is_whole=True), shell, preamble=preamble if shell == "bash" else ""))
