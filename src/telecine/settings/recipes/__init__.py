"""Recipes: settings files of the package, which are named instead of a path and given one after another."""

import shutil
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from telecine.base.checks import argument_error, nearest
from telecine.settings.group import TABLES

RECIPES = Path(__file__).parent
# Configurations of the models of recipes, as far as they are not diffusers' defaults; plans need no network for them.
# Wan 2.2: https://huggingface.co/Wan-AI/Wan2.2-TI2V-5B-Diffusers/blob/main/vae/config.json.
PUBLISHED = RECIPES / "models" / "published.json"
# The folders of recipes and what their recipes are, in the order in which they are given.
_GROUPS: dict[str, str] = TABLES["recipe_groups"]


def recipes() -> dict[str, Path]:
    """Return the files of all recipes by name, group by group."""
    return {path.stem: path for group in _GROUPS for path in sorted((RECIPES / group).glob("*.yaml"))}


def find_recipe(name: str | PathLike[str]) -> Path:
    """Return the path of the recipe of that name, or the name itself if it is that of a file."""
    known, path = recipes(), Path(name)
    if str(name) in known or path.is_file():
        return known.get(str(name), path)
    contract = f"a YAML file or a recipe ({', '.join(sorted(known))})"
    remedy = nearest(str(name), known) or "Check the spelling."
    raise argument_error("config", contract, f"{name}, which does not exist", remedy, FileNotFoundError)


def describe_recipes() -> Iterator[str]:
    """Yield the lines of a list of all recipes, each with the first line of its file."""
    width = max(map(len, recipes()))
    for group, text in _GROUPS.items():
        yield f"{text}:"
        for path in sorted((RECIPES / group).glob("*.yaml")):
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            yield f"  {path.stem:<{width}}  {first.removeprefix('# ')}"
        yield ""
    yield "For example: telecine train --config cogvideox --config decoder --config 24gb --data my_videos/"


def copy_recipe(name: str, file: str | PathLike[str]) -> Path:
    """Copy a recipe to a new file, to be changed there, and return the file's path."""
    source, target = find_recipe(name), Path(file)
    if target.exists():
        got = f"{target}, which exists"
        raise argument_error("file", "the name of a new file", got, "Choose another.", FileExistsError)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target
