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

from telecine.__main__ import main
from telecine.data import DataError
from telecine.evaluation import source
from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.latent_measures import latent_summary
from telecine.losses.perceptual import pick_frames
from telecine.models import CausalVAE
from telecine.report.charts import plotly_script
from telecine.settings import ClipConfig, EvaluateConfig, LatentsConfig
from telecine.tools.latents import measures as latents
from telecine.tools.latents.clips import ClipsOnDisk
from telecine.tools.latents.decoding import TRANSFORMS
from telecine.tools.latents.measures import measure_latent_spaces, scaled_video
from telecine.tools.latents.page import render_latents, write_latents

SIZE = {"num_frames": 5, "height": 16, "width": 24, "max_clips": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def changed_folder(tiny_model, tiny_config, tmp_path_factory):
    """The same model with a latent that is doubled in the first channel."""
    model = CausalVAE(tiny_config)
    model.load_state_dict(tiny_model.state_dict())
    with torch.no_grad():
        for layer in (model.encoder.linear.first, model.encoder.linear.rest):
            layer.weight[0] *= 2
            layer.bias[0] *= 2
    folder = tmp_path_factory.mktemp("changed")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def report(model_folder, changed_folder, videos):
    config = LatentsConfig(data=str(videos), base=str(model_folder), **SIZE)
    return measure_latent_spaces([model_folder, changed_folder], config)


def test_the_measures_are_those_of_the_latents(report, tiny_model):
    first, second = report.models
    assert first.shape == [4, 2, 4, 6]
    assert [len(values) for values in (first.channels.mean, first.channels.kurtosis, first.eigenvalues)] == [4, 4, 4]
    assert second.channels.std[0] == pytest.approx(2 * first.channels.std[0])
    assert second.channels.std[1:] == pytest.approx(first.channels.std[1:])
    assert list(first.equivariance) == ["none", *TRANSFORMS]
    assert first.noise_psnr["0"] == pytest.approx(first.equivariance["none"]["psnr"], abs=1e-3)
    assert first.noise_psnr["0.8"] < first.noise_psnr["0"]
    assert len(first.spectrum.frequency) == len(first.spectrum.latent) == len(first.spectrum.video)
    assert 0 < first.spectrum.high_frequencies["video"] < 1
    assert {name: len(values) for name, values in first.autocorrelation.items()} == {
        "space": 3,
        "time": 1,
        "video_space": 3,
        "video_time": 1,
    }


def test_the_drift_from_the_base(report):
    first, second = report.models
    assert first.drift == {"correlation": pytest.approx([1.0] * 4), "relative_error": 0.0}
    assert second.drift["correlation"] == pytest.approx([1.0] * 4)
    assert second.drift["relative_error"] > 0.1


def test_a_base_of_another_latent_is_refused_before_anything_is_measured(tiny_model, tiny_config, videos):
    other = CausalVAE(replace(tiny_config, latent_channels=8)).eval()
    config = LatentsConfig(data=str(videos), base="other", **SIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "load_model", lambda checkpoint, *_: other if checkpoint == "other" else tiny_model)
        with pytest.raises(
            ValueError, match=r"`base` must be a model with latents of shape \(4, 2, 4, 6\), but got one wi"
        ):
            measure_latent_spaces(["model"], config, probe=pytest.fail)


@pytest.mark.parametrize(("value", "dead"), [(0.5, 4), (math.nan, math.nan)])
def test_a_constant_latent_is_dead_as_in_training(tiny_model, videos, monkeypatch, value, dead):
    constant = torch.full((1, 4, 2, 4, 6), value)
    monkeypatch.setattr(latents, "encode_clips", lambda *_: constant)
    config = LatentsConfig(data=str(videos), **{**SIZE, "max_clips": 1})
    space = measure_latent_spaces([tiny_model], config).models[0]
    whole = {name: values for name, values in space.equivariance.items() if name != "scale_1/2"}
    assert "equivariance error, MSE" in space.figures()
    assert "equivariance error without scale_1/2, MSE" in replace(space, equivariance=whole).figures()
    figures = {"dead channels": space.figures()["dead channels"], "mean std": space.figures()["mean std"]}
    of_training = latent_summary(constant)
    assert figures == pytest.approx({"dead channels": dead, "mean std": of_training["std"]}, nan_ok=True)
    assert of_training["dead_channels"] == pytest.approx(dead, nan_ok=True)


def test_the_protocol_says_what_was_measured(report, videos):
    protocol = report.protocol
    assert {name: protocol[name] for name in ("data", "num_clips", "num_frames", "height", "width")} == {
        "data": str(videos),
        "num_clips": 3,
        "num_frames": 5,
        "height": 16,
        "width": 24,
    }
    assert {"spectrum", "equivariance", "noise", "drift"} <= set(protocol["definitions"])


def test_the_hash_of_the_clips_is_that_of_evaluations(model_folder, videos):
    size = {"num_frames": 5, "height": 12, "width": 12, "max_clips": 2, "device": "cpu"}  # too small for LPIPS
    measured = measure_latent_spaces([model_folder], LatentsConfig(data=str(videos), **size))
    evaluated = evaluate(model_folder, EvaluateConfig(data=str(videos), **size))
    assert measured.protocol["clips_sha256"] == evaluated.protocol.clips_sha256


def test_the_clips_are_not_all_in_memory(model_folder, changed_folder, videos, monkeypatch):
    read, most = [], []

    def read_span(span, config):
        clip = source.read_span(span, config)
        read.append(weakref.ref(clip["video"]))
        most.append(sum(each() is not None for each in read))
        return clip

    monkeypatch.setattr("telecine.tools.latents.clips.read_span", read_span)
    config = LatentsConfig(data=str(videos), base=str(model_folder), **{**SIZE, "max_clips": 9})
    assert measure_latent_spaces([model_folder, changed_folder], config).protocol["num_clips"] == 9
    assert max(most) <= 3


def test_a_clip_that_can_no_longer_be_read(model_folder, videos, tmp_path):
    shutil.copytree(videos, tmp_path / "videos")
    found = ClipsOnDisk.find(source.index_data(tmp_path / "videos"), ClipConfig(5, 16, 24), 3)
    assert len(found) == 3
    shutil.rmtree(tmp_path / "videos")
    with pytest.raises(DataError, match="`data` must be readable until the end"):
        list(found)


def data_of(page):
    """Return the data that the page's scripts draw."""
    return json.loads(re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page)[1])


