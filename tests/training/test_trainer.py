"""Whole runs with a tiny model on a real clip."""

import io
import json
import multiprocessing
import re
import shutil
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from rich.console import Console
from safetensors.torch import load_file

from telecine import Ramp
from telecine.data import DataError, index_video, read_clip
from telecine.data.dataset import ClipDataset
from telecine.models import CausalVAE
from telecine.report.page import write_report
from telecine.report.run import read_run
from telecine.report.video import write_video
from telecine.runs import Run, find_checkpoint
from telecine.runs.checkpoints import Checkpoints
from telecine.runs.history import History, validations
from telecine.runs.manifest import write_manifest
from telecine.runs.settings import write_settings
from telecine.settings import (
    ClipConfig,
    DiscriminatorConfig,
    GANConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PenaltyConfig,
    PerceptualConfig,
    ReconstructionConfig,
    Term,
    TrainConfig,
)
from telecine.training import Interrupted, TrainingError, loop, train
from telecine.training.build import build_accelerator
from telecine.training.checkpoint import Checkpointer
from telecine.training.clips import read_batches
from telecine.training.interrupt import StopRequest
from telecine.training.loop import train_to_the_end, validate
from telecine.training.prepare import prepare
from telecine.training.run import dry_run
from telecine.training.step import DivergenceError, divergence_error, train_step

# A reconstruction loss alone, for tests of what a run reads, saves and prints.
LIGHT = {
    "objective": ObjectiveConfig(perceptual_weight=0.0),
    "discriminator": DiscriminatorConfig("none"),
    "batch_size": 1,
    "val_clips": 1,
    "latent_clips": 0,
    "trackers": (),
}


class StopAfter:
    """Stops a trainer once it has done a number of updates."""

    def __init__(self, trainer, num_steps):
        self.trainer, self.num_steps = trainer, num_steps

    @property
    def is_set(self):
        return self.trainer.state.step >= self.num_steps


def quiet():
    return Console(quiet=True)


def run_to(config, num_steps, console=None):
    trainer = prepare(config, console or quiet())
    with pytest.raises(Interrupted):
        train_to_the_end(trainer, StopAfter(trainer, num_steps))


def resumed_copy(config, folder):
    """Train on in a copy of a finished run without its last checkpoint, as after a crash, and return its settings."""
    shutil.copytree(config.output_dir, folder, symlinks=True)
    shutil.rmtree(Run(folder).checkpoints.all()[-1][1])
    resumed = replace(config, output_dir=str(folder))
    train(resumed, console=quiet())
    return resumed


