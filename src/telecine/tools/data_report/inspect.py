"""What a training run will see of its data: its first clips, measured, and its files with their use and copies."""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import check_count, count
from telecine.base.devices import gigabytes
from telecine.base.files import digest_of
from telecine.base.terminal import with_progress
from telecine.base.yaml_files import read_package_yaml
from telecine.data import ClipBatchSampler, ClipDataset, DecodeError, Span, VideoInfo, iterate_frames
from telecine.data.clip import bytes_from_video, make_clip, video_from_bytes
from telecine.data.dataset import num_cached_bytes
from telecine.data.decode import open_video, read_clip
from telecine.data.find import ignored_suffixes
from telecine.data.index_cache import num_bytes
from telecine.data.remote import open_local
from telecine.data.source import Source, TarMember, file_of, resolve_source
from telecine.report.video import as_shown, depth_range
from telecine.settings import ClipConfig, TrainConfig
from telecine.training.clips import Spans

_BATCH_SIZE = 4  # if `batch_size` is "auto", which a device decides
# Decoding begins at a keyframe: at larger distances, most of the frames that are decoded are not used.
_LONG_DISTANCE = 60
_CACHE_FRACTION = 0.5  # of the free memory; the rest is for the networks
_MAX_COMPARED = 500  # of more files, evenly spaced ones are compared by their frames: each file takes three seeks
_HASHED_SIZE, _HASHED_POSITIONS = (72, 64), (0.25, 0.5, 0.75)
_DARK = 0.05  # a mean brightness below it, from 0 to 1, is black
_STILL = 0.002  # a mean change of brightness below it is none: half of a level of 8 bits
_LARGE_FRACTION = 0.2  # of all frames, in one file
_MAX_BITS = 4  # of 64, in which the hashes of a frame and of its copy may differ
_CUT = 0.06  # at a cut the mean change is above it, and more than _CUT_RATIO times the changes before and after
_CUT_RATIO = 2.5
_GRID = 32  # parts of height and of width over which brightness is averaged: the noise of single pixels is no change
_DECODED_SIZE = (64, 64)
logger = logging.getLogger(__name__)

DEFINITIONS: dict[str, str] = read_package_yaml("telecine.tools.data_report", "definitions.yaml")
_ADVICE: dict[str, str] = read_package_yaml("telecine.tools.data_report", "advice.yaml")


@dataclass(frozen=True)
class SampledClip:
    """A clip as training sees it: uint8 frames `(T, H, W, 3)`, their file, and the index of the first one in it."""

    frames: Tensor  # as they are shown, with channels that are no colours side by side
    shape: tuple[int, ...]  # of the clip itself, `(T, H, W, C)`
    source: str
    start: int
    fps: float
    seconds: float  # reading time on one core
    remarks: tuple[str, ...]  # what is unusual about it: black, static, a cut
    orientation: str  # how it was mirrored and turned, in words; empty if it was not


@dataclass(frozen=True)
class _FileRow:
    path: str
    use: str  # or why it is not used
    is_used: bool
    is_image: bool = False  # false also for a file that cannot be read
    codec: str = ""
    num_bytes: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    num_frames: int = 0
    keyframe_distance: int | None = None  # most frames from a keyframe to the next, or to the end; None for an image


