"""Two short videos, and a span of each."""

import pytest

from telecine.data import Span, index_video

from .videos import moving_frames, write_video


@pytest.fixture(scope="session")
def spans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    short = index_video(write_video(folder / "short.mp4", moving_frames(12), g="5"))
    long = index_video(write_video(folder / "long.mp4", moving_frames(40, 36, 90, seed=1), g="10"))
    return [Span(short, 0, 11), Span(long, 4, 35)]