def tensors(folder):
    return {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.slow
def test_a_run_writes_all_its_files(tiny, with_pictures, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def append(history, value):
        folders = dict(Run(history.path.parent).validation_folders())
        assert "val/psnr" not in value or value["step"] in folders, "the clips are there when a validation is recorded"
        append_before(history, value)

    append_before = History.append
    monkeypatch.setattr(History, "append", append)
    result = train(tiny(steps=4, val_every=4, save_every=2, trackers=("tensorboard",)), console=quiet())
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
    result.print_to(console := Console(record=True, width=1000, file=io.StringIO()))
    files = dict(line.rsplit(maxsplit=1) for line in console.export_text().splitlines()[-5:])
    assert list(files) == ["report", "side by side", "figures", "settings", "checkpoint"]
    assert all(Path(path).exists() for path in files.values())
    assert set(result.first) == set(result.last) == {"psnr", "ssim", "lpips_alex"}
    assert [step for step, _ in Run(result.run).checkpoints.all()] == [2, 4]
    suffixes = {path.suffix for path in (result.run / "checkpoints").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".yaml", ".safetensors"}, "nothing pickled"
    records = Run(result.run).history.read()
    assert [record["step"] for record in validations(records)] == [0, 4]
    assert [step for step, _ in Run(result.run).validation_folders()] == [0, 4]
    events = EventAccumulator(str(result.run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val/psnr")] == [0, 4]
    assert {image.encoded_image_string[:4] for image in events.Images("val/side_by_side")} == {b"GIF8"}
    summary = Run(result.run).summary()
    assert (summary.clips_per_update, summary.validation.num_clips, summary.validation.num_frames) == (2, 1, 5)
    assert 0 < summary.num_trained == summary.num_parameters
    last = next(record for record in reversed(records) if "train/lr" in record)
    assert last["step"] == 4
    assert {"train/total_loss", "train/adaptive_weight", "train/logits_real", "train/lr"} <= set(last)
    model = CausalVAE.from_pretrained(find_checkpoint(result.run) / "ema")
    assert isinstance(model, CausalVAE)


def statistics_in(folder):
    """Return the statistics of the latent that a checkpoint and the models in it have."""
    configs = [json.loads((folder / kind / "config.json").read_text()) for kind in ("model", "ema")]
    return json.loads((folder / "state.json").read_text())["latents"], configs


def assert_equal_runs(straight, resumed, num_files=6):
    """Compare all tensors of the last checkpoints, their statistics of the latent, and all records, bit for bit.

    Return the number of tensors.
    """
    folders = [Run(Path(config.output_dir)).checkpoints.all()[-1][1] for config in (straight, resumed)]
    assert statistics_in(folders[0]) == statistics_in(folders[1])
    ours, theirs = map(tensors, folders)
    assert len(ours) == num_files
    assert ours.keys() == theirs.keys()
    compared = 0
    for name, group in ours.items():
        assert group.keys() == theirs[name].keys()
        for key, tensor in group.items():
            assert torch.equal(tensor, theirs[name][key]), f"{name}: {key}"
            compared += 1
    records = [Run(Path(config.output_dir)).history.read() for config in (straight, resumed)]
    for record in (*records[0], *records[1]):
        record.pop("train/clips_per_second", None)  # differs between machines
    assert records[0] == records[1]
    return compared


@pytest.mark.parametrize("config", ["demo", {"steps": 1}])
@pytest.mark.parametrize("function", [train, dry_run])
def test_a_name_and_a_dict_are_no_configuration(config, function):
    with pytest.raises(ValueError, match=r"`config` must be of the class `TrainConfig`, but got .*`read_config"):
        function(config)


@pytest.mark.slow
def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(tiny, tmp_path):
    steps = {"steps": 4, "val_every": 2, "save_every": 2}
    straight, resumed = (tiny(output_dir=str(tmp_path / name), **steps) for name in ("straight", "resumed"))
    train(straight, console=quiet())
    run_to(resumed, 1)  # between two records, each a mean over two updates
    run_to(resumed, 2)
    train(resumed, console=quiet())
    assert assert_equal_runs(straight, resumed) > 200


@pytest.mark.slow
def test_a_compiled_run_resumes_an_eager_one_and_equals_it(tiny, tmp_path):
    """Discriminator, penalty, LPIPS and the autoencoder. It writes what an eager run would, so that both can go on."""
    torch._dynamo.reset()
    eager = tiny(
        steps=2,
        val_every=2,
        save_every=1,
        log_every=1,
        objective=replace(tiny().objective, disc_start=0, gan=GANConfig(), penalty=PenaltyConfig()),
        discriminator=replace(tiny().discriminator, num_layers=1),
    )
    train(eager, console=quiet())
    compiled = resumed_copy(replace(eager, dynamo_backend="aot_eager"), tmp_path / "compiled")
    folders = [Run(Path(config.output_dir)) for config in (eager, compiled)]
    ours, theirs = ([record for record in run.history.read() if record["step"] == 2] for run in folders)
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]
    (values,), (others,) = ([r for r in records if "train/total_loss" in r] for records in (ours, theirs))
    names = [name for name in values if name.startswith("train/") and name != "train/clips_per_second"]
    assert len(names) > 20
    assert [others[name] for name in names] == pytest.approx([values[name] for name in names], rel=1e-2, abs=1e-4)
    ours, theirs = (tensors(run.checkpoints.all()[-1][1]) for run in folders)
    assert {name: group.keys() for name, group in ours.items()} == {
        name: group.keys() for name, group in theirs.items()
    }


@pytest.fixture(scope="module")
def folder_of_module(tmp_path_factory):
    return tmp_path_factory.mktemp("with_every_term")


@pytest.fixture
def with_every_term(tiny, everything, folder_of_module):
    """Return the settings of a finished run with every term, one for all tests; each record is a mean of 3 updates."""
    settings = {"steps": 3, "log_every": 3, "save_every": 2, "batch_size": 1, **everything}
    config = tiny(output_dir=str(folder_of_module / "run"), **settings)
    if not Path(config.output_dir).exists():
        train(config, console=quiet())
    return config


@pytest.mark.slow
def test_with_every_term_a_resumed_run_equals_the_whole_one_bit_for_bit(with_every_term, tmp_path):
    resumed = resumed_copy(with_every_term, tmp_path / "resumed")
    assert assert_equal_runs(with_every_term, resumed) > 300
    kept = tensors(find_checkpoint(Path(with_every_term.output_dir)))["objective.safetensors"]
    assert kept["logvar"] != 0, "it was trained"
    assert kept["lecam.discr_3d.real.num_values"] == 3
    assert not [name for name in kept if name.startswith("perceptual")], "frozen networks are not saved"


@pytest.mark.slow
def test_a_resumed_run_restores_its_loss_scale(tiny, tmp_path, monkeypatch):
    """As in float16 on a GPU: the scale grows after a number of updates in a row, interrupted or not."""

    def with_scaler(config):
        accelerator = build_accelerator(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
        return accelerator

    monkeypatch.setattr("telecine.training.prepare.build_accelerator", with_scaler)
    straight = tiny(steps=3, save_every=2)
    train(straight, console=quiet())
    resumed = resumed_copy(straight, tmp_path / "resumed")
    assert_equal_runs(straight, resumed)
    ours, theirs = (
        json.loads((find_checkpoint(Path(config.output_dir)) / "state.json").read_text())["scaler"]
        for config in (straight, resumed)
    )
    assert (ours["scale"], ours["_growth_tracker"]) == (2.0**9, 1)
    assert theirs == ours


@pytest.mark.slow
def test_every_term_is_recorded_and_can_be_drawn(with_every_term):
    records = Run(Path(with_every_term.output_dir)).history.read()
    (means,) = (record for record in records if "train/total_loss" in record)
    discriminators = ("discr", "discr_3d", "multiscale_discrs.0")
    terms = (
        "total_loss recon_loss mse perceptual_loss gram_loss wavelet_loss temporal_loss nll_loss logvar kl_loss",
        "aux_losses gen_loss feature_matching_loss adaptive_weight",
        "total_disc_loss discr_loss grad_penalty_loss lecam_loss logits_real logits_fake",
        "perceptual_weight gram_loss_weight temporal_loss_weight adversarial_loss_weight",
        "grad_penalty_loss_weight lecam_loss_weight quantizer_aux_loss_weight",
        "grad_norm disc_grad_norm grad_clipped disc_grad_clipped update_ratio disc_update_ratio lr clips_per_second",
        "adversarial_gradient_share",
        *(f"frame_gradient_{frame:03d}" for frame in range(5)),
    )
    statistics = ("logits_real", "logits_fake", "logits_real_std", "logits_fake_std", "accuracy_real", "accuracy_fake")
    of_each = ("gen_loss", "adaptive_weight", "discr_loss", *statistics)
    terms += statistics
    expected = {name for line in terms for name in line.split()} | {
        f"{name}_{d}" for name in of_each for d in discriminators
    }
    assert set(means) == {"step"} | {f"train/{name}" for name in expected}
    assert means["train/perceptual_weight"] == pytest.approx((0.5 + 2 / 3 + 5 / 6) / 3)
    assert 0 < means["train/mse"] < means["train/recon_loss"], "absolute errors below 1 are larger than squared ones"


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_but_can_be_extended(tiny, monkeypatch):
    first = train(tiny(steps=2, **LIGHT), console=quiet())
    before = tensors(first.checkpoint)
    again = train(tiny(steps=2, **LIGHT), console=quiet())
    assert again == first
    after = tensors(again.checkpoint)
    assert all(torch.equal(before[file][key], after[file][key]) for file in before for key in before[file])
    longer = train(tiny(steps=3, **LIGHT), console=quiet())
    assert longer.checkpoint.name == "step-00000003"
    train(tiny(steps=1, **LIGHT), console=quiet())
    assert "steps: 3\n" in (longer.run / "config.yaml").read_text(), "the settings that it was trained with"


@pytest.mark.slow
def test_damaged_clips_do_not_end_a_finished_run(tiny, monkeypatch):
    first = train(tiny(steps=1, **LIGHT), console=quiet())
    monkeypatch.setattr("telecine.training.run.write_report", write_report)
    folder = first.run / "validation" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "clips.json").write_bytes(bytes(99))
    assert train(tiny(steps=1, **LIGHT), console=quiet()) == first
    assert "clips.json` must be JSON" in (first.run / "report.html").read_text()
    (first.run / "config.yaml").write_bytes(bytes(99))
    console = Console(record=True, width=1000, file=io.StringIO())
    assert train(tiny(steps=1, **LIGHT), console=console) == first
    assert "warning: no report: `" in console.export_text()


@pytest.mark.parametrize("name", ["validation", ".telecine-output", "metrics.jsonl", "checkpoints", ".lock"])
def test_training_follows_no_link_out_of_its_folder(tiny, tmp_path, name):
    config = tiny()
    (tmp_path / "private").touch()
    Path(config.output_dir).mkdir()
    (Path(config.output_dir) / name).symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match=f"{name}` must be in the run's folder itself, but got a symbolic link"):
        train(config, console=quiet())
    assert (tmp_path / "private").read_bytes() == b""
    assert len([*Path(config.output_dir).iterdir()]) == 1


@pytest.mark.slow
def test_with_a_later_best_metric_only_existing_checkpoints_count(tiny):
    """The checkpoint of the best validation is gone: `best_metric` was not set then."""
    config = tiny(steps=2, val_every=1, save_every=2, keep=1, **LIGHT)
    train(config, console=quiet())
    best = {"step": 1, "val/psnr": 99.0, "val/ssim": 0.1, "val/lpips_alex": 0.1}
    path = Path(config.output_dir) / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in [*History(path).read()[:1], best]))
    result = train(replace(config, steps=3, best_metric="psnr"), console=quiet())
    assert (result.run / "best").resolve() == result.checkpoint.resolve()
    assert find_checkpoint(result.run / "best") is not None


