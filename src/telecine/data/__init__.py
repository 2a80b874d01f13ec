"""Reads video files as training clips. Needs PyAV 17 or newer, which the extra `train` installs.

| word | what it is |
|---|---|
| source | a file, an address, or a member of a tar file: one video or image |
| segment | a source and the part of it to use, as a line of a list writes it |
| span | consecutive frames of an indexed video, from `first_frame` to `last_frame` |
| bucket | a clip size: frames, height, width, and how often it is trained on |
| item | `(step, index)`: the number of a clip in a `ClipDataset` |
| spec | the frames, crop and flips of a clip |
| clip | frames as the model sees them: `video`, with its `source` and `start` |
| clip span | number of frames of the video from the first to the last frame of a clip |
| batch | clips of one size |
"""

from telecine.data.clip import Clip, bytes_from_video, clips_sha256, pixels_sha256, video_from_bytes
from telecine.data.dataset import ClipDataset, num_cached_bytes
from telecine.data.decode import iterate_frames, read_clip
from telecine.data.find import find_videos, load_spans, sample_videos
from telecine.data.index import Skipped, index_video, index_videos, log_too_short
from telecine.data.index_cache import IndexCache
from telecine.data.lists import read_list
from telecine.data.loader import ClipBatchSampler, ClipLoader, ReadingStopped, clip_loader
from telecine.data.source import DataError, DecodeError, Span, TarMember, VideoInfo, tar_members, whole_video
from telecine.data.validation import iterate_validation_clips, read_validation_clips, split_videos

__all__ = [
    "Clip",
    "ClipBatchSampler",
    "ClipDataset",
    "ClipLoader",
    "DataError",
    "DecodeError",
    "IndexCache",
    "ReadingStopped",
    "Skipped",
    "Span",
    "TarMember",
    "VideoInfo",
    "bytes_from_video",
    "clip_loader",
    "clips_sha256",
    "find_videos",
    "index_video",
    "index_videos",
    "iterate_frames",
    "iterate_validation_clips",
    "load_spans",
    "log_too_short",
    "num_cached_bytes",
    "pixels_sha256",
    "read_clip",
    "read_list",
    "read_validation_clips",
    "sample_videos",
    "split_videos",
    "tar_members",
    "video_from_bytes",
    "whole_video",
]
