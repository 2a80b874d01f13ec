"""Recipes: settings files of the package, which are named instead of a path and given one after another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from os import PathLike
from pathlib import Path

from telecine.base.checks import argument_error, nearest
from telecine.cli.commands import COMMANDS
from telecine.settings.yaml_file import check_yaml

RECIPES = Path(__file__).parent
# The folders of recipes and what their recipes are, in the order in which they are given.
GROUPS = {
    ".": "Whole runs",
    "sizes": "The size and the latent of telecine's own autoencoder, after gpu or one of the stages",
    "models": "Published autoencoders, first",
    "stages": "What is trained, after the model",
    "objectives": "How others train, after gpu or after the model, instead of a stage; sharp_objective, after demo",
    "hardware": "What it is trained on, last",
}


def recipes() -> dict[str, Path]:
    """Return the files of all recipes by name, group by group."""
    return {path.stem: path for group in GROUPS for path in sorted((RECIPES / group).glob("*.yaml"))}


def find_recipe(name: str | PathLike[str]) -> Path:
    """Return the path of the recipe of that name, or the name itself if it is that of a file.

    Raises:
        FileNotFoundError: If there is neither.
    """
    known, path = recipes(), Path(name)
    if str(name) in known or path.is_file():
        return known.get(str(name), path)
    contract = f"a YAML file or a recipe ({', '.join(sorted(known))})"
    remedy = nearest(str(name), known) or "Check the spelling."
    raise argument_error("config", contract, f"{name}, which does not exist", remedy, FileNotFoundError)


def with_config_first(name: str, typed: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Move `--config` before all other settings, so that those override it, and replace recipes by their paths.

    Without `--config`, training uses the recipe "whole" for a `--model` with weights, otherwise "gpu", and "demo" if
    there is no `--data` either.

    Args:
        name: The command.
        typed: Its arguments.

    Returns:
        The arguments, and the settings files among them.

    Raises:
        FileNotFoundError: There is no such file or recipe.
        ValueError: A file is harmful to parse.
    """
    rest, configs, others = list(typed), [], []
    while rest:
        argument = rest.pop(0)
        option, _, value = argument.partition("=")
        if option == "--config" and (value or rest):
            configs.append(config_path(value or rest.pop(0)))
        else:
            others.append(argument)
    given = {argument.partition("=")[0] for argument in others}
    if COMMANDS[name].trains and not configs and "--config" not in given:
        configs.append(find_recipe(default_recipe(others, is_data=name == "data")))
    return [*(f"--config={path}" for path in configs), *others], configs


def default_recipe(typed: Sequence[str], *, is_data: bool) -> str:
    """Return the recipe for a command without `--config` and with these arguments."""
    given: dict[str, str] = {}
    for argument, following in zip_longest(typed, typed[1:], fillvalue=""):
        option, has_value, value = argument.partition("=")
        given[option] = value if has_value else following
    has_weights = not given.get("--model", ".json").endswith(".json")
    if has_weights and given.get("--random_weights") != "true":
        return "whole"
    return "gpu" if given.keys() & {"--data", "--model"} or is_data else "demo"


def config_path(name: str | PathLike[str]) -> Path:
    """Return the path of a recipe or a settings file; raise a `ValueError` if the file is harmful to parse."""
    path = find_recipe(name)
    check_yaml(path)
    return path


def describe_recipes() -> Iterator[str]:
    """Yield the lines of a list of all recipes, each with the first line of its file."""
    width = max(map(len, recipes()))
    for group, text in GROUPS.items():
        yield f"{text}:"
        for path in sorted((RECIPES / group).glob("*.yaml")):
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            yield f"  {path.stem:<{width}}  {first.removeprefix('# ')}"
        yield ""
    yield "For example: telecine train --config cogvideox --config decoder --config 24gb --data my_videos/"


def copy_recipe(name: str, file: str | PathLike[str]) -> Path:
    """Copy a recipe to a file, to be changed there, and return the file's path.

    Raises:
        FileNotFoundError: There is no such recipe.
        FileExistsError: There is such a file.
    """
    source, target = find_recipe(name), Path(file)
    if target.exists():
        got = f"{target}, which exists"
        raise argument_error("file", "the name of a new file", got, "Choose another.", FileExistsError)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target