@pytest.mark.slow
def test_figures_of_other_held_out_clips_are_not_compared(tiny):
    config = tiny(steps=1, val_every=1, save_every=1, best_metric="psnr", **LIGHT)
    train(config, console=quiet())
    first, last = (Run(config.output_dir).history.read()[index] for index in (0, -1))
    last |= {"val/psnr": 99.0, "linear/psnr": 50.0}
    Run(config.output_dir).history.write([first | {"linear/psnr": 50.0}, last])
    clips = replace(config.clips, val_fraction=0.3)
    config, console = replace(config, steps=2, clips=clips), Console(record=True, width=1000, file=io.StringIO())
    result = train(config, console=console)
    assert "warning: other held-out clips: earlier validations" in console.export_text()
    assert result.first == result.last
    assert (result.run / "best").resolve() == result.checkpoint.resolve()
    result = train(replace(config, steps=3), console=quiet())
    records = Run(config.output_dir).history.validations()
    assert [result.first["psnr"], result.last["psnr"]] == [record["val/psnr"] for record in records[2:]]
    assert ["linear/psnr" in record for record in records] == [True, True, False, False]


@pytest.mark.slow
def test_terms_without_saved_tensors_may_be_switched_on_and_off(tiny):
    run_to(tiny(), 2)
    objective = replace(
        tiny().objective,
        reconstruction=ReconstructionConfig(loss="charbonnier"),
        perceptual=PerceptualConfig(net="vgg"),
        gan=GANConfig(loss="vanilla", feature_matching_loss_weight=1.0),
        terms={"gram": Ramp(1.0, start=2)},
        adversarial_loss_weight=Ramp(0.5, steps=9),
    )
    trainer = prepare(tiny(objective=objective, steps=3), quiet())
    train_to_the_end(trainer, StopRequest())
    assert trainer.state.step == 3
    assert "train/gram_loss" in trainer.files.history.path.read_text()


