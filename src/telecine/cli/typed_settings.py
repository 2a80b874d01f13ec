"""Settings that are typed or in the environment, as nested values."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, NoReturn, get_args, get_origin

from pydantic import create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from telecine.base.checks import argument_error, nearest
from telecine.base.yaml_files import parse_yaml
from telecine.settings.listing import settings_of, union_members
from telecine.settings.parse import Nested, launcher_settings, merged, nested

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
    parser: Parser, argv: Sequence[str], inside_dicts: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the typed arguments by name, and what is typed that is no argument.

    Args:
        parser: What reads them. It also gets the options inside dicts.
        argv: What is typed.
        inside_dicts: The options inside dicts, see `options_inside_dicts`.
    """
    for word in argv:
        name, _, text = word.partition("=")
        if text == "--":  # of which argparse makes an empty list
            raise ValueError(f"`{name}` must have a value. Type it after the name.")
    for option in inside_dicts:
        parser.add_argument(option, dest=option[2:], default=argparse.SUPPRESS)
    arguments, unknown = parser.parse_known_args(argv)
    return vars(arguments), unknown


def options_inside_dicts(argv: Sequence[str], settings: type | None) -> list[str]:
    """Return the typed options that no parser can list, such as `--objective.terms.wavelet.weight`."""
    if settings is None:
        return []
    dicts = [setting.name for setting in settings_of(settings) if setting.is_mapping]
    options: dict[str, None] = {}  # a set in order
    for word in argv:
        option = word.partition("=")[0]
        if any(option.startswith(f"--{name}.") for name in dicts):
            options[option] = None
    return [*options]


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(protected_namespaces=(), cli_hide_none_type=True)


def add_settings(kind: Any, parser: argparse.ArgumentParser) -> None:
    """Add the options of settings to a parser. They keep what is typed as text, see `read_settings`.

    Args:
        kind: The dataclass of the settings.
        parser: The parser.
    """
    fields: dict[str, Any] = {
        name: (field.annotation, field) for name, field in kind.__pydantic_fields__.items()
    }
    # pydantic-settings adds the options, with a section of the help for each group.
    CliSettingsSource(
        create_model("Settings", __base__=_Settings, **fields),
        root_parser=parser,
        add_argument_method=_add_option,
    )


def _add_option(parser: Any, *names: str, **options: Any) -> None:
    """Add an option to a parser or a group of it. It keeps the texts of all times that it is typed."""
    parser.add_argument(*names, **{**options, "action": "append"})


def read_settings(options: Mapping[str, str | list[str]], kind: Any) -> Nested:
    """Return nested settings from texts. A setting overrides its group, in any order.

    Args:
        options: The texts by dotted name: a list of all that were typed, or a single one.
        kind: The dataclass of the settings.

    Raises:
        ValueError: A text is empty.
    """
    kinds = {setting.name: setting.kind for setting in settings_of(kind)}
    values = []
    for name, typed in options.items():
        texts = [typed] if isinstance(typed, str) else typed
        if not all(text.strip() for text in texts):
            remedy = "Check the variable of the shell, or type null for none."
            raise argument_error(name, "a value", "an empty text", remedy)
        values.append((name, _value_of(texts, kinds.get(name))))
    values.sort(key=lambda item: item[0].count("."))
    return nested(values)


def _value_of(texts: Sequence[str], kind: Any) -> Any:
    """Return the value of a typed setting. What is no value of its type is left to the check of the setting.

    | type | text |
    |---|---|
    | one inside a mapping, such as `objective.terms.wavelet.weight` | YAML |
    | a list | values with commas between them, or a YAML list; of several options, one after the other |
    | a text or a list, as `data` | a text, which may have commas, or a YAML list |
    | a group or a mapping, or a number or a group | YAML; later mappings override earlier ones, setting by setting |
    | others | the last text |

    Args:
        texts: What is typed, once or several times.
        kind: The type; None for a setting inside a mapping.
    """
    last = texts[-1]
    if kind is None:
        return parse_yaml(last)
    members = union_members(kind)
    lists = [member for member in members if get_origin(member) is tuple]
    takes_text = str in members
    if lists and not (takes_text and len(texts) == 1 and not last.startswith("[")):
        is_of_texts = any(str in union_members(get_args(member)[0]) for member in lists)
        return _items_of(texts, takes_text=takes_text, is_of_texts=is_of_texts)
    if last == "null":
        return None
    takes_group = any(
        is_dataclass(member) or get_origin(member) in (dict, Mapping) for member in members
    )
    if not takes_group:
        return last
    values = [parse_yaml(text) for text in texts]
    if not all(isinstance(value, dict) for value in values):
        return values[-1]
    return merged(values)


def _items_of(texts: Sequence[str], *, takes_text: bool, is_of_texts: bool) -> list[Any]:
    """Return the items of a typed list.

    Args:
        texts: What is typed, once or several times.
        takes_text: Whether a text with commas is one item.
        is_of_texts: Whether items are texts, so that a number in a YAML list is the name of a folder or of a layer.
    """
    items: list[Any] = []
    for text in texts:
        value: Any = text
        if text.startswith("[") or (text.startswith("{") and not takes_text):
            value = parse_yaml(text)
        if isinstance(value, list):
            items += value
        elif isinstance(value, dict) or takes_text:
            items.append(value)
        else:
            items += [item.strip() for item in text.split(",")]
    if is_of_texts:
        items = [str(item) if type(item) in (int, float) else item for item in items]
    return items


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
    add_settings(kind, parser)
    options, unknown = parse_argv(parser, argv, options_inside_dicts(argv, kind))
    if unknown:
        variable = environment_name(unknown[0].partition("=")[0][2:])
        variables = [environment_name(setting.name) for setting in settings_of(kind)]
        raise ValueError(f"`{variable}` is not a setting. {nearest(variable, variables)}".rstrip())
    return read_settings(options, kind)


def describe_environment() -> list[str]:
    """Return "name=value" for each setting of a training run that the launcher or the environment has."""
    lines = [f"{name}={value} (accelerate launch)" for name, value in launcher_settings().items()]
    variables = sorted(name for name in os.environ if name.startswith(_ENVIRONMENT))
    return lines + [f"{name}={os.environ[name]}" for name in variables]
