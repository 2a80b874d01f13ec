"""What a training run will see of its data: its first clips, measured, and its files with their use and copies."""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, pairwise
from pathlib import Path

import psutil
import torch
from torch import Tensor

from telecine.base.checks import check_count
from telecine.base.files import digest_of
from telecine.base.terminal import with_progress
from telecine.data import (
    ClipBatchSampler,
    ClipDataset,
    DecodeError,
    Span,
    VideoInfo,
    iterate_frames,
)
from telecine.data.clip import bytes_from_video, make_clip, video_from_bytes
from telecine.data.clip_frames import ClipFrames
from telecine.data.decode import open_video, read_clip
from telecine.data.decoded_cache import num_cached_bytes
from telecine.data.find import ignored_suffixes
from telecine.data.fingerprint import num_bytes
from telecine.data.holdout_groups import group_spans
from telecine.data.paths import paths_of
from telecine.data.remote_read import open_local
from telecine.data.source import Source, TarMember, file_of, resolve_source
from telecine.settings import ClipConfig, TrainConfig
from telecine.tools.data_report.advice import give_advice
from telecine.tools.data_report.measures import (
    brightness,
    changes,
    find_cuts,
    find_flaws,
    frame_hash,
    group_copies,
)
from telecine.tools.data_report.report import DataReport, FileRow, SampledClip
from telecine.training.clips import Spans
from telecine.video.frames import as_shown, depth_range

_BATCH_SIZE = 4  # if `batch_size` is "auto", which a device decides
_MAX_COMPARED = 500  # of more files, evenly spaced ones are compared by their frames: each file takes three seeks
_HASHED_SIZE = (72, 64)
_HASHED_POSITIONS = (0.25, 0.5, 0.75)
_SEARCHED_SIZE = (64, 64)  # of frames that are searched for cuts
logger = logging.getLogger(__name__)


def examine_data(config: TrainConfig, num_clips: int = 24, max_frames: int = 100_000) -> DataReport:
    """Read clips as a training run does that draws all files equally often, and list the files of its data.

    Args:
        config: The settings of the run.
        num_clips: Number of clips to read.
        max_frames: Videos are searched for cuts up to this number of frames together.

    Raises:
        DataError: There is no usable video.
    """
    check_count("num_clips", num_clips)
    spans = Spans.find(config.data, config.val_data, replace(config.clips, index="ahead"))
    dataset = ClipDataset(
        spans.train, replace(config.clips, cache=False, weighting="files"), seed=config.seed
    )
    batch_size = _BATCH_SIZE if config.batch_size == "auto" else config.batch_size
    sampler = ClipBatchSampler(range(num_clips), batch_size, config.gradient_accumulation_steps)
    clips = list(
        with_progress(_sample(dataset, sampler, num_clips), "reading clips", total=num_clips)
    )

    infos = list({span.info.source: span.info for span in spans.usable}.values())
    clips_config = config.clips
    if all(info.is_image for info in infos):
        # Training on images alone needs no `image_ratio`.
        clips_config = replace(clips_config, image_ratio=1.0)
    shortest = ClipFrames.shortest(clips_config)
    rows = _list_files(infos, dataset.spans, spans.held_out, clips_config, shortest)
    for skipped in spans.skipped:
        rows.append(FileRow(str(skipped.path), skipped.reason, is_used=False))

    cuts = _find_cuts_of_videos(infos, max_frames)
    # Lists do not name members.
    listed = [span for span in spans.usable if not isinstance(span.info.source, TarMember)]
    scenes = []
    if any(cuts.values()):
        scenes = [
            scene
            for scene in _split_at_cuts(listed, cuts)
            if scene.info.is_image or shortest.fits(scene)
        ]
    copies = _find_copies(infos)
    grouped = []
    if copies and scenes:
        scenes = _with_groups(scenes, config.clips.holdout, copies)
    elif copies:
        grouped = _with_groups(listed, config.clips.holdout, copies)

    held_out = []
    for span in spans.held_out:
        if _is_drawn(span.info, clips_config):
            held_out.append(span)
    ignored = Counter[str]()
    for path in paths_of(config.data):
        ignored.update(ignored_suffixes(path))
    report = DataReport(
        data=", ".join(paths_of(config.data)) or "the sample videos",
        clips=clips,
        files=rows,
        ignored=dict(ignored),
        copies=copies,
        scenes=scenes,
        grouped=grouped,
        num_searched=sum(positions is not None for positions in cuts.values()),
        num_left=sum(not info.is_image for info in infos) - len(cuts),
        num_cut=sum(bool(positions) for positions in cuts.values()),
        num_unlisted=len(spans.usable) - len(listed),
        num_train=sum(span.num_frames for span in dataset.spans),
        num_held_out=sum(span.num_frames for span in held_out),
        cache_bytes=num_cached_bytes(dataset.spans, config.clips),
        advice=[],
    )
    free_memory = psutil.virtual_memory().available
    return replace(report, advice=give_advice(report, config.clips, dataset.spans, free_memory))