@pytest.mark.slow
def test_settings_that_do_not_change_the_networks_may_change(tiny):
    run_to(tiny(steps=3), 2)
    settings = OptimizerConfig(lr=1e-4, betas=(0.1, 0.2), disc_betas=(0.3, 0.4), weight_decay=0.5, warmup_steps=0)
    config = tiny(optimizer=settings, steps=3)
    trainer = prepare(config, quiet())
    train_to_the_end(trainer, StopRequest())
    assert "lr: 0.0001" in (trainer.files.folder / "config.yaml").read_text()
    (ours,), (theirs,) = trainer.state.optimizer.param_groups, trainer.state.disc_optimizer.param_groups
    assert (ours["betas"], ours["weight_decay"], ours["lr"]) == ((0.1, 0.2), 0.5, 1e-4)
    assert theirs["betas"] == (0.3, 0.4)


@pytest.mark.slow
def test_a_resumed_run_prints_what_changed_and_refuses_what_does_not_fit(tiny, monkeypatch):
    console = Console(record=True, width=40, file=io.StringIO())  # long lines are not wrapped
    run_to(tiny(trackers=("tensorboard",)), 1, console)
    assert re.search(r"\nstep 0: held-out psnr [\d.]+  ssim [\d.]+  lpips_alex [\d.]+\n", console.export_text())
    folder = Run(Path(tiny().output_dir)).checkpoints.all()[-1][1]
    records = Path(tiny().output_dir) / "metrics.jsonl"
    records.write_bytes(b"\0" * len(records.read_bytes()[:-1]) + b"\n")  # as after a power failure
    console = Console(record=True, width=40, file=io.StringIO())  # long lines are not wrapped
    (tracker,) = prepare(tiny(seed=7, trackers=("tensorboard",)), console).accelerator.trackers
    folder_of_events = str(Path(tiny().output_dir) / "tensorboard")
    assert (tracker.init_kwargs, tracker.logging_dir) == ({"purge_step": 2}, folder_of_events), "it drops later records"
    assert f"resuming from {folder}\nsettings changed since the checkpoint: seed 0 -> 7\n" in (
        text := console.export_text()
    )
    assert f"warning: {records}: 1 lines could not be read and are dropped\n" in text
    assert f"warning: {records}: 0 records up to the checkpoint instead of 1; the curves have a gap\n" in text
    before = tensors(folder)
    with pytest.raises(ValueError, match=r"`discriminator\.dim` must be 2 as in"):
        train(tiny(discriminator=replace(tiny().discriminator, dim=4)), console=quiet())
    after = tensors(folder)
    assert all(torch.equal(before[file][key], after[file][key]) for file in before for key in before[file])
    (folder / "state.json").write_text('{"step": 1}')
    (folder / "manifest.json").unlink()
    write_manifest(folder, step=1)
    with pytest.raises(ValueError, match=r"state.json` must be that of a checkpoint of this version.*clips_per_step"):
        train(tiny(), console=quiet())
    (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"No checkpoint .* is intact.*state.json` must be a file of \d+ bytes"):
        train(tiny(), console=quiet())


def long_name(config, step):
    return Path(config.output_dir) / "checkpoints" / f"step-{step:08d}"


