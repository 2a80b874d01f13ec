"""Importing what settings name: telecine's own code, and packages that the user allows."""

from __future__ import annotations

import functools
import importlib
import inspect

from telecine.checks import argument_error

# Names of packages and modules; what is below one is allowed as well.
_allowed = {"telecine"}


def allow_code(*packages: str) -> None:
    """Let settings name functions and classes of these packages, until the process ends.

    Importing a package runs its code, so settings from others may name only telecine's own without this. Functions and
    modules that are passed as objects need no permission. On the command line: `--allow_code my_package`.

    Raises:
        ValueError: If it is not the name of a package.
    """
    for package in packages:
        if not all(part.isidentifier() for part in package.split(".")):
            remedy = "Write for example `my_package`."
            raise argument_error("allow_code", "the name of a package", repr(package), remedy)
    _allowed.update(packages)


def allowed_code() -> list[str]:
    """Return the names of the packages that settings may name."""
    return sorted(_allowed)


def is_allowed(path: str) -> bool:
    """Return whether settings may name what is at a dotted path."""
    parts = path.split(".")
    return any(".".join(parts[:length]) in _allowed for length in range(1, len(parts) + 1))


def not_allowed_error(name: str, path: str, origin: str = "") -> Exception:
    """Build the error about a setting that names other code.

    Args:
        name: The setting.
        path: The dotted path that it names.
        origin: Where what is at that path was defined, if elsewhere.
    """
    package = (origin or path).partition(".")[0]
    got = f"{path!r}, which is {origin}" if origin else repr(path)
    remedy = f"If you trust it, add `--allow_code {package}`, or call `telecine.allow_code({package!r})`."
    return argument_error(name, "in telecine or in a package that you allow", got, remedy)


def import_allowed(path: str, name: str) -> object:
    """Return what is at a dotted path that the setting `name` names, if its package is allowed.

    A name that a module only imported, such as `my_package.os.system`, must be allowed where it was defined, too.

    Raises:
        ValueError: If it is not allowed, before anything is imported.
        ImportError, AttributeError: If there is no such thing.
    """
    module, _, attribute = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        raise ImportError(f"{path!r} is not a dotted path")
    if not is_allowed(path):
        raise not_allowed_error(name, path)
    found = getattr(importlib.import_module(module), attribute)
    origin = origin_of(found)
    if origin is not None and not is_allowed(origin):
        raise not_allowed_error(name, path, origin)
    return found


def origin_of(found: object) -> str | None:
    """Return the dotted path where a function or a class, or an object's class, was defined; None if it has none."""
    while isinstance(found, functools.partial):
        found = found.func
    if inspect.ismodule(found):
        return found.__name__
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        found = type(found)
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    return f"{module}.{name}" if module and name else None
