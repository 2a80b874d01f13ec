"""The command line without what people look at, the slow part of a tiny run: `no_pictures.py train ...`."""

import sys

from telecine import cli
from telecine.training import journal, trainer


def leave_pictures_out(setattr):
    """Replace what only draws and encodes."""
    for name in ("draw_curves", "write_mp4", "write_clips", "write_report"):
        setattr(trainer, name, lambda *_, **__: None)
    setattr(journal, "log_preview", lambda *_, **__: None)


if __name__ == "__main__":
    leave_pictures_out(setattr)
    sys.exit(cli.main())
