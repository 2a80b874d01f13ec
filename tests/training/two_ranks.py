"""One of two processes that train together: `torchrun two_ranks.py FOLDER` trains with all FOLDER/NAME.yaml.

`NAME.2.yaml` stops after two steps, as if interrupted, and `NAME.yaml` trains up to the end. All runs share one process
group, since starting one takes longer than training.
"""

import gc
import runpy
import sys
from pathlib import Path

import torch
from rich.console import Console
from torch import distributed as dist

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


def main(folder):
    no_pictures["leave_pictures_out"](setattr)
    gc.freeze()  # exclude the imported modules from the garbage collections after each run
    for path in sorted(folder.glob("*.yaml")):
        train(path)
        gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
