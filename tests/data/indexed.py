"""Spans of videos and images that do not exist, and functions of tables with lists of spans."""

from array import array
from pathlib import Path

from telecine.data import VideoInfo, whole_video
from telecine.data.holdout import split_table
from telecine.data.span_table import SpanTable
from telecine.data.validation import leave_out

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


def split_videos(spans, config):
    """Return the spans to train on, and the held-out spans."""
    train, held_out = split_table(SpanTable.of(spans), config)
    return train.exact, held_out.exact


def without_held_out(spans, held_out):
    """Return the parts of spans that are not held out."""
    return leave_out(SpanTable.of(spans), SpanTable.of(held_out)).exact
