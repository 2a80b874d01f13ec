"""`telecine latents`: what it measures of a model on a folder of videos, and the page and the file that it writes."""

import json
import math
import os
import re
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from telecine.__main__ import main
from telecine.data import DataError
from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.latent_statistics import latent_summary, radial_spectrum
from telecine.evaluation.load_model import load_infos
from telecine.evaluation.protocols.configured import ConfiguredClips
from telecine.models import CausalVAE
from telecine.report.chart_data import plotly_script
from telecine.settings import ClipConfig, EvaluateConfig, LatentsConfig
from telecine.tools.latents.clips import ClipsOnDisk
from telecine.tools.latents.decoding import TRANSFORMS
from telecine.tools.latents.measures import measure_latent_spaces, scaled_video
from telecine.tools.latents.page import render_latents, write_latents
from telecine.tools.latents.space import Channels

SIZE = {"num_frames": 5, "height": 16, "width": 24, "max_clips": 3, "device": "cpu"}


def with_linear_encoder(model, change):
    """Return a copy of a tiny model, whose encoder is linear, after a change of its layers."""
    copy = CausalVAE(model.config)
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        for layer in (copy.encoder.linear.first, copy.encoder.linear.rest):
            change(layer)
    return copy


@pytest.fixture(scope="module")
def changed_folder(tiny_model, tmp_path_factory):
    """The same model with a latent that is doubled in the first channel."""

    def double(layer):
        layer.weight[0] *= 2
        layer.bias[0] *= 2

    folder = tmp_path_factory.mktemp("changed")
    with_linear_encoder(tiny_model, double).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def report(model_folder, changed_folder, videos):
    config = LatentsConfig(data=str(videos), base=str(model_folder), **SIZE)
    return measure_latent_spaces([model_folder, changed_folder], config)


@pytest.fixture
def measure_one(videos):
    """Return a function that measures a model on one clip."""

    def measure(model, **settings):
        config = LatentsConfig(data=str(videos), **{**SIZE, "max_clips": 1, **settings})
        return measure_latent_spaces([model], config).models[0]

    return measure


def test_the_measures_are_those_of_the_latents(report):
    first, second = report.models
    assert first.shape == [4, 2, 4, 6]
    assert [
        len(values) for values in (first.channels.mean, first.channels.kurtosis, first.eigenvalues)
    ] == [4, 4, 4]
    assert second.channels.std[0] == pytest.approx(2 * first.channels.std[0])
    assert second.channels.std[1:] == pytest.approx(first.channels.std[1:])
    assert list(first.equivariance) == ["none", *TRANSFORMS]
    assert first.noise_psnr["0"] == pytest.approx(first.equivariance["none"]["psnr"], abs=1e-3)
    assert first.noise_psnr["0.8"] < first.noise_psnr["0"]
    assert len(first.spectrum.frequency) == len(first.spectrum.latent) == len(first.spectrum.video)
    assert 0 < first.spectrum.high_frequencies["video"] < 1
    lengths = {name: len(values) for name, values in first.autocorrelation.items()}
    assert lengths == {"space": 3, "time": 1, "video_space": 3, "video_time": 1}
    assert first.drift == {"correlation": pytest.approx([1.0] * 4), "relative_error": 0.0}
    assert second.drift["correlation"] == pytest.approx([1.0] * 4)
    assert second.drift["relative_error"] > 0.1


@pytest.mark.parametrize(
    ("settings", "figures"),
    [
        ({"nested_channels": (2,)}, {"PSNR with 2 channels, dB"}),
        (
            {"bottleneck": "fsq"},
            {"codes used", "entropy of the codes, bits", "perplexity of the codes"},
        ),
    ],
)
def test_figures_of_other_latents(measure_one, tiny_model, settings, figures):
    space = measure_one(CausalVAE(replace(tiny_model.config, **settings)))
    assert figures <= space.table_values().keys()


def test_a_base_of_another_latent_is_refused_before_anything_is_measured(
    tiny_model, videos, tmp_path
):
    CausalVAE(replace(tiny_model.config, latent_channels=8)).save_pretrained(tmp_path)
    config = LatentsConfig(data=str(videos), base=str(tmp_path), **SIZE)
    message = r"`base` must be a model with latents of shape \(4, 2, 4, 6\), but got one with \(8, 2, 4, 6\)"
    with pytest.raises(ValueError, match=message):
        measure_latent_spaces([tiny_model], config, probe=pytest.fail)


def test_a_model_without_a_latent_is_refused(measure_one):
    module = nn.Conv3d(3, 3, 1)
    with pytest.raises(
        ValueError, match="`Conv3d` must be a model that offers its latent, but got one without"
    ):
        measure_one(module)


