"""Processes: their start, communication; sharded outputs and gradients equal those of whole weights.

`tests/faults` kills real processes.
"""

import copy
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from telecine.models import CausalVAE
from telecine.models.clip_sizes import ClipSizes
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.ops.pass_options import pass_options
from telecine.settings import CausalVAEConfig, TrainableConfig
from telecine.training.distributed import (
    all_gather,
    any_rank,
    average_gradients,
    broadcast_module,
    describe_processes,
    enter_context_group,
    fsdp_blocks,
    full_tensor,
    leave_context_group,
    local_shard,
    on_every_process,
    process_group_settings,
    shard,
)
from telecine.training.step import clip_gradients
from telecine.training.trainable import select_trainable
from telecine.training.weight_files import copy_module

from ..models.tiny_models import ALIKE, FEW_LEVELS, TINY_MODELS, tiny_clip, tiny_model
from .helpers import assert_equal

WITH_SCALAR = "ltx_video_with_timestep"  # it has a weight without dimensions
SHARDED = [name for name in TINY_MODELS if name not in (WITH_SCALAR, *ALIKE)]

pytestmark = pytest.mark.usefixtures("sizes_are_not_probed")


@pytest.fixture
def sizes_are_not_probed(monkeypatch):
    """Take the sizes of clips as they are: `tests/models` tests that models find those that they reproduce."""
    monkeypatch.setattr(ClipSizes, "check", lambda *_: None)


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
    accelerator = SimpleNamespace(num_processes=1, device=torch.device("cpu"), mixed_precision="no")
    first, *rest = describe_processes(accelerator, sharding="none")
    assert first == "computing on cpu, mixed precision: no"
    assert [
        "starts one process for any --num_processes; use `torchrun`" in line for line in rest
    ] == [True] * warns


class OtherRank:
    """Replaces the collectives of two processes: this one, and another whose tensors are those of this one plus 1."""

    def __init__(self, monkeypatch):
        self.num_messages = 0
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        for name in ("all_reduce", "all_gather", "broadcast"):
            monkeypatch.setattr(dist, name, getattr(self, name))

    def all_reduce(self, tensor):
        self.num_messages += 1
        tensor += tensor + 1

    def all_gather(self, tensors, tensor):
        tensors[0].copy_(tensor)
        tensors[1].copy_(tensor + 1)

    def broadcast(self, tensor, src):
        assert src == 0
        tensor += 1


@pytest.fixture
def other_rank(monkeypatch):
    return OtherRank(monkeypatch)


def test_gradients_are_averaged_over_processes_in_buckets(other_rank):
    values = [
        (torch.float32, 1),
        (torch.float32, 1),
        (torch.float32, 3),
        (torch.float64, 1),
        (torch.float64, 2),
    ]
    weights = [nn.Parameter(torch.zeros(size, 1, dtype=dtype)) for dtype, size in values]
    for index, weight in enumerate(weights):
        weight.grad = torch.full_like(weight, float(index))
    average_gradients(weights, bucket_bytes=8)
    for index, weight in enumerate(weights):
        assert torch.equal(weight.grad, torch.full_like(weight, index + 0.5))
    assert other_rank.num_messages == 1 + 4, "which have a gradient; then 2, 1, 1 and 1 gradients"


def test_a_gradient_that_only_other_processes_have_is_averaged(other_rank, monkeypatch):
    """As of a module that chooses its layers by the clip."""
    weight = nn.Parameter(torch.zeros(2))
    average_gradients([weight])
    assert weight.grad.tolist() == [0.5, 0.5]
    monkeypatch.setattr(
        dist, "all_reduce", lambda tensor: tensor.mul_(2)
    )  # the other process has the same
    weight.grad = None
    average_gradients([weight])
    assert weight.grad is None


def test_the_first_process_decides_parameters_and_buffers_and_tensors_are_gathered(other_rank):
    module = nn.BatchNorm1d(2)
    broadcast_module(module)
    assert module.weight.tolist() == module.running_var.tolist() == [2, 2]
    assert [part.tolist() for part in all_gather(torch.tensor([1.0, 2.0]))] == [[1, 2], [2, 3]]
    assert any_rank(False, torch.device("cpu")), "the other process has 0 + 1"


