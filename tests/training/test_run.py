"""Results of whole runs: their files, their records, and what happens to a run that is finished."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch._dynamo.utils import counters

from telecine.models import CausalVAE
from telecine.report.page import write_report
from telecine.runs import Run, find_checkpoint
from telecine.settings import ObjectiveConfig, PerceptualConfig
from telecine.training import train
from telecine.training.build import build_autoencoder
from telecine.video.write import write_video

from .helpers import (
    LIGHT,
    assert_equal_runs,
    assert_equal_tensors,
    graph_breaks,
    last_checkpoint,
    recorder,
    resumed_copy,
    tensors,
    train_all,
)

DISCRIMINATORS = ("discr", "discr_3d", "multiscale_discrs.0")


@pytest.mark.slow
def test_a_run_writes_all_its_files(tiny, with_pictures):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(tiny(steps=4, val_every=4, save_every=2, trackers=("tensorboard",)))
    assert {path.name for path in result.run.iterdir()} == {
        ".telecine-output",
        "checkpoints",
        "config.yaml",
        "environment.json",
        "health.jsonl",
        "metrics.jsonl",
        "report.html",
        "report_videos",
        "side_by_side.mp4",
        "summary.json",
        "tensorboard",
        "validation",
    }
    console = recorder()
    result.print_to(console)
    files = dict(line.rsplit(maxsplit=1) for line in console.export_text().splitlines()[-5:])
    assert list(files) == ["report", "side by side", "figures", "settings", "checkpoint"]
    assert all(Path(path).exists() for path in files.values())
    assert set(result.first) == set(result.last) == {"psnr", "ssim", "lpips_alex"}
    run = Run(result.run)
    assert [step for step, _ in run.checkpoints.all()] == [2, 4]
    suffixes = {path.suffix for path in (result.run / "checkpoints").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".yaml", ".safetensors"}, "nothing pickled"
    assert [record["step"] for record in run.history.validations()] == [0, 4]
    assert [step for step, _ in run.validation_folders()] == [0, 4]
    events = EventAccumulator(str(result.run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val/psnr")] == [0, 4]
    assert {image.encoded_image_string[:4] for image in events.Images("val/side_by_side")} == {
        b"GIF8"
    }
    summary = run.summary()
    assert (
        summary.clips_per_update,
        summary.validation.num_clips,
        summary.validation.num_frames,
    ) == (2, 1, 5)
    assert 0 < summary.num_trained == summary.num_parameters
    last = next(record for record in reversed(run.history.read()) if "train/lr" in record)
    assert last["step"] == 4
    assert {"train/total_loss", "train/adaptive_weight", "train/logits_real", "train/lr"} <= set(
        last
    )
    assert isinstance(CausalVAE.from_pretrained(find_checkpoint(result.run) / "ema"), CausalVAE)


@pytest.fixture(scope="module")
def folder_of_module(tmp_path_factory):
    return tmp_path_factory.mktemp("with_every_term")


@pytest.fixture
def with_every_term(tiny, everything, folder_of_module):
    """Return the settings of a finished run with every term, one for all tests; each record is a mean of 3 updates."""
    settings = {"steps": 3, "log_every": 3, "save_every": 2, "batch_size": 1, **everything}
    config = tiny(output_dir=str(folder_of_module / "run"), **settings)
    if not Path(config.output_dir).exists():
        train(config)
    return config


@pytest.mark.slow
def test_with_every_term_a_resumed_run_equals_the_whole_one_bit_for_bit(with_every_term, tmp_path):
    assert (
        assert_equal_runs(with_every_term, resumed_copy(with_every_term, tmp_path / "resumed"))
        > 300
    )
    kept = tensors(last_checkpoint(with_every_term))["objective.safetensors"]
    assert kept["logvar"] != 0, "it was trained"
    assert kept["lecam.discr_3d.real.num_values"] == 3
    assert not any(name.startswith("perceptual") for name in kept), "frozen networks are not saved"


@pytest.mark.slow
def test_every_term_is_recorded(with_every_term):
    (means,) = (
        record
        for record in Run(with_every_term.output_dir).history.read()
        if "train/total_loss" in record
    )
    lines = (
        "total_loss recon_loss mse perceptual_loss gram_loss wavelet_loss temporal_loss nll_loss logvar kl_loss",
        "aux_losses gen_loss feature_matching_loss adaptive_weight",
        "total_disc_loss discr_loss grad_penalty_loss lecam_loss",
        "perceptual_weight gram_loss_weight temporal_loss_weight adversarial_loss_weight",
        "grad_penalty_loss_weight lecam_loss_weight quantizer_aux_loss_weight",
        "grad_norm disc_grad_norm grad_clipped disc_grad_clipped update_ratio disc_update_ratio lr clips_per_second",
        "adversarial_gradient_share frame_gradient_000 frame_gradient_001 frame_gradient_002 frame_gradient_003",
        "frame_gradient_004",
    )
    statistics = [
        "logits_real",
        "logits_fake",
        "logits_real_std",
        "logits_fake_std",
        "accuracy_real",
        "accuracy_fake",
    ]
    expected = {*" ".join(lines).split(), *statistics}
    for name in ("gen_loss", "adaptive_weight", "discr_loss", *statistics):
        expected |= {f"{name}_{discriminator}" for discriminator in DISCRIMINATORS}
    assert set(means) == {"step"} | {f"train/{name}" for name in expected}
    assert means["train/perceptual_weight"] == pytest.approx((0.5 + 2 / 3 + 5 / 6) / 3)
    assert 0 < means["train/mse"] < means["train/recon_loss"], (
        "absolute errors below 1 are larger than squared ones"
    )


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_but_can_be_extended(tiny):
    first = train(tiny(steps=2, **LIGHT))
    before = tensors(first.checkpoint)
    assert train(tiny(steps=2, **LIGHT)) == first
    assert_equal_tensors(before, tensors(first.checkpoint))
    longer = train(tiny(steps=3, **LIGHT))
    assert longer.checkpoint.name == "step-00000003"
    train(tiny(steps=1, **LIGHT))
    assert "steps: 3\n" in (longer.run / "config.yaml").read_text(), (
        "the settings that it was trained with"
    )


@pytest.mark.slow
def test_damaged_files_do_not_end_a_finished_run(tiny, monkeypatch):
    config = tiny(steps=1, **LIGHT)
    first = train(config)
    monkeypatch.setattr("telecine.training.run.write_report", write_report)
    folder = first.run / "validation" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "clips.json").write_bytes(bytes(99))
    assert train(config) == first
    assert "clips.json` must be JSON" in (first.run / "report.html").read_text()
    (first.run / "config.yaml").write_bytes(bytes(99))
    console = recorder()
    assert train(config, console=console) == first
    assert "warning: no report: `" in console.export_text(clear=False)
    size = Run(first.run).summary().num_parameters
    path = first.run / "summary.json"
    path.write_text("{")
    train(replace(config, steps=2), console=console)
    assert re.search(
        rf"warning: `{path}` must be .* The time before is not counted\.\n", console.export_text()
    )
    assert Run(first.run).summary().num_parameters == size


@pytest.mark.slow
def test_figures_of_other_held_out_clips_are_not_compared(tiny):
    config = tiny(steps=1, val_every=1, save_every=1, best_metric="psnr", **LIGHT)
    train(config)
    history = Run(config.output_dir).history
    first, *_, last = history.read()
    history.write([first | {"linear/psnr": 50.0}, last | {"val/psnr": 99.0, "linear/psnr": 50.0}])
    config = replace(config, steps=2, clips=replace(config.clips, val_fraction=0.3))
    console = recorder()
    result = train(config, console=console)
    assert "warning: other held-out clips: earlier validations" in console.export_text()
    assert result.first == result.last
    assert (result.run / "best").resolve() == result.checkpoint.resolve()
    result = train(replace(config, steps=3))
    records = Run(config.output_dir).history.validations()
    assert [result.first["psnr"], result.last["psnr"]] == [
        record["val/psnr"] for record in records[2:]
    ]
    assert ["linear/psnr" in record for record in records] == [True, True, False, False]


@pytest.fixture
def another_precision():
    """Reset the precision, which Accelerate keeps for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_training_computes_in_bfloat16_and_validation_does_not(tiny, another_precision):
    config = tiny(mixed_precision="bf16", steps=3)
    model = CausalVAE(config.causal_vae)
    types = set()
    model.decoder.register_forward_hook(
        lambda module, _, out: types.add((module.training, out.dtype))
    )
    train_all(config, autoencoder=model)
    assert types == {(True, torch.bfloat16), (False, torch.float32)}
    saved = tensors(last_checkpoint(config))
    for name in ("ema", "model"):
        assert {tensor.dtype for tensor in saved[f"{name}/model.safetensors"].values()} == {
            torch.float32
        }


