"""Every video autoencoder of diffusers goes through the trainer, and back to diffusers."""

import json
import runpy
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel
from rich.console import Console
from safetensors.torch import load_file

from telecine.autoencoders.diffusers import DiffusersAutoencoder
from telecine.data import ClipConfig
from telecine.objective.layer_uses import LayerUses
from telecine.runs import checkpoints
from telecine.training import DiscriminatorConfig, Interrupted, ObjectiveConfig, TrainableConfig, train
from telecine.training.build import owner_of
from telecine.training.interrupt import StopRequest
from telecine.training.trainer import Trainer

models = runpy.run_path(str(Path(__file__).parent.parent / "autoencoders" / "tiny_models.py"))
TINY_MODELS, CLIPS, tiny_model = (models[name] for name in ("TINY_MODELS", "CLIPS", "tiny_model"))
FULL = ObjectiveConfig(disc_start=0, disc_train_start=0, grad_penalty_every=1, perceptual_net="alex")
LEAST_SIZE = 32  # of LPIPS


@pytest.fixture
def published(tiny, tmp_path):
    """Return a function that saves a tiny model of a class and makes the settings to train it."""

    def make(name, **changes):
        tiny_model(name).save_pretrained(tmp_path / name)
        frames, height, width = CLIPS[name]
        clips = ClipConfig(
            num_frames=frames, height=max(height, LEAST_SIZE), width=max(width, LEAST_SIZE), num_workers=0
        )
        settings = {"steps": 1, "batch_size": 2, "val_clips": 1, "trackers": (), "objective": FULL}
        judge = DiscriminatorConfig(dim=1, video="plain")
        return tiny(**settings | {"model": str(tmp_path / name), "clips": clips, "discriminator": judge} | changes)

    return make


def quiet():
    return Console(quiet=True)


def test_there_is_a_model_of_every_class():
    assert len(TINY_MODELS) == 21


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_full_update_and_back_to_diffusers(published, name):
    config = published(name)
    trainer = Trainer(config, quiet())
    before = {key: weight.clone() for key, weight in trainer.state.autoencoder.state_dict().items()}
    trainer.run(StopRequest())
    adapter = trainer.state.autoencoder.eval()
    moved = [key for key, weight in adapter.state_dict().items() if not torch.equal(weight, before[key])]
    assert any("encoder" in key for key in moved)
    assert any("decoder" in key for key in moved)
    text = trainer.logger.path.read_text()
    assert all(f"train/{term}" in text for term in ("perceptual_loss", "gen_loss", "discr_loss", "grad_penalty_loss"))
    loaded = AutoModel.from_pretrained(str(checkpoints(Path(config.output_dir))[-1][1] / "model"))
    assert type(loaded) is type(adapter.module)
    in_memory(loaded)
    in_memory(adapter)
    clip = torch.rand(1, 3, config.clips.num_frames, config.clips.height, config.clips.width) * 2 - 1
    with torch.no_grad():
        ours = adapter(clip, sample_posterior=False).video
        theirs = DiffusersAutoencoder(loaded).eval()(clip, sample_posterior=False).video
    assert torch.equal(ours, theirs)


def in_memory(model):
    """Take weights out of their file, in which they begin anywhere: some kernels round otherwise there."""
    for weight in model.parameters():
        weight.data = weight.data.clone()


@pytest.mark.parametrize("name", ["cogvideox", "wan"])
def test_with_the_decoder_alone_the_latents_stay_the_same_bit_for_bit(published, name):
    config = published(name, trainable=TrainableConfig(weights="decoder"), steps=2)
    clip = torch.rand(1, 3, config.clips.num_frames, config.clips.height, config.clips.width) * 2 - 1
    trainer = Trainer(config, quiet())
    in_memory(trainer.state.autoencoder)
    with torch.no_grad():
        before = trainer.state.autoencoder.encode(clip).mode()
    trainer.run(StopRequest())
    adapter = DiffusersAutoencoder.from_pretrained(checkpoints(Path(config.output_dir))[-1][1] / "ema")
    in_memory(adapter)
    with torch.no_grad():
        assert torch.equal(adapter.encode(clip).mode(), before)
    assert trainer.state.last_layer is adapter.last_layer or trainer.state.last_layer.requires_grad


def stop_after(trainer, steps):
    class Stop:
        is_set = property(lambda self: trainer.state.step >= steps)

    with pytest.raises(Interrupted):
        trainer.run(Stop())


