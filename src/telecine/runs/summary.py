"""The size, data, time and memory of a run."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field, InstanceOf

from telecine.runs.numbers import FiniteFloat, NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class ValidationSet:
    """The clips that a run validates on. Metrics of other clips do not compare."""

    num_clips: PositiveInt
    num_frames: PositiveInt
    height: PositiveInt
    width: PositiveInt
    sha256: str
    """Hash of the pixels of all clips, in order."""


@dataclass(frozen=True)
class RunSummary:
    """The size, data, time and memory of a run: `summary.json`."""

    num_parameters: NonNegativeInt
    """Parameters of the autoencoder."""
    num_trained: NonNegativeInt
    """Those of them that are trained."""
    num_disc_parameters: NonNegativeInt
    num_videos: NonNegativeInt
    """Videos that are used."""
    num_skipped: NonNegativeInt
    """Files that are not used."""
    num_frames: NonNegativeInt
    """Frames to train on."""
    clips_per_update: PositiveInt
    validation: ValidationSet
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    """Time of the run with its validations, and before it was resumed."""
    peak_memory: NonNegativeInt | None
    """Bytes of the first process, see `base.devices.peak_memory`."""
    num_images: NonNegativeInt = 0
    """Images that are used."""
    validated_from: NonNegativeInt = 0
    """The first step that counts for `validation`: before, the run may have had other clips."""
    data_sha256: str = ""
    """Hash of the names, sizes and trained frames of the files; empty in older runs."""
    content_sha256: str = ""
    """Hash of their content, see `telecine.data.VideoInfo.digest`; empty in older runs."""
    held_out: InstanceOf[str] = ""
    """Which files are held out; empty with `val_data`, and in older runs."""
    copied: dict[str, tuple[NonNegativeInt, NonNegativeInt]] = field(default_factory=dict)
    """How many parameters of each module `init` gave, and how many it has."""
    networks: dict[str, str] = field(default_factory=dict)
    """A digest of the weights of each network that the run reads and does not train: a teacher, the features of a
    discriminator, LPIPS, and `init`; empty in older runs."""

    @staticmethod
    def describe_copied(copied: Mapping[str, tuple[int, int]]) -> str:
        """Return `copied` in one line."""
        parts = []
        for name, (num_copied, total) in copied.items():
            number = f"{num_copied:,}" if num_copied else "none"
            parts.append(f"{name} {number} of {total:,}")
        return ", ".join(parts)

    def after(self, before: "RunSummary | None", step: int) -> "RunSummary":
        """Return the summary of a run that was resumed at a step, with the time and the memory `before`."""
        if before is None:
            return self
        validated_from = step + 1
        if before.validation == self.validation:
            validated_from = before.validated_from
        return replace(
            self,
            seconds=before.seconds,
            peak_memory=before.peak_memory,
            copied=self.copied or before.copied,
            networks={**before.networks, **self.networks},
            validated_from=validated_from,
        )

    def comparable(self, validations: list[dict[str, float]]) -> list[dict[str, float]]:
        """Return the records of validations on the present clips, see `validated_from`; all, if there is none yet."""
        return [
            record for record in validations if record["step"] >= self.validated_from
        ] or validations

    def until_now(self, start: float, peak_memory: int | None) -> "RunSummary":
        """Return it with the time since `start`, in `time.monotonic()`, and the peak memory of this process."""
        peak = None if peak_memory is None else max(peak_memory, self.peak_memory or 0)
        return replace(
            self, seconds=round(self.seconds + time.monotonic() - start, 3), peak_memory=peak
        )
