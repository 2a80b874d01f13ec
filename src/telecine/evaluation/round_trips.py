"""Round trips: a video is reconstructed, and its reconstruction is reconstructed again, pass after pass."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.data import bytes_from_video, index_video, read_clip, video_from_bytes
from telecine.models import VideoAutoencoder
from telecine.settings import Codec
from telecine.video.write import write_video

H264_CRF = 18
_H264_FPS = 25  # x264 chooses quantizers by the duration of a frame, too
CODECS: dict[Codec, str] = {
    "h264": f"H.264 by x264, crf {H264_CRF}, yuv420p, BT.709 of limited range, {_H264_FPS} frames per second"
}
"""What each codec is set to, for `protocol.json`."""


class Pass(NamedTuple):
    """A video after a number of passes, and its latent."""

    video: Video
    """`(B, C, T, H, W)` in [-1, 1]."""
    latent: Tensor | None
    """The mode of the posterior of `video`. None if the model does not return it."""


@torch.no_grad()
def round_trips(
    model: VideoAutoencoder, video: Video, num_passes: int, through: Codec | None = None
) -> Iterator[Pass]:
    """Yield the video itself, then what it is after each pass: `num_passes + 1` in all.

    A pass decodes the mode of the posterior and clamps the result to [-1, 1]. A codec rounds it to 8 bits.

    Args:
        model: The autoencoder, in eval mode.
        video: `(B, C, T, H, W)` in [-1, 1], of a size that the model accepts.
        num_passes: Passes.
        through: A codec that encodes and decodes the reconstruction of each pass, before the next one.

    Raises:
        ValueError: The codec does not have the channels of the video.
    """
    for number in range(num_passes + 1):
        # The last reconstruction is left unused: the call computes the latent.
        output = model(video, sample_posterior=False)
        yield Pass(video, output.latent)
        if number < num_passes:
            video = output.video.to(video.dtype).clamp(*VALUE_RANGE)
            if through is not None:
                video = through_h264(video)


def through_h264(video: Video) -> Video:
    """Return RGB `(B, 3, T, H, W)` in [-1, 1] after encoding each clip as H.264 and decoding it, see `CODECS`.

    Raises:
        ValueError: The video has other channels than RGB.
    """
    if video.shape[1] != 3:
        raise argument_error(
            "through",
            "left out unless clips are RGB",
            f"h264 for {video.shape[1]} channels",
            "Leave it out.",
        )
    num_frames, height, width = video.shape[2:]
    clips = []
    with TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        for clip in video:
            write_video(path, bytes_from_video(clip), _H264_FPS, crf=H264_CRF)
            frames = read_clip(index_video(path), 0, num_frames)
            # Without padding to even sizes.
            clips.append(video_from_bytes(frames)[:, :, :height, :width])
    return torch.stack(clips).to(video)
