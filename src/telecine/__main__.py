"""`telecine` and `python -m telecine`: the exit code is 0, 2 after a user error, 130 after an interruption."""

import os
import sys
import time
from collections.abc import Sequence

from telecine.base.checks import (
    ArgumentError,
    Interrupted,
    OutputError,
    SettingsError,
    TrainingError,
    printable,
)
from telecine.base.imports import how_to_install

# `torchrun` notices within a second that a process has ended.
_SECONDS_TO_WAIT = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    # OpenMP reads it when PyTorch is loaded. Threads that spin while they wait take cores from those that compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    typed = sys.argv[1:] if arguments is None else [*arguments]
    try:
        return _run(typed)
    except RuntimeError:
        _wait_for_first_process()
        raise


def _run(typed: Sequence[str]) -> int:
    """Run a command, print the errors that are not faults of telecine, and return the exit code."""
    try:
        from telecine.cli.program import run  # needs libraries that may not be installed

        run(typed)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "telecine":
            raise
        is_missing = isinstance(error, ModuleNotFoundError) and "pip install" not in str(error)
        if is_missing:
            error = ImportError(f"{error}. {how_to_install('train')}")
        return _fail([error], typed)
    except SettingsError as error:
        return _fail(error.errors, typed)
    except (ValueError, OSError, OutputError, TrainingError) as error:
        return _fail([error], typed)
    except (Interrupted, KeyboardInterrupt) as interruption:
        if os.environ.get("RANK", "0") == "0":
            try:
                print(printable(str(interruption)) or "interrupted", flush=True)
            except OSError:
                # A program that read the output, such as `tee`, was interrupted as well.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 130
    return 0


def _fail(errors: Sequence[Exception], argv: Sequence[str]) -> int:
    """Print errors on standard error, a line for each, and return their exit code.

    Args:
        errors: The errors. Settings are named as they are typed, `--steps` for `steps`, if they were.
        argv: What was typed.
    """
    _wait_for_first_process()
    options = [word.partition("=")[0] for word in argv if word.startswith("--")]
    for error in errors:
        line = " ".join(str(error).split())
        if isinstance(error, ArgumentError):
            option = f"--{error.name}"
            if any(f"{option}.".startswith(f"{typed}.") for typed in options):
                line = line.replace(f"`{error.name}`", f"`{option}`", 1)
        print(f"telecine: error: {printable(line)}", file=sys.stderr)
    return 2


def _wait_for_first_process() -> None:
    """Let the first of several processes print an error: the others have the same one, or have lost the first.

    Its launcher, such as `torchrun`, ends them while they wait here.
    """
    if os.environ.get("RANK", "0") != "0":
        time.sleep(_SECONDS_TO_WAIT)


if __name__ == "__main__":
    sys.exit(main())
