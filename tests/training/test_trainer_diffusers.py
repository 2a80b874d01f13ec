"""Training every video autoencoder of diffusers, and loading the result with diffusers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel

from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.latent import LatentStatistics
from telecine.runs import Run
from telecine.settings import (
    AdaptiveWeightConfig,
    ClipConfig,
    DiscriminatorConfig,
    GANConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PenaltyConfig,
    PerceptualConfig,
    TrainableConfig,
)
from telecine.training import train
from telecine.training.build import build_autoencoder
from telecine.training.checkpoint import Checkpointer
from telecine.training.interrupt import StopRequest
from telecine.training.loop import train_to_the_end
from telecine.training.prepare import prepare
from telecine.training.step import MicroBatch, train_step

from ..models.tiny_models import CLIPS, FEW_LEVELS, IMAGE_MODELS, tiny_clip, tiny_model
from .helpers import (
    LIGHT,
    assert_equal,
    assert_equal_runs,
    last_checkpoint,
    new_state,
    quiet,
    recorder,
    resumed_copy,
)

FULL = ObjectiveConfig(
    disc_start=0,
    adversarial_loss_weight=0.5,
    grad_penalty_loss_weight=10.0,
    quantizer_aux_loss_weight=1e-6,
    gan=GANConfig(disc_train_start=0),
    penalty=PenaltyConfig(every=1),
    perceptual=PerceptualConfig(net="alex"),
)
MIN_SIZE = 32  # LPIPS accepts nothing smaller

pytestmark = pytest.mark.usefixtures("probe_each_configuration_once")


@pytest.fixture
def diffusers_config(tiny, tmp_path):
    """Return a function that saves a tiny model of a class in a folder and makes the settings to train it."""

    def make(name, folder=tmp_path, **changes):
        tiny_model(name, **FEW_LEVELS.get(name, {})).save_pretrained(folder / name)
        frames, height, width = CLIPS[name]
        clips = ClipConfig(
            num_frames=frames,
            height=max(height, MIN_SIZE),
            width=max(width, MIN_SIZE),
            num_workers=0,
        )
        settings = {
            "steps": 1,
            "batch_size": 1,
            "val_clips": 1,
            "trackers": (),
            "objective": FULL,
            "discriminator": DiscriminatorConfig(dim=1, video="patch"),
            "model": str(folder / name),
            "output_dir": str(folder / "run"),
            "clips": clips,
        }
        return tiny(**settings | changes)

    return make


# One of videos, and one of frames; `tests/models` tests every class.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["temporal_decoder", "wan"])
def test_an_update_with_every_network_and_back_to_diffusers(diffusers_config, name):
    config = diffusers_config(name)
    trainer = prepare(config, quiet())
    before = {key: weight.clone() for key, weight in trainer.state.autoencoder.state_dict().items()}
    train_to_the_end(trainer, StopRequest())
    trained = trainer.state.autoencoder.eval()
    moved = [
        key for key, weight in trained.state_dict().items() if not torch.equal(weight, before[key])
    ]
    assert any("encoder" in key for key in moved)
    assert any("decoder" in key for key in moved)
    text = trainer.files.history.path.read_text()
    assert all(
        f"train/{term}" in text
        for term in ("perceptual_loss", "gen_loss", "discr_loss", "grad_penalty_loss")
    )
    loaded = AutoModel.from_pretrained(str(last_checkpoint(config) / "model"))
    assert type(loaded) is type(trained.module)
    copy_into_memory(loaded)
    copy_into_memory(trained)
    clip = (
        torch.rand(1, 3, config.clips.num_frames, config.clips.height, config.clips.width) * 2 - 1
    )
    with torch.no_grad():
        ours = trained(clip, sample_posterior=False).video
        theirs = DiffusersAutoencoder(loaded).eval()(clip, sample_posterior=False).video
    assert torch.equal(ours, theirs)
    check_statistics(trainer, config)


def check_statistics(trainer, config):
    """Compare the statistics in the saved model with its latents of the clips that they were measured on."""
    folder = last_checkpoint(config) / "ema"
    model = DiffusersAutoencoder(AutoModel.from_pretrained(str(folder))).eval()
    with torch.no_grad():
        clips = [trainer.clips.train[index]["video"][None] for index in range(config.latent_clips)]
        latents = torch.cat([model.encode(clip).mode() for clip in clips])
    saved = model.latent_normalisation()
    if "latents_mean" in saved:
        channels = latents.transpose(0, 1).flatten(1)
        std = channels.std(1, correction=0)
        assert saved["latents_std"] == pytest.approx(std.tolist(), rel=0.01)
        error = channels.mean(1) - torch.tensor(saved["latents_mean"])
        assert (error.abs() < 0.01 * std).all()
    else:
        std = latents.std(correction=0).item()
        assert saved["scaling_factor"] == pytest.approx(1 / std, rel=0.01)
        assert saved["scaling_factor"] != trainer.first_normalisation["scaling_factor"]


def copy_into_memory(model):
    """Copy weights out of their memory-mapped file: some kernels round differently for its alignment."""
    for weight in model.parameters():
        weight.data = weight.data.clone()


# Without two classes that are saved and loaded as `kl_image` is.
@pytest.mark.parametrize("name", sorted({*IMAGE_MODELS} - {"asymmetric", "hunyuan_image"}))
def test_every_image_model_trains_and_resumes_to_the_bit_and_diffusers_loads_it(
    diffusers_config, name
):
    config = diffusers_config(
        name, **LIGHT | {"latent_clips": 1}, optimizer=OptimizerConfig(warmup_steps=0)
    )
    video = tiny_clip(name)
    straight, writer = start(config)
    before = copied(straight.autoencoder)
    train_step(straight, [MicroBatch(video, [0])])
    after = copied(straight.autoencoder)
    moved = {key.split(".")[1] for key in after if not torch.equal(after[key], before[key])}
    assert {"encoder", "decoder"} - moved == ({"encoder"} if name == "rae" else set())
    channels = straight.autoencoder.encode(video).mode().shape[1]
    writer.set_latent_statistics(straight, LatentStatistics([0.5] * channels, [2.0] * channels))
    folder = writer.save(straight)
    writer.wait()
    train_step(straight, [MicroBatch(video, [1])])
    resumed, reader = start(config)
    reader.load(resumed, folder)
    train_step(resumed, [MicroBatch(video, [1])])
    assert_equal(copied(resumed.autoencoder), copied(straight.autoencoder))
    loaded = DiffusersAutoencoder(AutoModel.from_pretrained(str(folder / "model")))
    assert type(loaded.module) is type(straight.autoencoder.module)
    statistics = {key for key in after if key.startswith("module.bn.")}  # which were set afterwards
    assert bool(statistics) == (name == "flux2")
    assert_equal({**copied(loaded), **{key: after[key] for key in statistics}}, after)
    normalisation = loaded.latent_normalisation()
    assert (
        normalisation
        == straight.autoencoder.latent_normalisation()
        == resumed.autoencoder.latent_normalisation()
    )
    assert bool(normalisation) == (name not in ("kvae_image", "rae"))


def start(config):
    """Return the state of a new run, and what saves and loads its checkpoints."""
    run = Run(config.output_dir)
    for path in (run.history.path, run.warnings.path):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    model = build_autoencoder(config)
    checkpointer = Checkpointer(config, model, is_main=True)
    return new_state(config, model), checkpointer


def copied(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folder of a base model and its run for each choice of weights that are trained."""
    return {weights: tmp_path_factory.mktemp(weights) for weights in ("all", "lora")}


