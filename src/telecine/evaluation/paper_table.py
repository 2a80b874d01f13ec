"""A table of evaluations of the same clips, for a paper: LaTeX (booktabs) and Markdown."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from telecine.base.checks import argument_error
from telecine.base.files import atomic_write
from telecine.evaluation.compare import check_protocols
from telecine.evaluation.evaluate import Evaluation
from telecine.evaluation.protocol import better_values, describe_clips

# By which values of a metric are better: what stands behind its name, and a function that is smallest for the best.
_BETTER: dict[str, tuple[str, Callable[[float], float]]] = {
    "larger": ("↑", operator.neg),
    "smaller": ("↓", float),
    "nearest to 0": ("→ 0", abs),
    "nearest to 1": ("→ 1", lambda value: abs(value - 1)),
}
_LATEX = {each: f"\\{each}" for each in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\to$", "±": r"$\pm$"}


def make_table(folders: Sequence[str | Path], *, output: str | Path | None = None) -> str:
    """Return a table of evaluations, of their output folders, in Markdown. It has the metrics that all have.

    The best are bold. The spread is 1.96 standard errors of a mean over clips, from the variance between videos.
    `output` is a folder for table.md and table.tex, which needs the package booktabs.

    Raises:
        FileNotFoundError: A folder lacks a file of an evaluation.
        ValueError: There are fewer than two, or they did not measure the same clips in the same way.
    """
    if len(folders) < 2:
        got = " ".join(map(str, folders)) or "nothing"
        raise argument_error("compare", "two or more evaluations", got, "Pass their output folders.")
    protocols, means, clips = zip(*(Evaluation.read(Path(folder)) for folder in folders), strict=True)
    first, *others = protocols
    for protocol in others:
        check_protocols(first, protocol)
    spreads = [*map(_spread, clips)]
    columns = [["", *map(str, folders)]]
    for name in (name for name in first["metrics"] if all(name in protocol["metrics"] for protocol in protocols)):
        arrow, badness = _BETTER[better_values(first["metrics"][name])]
        cells = _cells([each[name] for each in means], [each.get(name) for each in spreads], badness)
        columns.append([f"{name} {arrow}", *cells])
    spread = ", ± 1.96 standard errors between videos" if any(spreads) else ""
    data = f"of {len({clip['source'] for clip in clips[0]})} videos in {first['data']}"
    caption = f"{describe_clips(first)}, {data}. Mean over clips{spread}; the best figures are bold."
    rows = [*zip(*columns, strict=True)]
    tables = {"table.md": _in_markdown(rows, caption), "table.tex": _in_latex(rows, caption)}
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        for name, text in tables.items():
            atomic_write(Path(output) / name, operator.methodcaller("write_text", f"{text}\n", encoding="utf-8"))
    return tables["table.md"]


def _in_markdown(rows: Sequence[Sequence[str]], caption: str) -> str:
    heading, *others = (f"| {' | '.join(cells)} |" for cells in rows)
    return "\n".join([heading, f"| --- {'| ---: ' * (len(rows[0]) - 1)}|", *others, "", caption])


def _in_latex(rows: Sequence[Sequence[str]], caption: str) -> str:
    heading, *others = (rf"{' & '.join(map(_escaped, cells))} \\" for cells in rows)
    head = [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(caption)}}}"]
    body = [rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", heading, r"\midrule", *others]
    return "\n".join([*head, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _escaped(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", "".join(_LATEX.get(each, each) for each in text))


def _cells(means: Sequence[float], spreads: Sequence[float | None], badness: Callable[[float], float]) -> list[str]:
    """Return the cells of a metric. Figures that are printed alike are the best together."""
    digits = 2 if any(abs(each) >= 10 for each in means) else 4
    texts = [f"{each:.{digits}f}" for each in means]
    best = min((badness(float(text)) for text in texts if text != "nan"), default=None)
    cells = [f"**{text}**" if badness(float(text)) == best else text for text in texts]
    pairs = zip(cells, spreads, strict=True)
    return [cell if spread is None else f"{cell} ± {spread:.{digits}f}" for cell, spread in pairs]


def _spread(clips: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return 1.96 standard errors of the mean of each metric over clips; nothing for a single video.

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