@dataclass(frozen=True)
class DataReport:
    """What a training run will see."""

    data: str
    clips: list[SampledClip]
    files: list[_FileRow]  # the usable files, then the others
    ignored: dict[str, int]  # number of files of other kinds in the folder, by suffix
    copies: list[list[str]]
    scenes: list[Span]  # the parts of the training data between the cuts that were found; nothing without cuts
    num_searched: int  # files that were searched for cuts
    num_left: int  # videos that `max_frames` left out of the search
    num_cut: int  # files with a cut
    num_unlisted: int  # videos and images in tar files, whose scenes are left out
    num_train: int  # frames to train on
    num_held_out: int
    cache_bytes: int  # of all training frames, decoded at the size of the clips
    advice: list[str]

    @property
    def clips_per_second(self) -> float:
        """Number of sampled clips that one core reads in a second."""
        return len(self.clips) / sum(clip.seconds for clip in self.clips)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, without the frames."""
        values = asdict(replace(self, clips=[], scenes=[])) | {"scenes": len(self.scenes)}
        clips = map(vars, self.clips)
        values["clips"] = [{name: value for name, value in clip.items() if name != "frames"} for clip in clips]
        return values | {"clips_per_second": self.clips_per_second, "definitions": DEFINITIONS}


def inspect_data(config: TrainConfig, num_clips: int = 24, max_frames: int = 100_000) -> DataReport:
    """Read `num_clips` clips as a training run does that draws all files equally often, and list the files of its data.

    Files are searched for cuts up to `max_frames` together. Raises a `DataError` if there is no usable video.
    """
    check_count("num_clips", num_clips)
    spans = Spans.find(config.data, config.val_data, config.clips)
    dataset = ClipDataset(spans.train, replace(config.clips, cache=False, weighting="files"), seed=config.seed)
    size = _BATCH_SIZE if config.batch_size == "auto" else config.batch_size
    sampler = ClipBatchSampler(range(num_clips), size, config.gradient_accumulation_steps)
    clips = list(with_progress(_sample(dataset, sampler, num_clips), "reading clips", total=num_clips))
    infos = list({span.info.path: span.info for span in spans.usable}.values())
    used = {True: dataset.image_ratio > 0, False: dataset.image_ratio < 1}  # images, videos
    held_out = [span for span in spans.held_out if used[span.info.is_image]]
    spans = replace(spans, train=dataset.spans, held_out=held_out)
    skipped = (_FileRow(str(each.path), each.reason, is_used=False) for each in spans.skipped)
    found = _find_cuts(infos, max_frames)
    shortest = min(map(config.clips.span_of, config.clips.train_buckets))
    in_list = [span for span in spans.usable if not isinstance(span.info.path, TarMember)]  # lists do not name members
    scenes = [scene for scene in _scenes_of(in_list, found) if scene.info.is_image or scene.num_frames >= shortest]
    report = DataReport(
        data=config.data or "the sample videos",
        clips=clips,
        files=[*_rows(infos, spans, config.clips, shortest), *skipped],
        ignored=dict(ignored_suffixes(config.data)) if config.data else {},
        copies=_groups_of_copies(infos),
        scenes=scenes if any(found.values()) else [],
        num_searched=sum(cuts is not None for cuts in found.values()),
        num_left=sum(not info.is_image for info in infos) - len(found),
        num_cut=sum(bool(cuts) for cuts in found.values()),
        num_unlisted=len(spans.usable) - len(in_list),
        num_train=sum(span.num_frames for span in spans.train),
        num_held_out=sum(span.num_frames for span in spans.held_out),
        cache_bytes=num_cached_bytes(dataset.spans, config.clips),
        advice=[],
    )
    return replace(report, advice=list(_advice(report, config.clips, spans.train)))


def _sample(dataset: ClipDataset, sampler: ClipBatchSampler, num_clips: int) -> Iterator[SampledClip]:
    for item in islice(chain.from_iterable(sampler), num_clips):
        start = time.perf_counter()
        decoded, spec, bucket = dataset.decode(item)
        clip = make_clip(decoded, spec, bucket)
        seconds = time.perf_counter() - start
        stored = bytes_from_video(clip["video"], dataset.config.bit_depth)
        frames = as_shown(stored, depth_range(stored))
        remarks = tuple(_remarks(_brightness(frames)))
        facts = clip["source"], clip["start"], clip["fps"], seconds, remarks, spec.orientation
        yield SampledClip(frames, tuple(stored.shape), *facts)


def _remarks(grid: Tensor) -> Iterator[str]:
    """Yield what is unusual about a clip of this `brightness`. A single frame is not static."""
    found = _changes(grid)
    if grid.mean(dim=(1, 2)).max() < _DARK:
        yield "black"
    elif len(grid) > 1 and found.max() < _STILL:
        yield "static"
    for position in _cuts(found.tolist()):
        yield f"cut before frame {position}"


def _rows(infos: Sequence[VideoInfo], spans: Spans, clips: ClipConfig, shortest: int) -> Iterator[_FileRow]:
    uses: defaultdict[Source, dict[str, None]] = defaultdict(dict)
    for use, used in (("training", spans.train), ("held out", spans.held_out)):
        for span in used:
            if span.info.is_image or span.num_frames >= shortest:
                uses[resolve_source(span.info.path)][use] = None
    for info in with_progress(infos, "reading files", total=len(infos)):
        if found := uses.get(resolve_source(info.path)):
            use = " and ".join(found)
        elif info.is_image:
            use = "an image, and `clips.image_ratio` is 0"
        elif clips.image_ratio == 1:
            use = "a video, and `clips.image_ratio` is 1"
        else:
            use = f"{info.num_frames} frames; a clip needs {shortest}"
        codec, distance = "array" if info.layout else "image", None
        if not (info.is_image or info.layout):
            starts = [0, *info.keyframes] if info.seekable else [0]
            distance = max(b - a for a, b in pairwise([*starts, info.num_frames]))
            with open_video(info.path) as (_, stream):
                codec = stream.codec_context.name
        facts = codec, num_bytes(info.path), info.width, info.height, info.fps, info.num_frames
        yield _FileRow(str(info.path), use, bool(found), info.is_image, *facts, distance)


def _groups_of_copies(infos: Sequence[VideoInfo]) -> list[list[str]]:
    """Return the groups of videos and images that are copies of each other, by their bytes or by their frames."""
    by_size = _grouped([info.path for info in infos], num_bytes)  # only files of the same size are read
    by_bytes = [copies for group in by_size for copies in _grouped(group, _digest)]
    repeated = {path for group in by_bytes for path in group[1:]}
    others = [info for info in infos if info.path not in repeated]
    step = -(-len(others) // _MAX_COMPARED) or 1
    hashed = [(info, found) for info in with_progress(others[::step], "comparing files") if (found := _hashes(info))]
    by_frames = [[hashed[index][0].path for index in group] for group in _copies([found for _, found in hashed])]
    return [[str(path) for path in group] for group in by_bytes + by_frames]


def _grouped(sources: Sequence[Source], key: Callable[[Source], object]) -> list[list[Source]]:
    groups: defaultdict[object, list[Source]] = defaultdict(list)
    for source in sources:
        groups[key(source)].append(source)
    return [group for group in groups.values() if len(group) > 1]


def _digest(source: Source) -> str:
    part = (source.offset, source.size) if isinstance(source, TarMember) else ()
    return open_local(source, lambda local: digest_of(Path(str(file_of(local))), *part))


def _hashes(info: VideoInfo) -> tuple[int, ...]:
    """Return the hashes of three frames of a video or of an image, or nothing if one is flat or cannot be decoded."""
    positions = [0] if info.is_image else [int(part * info.num_frames) for part in _HASHED_POSITIONS]
    try:
        found = [_frame_hash(_shown(read_clip(info, position, 1, size=_HASHED_SIZE))[0]) for position in positions]
    except DecodeError:
        return ()  # training replaces its clips, too, and logs the file
    return tuple(each for each in found if each is not None) if None not in found else ()


def _shown(frames: Tensor) -> Tensor:
    return as_shown(bytes_from_video(video_from_bytes(frames)))


def _frame_hash(frame: Tensor) -> int | None:
    """Return the difference hash of a uint8 frame `(H, W, 3)`; None if it is flat, as black frames are."""
    grid = F.adaptive_avg_pool2d(frame.float().mean(dim=-1)[None] / 255, (8, 9))[0]
    if grid.std() < _STILL * 10:
        return None
    bits = (grid[:, 1:] > grid[:, :-1]).flatten().tolist()
    return sum(1 << index for index, bit in enumerate(bits) if bit)


def _copies(hashes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Return the groups of two or more files, by position, that are copies of the first of their group."""
    groups: dict[int, list[int]] = {}
    left = [*range(len(hashes))]
    while left:
        first = hashes[left[0]]
        same_length = (i for i in left if len(hashes[i]) == len(first))
        pairs = ((i, zip(first, hashes[i], strict=True)) for i in same_length)
        groups[left[0]] = [i for i, each in pairs if all((a ^ b).bit_count() <= _MAX_BITS for a, b in each)]
        left = [i for i in left if i not in groups[left[0]]]
    return [group for group in groups.values() if len(group) > 1]


