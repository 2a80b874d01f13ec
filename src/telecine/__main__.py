"""`telecine` and `python -m telecine`: the command line, where its libraries are installed."""

from __future__ import annotations

import sys

from telecine.base.imports import how_to_install


def main() -> int:
    """Run the command line, or say how to install what it needs."""
    try:
        from telecine.cli.main import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "telecine":
            raise
        print(f"telecine: error: {error}. {how_to_install('train')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
