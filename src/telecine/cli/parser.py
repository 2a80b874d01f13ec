"""A command: a typed function, whose arguments and settings argparse reads."""

import argparse
import inspect
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from telecine.base.checks import argument_error, nearest
from telecine.base.imports import allow_code, is_class_path
from telecine.cli.typed_settings import (
    Parser,
    add_settings,
    environment_settings,
    options_inside_dicts,
    parse_argv,
    read_settings,
)
from telecine.settings.argument_kinds import Data, Output
from telecine.settings.listing import settings_of, union_members
from telecine.settings.parse import (
    Layer,
    Nested,
    launcher_settings,
    merged,
    read_layer,
    settings_from,
)
from telecine.settings.train import TrainConfig

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


def _types_of(run: Callable[..., None]) -> dict[str, Any]:
    """Return the types of a function's parameters by name, with what annotates them."""
    hints = get_type_hints(run, include_extras=True)
    for name, hint in hints.items():
        # Where the default is None, Python 3.10 returns an optional `Annotated`.
        if get_origin(hint) is Union:
            hints[name] = get_args(hint)[0]
    return hints


def _add_argument(parser: argparse.ArgumentParser, parameter: inspect.Parameter, hint: Any) -> None:
    """Add an argument of a function to a parser. Its type is `Annotated`, see `settings.argument_kinds`."""
    kind, about = get_args(hint)
    text = about.help if isinstance(about, (Data, Output)) else about
    kind = union_members(kind)[0]
    is_required = parameter.default is parameter.empty
    options: dict[str, Any] = {"default": parameter.default, "help": text}
    names = [parameter.name]
    if parameter.kind is parameter.KEYWORD_ONLY:
        names = [f"--{parameter.name}"]
        if isinstance(about, Output):
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


def _is_true(value: object) -> bool:
    """Return whether a setting is true, as typed or in a file. What is neither true nor false is left to its check."""
    try:
        return bool(TypeAdapter(bool).validate_python(value))
    except ValidationError:
        return False


class ParsedCommand(NamedTuple):
    """What is typed after the name of a command."""

    arguments: dict[str, Any]
    """The arguments of the function, its settings among them."""
    files: list[str]
    """The recipes or files that the settings are from."""
    options: list[str]
    """The names of the typed settings, and `config` if files were named."""


class Command:
    """A command of `telecine`: a function. Its signature is the command line, the start of its docstring is the help.

    Parameters before `*` are positional, those after it are options, `settings` is a dataclass of settings. The type of
    each other parameter is `Annotated` with its help, or with `Data` or `Output`.
    """

    def __init__(self, run: Callable[..., None]) -> None:
        self.run = run
        self.name = run.__name__.replace("_", " ")
        self.summary = (inspect.getdoc(run) or "").partition("\n\n")[0]
        self.settings: type | None = None
        self.data: str | None = None  # the argument that is `Data`
        self.output: str | None = None  # the argument that is `Output`
        for name, hint in _types_of(run).items():
            if name == "settings":
                self.settings = hint
            elif get_origin(hint) is Annotated:
                about = get_args(hint)[1]
                if isinstance(about, Data):
                    self.data = name
                elif isinstance(about, Output):
                    self.output = name
        # Whether its settings are those of a training run, for which there are recipes. `plan` has them, too.
        self.has_run_settings = self.settings is not None and issubclass(self.settings, TrainConfig)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the settings and the arguments of the function to a parser."""
        if self.settings is not None:
            add_settings(self.settings, parser)
            text = _RECIPES_HELP if self.has_run_settings else _CONFIG_HELP
            parser.add_argument("--config", action="append", metavar="FILE", default=[], help=text)
        hints = _types_of(self.run)
        for parameter in inspect.signature(self.run).parameters.values():
            if parameter.name != "settings":
                _add_argument(parser, parameter, hints[parameter.name])
        parser.add_argument(
            "--allow_code", action="append", metavar="PACKAGE", default=[], help=_ALLOW_CODE_HELP
        )

    def help(self) -> str:
        """Return what `--help` prints."""
        return self._parser.format_help()

    @cached_property
    def _parser(self) -> Parser:
        """The parser of what is typed, but for options inside dicts. To make one takes most of the time of parsing."""
        return self._new_parser()

    def _new_parser(self) -> Parser:
        parser = Parser(
            prog=f"telecine {self.name}",
            usage="%(prog)s [ARGUMENT ...] [--NAME VALUE ...]",
            description=self.summary,
            allow_abbrev=False,
            conflict_handler="resolve",  # `--probe` of `latents` is its argument, not the group of settings
        )
        self.add_arguments(parser)
        return parser

    def parse(self, argv: Sequence[str]) -> ParsedCommand:
        """Return the arguments of the function, its settings among them.

        Args:
            argv: What is typed after the name of the command.

        Raises:
            ValueError: These are not arguments of the command, or a setting is wrong.
        """
        inside_dicts = options_inside_dicts(argv, self.settings)
        parser = self._new_parser() if inside_dicts else self._parser
        values, unknown = parse_argv(parser, argv, inside_dicts)
        if unknown:
            option = unknown[0].partition("=")[0]
            raise ValueError(
                f"`{option}` is not an argument of this command. {self._remedy(option)}".rstrip()
            )
        allow_code(*values.pop("allow_code"))
        files = values.pop("config", [])
        arguments = {}
        texts = {}  # of settings, by dotted name
        for name, value in values.items():
            if name in inspect.signature(self.run).parameters:
                if "" in (value if isinstance(value, list) else [value]):
                    remedy = "Check the variable of the shell."
                    raise argument_error(name, "a value", "an empty text", remedy)
                arguments[name] = value
            else:
                texts[name] = value
        options = [*texts, "config"] if files else [*texts]
        if self.settings is None:
            return ParsedCommand(arguments, files, options)
        # Later layers override earlier ones: files, then the launcher, the environment and what is typed.
        typed = Layer(read_settings(texts, self.settings))
        beside_files = [typed]
        if self.has_run_settings:
            launcher = Layer(launcher_settings(), origin="It is from `accelerate launch`.")
            environment = Layer(
                environment_settings(self.settings), origin="It is from the environment."
            )
            beside_files = [launcher, environment, typed]
            if not files:
                files = [self._default_recipe(merged(layer.values for layer in beside_files))]
        layers = [read_layer(file) for file in files] + beside_files
        arguments["settings"] = settings_from(self.settings, layers)
        return ParsedCommand(arguments, files, options)

    def _remedy(self, option: str) -> str:
        if option.startswith("-"):
            names = []
            for name, parameter in inspect.signature(self.run).parameters.items():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    names.append(name)
                elif option == f"--{name}":
                    return "Write its value without a name."
            if self.settings is not None:
                names.append("config")
                names += [
                    setting.name for setting in settings_of(self.settings, inside_values=True)
                ]
            return nearest(option, [f"--{name}" for name in names])
        if self.settings is None:
            return ""
        if os.path.exists(option) and hasattr(self.settings, "data") and self.data is None:
            return f"Did you mean `--data {option}`?"
        return "Write a list with commas between its values, and quote a value with spaces."

    def _default_recipe(self, settings: Nested) -> str:
        """Return "whole" for a `model` with weights, else "gpu", or "demo" without data."""
        model = settings.get("model")
        if model is not None:
            is_new = model.endswith(".json") or is_class_path(model)
            if not is_new and not _is_true(settings.get("random_weights", False)):
                return "whole"
        if self.data is not None or model is not None or settings.get("data") is not None:
            return "gpu"
        return "demo"
