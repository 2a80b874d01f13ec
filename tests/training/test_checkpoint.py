import shutil

import pytest
import torch
from torch import nn

from telecine.runs import BEST, CHECKPOINTS, STATE_FILE, checkpoints, find_checkpoint
from telecine.training.checkpoint_files import (
    load_optimizer,
    optimizer_tensors,
    random_states,
    save_tensors,
    set_random_state,
    write_checkpoint,
)


def write_state(folder):
    (folder / STATE_FILE).write_text("{}")
    (folder / "ema").mkdir()


def test_appears_under_its_step(tmp_path):
    folder = write_checkpoint(tmp_path, 7, write_state, keep=2)
    assert checkpoints(tmp_path) == [(7, folder)]
    assert find_checkpoint(tmp_path) == folder
    assert find_checkpoint(folder) == folder


def test_one_that_fails_half_way_never_appears_and_spares_the_old_one(tmp_path):
    old = write_checkpoint(tmp_path, 1, write_state, keep=2)

    def fail(folder):
        write_state(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, 2, fail, keep=2)
    assert checkpoints(tmp_path) == [(1, old)]
    assert write_checkpoint(tmp_path, 3, write_state, keep=2).is_dir()
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == ["step-00000001", "step-00000003"]


def test_a_folder_without_its_last_file_is_no_checkpoint(tmp_path):
    (tmp_path / CHECKPOINTS / "step-00000009").mkdir(parents=True)
    assert checkpoints(tmp_path) == []


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10, 3):
        write_checkpoint(tmp_path, step, write_state, keep=2)
    assert [step for step, _ in checkpoints(tmp_path)] == [3, 10]


def test_the_same_step_is_replaced(tmp_path):
    write_checkpoint(tmp_path, 1, write_state, keep=2)

    def write_more(folder):
        write_state(folder)
        (folder / "new").touch()

    assert (write_checkpoint(tmp_path, 1, write_more, keep=2) / "new").exists()
    assert len(checkpoints(tmp_path)) == 1


def test_a_replacement_that_fails_leaves_the_old_one_to_be_found(tmp_path, monkeypatch):
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


def test_an_optimizer_goes_on_bit_for_bit_with_new_settings(tmp_path):
    model, optimizer = trained(0, 3)
    save(optimizer, tmp_path / "optimizer.safetensors")
    other, restored = trained(0, 0)
    restored.param_groups[0]["weight_decay"] = 0.25
    other.load_state_dict(model.state_dict())
    load_optimizer(restored, tmp_path / "optimizer.safetensors")
    for network, opt in ((model, optimizer), (other, restored)):
        opt.zero_grad()
        network(torch.ones(2, 3)).square().sum().backward()
        opt.step()
    ours, theirs = optimizer.state_dict()["state"], restored.state_dict()["state"]
    assert len(ours) == 4
    for index, state in ours.items():
        assert all(torch.equal(state[name], theirs[index][name]) for name in ("step", "exp_avg"))
    assert restored.param_groups[0]["weight_decay"] == 0.25, "settings are the new run's"


def test_a_damaged_file_says_what_to_do(tmp_path):
    _, optimizer = trained(0, 1)
    path = tmp_path / "optimizer.safetensors"
    save(optimizer, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"optimizer.safetensors` must be a complete file.*Delete .*resumes from"):
        load_optimizer(optimizer, path)


def test_a_disk_that_takes_no_more_is_an_oserror(tmp_path):
    """A missing folder stands in for the full disk: safetensors raises the same."""
    path = tmp_path / "missing" / "random.safetensors"
    with pytest.raises(OSError, match=rf"cannot write weights to {path}: .*No such file"):
        save_tensors(path, {"weight": torch.zeros(2)})


def test_an_optimizer_that_never_stepped_is_restored_empty(tmp_path):
    _, optimizer = trained(0, 0)
    save(optimizer, tmp_path / "optimizer.safetensors")
    load_optimizer(trained(1, 2)[1], tmp_path / "optimizer.safetensors")
    _, restored = trained(1, 2)
    load_optimizer(restored, tmp_path / "optimizer.safetensors")
    assert restored.state_dict()["state"] == {}


def test_random_state_is_restored():
    cpu = torch.device("cpu")
    torch.manual_seed(3)
    states = random_states(cpu)
    assert list(states) == ["0.cpu"]
    first = torch.rand(4)
    torch.rand(5)
    set_random_state(states, 0, cpu)
    assert torch.equal(torch.rand(4), first)


def test_a_process_that_was_not_there_keeps_its_own_random_state():
    cpu = torch.device("cpu")
    states = random_states(cpu)
    torch.manual_seed(4)
    set_random_state(states, 1, cpu)
    after = torch.rand(4)
    torch.manual_seed(4)
    assert torch.equal(torch.rand(4), after)


def test_the_best_one_is_kept_and_led_to(tmp_path):
    write_checkpoint(tmp_path, 1, write_state, keep=1, best=1)
    for step in (2, 3):
        write_checkpoint(tmp_path, step, write_state, keep=1, best=1)
    assert [step for step, _ in checkpoints(tmp_path)] == [1, 3]
    assert (tmp_path / BEST).resolve() == checkpoints(tmp_path)[0][1].resolve()
    assert find_checkpoint(tmp_path / BEST) == tmp_path / BEST
    write_checkpoint(tmp_path, 4, write_state, keep=1, best=4)
    assert [step for step, _ in checkpoints(tmp_path)] == [4]
    assert (tmp_path / BEST).resolve() == checkpoints(tmp_path)[0][1].resolve()


def test_the_link_to_the_best_goes_where_none_is_asked_for(tmp_path):
    """It would lead nowhere once that checkpoint is old."""
    write_checkpoint(tmp_path, 1, write_state, keep=1, best=1)
    write_checkpoint(tmp_path, 2, write_state, keep=1)
    assert not (tmp_path / BEST).is_symlink()


def test_a_run_that_was_copied_without_links_gets_its_link_to_the_best_back(tmp_path):
    write_checkpoint(tmp_path / "run", 1, write_state, keep=1, best=1)
    shutil.copytree(tmp_path / "run", tmp_path / "copied")
    copied = tmp_path / "copied"
    assert not (copied / BEST).is_symlink()
    write_checkpoint(copied, 2, write_state, keep=1, best=2)
    assert (copied / BEST).resolve() == checkpoints(copied)[0][1].resolve()
    assert sorted(path.name for path in copied.iterdir()) == [BEST, CHECKPOINTS]
