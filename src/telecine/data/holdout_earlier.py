"""The hold-out of runs of earlier versions, which keep it when they resume: files alone, without groups and gaps."""

from collections.abc import Sequence

from telecine.data.clip_frames import ClipFrames
from telecine.data.holdout_split import MIN_VIDEOS, Split, hold_out_ends, hold_out_groups
from telecine.data.source import Source, Span, resolve_source
from telecine.data.spacing import evenly_spaced

OLD_HOLDOUT = "earlier"  # the value of `ClipConfig.holdout`


def split_as_earlier(
    videos: Sequence[Span], val_fraction: float, frames: ClipFrames
) -> Split | None:
    """Split videos as earlier versions did; None if none is long enough.

    Args:
        videos: The spans of videos.
        val_fraction: The fraction of frames, or of videos, to hold out.
        frames: The frames of a validation clip.
    """
    files = group_by_file([span for span in videos if frames.fits(span)])
    if len(files) < MIN_VIDEOS:
        return hold_out_ends(files, val_fraction, frames, has_gap=False)
    return hold_out_groups(files, choose_files(len(files), val_fraction), frames)


def group_by_file(spans: Sequence[Span]) -> list[list[Span]]:
    """Return the spans of each file, in the order of its first span."""
    files: dict[Source, list[Span]] = {}
    for span in spans:
        files.setdefault(resolve_source(span.info.source), []).append(span)
    return list(files.values())


def choose_files(num_files: int, val_fraction: float) -> set[int]:
    """Return the indices of files to hold out, evenly spaced, a fraction of their number."""
    return set(evenly_spaced(num_files, max(1, round(num_files * val_fraction))))