@pytest.mark.slow
def test_a_run_goes_back_to_the_newest_checkpoint_that_is_not_damaged(tiny, tmp_path):
    steps = {**LIGHT, "steps": 3, "val_every": 3, "save_every": 1, "keep": 3}
    straight, damaged = (tiny(output_dir=str(tmp_path / name), **steps) for name in ("straight", "damaged"))
    train(straight, console=quiet())
    run_to(damaged, 2)
    path = long_name(damaged, 2) / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 64
    path.write_bytes(content)
    console = Console(record=True, width=1000, file=io.StringIO())
    train(damaged, console=console)
    text = console.export_text()
    assert f"warning: `{path}` must be as it was written, but got other bytes" in text
    assert f"resuming from {long_name(damaged, 1)}\n" in text
    assert_equal_runs(straight, damaged, num_files=5)
    assert (long_name(damaged, 2).with_name("damaged-step-00000002") / "optimizer.safetensors").is_file()


@pytest.mark.slow
def test_a_run_says_at_its_start_that_it_ends_within_its_warmup(tiny):
    console = Console(record=True, width=40, file=io.StringIO())
    run = prepare(tiny(steps=4, optimizer=OptimizerConfig(warmup_steps=500), **LIGHT), console)
    run.close()
    assert "after 4 of 500 steps, 0.008 of `optimizer.lr` is reached" in console.export_text()


@pytest.mark.slow
def test_the_videos_of_a_run_inside_its_data_are_no_data(tiny, tmp_path, small_video):
    validation = tmp_path / "data" / "run" / "validation" / "step-00000000"
    validation.mkdir(parents=True)
    for folder in (tmp_path / "data", tmp_path / "data" / "run", validation):
        shutil.copy(small_video, folder / "video.mp4")
    trainer = prepare(tiny(data=str(tmp_path / "data"), output_dir=str(tmp_path / "data" / "run"), **LIGHT), quiet())
    assert [span.info.path for span in trainer.clips.train.spans] == [tmp_path / "data" / "video.mp4"]
    trainer.close()


def test_a_validation_that_is_interrupted_is_made_when_the_run_resumes(tiny, tmp_path):
    settings = {**LIGHT, "steps": 3, "val_every": 2, "save_every": 3, "log_every": 1, "latent_clips": 1}
    straight = tiny(output_dir=str(tmp_path / "straight"), **settings)
    train(straight, console=quiet())
    config = tiny(**settings)
    trainer = prepare(config, quiet())
    with pytest.raises(Interrupted, match="stopped before the first update"):
        train_to_the_end(trainer, StopAfter(trainer, 0))
    trainer.close()
    assert not Run(trainer.files.folder).checkpoints.all()
    run_to(config, 2)
    steps = [record["step"] for record in validations(Run(trainer.files.folder).history.read())]
    assert (steps, [step for step, _ in Run(trainer.files.folder).checkpoints.all()]) == ([0], [2])
    run_to(config, 3)  # in the last validation
    train(config, console=quiet())
    assert statistics_in(long_name(config, 3))[0]["step"] == 3
    assert_equal_runs(straight, config, num_files=5)
    console = Console(record=True, width=1000, file=io.StringIO())
    train(config, console=console)
    assert "the curves have a gap" not in console.export_text()


def test_a_stop_between_the_first_validation_and_the_first_update_saves_nothing(tiny, monkeypatch):
    monkeypatch.setattr(loop, "_is_validated", lambda _: True)
    trainer, stop = prepare(tiny(**LIGHT), quiet()), StopRequest()
    stop.is_set = True
    with pytest.raises(Interrupted, match="stopped before the first update"):
        train_to_the_end(trainer, stop)
    assert Run(trainer.files.folder).checkpoints.all() == []
    trainer.close()


@pytest.mark.slow
def test_a_state_that_is_not_finite_is_never_saved(tiny):
    trainer = prepare(tiny(steps=4, save_every=1), quiet())
    with pytest.raises(Interrupted):
        train_to_the_end(trainer, StopAfter(trainer, 2))
    trainer.state.step += 1
    state = trainer.state
    weight = next(iter(state.autoencoder.parameters()))
    discriminator = state.objective.get_trainable_parameters()[0]
    moment = state.disc_optimizer.state[discriminator]["exp_avg_sq"]
    for tensor in (weight.data, next(iter(state.ema.averages.values())), discriminator.data, moment):
        value = tensor.view(-1)[0].item()
        tensor.view(-1)[0] = float("nan")
        trainer.checkpointer.save(state)
        tensor.view(-1)[0] = value  # what is saved is what counts, not what has become of it
        with pytest.raises(DivergenceError, match=r"` is not finite after step 3. No checkpoint was written."):
            trainer.checkpointer.wait()
    assert [step for step, _ in Run(trainer.files.folder).checkpoints.all()] == [1, 2]
    assert trainer.checkpointer.save(state).name == "step-00000003"
    trainer.checkpointer.wait()
    assert [step for step, _ in Run(trainer.files.folder).checkpoints.all()] == [2, 3]


class Gate:
    """Holds the thread that writes checkpoints, before the manifest, until it is opened."""

    def __init__(self, monkeypatch):
        self.opened, self.reached = threading.Event(), threading.Event()
        monkeypatch.setattr("telecine.runs.checkpoints.write_manifest", self._wait)

    def _wait(self, folder, step, known):
        self.reached.set()
        assert self.opened.wait(60), "training waited for the checkpoint"
        write_manifest(folder, step, known)


