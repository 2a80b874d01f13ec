"""The split of runs of earlier versions, which keep it when they resume: `clips.holdout` is "earlier".

Each file is a group, whatever its name and its content. Groups are chosen by their number instead of their frames, and
there is no gap between the frames to train on and a held-out end.
"""

from collections.abc import Sequence

from telecine.data.clip_frames import ClipFrames
from telecine.data.holdout_parts import (
    MIN_VIDEOS,
    cut_file,
    hold_out_ends,
    hold_out_groups,
    no_clip_error,
    no_image_error,
    too_short_error,
)
from telecine.data.source import Source, Span, resolve_source
from telecine.data.spacing import evenly_spaced
from telecine.settings import ClipConfig


def split_as_earlier(spans: Sequence[Span], config: ClipConfig) -> tuple[list[Span], list[Span]]:
    """Split data into spans to train on and held-out spans, see `split_videos`.

    Raises:
        DataError: no video is long enough for a clip, or for one in each part; or there is only one image.
    """
    videos = [span for span in spans if not span.info.is_image]
    images = _group_by_file([span for span in spans if span.info.is_image])
    if not videos and len(images) < 2:
        raise no_image_error(len(images))
    train: list[Span] = []
    held_out: list[Span] = []
    if videos:
        train, held_out = _split_videos(videos, config)
    chosen = set()
    if len(images) > 1:
        chosen = _choose(len(images), config.val_fraction)
    for index, image in enumerate(images):
        part = held_out if index in chosen else train
        part.extend(image)
    return train, held_out


def _split_videos(videos: Sequence[Span], config: ClipConfig) -> tuple[list[Span], list[Span]]:
    frames = ClipFrames.of(config.val_bucket, config)
    files = _group_by_file([span for span in videos if frames.fits(span)])
    if not files:
        raise no_clip_error(videos, config)
    if len(files) >= MIN_VIDEOS:
        chosen = _choose(len(files), config.val_fraction)
        return hold_out_groups(videos, files, chosen, frames)
    cuts = [cut_file(file, config.val_fraction, frames, has_gap=False) for file in files]
    if any(cut is not None for cut in cuts):
        return hold_out_ends(videos, files, cuts, frames)
    contract = "long enough for a training and a held-out clip"
    if config.fps is None:
        num_frames = frames.num_source_frames(videos[0].info)
        contract += f" of {num_frames} frames, {2 * num_frames} together"
    remedy = f"Use fewer frames or a smaller stride, or {MIN_VIDEOS} videos or more."
    raise too_short_error(contract, videos, remedy)


def _choose(num_files: int, val_fraction: float) -> set[int]:
    """Return the indices of files to hold out, evenly spaced."""
    return set(evenly_spaced(num_files, max(1, round(num_files * val_fraction))))


def _group_by_file(spans: Sequence[Span]) -> list[list[Span]]:
    """Return the spans of each file, in the order of its first span."""
    files: dict[Source, list[Span]] = {}
    for span in spans:
        files.setdefault(resolve_source(span.info.source), []).append(span)
    return list(files.values())
