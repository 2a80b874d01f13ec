"""From decoded frames to clips."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from telecine.data import Span, bytes_from_video, clips_sha256, pixels_sha256, video_from_bytes
from telecine.data.clip import ClipSpec, make_clip
from telecine.models.interface import check_channels
from telecine.settings import Bucket, ClipConfig

from .videos import moving_frames


def test_bytes_and_video_are_converted_exactly() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 2, 8, 16, 1).expand(2, -1, -1, -1, 3)
    video = video_from_bytes(frames)
    assert video.shape == (2, 3, 2, 8, 16)
    assert (video.min(), video.max()) == (-1, 1)
    assert torch.equal(bytes_from_video(video), frames)
    assert torch.equal(bytes_from_video(video.double()), frames)
    assert bytes_from_video(torch.tensor([-9.0, 9.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]
    torch.testing.assert_close(video, 2 * frames.movedim(-1, -4).float() / 255 - 1)


def test_other_types_and_shapes_are_rejected() -> None:
    frames = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    for wrong in (frames.int(), frames[0]):
        with pytest.raises(ValueError, match="`frames` must be uint8"):
            video_from_bytes(wrong)
    for wrong in (frames, frames[0].float()):
        with pytest.raises(ValueError, match="`video` must be floating point"):
            bytes_from_video(wrong)


@pytest.mark.parametrize(("top", "left"), [(0.0, 0.0), (0.5, 0.25), (1.0, 1.0)])
@pytest.mark.parametrize("flip", [False, True])
def test_crop_position_and_flip(spans: list[Span], top: float, left: float, flip: bool) -> None:
    frames = moving_frames(2, 48, 64)
    spec = ClipSpec(spans[0], 3, crop_scale=1.0, top=top, left=left, flip=flip)
    clip = make_clip(frames, spec, Bucket(2, 32, 40))
    assert clip["fps"] == spans[0].info.fps
    assert make_clip(frames, replace(spec, stride=2), Bucket(2, 32, 40))["fps"] == spans[0].info.fps / 2
    row, column = round(top * 16), round(left * 24)
    expected = video_from_bytes(frames[:, row : row + 32, column : column + 40])
    assert torch.equal(clip["video"], expected.flip(-1) if flip else expected)
    assert (clip["source"], clip["start"]) == (str(spans[0].info.path), 3)


def test_the_eight_orientations_of_a_square(spans: list[Span]) -> None:
    frames = moving_frames(2, 48, 64)
    whole = video_from_bytes(frames[:, 8:40, 16:48])
    turned = [torch.rot90(whole, quarters, (-2, -1)) for quarters in range(4)]
    expected = turned + [video.flip(-1) for video in turned]
    found = [
        make_clip(frames, ClipSpec(spans[0], 0, 1.0, 0.5, 0.5, *flips), Bucket(2, 32, 32))["video"]
        for flips in product((False, True), repeat=3)
    ]
    matches = [[torch.equal(video, each) for each in expected].index(True) for video in found]
    assert sorted(matches) == list(range(8))
    assert all(video.is_contiguous() for video in found)


TURNS = {"turned by 90° to the left": 1, "turned by 180°": 2, "turned by 90° to the right": 3}


@pytest.mark.parametrize("flips", [*product((False, True), repeat=3)])
def test_the_orientation_in_words_is_what_was_done(spans: list[Span], flips: tuple[bool, bool, bool]) -> None:
    frames = moving_frames(2, 48, 64)
    spec = ClipSpec(spans[0], 0, 1.0, 0.5, 0.5, *flips)
    expected = video_from_bytes(frames[:, 8:40, 16:48])
    for word in filter(None, spec.orientation.split(", ")):
        expected = expected.flip(-1) if word == "mirrored" else torch.rot90(expected, TURNS[word], (-2, -1))
    assert torch.equal(make_clip(frames, spec, Bucket(2, 32, 32))["video"], expected)
    assert (spec.orientation == "") == (not any(flips))


def test_a_larger_crop_is_resized_to_the_clip(spans: list[Span]) -> None:
    frames = moving_frames(2, 48, 64)
    video = make_clip(frames, ClipSpec(spans[0], 0, 1.25, 0.5, 0.5, False), Bucket(2, 32, 40))["video"]
    crop = video_from_bytes(frames[:, 4:44, 7:57]).transpose(0, 1)
    resized = torch.nn.functional.interpolate(crop, (32, 40), mode="bilinear", antialias=True)
    assert torch.equal(video, resized.transpose(0, 1))
    assert video.is_contiguous()


def test_a_crop_is_never_larger_than_the_frames(spans: list[Span]) -> None:
    frames = moving_frames(1, 48, 64)
    video = make_clip(frames, ClipSpec(spans[0], 0, 9.0, 0.5, 0.5, False), Bucket(1, 48, 32))["video"]
    whole = torch.nn.functional.interpolate(
        video_from_bytes(frames).transpose(0, 1), (48, 32), mode="bilinear", antialias=True
    )
    assert torch.equal(video, whole.transpose(0, 1))


def test_the_hash_of_clips_depends_on_every_pixel_and_their_order() -> None:
    first = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    second = first.clone()
    second[1, 3, 3, 2] = 1
    a, b = map(pixels_sha256, (first, second))
    assert a == hashlib.sha256(bytes(2 * 4 * 4 * 3)).hexdigest()
    assert clips_sha256([a, b]) == hashlib.sha256(f"{a}\n{b}".encode()).hexdigest()
    assert len({clips_sha256(hashes) for hashes in ([a, b], [b, a], [a], [b])}) == 4


@pytest.mark.parametrize(("channels", "number"), [("grey", 1), ("rgba", 4)])
def test_channels_that_a_model_lacks_are_one_error_with_its_own(channels: str, number: int) -> None:
    model = SimpleNamespace(in_channels=3)
    check_channels(ClipConfig(), model)
    message = rf'of 3 channels.* got "{channels}".* Use a model with `in_channels` {number}, or clips'
    with pytest.raises(ValueError, match=message):
        check_channels(ClipConfig(channels=channels), model)
