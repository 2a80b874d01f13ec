"""Keeps the summary of a run up to date while it trains."""

import time
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

from rich.console import Console

from telecine.base.devices import peak_memory
from telecine.data import bytes_from_video, clips_sha256, pixels_sha256
from telecine.data.index_cache import num_bytes
from telecine.runs import Run
from telecine.runs.run import RunSummary, ValidationClips
from telecine.training.clips import Clips
from telecine.training.state import TrainState


def summary_before(run: Run, console: Console) -> RunSummary | None:
    """Return the summary of a run that is resumed, or None, with a warning if it is damaged."""
    try:
        return run.summary()
    except ValueError as damaged:
        console.print(f"warning: {damaged} The time before is not counted.", soft_wrap=True)
        return None


class SummaryWriter:
    """Writes `summary.json`, with the time since `start`, in `time.monotonic()`, and that `before` a resume.

    An update has `num_clips` clips.
    """

    def __init__(
        self,
        run: Run,
        state: TrainState,
        clips: Clips,
        num_clips: int,
        start: float,
        before: RunSummary | None,
        copied: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        self.run, self.device = run, state.accelerator.device
        sizes, data = state.sizes(), data_of(clips)
        summary = RunSummary(*sizes, clips_per_update=num_clips, **data, seconds=0.0, peak_memory=None)
        before = before or summary
        self.summary = replace(summary, copied=dict(copied or {}) or before.copied)
        self.start, self.peak_before = start - before.seconds, before.peak_memory or 0

    def write(self) -> None:
        """Write the summary with the time and the memory until now."""
        seconds, peak = round(time.monotonic() - self.start, 3), peak_memory(self.device)
        peak = None if peak is None else max(peak, self.peak_before)
        self.run.write_summary(replace(self.summary, seconds=seconds, peak_memory=peak))


def data_of(clips: Clips) -> dict[str, Any]:
    """Return what a summary has about the data of a run."""
    spans = clips.train.spans
    sizes = {path: num_bytes(path) for path in dict.fromkeys(span.info.path for span in spans)}
    digest = sha256()
    for span in spans:
        path = span.info.path
        digest.update(repr((path.name, sizes[path], span.first_frame, span.last_frame)).encode())
    # What identifies the clips that a run validates on, with the hash that `telecine evaluate` records.
    hashes = [pixels_sha256(bytes_from_video(clip["video"])) for clip in clips.val]
    _, num_frames, height, width = clips.val[0]["video"].shape
    return {
        "num_videos": clips.num_videos,
        "num_images": clips.num_images,
        "num_skipped": clips.num_skipped,
        "num_frames": sum(span.num_frames for span in spans),
        "validation": ValidationClips(len(hashes), num_frames, height, width, clips_sha256(hashes)),
        "data_sha256": digest.hexdigest(),
    }
