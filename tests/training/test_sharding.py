"""Sharded weights compute what whole ones do, in every class of diffusers: outputs and gradients."""

import copy
import runpy
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn

from telecine.autoencoders.diffusers import DiffusersAutoencoder
from telecine.training import TrainableConfig
from telecine.training.sharding import blocks, gathered, local_part, shard
from telecine.training.trainable import select_trainable

models = runpy.run_path(str(Path(__file__).parent.parent / "autoencoders" / "tiny_models.py"))
TINY_MODELS, tiny_clip, tiny_model = (models[name] for name in ("TINY_MODELS", "tiny_clip", "tiny_model"))
SCALAR = "ltx_video_with_timestep"  # a weight of it has no axes
SHARDED = [name for name in TINY_MODELS if name != SCALAR]


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    """A group of one process: weights are sharded, gathered and reduced as among many, without a second one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def adapter(name, weights):
    model = DiffusersAutoencoder(tiny_model(name))
    select_trainable(model, TrainableConfig(weights=weights, lora_rank=2))
    return model


def output_and_gradients(model, video):
    torch.manual_seed(0)  # of Allegro's dropout
    output = model(video, sample_posterior=False).video
    output.sin().sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return output.detach(), {name: gathered(gradient) for name, gradient in gradients.items()}


def test_there_is_a_model_of_every_class():
    assert len(SHARDED) == 20


@pytest.mark.parametrize(("name", "weights"), [*((name, "all") for name in SHARDED), ("wan", "lora")])
def test_outputs_and_gradients_are_those_of_whole_weights(name, weights):
    whole, video = adapter(name, weights), tiny_clip(name)
    sharded = copy.deepcopy(whole)
    assert any(True for _ in blocks(sharded)), "more than one unit"
    shard(sharded)
    (expected, ours), (output, theirs) = (output_and_gradients(model, video) for model in (whole, sharded))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert ours.keys() == theirs.keys()
    # Together, for some are 0 but for rounding.
    difference = torch.stack([(theirs[key] - gradient).norm() for key, gradient in ours.items()]).norm()
    assert difference < 1e-5 * torch.stack([gradient.norm() for gradient in ours.values()]).norm()


@torch.no_grad()
def test_weights_that_change_between_two_passes_count():
    """As where the averaged weights are put in the place of the others, to be validated."""
    model, video = adapter("cogvideox", "all"), tiny_clip("cogvideox")
    name = next(name for name, weight in model.named_parameters() if weight is model.last_layer)
    shard(model)
    weights = dict(model.named_parameters())  # as an average and an optimizer hold them
    assert model(video, sample_posterior=False).video[0, 0].std() > 1e-3
    local_part(weights[name]).zero_()
    assert model(video, sample_posterior=False).video[0, 0].std() < 1e-6, "its bias is left"


def test_a_weight_without_axes_is_refused_by_name():
    with pytest.raises(ValueError, match=r"`sharding` must be none for .* got .*timestep_scale_multiplier"):
        shard(adapter(SCALAR, "all"))


def test_what_has_no_forward_is_no_block():
    holder = nn.Module()
    holder.parts = nn.ModuleList([nn.Linear(1, 1), nn.GELU()])
    model = nn.Module()
    model.levels = nn.ModuleList([holder, nn.Conv1d(1, 1, 1)])
    assert list(blocks(model)) == [holder.parts[0], model.levels[1]]
