"""Two processes that train together: `two_ranks.py FOLDER` trains with all FOLDER/NAME.yaml.

`NAME.2.yaml` stops after two steps, as if interrupted, and `NAME.yaml` trains up to the end. All runs share one process
group, and the processes are forked from one that has imported, since both take longer than training.
"""

import gc
import os
import runpy
import socket
import sys
from pathlib import Path

import torch
import torchmetrics  # noqa: F401  before the fork
from rich.console import Console
from torch import distributed as dist
from torch import multiprocessing

from telecine.objective import VideoAutoencoderLoss  # noqa: F401  before the fork
from telecine.training import Interrupted, trainer
from telecine.training.config_file import read_config
from telecine.training.interrupt import StopRequest

no_pictures = runpy.run_path(str(Path(__file__).with_name("no_pictures.py")))


class StopAfter:
    """Stops a trainer once it has done a number of updates; only the last process is asked to stop."""

    def __init__(self, trainer, num_steps):
        self.trainer, self.num_steps = trainer, num_steps

    @property
    def is_set(self):
        return self.trainer.state.step >= self.num_steps and dist.get_rank() == dist.get_world_size() - 1


def train(path):
    run = trainer.Trainer(read_config(path), Console(markup=False, highlight=False))
    _, *stop, _ = path.name.split(".")
    if not stop:
        run.run(StopRequest())
        return run.result()
    try:
        run.run(StopAfter(run, int(stop[0])))
    except Interrupted:
        return None
    raise AssertionError("it was not stopped")


def main(rank, folder, port):
    """Train with everything in a folder; the environment is that of `torchrun`."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    for path in sorted(folder.glob("*.yaml")):
        train(path)
        gc.collect()
    dist.destroy_process_group()


def free_port():
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return opened.getsockname()[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    no_pictures["leave_pictures_out"](setattr)
    gc.freeze()  # exclude the imported modules from the garbage collections after each run
    multiprocessing.start_processes(main, args=(Path(sys.argv[1]), free_port()), nprocs=2, start_method="fork")
