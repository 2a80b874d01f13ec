"""Reads video files as training clips.

Needs PyAV 17 or newer, which the extra `train` installs: earlier ones confuse BT.709, the colour matrix of HD video,
with BT.601.

| word | what it is |
|---|---|
| source | a file, an address, or a member of a tar file: one video, image or array |
| index, info | the timestamps and keyframes of a source: `VideoInfo` |
| segment | a source, and the times or frames of it to use, as a line of a list says; or all of it: `Segment` |
| span | consecutive frames of an indexed source, from `first_frame` to `last_frame`: `Span` |
| estimated span | a segment, and its frames as the header of its source tells: `EstimatedSpan` |
| span table | spans as columns, all of indexed sources or all estimated: `SpanTable` |
| bucket | a clip size: frames, height, width, and how often it is trained on |
| item | `(step, index)`: the number of a clip in a `ClipDataset` |
| spec | the span, first frame, crop and flips that were drawn for a clip: `ClipSpec` |
| frames | decoded frames, `(T, H, W, C)` |
| clip | frames as the model sees them: `video`, with its `source` and `start` |
| clip frames | which frames of a video a clip has, by their number or their time: `ClipFrames` |
| source frames | the frames of a video from the first to the last frame of a clip |
| batch | clips of one size |

What identifies a file:

| identity | what it is a hash of | where |
|---|---|---|
| `VideoInfo.digest` | its size and bytes; of a large file, blocks of them | `index.py` |
| `Header.digest` | its size, its beginning and its end | `lazy/header.py` |
| `Fingerprint` | no hash: its size, and its time or a hash of its server's version | `fingerprint.py` |
| `key_of` | its name and its fingerprint | `index_keys.py` |
| `FileTable.process_local_ids` | its path without links; valid in this process only | `lazy/file_table.py` |
| `_digest_of_begin`, `_digest_of_end` | size and ends of a tar file, to which a sidecar belongs | `lazy/sidecar.py` |
"""

from telecine.data.clip import Clip as Clip
from telecine.data.clip import bytes_from_video as bytes_from_video
from telecine.data.clip import clips_sha256 as clips_sha256
from telecine.data.clip import pixels_sha256 as pixels_sha256
from telecine.data.clip import video_from_bytes as video_from_bytes
from telecine.data.clip_frames import ClipFrames as ClipFrames
from telecine.data.dataset import ClipDataset as ClipDataset
from telecine.data.decode import iterate_frames as iterate_frames
from telecine.data.decode import read_clip as read_clip
from telecine.data.errors import DataError as DataError
from telecine.data.errors import DecodeError as DecodeError
from telecine.data.find import find_videos as find_videos
from telecine.data.find import load_spans as load_spans
from telecine.data.index import index_video as index_video
from telecine.data.index import index_videos as index_videos
from telecine.data.loader import ClipBatchSampler as ClipBatchSampler
from telecine.data.loader import ClipLoader as ClipLoader
from telecine.data.loader import ReadingStopped as ReadingStopped
from telecine.data.loader import TrainingClips as TrainingClips
from telecine.data.samples import sample_videos as sample_videos
from telecine.data.source import Span as Span
from telecine.data.source import TarMember as TarMember
from telecine.data.source import VideoInfo as VideoInfo
from telecine.data.source import whole_video as whole_video
from telecine.data.tar_files import tar_members as tar_members
from telecine.data.validation import iterate_validation_clips as iterate_validation_clips
from telecine.data.validation import read_validation_clips as read_validation_clips

__all__ = [name for name in dir() if not name.startswith("_")]  # for the pages of the Python API
