"""A table of evaluations of the same clips, for a paper: LaTeX (booktabs) and Markdown."""

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from telecine.base.checks import argument_error
from telecine.base.files import atomic_write, read_json
from telecine.evaluation.compare import _check_protocols
from telecine.evaluation.evaluate import CLIPS_FILE, METRICS_FILE, PROTOCOL_FILE
from telecine.evaluation.protocol import describe_clips

# By which values of a metric are better: what stands behind its name, and a function that is smallest for the best.
_BETTER: dict[str, tuple[str, Callable[[float], float]]] = {
    "larger": ("↑", operator.neg),
    "smaller": ("↓", float),
    "nearest to 0": ("→ 0", abs),
    "nearest to 1": ("→ 1", lambda value: abs(value - 1)),
}
_LATEX = {each: f"\\{each}" for each in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\to$", "±": r"$\pm$"}


@dataclass(frozen=True)
class _PaperTable:
    """Rows of cells in Markdown, the first one the headings, and a caption that says what was measured."""

    rows: list[list[str]]
    caption: str

    def markdown(self) -> str:
        """Return the table in Markdown."""
        heading, *rows = (f"| {' | '.join(cells)} |\n" for cells in self.rows)
        return f"{heading}| --- {'| ---: ' * (len(self.rows[0]) - 1)}|\n{''.join(rows)}\n{self.caption}\n"

    def latex(self) -> str:
        """Return the table in LaTeX, which needs the package booktabs."""
        heading, *rows = (f"{' & '.join(map(_in_latex, cells))} \\\\\n" for cells in self.rows)
        columns = f"l{'r' * (len(self.rows[0]) - 1)}"
        return (
            f"\\begin{{table}}\n\\centering\n\\caption{{{_in_latex(self.caption)}}}\n\\begin{{tabular}}{{{columns}}}\n"
            f"\\toprule\n{heading}\\midrule\n{''.join(rows)}\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
        )

    def print_to(self, console: Console) -> None:
        """Print the table in Markdown."""
        for line in self.markdown().splitlines():
            console.print(line, soft_wrap=True)


def _in_latex(text: str) -> str:
    parts = "".join(_LATEX.get(character, character) for character in text).split("**")
    return "".join(rf"\textbf{{{part}}}" if index % 2 else part for index, part in enumerate(parts))


def make_table(folders: Sequence[str | Path], *, output: str | Path | None = None) -> _PaperTable:
    """Return a table of evaluations, of their output folders, in the metrics that all have; the best are bold.

    The spread is half of the 95 % interval of a mean over clips, from the variance between videos. `output` is a folder
    for table.tex and table.md.

    Raises:
        FileNotFoundError: A folder lacks a file of an evaluation.
        ValueError: There are fewer than two, or they did not measure the same clips in the same way.
    """
    if len(folders) < 2:
        got = " ".join(map(str, folders)) or "nothing"
        raise argument_error("compare", "two or more evaluations", got, "Pass their output folders.")
    first, *others = protocols = [read_json(Path(folder) / PROTOCOL_FILE) for folder in folders]
    for protocol in others:
        _check_protocols(first, protocol)
    means = [read_json(Path(folder) / METRICS_FILE) for folder in folders]
    spreads = [_spread(json.loads((Path(folder) / CLIPS_FILE).read_text(encoding="utf-8"))) for folder in folders]
    rows = [["", *map(str, folders)]]  # a row for each metric
    for name in (name for name in first["metrics"] if all(name in protocol["metrics"] for protocol in protocols)):
        arrow, badness = _BETTER[first["metrics"][name].rpartition("; ")[2].removesuffix(" is better")]
        cells = _cells([each[name] for each in means], [each.get(name) for each in spreads], badness)
        rows.append([f"{name} {arrow}", *cells])
    spread = ", ± half of its 95 % interval between videos" if any(spreads) else ""
    data = f"of {first['num_videos']} videos in {first['data']}"
    caption = f"{describe_clips(first)}, {data}. Mean over clips{spread}; the best figures are bold."
    table = _PaperTable([[*cells] for cells in zip(*rows, strict=True)], caption)
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        for name, text in (("table.tex", table.latex()), ("table.md", table.markdown())):
            atomic_write(Path(output) / name, operator.methodcaller("write_text", text, encoding="utf-8"))
    return table


def _cells(means: Sequence[float], spreads: Sequence[float | None], badness: Callable[[float], float]) -> list[str]:
    """Return the cells of a metric. Figures that are printed alike are the best together."""
    digits = 2 if max(map(abs, means)) >= 10 else 4
    texts = [f"{each:.{digits}f}" for each in means]
    best = min((badness(float(text)) for text in texts if text != "nan"), default=None)
    cells = [f"**{text}**" if badness(float(text)) == best else text for text in texts]
    errors = ["" if each is None else f" ± {each:.{digits}f}" for each in spreads]
    return [cell + error for cell, error in zip(cells, errors, strict=True)]


def _spread(clips: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return half of the 95 % interval of the mean of each metric over clips; nothing for a single video.

    Clips of one video are alike: the variance is that between the sums of the deviations of each video's clips (Liang &
    Zeger, doi 10.1093/biomet/73.1.13).
    """
    names = [name for name in clips[0] if name not in ("source", "start")]
    values = torch.tensor([[clip[name] for name in names] for clip in clips], dtype=torch.float64)
    videos = [*dict.fromkeys(clip["source"] for clip in clips)]
    if len(videos) == 1:
        return {}
    of_video = torch.tensor([videos.index(clip["source"]) for clip in clips])
    sums = values.new_zeros(len(videos), len(names)).index_add_(0, of_video, values - values.mean(0))
    errors = (len(videos) / (len(videos) - 1) * sums.square().sum(0)).sqrt() / len(clips)
    return dict(zip(names, (1.96 * errors).tolist(), strict=True))
