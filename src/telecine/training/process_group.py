"""The group of processes that train together: how it starts, how long they wait for each other, which one was lost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

from accelerate.utils import InitProcessGroupKwargs
from torch import distributed as dist

# The scheme of the URL by which the processes find each other, see `_rendezvous`.
SCHEME = "telecine"
# Keys by which a process asks all others whether they still run, and by which they answer.
QUESTION, ANSWER = "telecine/who_runs", "telecine/runs"
SECONDS_TO_ANSWER = 5.0
POLL_SECONDS = 0.1
FOREVER = timedelta(days=365)
# Gloo's errors about other processes are plain `RuntimeError`s. They begin with the source file, one of these folders.
LOST_MESSAGES = ("gloo/transport/", "gloo/rendezvous/", "Gloo connectFullMesh failed")


def num_ranks() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process; 0 if it trains alone."""
    return dist.get_rank() if num_ranks() > 1 else 0


@contextmanager
def barrier_without_time_limit() -> Iterator[Callable[[], None]]:
    """Yield a barrier for work of any length: the time limit of the process group does not hold for it.

    Every process has to enter the block. Signals are handled while it waits. If a process ends, the others get an error
    for which `is_lost` is true.
    """
    if num_ranks() == 1:
        yield lambda: None
        return
    group = dist.new_group(backend="gloo", timeout=FOREVER)

    def wait_for_everyone() -> None:
        work = dist.barrier(group, async_op=True)
        while not work.is_completed():  # in `work.wait()` Python cannot handle a signal
            time.sleep(POLL_SECONDS)
        work.wait()  # raises its error

    try:
        yield wait_for_everyone
    finally:
        dist.destroy_process_group(group)


def process_group_settings(timeout: float) -> InitProcessGroupKwargs:
    """Return how Accelerate starts the process group, if several processes were launched.

    Args:
        timeout: Seconds that a process waits for the others.
    """
    return InitProcessGroupKwargs(init_method=f"{SCHEME}://", timeout=timedelta(seconds=timeout))


def open_store(timeout: timedelta) -> dist.Store:
    """Connect to the key-value store of the processes, with keys of its own for each restart.

    From version 2.4 on, `torchrun` keeps the store of the processes that it has started before, and their addresses in
    it (https://github.com/pytorch/pytorch/issues/135712). The number of a restart is the same everywhere on one
    machine only; on several, `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` gives each restart a store of its own.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    is_one_machine = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return dist.PrefixStore(f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store) if is_one_machine else store


def _rendezvous(url: str, timeout: timedelta = FOREVER, **options: object) -> Iterator[tuple[dist.Store, int, int]]:
    """Do what PyTorch does for "env://", with the store of `open_store`."""
    yield open_store(timeout), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


if dist.is_available():
    dist.register_rendezvous_handler(SCHEME, _rendezvous)


def is_lost(error: RuntimeError) -> bool:
    """Return whether an error says that another process has ended or does not answer."""
    return isinstance(error, dist.DistError) or any(words in str(error) for words in LOST_MESSAGES)


@cache
def answer_questions() -> None:
    """Answer, in a thread, when another process asks which ones still run. One that is stopped cannot."""
    if num_ranks() == 1:
        return
    store, answer = open_store(FOREVER), f"{ANSWER}/{dist.get_rank()}"

    def wait_and_answer() -> None:
        try:
            store.wait([QUESTION], FOREVER)
            store.set(answer, "")
        except dist.DistError:
            return  # the store has ended, and with it the run

    threading.Thread(target=wait_and_answer, name=QUESTION, daemon=True).start()


def describe_lost(where: str, timeout: float) -> str:
    """Return which process was lost, and what to do, after an error for which `is_lost` is true."""
    again = "then run the same command again: it resumes from the newest checkpoint."
    silent = silent_ranks() if dist.is_initialized() else None
    this = f"process {os.environ['RANK']}"
    if silent == []:
        reason = f"waited {timeout:g} seconds {where} for another process, which runs, but did not take part"
        return f"{this} {reason}. See what it does, use a larger --process_timeout if it needs that long, {again}"
    lost = "another process" if silent is None else f"process {', '.join(map(str, silent))}"
    return f"{this} lost {lost} {where}: it has ended, or does not answer. See what ended it, {again}"


def silent_ranks() -> list[int] | None:
    """Ask all processes whether they still run, and return the ranks of those that do not answer.

    None means that they cannot be asked, because `torchrun`, which holds their store, has ended. Without it, the first
    process holds the store.
    """
    answers: list[list[int]] = []
    # In a thread: PyTorch has no time limit for the connection to a process that is stopped.
    thread = threading.Thread(target=_ask, args=(answers,), daemon=True)
    thread.start()
    thread.join(2 * SECONDS_TO_ANSWER)
    if answers:
        return answers[0]
    return None if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else [0]


def _ask(answers: list[list[int]]) -> None:
    """Append the ranks that do not answer; nothing if the store does not."""
    try:
        store = open_store(timedelta(seconds=SECONDS_TO_ANSWER))
        store.set(QUESTION, "")
        silent, end = list(range(num_ranks())), time.monotonic() + SECONDS_TO_ANSWER
        while silent and time.monotonic() < end:
            time.sleep(0.1)
            silent = [rank for rank in silent if not store.check([f"{ANSWER}/{rank}"])]
    except dist.DistError:
        return
    answers.append(silent)
