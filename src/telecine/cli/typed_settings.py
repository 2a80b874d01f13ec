"""Settings that are typed or in the environment, read by pydantic-settings as nested values."""

import argparse
import json
import os
import re
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, NoReturn, get_origin

from pydantic import create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableError

from telecine.base.checks import argument_error, nearest
from telecine.base.yaml_files import parse_yaml
from telecine.settings.listing import settings_of, union_members
from telecine.settings.parse import FREE_NAMES, Nested, launcher_settings, merged, nested

# `TELECINE__CLIPS__HEIGHT=64` in the environment is the setting `clips.height` of a training run.
_ENVIRONMENT = "TELECINE__"


# An error message of argparse.
_INVALID_CHOICE = re.compile(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)")
_WITHOUT_VALUE = re.compile(r"argument (\S+): expected (?:one|at least one) argument")
_MISSING = re.compile(r"the following arguments are required: (.*)")


class Parser(argparse.ArgumentParser):
    """Raises a `ValueError`, instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Report an error.

        Raises:
            ValueError: Always.
        """
        match = _INVALID_CHOICE.fullmatch(message)
        if match is not None:
            name, value, listed = match.groups()
            choices = listed.replace("'", "").split(", ")
            remedy = nearest(value, choices)
            raise argument_error(name, f"one of {', '.join(choices)}", repr(value), remedy)
        match = _WITHOUT_VALUE.fullmatch(message)
        if match is not None:
            name = match[1].split("/")[-1]
            raise ValueError(f"`{name}` must have a value. Type it after the name.")
        match = _MISSING.fullmatch(message)
        if match is not None:
            names = match[1].replace("/-o", "")
            raise ValueError(f"missing: {names}. `{self.prog} --help` explains all arguments.")
        raise ValueError(message)

    def format_help(self) -> str:
        """Return the help, without the null of a setting whose text says what the default is."""
        return re.sub(r"(Default: [^()]*\S)\s+\(default:\s+null\)", r"\1", super().format_help())


