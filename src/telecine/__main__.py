"""`telecine` and `python -m telecine`."""

import sys

from telecine.cli import main

if __name__ == "__main__":
    sys.exit(main())
