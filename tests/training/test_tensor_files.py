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

from telecine.runs import DamagedError
from telecine.training.distributed import local_shard
from telecine.training.optimizers import load_optimizer
from telecine.training.tensor_files import (
    SHARDS,
    HostCopy,
    check_headers,
    load_into,
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
        rows = -(-len(whole[name]) // mesh.size())
        begin = min(rows * mesh.get_local_rank(), len(whole[name]))
        tensors[name] = zeros(
            whole[name].shape, dtype=whole[name].dtype, device_mesh=mesh, placements=[Shard(0)]
        )
        local = local_shard(tensors[name])
        local.copy_(whole[name][begin : begin + len(local)])
    return tensors


def zeros_like(tensors):
    return {name: torch.zeros_like(tensor, device="cpu") for name, tensor in tensors.items()}


def assert_equal(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(local_shard(tensor), local_shard(expected[name])), name


def write(folder, num_ranks):
    for rank in range(num_ranks):
        with rank_of(rank, num_ranks) as mesh:
            host = HostCopy(is_main=rank == 0)
            host.update(placed(mesh, WHOLE))
            assert host.tensors.keys() == (WHOLE.keys() if rank == 0 else set(SHARDED))
            save_shards(shard_file(folder, rank, num_ranks), {"model": host})


@pytest.mark.parametrize("num_writers", [1, 2, 4])
def test_any_number_of_processes_reads_shards(tmp_path, num_writers):
    write(tmp_path, num_writers)
    saved = saved_tensors(tmp_path, "model")
    assert all(saved[name].shape == tensor.shape for name, tensor in WHOLE.items())
    tensors = zeros_like(saved)
    load_into(tensors, tmp_path, "model")
    assert_equal(tensors, WHOLE)
    for num_readers in (2, 3, 4):
        for rank in range(num_readers):
            with rank_of(rank, num_readers) as mesh:
                tensors = placed(mesh, zeros_like(WHOLE))
                load_into(tensors, tmp_path, "model")
                assert_equal(tensors, placed(mesh, WHOLE))


def test_a_file_of_whole_tensors_is_read_by_any_number_of_processes(tmp_path):
    write(tmp_path, 2)
    changed = {name: tensor + 1 for name, tensor in WHOLE.items()}
    save_tensors(tmp_path / "model.safetensors", changed)  # comes before shards of the group
    tensors = zeros_like(saved_tensors(tmp_path, "model"))
    load_into(tensors, tmp_path, "model")
    assert_equal(tensors, changed)
    with rank_of(1, 3) as mesh:
        tensors = placed(mesh, zeros_like(WHOLE))
        load_into(tensors, tmp_path, "model")
        assert_equal(tensors, placed(mesh, changed))


def test_copies_keep_their_values_and_their_memory():
    weight = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    host = HostCopy(is_main=True)
    host.update({"weight": weight, "step": torch.tensor(3)})
    first = host.tensors["weight"]
    assert first.is_contiguous()
    weight.add_(1)
    assert torch.equal(first, weight - 1)
    host.update({"weight": weight})
    assert torch.equal(first, weight)
    assert host.tensors == {"weight": first}, "an optimizer's state can be gone after going back"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_pytorch_reads_the_files(tmp_path):
    write(tmp_path, 2)
    expected = {f"model.{name}": tensor for name, tensor in WHOLE.items()}
    tensors = zeros_like(expected)
    checkpoint.load(
        tensors, storage_reader=checkpoint.HuggingFaceStorageReader(str(tmp_path / SHARDS))
    )
    assert_equal(tensors, expected)


def test_files_of_equal_shards_have_equal_bytes(tmp_path):
    """Also in runs of other processes, in which safetensors orders the metadata differently."""
    host = HostCopy(is_main=True)
    host.update(WHOLE)
    for index in range(20):
        path = shard_file(tmp_path / str(index), 0, 1)
        path.parent.parent.mkdir()
        save_shards(path, {"ünï": host})
    assert len({path.read_bytes() for path in tmp_path.rglob("*.safetensors")}) == 1
    assert saved_tensors(tmp_path / "0", "ünï").keys() == WHOLE.keys()


def test_files_that_are_not_whole_are_named(tmp_path):
    write(tmp_path, 2)
    check_headers(tmp_path)
    path = shard_file(tmp_path, 1, 2)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(OSError, match=r"shard-00001-of-00002.safetensors was not written whole"):
        check_headers(tmp_path)
    save_tensors(tmp_path / "ema.safetensors", WHOLE)
    (tmp_path / "ema.safetensors").write_bytes(b"damaged")
    for group, name in (("model", "shards"), ("ema", "ema.safetensors")):
        for read in (saved_tensors, lambda *group: load_into(zeros_like(WHOLE), *group)):
            with pytest.raises(
                DamagedError, match=f"{name}` must be a safetensors file.*Use another checkpoint"
            ):
                read(tmp_path, group)


def test_a_full_disk_raises_an_oserror(tmp_path):
    """A missing folder stands in for the full disk: safetensors raises the same."""
    path = tmp_path / "missing" / "random.safetensors"
    with pytest.raises(OSError, match=rf"cannot write weights to {path}: .*No such file"):
        save_tensors(path, {"weight": torch.zeros(2)})


def test_the_optimizer_of_another_number_of_processes_is_restored(tmp_path):
    for rank in range(2):
        with rank_of(rank, 2) as mesh:
            host = HostCopy(is_main=rank == 0)
            weight = placed(mesh, WHOLE)["weight"]
            one = torch.tensor(1.0)
            host.update(
                {"0.exp_avg": weight, "0.step": 3 * one, "1.exp_avg": 2 * one, "1.step": 3 * one}
            )
            save_shards(shard_file(tmp_path, rank, 2), {"optimizer": host})
    # PyTorch caches meshes with the rank, so this is one rank only.
    with rank_of(1, 5) as mesh:
        weight = nn.Parameter(zeros(10, 3, device_mesh=mesh, placements=[Shard(0)]))
        optimizer = torch.optim.AdamW([weight, nn.Parameter(torch.zeros(()))])
        load_optimizer(optimizer, tmp_path, "optimizer")
        sharded, scalar = (
            optimizer.state[parameter] for parameter in optimizer.param_groups[0]["params"]
        )
        assert isinstance(sharded["exp_avg"], DTensor)
        assert torch.equal(local_shard(sharded["exp_avg"]), WHOLE["weight"][2:4])
        assert sharded["step"].item() == 3
        assert scalar["exp_avg"].item() == 2


def test_the_random_state_of_a_rank_is_restored(monkeypatch):
    cpu = torch.device("cpu")
    states = random_states(cpu)
    assert list(states) == ["0.cpu"]
    first = torch.rand(4)
    set_random_state(states, 1, cpu)
    assert not torch.equal(torch.rand(4), first), "a rank without a state keeps its own"
    set_random_state(states, 0, cpu)
    assert torch.equal(torch.rand(4), first)

    restored = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *arguments: restored.append(arguments))
    states = {"0.cuda": torch.zeros(1), "1.cuda": torch.ones(1)}
    for rank in (1, 2):
        set_random_state(states, rank, torch.device("cuda"))
    set_random_state(states, 0, cpu)
    assert restored == [(states["1.cuda"], torch.device("cuda"))]
