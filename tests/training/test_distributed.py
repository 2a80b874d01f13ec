"""Communication between processes, and sharding: outputs and gradients equal those of whole weights."""

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist
from torch import nn

from telecine.autoencoders.diffusers import DiffusersAutoencoder
from telecine.training import TrainableConfig, TrainConfig
from telecine.training.distributed import describe_processes, fsdp_blocks, full_tensor, local_shard, shard
from telecine.training.trainable import select_trainable

models = runpy.run_path(str(Path(__file__).parent.parent / "autoencoders" / "tiny_models.py"))
TINY_MODELS, tiny_clip, tiny_model = (models[name] for name in ("TINY_MODELS", "tiny_clip", "tiny_model"))
WITH_SCALAR = "ltx_video_with_timestep"  # it has a weight without dimensions
SHARDED = [name for name in TINY_MODELS if name != WITH_SCALAR]


@pytest.mark.parametrize(
    ("environment", "warns"),
    [
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, True),
        ({"ACCELERATE_USE_CPU": "True"}, False),  # one process was requested
        ({"ACCELERATE_USE_CPU": "False", "MASTER_ADDR": "127.0.0.1"}, False),
        ({"MASTER_ADDR": "127.0.0.1"}, False),
    ],
)
def test_a_launcher_that_starts_one_process_of_several_is_reported(monkeypatch, environment, warns):
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    accelerator = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    first, *rest = describe_processes(TrainConfig(), accelerator)
    assert first == "computing on cpu, mixed precision: no"
    assert ["starts one process for any --num_processes; use `torchrun`" in line for line in rest] == [True] * warns


@pytest.fixture(scope="module")
def one_rank():
    """Create a process group of one process: weights are sharded and gathered as with several processes."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def adapter(name, weights):
    model = DiffusersAutoencoder(tiny_model(name))
    select_trainable(model, TrainableConfig(weights=weights, lora_rank=2))
    return model


def output_and_gradients(model, video):
    torch.manual_seed(0)  # for Allegro's dropout
    output = model(video, sample_posterior=False).video
    output.sin().sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return output.detach(), {name: full_tensor(gradient) for name, gradient in gradients.items()}


def test_every_class_is_sharded():
    assert len(SHARDED) == 20


@pytest.mark.slow
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(("name", "weights"), [*((name, "all") for name in SHARDED), ("wan", "lora")])
def test_outputs_and_gradients_equal_those_of_whole_weights(name, weights):
    whole, video = adapter(name, weights), tiny_clip(name)
    sharded = copy.deepcopy(whole)
    assert any(True for _ in fsdp_blocks(sharded)), "more than one unit"
    shard(sharded)
    (expected, ours), (output, theirs) = (output_and_gradients(model, video) for model in (whole, sharded))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert ours.keys() == theirs.keys()
    # The gradients of all weights together: some are 0 up to rounding.
    difference = torch.stack([(theirs[key] - gradient).norm() for key, gradient in ours.items()]).norm()
    assert difference < 1e-5 * torch.stack([gradient.norm() for gradient in ours.values()]).norm()


@pytest.mark.usefixtures("one_rank")
@torch.no_grad()
def test_weights_that_change_between_two_passes_are_used():
    """Validation swaps the averaged weights in between two passes."""
    model, video = adapter("cogvideox", "all"), tiny_clip("cogvideox")
    name = next(name for name, weight in model.named_parameters() if weight is model.last_layer)
    shard(model)
    weights = dict(model.named_parameters())  # as a moving average and an optimizer hold them
    assert model(video, sample_posterior=False).video[0, 0].std() > 1e-3
    local_shard(weights[name]).zero_()
    assert model(video, sample_posterior=False).video[0, 0].std() < 1e-6, "only its bias is left"


@pytest.mark.usefixtures("one_rank")
def test_a_weight_without_dimensions_is_refused_by_name():
    with pytest.raises(ValueError, match=r"`sharding` must be none for .* got .*timestep_scale_multiplier"):
        shard(adapter(WITH_SCALAR, "all"))


def test_containers_without_forward_or_weights_are_no_blocks():
    container = nn.Module()
    container.parts = nn.ModuleList([nn.Linear(1, 1), nn.GELU()])
    model = nn.Module()
    model.levels = nn.ModuleList([container, nn.Conv1d(1, 1, 1)])
    assert list(fsdp_blocks(model)) == [container.parts[0], model.levels[1]]