@pytest.mark.parametrize("weights", ["all", "decoder", "lora"])
def test_going_on_equals_going_straight_bit_for_bit(published, tmp_path, weights):
    trainable = TrainableConfig(weights=weights, lora_rank=2)
    straight = published("wan", trainable=trainable, steps=3, output_dir=str(tmp_path / "straight"))
    broken = replace(straight, output_dir=str(tmp_path / "broken"))
    train(straight, console=quiet())
    stop_after(Trainer(broken, quiet()), 1)
    train(broken, console=quiet())
    folders = [checkpoints(tmp_path / name)[-1][1] for name in ("straight", "broken")]
    files = sorted(path.relative_to(folders[0]) for path in folders[0].rglob("*.safetensors"))
    assert len(files) == (8 if weights == "lora" else 6)
    for file in files:
        ours, theirs = (load_file(folder / file) for folder in folders)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), file


def test_the_base_model_may_move(published, tmp_path):
    config = published("wan")
    train(config, console=quiet())
    (tmp_path / "wan").rename(tmp_path / "moved")
    console = Console(record=True, width=1000, file=StringIO())
    trainer = Trainer(replace(config, model=f"{tmp_path / 'moved'}/", steps=2), console)
    assert trainer.state.step == 1
    assert f"instead of {config.model}" in console.export_text()


@pytest.mark.parametrize("change", [{"base_dim": 8}, {"scale_factor_spatial": 16}])
def test_a_base_model_of_another_architecture_is_refused(published, tmp_path, change):
    """The second of the two changes no shape of a weight."""
    config = published("wan")
    train(config, console=quiet())
    values = json.loads((tmp_path / "wan" / "config.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(values | change))
    (name,) = change
    with pytest.raises(ValueError, match=rf"`{name} of .*other.json` must be .* as in .*model"):
        Trainer(replace(config, model=str(tmp_path / "other.json")), quiet())


def test_low_rank_updates_refuse_a_base_that_has_changed(published, tmp_path):
    config = published("wan", trainable=TrainableConfig(weights="lora", lora_rank=2))
    train(config, console=quiet())
    other = AutoModel.from_pretrained(config.model)
    with torch.no_grad():
        other.encoder.conv_in.bias += 1
    other.save_pretrained(config.model)
    with pytest.raises(ValueError, match="`model` must be the base model of the run's LoRA updates"):
        Trainer(replace(config, steps=2), quiet())


def test_an_image_batch_leaves_weights_unused_and_trains_all_the_same(published):
    clips = ClipConfig(num_frames=1, height=32, width=32, num_workers=0)
    trainer = Trainer(published("wan", clips=clips), quiet())
    trainer.run(StopRequest())
    assert trainer.state.step == 1


def test_gradient_checkpointing_is_compared_and_refused_where_it_is_wrong(published):
    Trainer(published("cogvideox", model_gradient_checkpointing=True), quiet())
    with pytest.raises(ValueError, match="gradients stay the same"):
        Trainer(published("kvae_video", model_gradient_checkpointing=True), quiet())
    with pytest.raises(ValueError, match="`model_gradient_checkpointing` must be false"):
        Trainer(replace(published("wan"), model=None, model_gradient_checkpointing=True), quiet())


def test_a_frozen_last_layer_cannot_be_what_gradients_are_compared_at(published):
    trainable = TrainableConfig(weights="all", patterns=("decoder.conv_in.*",))
    with pytest.raises(ValueError, match=r"`objective.adaptive_weight_at` must be `reconstruction`"):
        Trainer(published("wan", trainable=trainable), quiet())
    objective = replace(FULL, adaptive_weight_at="reconstruction")
    Trainer(published("wan", trainable=trainable, objective=objective), quiet())


def test_a_size_that_the_model_does_not_reproduce_is_named(published):
    clips = ClipConfig(num_frames=16, height=32, width=32, num_workers=0)
    with pytest.raises(ValueError, match="Use 17, the nearest"):
        Trainer(published("wan", clips=clips), quiet())


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_uses_of_the_last_layer_give_its_gradient(name):
    """What stands in for a sharded weight: Wan's and others' last layer runs once for each chunk of frames."""
    adapter = DiffusersAutoencoder(tiny_model(name))
    uses = LayerUses(owner_of(adapter.last_layer, adapter))
    frames, height, width = CLIPS[name]
    output = adapter(torch.rand(1, 3, frames, height, width) * 2 - 1).video
    loss = output.sin().sum()
    (expected,) = torch.autograd.grad(loss, adapter.last_layer, retain_graph=True)
    torch.testing.assert_close(uses.gradient(loss), expected, rtol=1e-4, atol=1e-5)
