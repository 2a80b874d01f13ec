"""The commands of docs/reliability.md: the script for Slurm runs with stand-ins for its commands."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed import run

from telecine.cli.program import COMMANDS

PAGE = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text(encoding="utf-8")


STAND_INS = {
    # Ends as `torchrun` does: with 1 after a signal, at which its processes have saved.
    "srun": """trap 'echo saved > saved.txt; exit 1' TERM
        echo $$ > srun.pid
        echo "$@" > srun.txt
        for _ in $(seq {seconds}0); do sleep 0.1; done""",
    "scancel": 'test "$*" = "--signal=TERM 42" && kill -TERM "$(cat srun.pid)"',
    "scontrol": 'if [ "$1" = requeue ]; then echo "$2" > requeued.txt; else echo node1; echo node2; fi',
}


@pytest.mark.parametrize("is_signalled", [True, False])
def test_the_script_for_slurm_continues_what_a_signal_has_stopped(tmp_path, is_signalled):
    (script,) = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for name, text in STAND_INS.items():
        text = text.replace("{seconds}", "60" if is_signalled else "0")
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "42", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=environment) as job:
        if is_signalled:
            deadline = time.monotonic() + 30
            while not (tmp_path / "srun.txt").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            job.send_signal(signal.SIGUSR1)
    words = (tmp_path / "srun.txt").read_text().split()
    assert words[:5] == ["torchrun", "--nnodes", "2", "--nproc-per-node", "8"]
    assert words[words.index("--rdzv-endpoint") + 1] == "node1:29500"
    run.get_args_parser().parse_args(words[1:])
    assert (job.returncode == 0) != is_signalled
    assert (tmp_path / "saved.txt").exists() == is_signalled
    assert (tmp_path / "requeued.txt").exists() == is_signalled
    if is_signalled:
        assert (tmp_path / "requeued.txt").read_text() == "42\n"


def test_the_command_that_verifies_is_one_of_the_command_line():
    (line,) = re.findall(r"```\n(telecine .*?)\n```", PAGE)
    _, command, *words = shlex.split(line)
    assert COMMANDS[command].parse(words)[0]["action"] == "verify"