def _advice(report: DataReport, clips: ClipConfig, train: Sequence[Span]) -> Iterator[str]:
    if not clips.cache:
        speed, workers = report.clips_per_second, count(clips.num_workers, "worker")
        yield _ADVICE["speed"].format(speed=speed, workers=workers, most=speed * max(clips.num_workers, 1))
        distances = [row.keyframe_distance for row in report.files if row.is_used and row.keyframe_distance is not None]
        if far := sum(distance > _LONG_DISTANCE for distance in distances):
            yield _ADVICE["keyframes"].format(limit=_LONG_DISTANCE, far=far, total=len(distances))
    fits = report.cache_bytes < _CACHE_FRACTION * psutil.virtual_memory().available
    size = gigabytes(report.cache_bytes)
    yield _ADVICE[("kept" if clips.cache else "fits") if fits else "does_not_fit"].format(size=size)
    if num_unusual := sum(bool(clip.remarks) for clip in report.clips):
        yield _ADVICE["unusual"].format(unusual=num_unusual, total=len(report.clips))
    num_videos = sum(bool(row.codec) and not row.is_image for row in report.files)
    if report.scenes or report.num_left:
        numbers = {"cut": report.num_cut, "searched": report.num_searched, "total": num_videos}
        yield _ADVICE["scenes" if report.scenes else "searched"].format(**numbers)
    if report.scenes and report.num_unlisted:
        yield _ADVICE["unlisted"].format(unlisted=report.num_unlisted)
    frames = Counter[Source]()
    for span in (each for each in train if clips.weighting == "frames" and not each.info.is_image):
        frames[span.info.path] += span.num_frames
    for path, most in frames.most_common(1):
        if (fraction := most / frames.total()) > max(_LARGE_FRACTION, 1.5 / len(frames)):
            yield _ADVICE["longest"].format(path=path, fraction=fraction)
    if report.copies:
        yield _ADVICE["copies"].format(copies=len(report.copies))


