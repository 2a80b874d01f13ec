"""Reads video files as training clips. Needs PyAV 17 or newer, which the extra `train` installs."""

from telecine.data.clip import (
    Clip,
    SupportsClipSizes,
    bytes_from_video,
    check_buckets,
    clips_sha256,
    pixels_sha256,
    video_from_bytes,
)
from telecine.data.dataset import ClipDataset, DecodedCache, num_cached_bytes
from telecine.data.decode import iterate_frames, read_clip, read_image
from telecine.data.find import find_segments, find_videos, load_spans, sample_videos
from telecine.data.index import Skipped, index_image, index_video, index_videos, log_too_short
from telecine.data.index_cache import IndexCache, index_cache_path
from telecine.data.lists import Segment, read_list
from telecine.data.loader import ClipBatch, ClipBatchSampler, ClipLoader, ReadingStopped, clip_loader
from telecine.data.source import (
    DataError,
    DecodeError,
    RemotePath,
    Span,
    TarMember,
    VideoInfo,
    tar_members,
    whole_video,
)
from telecine.data.validation import iterate_validation_clips, split_videos, validation_clips

__all__ = [
    "Clip",
    "ClipBatch",
    "ClipBatchSampler",
    "ClipDataset",
    "ClipLoader",
    "DataError",
    "DecodeError",
    "DecodedCache",
    "IndexCache",
    "ReadingStopped",
    "RemotePath",
    "Segment",
    "Skipped",
    "Span",
    "SupportsClipSizes",
    "TarMember",
    "VideoInfo",
    "bytes_from_video",
    "check_buckets",
    "clip_loader",
    "clips_sha256",
    "find_segments",
    "find_videos",
    "index_cache_path",
    "index_image",
    "index_video",
    "index_videos",
    "iterate_frames",
    "iterate_validation_clips",
    "load_spans",
    "log_too_short",
    "num_cached_bytes",
    "pixels_sha256",
    "read_clip",
    "read_image",
    "read_list",
    "sample_videos",
    "split_videos",
    "tar_members",
    "validation_clips",
    "video_from_bytes",
    "whole_video",
]
