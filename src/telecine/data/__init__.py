"""Video files in, training clips out. Needs PyAV 17 or newer, which `pip install "telecine[train]"` brings."""

from telecine.data.cache import DecodedCache, num_cached_bytes
from telecine.data.clips import (
    Clip,
    ClipDataset,
    IndexSampler,
    bytes_from_video,
    clip_loader,
    iterate_validation_clips,
    validation_clips,
    video_from_bytes,
)
from telecine.data.config import ClipConfig
from telecine.data.decode import iterate_clips, iterate_frames, read_clip
from telecine.data.errors import DataError, DecodeError
from telecine.data.index import Skipped, find_videos, index_video, index_videos
from telecine.data.info import VideoInfo
from telecine.data.progress import with_progress
from telecine.data.samples import sample_videos
from telecine.data.split import Span, split_videos, whole_video

__all__ = [
    "Clip",
    "ClipConfig",
    "ClipDataset",
    "DataError",
    "DecodeError",
    "DecodedCache",
    "IndexSampler",
    "Skipped",
    "Span",
    "VideoInfo",
    "bytes_from_video",
    "clip_loader",
    "find_videos",
    "index_video",
    "index_videos",
    "iterate_clips",
    "iterate_frames",
    "iterate_validation_clips",
    "num_cached_bytes",
    "read_clip",
    "sample_videos",
    "split_videos",
    "validation_clips",
    "video_from_bytes",
    "whole_video",
    "with_progress",
]
