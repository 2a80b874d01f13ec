"""What a run checks, prints and takes over before its first update."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from telecine import Ramp
from telecine.data import index_video, read_clip
from telecine.ops.pass_options import ContextGroup, pass_options, set_pass_options
from telecine.runs import Run
from telecine.runs.lock import RunLock
from telecine.runs.manifest import write_manifest
from telecine.runs.saved_settings import write_settings
from telecine.settings import (
    ClipConfig,
    GANConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PerceptualConfig,
    ReconstructionConfig,
    Term,
    TrainConfig,
)
from telecine.settings.upgrade import DEFAULTS_OF_OLD_RUNS
from telecine.training import train
from telecine.training.build import build_accelerator
from telecine.training.prepare import prepare
from telecine.training.run import dry_run
from telecine.training.start import newest_checkpoint
from telecine.video.write import write_video

from .helpers import (
    LIGHT,
    assert_equal_runs,
    assert_equal_tensors,
    checkpoint_folder,
    last_checkpoint,
    quiet,
    recorder,
    run_to,
    tensors,
    train_all,
)


@pytest.mark.parametrize("function", [train, dry_run])
def test_settings_and_functions_are_checked_before_any_video_is_read(function):
    for other in ("demo", {"steps": 1}):
        with pytest.raises(
            ValueError, match=r"`config` must be of the class `TrainConfig`, but got .*`read_config"
        ):
            function(other)
    config = TrainConfig(
        data="nowhere", objective=ObjectiveConfig(terms={"x": Term("elsewhere.edges")})
    )
    with pytest.raises(
        ValueError, match=r"`objective.terms.x.target` must be in telecine or in a package"
    ):
        function(config)
    decoding = replace(
        config, objective=ObjectiveConfig(terms={"latent_noise": 1.0}), sharding="fsdp2"
    )
    with pytest.raises(
        ValueError,
        match=r'`sharding` must be "none" with terms that decode or encode, but got .*latent_noise',
    ):
        function(decoding)


@pytest.mark.parametrize(
    "name", ["validation", ".telecine-output", "metrics.jsonl", "checkpoints", ".lock"]
)
def test_training_follows_no_link_out_of_its_folder(tiny, tmp_path, name):
    config = tiny()
    (tmp_path / "private").touch()
    Path(config.output_dir).mkdir()
    (Path(config.output_dir) / name).symlink_to(tmp_path / "private")
    with pytest.raises(
        ValueError, match=f"{name}` must be in the run's folder itself, but got a symbolic link"
    ):
        train(config)
    assert (tmp_path / "private").read_bytes() == b""
    assert len([*Path(config.output_dir).iterdir()]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"clips": ClipConfig(num_frames=6, height=32, width=32)},
            r"must be 4k\+1 .*, but got 6\. Use 5",
        ),
        ({"data": "/nothing"}, "/nothing, which does not exist"),
        (
            {"data": "FOLDER", "output_dir": "FOLDER"},
            r"`output_dir` must be another folder than the data, .* Name",
        ),
    ],
)
def test_wrong_data_is_refused_before_anything_is_written(tiny, tmp_path, changes, message):
    changes = {
        name: str(tmp_path) if value == "FOLDER" else value for name, value in changes.items()
    }
    with pytest.raises(ValueError, match=message):
        train(tiny(**changes))
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_checked_before_the_data_is_read(tiny):
    console = recorder()
    with pytest.raises(ValueError, match=r"must be 4k\+1 .*, but got 6\. Use 5"):
        train(tiny(clips=ClipConfig(num_frames=6, height=32, width=32)), console=console)
    assert "reading the data" not in console.export_text()


@pytest.mark.parametrize("fault", ["data", "lock"])
def test_a_run_that_cannot_start_leaves_the_processes_that_share_its_clips(
    tiny, monkeypatch, fault
):
    def enter(*_):
        set_pass_options(context_group=ContextGroup(size=2))

    monkeypatch.setattr("telecine.training.build.enter_context_group", enter)
    config = tiny(data="nowhere") if fault == "data" else tiny()
    lock = RunLock(Path(config.output_dir)).acquire() if fault == "lock" else None
    try:
        with pytest.raises(ValueError, match=r"exist|one run at a time"):
            prepare(config, quiet())
        assert pass_options().context_group == ContextGroup()
    finally:
        set_pass_options(context_group=ContextGroup())
        if lock is not None:
            lock.release()


@pytest.mark.slow
def test_the_videos_of_a_run_inside_its_data_are_no_data(tiny, tmp_path, small_video):
    data = tmp_path / "data"
    validation = data / "run" / "validation" / "step-00000000"
    validation.mkdir(parents=True)
    for folder in (data, data / "run", validation):
        shutil.copy(small_video, folder / "video.mp4")
    run = prepare(tiny(data=str(data), output_dir=str(data / "run"), **LIGHT), quiet())
    assert [span.info.source for span in run.clips.train.spans] == [data / "video.mp4"]
    run.close()


def test_a_run_says_where_it_computes_how_large_it_is_and_that_it_ends_within_its_warmup(tiny):
    console = recorder()
    prepare(tiny(steps=4, optimizer=OptimizerConfig(warmup_steps=500), **LIGHT), console).close()
    text = console.export_text()
    assert "computing on cpu, mixed precision: no\n" in text
    assert re.search(
        r"\n[\d.]+ M parameters, 0 in discriminators; 1 video, 1 held-out clip\n", text
    )
    assert "after 4 of 500 steps, 0.008 of `optimizer.lr` is reached" in text


def test_a_checkpoint_that_a_process_does_not_see_is_refused(tiny, tmp_path):
    checkpoints = SimpleNamespace(newest_intact=lambda: (tmp_path / "elsewhere", []))
    run = SimpleNamespace(checkpoints=checkpoints, folder=tmp_path)
    with pytest.raises(
        ValueError,
        match=r"`output_dir` must be a folder that all processes see, but got .* or copy",
    ):
        newest_checkpoint(run, build_accelerator(tiny()), quiet())


@pytest.mark.parametrize("last", [3, 6, 7])
def test_records_of_a_run_that_has_lost_its_checkpoints_are_not_removed(tiny, last):
    """The second checkpoint, of step 6, would have waited for the first one."""
    config = tiny(**LIGHT)
    console = recorder()
    run = Run(config.output_dir)
    run.folder.mkdir()
    write_settings(run.folder, config)
    run.history.write([{"step": step} for step in range(last + 1)])
    if last <= 6:
        prepare(config, console)
        assert (
            f"without a checkpoint, the records up to step {last} are removed"
            in console.export_text()
        )
        last = 0
    else:
        with pytest.raises(
            ValueError,
            match=r"`output_dir` must be a new folder, or .* records up to step 7, whose",
        ):
            prepare(config, console)
    assert run.history.last_step() == last


@pytest.mark.slow
def test_settings_and_terms_that_do_not_change_saved_tensors_may_change(tiny):
    run_to(tiny(steps=3), 2)
    objective = replace(
        tiny().objective,
        reconstruction=ReconstructionConfig(loss="charbonnier"),
        perceptual=PerceptualConfig(net="vgg"),
        gan=GANConfig(loss="vanilla", feature_matching_loss_weight=1.0),
        terms={"gram": Ramp(1.0, start=2)},
        adversarial_loss_weight=Ramp(0.5, steps=9),
    )
    settings = OptimizerConfig(
        lr=1e-4, betas=(0.1, 0.2), disc_betas=(0.3, 0.4), weight_decay=0.5, warmup_steps=0
    )
    run = train_all(tiny(objective=objective, optimizer=settings, steps=3))
    assert run.state.step == 3
    assert "train/gram_loss" in run.files.history.path.read_text()
    assert "lr: 0.0001" in run.files.settings_file.read_text()
    (group,) = run.state.optimizer.param_groups
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.1, 0.2), 0.5, 1e-4)
    (disc_group,) = run.state.disc_optimizer.param_groups
    assert disc_group["betas"] == (0.3, 0.4)


@pytest.mark.slow
def test_a_resumed_run_prints_what_changed_and_refuses_what_does_not_fit(tiny):
    console = recorder()
    run_to(tiny(trackers=("tensorboard",)), 1, console)
    assert re.search(
        r"\nstep 0: held-out psnr [\d.]+  ssim [\d.]+  lpips_alex [\d.]+\n", console.export_text()
    )
    folder = last_checkpoint(tiny())
    records = Run(tiny().output_dir).history.path
    records.write_bytes(b"\0" * len(records.read_bytes()[:-1]) + b"\n")  # as after a power failure
    console = recorder()
    (tracker,) = prepare(tiny(seed=7, trackers=("tensorboard",)), console).accelerator.trackers
    assert tracker.init_kwargs == {"purge_step": 2}, "it drops later records"
    assert tracker.logging_dir == str(Path(tiny().output_dir) / "tensorboard")
    text = console.export_text()
    assert f"resuming from {folder}\nsettings changed since the checkpoint: seed 0 -> 7\n" in text
    assert f"warning: {records}: 1 lines could not be read and are dropped\n" in text
    assert (
        f"warning: {records}: 0 records up to the checkpoint instead of 1; the curves have a gap\n"
        in text
    )
    before = tensors(folder)
    with pytest.raises(ValueError, match=r"`discriminator\.dim` must be 2 as in"):
        train(tiny(discriminator=replace(tiny().discriminator, dim=4)))
    assert_equal_tensors(before, tensors(folder))
    (folder / "state.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"No checkpoint .* is intact.*state.json` must be a file of \d+ bytes"
    ):
        train(tiny())


@pytest.mark.slow
def test_a_run_goes_back_to_the_newest_checkpoint_that_is_not_damaged(tiny, tmp_path):
    steps = {**LIGHT, "steps": 3, "val_every": 3, "save_every": 1, "keep": 3}
    straight, damaged = (
        tiny(output_dir=str(tmp_path / name), **steps) for name in ("straight", "damaged")
    )
    train(straight)
    run_to(damaged, 2)
    path = checkpoint_folder(damaged, 2) / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 64
    path.write_bytes(content)
    console = recorder()
    train(damaged, console=console)
    text = console.export_text()
    assert f"warning: `{path}` must be as it was written, but got other bytes" in text
    assert f"resuming from {checkpoint_folder(damaged, 1)}\n" in text
    assert_equal_runs(straight, damaged, num_files=5)
    assert (path.parent.with_name("damaged-step-00000002") / path.name).is_file()


@pytest.mark.slow
def test_the_link_to_the_best_checkpoint_is_mended_at_the_start(tiny):
    config = tiny(steps=2, val_every=1, save_every=1, best_metric="psnr", keep=4, **LIGHT)
    result = train(config)
    best = (result.run / "best").resolve()
    other = next(
        folder for _, folder in Run(result.run).checkpoints.all() if folder.resolve() != best
    )
    (result.run / "best").unlink()
    (result.run / "best").symlink_to(other.relative_to(result.run))
    (result.run / "checkpoints" / ".step-00000009.partial").mkdir()
    train(config)
    assert (result.run / "best").resolve() == best
    assert not list((result.run / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_other_files_under_the_same_path_are_refused_on_resuming(tiny, small_video, tmp_path):
    data = tmp_path / "videos"
    data.mkdir()
    shutil.copy(small_video, data / "a.mp4")
    config = tiny(data=str(data), **LIGHT)
    run_to(config, 1)
    write_video(data / "a.mp4", read_clip(index_video(small_video), 0, 60).flip(2), fps=25)
    with pytest.raises(
        ValueError, match=r"but got other held-out clips \(files of other sizes, names or frames\)"
    ):
        train(config)
    prepare(config, quiet(), change_data=True)
    shutil.copy(small_video, data / "a.mp4")
    prepare(config, quiet())


@pytest.mark.parametrize("keeps_time", [False, True])
def test_other_files_of_the_same_size_are_named_on_resuming(
    tiny, small_video, tmp_path, keeps_time
):
    values = np.random.default_rng(0).integers(0, 256, (2, 20, 32, 32, 3), dtype=np.uint8)
    path = tmp_path / "arrays" / "a.npy"
    path.parent.mkdir()
    np.save(path, values[0])
    config = tiny(data=str(path.parent), val_data=str(small_video), **LIGHT)
    run_to(config, 1)
    times = (path.stat().st_atime, path.stat().st_mtime)
    console = recorder()
    os.utime(path)
    prepare(config, console)
    assert "has changed" not in console.export_text(), "another time alone"
    np.save(path, values[1])
    if keeps_time:
        os.utime(path, times)
    prepare(config, console)
    assert (
        "the data has changed: files of the same sizes with other content" in console.export_text()
    )


@pytest.fixture
def scenes(tmp_path):
    """Return a folder of arrays: two scenes of each of eight films."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for film in range(8):
        for scene in range(2):
            values = generator.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
            np.save(folder / f"film{film}_scene{scene}.npy", values)
    return folder


