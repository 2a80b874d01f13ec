"""A module of the user's, from `--model my_package.Tiny` to every command that loads its run."""

import copy
import json
import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from telecine import EvaluateConfig, ReconstructConfig, evaluate, reconstruct
from telecine.__main__ import main
from telecine.base import imports
from telecine.base.imports import allow_code
from telecine.models import load_autoencoder
from telecine.runs import Run, find_checkpoint
from telecine.runs.saved_settings import as_yaml
from telecine.settings import DiscriminatorConfig, LatentsConfig, ObjectiveConfig
from telecine.tools.latents.measures import measure_latent_spaces
from telecine.training import train
from telecine.training.build import build_autoencoder, custom_module
from telecine.training.prepare import prepare

from .helpers import (
    LIGHT,
    StopAfter,
    StopAfterValidation,
    assert_equal_tensors,
    last_checkpoint,
    quiet,
    recorder,
    run_to,
    tensors,
)

NAME = "own_of_tests"
PACKAGE = """
from torch import nn


class Tiny(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.encoder = nn.Conv3d(3, width, (1, 4, 4), stride=(1, 4, 4))
        self.decoder = nn.ConvTranspose3d(width, 3, (1, 4, 4), stride=(1, 4, 4))

    def decode(self, latent):
        return self.decoder(latent)

    def forward(self, video):
        latent = self.encoder(video)
        return self.decode(latent), {"energy_loss": latent.square().mean()}, latent


class Named(Tiny):
    def forward(self, video):
        return {"sample": super().forward(video)[0]}


class Motion(nn.Module):
    def __init__(self, channels, image_size, slope=0.2, base_channels=1):
        super().__init__()
        self.arguments = (channels, image_size, slope)
        self.is_default = base_channels == 1  # which is no setting
        self.conv = nn.Conv3d(channels, 1, 3, stride=2, padding=1)

    def forward(self, video):
        return self.conv(video).mean((1, 2, 3, 4))


class OfFrames(Motion):
    sees = "frames"


def make():
    return Motion(3, (32, 32))


class Tubes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 6, (2, 8, 8), stride=(2, 8, 8))

    def forward(self, clips):
        assert clips.shape[1:] == (3, 3, 16, 16), clips.shape
        return self.conv(clips)
"""
ALIGNED = """
steps: 2
batch_size: 1
device: cpu
val_clips: 1
latent_clips: 1
linear_baseline: false
linear_start: false
clips: {num_frames: 5, height: 32, width: 32, num_workers: 0}
causal_vae: {time_compression: 4, spatial_compression: 4, latent_channels: 4, patch_size: 4, channel_multipliers: [1],
  base_channels: 8, blocks_per_level: 1}
objective:
  perceptual_weight: 0
  terms:
    alignment:
      weight: 0.5
      params: {latent_channels: 4, net: own_of_tests.Tubes, time_stride: 2, num_features: 6, size: 16}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a package importable that is not allowed; what the test allows is forgotten."""
    monkeypatch.setattr(imports, "allowed_packages", {*imports.allowed_packages})
    (tmp_path / f"{NAME}.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop(NAME, None)


@pytest.mark.slow
def test_a_run_is_loaded_by_every_command(tiny, package, tmp_path, monkeypatch, capsys):
    settings = {"steps": 2, "save_every": 2, "val_every": 2, **LIGHT}
    config = tiny(model=f"{NAME}.Tiny", model_arguments={"width": 6}, **settings)
    with pytest.raises(ValueError, match=rf"`model` must be in telecine .*`--allow_code {NAME}`"):
        train(config)
    allow_code(NAME)
    train(config)
    run = config.output_dir
    train(replace(config, steps=4))
    checkpoint = find_checkpoint(Path(run))
    assert checkpoint.name == "step-00000004"
    assert load_autoencoder(checkpoint / "ema").module.encoder.out_channels == 6
    description = json.loads((checkpoint / "ema" / "config.json").read_text())
    assert description["_arguments"] == {"width": 6}
    tuned = {**LIGHT, "output_dir": str(tmp_path / "tuned"), "steps": 1}
    train(tiny(model=run, **tuned))  # as a base model
    assert find_checkpoint(tmp_path / "tuned").name == "step-00000001"

    monkeypatch.chdir(tmp_path)
    measured = f"--data {config.data} --height 32 --width 32 --max_clips 1"
    for command in (
        f"evaluate {run} {measured}",
        f"reconstruct {run} {config.data} -o out.mp4",
        f"latents {run} {measured}",
    ):
        words = f"{command} --num_frames 5 --device cpu".split()
        monkeypatch.setattr(imports, "allowed_packages", {"telecine"})
        assert main(words) == 2
        assert f"add `--allow_code {NAME}`" in capsys.readouterr().err
        assert main([*words, "--allow_code", NAME]) == 0


def test_a_module_that_returns_no_video_is_one_line(tiny, package, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(as_yaml(tiny(model=f"{NAME}.Named")))
    assert main(["train", "--config", str(tmp_path / "config.yaml"), "--allow_code", NAME]) == 2
    assert re.search(
        r"^telecine: error: the module's output must be .* a dict of.*, but got ",
        capsys.readouterr().err,
    )


def test_a_module_in_the_place_of_a_folder(tiny, package, tmp_path):
    allow_code(NAME)
    config = tiny()
    module = build_autoencoder(config, custom_module(f"{NAME}.Tiny", {})).module
    size = {"num_frames": 5, "height": 32, "width": 32}
    clips = {"data": config.data, "max_clips": 1, "device": "cpu", **size}
    result = evaluate(module, EvaluateConfig(**clips))
    assert (result.protocol.subject, result.protocol.num_clips) == ("Tiny", 1)
    decibel = reconstruct(
        module, config.data, tmp_path / "out.mp4", ReconstructConfig(num_frames=5, device="cpu")
    )
    assert decibel == pytest.approx(result.metrics["psnr"], abs=3)
    model = measure_latent_spaces([module], LatentsConfig(**clips)).models[0]
    assert (model.title, model.shape) == ("Tiny", [4, 5, 8, 8])


@pytest.mark.slow
def test_a_compiled_module_is_trained_and_resumed(tiny, package):
    allow_code(NAME)
    torch._dynamo.reset()
    module = import_module(NAME).Tiny
    for steps in (1, 2):
        train(
            tiny(**LIGHT, steps=steps, save_every=1),
            autoencoder=torch.compile(module(), backend="eager"),
        )
    model = load_autoencoder(find_checkpoint(Path(tiny().output_dir)) / "ema")
    assert model.module.encoder.out_channels == 4


def test_a_run_that_no_command_could_load_does_not_start(tiny, package):
    config = tiny(steps=1)
    with pytest.raises(
        ValueError, match=r"^`autoencoder` must be .* Give it an attribute `config`"
    ):
        train(config, autoencoder=import_module(NAME).Tiny(width=6))
    assert not Run(config.output_dir).checkpoints.all()
    console = recorder()
    train(config, autoencoder=Noisy(), console=console)  # in Python, the tests are a package
    assert "cannot load" not in console.export_text()


def test_arguments_of_another_model(tiny):
    with pytest.raises(
        ValueError,
        match="`model_arguments` must be left out unless `model` is the dotted path of a",
    ):
        custom_module(None, {"width": 1})


def test_a_custom_module_is_not_planned(package, capsys):
    assert main(["plan", "--model", f"{NAME}.Tiny", "--allow_code", NAME, "--device", "cpu"]) == 2
    assert "`--model` must be one of telecine or diffusers to be planned" in capsys.readouterr().err


class Noisy(nn.Module):
    """Draws random numbers in each call, and returns no latent."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Conv3d(3, 3, 1)

    def forward(self, video):
        return self.decoder(video + 0.1 * torch.randn_like(video))


class WithoutGradients(Noisy):
    @torch.no_grad()
    def forward(self, video):
        return self.decoder(video)


def test_a_module_without_gradients_is_named(tiny):
    with pytest.raises(ValueError, match=r"computed with gradients, .* Remove `torch.no_grad` and"):
        train(tiny(steps=1), autoencoder=WithoutGradients())


def with_discriminator(tiny, **changes):
    objective = ObjectiveConfig(
        disc_start=0,
        perceptual_weight=0.0,
        adversarial_loss_weight=0.5,
        multiscale_adversarial_loss_weight=0.5,
    )
    values = {"video": f"{NAME}.Motion", "num_scales": 1, "params": {"slope": 0.1}}
    run = {key: value for key, value in changes.items() if key in ("steps", "output_dir")}
    values |= {key: value for key, value in changes.items() if key not in run}
    return tiny(
        **{"steps": 1} | run,
        save_every=1,
        objective=objective,
        discriminator=DiscriminatorConfig(**values),
    )


def test_a_discriminator_by_the_path_of_its_class(tiny, package, tmp_path):
    config = with_discriminator(tiny)
    with pytest.raises(
        ValueError, match=rf"`discriminator.video` must be in telecine.*code {NAME}"
    ):
        train(config)
    assert not Path(config.output_dir).exists(), "an error before anything is read or written"
    allow_code(NAME)
    train(config)
    train(replace(config, steps=2))
    saved = load_file(last_checkpoint(config) / "objective.safetensors")
    assert saved["discr_3d.conv.weight"].shape == (1, 3, 3, 3, 3)
    run = prepare(replace(config, steps=2), quiet())
    discriminators = [run.state.objective.discr_3d, *run.state.objective.multiscale_discrs]
    assert [d.arguments for d in discriminators] == [(3, (32, 32), 0.1), (3, (16, 16), 0.1)]
    assert discriminators[0].is_default
    run.close()
    trained_on = with_discriminator(tiny, init=config.output_dir, output_dir=str(tmp_path / "two"))
    run = prepare(trained_on, quiet())
    loaded = run.state.objective.discr_3d.conv.weight
    assert torch.equal(loaded, saved["discr_3d.conv.weight"])
    run.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": f"{NAME}.Moton"}, r"`discriminator.video` must be importable.* no `Moton`"),
        ({"video": "nosuch.Motion"}, "`discriminator.video` must be importable.*Install it, or"),
        ({"video": f"{NAME}.make"}, "or the dotted path of a class of modules"),
        ({"video": f"{NAME}.OfFrames"}, "must be a class that sees video, but got"),
        ({"params": {"slop": 1}}, "`discriminator.params` must be arguments of Motion.*`slope`"),
        ({"video": "patch"}, "`params` must be left out unless"),
        ({"video": "motion"}, "`video` must be .* or the dotted path of a function, but"),
    ],
)
def test_a_wrong_discriminator_is_refused_at_the_start(tiny, package, changes, message):
    allow_code(NAME, "nosuch")
    with pytest.raises(ValueError, match=message):
        train(with_discriminator(tiny, **changes))


def test_a_latent_is_aligned_with_a_network_of_clips(
    small_video, package, cached_weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("aligned.yaml").write_text(ALIGNED)
    command = f"train --config aligned.yaml --data {small_video} --output_dir run"
    assert main([*command.split(), "--allow_code", NAME]) == 0, capsys.readouterr().err
    name = "train/alignment_loss"
    assert min(record[name] for record in Run("run").history if name in record) > 0
    saved = load_file(find_checkpoint(Path("run")) / "objective.safetensors")
    (name,) = (name for name in saved if name.endswith("alignment_loss.projection.weight"))
    assert saved[name].shape == (6, 4, 1, 1)


def test_random_numbers_of_an_evaluation_do_not_change_the_updates(tiny, tmp_path):
    settings = {"steps": 4, "val_every": 2, "save_every": 2, **LIGHT, "latent_clips": 2}
    straight, resumed = (
        tiny(output_dir=str(tmp_path / name), **settings) for name in ("straight", "resumed")
    )
    model = Noisy()
    train(straight, autoencoder=copy.deepcopy(model))
    for stop in (StopAfter, StopAfterValidation):  # in the second validation, then after it
        run_to(resumed, 2, autoencoder=copy.deepcopy(model), stop=stop).close()
    train(resumed, autoencoder=copy.deepcopy(model))
    assert_equal_tensors(tensors(last_checkpoint(straight)), tensors(last_checkpoint(resumed)))
