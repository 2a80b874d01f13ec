"""Processes find each other after a restart, and name the one that was lost. `tests/faults` kills real ones."""

import threading
import time
from datetime import timedelta

import pytest
import torch
from torch import distributed as dist

from telecine.training import process_group
from telecine.training.process_group import describe_lost, is_lost, open_store, process_group_settings


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
        (RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 900000ms for recv"), True),
        (RuntimeError("Gloo connectFullMesh failed with [...] Connection refused"), True),
        (dist.DistBackendError("NCCL error"), True),
        (dist.DistStoreError("wait timeout after 900000ms"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (torch.OutOfMemoryError("out of memory"), False),
    ],
)
def test_errors_that_say_that_another_process_is_lost(error, lost):
    assert is_lost(error) == lost


@pytest.fixture
def shared_store(monkeypatch):
    """Give all processes one store, as `torchrun` does, also after a restart."""
    store = dist.HashStore()
    monkeypatch.setattr(dist, "rendezvous", lambda url, timeout: iter([(store, 0, 2)]))
    return store


@pytest.mark.parametrize(("machines", "finds_old_keys"), [("1", False), ("2", True)])
def test_a_restart_has_keys_of_its_own_where_its_number_is_known_to_all(
    shared_store, monkeypatch, machines, finds_old_keys
):
    monkeypatch.setenv("GROUP_WORLD_SIZE", machines)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    open_store(timedelta(1)).set("address", "old")
    assert open_store(timedelta(1)).check(["address"]), "another connection of the same start"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert open_store(timedelta(1)).check(["address"]) == finds_old_keys


def test_without_torchrun_the_store_is_pytorchs(shared_store, monkeypatch):
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    assert open_store(timedelta(1)) is shared_store


def test_the_process_group_has_the_time_limit_and_the_store():
    settings = process_group_settings(90)
    assert settings.timeout == timedelta(seconds=90)
    assert settings.init_method == "telecine://"


@pytest.fixture
def three_ranks(shared_store, monkeypatch):
    """Return the store of three processes, of which this is the first."""
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(process_group, "num_ranks", lambda: 3)
    monkeypatch.setattr(process_group, "SECONDS_TO_ANSWER", 0.3)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    return shared_store


def answer_as(rank, monkeypatch):
    """Let the thread of a process answer, and wait until it has."""
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    process_group.answer_questions.cache_clear()
    process_group.answer_questions()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0, 1], "process 0 lost process 2 at step 7: it has ended, or does not answer. See what ended it, then run"),
        ([0], "process 0 lost process 1, 2 at step 7: it has ended, or does not answer. See what ended it, then run"),
        ([0, 1, 2], "process 0 waited 900 seconds at step 7 for another process, which runs, but did not take part."),
    ],
)
def test_the_processes_that_do_not_answer_are_named(three_ranks, monkeypatch, answer, message):
    for rank in answer:
        answer_as(rank, monkeypatch)
    described = describe_lost("at step 7", 900.0)
    assert described.startswith(message)
    assert described.endswith("run the same command again: it resumes from the newest checkpoint.")
    for thread in threading.enumerate():
        if thread.name == process_group.QUESTION:
            thread.join()


@pytest.mark.parametrize("is_stopped", [False, True])
@pytest.mark.parametrize(("by_torchrun", "lost"), [("True", "another process"), ("False", "process 0")])
def test_the_store_is_gone_with_torchrun_or_with_the_first_process(
    three_ranks, monkeypatch, by_torchrun, lost, is_stopped
):
    def fail(timeout):
        if is_stopped:  # connecting to a stopped process takes for ever
            time.sleep(2)
            return three_ranks
        raise dist.DistNetworkError("cannot connect")

    monkeypatch.setattr(process_group, "open_store", fail)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", by_torchrun)
    assert describe_lost("at step 7", 900.0).startswith(f"process 0 lost {lost} at step 7")
