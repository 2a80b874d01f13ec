"""`telecine latents`: what it measures of a model on a folder of videos, and the page and the file that it writes."""

import json
import os
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

from telecine.__main__ import main
from telecine.autoencoders import CausalVAE
from telecine.data import DataError
from telecine.evaluation import latents, source
from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.latent_page import _plot_label, _render_latents, write_latents
from telecine.evaluation.latents import TRANSFORMS, _drift, measure_latent_spaces
from telecine.settings import ClipConfig, EvaluateConfig, LatentsConfig

from .conftest import TINY

SIZE = {"num_frames": 5, "height": 16, "width": 24, "max_clips": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def changed_folder(tiny_model, tmp_path_factory):
    """The same model with a latent that is doubled in the first channel."""
    model = CausalVAE(TINY)
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
    with pytest.raises(ValueError, match=r"`base` must be a model with latents of shape \(4, 1, 2, 2\)"):
        _drift(torch.zeros(1, 4, 1, 2, 2), torch.zeros(1, 8, 1, 2, 2))


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

    monkeypatch.setattr(latents, "read_span", read_span)
    config = LatentsConfig(data=str(videos), base=str(model_folder), **{**SIZE, "max_clips": 9})
    assert measure_latent_spaces([model_folder, changed_folder], config).protocol["num_clips"] == 9
    assert max(most) <= 3


def test_a_clip_that_can_no_longer_be_read(model_folder, videos, tmp_path):
    shutil.copytree(videos, tmp_path / "videos")
    found, _ = latents._find_clips(LatentsConfig(data=str(tmp_path / "videos"), **SIZE), ClipConfig(5, 16, 24))
    assert len(found) == 3
    shutil.rmtree(tmp_path / "videos")
    with pytest.raises(DataError, match="`data` must be readable until the end"):
        list(found)


def test_the_page_shows_every_model_and_needs_no_network(report):
    page = _render_latents(report)
    assert page.count('<img class="plot" src="data:image/svg+xml;base64,') == 6
    for space in report.models:
        assert space.title in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_names_are_shown_as_they_are_in_every_legend(report, monkeypatch):
    legends = []
    save = Figure.savefig

    def record(figure, *arguments, **options):
        save(figure, *arguments, **options)
        legends.append([text.get_text() for text in figure.axes[0].get_legend().get_texts()])

    monkeypatch.setattr(Figure, "savefig", record)
    names = ["cost_$5_and_$6", "_hidden"]
    spaces = [replace(space, title=name) for space, name in zip(report.models, names, strict=True)]
    _render_latents(replace(report, models=spaces))
    assert len(legends) == 6
    for labels in legends:
        assert any(label.startswith(r"cost_\$5_and_\$6") for label in labels), "without the backslashes it is a formula"
        assert any(label.strip().startswith("_hidden") for label in labels)


def test_names_that_are_not_utf8(report, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    spaces = [replace(space, title=name) for space in report.models]
    page = write_latents(replace(report, models=spaces, protocol=report.protocol | {"data": name}), tmp_path / name)
    assert r"caf\udce9" in page.read_text(encoding="utf-8")
    assert json.loads((tmp_path / name / "latents.json").read_text())["protocol"]["data"] == name


def test_the_command_writes_a_page_and_a_file(model_folder, videos, tmp_path, capsys):
    sizes = [f"--{name}={value}" for name, value in {**SIZE, "max_clips": 1}.items()]
    output = tmp_path / "new" / "folder"
    assert main(["latents", str(model_folder), "--data", str(videos), "-o", str(output), *sizes]) == 0
    written = json.loads((output / "latents.json").read_text())
    assert written["models"][0]["title"] == str(model_folder)
    assert written["protocol"]["num_clips"] == 1
    assert (output / "latents.html").read_text().startswith("<!doctype html>")
    assert "effective rank" in capsys.readouterr().out


def test_without_data(model_folder):
    with pytest.raises(ValueError, match="`data` must be a folder of videos, or one video, but got nothing"):
        measure_latent_spaces([model_folder], LatentsConfig())


def test_matplotlib_shows_a_label_as_it_is():
    assert _plot_label("runs/a_$5_$6") == r"runs/a_\$5_\$6"
    assert _plot_label("_run") == " _run"
