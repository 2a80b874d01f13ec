"""Import what settings name, from telecine and packages that the user allows; how to install what is missing."""

import functools
import importlib
import inspect
import shlex
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from telecine.base.checks import argument_error, describe, nearest, suggestion

T = TypeVar("T")
# What the code of a module raises if it is wrong or does not find what it needs. The line that failed is part of the
# error about the setting, because the command line prints no traceback of a `ValueError` or an `OSError`.
CODE_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError),
)
_MISSING = object()
# Where the modules are now that files of older versions name.
_MOVED = {
    "telecine.autoencoders.": "telecine.models.",
    "telecine.perceptual.": "telecine.losses.perceptual.",
    "telecine.training.distillation.": "telecine.tools.distill.",
}
# Names of packages and modules; what is below one is allowed as well.
_allowed = {"telecine"}


def allow_code(*packages: str) -> None:
    """Let settings name functions and classes of these packages, until the process ends.

    Importing a package runs its code, so settings from others may name only telecine's own without this. Functions and
    modules that are passed as objects need no permission. On the command line: `--allow_code my_package`.

    Raises:
        ValueError: One is not the name of a package.
    """
    for package in packages:
        if not all(part.isidentifier() for part in package.split(".")):
            raise argument_error("allow_code", "the name of a package", repr(package), "Write e.g. `my_package`.")
    _allowed.update(packages)


def _is_allowed(path: str) -> bool:
    return any(f"{path}.".startswith(f"{package}.") for package in _allowed)


def _not_allowed_error(name: str, path: str, origin: str = "") -> Exception:
    package = (origin or path).partition(".")[0]
    got = f"{path!r}, which is {origin}" if origin else repr(path)
    remedy = f"If you trust it, add `--allow_code {package}`, or call `telecine.allow_code({package!r})`."
    return argument_error(name, "in telecine or in a package that you allow", got, remedy)


def import_allowed(path: str, name: str) -> object:
    """Return the object at the dotted path in the setting `name`, else raise a `ValueError`.

    Its package must be allowed, and that where it was defined, too: `my_package.os.system` is refused.
    """
    for old, new in _MOVED.items():
        if path.startswith(old):
            path = new + path.removeprefix(old)
    module, _, attribute = path.rpartition(".")
    if not is_dotted(path):
        raise argument_error(name, "importable", repr(path), "Write its full path, such as `my_package.my_function`.")
    if not _is_allowed(path):
        raise _not_allowed_error(name, path)
    try:
        imported = importlib.import_module(module)
        found = getattr(imported, attribute, _MISSING)  # may import, too, if the module has a `__getattr__`
    except CODE_ERRORS as error:
        raise argument_error(name, "importable", repr(path), _why(error, path)) from error
    if found is _MISSING:
        remedy = nearest(attribute, dir(imported)) or "Check the spelling."
        raise argument_error(name, "importable", f"{path!r}: {module} has no `{attribute}`", remedy)
    origin = origin_of(found)
    if origin is not None and not _is_allowed(origin):
        raise _not_allowed_error(name, path, origin)
    return found


def choose(name: str, value: object, known: Mapping[str, T]) -> T:
    """Return the value of a known name, the callable at a dotted path, or `value` itself if it is callable."""
    if isinstance(value, str) and value in known:
        return known[value]
    found = import_allowed(value, name) if isinstance(value, str) and is_dotted(value) else value
    if callable(found):
        return cast(T, found)
    contract = f"one of {', '.join(map(repr, known))}, or the dotted path of a function"
    raise argument_error(name, contract, describe(found), suggestion(value, known))


def check_arguments(name: str, function: Callable[..., object], given: Mapping[Any, object], *, are_all: bool) -> None:
    """Raise a `ValueError` unless a function, class or module has these arguments; and needs no other, if `are_all`."""
    title, is_class = str(origin_of(function)).rpartition(".")[2], inspect.isclass(function)
    signature = inspect.signature(function if is_class else getattr(function, "forward", function))
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    for key in given:
        if key not in signature.parameters and not takes_any:
            raise argument_error(name, f"arguments of {title}", repr(key), suggestion(key, signature.parameters))
    try:
        (signature.bind if are_all else signature.bind_partial)(**given)
    except TypeError as error:
        contract = f"all required arguments of {title}"
        raise argument_error(name, contract, f"the error: {error}", "Add what is missing.") from error


def is_dotted(path: str) -> bool:
    """Return whether a text can be the dotted path of an object in a module."""
    return "." in path and all(part.isidentifier() for part in path.split("."))


def is_class_path(path: str) -> bool:
    """Return whether a text can be the dotted path of a class, by the last name's capital."""
    return is_dotted(path) and path.rpartition(".")[2][:1].isupper()


def _why(error: BaseException, path: str) -> str:
    """Return why a module could not be imported, with the last line of its package that was run, and what to do."""
    if isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}."):
        is_part = "." in str(error.name)
        return f"{error}. {'Check the spelling.' if is_part else 'Install it, or add its folder to `PYTHONPATH`.'}"
    lines = [
        (frame.f_globals.get("__name__", ""), f"{frame.f_code.co_filename}, line {line}")
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith("<")
    ]
    package = path.partition(".")[0]
    own = [line for module, line in lines if module.partition(".")[0] == package]
    where = "" if isinstance(error, SyntaxError) else f" ({own[-1] if own else lines[-1][1]})"
    return f"Its module raises {type(error).__name__}: {error}{where}. Correct it there."


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


def how_to_install(extra: str) -> str:
    """Return the sentence of an error that tells how to install the packages of an extra, such as "diffusers"."""
    from importlib.metadata import PackageNotFoundError, requires  # takes time that `telecine --version` must not spend

    try:
        lines = requires("telecine") or []
    except PackageNotFoundError:  # the source is used without being installed
        return f"Run `pip install -e '.[{extra}]'` in the checkout."
    parts = (line.partition(";") for line in lines)
    needed = [name.strip() for name, _, marker in parts if marker.strip() == f"extra == '{extra}'"]
    return f"Run `{shlex.join(['pip', 'install', *needed])}`."
