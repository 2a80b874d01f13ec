"""Videos with a high dynamic range: found, named, and converted."""

from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorPrimaries, ColorTrc

from telecine.data import ClipDataset, index_video, load_spans, read_clip
from telecine.data.hdr import BT2020, HLG, PQ, tone_map
from telecine.data.lazy.load_table import load_table
from telecine.data.validation import index_validation_spans
from telecine.settings import ClipConfig, PixelFormat
from telecine.video.write import write_video as write_output

from .videos import moving_frames, new_stream, stamp, write_video

TRANSFERS = {PQ: ColorTrc.SMPTE2084, HLG: ColorTrc.ARIB_STD_B67, BT2020: ColorTrc.BT2020_10}


def write_hdr(path, hdr, level=0.5):
    """Write three grey frames of 10 bits, with this encoded level from 0 to 1."""
    with new_stream(path, "ffv1", "yuv420p10le") as (container, stream):
        stream.codec_context.color_trc = TRANSFERS[hdr]
        stream.codec_context.color_primaries = ColorPrimaries.BT2020
        for number in range(3):
            frame = av.VideoFrame(64, 48, "yuv420p10le")
            for plane, value in zip(frame.planes, (64 + round(876 * level), 512, 512), strict=True):
                plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
            frame.color_trc = TRANSFERS[hdr]
            frame.color_primaries = ColorPrimaries.BT2020
            container.mux(stream.encode(stamp(frame, number)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("hdr", TRANSFERS)
def test_hdr_is_named_before_training_unless_it_is_converted(tmp_path, caplog, hdr):
    write_video(tmp_path / "a.mp4", moving_frames(3))
    path = write_hdr(tmp_path / "b.mkv", hdr)
    (ordinary, wide), _ = load_spans(tmp_path)
    assert (ordinary.info.hdr, wide.info.hdr) == ("", hdr)
    message = f"1 of 2 videos have a high dynamic range or wide colours.*{path} .{hdr}.; .*tone_map"
    (text,) = caplog.messages
    assert text.startswith(message.partition(".*")[0])
    assert f"{path} ({hdr}); `--clips.hdr tone_map` converts them" in text
    caplog.clear()
    assert load_spans(tmp_path, ClipConfig(hdr="tone_map"))[0][1].info.hdr == hdr, "from the index"
    assert caplog.messages == []


def test_hdr_of_validation_files_is_named_if_nothing_is_indexed_ahead(tmp_path, caplog):
    write_hdr(tmp_path / "a.mkv", PQ)
    config = ClipConfig(num_frames=1, index="lazy")
    table = load_table(str(tmp_path), config)
    index_validation_spans(table.spans, table.saved_index, config, 1)
    assert "1 of 1 videos have a high dynamic range" in caplog.text


def test_the_first_hdr_clip_is_named_if_nothing_is_indexed_ahead(tmp_path, caplog):
    for name in "ab":
        write_hdr(tmp_path / f"{name}.mkv", PQ)
    config = ClipConfig(num_frames=1, height=32, width=32, index="lazy")
    table = load_table(str(tmp_path), config)
    dataset = ClipDataset(table.spans, config, saved_index=table.saved_index)
    assert len({dataset[number]["source"] for number in range(8)}) == 2
    (text,) = caplog.messages
    assert "mkv has a high dynamic range or wide colours (PQ)" in text


@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize("channels", ["grey", "rgb", "rgba"])
def test_tone_mapped_frames(tmp_path, channels, bit_depth):
    info = index_video(write_hdr(tmp_path / "a.mkv", PQ, level=0.58))  # about 203 cd/m2
    white = 255 if bit_depth == 8 else 65535
    kept = read_clip(info, 0, 2, pixels=PixelFormat(channels, bit_depth)).double() / white
    pixels = PixelFormat(channels, bit_depth, hdr="tone_map")
    mapped = read_clip(info, 0, 2, size=(24, 32), pixels=pixels)
    assert mapped.dtype == (torch.uint8 if bit_depth == 8 else torch.uint16)
    assert mapped.shape == (2, 24, 32, {"grey": 1, "rgb": 3, "rgba": 4}[channels])
    values = mapped.double() / white
    num_colours = min(3, values.shape[-1])
    assert (kept[..., :num_colours] - 0.58).abs().max() < 0.01
    expected = tone_map(torch.full((1, 3), 0.58), PQ)[0, 0]
    assert 0.7 < expected < 0.78, "diffuse white is bright"
    assert (values[..., :num_colours] - expected).abs().max() < 0.01
    assert (values[..., 3:] == 1).all()


@pytest.mark.parametrize("hdr", TRANSFERS)
def test_tone_mapping_is_monotonic_and_keeps_black_white_and_greys(hdr):
    greys = torch.linspace(0, 1, 101)[:, None].expand(-1, 3)
    mapped = tone_map(greys, hdr)
    assert mapped[0].abs().max() < 1e-3
    assert (mapped[:, 0].diff() > -1e-9).all()
    assert (mapped - mapped[:, :1]).abs().max() < 1e-3
    assert mapped[-1].min() > 0.99
    if hdr == BT2020:
        assert (mapped - greys).abs().max() < 1e-3, "greys of standard range stay"


def test_light_of_known_levels():
    """PQ's 0.508 and HLG's 0.75 are diffuse white of 203 cd/m2 by ITU-R BT.2408: 58 % and 75 %."""
    pq = tone_map(torch.full((1, 3), 0.5807), PQ)
    hlg = tone_map(torch.full((1, 3), 0.75), HLG)
    torch.testing.assert_close(pq, hlg, atol=5e-3, rtol=0)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("hdr", ["", *TRANSFERS])
def test_written_files_say_their_colours(tmp_path, suffix, hdr):
    path = tmp_path / f"a{suffix}"
    write_output(path, moving_frames(3), 25, hdr=hdr)
    assert index_video(path).hdr == hdr
    assert replace(index_video(path), hdr="").num_frames == 3