@pytest.mark.slow
def test_training_continues_while_a_checkpoint_is_written(tiny, tmp_path, monkeypatch):
    trainer = prepare(tiny(steps=4, save_every=1), quiet())
    with pytest.raises(Interrupted):
        train_to_the_end(trainer, StopAfter(trainer, 2))
    state, checkpointer = trainer.state, trainer.checkpointer
    gate = Gate(monkeypatch)
    state.step = 3
    expected = {name: weight.clone() for name, weight in state.autoencoder.state_dict().items()}
    moments = [values["exp_avg"].clone() for values in state.disc_optimizer.state.values()]
    checkpointer.save(state)
    assert gate.reached.wait(60)
    # Training continues meanwhile. If the machine crashed, the checkpoint before would be used.
    for tensor in (*state.autoencoder.parameters(), *state.ema.averages.values()):
        tensor.data.add_(1)
    for values in state.disc_optimizer.state.values():
        values["exp_avg"].add_(1)
    shutil.copytree(trainer.files.folder, tmp_path / "crashed")
    found, damaged = Run(tmp_path / "crashed").checkpoints.newest_intact()
    assert (found.name, damaged) == ("step-00000002", [])
    gate.opened.set()
    checkpointer.wait()
    saved = tensors(long_name(trainer.config, 3))
    assert all(torch.equal(saved["model/model.safetensors"][name], expected[name]) for name in expected)
    assert all(
        torch.equal(saved["disc_optimizer.safetensors"][f"{index}.exp_avg"], moment)
        for index, moment in enumerate(moments)
    )


@pytest.mark.slow
def test_one_checkpoint_is_written_at_a_time_and_its_error_ends_the_run(tiny, monkeypatch):
    """The disk is full while the checkpoint of step 2 is written. Every way out of the run waits for the thread."""
    steps, updates, save = [], [], Checkpointer.save

    def fail(folder, step, known):
        steps.append(step)
        raise OSError(f"no space for step {step}")

    def save_and_wait(checkpointer, state):
        save(checkpointer, state)
        while not checkpointer.has_failed:
            time.sleep(0.01)

    monkeypatch.setattr("telecine.runs.checkpoints.write_manifest", fail)
    monkeypatch.setattr(loop, "train_step", lambda state, *a, **b: updates.append(0) or train_step(state, *a, **b))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", save_and_wait)
        with pytest.raises(OSError, match="no space for step 2"):
            train(tiny(steps=5, save_every=2, val_every=5, **LIGHT), console=quiet())
    assert (steps, len(updates)) == ([2], 2), "no update after the failure"
    console = Console(record=True, width=1000, file=io.StringIO())
    run = prepare(tiny(), console)
    run.checkpointer.save(run.state)
    run.close()  # as after another error
    assert "warning: no space for step 0\n" in console.export_text()


@pytest.mark.slow
def test_an_error_of_writing_a_finished_run_again_ends_it(tiny, monkeypatch):
    """It is saved again with statistics of the latent."""
    config = tiny(steps=1, save_every=1, **LIGHT)
    train(config, console=quiet())

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(Checkpointer, "_fill", fail)
    with pytest.raises(OSError, match="no space"):
        train(replace(config, latent_clips=2), console=quiet())


def diverge(monkeypatch, has_diverged, name="train/grad_norm"):
    """Make an update fail after it has changed the state, if `has_diverged(state)`."""

    def step(state, *arguments, update=train_step, **options):
        values = update(state, *arguments, **options)
        if has_diverged(state):
            state.step -= 1
            raise divergence_error(name, float("nan"), state.step)
        return values

    monkeypatch.setattr(loop, "train_step", step)


@pytest.mark.slow
def test_after_a_divergence_the_run_goes_back_and_lowers_the_learning_rates(tiny, tmp_path, monkeypatch):
    diverge(monkeypatch, lambda state: state.step == 3 and not state.rollbacks)
    steps = {"steps": 4, "log_every": 1, "val_every": 4, "val_clips": 1, "save_every": 1, "keep": 4}
    settings = {"on_divergence": "rollback", **steps}
    straight, resumed = (tiny(output_dir=str(tmp_path / name), **settings) for name in ("straight", "resumed"))
    straight = replace(straight, clips=replace(straight.clips, num_workers=1))  # the workers of before are replaced
    console, dropped = Console(record=True, width=1000, file=io.StringIO()), []
    monkeypatch.setattr("telecine.training.records.drop_after", lambda step, trackers: dropped.append((step, trackers)))
    train(straight, console=console)
    assert dropped == [(2, [])]
    assert multiprocessing.active_children() == []
    text = "`train/grad_norm` was not finite after step 2; went back to step 2, learning rates times 0.5"
    assert f"warning: {text}\n" in console.export_text()
    rates = {r["step"]: r["train/lr"] for r in Run(tmp_path / "straight").history.read() if "train/lr" in r}
    assert rates == {1: 5e-4, 2: 1e-3, 3: 5e-4, 4: 5e-4}, "warm-up, then half"
    (warning,) = read_run(tmp_path / "straight", "straight").warnings
    assert (warning.step, warning.rule, warning.message) == (2, "rolled_back", text)
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(long_name(resumed, 4))
    train(resumed, console=quiet())
    assert_equal_runs(straight, resumed)
    assert (tmp_path / "resumed" / "health.jsonl").read_text() == (tmp_path / "straight" / "health.jsonl").read_text()