def _is_drawn(info: VideoInfo, clips: ClipConfig) -> bool:
    """Return whether training draws such files: images, or videos."""
    if info.is_image:
        return clips.image_ratio > 0
    return clips.image_ratio < 1


def _sample(
    dataset: ClipDataset, sampler: ClipBatchSampler, num_clips: int
) -> Iterator[SampledClip]:
    for item in islice(chain.from_iterable(sampler), num_clips):
        start = time.perf_counter()
        decoded, spec, bucket = dataset.decode(item)
        clip = make_clip(decoded, spec, bucket)
        seconds = time.perf_counter() - start
        stored = bytes_from_video(clip["video"], dataset.config.bit_depth)
        frames = as_shown(stored, depth_range(stored))
        yield SampledClip(
            frames=frames,
            shape=tuple(stored.shape),
            source=clip["source"],
            start=clip["start"],
            fps=clip["fps"],
            seconds=seconds,
            flaws=tuple(find_flaws(frames)),
            orientation=spec.orientation,
        )


def _list_files(
    infos: Sequence[VideoInfo],
    train: Sequence[Span],
    held_out: Sequence[Span],
    clips: ClipConfig,
    shortest: ClipFrames,
) -> list[FileRow]:
    uses: defaultdict[Source, list[str]] = defaultdict(list)
    for use, spans in (("training", train), ("held out", held_out)):
        for span in spans:
            is_long_enough = span.info.is_image or shortest.fits(span)
            source = resolve_source(span.info.source)
            if is_long_enough and _is_drawn(span.info, clips) and use not in uses[source]:
                uses[source].append(use)

    rows = []
    for info in with_progress(infos, "reading files", total=len(infos)):
        source = resolve_source(info.source)
        is_used = bool(uses[source])
        if is_used:
            use = " and ".join(uses[source])
        elif info.is_image:
            use = "an image, and `clips.image_ratio` is 0"
        elif clips.image_ratio == 1:
            use = "a video, and `clips.image_ratio` is 1"
        elif shortest.is_too_slow(info):
            use = f"{info.fps:.3g} frames a second; `clips.fps` is {clips.fps:g}"
        else:
            use = f"{info.num_frames} frames; a clip needs {shortest.num_source_frames(info)}"
        codec, keyframe_distance = _codec_and_keyframe_distance(info)
        row = FileRow(
            path=str(info.source),
            use=use,
            is_used=is_used,
            is_image=info.is_image,
            codec=codec,
            num_bytes=num_bytes(info.source),
            width=info.width,
            height=info.height,
            fps=info.fps,
            num_frames=info.num_frames,
            keyframe_distance=keyframe_distance,
        )
        rows.append(row)
    return rows


def _codec_and_keyframe_distance(info: VideoInfo) -> tuple[str, int | None]:
    if info.is_array:
        return "array", None
    if info.is_image:
        return "image", None
    keyframes = info.keyframes if info.seekable else []
    starts = [0, *keyframes, info.num_frames]
    distance = max(after - before for before, after in pairwise(starts))
    with open_video(info.source) as (_, stream):
        codec = stream.codec_context.name
    return f"{codec}, {info.hdr}" if info.hdr else codec, distance