def test_the_page_shows_every_model_and_needs_no_network(report):
    page = render_latents(report)
    for space in report.models:
        assert space.title in page
    assert "http" not in page.replace(plotly_script(), "").replace("http://www.w3.org", "")


def test_every_measure_of_several_values_has_a_plot_with_a_curve_of_each_model(report):
    data = data_of(render_latents(report))
    assert data["runs"] == [space.title for space in report.models]
    plots = {plot["title"].partition(":")[0].partition(",")[0]: plot for plot in data["charts"]}
    assert [*plots] == ["Spectrum", "Eigenvalues", "Autocorrelation", "Equivariance", "Noise", "Drift"]
    assert len(data["charts"]) == 7, "autocorrelation in space and in time"
    for plot in data["charts"]:
        assert plot["explanation"]
        for series in plot["series"]:
            assert [curve["run"] for curve in series["curves"]] == [0, 1]
            assert series["is_reference"] == (series["label"] == "scaled-down video")
    first, second = report.models
    spectrum, video = plots["Spectrum"]["series"]
    assert spectrum["curves"][1]["steps"] == second.spectrum.frequency
    assert spectrum["curves"][1]["values"] == pytest.approx(second.spectrum.latent, rel=1e-5)
    assert video["curves"][0]["values"] == pytest.approx(first.spectrum.video, rel=1e-5)
    assert sum(plots["Eigenvalues"]["series"][0]["curves"][0]["values"]) == pytest.approx(1, abs=1e-4)
    assert plots["Equivariance"]["x_names"] == ["none", *TRANSFORMS]
    errors = [value["mse"] for value in first.equivariance.values()]
    assert plots["Equivariance"]["series"][0]["curves"][0]["values"] == pytest.approx(errors, rel=1e-5)
    noise = plots["Noise"]["series"][0]["curves"][0]
    assert dict(zip(noise["steps"], noise["values"], strict=True)) == pytest.approx(
        {float(size): value for size, value in first.noise_psnr.items()}, rel=1e-5
    )
    assert plots["Drift"]["series"][0]["curves"][0]["values"] == pytest.approx([1.0] * 4)


