"""From decoded frames to clips."""

import hashlib
from itertools import product

import pytest
import torch

from telecine.data import bytes_from_video, clips_sha256, pixels_sha256, read_clip, video_from_bytes
from telecine.data.clip import ClipSpec, decode_clip, make_clip, resize_frames
from telecine.settings import Bucket, ClipConfig

from .videos import moving_frames

FRAMES = moving_frames(2, 48, 64)


@pytest.fixture
def spec(spans):
    """Return a function that builds the spec of a clip, by default without changes."""

    def build(zoom=1.0, top=0.5, left=0.5, flip=False, **options):
        return ClipSpec(spans[0], 3, zoom, top, left, flip, **options)

    return build


def test_bytes_and_video_are_converted_exactly():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 2, 8, 16, 1).expand(2, -1, -1, -1, 3)
    video = video_from_bytes(frames)
    assert video.shape == (2, 3, 2, 8, 16)
    assert (video.min(), video.max()) == (-1, 1)
    assert torch.equal(bytes_from_video(video), frames)
    assert torch.equal(bytes_from_video(video.double()), frames)
    assert bytes_from_video(torch.tensor([-9.0, 9.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [
        0,
        255,
    ]
    torch.testing.assert_close(video, 2 * frames.movedim(-1, -4).float() / 255 - 1)
    deep = torch.arange(65536).to(torch.uint16).reshape(1, 256, 256, 1)
    assert (video_from_bytes(deep).min(), video_from_bytes(deep).max()) == (-1, 1)
    assert torch.equal(bytes_from_video(video_from_bytes(deep), 16), deep)


def test_other_types_and_shapes_are_rejected():
    for wrong in (FRAMES.int(), FRAMES[0]):
        with pytest.raises(ValueError, match="`frames` must be uint8"):
            video_from_bytes(wrong)
    for wrong in (FRAMES, FRAMES[0].float()):
        with pytest.raises(ValueError, match="`video` must be floating point"):
            bytes_from_video(wrong)


@pytest.mark.parametrize(("top", "left"), [(0.0, 0.0), (0.5, 0.25), (1.0, 1.0)])
@pytest.mark.parametrize("flip", [False, True])
def test_crop_position_and_flip(spec, top, left, flip):
    clip = make_clip(FRAMES, spec(top=top, left=left, flip=flip, stride=2), Bucket(2, 32, 40))
    row = round(top * 16)
    column = round(left * 24)
    expected = video_from_bytes(FRAMES[:, row : row + 32, column : column + 40])
    assert torch.equal(clip["video"], expected.flip(-1) if flip else expected)
    info = spec().span.info
    assert (clip["source"], clip["start"], clip["fps"]) == (str(info.source), 3, info.fps / 2)


TURNS = {"turned by 90° to the left": 1, "turned by 180°": 2, "turned by 90° to the right": 3}


def test_the_eight_orientations_of_a_square_are_named(spec):
    videos = []
    for flip, upside_down, transpose in product((False, True), repeat=3):
        turned = spec(flip=flip, upside_down=upside_down, transpose=transpose)
        video = make_clip(FRAMES, turned, Bucket(2, 32, 32))["video"]
        expected = video_from_bytes(FRAMES[:, 8:40, 16:48])
        for words in filter(None, turned.orientation.split(", ")):
            expected = (
                expected.flip(-1)
                if words == "mirrored"
                else torch.rot90(expected, TURNS[words], (-2, -1))
            )
        assert torch.equal(video, expected)
        assert video.is_contiguous()
        assert not any(torch.equal(video, other) for other in videos)
        videos.append(video)
    assert spec().orientation == ""


@pytest.mark.parametrize(("zoom", "size"), [(2.0, (64, 85)), (1.6, (51, 68)), (1.0, (32, 43))])
def test_zoomed_clips_are_resized_once(spec, zoom, size):
    """The frames are decoded at the size of which the clip is a crop."""
    bucket = Bucket(2, 32, 40)
    zoomed = spec(zoom)
    frames = decode_clip(zoomed, bucket, ClipConfig(2, 32, 40, scale_jitter=2.0))
    info = zoomed.span.info
    assert torch.equal(frames, read_clip(info, 3, 2, size=size))
    top = round((size[0] - 32) / 2)
    left = round((size[1] - 40) / 2)
    expected = video_from_bytes(frames[:, top : top + 32, left : left + 40])
    assert torch.equal(make_clip(frames, zoomed, bucket)["video"], expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_frames_are_resized_as_files_are(spans, dtype):
    frames = read_clip(spans[1].info, 4, 3)
    expected = read_clip(spans[1].info, 4, 3, size=(24, 60)).float()
    scale = {torch.uint8: 1, torch.uint16: 257, torch.float32: 1 / 255}[dtype]
    resized = resize_frames((frames.int() * scale).to(dtype), (24, 60))
    assert resized.dtype == dtype
    error = resized.float() / scale - expected
    assert error.abs().mean() < 1.5


def test_the_hash_of_clips_depends_on_every_pixel_and_their_order():
    first = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    second = first.clone()
    second[1, 3, 3, 2] = 1
    a = pixels_sha256(first)
    b = pixels_sha256(second)
    assert a == hashlib.sha256(bytes(2 * 4 * 4 * 3)).hexdigest()
    assert clips_sha256([a, b]) == hashlib.sha256(f"{a}\n{b}".encode()).hexdigest()
    assert len({clips_sha256(hashes) for hashes in ([a, b], [b, a], [a], [b])}) == 4
