"""Checks of videos, frames and pairs of tensors."""

import warnings

import pytest
import torch

from telecine.base.shapes import (
    check_frames,
    check_range,
    check_same_shape,
    check_video,
    check_video_pair,
)


@pytest.mark.parametrize(
    ("value", "got", "remedy"),
    [
        ([1.0], r"\[1.0\] \(list\)", r"torch.as_tensor"),
        (None, r"None", r"torch.as_tensor"),
        (torch.zeros(3, 4, 8, 8), r"shape \(3, 4, 8, 8\)", r"\[None\]"),
        (torch.zeros(1, 1, 3, 4, 8, 8), r"shape \(1, 1, 3, 4, 8, 8\)", r"\[None\]"),
        (torch.zeros(1, 3, 4, 8, 8, dtype=torch.uint8), "torch.uint8", r"127\.5"),
        (torch.zeros(1, 3, 4, 8, 8, dtype=torch.complex64), "torch.complex64", r"127\.5"),
        (torch.zeros(0, 3, 4, 8, 8), r"shape \(0, 3, 4, 8, 8\)", "empty"),
        (torch.zeros(2, 3, 0, 8, 8), r"shape \(2, 3, 0, 8, 8\)", "empty"),
    ],
)
def test_check_video(value, got, remedy):
    with pytest.raises(
        ValueError, match=rf"`clip` must be a floating-point tensor.*but got .*{got}.*{remedy}"
    ):
        check_video("clip", value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_check_range(dtype):
    x = torch.linspace(-1.04, 1.04, 7, dtype=dtype).view(1, 1, 1, 1, 7)
    assert check_range("clip", x) is None
    for low, high in ((0, 255), (-1.2, 0), (0, float("inf"))):
        with pytest.raises(
            ValueError,
            match=r"`clip` must be in the range \[-1, 1\], but got values from .* to .*Map",
        ):
            check_range("clip", torch.tensor([low, high], dtype=dtype).view(1, 1, 1, 1, 2))


def test_nan_is_not_a_question_of_range_and_other_devices_are_not_waited_for():
    assert check_range("clip", torch.full((1, 1, 1, 1, 1), float("nan"))) is None
    assert check_range("clip", torch.full((1, 1, 1, 1, 1), 9.0, device="meta")) is None


@pytest.mark.parametrize(
    ("value", "got", "remedy"),
    [
        ("x", r"'x' \(str\)", "pick_frames"),
        (torch.zeros(1, 3, 2, 4, 4), r"shape \(1, 3, 2, 4, 4\)", "pick_frames"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "torch.uint8", r"127\.5"),
    ],
)
def test_check_frames(value, got, remedy):
    with pytest.raises(
        ValueError,
        match=rf"`x` must be a floating-point tensor of shape \(N.*got .*{got}.*{remedy}",
    ):
        check_frames("x", value)


def test_check_same_shape():
    x = torch.zeros(2, 3)
    check_same_shape("x", x, "y", x.double())
    with pytest.raises(
        ValueError, match=r"`x` must be of `y`'s shape \(2, 1\), but got .*\(2, 3\) on cpu. Crop or"
    ):
        check_same_shape("x", x, "y", x[:, :1])


def test_videos_on_two_devices():
    video = torch.zeros(1, 3, 1, 4, 4)
    with pytest.raises(
        ValueError, match=r"`reconstructions` must be on the same device.*, cpu.* on meta. Move"
    ):
        check_video_pair(video, video.to("meta"))


def test_a_batch_that_may_be_meant_for_another_range_is_warned_of():
    with pytest.warns(UserWarning, match=r"`x` has no value below 0. If its range is \[0, 1\]"):
        check_range("x", torch.rand(1, 3, 2, 4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_range("x", torch.rand(1, 3, 2, 4, 4) - 0.5)
        check_range("x", torch.zeros(1, 3, 2, 4, 4))