def test_half_of_a_clip_that_is_too_small_for_the_model_is_left_out(report, tiny_model, videos, monkeypatch):
    monkeypatch.setattr(CausalVAE, "covering_clip", lambda *_: (5, 16, 24))
    small = measure_latent_spaces([tiny_model], LatentsConfig(data=str(videos), **{**SIZE, "max_clips": 1})).models[0]
    assert small.equivariance.keys() == {"none", *TRANSFORMS} - {"scale_1/2"}
    plots = data_of(render_latents(replace(report, models=[small, report.models[0]])))["charts"]
    (plot,) = (each for each in plots if each["title"].startswith("Equivariance"))
    assert plot["x_names"] == ["none", *TRANSFORMS]
    assert plot["series"][0]["curves"][0]["steps"] == [0, 2, 3, 4, 5, 6]


def test_frames_of_a_latent_without_a_frame_of_the_first_one(tiny_config, videos, monkeypatch):
    """Of 8 frames the latent has 2, each of 4."""
    shown = []
    monkeypatch.setattr(latents, "pick_frames", lambda video, at: shown.append(at.tolist()) or pick_frames(video, at))
    model = CausalVAE(replace(tiny_config, first_frame_apart=False))
    measure_latent_spaces([model], LatentsConfig(data=str(videos), **{**SIZE, "num_frames": 8, "max_clips": 1}))
    assert shown == [[[3, 7]]]


def test_the_video_at_the_size_of_its_latent():
    video = torch.arange(9.0).view(1, 1, 9, 1, 1).expand(1, 3, 9, 8, 16)
    small = scaled_video(video, torch.zeros(1, 4, 3, 2, 4), True)
    assert small.shape == (1, 3, 3, 2, 4)
    assert small[0, 0, :, 0, 0].tolist() == pytest.approx([0, 4, 8])
    assert scaled_video(video[:, :, :1], torch.zeros(1, 4, 1, 2, 4), True).shape == (1, 3, 1, 2, 4)
    without_first = scaled_video(video[:, :, :8], torch.zeros(1, 4, 2, 2, 4), False)
    assert without_first[0, 0, :, 0, 0].tolist() == pytest.approx([3, 7])


def test_a_plot_without_values_is_left_out(report):
    space = replace(report.models[0], drift={}, eigenvalues=[math.nan] * 4)
    titles = [plot["title"] for plot in data_of(render_latents(replace(report, models=[space])))["charts"]]
    assert len(titles) == 5
    assert not any(title.startswith(("Drift", "Eigenvalues")) for title in titles)


def test_names_are_shown_as_they_are(report):
    names = ["cost_$5_and_$6", "_hidden", "</script><b>"]
    spaces = [replace(report.models[0], title=name) for name in names]
    page = render_latents(replace(report, models=spaces))
    assert data_of(page)["runs"] == names
    assert "<b>" not in page


def test_names_that_are_not_utf8(report, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    spaces = [replace(space, title=name) for space in report.models]
    page = write_latents(replace(report, models=spaces, protocol=report.protocol | {"data": name}), tmp_path / name)
    assert r"caf\udce9" in page.read_text(encoding="utf-8")
    assert json.loads((tmp_path / name / "latents.json").read_text())["protocol"]["data"] == name


def test_the_command_writes_a_page_and_a_file(model_folder, videos, tmp_path, capsys):
    sizes = [f"--{name}={value}" for name, value in {**SIZE, "max_clips": 1}.items()]
    output = tmp_path / "new" / "folder"
    (tmp_path / "file").touch()
    typed = ["latents", str(model_folder), "--data", str(videos), *sizes, "-o"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "measure_latent_spaces", pytest.fail)
        assert main([*typed, str(tmp_path / "file" / "latents")]) == 2, "before anything is measured"
    assert main([*typed, str(output)]) == 0
    written = json.loads((output / "latents.json").read_text())
    assert written["models"][0]["title"] == str(model_folder)
    assert written["protocol"]["num_clips"] == 1
    page = (output / "latents.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"<td>(None|\[\{\}\])</td>", page), "what the protocol does not have"
    assert "effective rank" in capsys.readouterr().out


def test_a_dict_is_no_configuration(model_folder):
    with pytest.raises(ValueError, match=r"`config` must be of the class `LatentsConfig`, but got {'data': 'videos'}"):
        measure_latent_spaces([model_folder], {"data": "videos"})


def test_without_data(model_folder):
    with pytest.raises(ValueError, match="`data` must be a file, or a folder of files, but got nothing"):
        measure_latent_spaces([model_folder], LatentsConfig())
