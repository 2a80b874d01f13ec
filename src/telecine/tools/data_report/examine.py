"""What a training run will see of its data: its first clips, measured, and its files with their use and copies."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice, pairwise

import torch

from telecine.base.checks import check_count
from telecine.base.devices import free_memory
from telecine.base.terminal import with_progress
from telecine.data import (
    ClipBatchSampler,
    ClipDataset,
    Span,
    VideoInfo,
)
from telecine.data.clip import bytes_from_video, make_clip
from telecine.data.clip_frames import ClipFrames
from telecine.data.decode import open_video
from telecine.data.decoded_cache import num_cached_bytes
from telecine.data.find import ignored_suffixes
from telecine.data.fingerprint import num_bytes
from telecine.data.paths import paths_of
from telecine.data.source import Source, TarMember, resolve_source
from telecine.settings import ClipConfig, TrainConfig
from telecine.tools.data_report.advice import give_advice
from telecine.tools.data_report.copies import find_copies, with_groups
from telecine.tools.data_report.measures import find_flaws
from telecine.tools.data_report.report import DataReport, FileRow, SampledClip
from telecine.tools.data_report.scenes import find_cuts_of_videos, split_at_cuts
from telecine.training.clips import Spans
from telecine.video.frames import as_shown, depth_range

_BATCH_SIZE = 4  # if `batch_size` is "auto", which a device decides


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

    infos = list({span.info.source: span.info for span in spans.usable.exact}.values())
    clips_config = config.clips
    if all(info.is_image for info in infos):
        # Training on images alone needs no `image_ratio`.
        clips_config = replace(clips_config, image_ratio=1.0)
    shortest = ClipFrames.shortest(clips_config)
    rows = _list_files(infos, dataset.spans.exact, spans.held_out.exact, clips_config, shortest)
    for skipped in spans.skipped:
        rows.append(FileRow(str(skipped.path), skipped.reason, is_used=False))

    cuts = find_cuts_of_videos(infos, max_frames)
    # Lists do not name members.
    listed = [span for span in spans.usable.exact if not isinstance(span.info.source, TarMember)]
    scenes = []
    if any(cuts.values()):
        scenes = [
            scene
            for scene in split_at_cuts(listed, cuts)
            if scene.info.is_image or shortest.fits(scene)
        ]
    copies = find_copies(infos)
    grouped = []
    if copies and scenes:
        scenes = with_groups(scenes, config.clips.holdout, copies)
    elif copies:
        grouped = with_groups(listed, config.clips.holdout, copies)

    held_out = []
    for span in spans.held_out.exact:
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
        num_train=int(dataset.spans.num_frames.sum()),
        num_held_out=sum(span.num_frames for span in held_out),
        cache_bytes=num_cached_bytes(dataset.spans.exact, config.clips),
        advice=[],
    )
    memory = free_memory(torch.device("cpu"))
    return replace(report, advice=give_advice(report, config.clips, dataset.spans.exact, memory))


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
        elif info.fps < shortest.min_fps:
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
