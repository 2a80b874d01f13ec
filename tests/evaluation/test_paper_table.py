"""A table of several evaluations, in Markdown and LaTeX."""

import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from telecine.__main__ import main
from telecine.evaluation.paper_table import (
    confidence_half_widths,
    in_latex,
    make_table,
    table_cells,
)

from .evaluations import write_evaluation

MARKDOWN = """\
|  | psnr ↑ | lpips_alex ↓ | sharpness → 1 |
| --- | ---: | ---: | ---: |
| a_1 | 21.00 ± 1.96 | **0.1000** ± 0.0000 | 0.5000 ± 0.0000 |
| b | **31.00** ± 1.96 | 0.2000 ± 0.0000 | **1.4000** ± 0.0000 |
| c | **31.00** ± 1.96 | 0.3000 ± 0.0000 | 1.6000 ± 0.0000 |

4 clips, 5 frames of 32 x 48, of 2 videos in my_videos. Mean over clips, ± 1.96 standard errors between videos; \
the best values are bold.
"""


def write_figures(folder, psnr, lpips, sharpness, **fields):
    """Write an evaluation of two clips of each of two videos, whose PSNR differs by 2 dB."""
    clips = [
        {
            "source": f"{video}.mp4",
            "psnr": psnr + 2 * video,
            "lpips_alex": lpips,
            "sharpness": sharpness,
        }
        for video in (0, 0, 1, 1)
    ]
    size = {"data": "my_videos", "num_videos": 2, "num_frames": 5, "height": 32, "width": 48}
    write_evaluation(folder, clips, **size | fields)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_figures(tmp_path / "a_1", 20.0, 0.1, 0.5)
    write_figures(tmp_path / "b", 30.0, 0.2, 1.4)
    write_figures(tmp_path / "c", 30.0, 0.3, 1.6)
    return ["a_1", "b", "c"]


def test_the_command_writes_the_table(folders, capsys):
    assert f"{make_table(folders)}\n" == MARKDOWN
    assert main(["evaluate", "--compare", *folders, "-o", "out"]) == 0
    assert capsys.readouterr().out == f"{MARKDOWN}written to out\n"
    assert Path("out/table.md").read_text(encoding="utf-8") == MARKDOWN
    latex = Path("out/table.tex").read_text(encoding="utf-8")
    assert (
        r"a\_1 & 21.00 $\pm$ 1.96 & \textbf{0.1000} $\pm$ 0.0000 & 0.5000 $\pm$ 0.0000 \\"
        in latex.splitlines()
    )
    assert (
        r" & psnr $\uparrow$ & lpips\_alex $\downarrow$ & sharpness $\to$ 1 \\"
        in latex.splitlines()
    )
    assert r"\begin{tabular}{lrrr}" in latex
    assert r"of 2 videos in my\_videos. Mean over clips, $\pm$ 1.96 standard errors" in latex


def test_evaluations_that_do_not_compare_are_refused(folders, tmp_path, capsys):
    write_figures(tmp_path / "other", 30.0, 0.2, 1.4, height=64)
    with pytest.raises(ValueError, match="with the same protocol, but got height: 32 and 64"):
        make_table([*folders, "other"])
    assert main(["evaluate", "--compare", "b"]) == 2
    assert "`--compare` must be two or more evaluations, but got b." in capsys.readouterr().err


def test_clips_of_one_video_count_once():
    """Copies of a video's clips change nothing; one clip of each video has the standard error of the mean."""
    values = [1.0, 4.0, 2.0, 7.0]
    clips = [
        {"source": str(index), "start": 0, "psnr": value} for index, value in enumerate(values)
    ]
    alone = torch.tensor(values, dtype=torch.float64).std() / math.sqrt(len(values))
    assert confidence_half_widths(clips) == pytest.approx({"psnr": 1.96 * alone.item()})
    assert confidence_half_widths([clip for clip in clips for _ in range(5)]) == pytest.approx(
        confidence_half_widths(clips)
    )
    assert confidence_half_widths([clip | {"source": "one"} for clip in clips]) == {}


def test_table_cells():
    assert table_cells([30.004, math.nan, 30.001], [0.5, None, None], "larger") == [
        "**30.00** ± 0.50",
        "nan",
        "**30.00**",
    ]
    assert table_cells([math.nan, 30.0], [None, 0.5], "larger") == ["nan", "**30.00** ± 0.50"]
    assert table_cells([-0.2, 0.1], [None, None], "nearest to 0") == ["-0.2000", "**0.1000**"]
    assert table_cells([0.7, 1.2], [None, None], "nearest to 1") == ["0.7000", "**1.2000**"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path):
    table = in_latex([["", "psnr ↑"], ["a_1 & {50 %} ^~\\ #$", "**1** ± 0"]], "A caption → 1.")
    text = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{table}\n\\end{{document}}"
    (tmp_path / "table.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_every_special_character_is_escaped():
    table = in_latex([["", "psnr"]], "a_b & 5 % {x} #1 $ ^ ~ \\ **bold**")
    escaped = r"a\_b \& 5 \% \{x\} \#1 \$ \textasciicircum{} \textasciitilde{} \textbackslash{} \textbf{bold}"
    assert rf"\caption{{{escaped}}}" in table
