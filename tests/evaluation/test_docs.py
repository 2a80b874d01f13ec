"""The commands of docs/evaluation.md run, and the page describes every metric."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from telecine.__main__ import main
from telecine.evaluation.metrics import METRICS

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]
TINY = "--height 16 --width 16 --device cpu"
SMALL = {
    "evaluate": f"{TINY} --num_frames 5 --max_clips 2",
    # The Frechet distance of I3D's features needs more frames, and more clips than features.
    "--features": f"{TINY} --num_frames 13 --max_clips 5",
    "transnetv2": f"{TINY} --num_frames 5 --max_clips 1",
    "--chunk": "--num_frames 9 --height 32 --width 32 --max_clips 1 --device cpu --chunk 5 --tile 16",
    "reconstruct": "--device cpu",
}


@pytest.fixture
def folder(
    tmp_path, monkeypatch, model_folder, videos, reconstructions, fake_i3d, fake_lpips, no_plots
):
    """The current folder, with all files that the page names."""
    for name in ("small", "large"):
        shutil.copytree(model_folder, tmp_path / "runs" / name)
    shutil.copytree(videos, tmp_path / "other_videos")
    shutil.copytree(reconstructions["little"], tmp_path / "reconstructions")
    shutil.copy(videos / "one.mp4", tmp_path / "clip.mp4")
    shutil.copy(fake_i3d, tmp_path / "i3d_torchscript.pt")
    monkeypatch.setattr("telecine.evaluation.speed.MIN_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line):
    """Run one command of the page at a small size."""
    name, command, *words = shlex.split(line)
    assert name == "telecine"
    small = SMALL[
        next(
            (option for option in ("transnetv2", "--features", "--chunk") if option in words),
            command,
        )
    ]
    return main([command, *words, *([] if words[0] == "--compare" else small.split())])


@pytest.mark.slow
def test_the_commands_run(folder, capsys):
    launched = [
        line for line in COMMANDS if line.startswith("torchrun ")
    ]  # `test_evaluate.py` runs it
    assert (len(COMMANDS), len(launched)) == (18, 1)
    for line in [line for line in COMMANDS if line not in launched]:
        assert run(line) == 0, f"{line}\n{capsys.readouterr().err}"
    assert {path.name for path in (folder / "figures" / "difference").iterdir()} == {
        "comparison.json", "comparison.png", "comparison_frames.png", "table.md", "table.tex"
    }  # fmt: skip
    assert (folder / "out.mp4").is_file()
    assert (folder / "figures" / "speed" / "speed.html").is_file()


def test_the_page_describes_every_metric():
    assert [name for name in METRICS if f"`{name}`" not in PAGE] == []
