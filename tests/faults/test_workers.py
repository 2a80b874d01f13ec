"""Worker processes that crash, and processes that end before their workers."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
import torch

from telecine.data import (
    ClipBatchSampler,
    ClipDataset,
    ClipLoader,
    DataError,
    index_video,
    sample_videos,
    whole_video,
)
from telecine.settings import ClipConfig

pytestmark = [pytest.mark.slow, pytest.mark.faults]

CONFIG = ClipConfig(num_frames=5, height=32, width=40)


@pytest.fixture(scope="module")
def spans():
    return [whole_video(index_video(sample_videos()[0]))]


class Crashing(ClipDataset):
    """Kills the worker that reads a certain item, like a decoder that crashes."""

    def __getitem__(self, item):
        if item == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(item)


def test_workers_that_keep_dying_end_the_run(spans, caplog):
    dataset = Crashing(spans, replace(CONFIG, num_workers=1))
    batches = iter(ClipLoader(dataset, ClipBatchSampler(range(3), 1)))
    assert torch.equal(next(batches)["video"][0], dataset[0]["video"])
    message = (
        r"workers that failed 3 times in a row while reading step 1: .*Check \S+\.mp4: the decoder"
    )
    with pytest.raises(DataError, match=message):
        next(batches)
    assert (
        len(re.findall(r"while reading step 1, \S+\.mp4; restarting the workers", caplog.text)) == 2
    )


KILLED_PARENT = """
import multiprocessing, os, signal, sys
from telecine.data import ClipBatchSampler, ClipDataset, ClipLoader, index_video, whole_video
from telecine.settings import ClipConfig
config = ClipConfig(num_frames=5, height=32, width=40, num_workers=2)
dataset = ClipDataset([whole_video(index_video(sys.argv[1]))], config)
batches = iter(ClipLoader(dataset, ClipBatchSampler(range(100), 1)))
next(batches)
running, stopped = (worker.pid for worker in multiprocessing.active_children())
os.kill(stopped, signal.SIGSTOP)
print(running, stopped, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_parent(spans):
    command = [sys.executable, "-c", KILLED_PARENT, str(spans[0].info.source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.wait()
        gone, alive = psutil.wait_procs(workers, timeout=3)
        for worker in alive:
            worker.kill()
    assert (len(gone), alive) == (2, []), (
        "PyTorch's own workers look for their parent every 5 seconds"
    )


WITH_WORKERS = """
import os, signal, sys
from telecine.data import ClipBatchSampler, ClipDataset, ClipLoader, index_video, whole_video
from telecine.settings import ClipConfig
config = ClipConfig(num_frames=5, height=32, width=40, num_workers=2)
dataset = ClipDataset([whole_video(index_video(sys.argv[1]))], config)
for number, batch in enumerate(ClipLoader(dataset, ClipBatchSampler(range(6), 1))):
    if sys.argv[2] == "killed" and number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "stopped" and number == 4:
        sys.exit(143)
"""


@pytest.mark.parametrize("end", ["normal", "stopped", "killed"])
def test_workers_leave_nothing_in_the_temporary_folder(spans, tmp_path, end):
    """Tensors are handed over through sockets, whose names are files by default."""
    command = [sys.executable, "-c", WITH_WORKERS, str(spans[0].info.source), end]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, timeout=180, check=False)
    assert done.returncode == {"normal": 0, "stopped": 143, "killed": -signal.SIGKILL}[end]
    assert [path.name for path in tmp_path.iterdir()] == []


OPEN_LOADER = """
import sys
from telecine.data import ClipBatchSampler, ClipDataset, ClipLoader, index_video, whole_video
from telecine.settings import ClipConfig
config = ClipConfig(num_frames=5, height=32, width=40, num_workers=2)
dataset = ClipDataset([whole_video(index_video(sys.argv[1]))], config)
batches = iter(ClipLoader(dataset, ClipBatchSampler(range(100), 1)))
next(batches)
raise SystemError("with a loader that is still open")
"""


def test_an_error_with_an_open_loader_exits_the_process(spans):
    command = [sys.executable, "-c", OPEN_LOADER, str(spans[0].info.source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 1
    assert "SystemError: with a loader that is still open" in done.stderr
