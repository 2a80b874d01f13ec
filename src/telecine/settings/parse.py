"""Settings from recipes, files, typed arguments and the environment: one nested dict, then its dataclasses.

Files may come from others: YAML is read with bounded time and memory.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from os import PathLike
from pathlib import Path
from string import hexdigits
from typing import Any, TypeAlias, TypeVar, get_args, get_origin

import yaml

from telecine.base.checks import SettingsError, argument_error, shorten
from telecine.base.files import read_bounded
from telecine.settings.autoencoder import with_presets
from telecine.settings.group import alternatives, kind_at
from telecine.settings.recipes import find_recipe
from telecine.settings.train import TrainConfig
from telecine.settings.validate import Nested, validate

T = TypeVar("T")
# A file or a recipe, or what a file may hold.
_Layer: TypeAlias = str | PathLike[str] | Nested
# `TELECINE__CLIPS__HEIGHT=64` in the environment is the setting `clips.height`.
ENVIRONMENT = "TELECINE__"
MAX_BYTES = 2**20
MAX_DEPTH = 32
_TAG = "tag:yaml.org,2002:"
_WORDS = dict.fromkeys(("true", "True", "TRUE", "false", "False", "FALSE"), "bool")
_WORDS |= dict.fromkeys(("", "~", "null", "Null", "NULL"), "null")
_WORDS |= dict.fromkeys((".inf", "+.inf", "-.inf", ".nan"), "float")
# libyaml, where PyYAML has it, is ten times as fast.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_config(path: _Layer, *others: _Layer) -> TrainConfig:
    """Return the settings in a YAML file, or of a recipe, such as "demo" for a CPU or "gpu" for training from scratch.

    Of several files, later ones override earlier ones: `read_config("wan2.1", "decoder", "24gb")`. A dict is what a
    file may hold: `read_config("demo", {"clips.height": 64})`. Settings that are left out have their defaults.

    Raises:
        FileNotFoundError: If there is no such file.
        SettingsError: If a setting is unknown or of the wrong type; it has all such mistakes, each with its line.
    """
    layers = [path, *others]
    with _naming_lines([each for each in layers if not isinstance(each, Mapping)], {}):
        return validate(TrainConfig, merged(map(read_layer, layers)))


@contextmanager
def _naming_lines(files: Sequence[str | PathLike[str]], others: Mapping[str, str]) -> Iterator[None]:
    """Say of each mistake in settings where it is: the line of the last file that has it, or the text in `others`."""
    try:
        yield
    except ValueError as error:
        mistakes = error.mistakes if isinstance(error, SettingsError) else [str(error)]
        located = sorted(_located(each, files, others) for each in mistakes)
        raise SettingsError([text for _, text in located]) from None


def _located(mistake: str, files: Sequence[str | PathLike[str]], others: Mapping[str, str]) -> tuple[int, str]:
    """Return the line of a mistake in a settings file, 0 if it is in none, and the mistake with its place."""
    name = mistake.split("`")[1] if "`" in mistake else ""
    for each, place in others.items():
        if f"{name}.".startswith(f"{each}."):
            return 0, f"{mistake} {place}".rstrip()
    for file in reversed(files):
        if line := _line_of(find_recipe(file), name):
            return line, f"{mistake} See line {line} of {os.fspath(file)}."
    return 0, mistake


def read_layer(source: _Layer) -> Nested:
    """Return the settings of a recipe, a file or a dict, which has each once; else raise a `ValueError`."""
    path = "settings" if isinstance(source, Mapping) else find_recipe(source)
    values = source if isinstance(source, Mapping) else read_yaml(find_recipe(source)) or {}
    names = [name for name, _ in flat_items(values)]
    if twice := next((each for index, each in enumerate(names) if each in names[:index]), None):
        raise argument_error(str(path), "settings that are each given once", f"`{twice}` twice", "Remove one.")
    return nested(values.items())


def settings_from(kind: type[T], files: Sequence[str | PathLike[str]], typed: Sequence[tuple[str, str]]) -> T:
    """Return the settings in files, in texts by dotted names and, of a training run, in the environment.

    Later ones override earlier ones; what `accelerate launch` passes on overrides files alone. A `SettingsError` has
    all mistakes, each with its place.
    """
    is_run = issubclass(kind, TrainConfig)
    launched = launcher_layer() if is_run else {}
    found = [name for name in os.environ if is_run and name.startswith(ENVIRONMENT)]
    variables = {name.removeprefix(ENVIRONMENT).lower().replace("__", "."): name for name in found}
    places = {name: "It is from `accelerate launch`." for name in launched} | {option: "" for option, _ in typed}
    places |= {name: f"It is {each} of the environment." for name, each in variables.items()}
    with _naming_lines(files, places):
        environment = _typed_layer(kind, ((name, os.environ[each]) for name, each in variables.items()))
        values = merged([*map(read_layer, files), launched, _typed_layer(kind, typed), environment])
        if "allow_code" in values:
            remedy = "Code that settings name is run only if you type it: add `--allow_code PACKAGE`."
            got = f"{values['allow_code']} in a settings file"
            raise argument_error("allow_code", "an argument of the command", got, remedy)
        return validate(kind, values)


def _typed_layer(kind: type, typed: Iterable[tuple[str, str]]) -> Nested:
    """Return settings that were typed as text, by their dotted names."""
    return nested((name, _typed_value(kind_at(kind, name), text)) for name, text in typed)


def launcher_layer() -> Nested:
    """Return the settings that `accelerate launch` passes on from the file of `accelerate config`, if they are on."""
    passed = {name: text.lower() for name, text in os.environ.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
    found = {name: passed.get(f"ACCELERATE_{name.upper()}", "no") for name in ("mixed_precision", "dynamo_backend")}
    found |= {"device": "cpu"} if passed.get("ACCELERATE_USE_CPU") == "true" else {}
    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):  # what is none of `sharding` is refused as such
        if passed.get(f"ACCELERATE_USE_{kind}") == "true":
            found["sharding"] = kind.lower() + (passed.get("FSDP_VERSION", "1") if kind == "FSDP" else "")
    return {name: value for name, value in found.items() if value != "no"}


def _typed_value(kind: Any, text: str) -> Any:
    """Return the value that a text stands for: text for a setting that is one, a list with commas, or YAML."""
    value = _parse_value(text)
    kinds = alternatives(kind)
    if get_origin(kind) is tuple and not isinstance(value, list):
        if str in alternatives(item := get_args(kind)[0]):
            return [_typed_value(item, each.strip()) for each in text.split(",")]
        value = _parse_value(f"[{text}]")
        return value if isinstance(value, list) else [text]
    is_text = str in kinds and not {int, float, bool} & {*kinds}
    return text if is_text and value is not None else value


def nested(items: Iterable[tuple[str, Any]]) -> Nested:
    """Return settings by dotted names as nested groups, with the values of presets; later ones override earlier."""
    found: Nested = {}
    for name, value in items:
        for part in reversed(str(name).split(".")):
            value = {part: value}
        found = merged([found, value])
    if isinstance(of_model := found.get("causal_vae"), dict):
        found["causal_vae"] = with_presets(of_model)
    return found


def merged(layers: Iterable[Nested]) -> Nested:
    """Return nested settings in which later layers override earlier ones, setting by setting."""
    found: Nested = {}
    for layer in layers:
        for name, value in layer.items():
            before = found.get(name)
            both = isinstance(before, dict) and isinstance(value, dict)
            found[name] = merged([before, value]) if both else value  # type: ignore[list-item]
    return found


def flat_items(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested settings with their dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat_items(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


class _Loader(_Base):
    """Plain values are those of YAML 1.2, which has 1e-4 as a number, and `no` and dates as text."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        is_plain = kind is yaml.ScalarNode and implicit[0]
        return f"{_TAG}{_plain_kind(value)}" if is_plain else str(super().resolve(kind, value, implicit))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for index, (key, _) in enumerate(node.value):
            line = key.start_mark.line + 1
            if key.tag.removeprefix(_TAG) not in ("str", "int", "float", "bool", "null"):
                raise yaml.constructor.ConstructorError(problem=f"a name that is not plain text in line {line}")
            if key.value in names[:index]:
                raise yaml.constructor.ConstructorError(problem=f"`{key.value}` is given twice, again in line {line}")
        return super().construct_mapping(node, deep=deep)


