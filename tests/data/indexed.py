"""Spans of videos and images that do not exist."""

from array import array
from pathlib import Path

from telecine.data import VideoInfo, whole_video

_ONE = array("q", [0])


def video(path, num_frames=30, digest=""):
    """Return the span of all frames of a video."""
    numbers = array("q", range(num_frames))
    return whole_video(VideoInfo(Path(path), 64, 48, 25.0, numbers, _ONE, digest=digest))


def videos(*lengths):
    """Return spans of videos `0.mp4`, `1.mp4`, ... with these numbers of frames."""
    return [video(f"{number}.mp4", length) for number, length in enumerate(lengths)]


def image(path, digest=""):
    """Return the span of an image."""
    return whole_video(VideoInfo(Path(path), 64, 48, 1.0, _ONE, _ONE, is_image=True, digest=digest))


def images(count):
    """Return spans of images `0.png`, `1.png`, ..."""
    return [image(f"{number}.png") for number in range(count)]
