"""The speed of models: measured with an evaluation, and of several models in turns, on a page."""

import json
import re
import runpy
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry

from telecine.__main__ import main
from telecine.base import memory_counter
from telecine.base.memory_counter import MemoryCounter
from telecine.evaluation.compare_speed import speeds_in_turns
from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.speed import Speed, count_needs, measure_speed, time_in_turns
from telecine.models import CausalVAE
from telecine.report.speed_page import pareto_front
from telecine.settings import EvaluateConfig

from .conftest import TINY as TINY_MODEL

SIZE = {"num_frames": 5, "height": 12, "width": 12}
OPTIONS = ["--data", "videos", "--max_clips", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("telecine.evaluation.speed.MIN_SECONDS", 0.0)


def test_speed_is_measured_beside_the_other_metrics(model_folder, videos, tmp_path, no_plots):
    config = EvaluateConfig(data=str(videos), max_clips=1, device="cpu", **SIZE)
    without = evaluate(model_folder, config, output=tmp_path)
    assert not (tmp_path / "speed.json").exists()
    evaluation = evaluate(model_folder, replace(config, speed=True), output=tmp_path)
    assert evaluation.metrics == without.metrics
    assert {**asdict(evaluation.protocol), "speed": {}} == asdict(without.protocol)
    assert evaluation.speed == Speed.read(tmp_path)
    decode = evaluation.speed.decode
    assert decode.slowest <= decode.frames_per_second <= decode.fastest
    assert min(decode.seconds) == pytest.approx(5 / decode.fastest)
    protocol = json.loads((tmp_path / "protocol.json").read_text())["speed"]
    assert protocol["device"].endswith("cores (cpu)")
    assert (protocol["threads"], protocol["dtype"]) == (torch.get_num_threads(), "float32")
    assert [protocol[name] for name in SIZE] == [5, 12, 12]


def test_operations_weights_and_memory_of_both_parts(tiny_model):
    (speed,) = measure_speed([tiny_model], 5, 16, 16)
    weights = [sum(x.numel() for x in part.parameters()) for part in tiny_model.children()]
    assert sum(weights) == speed.encode.weights + speed.decode.weights
    assert speed.decode.weights == sum(x.numel() for x in tiny_model.decoder.parameters())
    (larger,) = measure_speed([tiny_model], 5, 32, 16)
    assert larger.decode.flops == 2 * speed.decode.flops
    assert larger.encode.flops == 2 * speed.encode.flops
    assert larger.decode.memory == 2 * speed.decode.memory, "no weights, whose size stays"
    assert speed.decode.memory >= 3 * 5 * 16 * 16 * 4, "the video itself"


def test_views_of_weights_and_of_the_input_are_no_memory_of_a_call():
    x = torch.randn(1, 1000)
    weight = torch.randn(1000, 1000)

    def call():
        return F.linear(x[0], weight.view(1000, 1000))

    memory, flops = count_needs(call, [x, weight], torch.device("cpu"))
    assert (memory, flops) == (4000, 2 * 1000 * 1000)


def test_attention_on_a_cpu_counts_as_elsewhere():
    """Two products of 64 x 8 by 8 x 64, of 2 heads."""
    x = torch.randn(1, 2, 64, 8)
    with MemoryCounter("attention") as counter, torch.no_grad():
        F.scaled_dot_product_attention(x, x, x)
    assert counter.flops_by_part["attention"] == 2 * 2 * (2 * 64 * 64 * 8)


def test_an_import_leaves_the_counter_of_pytorch_as_it_is(monkeypatch):
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    monkeypatch.delitem(flop_registry, attention, raising=False)
    module = runpy.run_path(memory_counter.__file__)
    assert attention not in flop_registry
    module["MemoryCounter"]("attention")
    assert attention in flop_registry


def test_calls_take_turns():
    order = []
    times = time_in_turns(
        [lambda: order.append("a"), lambda: order.append("b")],
        torch.device("cpu"),
        min_seconds=0.0,
    )
    assert order == ["a", "b"] * (len(order) // 2)
    assert [len(seconds) for seconds in times] == [10, 10]
    assert len(order) == 2 * 12, "with the two that warm up"


def test_a_pareto_front():
    points = [(3.0, 30.0), (1.0, 20.0), (2.0, 19.0), (1.0, 18.0), (4.0, 30.0), (5.0, float("nan"))]
    assert pareto_front(points, larger=True) == [(1.0, 20.0), (3.0, 30.0)]
    assert pareto_front(points, larger=False) == [(1.0, 18.0)]


@pytest.fixture
def two_models(model_folder, videos, tmp_path, monkeypatch, no_plots):
    """The folders of the evaluations of two models, the second of which has more channels and no speed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").symlink_to(videos)
    torch.manual_seed(0)
    CausalVAE(replace(TINY_MODEL, base_channels=16)).save_pretrained(tmp_path / "wide")
    sizes = [f"--{name}={value}" for name, value in SIZE.items()]
    for model, name, speed in (
        (model_folder, "narrow", "true"),
        (tmp_path / "wide", "wide_figures", "false"),
    ):
        typed = ["evaluate", str(model), *OPTIONS, *sizes, "--speed", speed, "-o", name]
        assert main(typed) == 0
    return ["narrow", "wide_figures"]


def test_several_models_in_turns_on_a_page(two_models, tmp_path, capsys):
    assert main(["evaluate", "--compare", *two_models, "-o", "out"]) == 0
    assert not (tmp_path / "out" / "speed.html").exists(), "only one has a speed"
    typed = ["evaluate", "--compare", *two_models, "--speed=true", "--device=cpu", "-o", "out"]
    assert main(typed) == 0
    values = json.loads((tmp_path / "out" / "speed.json").read_text())
    narrow, wide = (values["models"][name]["decode"] for name in two_models)
    assert narrow["weights"] < wide["weights"]
    assert "decode, frames/s ↑" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    page = (tmp_path / "out" / "speed.html").read_text(encoding="utf-8")
    text = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page)[1]
    chart = json.loads(text)["charts"][0]
    front, points = chart["series"]
    assert chart["title"] == "PSNR over decoding time, larger is better"
    times = [1e3 / part["frames_per_second"] for part in (narrow, wide)]
    assert [curve["steps"][0] for curve in points["curves"]] == pytest.approx(times)
    assert front["is_front"]
    assert front["curves"][0]["steps"][-1] == pytest.approx(max(times))
    assert f"{wide['weights']:,}" in page


def test_whole_videos_have_no_common_size_for_a_speed(two_models):
    for folder in map(Path, two_models):
        protocol = json.loads((folder / "protocol.json").read_text())
        whole = {"num_frames": None, "height": None, "width": None}
        (folder / "protocol.json").write_text(json.dumps(protocol | whole))
    with pytest.raises(ValueError, match="`speed` must be false for evaluations of whole videos"):
        speeds_in_turns(two_models, EvaluateConfig(speed=True, device="cpu"))


def test_speeds_that_do_not_compare_are_left_out(
    two_models, tmp_path, capsys, caplog, reconstructions, videos
):
    file = tmp_path / "narrow" / "protocol.json"
    protocol = json.loads(file.read_text())
    for name, changes in (("here", {}), ("there", {"device": "another"})):
        (tmp_path / name).mkdir()
        for part in ("metrics.json", "clips.json", "speed.json"):
            (tmp_path / name / part).write_bytes((tmp_path / "narrow" / part).read_bytes())
        changed = protocol | {"speed": protocol["speed"] | changes}
        (tmp_path / name / "protocol.json").write_text(json.dumps(changed))
    assert main(["evaluate", "--compare", "here", "there"]) == 0
    assert "A: here" in capsys.readouterr().out
    assert main(["evaluate", "--compare", "narrow", "here", "there", "-o", "out"]) == 0
    assert "frames/s" not in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "speed.html").exists()
    assert "the speeds are left out: narrow and there measured them in other ways" in caplog.text
    config = EvaluateConfig(data=str(videos), speed=True, device="cpu", **SIZE)
    with pytest.raises(ValueError, match="`speed` must be left out for reconstructions"):
        evaluate(reconstructions["little"], config)
    with pytest.raises(ValueError, match="`speed` must be false with a protocol"):
        EvaluateConfig(speed=True, protocol="davis")
