"""Encoded videos and side-by-side layouts."""

from fractions import Fraction
from itertools import chain, pairwise

import av
import numpy as np
import pytest
import torch
from PIL import Image

from telecine.data import index_video, read_clip
from telecine.report.clips import write_preview
from telecine.video.frames import as_shown, depth_range, shrink
from telecine.video.panes import lay_out_panes, side_by_side
from telecine.video.write import write_image, write_video


def moving(num_frames, height, width):
    """Return a smooth moving pattern with saturated colours in its corners."""
    time = torch.arange(num_frames).view(-1, 1, 1) * 0.2
    rows = torch.arange(height).view(1, -1, 1) / 12
    columns = torch.arange(width).view(1, 1, -1) / 9
    channels = [
        128 + 110 * torch.sin(rows + time),
        128 + 110 * torch.cos(columns - time),
        255 * (rows + columns) / 20,
    ]
    video = torch.stack(torch.broadcast_tensors(*channels), dim=-1)
    return video.clamp(0, 255).round().to(torch.uint8)


@pytest.mark.parametrize("size", [(64, 96), (63, 95)])
def test_mp4_plays_in_browsers(tmp_path, size):
    frames = moving(30, *size)
    path = tmp_path / "new" / "folder" / "video.mp4"
    write_video(path, frames, 30000 / 1001)
    assert [file.name for file in path.parent.iterdir()] == ["video.mp4"]
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
        assert (stream.height, stream.width, stream.frames) == (64, 96, 30)
        assert stream.average_rate == Fraction(30000, 1001)
    back = read_clip(index_video(path), 0, 30)[:, : size[0], : size[1]]
    errors = back.float() - frames.float()
    assert 10 * torch.log10(255**2 / errors.square().mean()) > 35
    assert errors.mean(dim=(0, 1, 2)).abs().max() < 1.5


def test_frames_can_be_added_in_parts(tmp_path):
    frames = moving(20, 32, 32)
    # Lossless, because the result of lossy encoding may depend on the number of threads.
    write_video(tmp_path / "whole.mp4", frames, 25, crf=0)
    write_video(tmp_path / "parts.mp4", chain.from_iterable(frames.split(7)), 25, crf=0)
    whole, parts = (
        read_clip(index_video(tmp_path / name), 0, 20) for name in ("whole.mp4", "parts.mp4")
    )
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("unit", [Fraction(1, 10**7), Fraction(1, 10**9), Fraction(1001, 30_000)])
def test_times_in_any_unit(tmp_path, unit):
    pts = [2 * number * round(Fraction(1, 25) / unit) + number % 2 for number in range(6)]
    write_video(tmp_path / "times.mp4", moving(6, 32, 32), 25, pts=pts, time_base=float(unit))
    info = index_video(tmp_path / "times.mp4")
    assert [time * info.time_base for time in info.pts] == pytest.approx(
        [float(time * unit) for time in pts], rel=1e-9
    )


def test_crf_sets_the_quality(tmp_path):
    for crf in (0, 40):
        write_video(tmp_path / f"{crf}.mp4", moving(10, 64, 64), 25, crf=crf)
    assert (tmp_path / "40.mp4").stat().st_size < (tmp_path / "0.mp4").stat().st_size / 3


@pytest.mark.parametrize(("every", "longest"), [(None, 10), (1, 1), (4, 4)])
def test_the_distance_of_keyframes(tmp_path, every, longest):
    write_video(tmp_path / "video.mp4", moving(10, 32, 32), 25, keyframe_every=every)
    with av.open(str(tmp_path / "video.mp4")) as container:
        keys = [index for index, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys[0] == 0
    assert max(after - before for before, after in pairwise([*keys, 10])) == longest


def interrupted(frames):
    yield from frames
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (interrupted(moving(3, 32, 32)), KeyboardInterrupt, None),
        (
            chain(moving(3, 32, 32), moving(3, 32, 34)),
            ValueError,
            r"height and width \(32, 32\), as before",
        ),
        ([], ValueError, "at least one frame"),
        (torch.zeros(2, 3, 8, 8), ValueError, r"uint8 of shape \(T, H, W, 3\)"),
        (torch.zeros(2, 0, 8, 3, dtype=torch.uint8), ValueError, r"uint8 of shape \(T, H, W, 3\)"),
        (torch.zeros(0, 8, 8, 3, dtype=torch.uint8), ValueError, "at least one frame"),
    ],
)
def test_a_failure_keeps_the_old_file_and_no_other(tmp_path, frames, error, message):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"old")
    with pytest.raises(error, match=message):
        write_video(path, frames, 25)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fps", [0, float("nan"), float("inf")])