def test_one_process_sends_nothing():
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    average_gradients([weight])
    assert weight.grad.item() == 1
    broadcast_module(nn.Linear(1, 1))
    assert all_gather(weight.grad) == [weight.grad]
    assert [any_rank(value, torch.device("cpu")) for value in (True, False)] == [True, False]


def test_another_group_that_shares_clips_replaces_that_of_before():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        enter_context_group(2, 1.0)
        first = pass_options().context_group.process_group
        enter_context_group(2, 1.0)
        with pytest.raises(ValueError, match="Invalid process group"):
            dist.destroy_process_group(first)
    finally:
        leave_context_group()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def one_rank():
    """Create a process group of one process: weights are sharded and gathered as with several processes."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trainable_model(name, weights):
    model = DiffusersAutoencoder(tiny_model(name))
    select_trainable(model, TrainableConfig(weights=weights))
    return model


def output_and_gradients(model, video):
    torch.manual_seed(0)  # for Allegro's dropout
    output = model(video, sample_posterior=False).video
    output.sin().sum().backward()
    gradients = {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }
    return output.detach(), {name: local_shard(gradient) for name, gradient in gradients.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    ("name", "weights"), [*((name, "all") for name in SHARDED), ("wan", "lora")]
)
def test_outputs_and_gradients_equal_those_of_whole_weights(name, weights):
    assert len(SHARDED) == 24
    model = trainable_model(name, weights)
    video = tiny_clip(name)
    expected, ours = output_and_gradients(model, video)
    model.zero_grad()
    assert list(fsdp_blocks(model)), "more than one unit"
    shard(model)
    output, theirs = output_and_gradients(model, video)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert ours.keys() == theirs.keys()
    # The gradients of all weights together: some are 0 up to rounding.
    difference = torch.stack(
        [(theirs[key] - gradient).norm() for key, gradient in ours.items()]
    ).norm()
    assert difference < 1e-5 * torch.stack([gradient.norm() for gradient in ours.values()]).norm()


class InPlace(nn.Module):
    """Changes in place what its blocks return, which are views."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)))])
        self.last = nn.Linear(3, 1)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
            x += 1
        return self.last(x)


@pytest.mark.usefixtures("one_rank")
def test_views_that_a_model_changes_in_place_have_the_right_gradients(recwarn):
    torch.manual_seed(0)
    whole = InPlace()
    sharded = copy.deepcopy(whole)
    shard(sharded)
    x = torch.randn(5, 4)
    for model in (whole, sharded):
        model(x).square().sum().backward()
    for ours, theirs in zip(whole.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(full_tensor(theirs.grad), ours.grad)
    assert not [warning for warning in recwarn if "returned a view" in str(warning.message)]


def causal_vae():
    model = CausalVAE(CausalVAEConfig(base_channels=8, blocks_per_level=1))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))  # its last layers start at 0
    return model


def with_few_levels(name):
    return DiffusersAutoencoder(tiny_model(name, **FEW_LEVELS[name]))


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    ("make", "chunk", "num_frames"),
    [
        (causal_vae, 4, 9),
        pytest.param(lambda: with_few_levels("wan"), 4, 9, marks=pytest.mark.slow),
        pytest.param(lambda: with_few_levels("cogvideox"), 8, 17, marks=pytest.mark.slow),
    ],
)
def test_temporal_chunks_of_sharded_models_are_exact(make, chunk, num_frames):
    whole = make().double()
    sharded = copy.deepcopy(whole)
    sharded.enable_temporal_chunks(chunk)
    shard(sharded)
    video = 2 * torch.rand(1, 3, num_frames, 16, 16, dtype=torch.float64) - 1
    torch.testing.assert_close(
        output_and_gradients(sharded, video), output_and_gradients(whole, video)
    )


@pytest.mark.usefixtures("one_rank")
@torch.no_grad()
@pytest.mark.slow
def test_weights_that_change_between_two_passes_are_used():
    """Validation swaps the averaged weights in between two passes."""
    model = trainable_model("cogvideox", "all")
    video = tiny_clip("cogvideox")
    name = next(name for name, weight in model.named_parameters() if weight is model.last_layer)
    shard(model)
    weights = dict(model.named_parameters())  # as a moving average and an optimizer hold them
    assert model(video, sample_posterior=False).video[0, 0].std() > 1e-3
    local_shard(weights[name]).zero_()
    assert model(video, sample_posterior=False).video[0, 0].std() < 1e-6, "only its bias is left"