def _brightness(frames: Tensor) -> Tensor:
    """Return the brightness of uint8 frames `(T, H, W, 3)` in [0, 1], averaged over a grid: `(T, 32, 32)`."""
    luma = frames.float() @ torch.tensor([0.299, 0.587, 0.114]) / 255
    return F.adaptive_avg_pool2d(luma, _GRID)


def _changes(grid: Tensor) -> Tensor:
    """Return the mean absolute change of `brightness` from each frame to the next, `(T - 1,)`."""
    return (grid[1:] - grid[:-1]).abs().mean(dim=(1, 2))


def _cuts(found: Sequence[float]) -> list[int]:
    """Return the position of each frame that begins a new scene, from the `changes` of all frames."""
    neighbours = zip([0.0, *found], [*found[1:], 0.0], strict=False)
    limits = [max(_CUT, _CUT_RATIO * max(pair)) for pair in neighbours]
    return [index for index, (change, limit) in enumerate(zip(found, limits, strict=False), 1) if change > limit]


def _find_cuts(infos: Sequence[VideoInfo], max_frames: int) -> dict[Source, list[int] | None]:
    """Return the cuts in each of the first videos that have `max_frames` together; None if a frame does not decode."""
    found: dict[Source, list[int] | None] = {}
    videos = [info for info in infos if not info.is_image]
    ends = accumulate(info.num_frames for info in videos)
    few = [info for info, end in zip(videos, ends, strict=True) if end <= max_frames]
    for info in with_progress(few, "finding cuts"):
        grids = (_brightness(_shown(frame[None])) for frame in iterate_frames(info, _DECODED_SIZE))
        found[info.path] = None
        try:
            all_changes = [float(_changes(torch.cat(pair))) for pair in pairwise(grids)]
        except DecodeError as error:  # training replaces the clips of such a file, too
            logger.warning("no cuts were searched for in %s: %s", info.path, error)
            continue
        if len(all_changes) == info.num_frames - 1:  # an edit list may leave out some
            found[info.path] = _cuts(all_changes)
    return found


def _scenes_of(spans: Sequence[Span], found: dict[Source, list[int] | None]) -> Iterator[Span]:
    for span in spans:
        inside = (cut for cut in found.get(span.info.path) or () if span.first_frame < cut <= span.last_frame)
        for first, end in pairwise([span.first_frame, *inside, span.last_frame + 1]):
            yield Span(span.info, first, end - 1)
