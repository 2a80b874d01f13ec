"""What would help the training on a data set, in sentences."""

from collections import Counter
from collections.abc import Sequence

from telecine.base.checks import count
from telecine.base.devices import in_gib
from telecine.data import Span
from telecine.data.hdr import BT2020, HLG, PQ
from telecine.data.source import Source
from telecine.settings import ClipConfig
from telecine.tools.data_report.report import DataReport

# Decoding begins at a keyframe: at larger distances, most of the frames that are decoded are not used.
_LONG_DISTANCE = 60
_CACHE_FRACTION = 0.5  # of the free memory; the rest is for the networks
_LARGE_FRACTION = 0.2  # of all frames, in one file


def give_advice(
    report: DataReport, clips: ClipConfig, train: Sequence[Span], free_memory: int
) -> list[str]:
    """Return sentences about a data set.

    Args:
        report: What was measured.
        clips: The settings of clips.
        train: The frames to train on.
        free_memory: Bytes of memory that are free.
    """
    sentences = []
    if not clips.cache:
        sentences.extend(_reading_advice(report, clips))
    sentences.append(_cache_advice(report, clips, free_memory))

    num_unusual = sum(bool(clip.flaws) for clip in report.clips)
    if num_unusual:
        sentences.append(
            f"Black, static or with a cut: {num_unusual} of {len(report.clips)} sampled clips."
        )

    num_videos = sum(bool(row.codec) and not row.is_image for row in report.files)
    if report.scenes:
        sentences.append(
            f"{report.num_searched} of {num_videos} videos were decoded whole, and cuts were found in "
            f"{report.num_cut} of them. The list `scenes.csv` has the scenes between them: with it as `--data`, no "
            "clip has a cut."
        )
        if report.num_unlisted:
            sentences.append(
                "`scenes.csv` cannot name what is in tar files, and leaves it out: "
                f"{report.num_unlisted} videos and images."
            )
    elif report.num_left:
        sentences.append(
            f"Searched for cuts: {report.num_searched} of {num_videos} videos. `--max_frames` searches more."
        )

    hdr = [row.path for row in report.files if row.codec.endswith((PQ, HLG, BT2020))]
    if hdr and clips.hdr == "as_stored":
        sentences.append(
            f"Videos with a high dynamic range or wide colours (PQ, HLG, BT.2020): {len(hdr)} of {num_videos}. Their "
            "values look grey as ordinary video; `--clips.hdr tone_map` converts them to BT.709."
        )
    if clips.weighting == "frames":
        sentences.extend(_weighting_advice(train))
    sentences.extend(_group_advice(report, clips))
    return sentences


def _group_advice(report: DataReport, clips: ClipConfig) -> list[str]:
    """Return what to know about copies, and about the groups of the list that the report writes."""
    sentences = []
    listed = report.scenes or report.grouped
    name = "scenes.csv" if report.scenes else "grouped.csv"
    if report.copies:
        text = f"Groups of files that are copies: {len(report.copies)}. Keep one of each"
        if listed:
            text += (
                f", or train on the list `{name}`, which keeps copies on one side of the hold-out"
            )
        sentences.append(text + ".")
    if clips.holdout != "auto" and any(span.group for span in listed):
        sentences.append(
            f"The groups of `{name}` are in its column `group`: train on it with `--clips.holdout auto`."
        )
    return sentences


def _reading_advice(report: DataReport, clips: ClipConfig) -> list[str]:
    speed = report.clips_per_second
    workers = count(clips.num_workers, "worker")
    most = speed * max(clips.num_workers, 1)
    sentences = [
        f"One core reads {speed:.3g} clips a second; {workers} (`--clips.num_workers`) up to {most:.3g}, if there are "
        "as many cores. Training that is faster than that waits for clips."
    ]
    distances = []
    for row in report.files:
        if row.is_used and row.keyframe_distance is not None:
            distances.append(row.keyframe_distance)
    num_far = sum(distance > _LONG_DISTANCE for distance in distances)
    if num_far:
        sentences.append(
            f"More than {_LONG_DISTANCE} frames between keyframes: {num_far} of {len(distances)} videos. Reading a "
            "clip decodes all frames from the keyframe before it. Re-encode them with "
            "`ffmpeg -i IN -c:v libx264 -crf 16 -g 30 OUT.mp4`."
        )
    return sentences


def _cache_advice(report: DataReport, clips: ClipConfig, free_memory: int) -> str:
    size = in_gib(report.cache_bytes)
    if report.cache_bytes >= _CACHE_FRACTION * free_memory:
        return f"All training frames take {size} at this size, too much for `--clips.cache` on this machine."
    if clips.cache:
        return (
            f"All training frames are decoded once and kept: {size} at this size (`clips.cache`)."
        )
    return f"All training frames take {size} at this size: `--clips.cache true` decodes them once."


def _weighting_advice(train: Sequence[Span]) -> list[str]:
    """Return a sentence if one of the videos has most of the frames, from which clips are drawn equally often."""
    num_frames = Counter[Source]()
    for span in train:
        if not span.info.is_image:
            num_frames[span.info.source] += span.num_frames
    if not num_frames:
        return []
    ((path, most),) = num_frames.most_common(1)
    fraction = most / num_frames.total()
    if fraction <= max(_LARGE_FRACTION, 1.5 / len(num_frames)):
        return []
    return [
        f"{path} has {fraction:.0%} of the frames, and of the clips of training. `--clips.weighting files` draws all "
        "files equally often, as the clips shown here."
    ]
