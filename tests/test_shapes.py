"""Argument errors say what was expected, what came, and how to mend it."""

import pytest
import torch

from telecine.shapes import argument_error, check_range, check_video, describe


def test_describe():
    assert describe(torch.zeros(2, 3)) == "a torch.float32 tensor of shape (2, 3) on cpu"
    assert describe("x") == "'x' (str)"
    assert describe(None) == "None (NoneType)"
    long = describe("x" * 1000)
    assert len(long) < 100
    assert long.endswith("... (str)")


def test_argument_error():
    error = argument_error("size", "even", 3, "Add one.")
    assert isinstance(error, ValueError)
    assert str(error) == "`size` must be even, but got 3 (int). Add one."
    assert isinstance(argument_error("size", "even", "a text", "x", TypeError), TypeError)
    assert "but got a text. " in str(argument_error("size", "even", "a text", "Mend it."))


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
    with pytest.raises(ValueError, match=rf"`clip` must be a floating-point tensor.*but got .*{got}.*{remedy}"):
        check_video("clip", value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_videos_of_every_floating_type_pass(dtype):
    assert check_video("clip", torch.zeros(1, 3, 1, 1, 1, dtype=dtype)) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_check_range(dtype):
    x = torch.linspace(-1.04, 1.04, 7, dtype=dtype).view(1, 1, 1, 1, 7)
    assert check_range("clip", x) is None
    for low, high in ((0, 255), (-1.2, 0), (0, float("inf"))):
        with pytest.raises(ValueError, match=r"`clip` must be in the range \[-1, 1\], but got values from .* to .*Map"):
            check_range("clip", torch.tensor([low, high], dtype=dtype).view(1, 1, 1, 1, 2))


def test_nan_is_not_a_question_of_range_and_other_devices_are_not_waited_for():
    assert check_range("clip", torch.full((1, 1, 1, 1, 1), float("nan"))) is None
    assert check_range("clip", torch.full((1, 1, 1, 1, 1), 9.0, device="meta")) is None
