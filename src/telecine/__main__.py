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


def _fail(errors: Sequence[str], words: Sequence[str]) -> int:
    """Print errors on standard error, a line for each, and return their exit code. Settings are named as typed."""
    options = [word.partition("=")[0] for word in words]
    for error in errors:
        line = " ".join(error.split())
        if line.startswith("`"):
            name = line.split("`")[1]
            if name == "output" and "-o" in options:
                line = line.replace("`output`", "`-o`", 1)
            elif any(f"--{name}.".startswith(f"{option}.") for option in options):
                line = f"`--{line[1:]}"
                if "` is not a setting." in line:
                    line = line.replace("Did you mean `", "Did you mean `--")
        print(f"telecine: error: {printable(line)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
