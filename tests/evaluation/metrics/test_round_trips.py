"""Round trips: known values of each measure, the codec, and what an evaluation writes."""

import json

import pytest
import torch
from einops import rearrange
from PIL import Image
from rich.console import Console
from torch import nn

from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.metrics.pixels import psnr
from telecine.evaluation.metrics.round_trips import RoundTrips
from telecine.evaluation.round_trips import round_trips, through_h264
from telecine.models import as_video_autoencoder
from telecine.models.linear import LinearAutoencoder
from telecine.settings import EvaluateConfig

from ..videos import waves

LEVELS = 127.5  # a difference of 1, in levels of 8 bits
NUM_VALUES = 3 * 2 * 2 * 2  # of a patch


class Shifts(nn.Module):
    """Adds a number of levels to each channel."""

    def __init__(self, levels):
        super().__init__()
        self.in_channels = len(levels)
        self.shift = torch.tensor(levels).view(1, -1, 1, 1, 1) / LEVELS
        self.last_layer = nn.Parameter(torch.zeros(()))

    def forward(self, video):
        return video + self.shift


class Linear(nn.Module):
    """A linear autoencoder that returns its latent."""

    def __init__(self, latent_channels):
        super().__init__()
        self.linear = LinearAutoencoder(2, 2, latent_channels, first_frame_apart=False).double()
        self.last_layer = self.linear.decoder.rest.weight
        with torch.no_grad():
            rows = nn.init.orthogonal_(torch.empty(latent_channels, NUM_VALUES).double())
            self.linear.encoder.rest.weight.copy_(rows)
            self.linear.decoder.rest.weight.copy_(rows.T)
            self.linear.encoder.rest.bias.zero_()
            self.linear.decoder.rest.bias.zero_()

    def forward(self, video):
        latent = self.linear.encode(video)
        return self.linear.decode(latent), {}, latent


def clip(num_frames=4, height=16, width=24):
    """Return a smooth video `(1, 3, T, H, W)` well inside the range."""
    frames = waves(num_frames, height, width).double()
    return rearrange(frames / 255 - 0.5, "t h w c -> 1 c t h w")


@pytest.mark.parametrize("latent_channels", [NUM_VALUES, 5])
def test_a_linear_orthonormal_autoencoder_loses_nothing_after_its_first_pass(latent_channels):
    """A projection is idempotent, and with all components it is the identity."""
    torch.manual_seed(0)
    model = as_video_autoencoder(Linear(latent_channels))
    curves = RoundTrips(model, 10).curves(clip())
    assert {len(curve) for curve in curves.values()} == {10}
    assert max(curves["round_trip_latent"]) < 1e-12
    for name, curve in curves.items():
        assert curve[9] == pytest.approx(curve[0], abs=1e-9), name
    if latent_channels == NUM_VALUES:
        assert curves["round_trip_psnr"][9] == pytest.approx(100)
        assert curves["round_trip_colour"][9] == pytest.approx(0, abs=1e-12)
        assert curves["round_trip_sharpness"][9] == pytest.approx(1)


@pytest.mark.parametrize(
    ("levels", "names"),
    [
        ((1.0, -2.0, 0.0), ["red", "green", "blue"]),
        ((3.0,), ["grey"]),
        ((1.0, 2.0, 3.0, 0.0), ["red", "green", "blue", "alpha"]),
        ((1.0, 2.0), ["channel_0", "channel_1"]),
    ],
)
def test_shifted_colours_add_up(levels, names):
    model = as_video_autoencoder(Shifts(levels))
    curves = RoundTrips(model, 3).curves(torch.zeros(1, len(levels), 2, 4, 4))
    assert [name for name in curves if not name.startswith("round_trip")] == names
    for name, level in zip(names, levels, strict=True):
        assert curves[name] == pytest.approx([level, 2 * level, 3 * level], abs=1e-4)
    mean_square = sum(level**2 for level in levels) / len(levels)
    expected = mean_square**0.5
    assert curves["round_trip_colour"][2] == pytest.approx(3 * expected, abs=1e-4)
    assert "round_trip_latent" not in curves, "the model does not return one"


def test_each_pass_is_clamped():
    passes = list(
        round_trips(as_video_autoencoder(Shifts((100.0,) * 3)), torch.zeros(1, 3, 1, 4, 4), 2)
    )
    assert len(passes) == 3
    assert (passes[2].video == 1).all()


def test_h264_keeps_size_and_almost_all_of_a_smooth_video():
    video = torch.cat([clip(5, 47, 63), clip(5, 47, 63).flip(2)]).float()
    decoded = through_h264(video)
    assert decoded.shape == video.shape
    assert decoded.dtype == video.dtype
    assert 30 < psnr(reconstruction=decoded, target=video).min() < 100
    with pytest.raises(
        ValueError, match="`through` must be left out unless clips are RGB, but got h264 for 1"
    ):
        through_h264(video[:, :1])


def test_an_evaluation_writes_each_pass(model_folder, videos, tmp_path, monkeypatch):
    monkeypatch.setattr("telecine.evaluation.result.plot_frames", lambda *_: None)
    settings = {"data": str(videos), "max_clips": 2, "device": "cpu"}
    size = {"num_frames": 5, "height": 12, "width": 12}
    config = EvaluateConfig(**settings, **size, round_trips=2, through="h264")
    evaluation = evaluate(model_folder, config, output=tmp_path)
    curves = json.loads((tmp_path / "round_trips.json").read_text())
    assert curves == evaluation.per_pass
    names = ["round_trip_psnr", "round_trip_colour", "round_trip_sharpness", "round_trip_latent"]
    assert list(curves) == [*names, "red", "green", "blue"]
    for name in names:
        assert evaluation.metrics[name] == pytest.approx(curves[name][1])
        assert evaluation.per_clip[0][name] + evaluation.per_clip[1][name] == pytest.approx(
            2 * curves[name][1]
        )
    method = evaluation.protocol.backbones["round_trip_psnr"]
    assert method.startswith("2 passes, each H.264 by x264, crf 18, yuv420p, BT.709")
    with Image.open(tmp_path / "round_trips.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 20
    console = Console(record=True, width=200)
    evaluation.print_to(console)
    assert f"{curves['red'][1]:.3f}" in console.export_text()

    evaluate(model_folder, EvaluateConfig(**settings, **size), output=tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("round_trips")]


def test_a_latent_that_is_not_returned_is_absent(videos):
    config = EvaluateConfig(
        data=str(videos),
        max_clips=1,
        device="cpu",
        num_frames=2,
        height=12,
        width=12,
        round_trips=1,
    )
    evaluation = evaluate(Shifts((1.0, 1.0, 1.0)), config)
    assert evaluation.protocol.absent["round_trip_latent"] == "the model does not return its latent"
    assert "round_trip_latent" not in evaluation.metrics


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"through": "h264"}, "`through` must be left out without `round_trips`"),
        (
            {"round_trips": 2, "protocol": "davis"},
            "`round_trips` must be left out with a protocol, but got 2",
        ),
        ({"round_trips": 0}, "`round_trips` must be at least 1"),
    ],
)
def test_invalid_round_trips_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**settings)
