"""Bytes and the range of models."""

from __future__ import annotations

import pytest
import torch

from telecine.data import bytes_from_video, video_from_bytes


def test_bytes_survive_the_way_to_the_unit_range_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 2, 8, 16, 1).expand(2, -1, -1, -1, 3)
    video = video_from_bytes(frames)
    assert video.shape == (2, 3, 2, 8, 16)
    assert (video.min(), video.max()) == (-1, 1)
    assert torch.equal(bytes_from_video(video), frames)
    assert torch.equal(bytes_from_video(video.double()), frames)
    assert bytes_from_video(torch.tensor([-9.0, 9.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]
    with pytest.raises(ValueError, match="`frames` must be uint8"):
        video_from_bytes(video)
    with pytest.raises(ValueError, match="`video` must be floating point"):
        bytes_from_video(frames)
