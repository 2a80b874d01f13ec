"""Two checkouts are compared bit for bit: every setting is explicit, and every difference is found."""

import importlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from telecine.__main__ import main
from telecine.runs.saved_settings import as_yaml
from telecine.settings import CausalVAEConfig, ClipConfig, TrainConfig
from telecine.settings.autoencoder import FlowConfig
from telecine.settings.parse import read_config
from telecine.settings.upgrade import DEFAULTS_OF_OLD_RUNS
from telecine.training.tensor_files import HostCopy, save_shards, shard_file

FOLDER = Path(__file__).parents[2] / "benchmarks"
CASES = [
    "demo",
    "every_term",
    "patch_relativistic_r1_r2",
    "lecam",
    "image_batches",
    "two_processes",
    "fsdp2",
    "diffusers",
    "whole_graph",
    "bfloat16",
]


@pytest.fixture
def same_bits(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("same_bits")


@pytest.fixture
def same_bits_cases(same_bits):
    return importlib.import_module("same_bits_cases")


def names_of(settings, prefix=""):
    """Return the dotted names of all settings; a weight that changes over the steps is one of them."""
    names = set()
    for name, value in settings.items():
        is_group = isinstance(value, dict) and "initial" not in value
        names |= names_of(value, f"{prefix}{name}.") if is_group else {prefix + name}
    return names


def test_every_case_sets_every_setting_that_older_versions_have(
    same_bits, same_bits_cases, tmp_path
):
    assert list(same_bits.CASES) == CASES
    expected = names_of(yaml.safe_load(as_yaml(TrainConfig()))) - names_of(same_bits_cases.LATER)
    for name, case in same_bits.CASES.items():
        (tmp_path / name).mkdir()
        path = same_bits.prepare(case, tmp_path / name, 40)
        settings = yaml.safe_load(path.read_text())
        names = {
            setting for setting in names_of(settings) if not setting.startswith("objective.terms.")
        }
        assert names == expected, name
        assert read_config(settings).steps == 40
    assert len(list((tmp_path / "image_batches" / "data").glob("*.png"))) == 6


def test_the_other_settings_have_the_values_that_do_what_older_versions_do(same_bits_cases):
    earlier_flow = FlowConfig(shift=1.0, noise_fraction=0.0)
    expected = TrainConfig(
        clips=ClipConfig(**DEFAULTS_OF_OLD_RUNS), causal_vae=CausalVAEConfig(flow=earlier_flow)
    )
    assert read_config(same_bits_cases.LATER) == expected


@pytest.fixture
def trained_here(same_bits, monkeypatch, without_pictures, capsys):
    """Train in this process, which saves the time of imports; other commands still run in a new one."""
    run_python = same_bits.run_python

    def run(arguments, src, folder):
        if arguments[:3] != ["-m", "telecine", "train"]:
            return run_python(arguments, src, folder)
        assert src == same_bits.SRC
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            assert main(arguments[2:]) == 0
        torch.set_num_threads(num_threads)
        return capsys.readouterr().out

    monkeypatch.setattr(same_bits, "run_python", run)


@pytest.fixture
def against_this_checkout(same_bits, monkeypatch, capsys):
    """Return a function that runs the command with this checkout on both sides."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["same_bits.py", str(FOLDER.parent), *arguments])
        return same_bits.main(), capsys.readouterr().out

    return run


@pytest.mark.slow
@pytest.mark.benchmarks
def test_two_trainings_of_one_checkout_are_the_same(
    against_this_checkout, trained_here, cached_weights
):
    case = "patch_relativistic_r1_r2"
    assert against_this_checkout("--cases", case, "--steps", "2") == (0, f"{case}: the same\n")


def test_the_first_differences_are_printed(same_bits, against_this_checkout, monkeypatch, tmp_path):
    runs = [
        write_run(
            tmp_path / name, torch.zeros(2), **{f"m{number:02}": value for number in range(12)}
        )
        for name, value in (("one", 1.0), ("other", 2.0))
    ]
    monkeypatch.setattr(same_bits, "train", lambda case, src, folder, num_steps: runs.pop(0))
    status, printed = against_this_checkout("--cases", "demo")
    assert status == 1
    first, *lines, last = printed.splitlines()
    assert first == "demo: 12 differences"
    assert lines == [
        f"  metrics.jsonl: m{number:02} is 1.0 and 2.0 at step 1" for number in range(10)
    ]
    assert last == "  and 2 more"


def write_run(folder, tensor, **metrics):
    """Write the files of a run that are compared, and return its folder."""
    checkpoint = folder / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    save_file({"weight": tensor, "bias": torch.ones(2)}, checkpoint / "objective.safetensors")
    lines = [
        {"step": 0, "val/psnr": 1.0},
        {"step": 1, "train/clips_per_second": torch.rand(()).item(), **metrics},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def test_clocks_and_the_order_of_values_do_not_count(same_bits, tmp_path):
    one = write_run(tmp_path / "one", torch.zeros(2), a=1.0, b=float("nan"))
    other = write_run(tmp_path / "other", torch.zeros(2), b=float("nan"), a=1.0)
    assert list(same_bits.differences(one, other)) == []


@pytest.mark.parametrize(
    ("tensor", "metrics", "expected"),
    [
        (torch.tensor([0.0, -0.0]), {"a": 1.0}, "objective.safetensors: weight differs by 0"),
        (torch.tensor([0.0, 0.5]), {"a": 1.0}, "objective.safetensors: weight differs by 0.5"),
        (torch.zeros(1), {"a": 1.0}, "objective.safetensors: weight differs in shape"),
        (
            torch.zeros(2, dtype=torch.float64),
            {"a": 1.0},
            "objective.safetensors: weight differs by 0",
        ),
        (
            torch.zeros(2),
            {"a": 1.0 + 2**-50},
            f"metrics.jsonl: a is 1.0 and {1.0 + 2**-50} at step 1",
        ),
        (torch.zeros(2), {}, "metrics.jsonl: a is 1.0 and None at step 1"),
    ],
)
def test_every_difference_is_named(same_bits, tmp_path, tensor, metrics, expected):
    one = write_run(tmp_path / "one", torch.zeros(2), a=1.0)
    other = write_run(tmp_path / "other", tensor, **metrics)
    assert list(same_bits.differences(one, other)) == [expected]


def test_missing_tensors_files_and_lines_are_named(same_bits, tmp_path):
    one, other = (write_run(tmp_path / name, torch.zeros(2)) for name in ("one", "other"))
    (folder,) = (other / "checkpoints").iterdir()
    save_file({"bias": torch.ones(2)}, folder / "objective.safetensors")
    save_file({}, folder / "optimizer.safetensors")
    (other / "metrics.jsonl").write_text('{"step": 0, "val/psnr": 1.0}')
    assert list(same_bits.differences(one, other)) == [
        "metrics.jsonl: 2 lines and 1",
        "objective.safetensors: weight only in this checkout",
        "optimizer.safetensors: only in the other checkout",
    ]


def test_a_sharded_optimizer_is_compared_with_a_whole_one(same_bits, tmp_path):
    one, other = (write_run(tmp_path / name, torch.ones(2)) for name in ("one", "other"))
    whole, sharded = (next((run / "checkpoints").iterdir()) for run in (one, other))
    save_file({"0.exp_avg": torch.arange(3.0)}, whole / "optimizer.safetensors")
    for rank, values in enumerate((torch.arange(2.0), torch.tensor([2.0]))):
        copy = HostCopy(is_main=True)
        copy.update({"0.exp_avg": values})
        copy.offsets["0.exp_avg"] = [2 * rank]
        save_shards(shard_file(sharded, rank, 2), {"optimizer": copy})
    assert list(same_bits.differences(one, other)) == []
    save_file({"0.exp_avg": torch.zeros(3)}, whole / "optimizer.safetensors")
    assert list(same_bits.differences(one, other)) == [
        "optimizer.safetensors: 0.exp_avg differs by 2"
    ]
