"""The settings of a dataclass as its source defines them: name, type, default, text; without importing PyTorch."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path

import telecine

PACKAGE = Path(telecine.__file__).parent


@dataclass(frozen=True)
class Setting:
    """A setting, or a group of settings."""

    name: str
    """With the names of the groups that it is in, such as `clips.num_frames`."""
    text: str
    """The docstring below it."""
    types: tuple[str, ...] = ()
    """Its types as in Python, and each value of a `Literal`."""
    choices: tuple[str, ...] = ()
    """The values that can be listed."""
    default: str = ""
    """As it is typed on the command line."""
    is_group: bool = False


def read_settings(path: str, prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a dataclass, each group before its own.

    Args:
        path: The dotted path of the dataclass, in this package.
        prefix: What stands before the names.
    """
    module, definition = _find(*path.rsplit(".", 1))
    assert isinstance(definition, ast.ClassDef)
    for base in definition.bases:
        yield from read_settings(f"{module}.{ast.unparse(base)}", prefix)
    for item, below in zip_longest(definition.body, definition.body[1:]):
        if not isinstance(item, ast.AnnAssign):
            continue
        name, text = prefix + ast.unparse(item.target), _docstring(below)
        if (group := _group(module, item.value)) is not None:
            yield Setting(name, text, is_group=True)
            yield from read_settings(group, f"{name}.")
        else:
            types, choices = _types(module, item.annotation)
            yield Setting(name, text, tuple(types), tuple(choices), _default(module, item.value))


def as_typed(value: object) -> str:
    """Return a plain value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


@cache
def _parsed(module: str) -> ast.Module:
    """Return the source of a module of this package."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _find(module: str, name: str) -> tuple[str, ast.stmt | None]:
    """Return where a name of a module is defined in this package; None for names from elsewhere."""
    for statement in _parsed(module).body:
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("telecine."):
            if name in {alias.name for alias in statement.names}:
                return _find(str(statement.module), name)
        elif isinstance(statement, ast.ClassDef) and statement.name == name:
            return module, statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if name in map(ast.unparse, targets):
                return module, statement
    return module, None


def _value(module: str, expression: ast.expr | None) -> tuple[str, ast.expr | None]:
    """Return what a name stands for, in the module that defines it, or the expression itself."""
    if isinstance(expression, ast.Name):
        found_in, statement = _find(module, expression.id)
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            return _value(found_in, statement.value)
    return module, expression


def _docstring(statement: ast.stmt | None) -> str:
    match statement:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return inspect.cleandoc(text)
    return ""


def _factory(default: ast.expr | None) -> ast.expr | None:
    """Return the `default_factory` of a field."""
    keywords = default.keywords if isinstance(default, ast.Call) else []
    return next((keyword.value for keyword in keywords if keyword.arg == "default_factory"), None)


def _group(module: str, default: ast.expr | None) -> str | None:
    """Return the path of the dataclass that a field is made with, if it is one."""
    factory = _factory(default)
    if not isinstance(factory, ast.Name):
        return None
    found_in, definition = _find(module, factory.id)
    return f"{found_in}.{factory.id}" if isinstance(definition, ast.ClassDef) else None


def _default(module: str, default: ast.expr | None) -> str:
    if _factory(default) is not None:  # of a dict; groups have no default
        return "{}"
    value = _value(module, default)[1]
    assert value is not None
    return as_typed(ast.literal_eval(value))


def _types(module: str, annotation: ast.expr) -> tuple[list[str], list[str]]:
    """Return the alternatives of a type, and the values that can be listed."""
    module, kind = _value(module, annotation)
    assert kind is not None
    if isinstance(kind, ast.BinOp):
        left, right = _types(module, kind.left), _types(module, kind.right)
        return left[0] + right[0], left[1] + right[1]
    if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Literal":
        values = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
        choices = [str(ast.literal_eval(value)) for value in values]
        return choices, choices
    if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Callable":
        return ["function"], []
    if isinstance(kind, ast.Constant) and kind.value is None:
        return ["null"], []
    text = ast.unparse(kind)
    return [text], ["true", "false"] if text == "bool" else []