@pytest.mark.usefixtures("one_rank")
def test_results_and_errors_reach_every_process():
    def fail():
        raise OSError("full")

    for group in (None, dist.new_group(backend="gloo")):
        assert on_every_process(lambda: 3, group) == [3]
        with pytest.raises(OSError, match="full"):
            on_every_process(fail, group)


class Caches(nn.Module):
    """A block that caches its input in a list, as Wan's do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, cache, *, more):
        cache[0], previous = x, cache[0]
        more.append(x)
        return self.layer(x if previous is None else x + previous)


@pytest.mark.usefixtures("one_rank")
def test_a_sharded_block_changes_the_callers_lists():
    model = nn.Module()
    model.blocks = nn.ModuleList([Caches()])
    whole = copy.deepcopy(model)
    shard(model)
    x = torch.ones(1, 2, requires_grad=True) * 2
    for current in (whole, model):
        cache = [None]
        more = []
        first = current.blocks[0](x, cache, more=more)
        second = current.blocks[0](x, cache, more=more)
        assert torch.equal(cache[0], x)
        assert len(more) == 2
        assert not torch.equal(first, second)


@pytest.mark.usefixtures("one_rank")
def test_weights_are_copied_between_whole_and_sharded_models():
    torch.manual_seed(0)
    whole, other = (nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)) for _ in range(2))
    sharded = copy.deepcopy(other)
    shard(sharded)
    assert not torch.equal(full_tensor(sharded[0].weight), whole[0].weight)
    whole[1].running_mean += 1
    copy_module(whole, into=sharded)
    copy_module(sharded, into=other)
    assert_equal(other.state_dict(), whole.state_dict())


@pytest.mark.usefixtures("one_rank")
def test_gradients_of_whole_and_sharded_weights_are_clipped_together():
    sharded = nn.Linear(2, 2, bias=False)
    whole = nn.Parameter(torch.zeros(1))
    shard(sharded)
    sharded(torch.tensor([[3.0, 0.0]])).sum().backward()
    whole.grad = torch.tensor([4.0])
    norm = (9 + 9 + 16) ** 0.5
    assert full_tensor(clip_gradients([sharded.weight, whole], norm / 2)).item() == pytest.approx(
        norm
    )
    assert whole.grad.item() == pytest.approx(2.0)
    assert full_tensor(sharded.weight.grad)[:, 0].tolist() == pytest.approx([1.5, 1.5])


@pytest.mark.usefixtures("one_rank")
def test_a_weight_without_dimensions_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"`sharding` must be none for .* got .*timestep_scale_multiplier"
    ):
        shard(trainable_model(WITH_SCALAR, "all"))


def test_containers_without_forward_or_weights_are_no_blocks():
    container = nn.Module()
    container.parts = nn.ModuleList([nn.Linear(1, 1), nn.GELU()])
    model = nn.Module()
    model.levels = nn.ModuleList([container, nn.Conv1d(1, 1, 1)])
    assert list(fsdp_blocks(model)) == [container.parts[0], model.levels[1]]


@pytest.fixture
def shared_store(monkeypatch):
    """Give a process the store of `torchrun`, which stays after a restart."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    torchrun = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for name, value in {**torchrun, "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    return store


def connect():
    """Return the store of the processes, as a process group finds it."""
    settings = process_group_settings(90)
    assert settings.timeout == timedelta(seconds=90)
    store, rank, num_ranks = next(
        dist.rendezvous(settings.init_method, timeout=timedelta(seconds=5))
    )
    assert (rank, num_ranks) == (1, 2)
    return store


@pytest.mark.parametrize(("machines", "finds_old_keys"), [("1", False), ("2", True)])
def test_a_restart_has_keys_of_its_own_where_its_number_is_known_to_all(
    shared_store, monkeypatch, machines, finds_old_keys
):
    monkeypatch.setenv("GROUP_WORLD_SIZE", machines)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    connect().set("address", "old")
    assert connect().check(["address"]), "another connection of the same start"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert connect().check(["address"]) == finds_old_keys


def test_without_torchrun_the_store_is_pytorchs(shared_store, monkeypatch):
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    connect().set("address", "new")
    assert shared_store.get("address") == b"new"
