"""`telecine` and `python -m telecine`: the command line, where its libraries are installed."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line, or say how to install what it needs."""
    try:
        from telecine import cli
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "telecine":
            raise
        print(f'telecine: error: {error}. Run `pip install "telecine[train]"`.', file=sys.stderr)
        return 2
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