def _find_copies(infos: Sequence[VideoInfo]) -> list[list[str]]:
    """Return the groups of videos and images that are copies of each other, by their bytes or by their frames."""
    groups = []
    repeated = set()
    for same_size in _grouped([info.source for info in infos], num_bytes):
        # Only files of the same size are read.
        for same_bytes in _grouped(same_size, _digest):
            groups.append(same_bytes)
            repeated.update(same_bytes[1:])

    others = [info for info in infos if info.source not in repeated]
    step = max(1, -(-len(others) // _MAX_COMPARED))
    compared = []
    hashes = []
    for info in with_progress(others[::step], "comparing files"):
        file_hashes = _hash_frames(info)
        if file_hashes is not None:
            compared.append(info.source)
            hashes.append(file_hashes)
    for positions in group_copies(hashes):
        groups.append([compared[position] for position in positions])
    return [[str(path) for path in group] for group in groups]


def _with_groups(
    spans: Sequence[Span], holdout: str, copies: Sequence[Sequence[str]]
) -> list[Span]:
    """Return spans with the groups that a run holds out together, and copies in one of them."""
    group_of: dict[str, int] = {}
    for number, group in enumerate(group_spans(spans, holdout)):
        for span in group:
            group_of[str(span.info.source)] = number
    for paths in copies:
        joined = {group_of[path] for path in paths if path in group_of}
        if len(joined) < 2:
            continue
        for path, number in group_of.items():
            if number in joined:
                group_of[path] = min(joined)
    return [replace(span, group=str(group_of[str(span.info.source)])) for span in spans]


def _grouped(sources: Sequence[Source], key: Callable[[Source], object]) -> list[list[Source]]:
    """Return the groups of two or more sources with the same key."""
    groups: defaultdict[object, list[Source]] = defaultdict(list)
    for source in sources:
        groups[key(source)].append(source)
    return [group for group in groups.values() if len(group) > 1]


def _digest(source: Source) -> str:
    def digest(local: Path | TarMember) -> str:
        part = (local.offset, local.size) if isinstance(local, TarMember) else ()
        return digest_of(Path(str(file_of(local))), *part)

    return open_local(source, digest, reads="whole")


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
        value = frame_hash(_as_shown(frames)[0])
        if value is None:
            return None
        hashes.append(value)
    return tuple(hashes)


def _as_shown(frames: Tensor) -> Tensor:
    return as_shown(bytes_from_video(video_from_bytes(frames)))


def _find_cuts_of_videos(
    infos: Sequence[VideoInfo], max_frames: int
) -> dict[Source, list[int] | None]:
    """Return the cuts in each of the first videos that have `max_frames` together; None if a frame does not decode."""
    searched = []
    num_frames = 0
    for info in infos:
        if info.is_image:
            continue
        num_frames += info.num_frames
        if num_frames <= max_frames:
            searched.append(info)

    cuts: dict[Source, list[int] | None] = {}
    for info in with_progress(searched, "finding cuts"):
        grids = (
            brightness(_as_shown(frame[None])) for frame in iterate_frames(info, _SEARCHED_SIZE)
        )
        try:
            frame_changes = [float(changes(torch.cat(pair))) for pair in pairwise(grids)]
        except DecodeError as error:  # training replaces the clips of such a file, too
            logger.warning("no cuts were searched for in %s: %s", info.source, error)
            cuts[info.source] = None
            continue
        is_whole = len(frame_changes) == info.num_frames - 1  # an edit list may leave out some
        cuts[info.source] = find_cuts(frame_changes) if is_whole else None
    return cuts


def _split_at_cuts(
    spans: Sequence[Span], cuts: Mapping[Source, list[int] | None]
) -> Iterator[Span]:
    for span in spans:
        starts = [span.first_frame]
        for cut in cuts.get(span.info.source) or []:
            if span.first_frame < cut <= span.last_frame:
                starts.append(cut)
        for first, end in pairwise([*starts, span.last_frame + 1]):
            yield Span(span.info, first, end - 1)