@pytest.mark.slow
def test_a_divergence_that_ends_the_run_says_how_to_resume(tiny, monkeypatch):
    run = prepare(tiny(save_every=1, **LIGHT), quiet())
    with pytest.raises(Interrupted):
        train_to_the_end(run, StopAfter(run, 1))
    diverge(monkeypatch, lambda state: True)
    helps = "off. Run the same command with --optimizer.lr 0.0005 --optimizer.disc_lr 5e-05: it resumes from step 1."
    with pytest.raises(TrainingError, match=rf"grad_norm.*at step 1\..*{re.escape(helps)}"):
        train_to_the_end(run, StopRequest())
    run.config = replace(run.config, on_divergence="rollback")
    with pytest.raises(TrainingError, match=r"off\. It went back 3 times already\. Run .*lr 6\.25e-05 .* step 1\."):
        train_to_the_end(run, StopRequest())
    run.state.rollbacks = []
    diverge(monkeypatch, lambda state: True, name="data")
    with pytest.raises(TrainingError, match=r"`data` must be finite.*Check the data"):
        train_to_the_end(run, StopRequest())
    assert run.state.rollbacks == []


@pytest.mark.slow
def test_no_worker_outlives_an_error_that_is_kept(tiny, monkeypatch):
    diverge(monkeypatch, lambda state: True)
    config = tiny(**LIGHT)
    with pytest.raises(TrainingError) as raised:
        train(replace(config, clips=replace(config.clips, num_workers=1)), console=quiet())
    assert raised.value.__traceback__ is not None
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_when_a_batch_cannot_be_read_what_is_trained_is_saved(tiny, monkeypatch):
    def read(dataset, item, decode=ClipDataset.__getitem__):
        if item[0] == 2:
            raise DataError("deleted") from OSError("the reason")
        return decode(dataset, item)

    config = tiny(steps=4, save_every=4, **LIGHT)
    console = Console(record=True, width=1000, file=io.StringIO())
    with monkeypatch.context() as patch:
        patch.setattr(ClipDataset, "__getitem__", read)
        with pytest.raises(DataError, match="deleted") as raised:
            train(config, console=console)
    assert isinstance(raised.value.__cause__, OSError)
    assert f"cannot read the clips of step 2; saved {long_name(config, 2)}" in console.export_text()
    assert [step for step, _ in Run(Path(config.output_dir)).checkpoints.all()] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("error", [DataError("deleted"), None])
def test_an_error_or_a_stop_while_the_latent_is_measured_loses_nothing(tiny, monkeypatch, error):
    def read(dataset, item, decode=ClipDataset.__getitem__):
        if isinstance(item, int):  # of the clips in order, which are measured
            stop.is_set = error is None
            if error is not None:
                raise error
        return decode(dataset, item)

    stop = StopRequest()
    trainer = prepare(tiny(steps=4, save_every=2, val_every=4, **LIGHT | {"latent_clips": 2}), quiet())
    monkeypatch.setattr(ClipDataset, "__getitem__", read)
    with pytest.raises(DataError if error else Interrupted, match="deleted" if error else "step-00000002"):
        train_to_the_end(trainer, stop)
    assert [step for step, _ in Run(trainer.files.folder).checkpoints.all()] == [2]
    trainer.close()


