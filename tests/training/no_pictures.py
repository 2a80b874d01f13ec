"""The command line without pictures, which take most of the time of a tiny run: `no_pictures.py train ...`."""

import sys

from telecine import __main__ as cli
from telecine.evaluation import result
from telecine.training import loop, run, validation


def leave_pictures_out(setattr):
    """Replace the functions that lay out, draw and encode by ones that do nothing."""
    setattr(validation, "side_by_side", lambda **_: None)
    for name in ("log_preview", "write_clips", "write_preview"):
        setattr(loop, name, lambda *_, **__: None)
    setattr(run, "write_report", lambda *_, **__: None)
    setattr(result, "plot_frames", lambda *_: None)


if __name__ == "__main__":
    leave_pictures_out(setattr)
    sys.exit(cli.main())