@pytest.fixture
def finished_run(diffusers_config, folders):
    """Return a function that returns the settings of a finished run of two updates, one for all tests."""

    def make(weights):
        settings = {**LIGHT, "steps": 2, "save_every": 1, "latent_clips": 1}
        config = diffusers_config(
            "wan", folders[weights], trainable=TrainableConfig(weights=weights), **settings
        )
        if not Path(config.output_dir).exists():
            train(config)
        return config

    return make


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["all", "lora"])
def test_a_resumed_run_equals_the_whole_one_bit_for_bit(finished_run, tmp_path, weights):
    config = finished_run(weights)
    resumed = resumed_copy(config, tmp_path / "resumed")
    assert_equal_runs(config, resumed, num_files=7 if weights == "lora" else 5)


@pytest.mark.slow
def test_the_base_model_may_move_but_not_change(finished_run, tmp_path):
    """The second change does not change the shape of a weight."""
    config = finished_run("all")
    model = Path(config.model)
    values = json.loads((model / "config.json").read_text())
    for name, value in (("base_dim", 8), ("scale_factor_spatial", 16)):
        (tmp_path / "other.json").write_text(json.dumps(values | {name: value}))
        with pytest.raises(ValueError, match=rf"`{name} of .*other.json` must be .* as in .*model"):
            prepare(replace(config, model=str(tmp_path / "other.json")), quiet())
    model.rename(tmp_path / "moved")
    console = recorder()
    trainer = prepare(replace(config, model=f"{tmp_path / 'moved'}/", steps=3), console)
    assert trainer.state.step == 2
    assert f"instead of {config.model}" in console.export_text()
    trainer.close()


