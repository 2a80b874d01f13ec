"""Reconstruction of whole videos: length, size, bounded inputs, and overlaps."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from telecine.data import (
    bytes_from_video,
    find_videos,
    index_video,
    iterate_frames,
    read_clip,
    video_from_bytes,
)
from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.load_model import load_model
from telecine.evaluation.reconstruct import output_size, reconstruct, reconstruct_frames
from telecine.evaluation.tiling import reconstruct_clip_in_tiles, rounded_tiling
from telecine.settings import EvaluateConfig, LatentsConfig, PixelFormat, ReconstructConfig, Tiling
from telecine.tools.latents.measures import measure_latent_spaces
from telecine.video.write import write_video

from .videos import waves

CPU = torch.device("cpu")


class Recorder(torch.nn.Module):
    """Forwards to a model and records the shapes of its inputs; it does not stream."""

    streams = False

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.shapes = []
        self.covering_clip = model.covering_clip
        self.in_channels = model.in_channels

    def forward(self, video, sample_posterior=True):
        self.shapes.append(tuple(video.shape))
        return self.model(video, sample_posterior=sample_posterior)


def run(model, info, **settings):
    pairs = list(reconstruct_frames(model, info, ReconstructConfig(**settings), CPU, PixelFormat()))
    return tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))


@pytest.mark.parametrize(
    ("settings", "largest"),
    [
        ({}, (5, 48, 64)),
        ({"tile": 32, "tile_overlap": 8, "overlap_frames": 2}, (5, 32, 32)),
        ({"tile": 32, "height": 96, "width": 128, "num_frames": 13}, (13, 32, 32)),
    ],
)
def test_every_frame_is_reconstructed_from_bounded_inputs(tiny_model, videos, settings, largest):
    info = index_video(videos / "one.mp4")
    model = Recorder(tiny_model)
    size = (settings.get("height", 48), settings.get("width", 64))
    frames, reconstruction = run(model, info, **{"num_frames": 5, **settings})
    inputs = torch.stack(list(iterate_frames(info, size)))
    assert torch.equal(frames, video_from_bytes(inputs).transpose(0, 1))
    assert reconstruction.shape == (26, 3, *size)
    assert reconstruction.abs().max() <= 1
    assert max(model.shapes) == (1, 3, *largest)


@pytest.mark.parametrize("tile", [None, 32])
def test_a_model_that_streams_has_the_reconstruction_of_the_whole_video(tiny_model, videos, tile):
    info = index_video(videos / "one.mp4")
    frames, reconstruction = run(tiny_model, info, num_frames=9, tile=tile)
    video = frames.transpose(0, 1)
    tiling = rounded_tiling(Tiling.of(tile, None), tiny_model)
    whole = reconstruct_clip_in_tiles(tiny_model, video, tiling).clamp(-1, 1)
    torch.testing.assert_close(reconstruction.transpose(0, 1), whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="`overlap_frames` must be 0 for a model that keeps"):
        run(tiny_model, info, overlap_frames=2)


def test_writes_a_video_and_returns_its_psnr(model_folder, videos, tmp_path):
    output = tmp_path / "out.mp4"
    config = ReconstructConfig(num_frames=9, tile=32, tile_overlap=8, device="cpu")
    psnr = reconstruct(model_folder, videos / "one.mp4", output, config)
    info = index_video(output)
    assert (info.num_frames, info.height, info.width, info.fps) == (26, 48, 64, 25)
    frames, reconstruction = run(
        load_model(model_folder, ReconstructConfig(), CPU),
        index_video(videos / "one.mp4"),
        **vars(config),
    )
    error = (reconstruction.double() - frames.double()).square().mean((1, 2, 3))
    assert psnr == pytest.approx((10 * torch.log10(4 / error)).mean().item(), abs=1e-4)


def test_times_and_shape_of_pixels_are_kept(model_folder, tmp_path):
    times = [0, 40, 80, 200, 210, 900, 1000, 1001, 1500]
    video = tmp_path / "phone.mkv"
    output = tmp_path / "out.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height = 48
        stream.width = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 15)
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"bf": "2"}
        for frame, time in zip(waves(len(times)), times, strict=True):
            picture = av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")
            picture.pts = 70 + time
            picture.time_base = Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    reconstruct(model_folder, video, output, ReconstructConfig(num_frames=5, device="cpu"))
    info = index_video(output)
    assert [round(1000 * pts * info.time_base) for pts in info.pts] == times
    assert (info.height, info.width, info.stored_size) == (48, 68, (48, 64))
    reconstruct(
        model_folder, video, output, ReconstructConfig(num_frames=5, width=34, device="cpu")
    )
    info = index_video(output)
    assert (info.height, info.width, info.stored_size) == (24, 34, (24, 34))
    reconstruct(
        model_folder, video, tmp_path / "out.mkv", ReconstructConfig(num_frames=5, device="cpu")
    )
    info = index_video(tmp_path / "out.mkv")
    assert (info.height, info.width, info.stored_size) == (48, 68, (48, 68))


@pytest.mark.slow
def test_side_by_side_output(model_folder, tmp_path):
    output = tmp_path / "out.mp4"
    write_video(tmp_path / "in.mp4", waves(7), fps=25)
    reconstruct(
        model_folder,
        tmp_path / "in.mp4",
        output,
        ReconstructConfig(compare=True, num_frames=5, device="cpu"),
    )
    info = index_video(output)
    assert info.num_frames == 7
    assert info.width > 3 * 64


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (48, 64)),
        ({"height": 24}, (24, 32)),
        ({"width": 96}, (72, 96)),
        ({"height": 10, "width": 20}, (10, 20)),
    ],
)
def test_a_single_side_keeps_the_aspect_ratio(videos, settings, size):
    assert output_size(index_video(videos / "one.mp4"), ReconstructConfig(**settings)) == size


def test_a_dict_is_no_configuration():
    with pytest.raises(
        ValueError,
        match=r"`config` must be of the class `ReconstructConfig`, but got {'device': 'cpu'}",
    ):
        reconstruct("tiny", "in.mp4", "out.mp4", {"device": "cpu"})


def test_an_output_that_cannot_be_written_raises(model_folder, videos, tmp_path):
    video = videos / "one.mp4"
    with pytest.raises(
        ValueError, match="`output` must be the name of an MP4 or MKV, but got the folder"
    ):
        reconstruct(model_folder, video, tmp_path)
    with pytest.raises(ValueError, match="`output` must be another file than the input"):
        reconstruct(model_folder, video, video)
    with pytest.raises(
        ValueError, match=r"which ends in .mp4 or .mkv, but got .*out\.webm\. Use .*out\.mp4"
    ):
        reconstruct(model_folder, video, tmp_path / "out.webm")


@pytest.fixture
def images(tmp_path):
    """A folder of two images of 24 x 28, too small for LPIPS, one of them in a subfolder."""
    folder = tmp_path / "images"
    for name, frame in zip(("one.jpg", "below/two.png"), waves(2), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame[:24, :28].numpy()).save(folder / name)
    return folder


def test_an_image_becomes_a_png(model_folder, images, tmp_path):
    output = tmp_path / "new" / "out.png"
    psnr = reconstruct(
        model_folder, images / "one.jpg", output, ReconstructConfig(device="cpu", tile=16)
    )
    frames, reconstruction = run(
        load_model(model_folder, ReconstructConfig(), CPU), index_video(images / "one.jpg"), tile=16
    )
    assert frames.shape == (1, 3, 24, 28)
    assert torch.equal(
        read_clip(index_video(output), 0, 1), bytes_from_video(reconstruction.transpose(0, 1))
    )
    error = (reconstruction.double() - frames.double()).square().mean()
    assert psnr == pytest.approx((10 * torch.log10(4 / error)).item(), abs=1e-4)
    with pytest.raises(
        ValueError, match=r"must be the name of a PNG, which ends in .png, but got .*out\.mp4"
    ):
        reconstruct(model_folder, images / "one.jpg", tmp_path / "out.mp4")
    with pytest.raises(ValueError, match="`output` must be another file than the input"):
        reconstruct(model_folder, images / "below" / "two.png", images / "below" / "two.png")


def test_a_folder_of_images_becomes_a_folder_of_png_that_can_be_measured(
    model_folder, images, tmp_path, cached_weights
):
    output = tmp_path / "out"
    psnr = reconstruct(model_folder, images, output, ReconstructConfig(device="cpu"))
    assert {path.relative_to(output).as_posix() for path in output.rglob("*.*")} == {
        "one.png",
        "below/two.png",
    }
    evaluation = evaluate(output, EvaluateConfig(data=str(images), device="cpu"))
    assert evaluation.protocol.num_frames == 1
    assert evaluation.metrics["psnr"] == pytest.approx(
        psnr, abs=0.2
    )  # but for the rounding to bytes
    small = {"data": str(images), "height": 24, "width": 28, "device": "cpu"}
    of_model = evaluate(model_folder, EvaluateConfig(**small))
    assert of_model.metrics["psnr"] == pytest.approx(psnr, abs=1e-4)
    assert "flicker" not in of_model.metrics
    space = measure_latent_spaces([model_folder], LatentsConfig(**small)).models[0]
    assert space.shape == [4, 1, 6, 7]
    assert space.table_values()["PSNR, dB"] == pytest.approx(psnr, abs=1e-4)
    with pytest.raises(ValueError, match="`output` must be another folder than the data"):
        reconstruct(model_folder, images, images)


def test_images_beside_videos_are_not_measured(images, videos, caplog):
    write_video(images / "video.mp4", waves(9), fps=25)
    assert [path.name for path in find_videos(images)] == ["video.mp4"]
    assert f"2 images in {images} are not used beside its videos" in caplog.text
    assert [path.name for path in find_videos(images / "one.jpg")] == ["one.jpg"]


def test_suffixes_in_capitals(images, tmp_path):
    np.save(tmp_path / "in.npy", waves(2).numpy())
    for name, output in (
        (images / "one.jpg", tmp_path / "out.PNG"),
        (tmp_path / "in.npy", tmp_path / "out.NPY"),
    ):
        reconstruct(Identity(3), name, output, ReconstructConfig(device="cpu"))
        assert output.read_bytes()[1:6] in (b"PNG\r\n", b"NUMPY")


class Identity(torch.nn.Module):
    """A module that declares its channels and returns its input."""

    def __init__(self, in_channels):
        super().__init__()
        self.in_channels = in_channels
        self.scale = torch.nn.Conv3d(in_channels, in_channels, 1, groups=in_channels, bias=False)
        torch.nn.init.ones_(self.scale.weight)

    def forward(self, video):
        return self.scale(video)


def test_a_depth_has_the_same_colour_in_every_chunk(tmp_path):
    frames = torch.full((9, 32, 32, 1), 20_000)
    frames[:, :, 16:] = 7000 * torch.arange(9).view(9, 1, 1, 1)  # the right half moves away
    write_video(tmp_path / "in.mkv", frames.to(torch.uint16), 25)
    config = ReconstructConfig(
        bit_depth=16, compare=True, num_frames=3, overlap_frames=0, device="cpu"
    )
    reconstruct(Identity(1), tmp_path / "in.mkv", tmp_path / "out.mp4", config)
    compared = read_clip(index_video(tmp_path / "out.mp4"), 0, 9).float()
    colours = compared[:, -100:-90, 10:60].mean((1, 2))
    assert (colours - colours[0]).abs().max() < 8
    assert colours[0, 1] > 150, "of a third of the range"


@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize(("in_channels", "channels"), [(1, "grey"), (3, "rgb"), (4, "rgba")])
def test_an_mkv_keeps_all_channels_and_bits(tmp_path, in_channels, channels, bit_depth):
    dtype, levels = (torch.uint8, 256) if bit_depth == 8 else (torch.uint16, 65536)
    frames = torch.randint(levels, (5, 16, 18, in_channels)).to(dtype)
    write_video(tmp_path / "in.mkv", frames, 25)
    config = ReconstructConfig(bit_depth=bit_depth, device="cpu")
    assert (
        reconstruct(Identity(in_channels), tmp_path / "in.mkv", tmp_path / "out.mkv", config) > 99
    )
    info = index_video(tmp_path / "out.mkv")
    assert torch.equal(read_clip(info, 0, 5, pixels=PixelFormat(channels, bit_depth)), frames)
    compared = replace(config, compare=True)
    reconstruct(Identity(in_channels), tmp_path / "in.mkv", tmp_path / "compared.mp4", compared)
    if (in_channels, bit_depth) != (3, 8):
        with pytest.raises(ValueError, match=r"`output` must be an MKV for .* Use .*out.mkv"):
            reconstruct(Identity(in_channels), tmp_path / "in.mkv", tmp_path / "out.mp4", config)
