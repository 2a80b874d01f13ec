"""The clips of a validation, as a run's folder has them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, InstanceOf

from telecine.base.checks import argument_error
from telecine.base.files import read_json
from telecine.base.plain_values import as_dataclass
from telecine.runs.numbers import FiniteFloat, NonNegativeInt, PositiveFloat, PositiveInt

VALIDATION_FILE = "clips.json"


@dataclass(frozen=True)
class SavedClip:
    """One clip of a validation in a run's folder."""

    video: str
    """File name of the video: input, reconstruction and amplified difference from left to right, of equal widths."""
    source: InstanceOf[str]
    """Its file in the data. A name may have bytes that are not UTF-8."""
    start: NonNegativeInt
    """The position of its first frame in the file."""
    num_frames: PositiveInt
    height: PositiveInt
    """Pixels of the clip. In the video, small clips are enlarged by 2."""
    width: PositiveInt
    metrics: dict[str, Annotated[float, Field(strict=True)]]
    frame_psnr: list[FiniteFloat]
    """PSNR of each frame in dB."""
    sha256: str = ""
    """Hash of the input's pixels: the same clip in other validations has it; empty in older runs."""
    fps: PositiveFloat | None = None
    """Frames per second; None in older runs, which have one rate for all clips."""
    colours: str = ""
    """The values of the least and the last colour of a colour map; empty without one."""


@dataclass(frozen=True)
class SavedValidation:
    """The clips of one validation."""

    step: NonNegativeInt
    fps: PositiveFloat
    """Frames per second of the fastest clip."""
    amplification: PositiveFloat
    """The factor of the difference in the videos."""
    clips: list[SavedClip]
    folder: Path
    """The folder of the videos."""

    @classmethod
    def read(cls, folder: Path) -> "SavedValidation":
        """Return the validation whose clips are in a folder.

        Raises:
            ValueError: Their description is damaged, or names a file elsewhere.
        """
        path = folder / VALIDATION_FILE
        contract = "the description of a validation"
        remedy = f"Remove {folder}."
        saved = as_dataclass(
            cls, {**read_json(path), "folder": folder}, str(path), contract, remedy
        )
        for clip in saved.clips:
            name = clip.video  # the report copies this file
            is_name = Path(name).name == name and name not in ("", "..") and name.isprintable()
            if not is_name or (folder / name).is_symlink():
                got = f"the video {name!r}, which is not a file of its folder"
                raise argument_error(str(path), contract, got, remedy)
        return saved
