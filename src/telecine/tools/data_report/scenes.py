"""Videos with cuts, and their scenes."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from telecine.base.terminal import with_progress
from telecine.data import DecodeError, Span, VideoInfo, iterate_frames
from telecine.data.clip import bytes_from_video, video_from_bytes
from telecine.data.source import Source
from telecine.tools.data_report.measures import brightness, changes, find_cuts
from telecine.video.frames import as_shown

_SEARCHED_SIZE = (64, 64)  # of frames that are searched for cuts
logger = logging.getLogger(__name__)


def find_cuts_of_videos(
    infos: Sequence[VideoInfo], max_frames: int
) -> dict[Source, list[int] | None]:
    """Return the cuts in videos that have up to `max_frames` together; None if a frame does not decode.

    In their order, a video that has more than are left is not searched.
    """
    searched = []
    num_left = max_frames
    for info in infos:
        if not info.is_image and info.num_frames <= num_left:
            num_left -= info.num_frames
            searched.append(info)

    cuts: dict[Source, list[int] | None] = {}
    for info in with_progress(searched, "finding cuts"):
        try:
            frame_changes = [float(changes(torch.cat(pair))) for pair in pairwise(_grids(info))]
        except DecodeError as error:  # training replaces the clips of such a file, too
            logger.warning("no cuts were searched for in %s: %s", info.source, error)
            cuts[info.source] = None
            continue
        is_whole = len(frame_changes) == info.num_frames - 1  # an edit list may leave out some
        cuts[info.source] = find_cuts(frame_changes) if is_whole else None
    return cuts


def _grids(info: VideoInfo) -> Iterator[Tensor]:
    """Yield the brightness of each frame of a video, `(1, 32, 32)`."""
    for frame in iterate_frames(info, _SEARCHED_SIZE):
        yield brightness(as_shown(bytes_from_video(video_from_bytes(frame[None]))))


def split_at_cuts(spans: Sequence[Span], cuts: Mapping[Source, list[int] | None]) -> Iterator[Span]:
    """Yield the scenes of spans of videos, and others as they are.

    Args:
        spans: The spans.
        cuts: The first frame of each scene but the first, by video; None if they are not known.
    """
    for span in spans:
        starts = [span.first_frame]
        for cut in cuts.get(span.info.source) or []:
            if span.first_frame < cut <= span.last_frame:
                starts.append(cut)
        for first, end in pairwise([*starts, span.last_frame + 1]):
            yield replace(span, first_frame=first, last_frame=end - 1)
