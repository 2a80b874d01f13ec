"""Video files in, training clips out. Needs PyAV 17 or newer, which `pip install "telecine[train]"` brings."""

from telecine.data.bucket import AcceptsClips, Bucket, check_buckets
from telecine.data.cache import DecodedCache, num_cached_bytes
from telecine.data.clips import ClipDataset
from telecine.data.config import ClipConfig
from telecine.data.cut import Clip
from telecine.data.decode import iterate_clips, iterate_frames, read_clip
from telecine.data.errors import DataError, DecodeError
from telecine.data.find import find_stretches, find_videos
from telecine.data.image import index_image, read_image
from telecine.data.index import Skipped, index_video, index_videos
from telecine.data.info import VideoInfo
from telecine.data.lists import Stretch, read_list
from telecine.data.load import load_spans
from telecine.data.loader import Batch, BatchPlan, ClipLoader, clip_loader
from telecine.data.pixels import bytes_from_video, video_from_bytes
from telecine.data.progress import with_progress
from telecine.data.remembered import RememberedIndex, index_path
from telecine.data.samples import sample_videos
from telecine.data.source import TarMember, members_of
from telecine.data.split import Span, split_videos, whole_video
from telecine.data.validation import iterate_validation_clips, validation_clips

__all__ = [
    "AcceptsClips",
    "Batch",
    "BatchPlan",
    "Bucket",
    "Clip",
    "ClipConfig",
    "ClipDataset",
    "ClipLoader",
    "DataError",
    "DecodeError",
    "DecodedCache",
    "RememberedIndex",
    "Skipped",
    "Span",
    "Stretch",
    "TarMember",
    "VideoInfo",
    "bytes_from_video",
    "check_buckets",
    "clip_loader",
    "find_stretches",
    "find_videos",
    "index_image",
    "index_path",
    "index_video",
    "index_videos",
    "iterate_clips",
    "iterate_frames",
    "iterate_validation_clips",
    "load_spans",
    "members_of",
    "num_cached_bytes",
    "read_clip",
    "read_image",
    "read_list",
    "sample_videos",
    "split_videos",
    "validation_clips",
    "video_from_bytes",
    "whole_video",
    "with_progress",
]
