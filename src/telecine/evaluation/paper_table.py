"""A table of evaluations of the same clips, for a paper: LaTeX (booktabs) and Markdown."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from telecine.base.files import write_text
from telecine.evaluation.comparable import indices_of_videos, read_several, shared_metrics
from telecine.evaluation.evaluation_record import describe_clips
from telecine.evaluation.metrics.metric import DIRECTIONS, Better
from telecine.evaluation.speed import Speed

_LATEX = {
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\to$",
    "±": r"$\pm$",
}


def make_table(
    folders: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    speeds: Sequence[Speed] | None = None,
) -> str:
    """Return a table of evaluations in Markdown. It has the metrics that all have, and the best values are bold.

    The number behind "±" is 1.96 standard errors of a mean over clips, from the variance between videos.

    Args:
        folders: The output folders of two or more evaluations.
        output: A folder for table.md, and table.tex, which needs the package booktabs.
        speeds: The speed of each model, for further columns.

    Raises:
        FileNotFoundError: A folder lacks a file of an evaluation.
        ValueError: There are fewer than two, or they did not measure the same clips in the same way.
    """
    evaluations = read_several(folders)
    first = evaluations[0].protocol
    half_widths = [confidence_half_widths(evaluation.per_clip) for evaluation in evaluations]
    columns = [["", *[str(folder) for folder in folders]]]
    for name in shared_metrics(evaluations):
        means = [evaluation.metrics[name] for evaluation in evaluations]
        half_widths_of_metric = [half_width.get(name) for half_width in half_widths]
        columns.append(_column(name, means, first["better"][name], half_widths_of_metric))
    if speeds is not None:
        columns += _speed_columns(speeds)
    rows = list(zip(*columns, strict=True))
    half_width_text = ", ± 1.96 standard errors between videos" if any(half_widths) else ""
    num_videos = len({clip["source"] for clip in evaluations[0].per_clip})
    caption = (
        f"{describe_clips(first)}, of {num_videos} videos in {first['data']}. "
        f"Mean over clips{half_width_text}; the best values are bold."
    )
    markdown = _in_markdown(rows, caption)
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        write_text(Path(output) / "table.md", f"{markdown}\n")
        write_text(Path(output) / "table.tex", f"{in_latex(rows, caption)}\n")
    return markdown


def _column(
    name: str,
    means: Sequence[float],
    better: Better,
    half_widths: Sequence[float | None] | None = None,
) -> list[str]:
    """Return a column with its heading, see `table_cells`."""
    if half_widths is None:
        half_widths = [None] * len(means)
    heading = f"{name} {DIRECTIONS[better].arrow}"
    return [heading, *table_cells(means, half_widths, better)]


def _speed_columns(speeds: Sequence[Speed]) -> list[list[str]]:
    """Return the columns of speed, each with its heading."""
    columns = []
    for name in ("encode", "decode"):
        parts = [speed.parts[name] for speed in speeds]
        frames_per_second = [part.frames_per_second for part in parts]
        columns.append(_column(f"{name}, frames/s", frames_per_second, "larger"))
        columns.append(_column(f"{name}, GFLOP", [part.flops / 1e9 for part in parts], "smaller"))
        weights = [part.weights / 1e6 for part in parts]
        columns.append(_column(f"{name}, M weights", weights, "smaller"))
    return columns


def _in_markdown(rows: Sequence[Sequence[str]], caption: str) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    lines.insert(1, f"| --- {'| ---: ' * (len(rows[0]) - 1)}|")
    return "\n".join([*lines, "", caption])


def in_latex(rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return a table in LaTeX, whose first row is the heading; `**bold**` becomes bold."""
    lines = []
    for cells in rows:
        escaped = [_escaped(cell) for cell in cells]
        lines.append(rf"{' & '.join(escaped)} \\")
    heading, *others = lines
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}",
            r"\toprule",
            heading,
            r"\midrule",
            *others,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _escaped(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", escaped)


def table_cells(
    means: Sequence[float], half_widths: Sequence[float | None], better: Better
) -> list[str]:
    """Return the cells of a metric. Values that are printed alike are the best together.

    Args:
        means: The mean of each evaluation.
        half_widths: Those of the confidence intervals, which follow `±`; None without them.
        better: Which values are better.
    """
    direction = DIRECTIONS[better]
    digits = 2 if any(abs(mean) >= 10 for mean in means) else 4
    texts = [f"{mean:.{digits}f}" for mean in means]
    badness = [direction.badness(float(text)) for text in texts if text != "nan"]
    cells = []
    for text, half_width in zip(texts, half_widths, strict=True):
        cell = text
        if text != "nan" and direction.badness(float(text)) == min(badness):
            cell = f"**{text}**"
        if half_width is not None:
            cell = f"{cell} ± {half_width:.{digits}f}"
        cells.append(cell)
    return cells


def confidence_half_widths(clips: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return half the width of the 95 % confidence interval of each metric's mean: 1.96 standard errors.

    Nothing is returned for a single video.

    Clips of one video are alike: the variance is that between the sums of the deviations of each video's clips (Liang &
    Zeger, doi 10.1093/biomet/73.1.13).
    """
    names = [name for name in clips[0] if name not in ("source", "start")]
    values = torch.tensor([[clip[name] for name in names] for clip in clips], dtype=torch.float64)
    video_indices = indices_of_videos(clips)
    num_videos = int(video_indices.max()) + 1
    if num_videos == 1:
        return {}
    sums = values.new_zeros(num_videos, len(names)).index_add_(
        0, video_indices, values - values.mean(0)
    )
    errors = (num_videos / (num_videos - 1) * sums.square().sum(0)).sqrt() / len(clips)
    return dict(zip(names, (1.96 * errors).tolist(), strict=True))
