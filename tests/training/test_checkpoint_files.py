import os
import shutil
import time

import pytest
import torch
from torch import nn

from telecine.runs.layout import BEST, CHECKPOINTS, STATE_FILE, checkpoints, find_checkpoint
from telecine.training.checkpoint_files import (
    begin_checkpoint,
    check_header,
    finish_checkpoint,
    load_optimizer,
    newest_intact,
    optimizer_tensors,
    random_states,
    save_tensors,
    set_random_state,
    tidy,
)
from telecine.training.shards import saved_tensors


def write_checkpoint(run, step, write, **options):
    folder = begin_checkpoint(run, step)
    write(folder)
    return finish_checkpoint(run, step, folder, **options)


def write_state(folder):
    (folder / STATE_FILE).write_text("{}")
    (folder / "ema").mkdir()


def test_a_checkpoint_appears_under_its_step(tmp_path):
    folder = write_checkpoint(tmp_path, 7, write_state, keep=2)
    assert checkpoints(tmp_path) == [(7, folder)]
    assert find_checkpoint(tmp_path) == folder
    assert find_checkpoint(folder) == folder


def test_a_checkpoint_that_fails_half_way_never_appears_and_keeps_the_old_one(tmp_path):
    old = write_checkpoint(tmp_path, 1, write_state, keep=2)

    def fail(folder):
        write_state(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, 2, fail, keep=2)
    assert checkpoints(tmp_path) == [(1, old)]
    assert write_checkpoint(tmp_path, 3, write_state, keep=2).is_dir()
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == ["step-00000001", "step-00000003"]


def test_a_folder_without_its_state_file_is_no_checkpoint(tmp_path):
    (tmp_path / CHECKPOINTS / "step-00000009").mkdir(parents=True)
    assert checkpoints(tmp_path) == []


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 10, 3):
        write_checkpoint(tmp_path, step, write_state, keep=2)
    assert [step for step, _ in checkpoints(tmp_path)] == [3, 10]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    write_checkpoint(tmp_path, 1, write_state, keep=2)

    def write_more(folder):
        write_state(folder)
        (folder / "new").touch()

    assert (write_checkpoint(tmp_path, 1, write_more, keep=2) / "new").exists()
    assert len(checkpoints(tmp_path)) == 1


def test_a_replacement_that_fails_keeps_the_old_checkpoint(tmp_path):
    old = write_checkpoint(tmp_path, 1, write_state, keep=1)
    (old / "old").touch()

    def fail(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 1, fail, keep=1)
    assert (old / "old").exists()
    assert checkpoints(tmp_path) == [(1, old)]


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
    load_optimizer(restored, saved_tensors(tmp_path, "optimizer"))
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
        load_optimizer(optimizer, saved_tensors(tmp_path, "optimizer"))


def test_a_full_disk_raises_an_oserror(tmp_path):
    """A missing folder stands in for the full disk: safetensors raises the same."""
    path = tmp_path / "missing" / "random.safetensors"
    with pytest.raises(OSError, match=rf"cannot write weights to {path}: .*No such file"):
        save_tensors(path, {"weight": torch.zeros(2)})


def test_an_optimizer_that_never_stepped_is_restored_without_state(tmp_path):
    _, optimizer = trained(0, 0)
    save(optimizer, tmp_path / "optimizer.safetensors")
    _, restored = trained(1, 2)
    load_optimizer(restored, saved_tensors(tmp_path, "optimizer"))
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


def test_the_best_checkpoint_is_kept_and_linked(tmp_path):
    write_checkpoint(tmp_path, 1, write_state, keep=1, best=1)
    for step in (2, 3):
        write_checkpoint(tmp_path, step, write_state, keep=1, best=1)
    assert [step for step, _ in checkpoints(tmp_path)] == [1, 3]
    assert (tmp_path / BEST).resolve() == checkpoints(tmp_path)[0][1].resolve()
    assert find_checkpoint(tmp_path / BEST) == tmp_path / BEST
    write_checkpoint(tmp_path, 4, write_state, keep=1, best=4)
    assert [step for step, _ in checkpoints(tmp_path)] == [4]
    assert (tmp_path / BEST).resolve() == checkpoints(tmp_path)[0][1].resolve()


def test_without_a_best_checkpoint_the_link_is_removed(tmp_path):
    """It would dangle once that checkpoint is deleted."""
    write_checkpoint(tmp_path, 1, write_state, keep=1, best=1)
    write_checkpoint(tmp_path, 2, write_state, keep=1)
    assert not (tmp_path / BEST).is_symlink()


def test_a_folder_in_place_of_the_link_to_the_best_is_replaced(tmp_path):
    write_checkpoint(tmp_path / "run", 1, write_state, keep=1, best=1)
    shutil.copytree(tmp_path / "run", tmp_path / "copied")
    copied = tmp_path / "copied"
    assert not (copied / BEST).is_symlink()
    write_checkpoint(copied, 2, write_state, keep=1, best=2)
    assert (copied / BEST).resolve() == checkpoints(copied)[0][1].resolve()
    assert sorted(path.name for path in copied.iterdir()) == [BEST, CHECKPOINTS]