def test_an_invalid_frame_rate_raises(tmp_path, fps):
    with pytest.raises(ValueError, match="`fps` must be"):
        write_video(tmp_path / "video.mp4", [], fps)


def test_side_by_side_shows_input_reconstruction_and_difference():
    inputs = moving(4, 65, 80)
    reconstructions = inputs.clone()
    reconstructions[:, 10:20, 30:40] = 0
    picture = side_by_side(inputs=[inputs, inputs], reconstructions=[reconstructions, inputs])
    # 65 rows are enlarged by 3. Vertically: labels, clip, gap, clip. Horizontally: three panels and two gaps.
    assert picture.shape == (4, 26 + 195 + 4 + 195, 3 * 240 + 2 * 4, 3)
    left, middle, right = (picture[:, 26:221, x : x + 240] for x in (0, 244, 488))
    assert torch.equal(left[:, ::3, ::3], inputs)
    assert torch.equal(left[:, 2::3, 1::3], inputs)
    assert torch.equal(middle[:, 1::3, 1::3], reconstructions)
    difference = right[:, 1::3, 1::3].int()
    assert torch.equal(
        difference[:, 10:20, 30:40], (inputs[:, 10:20, 30:40].int() * 4).clamp(max=255)
    )
    assert difference[:, 20:].max() == picture[:, 225:, 488:].max() == 0
    bar = picture[0, :26].float().amax(dim=(0, 2))
    assert all(bar[x : x + 100].max() > 200 for x in (0, 244, 488)), "labels"


def test_large_clips_are_not_enlarged():
    clips = [moving(2, 193, 33)]
    # 26 + 193 rows and 3 * 33 + 2 * 4 columns, both made even.
    assert side_by_side(inputs=clips, reconstructions=clips).shape == (2, 220, 108, 3)


def test_panes_are_thirds_of_the_width():
    target = moving(2, 193, 33)
    reconstruction = target.clone()
    reconstruction[:, :4] = 0
    picture = lay_out_panes(target=target, reconstruction=reconstruction)
    assert picture.shape == (2, 194, 3 * 34, 3)
    left, middle, right = picture[:, :193].split(34, dim=2)
    assert torch.equal(left[:, :, :33], target)
    assert torch.equal(middle[:, :, :33], reconstruction)
    assert torch.equal(right[:, :4, :33].int(), (target[:, :4].int() * 4).clamp(max=255))
    small = lay_out_panes(target=target[:, :65], reconstruction=target[:, :65])
    assert small.shape == (2, 130, 3 * 66, 3), "enlarged by 2"


def test_large_frames_are_shrunk():
    frames = torch.full((1, 400, 300, 3), 200, dtype=torch.uint8)
    frames[:, 200:] = 0
    small = shrink(frames, 100)
    assert (small.shape, small.dtype) == ((1, 100, 75, 3), torch.uint8)
    assert small[0, :45].unique().tolist() == [200]
    assert small[0, 55:].unique().tolist() == [0]
    assert shrink(frames, 400) is frames


