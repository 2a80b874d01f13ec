"""Two evaluations side by side, and protocols that do not agree."""

import json
import shutil

import pytest
import torch
from PIL import Image

from telecine.evaluation.compare import MUST_AGREE, check_protocols, compare
from telecine.evaluation.config import EvaluateConfig
from telecine.evaluation.evaluate import evaluate


@pytest.fixture(scope="module")
def evaluations(videos, reconstructions, tmp_path_factory, cached_weights):
    """The output folders of two evaluations of the same clips."""
    folders = {}
    for label, reconstruction in reconstructions.items():
        folders[label] = tmp_path_factory.mktemp("evaluation") / label
        config = EvaluateConfig(data=str(videos), num_frames=5, device="cpu")
        evaluate(reconstruction, config, output=folders[label])
    return folders


def changed(folder, tmp_path, **fields):
    """Copy an evaluation and change its protocol."""
    copy = shutil.copytree(folder, tmp_path / "changed")
    protocol = json.loads((copy / "protocol.json").read_text())
    (copy / "protocol.json").write_text(json.dumps(protocol | fields))
    return copy


def test_less_noise_is_better(evaluations, tmp_path):
    comparison = compare(evaluations["much"], evaluations["little"], output=tmp_path)
    verdicts = {item.name: item.verdict for item in comparison.differences}
    assert verdicts["psnr"] == verdicts["ssim"] == verdicts["lpips_alex"] == verdicts["flicker"] == "B"
    assert len(verdicts) == 10
    assert (comparison.num_clips, comparison.warnings) == (15, [])
    stated = json.loads((tmp_path / "comparison.json").read_text())
    assert stated["metrics"]["psnr"]["mean"] > 5
    assert (stated["A"], stated["B"]) == (str(evaluations["much"]), str(evaluations["little"]))
    assert (stated["confidence"], stated["num_clips"]) == (0.95, 15)
    for name in ("comparison.png", "comparison_frames.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(set(picture.convert("L").tobytes())) > 20


def test_the_difference_is_that_of_the_means(evaluations):
    comparison = compare(evaluations["much"], evaluations["little"])
    means = [json.loads((evaluations[label] / "metrics.json").read_text())["psnr"] for label in ("much", "little")]
    (psnr,) = [item for item in comparison.differences if item.name == "psnr"]
    assert (psnr.first, psnr.second) == pytest.approx(tuple(means))
    assert psnr.mean == pytest.approx(means[1] - means[0])
    assert psnr.interval[0] < psnr.mean < psnr.interval[1]


def test_the_same_twice_is_undecided(evaluations):
    comparison = compare(evaluations["much"], evaluations["much"])
    assert {item.verdict for item in comparison.differences} == {"undecided"}


@pytest.mark.parametrize("name", MUST_AGREE)
def test_other_clips_or_settings_are_refused_and_named(evaluations, tmp_path, name):
    other = changed(evaluations["little"], tmp_path, **{name: "something else"})
    with pytest.raises(ValueError, match=rf"two evaluations by one protocol, but got {name}: .* and something else"):
        compare(evaluations["much"], other)


def test_the_same_metric_by_another_network_is_refused(evaluations, tmp_path):
    backbones = {"lpips_vgg": "sha256 0", "lpips_alex": "sha256 1"}
    other = changed(evaluations["little"], tmp_path, backbones=backbones)
    with pytest.raises(ValueError, match=r"backbones\.lpips_vgg: sha256 \w+\.\.\. and sha256 0"):
        compare(evaluations["much"], other)


def test_what_does_little_harm_is_a_warning(evaluations, tmp_path):
    other = changed(evaluations["little"], tmp_path, data="elsewhere", versions={"torch": "1"})
    warnings = compare(evaluations["much"], other).warnings
    assert warnings[0].endswith("and elsewhere")
    assert f"torch {torch.__version__.split('+')[0]}" in warnings[1]
    assert len(warnings) == 2


def test_metrics_that_one_lacks_are_named(evaluations, tmp_path):
    protocol = json.loads((evaluations["little"] / "protocol.json").read_text())
    fewer = {name: text for name, text in protocol["metrics"].items() if name in ("psnr", "ssim")}
    comparison = compare(evaluations["much"], changed(evaluations["little"], tmp_path, metrics=fewer))
    assert [item.name for item in comparison.differences] == ["psnr", "ssim"]
    assert comparison.warnings == [
        "only one has flicker, grid_16, grid_2, grid_4, grid_8, lpips_alex, lpips_vgg, sharpness"
    ]
    with pytest.raises(ValueError, match="share a metric"):
        check_protocols(protocol, protocol | {"metrics": {}})


def test_a_figure_of_the_whole_set_is_compared_without_interval(evaluations, tmp_path):
    folders = []
    for label, value in (("much", 90.0), ("little", 70.0)):
        protocol = json.loads((evaluations[label] / "protocol.json").read_text())
        metrics = protocol["metrics"] | {"fvd": "of 15 clips"}
        folders.append(changed(evaluations[label], tmp_path / label, metrics=metrics))
        figures = json.loads((folders[-1] / "metrics.json").read_text()) | {"fvd": value}
        (folders[-1] / "metrics.json").write_text(json.dumps(figures))
    last = compare(*folders, output=tmp_path / "out").differences[-1]
    assert (last.name, last.mean, last.interval) == ("fvd", -20, None)


def test_a_folder_that_is_no_evaluation(evaluations, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"protocol\.json"):
        compare(evaluations["much"], tmp_path)