@pytest.mark.parametrize(("value", "dead"), [(0.5, 4), (math.nan, math.nan)])
def test_a_constant_latent_is_dead_as_in_training(measure_one, tiny_model, value, dead):
    def make_constant(layer):
        layer.weight.zero_()
        layer.bias.fill_(value)

    space = measure_one(with_linear_encoder(tiny_model, make_constant))
    figures = {
        "dead channels": space.table_values()["dead channels"],
        "mean std": space.table_values()["mean std"],
    }
    summary = latent_summary(torch.full((1, 4, 2, 4, 6), value))
    assert figures == pytest.approx(
        {"dead channels": dead, "mean std": summary["std"]}, abs=1e-6, nan_ok=True
    )
    assert summary["dead_channels"] == pytest.approx(dead, nan_ok=True)


def test_the_protocol_says_what_was_measured(report, videos):
    expected = {"data": str(videos), "num_clips": 3, "num_frames": 5, "height": 16, "width": 24}
    assert {name: report.protocol[name] for name in expected} == expected
    assert {"spectrum", "equivariance", "noise", "drift"} <= set(report.protocol["definitions"])
    assert "at most 0.01 times the largest" in report.protocol["definitions"]["channels"]


def test_the_hash_of_the_clips_is_that_of_evaluations(model_folder, videos):
    size = {
        "num_frames": 5,
        "height": 12,
        "width": 12,
        "max_clips": 2,
        "device": "cpu",
    }  # too small for LPIPS
    measured = measure_latent_spaces([model_folder], LatentsConfig(data=str(videos), **size))
    evaluated = evaluate(model_folder, EvaluateConfig(data=str(videos), **size))
    assert measured.protocol["clips_sha256"] == evaluated.protocol.clips_sha256


def test_the_clips_are_not_all_in_memory(model_folder, changed_folder, videos, monkeypatch):
    clips = []
    counts = []

    read_clip = ConfiguredClips.read

    def read(protocol, span):
        clip = read_clip(protocol, span)
        clips.append(weakref.ref(clip["video"]))
        counts.append(sum(reference() is not None for reference in clips))
        return clip

    monkeypatch.setattr(ConfiguredClips, "read", read)
    config = LatentsConfig(data=str(videos), base=str(model_folder), **{**SIZE, "max_clips": 9})
    assert measure_latent_spaces([model_folder, changed_folder], config).protocol["num_clips"] == 9
    assert max(counts) <= 3


def test_clips_that_can_no_longer_be_read(videos, tmp_path):
    infos = load_infos(shutil.copytree(videos, tmp_path / "videos"))
    protocol = ConfiguredClips(ClipConfig(5, 16, 24), 3)
    clips = ClipsOnDisk.find(infos, protocol)
    assert len(clips) == 3
    shutil.rmtree(tmp_path / "videos")
    with pytest.raises(DataError, match="`data` must be readable until the end"):
        list(clips)
    with pytest.raises(
        ValueError, match="`data` must be files with a decodable clip, but got 3 broken ones"
    ):
        ClipsOnDisk.find(infos, protocol)


def test_the_video_at_the_size_of_its_latent():
    video = torch.arange(9.0).view(1, 1, 9, 1, 1).expand(1, 3, 9, 8, 16)
    small = scaled_video(video, torch.zeros(1, 4, 3, 2, 4), True)
    assert small.shape == (1, 3, 3, 2, 4)
    assert small[0, 0, :, 0, 0].tolist() == pytest.approx([0, 4, 8])
    assert scaled_video(video[:, :, :1], torch.zeros(1, 4, 1, 2, 4), True).shape == (1, 3, 1, 2, 4)
    without_first = scaled_video(video[:, :, :8], torch.zeros(1, 4, 2, 2, 4), False)
    assert without_first[0, 0, :, 0, 0].tolist() == pytest.approx([3, 7])


def test_frames_of_a_latent_without_a_frame_of_the_first_one(measure_one, tiny_model, videos):
    """Of 8 frames the latent has 2, each of 4."""
    space = measure_one(
        CausalVAE(replace(tiny_model.config, first_frame_apart=False)), num_frames=8
    )
    (video,) = ClipsOnDisk.find(load_infos(videos), ConfiguredClips(ClipConfig(8, 16, 24), 1))
    _, expected = radial_spectrum(scaled_video(video, torch.zeros(1, 4, 2, 4, 6), False))
    assert space.spectrum.video == pytest.approx(expected)


def data_of(report):
    """Return the data that the scripts of a report's page draw, and its charts by the first word of their titles."""
    text = re.search(
        r'<script type="application/json" id="report-data">(.*?)</script>', render_latents(report)
    )[1]
    data = json.loads(text)
    return data, {re.match(r"\w+", chart["title"])[0]: chart for chart in data["charts"]}


