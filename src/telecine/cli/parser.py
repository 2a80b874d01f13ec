"""How a command is read: its own arguments by argparse, from its function, and its settings by pydantic-settings."""

import argparse
import inspect
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from pydantic import create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableError

from telecine.base.checks import argument_error, nearest
from telecine.base.imports import allow_code, is_class_path
from telecine.base.yaml_files import parse_yaml
from telecine.settings.parse import (
    FREE_NAMES,
    Nested,
    flat_items,
    launcher_settings,
    merged,
    nested,
    settings_from,
)
from telecine.settings.train import TrainConfig
from telecine.settings.validate import settings_of, union_members

# `TELECINE__CLIPS__HEIGHT=64` in the environment is the setting `clips.height` of a training run.
_ENVIRONMENT = "TELECINE__"
_CONFIG_HELP = (
    "A YAML file of settings. It can be given several times: later ones override earlier ones, and settings typed "
    "beside it override both."
)
_RECIPES_HELP = (
    "A YAML file of settings, or a recipe: demo (CPU, a few minutes), gpu (training from scratch), or one that "
    "`telecine recipes list` prints. It can be given several times: later ones override earlier ones, and settings "
    "typed beside it override both. Without it: whole with a --model that has weights, else gpu with --data, else demo."
)
_ALLOW_CODE_HELP = (
    "A package whose code settings and models may name, besides telecine. It can be given several times. Its code is "
    "run."
)


class Parser(argparse.ArgumentParser):
    """Raises a `ValueError` about a mistake, instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raise a `ValueError`."""
        raise ValueError(message)


def _add_argument(parser: argparse.ArgumentParser, parameter: inspect.Parameter, hint: Any) -> None:
    """Add an argument of a function to a parser. Its type is `Annotated` with its help."""
    kind, text = get_args(hint)
    kind = union_members(kind)[0]
    is_required = parameter.default is parameter.empty
    options: dict[str, Any] = {"default": parameter.default, "help": text}
    names = [parameter.name]
    if parameter.kind is parameter.KEYWORD_ONLY:
        names = [f"--{parameter.name}"]
        if parameter.name == "output":
            names.append("-o")
        options["required"] = is_required
    elif not is_required:
        options["nargs"] = "?"
    if kind is bool:
        options["action"] = "store_true"
    elif get_origin(kind) is list:
        options["nargs"] = "+" if is_required else "*"
    elif get_origin(kind) is Literal:
        options["choices"] = get_args(kind)
    else:
        options["type"] = kind
    parser.add_argument(*names, **options)


