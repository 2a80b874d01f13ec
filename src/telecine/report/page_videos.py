"""The clips of a page's player: their videos beside the page, and what the player reads about them."""

import filecmp
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict
from urllib.parse import quote

from telecine.base.checks import argument_error
from telecine.base.files import OUTPUT_MARKER, atomic_write, mark_output, write_text
from telecine.evaluation.metrics import METRICS
from telecine.evaluation.metrics.lpips import LPIPS_NETWORKS
from telecine.report.reported_run import ReportedRun
from telecine.runs import Run
from telecine.runs.saved_clips import SavedClip


class RankedClip(TypedDict):
    """A clip of a validation that is the best or the worst by a metric, as the player reads it."""

    rank: Literal["best", "worst"]
    metric: str
    index: int


_VERSION_FILE = "version.js"  # tells an open page that it was written again


class VideoFolder:
    """The folder of a page's videos. The page refers to it by a relative URL, so both can be moved together.

    Raises:
        ValueError: The folder has other files, or is a link in a run's folder.
    """

    def __init__(self, page: Path) -> None:
        self.path = page.with_name(f"{page.stem}_videos")
        self._names: set[str] = set()
        # Elsewhere, a link, or a folder of this name, may be the user's.
        is_in_run = Run(page.parent).exists()
        if self.path.is_symlink() and is_in_run:
            target = os.readlink(self.path)
            contract = "in the run's folder itself"
            got = f"a symbolic link to {target}"
            raise argument_error(str(self.path), contract, got, "Remove the link.")
        has_files = self.path.is_dir() and any(self.path.iterdir())
        if has_files and not is_in_run and not (self.path / OUTPUT_MARKER).exists():
            contract = "without other files in its folder of videos"
            got = f"{page}, beside {self.path}"
            raise argument_error("output", contract, got, "Choose another name for the page.")

    def add(self, source: Path, name: str) -> str:
        """Copy a video and return its relative URL. The player shows an error for a missing video."""
        if not self._names:
            mark_output(self.path)
        if source.is_file():
            copy = self.path / name
            if not _is_same(source, copy):
                atomic_write(copy, lambda temporary: _copy(source, temporary))
            self._names.add(name)
        return self._url(name)

    def _url(self, name: str) -> str:
        return quote(os.fsencode(f"{self.path.name}/{name}"))

    @property
    def version_url(self) -> str:
        """The relative URL of the script that `write_version` writes."""
        return self._url(_VERSION_FILE)

    def write_version(self, version: str | None) -> None:
        """Write the script that calls `pageVersion` in a live page.

        Args:
            version: The version of the page; None for the last one, which tells pages that are still open.
        """
        path = self.path / _VERSION_FILE
        if version is not None or path.exists():
            mark_output(self.path)
            write_text(path, f'pageVersion("{version or "finished"}");\n')

    def remove_others(self) -> None:
        """Remove the videos that an earlier report of the same name copied and this one did not."""
        for path in self.path.glob("run-*-step-*.mp4"):
            if path.name not in self._names:
                path.unlink()


def copy_videos(runs: Sequence[ReportedRun], videos: VideoFolder) -> list[dict[str, Any]]:
    """Copy the videos of runs, and return the validations with the URLs of the copies, as the player reads them.

    Clips of equal `sha256` have the same input.
    """
    validations = []
    for run_index, run in enumerate(runs):
        for saved in run.validations:
            clips = []
            for number, clip in enumerate(saved.clips):
                name = f"run-{run_index}-step-{saved.step:08d}-clip-{number:02d}.mp4"
                url = videos.add(saved.folder / clip.video, name)
                clips.append(_clip_data(clip, url, default_fps=saved.fps))
            validation = {
                "run": run_index,
                "step": saved.step,
                "clips": clips,
                "amplification": saved.amplification,
                "best_and_worst": best_and_worst(saved.clips),
            }
            validations.append(validation)
    return validations


def _clip_data(clip: SavedClip, url: str, default_fps: float) -> dict[str, Any]:
    title = f"{Path(clip.source).name}, frame {clip.start}"
    if clip.colours:
        title += f", colours: {clip.colours}"
    return {
        "url": url,
        "title": title,
        "fps": clip.fps or default_fps,
        "metrics": {
            name: value if math.isfinite(value) else None for name, value in clip.metrics.items()
        },
        "num_frames": clip.num_frames,
        "height": clip.height,
        "width": clip.width,
        "frame_psnr": clip.frame_psnr,
        "sha256": clip.sha256,
    }


def best_and_worst(clips: Sequence[SavedClip]) -> list[RankedClip]:
    """Return the best and worst clips by PSNR and each LPIPS with two finite values."""
    if not clips:
        return []
    ranks: list[RankedClip] = []
    for name in clips[0].metrics:
        if name != "psnr" and name not in LPIPS_NETWORKS:
            continue
        values = {}
        for index, clip in enumerate(clips):
            value = clip.metrics.get(name, math.nan)
            if math.isfinite(value):
                values[index] = value
        if len(values) > 1:
            direction = METRICS[name].direction
            badness = {index: direction.badness(value) for index, value in values.items()}
            order = sorted(badness, key=badness.__getitem__)
            ranks.append({"rank": "best", "metric": name, "index": order[0]})
            ranks.append({"rank": "worst", "metric": name, "index": order[-1]})
    return ranks


def _is_same(source: Path, copy: Path) -> bool:
    """Return whether a copy has the content of its source. One that cannot be read is to be replaced."""
    try:
        return filecmp.cmp(source, copy)
    except OSError:
        return False


def _copy(source: Path, copy: Path) -> None:
    """Copy a file. An error of the disk names both files, since either may be the cause."""
    try:
        shutil.copy2(source, copy)
    except OSError as error:
        if error.filename is None:
            error.filename = str(source)
            error.filename2 = str(copy)
        raise