def test_no_scene_of_a_held_out_film_is_trained_on(tiny, scenes):
    config = tiny(data=str(scenes), **LIGHT)
    console = recorder()
    run = prepare(config, console)
    line = "2 of 16 videos, 24 of 192 frames: film4_scene0.npy, film4_scene1.npy"
    assert f"held out: {line}" in console.export_text()
    assert run.records.summary.held_out == line
    assert not any("film4" in span.info.source.name for span in run.clips.train.spans)


def test_a_run_of_an_earlier_version_keeps_its_held_out_clips(tiny, scenes):
    config = tiny(data=str(scenes), **LIGHT)
    earlier = replace(config, clips=replace(config.clips, **DEFAULTS_OF_OLD_RUNS))
    before = run_to(earlier, 1)
    before.close()
    folder = checkpoint_folder(config, 1)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    for name in DEFAULTS_OF_OLD_RUNS:
        del settings["clips"][name]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "manifest.json").unlink()
    write_manifest(folder, 1)
    console = recorder()
    run = prepare(config, console)
    for name, value in DEFAULTS_OF_OLD_RUNS.items():
        assert f"`clips.{name}` stays {value!r}, as the run started" in console.export_text(
            clear=False
        )
    assert "settings changed" not in console.export_text()
    assert run.records.summary.validation == before.records.summary.validation
    assert run.config == earlier