def _parse_words(parser: Parser, words: Sequence[str], settings: type | None) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments in words by name, and the words that are none."""
    known = [] if settings is None else [setting.name for setting in settings_of(settings, inside_values=True)]
    for option in dict.fromkeys(word.partition("=")[0] for word in words):
        # Names that no parser can list: those in a dict, such as `--objective.terms.wavelet.weight`.
        if option.startswith("--") and "." in option and option[2:] not in known:
            parser.add_argument(option, dest=option[2:], default=argparse.SUPPRESS)
    arguments, unknown = parser.parse_known_args(words)
    return vars(arguments), unknown


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(protected_namespaces=(), cli_hide_none_type=True)


class _TypedSettings(CliSettingsSource[Any]):
    """Reads typed settings. A text that is no value of a list or of a group is left to the check of the setting."""

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        """Return the value that a text in YAML stands for."""
        return parse_yaml(value)


def _source(kind: Any, parser: argparse.ArgumentParser) -> _TypedSettings:
    """Add settings to a parser, and return what reads them."""
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in kind.__pydantic_fields__.items()}
    model = create_model("Settings", __base__=_Settings, **fields)
    return _TypedSettings(model, root_parser=parser)


def _read(source: _TypedSettings, options: dict[str, Any]) -> Nested:
    """Return nested settings from texts by dotted name."""
    for name, text in options.items():
        texts = text if isinstance(text, list) else [text]
        if not all(part.strip() for part in texts):
            remedy = "Check the variable of the shell, or type null for none."
            raise argument_error(name, "a value", "an empty text", remedy)
    json_options = {
        name: [_as_json(part) for part in text] if isinstance(text, list) else _as_json(text)
        for name, text in options.items()
    }
    try:
        values = source(parsed_args=json_options)()
    except UnreadableError as error:
        raise ValueError(str(error)) from error
    # Names that users choose have values of any type.
    free = {name: text for name, text in options.items() if not FREE_NAMES.isdisjoint(name.split(".")[:-1])}
    return merged([values, nested((name, parse_yaml(text)) for name, text in free.items())])


def _as_json(text: str) -> str:
    """Return a list or a group in YAML as JSON, which pydantic-settings reads."""
    if text.startswith(("{", "[")):
        value = parse_yaml(text)
        if isinstance(value, (dict, list)):
            return json.dumps(value)
    return text


def _variable(setting: str) -> str:
    return _ENVIRONMENT + setting.replace(".", "__").upper()


def environment_settings(kind: Any) -> Nested:
    """Return the nested settings in variables of the environment, such as `TELECINE__CLIPS__HEIGHT`.

    Args:
        kind: The dataclass of the settings.

    Raises:
        ValueError: A variable is not a setting.
    """
    words = []
    for variable, text in os.environ.items():
        if variable.startswith(_ENVIRONMENT):
            name = variable.removeprefix(_ENVIRONMENT).lower().replace("__", ".")
            words.append(f"--{name}={text}")
    if not words:
        return {}
    parser = Parser(allow_abbrev=False)
    source = _source(kind, parser)
    options, unknown = _parse_words(parser, words, kind)
    if unknown:
        variable = _variable(unknown[0].partition("=")[0][2:])
        known = [_variable(setting.name) for setting in settings_of(kind)]
        raise ValueError(f"`{variable}` is not a setting. {nearest(variable, known)}".rstrip())
    return _read(source, options)


def from_environment() -> list[str]:
    """Return "name=value" for each setting of a training run that the launcher or the environment has."""
    lines = [f"{name}={value} (accelerate launch)" for name, value in launcher_settings().items()]
    variables = sorted(name for name in os.environ if name.startswith(_ENVIRONMENT))
    return lines + [f"{name}={os.environ[name]}" for name in variables]


class Command:
    """A command of `telecine`: a function, whose signature is the command line and whose docstring is the help.

    Parameters before `*` are positional, those after it are options, `settings` is a dataclass of settings. The type of
    each other parameter is `Annotated` with its help.
    """

    def __init__(self, run: Callable[..., None]) -> None:
        self.run = run
        self.name = run.__name__
        self.summary = inspect.getdoc(run) or ""
        hints = get_type_hints(run)
        self.settings: type | None = hints.get("settings")
        # Whether its settings are those of a training run, for which there are recipes.
        self.trains = self.settings is not None and issubclass(self.settings, TrainConfig)

    def add_arguments(self, parser: argparse.ArgumentParser) -> _TypedSettings | None:
        """Add the settings and the arguments of the function to a parser; return what reads the settings."""
        source = None
        if self.settings is not None:
            source = _source(self.settings, parser)
            text = _RECIPES_HELP if self.trains else _CONFIG_HELP
            parser.add_argument("--config", action="append", metavar="FILE", default=[], help=text)
        hints = get_type_hints(self.run, include_extras=True)
        for parameter in inspect.signature(self.run).parameters.values():
            if parameter.name != "settings":
                _add_argument(parser, parameter, hints[parameter.name])
        parser.add_argument("--allow_code", action="append", metavar="PACKAGE", default=[], help=_ALLOW_CODE_HELP)
        return source

    def help(self) -> str:
        """Return what `--help` prints."""
        parser = self._parser()
        self.add_arguments(parser)
        return parser.format_help()

    def _parser(self) -> Parser:
        return Parser(
            prog=f"telecine {self.name}",
            usage="%(prog)s [ARGUMENT ...] [--NAME VALUE ...]",
            description=self.summary,
            allow_abbrev=False,
            conflict_handler="resolve",  # `--probe` of `latents` is its argument, not the group of settings
        )

    def parse(self, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the arguments of the function, its settings among them, and the recipes that the settings are from.

        Args:
            words: What is typed after the name of the command.

        Raises:
            ValueError: The words are not arguments of the command, or a setting is wrong.
        """
        parser = self._parser()
        source = self.add_arguments(parser)
        arguments, unknown = _parse_words(parser, words, self.settings)
        if unknown:
            option = unknown[0].partition("=")[0]
            raise ValueError(f"`{option}` is not an argument of this command. {self._remedy(option)}".rstrip())
        allow_code(*arguments.pop("allow_code"))
        if source is None or self.settings is None:
            return arguments, []
        files = arguments.pop("config")
        names = list(inspect.signature(self.run).parameters)
        options = {name: value for name, value in arguments.items() if name not in names}
        typed = _read(source, options)
        environment = environment_settings(self.settings) if self.trains else {}
        launched = launcher_settings() if self.trains else {}
        places = {name: "" for name, _ in flat_items(typed)}
        for name, _ in flat_items(environment):
            places.setdefault(name, f"It is from the environment: {_variable(name)}.")
        for name in launched:
            places.setdefault(name, "It is from `accelerate launch`.")
        if self.trains and not files:
            files = [self._default_recipe({**dict(flat_items(environment)), **dict(flat_items(typed))})]
        own_arguments = {name: value for name, value in arguments.items() if name in names}
        own_arguments["settings"] = settings_from(self.settings, files, [launched, environment, typed], places)
        return own_arguments, files

    def _remedy(self, option: str) -> str:
        if option.startswith("-"):
            names = [*inspect.signature(self.run).parameters]
            if self.settings is not None:
                names.append("config")
                names += [setting.name for setting in settings_of(self.settings, inside_values=True)]
            return nearest(option, [f"--{name}" for name in names])
        if self.settings is None:
            return ""
        has_path = "path" in inspect.signature(self.run).parameters
        if os.path.exists(option) and hasattr(self.settings, "data") and not has_path:
            return f"Did you mean `--data {option}`?"
        return "Write a list with commas between its values, and quote a value with spaces."

    def _default_recipe(self, settings: Nested) -> str:
        """Return "whole" for a `model` with weights, else "gpu", or "demo" without data."""
        model = settings.get("model")
        if model is not None:
            is_new = model.endswith(".json") or is_class_path(model)
            random_weights = str(settings.get("random_weights", "false")).lower()
            if not is_new and random_weights != "true":
                return "whole"
        has_path = "path" in inspect.signature(self.run).parameters
        if has_path or model is not None or settings.get("data") is not None:
            return "gpu"
        return "demo"
