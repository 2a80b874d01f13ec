"""`telecine` and `python -m telecine`: the exit code is 0, 2 after a user error, 130 after an interruption."""

import os
import sys
from collections.abc import Sequence

from telecine.base.checks import Interrupted, OutputError, TrainingError, printable
from telecine.base.imports import how_to_install


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    # OpenMP reads it when PyTorch is loaded. Threads that spin while they wait take cores from those that compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    typed = sys.argv[1:] if arguments is None else [*arguments]
    try:
        from telecine.cli.commands import run  # needs libraries that may not be installed

        run(typed)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "telecine":
            raise
        is_missing = isinstance(error, ModuleNotFoundError) and "pip install" not in str(error)
        return _fail([f"{error}. {how_to_install('train')}" if is_missing else str(error)], typed)
    except (ValueError, OSError, OutputError, TrainingError) as error:
        return _fail(getattr(error, "mistakes", [str(error)]), typed)
    except (Interrupted, KeyboardInterrupt) as interruption:
        if os.environ.get("RANK", "0") == "0":
            try:
                print(printable(str(interruption)) or "interrupted", flush=True)
            except (
                OSError
            ):  # a program that read the output, such as `tee`, was interrupted as well
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 130
    return 0


def _fail(errors: Sequence[str], words: Sequence[str]) -> int:
    """Print errors on standard error, a line for each, and return their exit code."""
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    for error in errors:
        line = " ".join(error.split())
        print(f"telecine: error: {printable(_as_typed(line, options))}", file=sys.stderr)
    return 2


def _as_typed(line: str, options: Sequence[str]) -> str:
    """Return the line of an error with settings as they are typed, `--steps` for `steps`, if its first one was."""
    parts = line.split("`")  # every second part is code, the first of them the setting
    if len(parts) < 3:
        return line
    is_unknown = parts[2].startswith(" is not a setting")
    if parts[1] == "output" and "-o" in options:
        parts[1] = "-o"
    elif _is_typed(parts[1], options):
        for index in range(1, len(parts), 2):
            if is_unknown or _is_typed(parts[index], options):
                parts[index] = f"--{parts[index]}"
    return "`".join(parts)


def _is_typed(name: str, options: Sequence[str]) -> bool:
    return any(f"--{name}.".startswith(f"{option}.") for option in options)


if __name__ == "__main__":
    sys.exit(main())
