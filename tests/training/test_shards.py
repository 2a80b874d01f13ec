"""Shards that some processes have written are read by any other number of processes, and by PyTorch's reader."""

from contextlib import contextmanager

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, zeros
from torch.testing._internal.distributed.fake_pg import FakeStore

from telecine.runs.layout import STATE_FILE
from telecine.runs.manifest import DamagedError, check_manifest
from telecine.training.checkpoint_files import (
    begin_checkpoint,
    finish_checkpoint,
    load_optimizer,
    save_tensors,
)
from telecine.training.distributed import local_shard
from telecine.training.host_copy import HostCopy
from telecine.training.shards import SHARDS, SavedTensors, save_shards, saved_tensors, shard_file

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
    saved_tensors(tmp_path, "model").copy_into(found, source=tmp_path)
    assert all(torch.equal(found[name], tensor) for name, tensor in WHOLE.items())
    for num_readers in (2, 3, 4):
        for rank in range(num_readers):
            with rank_of(rank, num_readers) as mesh:
                tensors = placed(mesh, {name: torch.zeros_like(tensor) for name, tensor in WHOLE.items()})
                saved_tensors(tmp_path, "model").copy_into(tensors, source=tmp_path)
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
    assert saved_tensors(tmp_path, "model").read("step").item() == 5


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
        load_optimizer(optimizer, saved_tensors(tmp_path, "optimizer"))
        sharded, scalar = (optimizer.state[parameter] for parameter in optimizer.param_groups[0]["params"])
        assert isinstance(sharded["exp_avg"], DTensor)
        assert torch.equal(local_shard(sharded["exp_avg"]), WHOLE["weight"][2:4])
        assert sharded["step"].item() == 3
        assert scalar["exp_avg"].item() == 2


def test_a_damaged_shard_is_named(tmp_path):
    folder = begin_checkpoint(tmp_path, 1)
    (folder / STATE_FILE).write_text("{}")
    write(folder, 2)
    folder = finish_checkpoint(tmp_path, 1, folder, keep=1)
    check_manifest(folder)
    path = shard_file(folder, 1, 2)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"shard-00001-of-00002.safetensors` must be as it was written"):
        check_manifest(folder)
    path.write_bytes(content[:20])
    with pytest.raises(DamagedError, match=r"shard-00001-of-00002.safetensors` must be a safetensors file"):
        SavedTensors([path])