def _plain_kind(text: str) -> str:
    """Return the kind of a value without quotes."""
    if text in _WORDS:
        return _WORDS[text]
    unsigned = text[text[:1] in ("-", "+") :]
    is_hexadecimal = text[:2] == "0x" != text and {*text[2:]} <= {*hexdigits}
    if is_hexadecimal or (unsigned.isascii() and unsigned.isdigit()):
        return "int"
    try:
        float(text)
    except ValueError:
        return "str"
    return "float" if {*text} <= {*"0123456789+-.eE"} else "str"  # not `nan` and `1_000`


def _parse_value(text: str) -> Any:
    """Return the value of a text as a YAML file has it, or the text itself if it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):  # also for integers of thousands of digits
        return text


def read_yaml(path: Path) -> Any:
    """Return the plain values in a YAML file of `key: value` lines in UTF-8, each key once; else raise a `ValueError`.

    Aliases (`*name`) are refused: a few lines of them stand for billions of values.
    """
    content = read_bounded(path, MAX_BYTES)
    try:
        text = content.decode("utf-8")
        if (problem := _problem(text)) is None:
            return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # also for integers of thousands of digits
        reason = shorten(" ".join(str(error).split()))
        raise argument_error(str(path), "YAML in UTF-8", f"other text ({reason})", "Correct it.") from error
    raise argument_error(str(path), *problem)


def read_package_yaml(package: str, name: str) -> Any:
    """Return the values in a YAML file of a package of telecine, which may have aliases."""
    return yaml.safe_load(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


def _line_of(path: Path, name: str) -> int | None:
    """Return the line in a YAML file of the setting of a dotted name; None if the file does not have it."""
    try:
        read_yaml(path)  # refuses what is too large
        return _line_in(yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader), name)
    except ValueError:
        return None


def _line_in(node: yaml.Node | None, name: str) -> int | None:
    if isinstance(node, yaml.SequenceNode):
        index, _, rest = name.partition(".")
        item = node.value[int(index)]
        return _line_in(item, rest) or int(item.start_mark.line + 1)
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        line = int(key.start_mark.line + 1)
        if key.value == name:
            return line
        if name.startswith(f"{key.value}."):  # a number stands for the only setting of its group, such as a weight
            inside = _line_in(value, name.removeprefix(f"{key.value}."))
            return line if inside is None and isinstance(value, yaml.ScalarNode) else inside
    return None


def _problem(text: str) -> tuple[str, str, str] | None:
    """Return what settings must be, what a text is, and the remedy, if it takes long to parse or is no settings."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = f"line {event.start_mark.line + 1}"
        is_list = isinstance(event, yaml.SequenceStartEvent)
        if depth == 0 and (is_list or (isinstance(event, yaml.ScalarEvent) and event.value)):
            return "`key: value` lines", f"{'a list' if is_list else 'text'} in {line}", "Write one setting per line."
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            return f"settings that are nested at most {MAX_DEPTH} deep", f"more in {line}", "Check the brackets."
        if isinstance(event, yaml.AliasEvent):
            return "settings without aliases (`*name`)", f"one in {line}", "Write the value out."
    return None