def test_every_measure_of_several_values_has_a_chart_with_a_curve_of_each_model(report):
    data, charts = data_of(report)
    assert data["runs"] == [space.title for space in report.models]
    assert [*charts] == [
        "Spectrum",
        "Eigenvalues",
        "Autocorrelation",
        "Equivariance",
        "Noise",
        "Drift",
    ]
    assert len(data["charts"]) == 7, "autocorrelation in space and in time"
    for chart in data["charts"]:
        assert chart["explanation"]
        for series in chart["series"]:
            assert [curve["run"] for curve in series["curves"]] == [0, 1]
            assert series["is_reference"] == (series["label"] == "scaled-down video")
    first, second = report.models
    latent, video = charts["Spectrum"]["series"]
    assert latent["curves"][1]["steps"] == second.spectrum.frequency
    assert latent["curves"][1]["values"] == pytest.approx(second.spectrum.latent, rel=1e-5)
    assert video["curves"][0]["values"] == pytest.approx(first.spectrum.video, rel=1e-5)
    expected = {
        "Equivariance": [errors["mse"] for errors in first.equivariance.values()],
        "Noise": [*first.noise_psnr.values()],
        "Drift": [1.0] * 4,
    }
    for name, values in expected.items():
        assert charts[name]["series"][0]["curves"][0]["values"] == pytest.approx(values, rel=1e-5)
    assert charts["Noise"]["series"][0]["curves"][0]["steps"] == [
        float(level) for level in first.noise_psnr
    ]
    assert charts["Equivariance"]["x"]["names"] == ["none", *TRANSFORMS]
    assert sum(charts["Eigenvalues"]["series"][0]["curves"][0]["values"]) == pytest.approx(
        1, abs=1e-4
    )


class LargeClips(CausalVAE):
    """A model that accepts one size of clips."""

    def covering_clip(self, *_):
        return (5, 16, 24)


def test_half_of_a_clip_that_is_too_small_for_the_model_is_left_out(
    measure_one, report, tiny_model
):
    small = measure_one(LargeClips(tiny_model.config))
    assert small.equivariance.keys() == {"none", *TRANSFORMS} - {"scale_1/2"}
    assert "equivariance error without scale_1/2, MSE" in small.table_values()
    assert "equivariance error, MSE" in report.models[0].table_values()
    _, charts = data_of(replace(report, models=[small, report.models[0]]))
    assert charts["Equivariance"]["series"][0]["curves"][0]["steps"] == [0, 2, 3, 4, 5, 6]


def test_a_chart_without_values_is_left_out(report):
    space = replace(report.models[0], drift={}, eigenvalues=[math.nan] * 4)
    _, charts = data_of(replace(report, models=[space]))
    assert [*charts] == ["Spectrum", "Autocorrelation", "Equivariance", "Noise"]


def test_names_are_shown_as_they_are_without_a_network(report):
    names = ["cost_$5_and_$6", "_hidden", "</script><b>"]
    spaces = [replace(report.models[0], title=name) for name in names]
    spaces[1] = replace(spaces[1], channels=Channels([0.0], [1.0], [3.0], [0]))
    other = replace(report, models=spaces)
    page = render_latents(other).replace(plotly_script(), "")
    assert data_of(other)[0]["runs"] == names
    assert "<b>" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "0, 1, 3, dead</td>" in page
    assert "<td>-</td>" in page, "fewer channels"


def test_names_that_are_not_utf8(report, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    spaces = [replace(space, title=name) for space in report.models]
    page = write_latents(
        replace(report, models=spaces, protocol=report.protocol | {"data": name}), tmp_path / name
    )
    assert r"caf\udce9" in page.read_text(encoding="utf-8")
    assert json.loads((tmp_path / name / "latents.json").read_text())["protocol"]["data"] == name


def test_the_command_writes_a_page_and_a_file(model_folder, videos, tmp_path, capsys):
    sizes = [f"--{name}={value}" for name, value in {**SIZE, "max_clips": 1}.items()]
    typed = ["latents", str(model_folder), "--data", str(videos), *sizes, "-o"]
    (tmp_path / "file").touch()
    assert main([*typed, str(tmp_path / "file" / "latents")]) == 2
    assert "encoding" not in capsys.readouterr().err, "before anything is measured"
    output = tmp_path / "new" / "folder"
    assert main([*typed, str(output)]) == 0
    written = json.loads((output / "latents.json").read_text())
    assert written["models"][0]["title"] == str(model_folder)
    assert written["protocol"]["num_clips"] == 1
    page = (output / "latents.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"<td>(None|\[\{\}\])</td>", page), "what the protocol does not have"
    assert "effective rank" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"data": "videos"},
            r"`config` must be of the class `LatentsConfig`, but got {'data': 'videos'}",
        ),
        (LatentsConfig(), "`data` must be a file, or a folder of files, but got nothing"),
    ],
)
def test_invalid_settings_are_refused(model_folder, config, message):
    with pytest.raises(ValueError, match=message):
        measure_latent_spaces([model_folder], config)
