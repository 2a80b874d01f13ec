"""Import what settings name, from telecine and packages that the user allows; how to install what is missing."""

import functools
import importlib
import inspect
import shlex
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from telecine.base.checks import argument_error, describe, nearest, suggestion
from telecine.base.moved_modules import MOVED_MODULES

T = TypeVar("T")
# What the code of a module raises if it is wrong or does not find what it needs. The line that failed is part of the
# error about the setting, because the command line prints no traceback of a `ValueError` or an `OSError`.
CODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
_MISSING = object()
# Names of packages and modules; what is below one is allowed as well.
allowed_packages = {"telecine"}


def allow_code(*packages: str) -> None:
    """Let settings name functions and classes of these packages, until the process ends.

    Importing a package runs its code, so settings from others may name only telecine's own without this. Functions and
    modules that are passed as objects need no permission. On the command line: `--allow_code my_package`.

    Raises:
        ValueError: One is not the name of a package.
    """
    for package in packages:
        if not all(part.isidentifier() for part in package.split(".")):
            raise argument_error(
                "allow_code", "the name of a package", repr(package), "Write e.g. `my_package`."
            )
    allowed_packages.update(packages)


def _is_allowed(path: str) -> bool:
    return any(f"{path}.".startswith(f"{package}.") for package in allowed_packages)


def _not_allowed_error(name: str, path: str, origin: str = "") -> Exception:
    package = (origin or path).partition(".")[0]
    got = f"{path!r}, which is {origin}" if origin else repr(path)
    remedy = f"If you trust it, add `--allow_code {package}`, or call `telecine.allow_code({package!r})`."
    return argument_error(name, "in telecine or in a package that you allow", got, remedy)


def import_allowed(path: str, name: str) -> object:
    """Return the object at a dotted path.

    Its package must be allowed, and that where it was defined, too: `my_package.os.system` is refused.

    Args:
        path: The dotted path.
        name: The setting that has it.

    Raises:
        ValueError: The object cannot be imported, or is not allowed.
    """
    for old, new in MOVED_MODULES.items():
        if path.startswith(old):
            path = new + path.removeprefix(old)
    module, _, attribute = path.rpartition(".")
    if not is_dotted(path):
        raise argument_error(
            name, "importable", repr(path), "Write its full path, such as `my_package.my_function`."
        )
    if not _is_allowed(path):
        raise _not_allowed_error(name, path)
    try:
        imported = importlib.import_module(module)
        # May import, too, if the module has a `__getattr__`.
        value = getattr(imported, attribute, _MISSING)
    except CODE_ERRORS as error:
        raise argument_error(name, "importable", repr(path), _why(error, path)) from error
    if value is _MISSING:
        remedy = nearest(attribute, dir(imported)) or "Check the spelling."
        raise argument_error(name, "importable", f"{path!r}: {module} has no `{attribute}`", remedy)
    origin = origin_of(value)
    if origin is not None and not _is_allowed(origin):
        raise _not_allowed_error(name, path, origin)
    return value


def choose(name: str, value: object, functions: Mapping[str, T]) -> T:
    """Return the function of a name, the callable at a dotted path, or the value itself if it is callable.

    Args:
        name: The setting.
        value: The name, the dotted path or the callable.
        functions: The functions that have a name.

    Raises:
        ValueError: The value is none of these.
    """
    if isinstance(value, str) and value in functions:
        return functions[value]
    function = value
    if isinstance(value, str) and is_dotted(value):
        function = import_allowed(value, name)
    if callable(function):
        return cast(T, function)
    contract = f"one of {', '.join(map(repr, functions))}, or the dotted path of a function"
    raise argument_error(name, contract, describe(function), suggestion(value, functions))


def check_arguments(
    name: str, function: Callable[..., object], arguments: Mapping[Any, object], *, are_all: bool
) -> None:
    """Check that a function, class or module has arguments of these names.

    Args:
        name: The setting with the arguments.
        function: The function, class or module.
        arguments: The arguments by name.
        are_all: Whether the function must need no other argument.

    Raises:
        ValueError: There is no such argument, or a required one is missing.
    """
    title = str(origin_of(function)).rpartition(".")[2]
    called = function if inspect.isclass(function) else getattr(function, "forward", function)
    signature = inspect.signature(called)
    takes_any = any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()
    )
    for argument in arguments:
        if argument not in signature.parameters and not takes_any:
            remedy = suggestion(argument, signature.parameters)
            raise argument_error(name, f"arguments of {title}", repr(argument), remedy)
    try:
        if are_all:
            signature.bind(**arguments)
        else:
            signature.bind_partial(**arguments)
    except TypeError as error:
        contract = f"all required arguments of {title}"
        raise argument_error(
            name, contract, f"the error: {error}", "Add what is missing."
        ) from error


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
    reason = f"Its module raises {type(error).__name__}: {error}"
    if not isinstance(error, SyntaxError):  # which names its line itself
        reason += f" ({_line_in_package(error, path.partition('.')[0])})"
    return f"{reason}. Correct it there."


def _line_in_package(error: BaseException, package: str) -> str:
    """Return the last line of a package that was run before an error; the last line of all if there is none."""
    last = ""
    last_in_package = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename.startswith("<"):
            continue
        last = f"{frame.f_code.co_filename}, line {line}"
        if frame.f_globals.get("__name__", "").partition(".")[0] == package:
            last_in_package = last
    return last_in_package or last


def origin_of(value: object) -> str | None:
    """Return the dotted path where a function or a class, or an object's class, was defined; None if it has none."""
    while isinstance(value, functools.partial):
        value = value.func
    if inspect.ismodule(value):
        return value.__name__
    if not inspect.isclass(value) and not inspect.isroutine(value):
        value = type(value)
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None)
    return f"{module}.{name}" if module and name else None


def how_to_install(extra: str) -> str:
    """Return the sentence of an error that tells how to install the packages of an extra, such as "diffusers"."""
    # Takes time that `telecine --version` must not spend.
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires("telecine") or []
    except PackageNotFoundError:  # the source is used without being installed
        return f"Run `pip install -e '.[{extra}]'` in the checkout."
    packages = []
    for line in lines:
        name, _, marker = line.partition(";")
        if marker.strip() == f"extra == '{extra}'":
            packages.append(name.strip())
    return f"Run `{shlex.join(['pip', 'install', *packages])}`."