@pytest.mark.slow
def test_a_compiled_run_resumes_an_eager_one_and_equals_it(tiny, tmp_path, another_precision):
    """LPIPS and the autoencoder, in bfloat16 in updates and in float32 in validations.

    It writes what an eager run would, so that both can go on.
    """
    torch._dynamo.reset()
    counters.clear()
    objective = ObjectiveConfig(perceptual=PerceptualConfig(net="alex"))
    steps = {"steps": 2, "val_every": 2, "save_every": 1, "log_every": 1}
    eager = tiny(**{**LIGHT, **steps, "objective": objective, "mixed_precision": "bf16"})
    train(eager)
    assert not counters["stats"]
    compiled = resumed_copy(replace(eager, dynamo_backend="aot_eager"), tmp_path / "compiled")
    assert counters["stats"]["unique_graphs"] >= 5, "encoder and decoder twice each, and LPIPS"
    assert not graph_breaks()
    ours = last_values(compiled)
    theirs = last_values(eager)
    assert ours.keys() == theirs.keys()
    assert {
        "train/recon_loss",
        "train/perceptual_loss",
        "train/grad_norm",
        "val/psnr",
    } <= ours.keys()
    assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-4)
    assert ours["val/psnr"] == pytest.approx(theirs["val/psnr"], rel=1e-4)
    saved = tensors(last_checkpoint(compiled))
    for name, group in tensors(last_checkpoint(eager)).items():
        assert group.keys() == saved[name].keys()


