"""The commands of docs/reliability.md: the script for Slurm runs with stand-ins for its commands."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from telecine.cli import command_parser

PAGE = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("code", "requeued"), [(130, True), (0, False), (2, False)])
def test_the_script_for_slurm_continues_what_a_signal_has_stopped(tmp_path, code, requeued):
    (script,) = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for name, text in {
        "srun": f'echo "$@" > srun.txt; exit {code}',
        "scontrol": 'echo "$@" > scontrol.txt',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == code
    assert (tmp_path / "srun.txt").read_text().startswith("telecine train --config gpu --data my_videos/")
    found = (tmp_path / "scontrol.txt").read_text() if (tmp_path / "scontrol.txt").exists() else None
    assert found == ("requeue 42\n" if requeued else None)


def test_the_command_that_verifies_is_one_of_the_command_line():
    (line,) = re.findall(r"```\n(telecine .*?)\n```", PAGE)
    _, command, *words = shlex.split(line)
    assert command_parser(command).parse_args(words).action == "verify"