@pytest.mark.slow
def test_lora_refuses_a_base_model_that_has_changed(finished_run):
    config = finished_run("lora")
    other = AutoModel.from_pretrained(config.model)
    other.encoder.conv_in.bias.data += 1
    other.save_pretrained(config.model)
    with pytest.raises(
        ValueError, match="`model` must be the base model of the run's LoRA adapters"
    ):
        prepare(replace(config, steps=3), quiet())


@pytest.mark.parametrize(("weights", "number"), [("all", 1), ("decoder", 0)])
def test_a_run_that_trains_the_encoder_of_a_model_says_what_follows(
    diffusers_config, weights, number
):
    console = recorder()
    config = diffusers_config("wan", trainable=TrainableConfig(weights=weights), **LIGHT)
    prepare(config, console).close()
    text = console.export_text()
    assert (
        text.count("generators that were trained on latents of this model no longer fit") == number
    )
    assert text.count("--config decoder keeps its latents") == number


def test_gradient_checkpointing_is_turned_on(diffusers_config):
    model = build_autoencoder(diffusers_config("cogvideox", model_gradient_checkpointing=True))
    assert model.module.is_gradient_checkpointing


@pytest.mark.slow
def test_temporal_chunks_train_the_same_weights(diffusers_config):
    """Two updates with the adversarial term and its adaptive weight.

    Adam's first update moves each weight by the learning rate, also where the gradient is zero but for rounding. So the
    rate is small, and what is compared is the mean of the gradients.
    """
    clips = ClipConfig(num_frames=13, height=32, width=32, num_workers=0)
    optimizer = OptimizerConfig(lr=1e-7, disc_lr=1e-7, warmup_steps=0)

    losses = []
    moments = []
    for temporal_chunk in (None, 4):
        config = diffusers_config(
            "wan", clips=clips, optimizer=optimizer, temporal_chunk=temporal_chunk
        )
        state = new_state(config)
        for step in range(2):
            video = (
                2 * torch.rand(1, 3, 13, 32, 32, generator=torch.Generator().manual_seed(step)) - 1
            )
            log = train_step(state, [MicroBatch(video, [step])])
            assert log["train/adaptive_weight"] not in (0, 1), "it is computed"
            losses.append((log["train/total_loss"], log["train/adaptive_weight"]))
        for trained in state.optimizers.values():
            moments.append(
                torch.cat([values["exp_avg"].flatten() for values in trained.state.values()])
            )
    assert losses[2:] == [pytest.approx(loss, rel=1e-5) for loss in losses[:2]]
    assert len(moments) == 4
    for whole, chunks in zip(moments[:2], moments[2:], strict=True):
        assert (chunks - whole).norm() < 1e-4 * whole.norm()


def test_the_adaptive_weight_cannot_compare_gradients_at_a_frozen_last_layer(diffusers_config):
    trainable = TrainableConfig(weights="all", patterns=("decoder.conv_in.*",))
    with pytest.raises(
        ValueError, match=r"`objective.adaptive_weight.at` must be `reconstruction`"
    ):
        prepare(diffusers_config("wan", trainable=trainable), quiet())
    objective = replace(FULL, adaptive_weight=AdaptiveWeightConfig(at="reconstruction"))
    prepare(diffusers_config("wan", trainable=trainable, objective=objective), quiet())