def last_values(config):
    """Return what a run has logged of its last update and its last validation."""
    values = {}
    for record in Run(config.output_dir).history:
        if record["step"] == config.steps:
            values |= record
    del values["train/clips_per_second"]
    return values


@pytest.mark.parametrize("is_allowed", [None, False, True])
def test_updates_may_use_tf32_and_validations_may_not(tiny, is_allowed):
    config = tiny(steps=1, allow_tf32=is_allowed, **LIGHT)
    model = build_autoencoder(config)
    allowed = {True: set(), False: set()}

    def observe(module, *_):
        flags = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        allowed[module.training].add(flags)

    model.register_forward_hook(observe)
    train(config, autoencoder=model)
    assert allowed[False] == {(False, False)}
    of_pytorch = (False, True)
    assert allowed[True] == {of_pytorch if is_allowed is None else (is_allowed, is_allowed)}
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == of_pytorch


def test_bright_clips_of_files_are_no_warning(tiny, tmp_path):
    """The range of what telecine has decoded is known."""
    frames = torch.randint(180, 256, (26, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "bright.mp4", frames.to(torch.uint8), fps=25)
    config = tiny(data=str(tmp_path / "bright.mp4"), steps=1, val_every=1, **LIGHT)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no value below 0")
        result = train(config)
    assert result.checkpoint.is_dir()
