"""Files that are copies of each other, by their digests or by their frames."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from telecine.base.terminal import with_progress
from telecine.data import DecodeError, Span, VideoInfo
from telecine.data.clip import bytes_from_video, video_from_bytes
from telecine.data.decode import read_clip
from telecine.data.holdout_groups import group_spans
from telecine.data.span_table import SpanTable
from telecine.tools.data_report.measures import frame_hash, group_copies
from telecine.video.frames import as_shown

# Of more files, evenly spaced ones are compared by their frames: each file takes three seeks.
_MAX_COMPARED = 500
_HASHED_SIZE = (72, 64)
_HASHED_POSITIONS = (0.25, 0.5, 0.75)


def find_copies(infos: Sequence[VideoInfo]) -> list[list[str]]:
    """Return the groups of videos and images that are copies of each other, by their digests or by their frames."""
    infos_of_digest: defaultdict[str, list[VideoInfo]] = defaultdict(list)
    for info in infos:
        infos_of_digest[info.digest].append(info)
    groups = []
    for same_digest in infos_of_digest.values():
        if len(same_digest) > 1:
            groups.append([info.source for info in same_digest])

    different = [same_digest[0] for same_digest in infos_of_digest.values()]
    step = max(1, -(-len(different) // _MAX_COMPARED))
    compared = []
    hashes = []
    for info in with_progress(different[::step], "comparing files"):
        file_hashes = _hash_frames(info)
        if file_hashes is not None:
            compared.append(info.source)
            hashes.append(file_hashes)
    for positions in group_copies(hashes):
        groups.append([compared[position] for position in positions])
    return [[str(path) for path in group] for group in groups]


def with_groups(spans: Sequence[Span], holdout: str, copies: Sequence[Sequence[str]]) -> list[Span]:
    """Return spans with the groups that a run holds out together, and copies in one of them."""
    group_of: dict[str, int] = {}
    groups = group_spans(SpanTable.of(spans), holdout)
    _, numbers = np.unique(groups, return_inverse=True)
    for span, number in zip(spans, numbers.tolist(), strict=True):
        group_of[str(span.info.source)] = number
    for paths in copies:
        joined = {group_of[path] for path in paths if path in group_of}
        if len(joined) < 2:
            continue
        for path, number in group_of.items():
            if number in joined:
                group_of[path] = min(joined)
    return [replace(span, group=str(group_of[str(span.info.source)])) for span in spans]


def _hash_frames(info: VideoInfo) -> tuple[int, ...] | None:
    """Return the hashes of three frames of a video or of an image; None if one is flat or cannot be decoded."""
    positions = [0]
    if not info.is_image:
        positions = [int(fraction * info.num_frames) for fraction in _HASHED_POSITIONS]
    hashes = []
    for position in positions:
        try:
            frames = read_clip(info, position, 1, size=_HASHED_SIZE)
        except DecodeError:
            return None  # training replaces its clips, too, and logs the file
        shown = as_shown(bytes_from_video(video_from_bytes(frames)))
        value = frame_hash(shown[0])
        if value is None:
            return None
        hashes.append(value)
    return tuple(hashes)