@pytest.mark.parametrize(
    ("fps", "num_frames", "rate"), [(30.0, 144, 30), (1.0, 9, 1), (1000.0, 252, 60)]
)
def test_a_preview_is_repeated_for_four_seconds(tmp_path, fps, num_frames, rate):
    frames = (torch.arange(9, dtype=torch.uint8) * 25)[:, None, None, None].expand(-1, 16, 16, 3)
    write_preview(tmp_path / "video.mp4", frames, fps)
    info = index_video(tmp_path / "video.mp4")
    assert (info.num_frames, info.fps) == (num_frames, rate)
    assert len({after - before for before, after in pairwise(info.pts)}) == 1, "one frame rate"
    back = read_clip(info, 0, num_frames)[:, 8, 8].float()
    assert (back - frames[:, 8, 8].float().repeat(num_frames // 9, 1)).abs().max() < 3


def test_alpha_is_shown_on_a_chequerboard_and_grey_as_grey():
    frames = torch.randint(256, (2, 16, 24, 4), dtype=torch.uint8)
    frames[..., 3] = 0
    shown = as_shown(frames)
    squares = [shown[0, :8, :8], shown[0, :8, 8:16], shown[1, 8:16, :8]]
    assert [square.unique().tolist() for square in squares] == [[204], [153], [153]]
    frames[..., 3] = 255
    assert torch.equal(as_shown(frames), frames[..., :3])
    assert torch.equal(as_shown((frames.int() * 257).to(torch.uint16)), frames[..., :3])
    assert torch.equal(as_shown(frames[..., :3]), frames[..., :3])
    assert torch.equal(as_shown(frames[..., :1]), frames[..., :1].expand(-1, -1, -1, 3))


def test_other_channels_are_shown_as_grey_side_by_side_in_rows():
    frames = torch.randint(256, (2, 8, 10, 2), dtype=torch.uint8)
    shown = as_shown(frames)
    assert shown.shape == (2, 8, 20, 3)
    assert torch.equal(shown[:, :, :10, 1], frames[..., 0])
    assert torch.equal(shown[:, :, 10:, 1], frames[..., 1])
    rows = as_shown(torch.full((1, 4, 2000, 5), 9, dtype=torch.uint8))
    assert rows.shape == (1, 3 * 4, 2 * 2000, 3)
    assert rows[:, :8].unique().tolist() == rows[:, 8:, :2000].unique().tolist() == [9]
    assert rows[:, 8:, 2000:].max() == 0


def test_what_is_larger_than_a_video_can_be_is_shrunk(tmp_path):
    for size, channels in (((128, 128), 22), ((6, 6000), 3), ((6000, 6), 3), ((6, 6000), 1)):
        clip = torch.zeros(1, *size, channels).to(torch.uint16 if channels == 1 else torch.uint8)
        panes = lay_out_panes(target=clip, reconstruction=clip)
        picture = side_by_side(inputs=[clip] * 3, reconstructions=[clip] * 3)
        assert max(*panes.shape, *picture.shape) <= 16384
        assert panes.shape[2] % 6 == 0
    write_video(tmp_path / "wide.mp4", panes, 25)


def test_depth_is_shown_in_the_colours_of_its_range():
    assert depth_range(torch.zeros(1, 2, 2, 1, dtype=torch.uint8)) is None, "grey of 8 bits is grey"
    values = torch.arange(1000, 41000, 1000).reshape(1, 5, 8, 1).to(torch.uint16)
    limits = depth_range(values)
    assert limits == (1000, 40000)
    shown = as_shown(values, limits)
    assert shown.shape == (1, 5, 8, 3)
    assert len(shown.reshape(-1, 3).unique(dim=0)) == 40
    assert shown[0, 0, 0, 2] > shown[0, 0, 0, 1] < shown[0, -1, -1, 0], "blue to red"
    reconstruction = (values.int() + 257 * 10).to(torch.uint16)
    difference = lay_out_panes(target=values, reconstruction=reconstruction).split(16, dim=2)[2]
    assert difference.unique().tolist() == [40], "four times ten levels of 255"


@pytest.mark.parametrize(
    ("channels", "dtype", "stored", "shown"),
    [
        (1, torch.uint8, "gray", "gray"),
        (3, torch.uint8, "bgr0", "rgb24"),
        (4, torch.uint8, "bgra", "rgba"),
        (1, torch.uint16, "gray16le", "gray16le"),
        (3, torch.uint16, "gbrp16le", "rgb48le"),
        (4, torch.uint16, "gbrap16le", "rgba64le"),
    ],
)
def test_an_mkv_keeps_frames_without_loss(tmp_path, channels, dtype, stored, shown):
    frames = torch.randint(torch.iinfo(dtype).max, (3, 15, 21, channels)).to(dtype)
    write_video(tmp_path / "video.mkv", frames, 25)
    with av.open(str(tmp_path / "video.mkv")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == stored
        back = [frame.to_ndarray(format=shown) for frame in container.decode(video=0)]
    assert torch.equal(
        torch.stack([torch.from_numpy(frame) for frame in back]).view(frames.shape), frames
    )
    with pytest.raises(ValueError, match="uint8 or uint16 of shape"):
        write_video(tmp_path / "video.mkv", frames.float(), 25)


@pytest.mark.parametrize(("num_channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_an_image_has_the_channels_of_its_frame(tmp_path, num_channels, mode):
    frame = torch.arange(4 * 5 * num_channels, dtype=torch.uint8).view(4, 5, num_channels)
    write_image(tmp_path / "frame.png", frame)
    with Image.open(tmp_path / "frame.png") as image:
        assert image.mode == mode
        assert np.array_equal(np.array(image), frame.squeeze(-1).numpy())
