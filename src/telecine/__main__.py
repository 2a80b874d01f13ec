"""`telecine` and `python -m telecine`: the command line, where its libraries are installed."""

from __future__ import annotations

import sys

from telecine.base.requirements import how_to_install
from telecine.cli.commands import INTERRUPTED, fail


def main() -> int:
    """Run the command line, or say how to install what it needs."""
    try:
        from telecine.cli.start import answer

        code = answer(sys.argv[1:])
        if code is not None:
            return code
        from telecine.cli import main as cli  # takes seconds
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "telecine":
            raise
        return fail(f"{error}. {how_to_install('train')}")
    except (ValueError, OSError) as error:
        return fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("interrupted")
        return INTERRUPTED
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