def test_a_checkpoint_that_a_process_does_not_see_is_refused(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(Checkpoints, "newest_intact", lambda _: (tmp_path / "elsewhere", []))
    with pytest.raises(ValueError, match=r"`output_dir` must be a folder that all processes see, but got .* or copy"):
        prepare(tiny(**LIGHT), quiet())


@pytest.mark.slow
def test_the_link_to_the_best_checkpoint_is_mended_at_the_start(tiny):
    config = tiny(steps=2, val_every=1, save_every=1, best_metric="psnr", keep=4, **LIGHT)
    result = train(config, console=quiet())
    best = (result.run / "best").resolve()
    other = next(folder for _, folder in Run(result.run).checkpoints.all() if folder.resolve() != best)
    (result.run / "best").unlink()
    (result.run / "best").symlink_to(other.relative_to(result.run))
    (result.run / "checkpoints" / ".step-00000009.partial").mkdir()
    train(config, console=quiet())
    assert (result.run / "best").resolve() == best
    assert not list((result.run / "checkpoints").glob(".*"))


class CalledError(Exception):
    """Carries the arguments of a call."""


def test_each_process_trains_on_its_part_of_the_clips(tiny, monkeypatch):
    def fail(_, sampler, **options):
        raise CalledError(sampler)

    run = prepare(tiny(), quiet())
    run.state.accelerator = SimpleNamespace(process_index=1, num_processes=3, device=torch.device("cpu"))
    monkeypatch.setattr("telecine.training.clips.ClipLoader", fail)
    with pytest.raises(CalledError) as error:
        next(read_batches(run.config, run.state, run.clips.train, None, should_stop=lambda: False))
    assert (error.value.args[0].rank, error.value.args[0].num_ranks) == (1, 3)


@pytest.mark.slow
def test_a_run_that_ended_before_its_first_checkpoint_starts_again(tiny):
    validate(prepare(tiny(**LIGHT), quiet()), StopRequest())
    train(tiny(steps=1, **LIGHT), console=quiet())
    records = validations(Run(Path(tiny().output_dir)).history.read())
    assert [record["step"] for record in records] == [0, 1]


def test_a_tracker_that_is_not_installed_is_named(tiny):
    if find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    with pytest.raises(ValueError, match=r"`trackers` must be installed, but got \['wandb'\]"):
        train(tiny(trackers=("wandb",)), console=quiet())


def test_clips_that_do_not_fit_the_model_are_refused_before_anything_is_written(tiny):
    config = tiny(clips=ClipConfig(num_frames=6, height=32, width=32, num_workers=0))
    with pytest.raises(ValueError, match=r"must be 4k\+1 .*, but got 6\. Use 5"):
        train(config, console=quiet())
    assert not Path(config.output_dir).exists()


def test_a_missing_folder_is_named_before_anything_is_written(tiny, tmp_path):
    config = tiny(data=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="nothing, which does not exist"):
        train(config, console=quiet())
    assert not Path(config.output_dir).exists()


@pytest.fixture
def another_precision():
    """Reset the precision, which Accelerate keeps for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_training_computes_in_bfloat16_and_validation_does_not(tiny, another_precision):
    trainer = prepare(tiny(mixed_precision="bf16", steps=3), quiet())
    types = set()
    trainer.state.autoencoder.decoder.register_forward_hook(
        lambda module, _, out: types.add((module.training, out.dtype))
    )
    train_to_the_end(trainer, StopRequest())
    assert types == {(True, torch.bfloat16), (False, torch.float32)}
    saved = tensors(Run(trainer.files.folder).checkpoints.all()[-1][1])
    assert {tensor.dtype for name in ("ema", "model") for tensor in saved[f"{name}/model.safetensors"].values()} == {
        torch.float32
    }


@pytest.mark.parametrize("run", [train, dry_run])
def test_functions_are_checked_before_any_video_is_read(run):
    config = TrainConfig(data="nowhere", objective=ObjectiveConfig(terms={"x": Term("elsewhere.edges")}))
    with pytest.raises(ValueError, match=r"`objective.terms.x.target` must be in telecine or in a package"):
        run(config)
    decoding = replace(config, objective=ObjectiveConfig(terms={"latent_noise": 1.0}), sharding="fsdp2")
    with pytest.raises(ValueError, match=r'`sharding` must be "none" with terms that decode, but got .*latent_noise'):
        run(decoding)


@pytest.mark.parametrize("last", [3, 6, 7])
def test_records_of_a_run_that_has_lost_its_checkpoints_are_not_removed(tiny, last):
    """The second checkpoint, of step 6, would have waited for the first one."""
    config, console = tiny(**LIGHT), Console(record=True, width=1000, file=io.StringIO())
    run = Run(config.output_dir)
    run.folder.mkdir()
    write_settings(run.folder, config)
    run.history.write([{"step": step} for step in range(last + 1)])
    if last > 2 * config.save_every:
        with pytest.raises(ValueError, match=r"`output_dir` must be a new folder, or .* records up to step 7, whose"):
            prepare(config, console)
    else:
        prepare(config, console)
        assert f"without a checkpoint, the records up to step {last} are removed" in console.export_text()
    assert run.history.last_step() == (last if last > 2 * config.save_every else 0)


def test_the_folder_of_a_run_must_not_be_that_of_the_data(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"`output_dir` must be another folder than the data, but got .* Name"):
        prepare(tiny(data=str(tmp_path), output_dir=str(tmp_path)), Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_other_files_under_the_same_path_are_refused_on_resuming(tiny, small_video, tmp_path):
    data = tmp_path / "videos"
    data.mkdir()
    shutil.copy(small_video, data / "a.mp4")
    config = tiny(data=str(data), **LIGHT)
    run_to(config, 1)
    write_video(data / "a.mp4", read_clip(index_video(small_video), 0, 60).flip(2), fps=25)
    with pytest.raises(ValueError, match=r"but got other held-out clips \(files of other sizes, names or frames\)"):
        train(config, console=quiet())
    prepare(config, quiet(), change_data=True)
    shutil.copy(small_video, data / "a.mp4")
    prepare(config, quiet())
