"""A command: a typed function, whose arguments are read by argparse, and its settings by pydantic-settings."""

import argparse
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from telecine.base.checks import nearest
from telecine.base.imports import allow_code, is_class_path
from telecine.cli.typed_settings import (
    Parser,
    SettingsReader,
    add_settings,
    environment_name,
    environment_settings,
    parse_words,
)
from telecine.settings.parse import Nested, flat_items, launcher_settings, settings_from
from telecine.settings.train import TrainConfig
from telecine.settings.validate import settings_of, union_members

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


def _add_argument(parser: argparse.ArgumentParser, parameter: inspect.Parameter, hint: Any) -> None:
    """Add an argument of a function to a parser. Its type is `Annotated` with its help."""
    if get_origin(hint) is not Annotated:
        hint = get_args(hint)[
            0
        ]  # with the default None, Python 3.10 returns an optional `Annotated`
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


class Command:
    """A command of `telecine`: a function. Its signature is the command line, the start of its docstring is the help.

    Parameters before `*` are positional, those after it are options, `settings` is a dataclass of settings. The type of
    each other parameter is `Annotated` with its help.
    """

    def __init__(self, run: Callable[..., None]) -> None:
        self.run = run
        self.name = run.__name__
        self.summary = (inspect.getdoc(run) or "").partition("\n\n")[0]
        hints = get_type_hints(run)
        self.settings: type | None = hints.get("settings")
        # Whether its settings are those of a training run, for which there are recipes.
        self.trains = self.settings is not None and issubclass(self.settings, TrainConfig)

    def add_arguments(self, parser: argparse.ArgumentParser) -> SettingsReader | None:
        """Add the settings and the arguments of the function to a parser; return what reads the settings."""
        source = None
        if self.settings is not None:
            source = add_settings(self.settings, parser)
            text = _RECIPES_HELP if self.trains else _CONFIG_HELP
            parser.add_argument("--config", action="append", metavar="FILE", default=[], help=text)
        hints = get_type_hints(self.run, include_extras=True)
        for parameter in inspect.signature(self.run).parameters.values():
            if parameter.name != "settings":
                _add_argument(parser, parameter, hints[parameter.name])
        parser.add_argument(
            "--allow_code", action="append", metavar="PACKAGE", default=[], help=_ALLOW_CODE_HELP
        )
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
        arguments, unknown = parse_words(parser, words, self.settings)
        if unknown:
            option = unknown[0].partition("=")[0]
            raise ValueError(
                f"`{option}` is not an argument of this command. {self._remedy(option)}".rstrip()
            )
        allow_code(*arguments.pop("allow_code"))
        if source is None or self.settings is None:
            return arguments, []
        files = arguments.pop("config")
        names = list(inspect.signature(self.run).parameters)
        options = {name: value for name, value in arguments.items() if name not in names}
        typed = source.read(options)
        environment = environment_settings(self.settings) if self.trains else {}
        launched = launcher_settings() if self.trains else {}
        places = {name: "" for name, _ in flat_items(typed)}
        for name, _ in flat_items(environment):
            places.setdefault(name, f"It is from the environment: {environment_name(name)}.")
        for name in launched:
            places.setdefault(name, "It is from `accelerate launch`.")
        if self.trains and not files:
            files = [
                self._default_recipe({**dict(flat_items(environment)), **dict(flat_items(typed))})
            ]
        own_arguments = {name: value for name, value in arguments.items() if name in names}
        own_arguments["settings"] = settings_from(
            self.settings, files, [launched, environment, typed], places
        )
        return own_arguments, files

    def _remedy(self, option: str) -> str:
        if option.startswith("-"):
            names = [*inspect.signature(self.run).parameters]
            if self.settings is not None:
                names.append("config")
                names += [
                    setting.name for setting in settings_of(self.settings, inside_values=True)
                ]
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
