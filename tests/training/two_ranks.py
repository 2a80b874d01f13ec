"""Processes of `torchrun` that train together: `two_ranks.py FOLDER` trains with all FOLDER/NAME.pickle.

`rolled_back` has a checkpoint of step 2 of which the shard in the last process is not finite, once.
`NAME.2.pickle` stops after two steps, as if interrupted, and `NAME.pickle` trains up to the end. `NAME_resumed` trains
on in a copy of the finished run `NAME` without its last checkpoint. All runs share one process group, since starting
one takes longer than training.
"""

import pickle
import runpy
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import distributed as dist

from telecine.runs import Run, saved_settings
from telecine.training import Interrupted, records
from telecine.training.distributed import local_shard
from telecine.training.interrupt import StopRequest
from telecine.training.loop import train_to_the_end
from telecine.training.prepare import prepare
from telecine.training.run import finish

no_pictures = runpy.run_path(str(Path(__file__).with_name("no_pictures.py")))


def is_last():
    return dist.get_rank() == dist.get_world_size() - 1


class StopAfter:
    """Stops a trainer once it has done a number of updates; only the last process is asked to stop."""

    def __init__(self, trainer, num_steps):
        self.trainer = trainer
        self.num_steps = num_steps

    @property
    def is_set(self):
        return self.trainer.state.step >= self.num_steps and is_last()


class DivergeAfterOne:
    """Never stops a trainer, but after its first checkpoint one average is infinite in the last process, once."""

    def __init__(self, trainer):
        self.trainer = trainer

    @property
    def is_set(self):
        state = self.trainer.state
        if (
            state.step == self.trainer.checkpointer.saved_step == 1
            and not state.rollbacks
            and is_last()
        ):
            local_shard(next(iter(state.ema.averages.values()))).fill_(torch.inf)
        return False


def copy_without_last_checkpoint(run, folder):
    if dist.get_rank() == 0:
        shutil.copytree(run, folder, symlinks=True)
        shutil.rmtree(Run(folder).checkpoints.all()[-1][1])
    dist.barrier()


def train(path):
    config = pickle.loads(path.read_bytes())
    name, *stop, _ = path.name.split(".")
    if name.endswith("_resumed"):
        finished = path.with_name(name.removesuffix("_resumed"))
        copy_without_last_checkpoint(finished, Path(config.output_dir))
    run = prepare(config, Console(markup=False, highlight=False))
    try:
        if not stop:
            train_to_the_end(run, DivergeAfterOne(run) if name == "rolled_back" else StopRequest())
            return finish(run)
        with pytest.raises(Interrupted):
            train_to_the_end(run, StopAfter(run, int(stop[0])))
    finally:
        run.close()


if __name__ == "__main__":
    no_pictures["leave_pictures_out"](setattr)
    # All runs share what takes as long as an update, as in `conftest.py`.
    records.environment = cache(records.environment)
    saved_settings.parse_yaml = cache(saved_settings.parse_yaml)
    for path in sorted(Path(sys.argv[1]).glob("*.pickle")):
        train(path)
