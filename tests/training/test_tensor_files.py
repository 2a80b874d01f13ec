"""Tensors of checkpoints: copies, files and shards, which any number of processes and PyTorch's reader read."""

from contextlib import contextmanager

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, zeros
from torch.testing._internal.distributed.fake_pg import FakeStore

from telecine.runs import DamagedError, Run
from telecine.runs.manifest import check_manifest
from telecine.training.distributed import local_shard
from telecine.training.tensor_files import (
    SHARDS,
    HostCopy,
    check_headers,
    load_into,
    load_optimizer,
    optimizer_tensors,
    random_states,
    save_shards,
    save_tensors,
    saved_tensors,
    set_random_state,
    shard_file,
)

# Rows that no number of processes divides, fewer rows than processes, and what is not sharded.
WHOLE = {
    "weight": torch.arange(30.0).view(10, 3),
    "norm": torch.tensor([7.0, 8.0, 9.0], dtype=torch.float64),
    "buffer": torch.tensor([1, 2, 3]),
    "step": torch.tensor(4.0),
}
SHARDED = ("weight", "norm")


@contextmanager
def rank_of(rank, num_ranks):
    """Be one of several processes, of which the others do not exist."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_ranks)
    try:
        yield init_device_mesh("cpu", (num_ranks,))
    finally:
        dist.destroy_process_group()


def placed(mesh, whole):
    """Return tensors of which some are sharded over the processes, as FSDP2 does."""
    tensors = {name: tensor.clone() for name, tensor in whole.items()}
    for name in SHARDED:
        begin, rows = 0, -(-len(whole[name]) // mesh.size())
        begin = min(rows * mesh.get_local_rank(), len(whole[name]))
        tensors[name] = zeros(whole[name].shape, dtype=whole[name].dtype, device_mesh=mesh, placements=[Shard(0)])
        local = local_shard(tensors[name])
        local.copy_(whole[name][begin : begin + len(local)])
    return tensors


def write(folder, num_ranks):
    for rank in range(num_ranks):
        with rank_of(rank, num_ranks) as mesh:
            copy = HostCopy(is_main=rank == 0)
            copy.update(placed(mesh, WHOLE))
            assert copy.tensors.keys() == (WHOLE.keys() if rank == 0 else set(SHARDED))
            save_shards(shard_file(folder, rank, num_ranks), {"model": copy})


@pytest.mark.parametrize("num_writers", [1, 2, 4])
def test_any_number_of_processes_reads_shards(tmp_path, num_writers):
    write(tmp_path, num_writers)
    found = {name: torch.zeros_like(tensor) for name, tensor in WHOLE.items()}
    load_into(found, tmp_path, "model")
    assert all(torch.equal(found[name], tensor) for name, tensor in WHOLE.items())
    for num_readers in (2, 3, 4):
        for rank in range(num_readers):
            with rank_of(rank, num_readers) as mesh:
                tensors = placed(mesh, {name: torch.zeros_like(tensor) for name, tensor in WHOLE.items()})
                load_into(tensors, tmp_path, "model")
                expected = placed(mesh, WHOLE)
                assert all(torch.equal(local_shard(tensors[n]), local_shard(expected[n])) for n in WHOLE)


def test_a_process_copies_its_shards_only():
    with rank_of(3, 4) as mesh:
        copy = HostCopy(is_main=False)
        copy.update(placed(mesh, WHOLE))
        assert {name: tuple(tensor.shape) for name, tensor in copy.tensors.items()} == {"weight": (1, 3), "norm": (0,)}
        assert copy.offsets == {"weight": [9, 0], "norm": [3]}
        assert all(not isinstance(tensor, DTensor) for tensor in copy.tensors.values())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_pytorch_reads_the_files(tmp_path):
    write(tmp_path, 2)
    found = {f"model.{name}": torch.zeros_like(tensor) for name, tensor in WHOLE.items()}
    checkpoint.load(found, storage_reader=checkpoint.HuggingFaceStorageReader(str(tmp_path / SHARDS)))
    assert all(torch.equal(found[f"model.{name}"], tensor) for name, tensor in WHOLE.items())


def test_a_file_of_its_own_comes_before_shards(tmp_path):
    write(tmp_path, 2)
    save_tensors(tmp_path / "model.safetensors", {"step": torch.tensor(5.0)})
    step = torch.tensor(0.0)
    load_into({"step": step}, tmp_path, "model")
    assert step.item() == 5


def test_the_optimizer_of_another_number_of_processes_is_restored(tmp_path):
    for rank in range(2):
        with rank_of(rank, 2) as mesh:
            copy = HostCopy(is_main=rank == 0)
            weight = placed(mesh, WHOLE)["weight"]
            one = torch.tensor(1.0)
            copy.update({"0.exp_avg": weight, "0.step": 3 * one, "1.exp_avg": 2 * one, "1.step": 3 * one})
            save_shards(shard_file(tmp_path, rank, 2), {"optimizer": copy})
    # PyTorch caches meshes with the rank, so this is one rank only.
    with rank_of(1, 5) as mesh:
        weight = nn.Parameter(zeros(10, 3, device_mesh=mesh, placements=[Shard(0)]))
        optimizer = torch.optim.AdamW([weight, nn.Parameter(torch.zeros(()))])
        load_optimizer(optimizer, tmp_path, "optimizer")
        sharded, scalar = (optimizer.state[parameter] for parameter in optimizer.param_groups[0]["params"])
        assert isinstance(sharded["exp_avg"], DTensor)
        assert torch.equal(local_shard(sharded["exp_avg"]), WHOLE["weight"][2:4])
        assert sharded["step"].item() == 3
        assert scalar["exp_avg"].item() == 2


def test_files_of_equal_shards_have_equal_bytes(tmp_path):
    """Also in runs of other processes, in which safetensors orders the metadata differently."""
    copy = HostCopy(is_main=True)
    copy.update(WHOLE)
    for index in range(20):
        path = shard_file(tmp_path / str(index), 0, 1)
        path.parent.parent.mkdir()
        save_shards(path, {"ünï": copy})
    assert len({path.read_bytes() for path in tmp_path.rglob("*.safetensors")}) == 1
    saved = saved_tensors(path.parents[1], "ünï")
    assert saved.keys() == WHOLE.keys()


def test_a_damaged_shard_is_named(tmp_path):
    folder = Run(tmp_path).checkpoints.begin(1)
    (folder / "state.json").write_text("{}")
    write(folder, 2)
    Run(tmp_path).checkpoints.finish(1, folder, keep=1)
    folder = Run(tmp_path).checkpoints.path(1)
    check_manifest(folder)
    path = shard_file(folder, 1, 2)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"shard-00001-of-00002.safetensors` must be as it was written"):
        check_manifest(folder)
    path.write_bytes(content[:20])
    with pytest.raises(DamagedError, match=r"shards` must be a safetensors file"):
        saved_tensors(folder, "model")


def test_copies_keep_their_values_and_their_memory():
    weight = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    copy = HostCopy(is_main=True)
    copy.update({"weight": weight, "step": torch.tensor(3)})
    first = copy.tensors["weight"]
    assert first.is_contiguous()
    weight.add_(1)
    assert torch.equal(first, weight - 1)
    copy.update({"weight": weight})
    assert copy.tensors["weight"] is first
    assert torch.equal(first, weight)
    assert list(copy.tensors) == ["weight"], "an optimizer's state can be gone after going back"


def test_other_processes_keep_no_copy():
    copy = HostCopy(is_main=False)
    copy.update({"weight": torch.ones(2)})
    assert copy.tensors == {}


def save(optimizer, path):
    save_tensors(path, optimizer_tensors(optimizer))


def trained(seed, num_steps):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, betas=(0.5, 0.9))
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_an_optimizer_resumes_bit_for_bit_with_new_hyperparameters(tmp_path):
    model, optimizer = trained(0, 3)
    save(optimizer, tmp_path / "optimizer.safetensors")
    other, restored = trained(0, 0)
    restored.param_groups[0]["weight_decay"] = 0.25
    other.load_state_dict(model.state_dict())
    load_optimizer(restored, tmp_path, "optimizer")
    for network, opt in ((model, optimizer), (other, restored)):
        opt.zero_grad()
        network(torch.ones(2, 3)).square().sum().backward()
        opt.step()
    ours, theirs = optimizer.state_dict()["state"], restored.state_dict()["state"]
    assert len(ours) == 4
    for index, state in ours.items():
        assert all(torch.equal(state[name], theirs[index][name]) for name in ("step", "exp_avg"))
    assert restored.param_groups[0]["weight_decay"] == 0.25, "hyperparameters are settings of the resumed run"


def test_the_error_of_a_damaged_file_has_a_remedy(tmp_path):
    _, optimizer = trained(0, 1)
    path = tmp_path / "optimizer.safetensors"
    save(optimizer, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"optimizer.safetensors` must be a safetensors file.*Use another checkpoint"):
        load_optimizer(optimizer, tmp_path, "optimizer")


def test_a_full_disk_raises_an_oserror(tmp_path):
    """A missing folder stands in for the full disk: safetensors raises the same."""
    path = tmp_path / "missing" / "random.safetensors"
    with pytest.raises(OSError, match=rf"cannot write weights to {path}: .*No such file"):
        save_tensors(path, {"weight": torch.zeros(2)})


def test_an_optimizer_that_never_stepped_is_restored_without_state(tmp_path):
    _, optimizer = trained(0, 0)
    save(optimizer, tmp_path / "optimizer.safetensors")
    _, restored = trained(1, 2)
    load_optimizer(restored, tmp_path, "optimizer")
    assert restored.state_dict()["state"] == {}


def test_the_random_state_is_restored():
    cpu = torch.device("cpu")
    torch.manual_seed(3)
    states = random_states(cpu)
    assert list(states) == ["0.cpu"]
    first = torch.rand(4)
    torch.rand(5)
    set_random_state(states, 0, cpu)
    assert torch.equal(torch.rand(4), first)


def test_a_rank_without_a_saved_random_state_keeps_its_own():
    cpu = torch.device("cpu")
    states = random_states(cpu)
    torch.manual_seed(4)
    set_random_state(states, 1, cpu)
    after = torch.rand(4)
    torch.manual_seed(4)
    assert torch.equal(torch.rand(4), after)


def test_a_file_that_was_not_written_whole_raises(tmp_path):
    path = tmp_path / "model" / "weights.safetensors"
    path.parent.mkdir()
    save_tensors(path, {"weight": torch.zeros(8)})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(OSError, match=r"weights.safetensors was not written whole"):
        check_headers(tmp_path)


def test_headers_of_whole_files_are_accepted(tmp_path):
    save_tensors(tmp_path / "weights.safetensors", {"weight": torch.zeros(8)})
    check_headers(tmp_path)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_state_tensor_of_a_scalar_parameter_is_restored(tmp_path, shape):
    weight = nn.Parameter(torch.ones(shape))
    optimizer = torch.optim.AdamW([weight])
    weight.square().sum().backward()
    optimizer.step()
    save(optimizer, tmp_path / "optimizer.safetensors")
    restored = torch.optim.AdamW([weight])
    load_optimizer(restored, tmp_path, "optimizer")
    ours, theirs = optimizer.state[weight], restored.state[weight]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_random_state_of_a_gpu_is_restored(monkeypatch):
    restored = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *arguments: restored.append(arguments))
    states = {"0.cuda": torch.zeros(1), "1.cuda": torch.ones(1)}
    for rank in (1, 2):
        set_random_state(states, rank, torch.device("cuda"))
    set_random_state(states, 0, torch.device("cpu"))
    assert restored == [(states["1.cuda"], torch.device("cuda"))]


def test_states_of_eight_bits_are_restored(tmp_path):
    """The same updates as without a break, to the bit."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    ends = []
    for is_broken in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(80, 80)  # more than 4096 weights, below which it keeps whole states
        optimizer = bitsandbytes.optim.AdamW8bit(model.parameters(), 0.1, betas=(0.5, 0.9))
        for step in range(4):
            if is_broken and step == 2:
                save(optimizer, tmp_path / "optimizer.safetensors")
                optimizer = bitsandbytes.optim.AdamW8bit(model.parameters(), 0.1, betas=(0.5, 0.9))
                load_optimizer(optimizer, tmp_path, "optimizer")
                assert optimizer.state[model.weight]["state1"].dtype == torch.uint8
            optimizer.zero_grad()
            model(torch.ones(3, 80)).square().mean().backward()
            optimizer.step()
        ends.append(model.weight.detach().clone())
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], torch.zeros(80, 80))