def parse_argv(
    parser: Parser, argv: Sequence[str], settings: type | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the typed arguments by name, and what is typed that is no argument.

    Args:
        parser: What reads them. It also gets the options that are inside a dict of the settings.
        argv: What is typed.
        settings: The dataclass of the settings, if there are any.
    """
    if settings is not None:
        for option in _options_inside_dicts(argv, settings):
            parser.add_argument(option, dest=option[2:], default=argparse.SUPPRESS)
    arguments, unknown = parser.parse_known_args(argv)
    values = vars(arguments)
    for setting in () if settings is None else settings_of(settings):
        times = sum(word.partition("=")[0] == f"--{setting.name}" for word in argv)
        is_list = any(get_origin(member) is tuple for member in union_members(setting.kind))
        if times > 1 and is_list and isinstance(values.get(setting.name), str):
            # With Python 3.10, pydantic-settings is one before 2.16, which keeps the last value.
            contract = "typed once: the installed pydantic-settings keeps the last value alone"
            got = f"typed {times} times"
            remedy = f"Write a list: `--{setting.name} [a, b]`."
            raise argument_error(f"--{setting.name}", contract, got, remedy)
    return values, unknown


def _options_inside_dicts(argv: Sequence[str], settings: type) -> list[str]:
    """Return the options that no parser can list, such as `--objective.terms.wavelet.weight`."""
    dicts = [setting.name for setting in settings_of(settings) if setting.is_mapping]
    options: dict[str, None] = {}  # a set in order
    for word in argv:
        option = word.partition("=")[0]
        if any(option.startswith(f"--{name}.") for name in dicts):
            options[option] = None
    return [*options]


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(protected_namespaces=(), cli_hide_none_type=True)


class SettingsReader(CliSettingsSource[Any]):
    """Reads typed settings. A text that is no value of a list or of a group is left to the check of the setting."""

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        """Return the value that a text in YAML stands for.

        Args:
            field_name: The setting.
            field: Its definition.
            value: The text.
        """
        return parse_yaml(value)

    def read(self, options: dict[str, Any]) -> Nested:
        """Return nested settings from texts.

        Args:
            options: The texts by dotted name, a list of texts for a list.

        Raises:
            ValueError: A text is empty, or is no list or group where one is needed.
        """
        kinds = {setting.name: setting.kind for setting in settings_of(self.settings_cls)}
        json_options: dict[str, Any] = {}
        other_values: list[tuple[str, Any]] = []  # that pydantic-settings does not read
        for name, text in options.items():
            texts = text if isinstance(text, list) else [text]
            if not all(part.strip() for part in texts):
                remedy = "Check the variable of the shell, or type null for none."
                raise argument_error(name, "a value", "an empty text", remedy)
            syntax = _syntax_of(name, kinds.get(name))
            is_single_text = len(texts) == 1 and not texts[0].startswith("[")
            if syntax is _Syntax.YAML:
                other_values.append((name, parse_yaml(text)))
            elif syntax is _Syntax.TEXT_OR_LIST and is_single_text:
                # pydantic-settings would make it a list.
                other_values.append((name, None if texts[0] == "null" else texts[0]))
            else:
                is_list = syntax is _Syntax.LIST
                json_texts = [_as_json(part, is_list=is_list) for part in texts]
                json_options[name] = json_texts if isinstance(text, list) else json_texts[0]
        try:
            # pydantic-settings: the first call stores the texts, the second one returns their values.
            self(parsed_args=json_options)
            values = self()
        except UnreadableError as error:
            raise ValueError(str(error)) from error
        return merged([values, nested(other_values)])


def add_settings(kind: Any, parser: argparse.ArgumentParser) -> SettingsReader:
    """Add settings to a parser, and return what reads them."""
    fields: dict[str, Any] = {
        name: (field.annotation, field) for name, field in kind.__pydantic_fields__.items()
    }
    model = create_model("Settings", __base__=_Settings, **fields)
    return SettingsReader(model, root_parser=parser)


class _Syntax(Enum):
    """How a typed setting is read."""

    YAML = auto()
    """Any value, of a name that users choose: `--tracker_options.wandb.entity my_team`."""
    LIST = auto()
    """Values with commas between them, or a YAML list: `--trackers wandb,tensorboard`."""
    TEXT_OR_LIST = auto()
    """A text, which may have commas, or a YAML list: `--data clips/`, `--data [a, b]`."""
    JSON = auto()
    """A number, a text, or a group in YAML: `--steps 100`, `--clips {height: 64}`."""


def _syntax_of(name: str, kind: Any) -> _Syntax:
    """Return how a typed setting is read.

    Args:
        name: The dotted name.
        kind: Its type; None for a setting inside a value, such as `objective.terms.wavelet.weight`.
    """
    if not FREE_NAMES.isdisjoint(name.split(".")[:-1]):
        return _Syntax.YAML
    if get_origin(kind) is tuple:
        return _Syntax.LIST
    members = union_members(kind)
    if str in members and any(get_origin(member) is tuple for member in members):
        return _Syntax.TEXT_OR_LIST
    return _Syntax.JSON


def _as_json(text: str, *, is_list: bool) -> str:
    """Return a list or a group in YAML, or a list with commas, as JSON, which pydantic-settings reads."""
    if text.startswith(("{", "[")):
        value = parse_yaml(text)
        if isinstance(value, (dict, list)):
            return json.dumps(value)
    if is_list:
        return json.dumps([item.strip() for item in text.split(",")])
    return text


def environment_name(setting: str) -> str:
    """Return the name of the variable that has a setting."""
    return _ENVIRONMENT + setting.replace(".", "__").upper()


def environment_settings(kind: Any) -> Nested:
    """Return the nested settings in variables of the environment, such as `TELECINE__CLIPS__HEIGHT`.

    Args:
        kind: The dataclass of the settings.

    Raises:
        ValueError: A variable is not a setting.
    """
    argv = []
    for variable, text in os.environ.items():
        if variable.startswith(_ENVIRONMENT):
            name = variable.removeprefix(_ENVIRONMENT).lower().replace("__", ".")
            argv.append(f"--{name}={text}")
    if not argv:
        return {}
    parser = Parser(allow_abbrev=False)
    source = add_settings(kind, parser)
    options, unknown = parse_argv(parser, argv, kind)
    if unknown:
        variable = environment_name(unknown[0].partition("=")[0][2:])
        variables = [environment_name(setting.name) for setting in settings_of(kind)]
        raise ValueError(f"`{variable}` is not a setting. {nearest(variable, variables)}".rstrip())
    return source.read(options)


def describe_environment() -> list[str]:
    """Return "name=value" for each setting of a training run that the launcher or the environment has."""
    lines = [f"{name}={value} (accelerate launch)" for name, value in launcher_settings().items()]
    variables = sorted(name for name in os.environ if name.startswith(_ENVIRONMENT))
    return lines + [f"{name}={os.environ[name]}" for name in variables]
