"""Keeps the summary of a run up to date while it trains."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import torch
from rich.console import Console

from telecine.data import bytes_from_video, clips_sha256, pixels_sha256
from telecine.runs import Run
from telecine.runs.run import RunSummary, ValidationClips
from telecine.training.clips import Clips
from telecine.training.state import TrainState


class SummaryWriter:
    """Writes `summary.json`, with the time since `start`, in `time.monotonic()`, and that before a resume."""

    def __init__(
        self,
        run: Run,
        state: TrainState,
        clips: Clips,
        clips_per_update: int,
        start: float,
        is_resumed: bool,
        console: Console,
    ) -> None:
        self.run, self.device = run, state.accelerator.device
        num_parameters, num_trained, num_disc_parameters = state.sizes()
        self.summary = RunSummary(
            num_parameters=num_parameters,
            num_trained=num_trained,
            num_disc_parameters=num_disc_parameters,
            num_videos=clips.num_videos,
            num_images=clips.num_images,
            num_skipped=clips.num_skipped,
            num_frames=sum(span.num_frames for span in clips.train.spans),
            clips_per_update=clips_per_update,
            validation=_validation_clips(clips),
            seconds=0.0,
            peak_memory=None,
        )
        before = self.summary
        try:
            before = (run.summary() if is_resumed else None) or before
        except ValueError as damaged:
            console.print(f"warning: {damaged} The time before is not counted.", soft_wrap=True)
        self.start, self.peak_before = start - before.seconds, before.peak_memory or 0

    def write(self) -> None:
        """Write the summary with the time and the memory until now."""
        seconds, peak = round(time.monotonic() - self.start, 3), _peak_memory(self.device)
        peak = None if peak is None else max(peak, self.peak_before)
        self.run.write_summary(replace(self.summary, seconds=seconds, peak_memory=peak))


def _validation_clips(clips: Clips) -> ValidationClips:
    """Return what identifies the clips that a run validates on, with the hash that `telecine evaluate` records."""
    hashes = [pixels_sha256(bytes_from_video(clip["video"])) for clip in clips.val]
    _, num_frames, height, width = clips.val[0]["video"].shape
    return ValidationClips(len(hashes), num_frames, height, width, clips_sha256(hashes))


def _peak_memory(device: torch.device) -> int | None:
    """Return the bytes at the peak: of a GPU as PyTorch allocated them, of the process on a CPU; None elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "cpu" and sys.platform != "win32":
        import resource  # does not exist on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak  # bytes on macOS, else KiB
    return None
