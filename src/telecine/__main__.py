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
            except OSError:  # a program that read the output, such as `tee`, was interrupted as well
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 130
    return 0


def _fail(errors: Sequence[str], typed: Sequence[str]) -> int:
    """Print errors on standard error, a line for each, and return their exit code. Settings are named as typed."""
    options = {word.partition("=")[0][2:] for word in typed if word.startswith("--")}
    short = {"output": "-o"} if "-o" in typed else {}
    for error in errors:
        words = " ".join(error.split()).split("`")  # every other one is code, the first the setting
        names = words[1::2]
        as_typed = ["--" * any(f"{name}.".startswith(f"{each}.") for each in options) + name for name in names]
        if names and (as_typed[0] != names[0] or names[0] in short):
            words[1::2] = [short.get(name, name) for name in as_typed]
        print(f"telecine: error: {printable('`'.join(words))}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
