"""The command line, whose last process is killed once, when it would write its shard of step 2."""

import os
import runpy
import signal
from pathlib import Path

from torch import distributed as dist

from telecine.training import tensor_files
from telecine.training.tensor_files import save_shards


def save_or_die(path, groups):
    """Write the shards, or be killed."""
    is_last = dist.get_rank() == dist.get_world_size() - 1
    if (
        ".step-00000002." in str(path)
        and is_last
        and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    ):
        os.kill(os.getpid(), signal.SIGKILL)
    save_shards(path, groups)


tensor_files.save_shards = save_or_die
runpy.run_path(str(Path(__file__).parents[1] / "training" / "no_pictures.py"), run_name="__main__")