def test_what_an_interrupted_deletion_left_is_removed(tmp_path):
    write_checkpoint(tmp_path, 1, write_state, keep=1)
    (tmp_path / CHECKPOINTS / ".step-00000001.deleted" / "ema").mkdir(parents=True)
    (tmp_path / ".best.deleted").mkdir()
    (tmp_path / BEST).mkdir()
    write_checkpoint(tmp_path, 2, write_state, keep=1, best=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEST, CHECKPOINTS]
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step-00000002"]


def flip_a_bit(path):
    """Change one bit in the middle of a file, which keeps its size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_tensors(folder):
    write_state(folder)
    save_tensors(folder / "optimizer.safetensors", {"weight": torch.zeros(8)})


def test_the_newest_intact_checkpoint_is_used_and_damaged_ones_are_kept_aside(tmp_path):
    folders = [write_checkpoint(tmp_path, step, write_tensors, keep=4) for step in (1, 2, 3)]
    assert newest_intact(tmp_path) == (folders[2], [])
    for folder in folders[1:]:
        flip_a_bit(folder / "optimizer.safetensors")
    found, notes = newest_intact(tmp_path)
    assert found == folders[0]
    assert len(notes) == 2
    for folder, note in zip(folders[:0:-1], notes, strict=True):
        aside = folder.with_name(f"damaged-{folder.name}")
        assert f"{folder}/optimizer.safetensors` must be as it was written" in note
        assert note.endswith(f"It is now {aside}.")
        assert (aside / "optimizer.safetensors").is_file()
    assert newest_intact(tmp_path) == (folders[0], [])


def test_without_an_intact_checkpoint_nothing_is_moved(tmp_path):
    folder = write_checkpoint(tmp_path, 1, write_tensors, keep=4)
    (folder / STATE_FILE).unlink()
    with pytest.raises(ValueError, match=rf"No checkpoint of {tmp_path} is intact.*state.json.*a missing one.*move"):
        newest_intact(tmp_path)
    assert folder.is_dir()


def test_a_second_damaged_checkpoint_of_a_step_gets_another_name(tmp_path):
    for number in (0, 1):
        write_checkpoint(tmp_path, 1, write_tensors, keep=4)
        flip_a_bit(write_checkpoint(tmp_path, 2, write_tensors, keep=4) / "optimizer.safetensors")
        newest_intact(tmp_path)
        aside = [path.name for path in (tmp_path / CHECKPOINTS).glob("damaged-*")]
        assert sorted(aside) == ["damaged-step-00000002", "damaged-step-00000002-1"][: number + 1]


def test_a_file_that_was_not_written_whole_is_no_checkpoint(tmp_path):
    old = write_checkpoint(tmp_path, 1, write_tensors, keep=1)

    def write_half(folder):
        write_tensors(folder)
        path = folder / "optimizer.safetensors"
        path.write_bytes(path.read_bytes()[:-4])

    with pytest.raises(OSError, match=r"optimizer.safetensors was not written whole"):
        write_checkpoint(tmp_path, 2, write_half, keep=1)
    assert checkpoints(tmp_path) == [(1, old)]


def test_the_header_of_a_whole_file_is_accepted(tmp_path):
    save_tensors(tmp_path / "weights.safetensors", {"weight": torch.zeros(8)})
    check_header(tmp_path / "weights.safetensors")


def test_what_interrupted_writes_left_is_removed(tmp_path):
    write_checkpoint(tmp_path, 1, write_state, keep=1)
    for name, age in ((".curves.png.1234.partial", 7200), (".report.html.5678.partial", 0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    for step, name in ((1, "clips.json"), (2, "clip.mp4")):
        (tmp_path / "validation" / f"step-{step:08d}").mkdir(parents=True)
        (tmp_path / "validation" / f"step-{step:08d}" / name).touch()
    (tmp_path / "validation" / ".DS_Store").touch()
    tidy(tmp_path, keep=1, best=1)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".report.html.5678.partial", BEST, CHECKPOINTS, "validation"], "a report may be being written"
    left = sorted(path.name for path in (tmp_path / "validation").iterdir())
    assert left == [".DS_Store", "step-00000001"], "files of others stay"


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_state_tensor_of_a_scalar_parameter_is_restored(tmp_path, shape):
    weight = nn.Parameter(torch.ones(shape))
    optimizer = torch.optim.AdamW([weight])
    weight.square().sum().backward()
    optimizer.step()
    save(optimizer, tmp_path / "optimizer.safetensors")
    restored = torch.optim.AdamW([weight])
    load_optimizer(restored, saved_tensors(tmp_path, "optimizer"))
    ours, theirs = optimizer.state[weight], restored.state[weight]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_file_is_flushed_and_closed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)

    def lowest_free_descriptor():
        descriptor = os.open(tmp_path, os.O_RDONLY)
        os.close(descriptor)
        return descriptor

    before = lowest_free_descriptor()
    write_checkpoint(tmp_path, 1, write_state, keep=1)
    assert len(flushed) == 4 + 2, "two files, a folder, that of the checkpoint; then those in which it was renamed"
    assert lowest_free_descriptor() == before


def test_the_random_state_of_a_gpu_is_restored(monkeypatch):
    restored = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *arguments: restored.append(arguments))
    states = {"0.cuda": torch.zeros(1), "1.cuda": torch.ones(1)}
    for rank in (1, 2):
        set_random_state(states, rank, torch.device("cuda"))
    set_random_state(states, 0, torch.device("cpu"))
    assert restored == [(states["1.cuda"], torch.device("cuda"))]
