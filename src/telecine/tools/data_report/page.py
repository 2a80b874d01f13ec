"""The page about a data set, in the look of the report, with its video and a JSON of all values."""

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from telecine.base.checks import count_files
from telecine.base.devices import gigabytes
from telecine.base.files import mark_output, write_json, write_text
from telecine.data import Span
from telecine.data.source import RemotePath
from telecine.report.clips import at_one_rate, write_preview
from telecine.report.html import render_page
from telecine.report.video import shrink
from telecine.tools.data_report.inspect import DEFINITIONS, DataReport, SampledClip

_PAGE_FILE = "data.html"
_VIDEO_FILE = "clips.mp4"
_MAX_ROWS = 200  # files on the page; the JSON has all
_SHEET_SIDE, _VIDEO_SIDE = 160, 192  # pixels of the longer side: of a frame on the sheet, and of a clip in the video
_VIDEO_COLUMNS = 6
_MAX_IN_VIDEO = 120  # clips: frames of H.264 have at most 16 384 rows


def write_data(report: DataReport, folder: Path) -> Path:
    """Write data.html, data.json, clips.mp4 and, if there are cuts, scenes.csv into a folder; return the page."""
    mark_output(folder)
    write_json(folder / "data.json", report.as_dict())
    shown = report.clips[:_MAX_IN_VIDEO]
    write_preview(folder / _VIDEO_FILE, _moving_sheet(shown), max(clip.fps for clip in shown))
    if report.scenes:
        _write_scenes(folder / "scenes.csv", report.scenes)
    write_text(folder / _PAGE_FILE, _render_data(report))
    return folder / _PAGE_FILE


def _write_scenes(path: Path, scenes: Sequence[Span]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "start_frame", "end_frame"])
    for scene in scenes:
        source = scene.info.path
        name = source.url if isinstance(source, RemotePath) else str(Path(str(source)).absolute())
        writer.writerow([name, scene.first_frame, scene.last_frame + 1])
    write_text(path, text.getvalue())


def _render_data(report: DataReport) -> str:
    figures = [_figure(clip) for clip in report.clips]
    values = {"summary": _summary(report), "clips": figures, "video": _VIDEO_FILE, "definitions": DEFINITIONS}
    limits = {"max_rows": _MAX_ROWS, "max_in_video": _MAX_IN_VIDEO}
    return render_page("data.html", titles=[report.data], report=report, **limits, **values)


def _summary(report: DataReport) -> list[tuple[str, str]]:
    is_image = [row.is_image for row in report.files if row.is_used]
    used = count_files(is_image.count(False), is_image.count(True))
    remarks = [word for clip in report.clips for word in {each.partition(" ")[0] for each in clip.remarks}]
    return [
        ("files used", f"{used}, of {len(report.files)} files"),
        ("frames to train on", f"{report.num_train:,}"),
        ("frames held out", f"{report.num_held_out:,}"),
        ("clips read", str(len(report.clips))),
        *((f"{word} among them", str(remarks.count(word))) for word in ("black", "static", "cut")),
        ("groups of copies", str(len(report.copies))),
        ("clips a core reads in a second", f"{report.clips_per_second:.3g}"),
        ("decoded, at the size of clips", gigabytes(report.cache_bytes)),
    ]


def print_data(console: Console, report: DataReport) -> None:
    """Print the most important values about a data set, and the advice."""
    table = Table("data", Column(report.data, overflow="fold"))
    for row in _summary(report):
        table.add_row(*row)
    console.print(table)
    for text in report.advice:
        console.print(text, soft_wrap=True)


def _figure(clip: SampledClip) -> dict[str, Any]:
    last = len(clip.frames) - 1
    strip = torch.cat(list(shrink(clip.frames[sorted({0, last // 2, last})], _SHEET_SIDE)), dim=1)
    text = io.BytesIO()
    Image.fromarray(strip.numpy()).save(text, "JPEG", quality=85)
    jpeg, shape = base64.b64encode(text.getvalue()).decode("ascii"), " x ".join(map(str, clip.shape[:3]))
    size = {"width": strip.shape[1], "height": strip.shape[0]}
    return {"jpeg": jpeg, **size, "source": Path(clip.source).name, "shape": shape, "clip": clip}


def _moving_sheet(clips: list[SampledClip]) -> Tensor:
    """Return a grid of clips, each at its own speed, uint8 `(T, H, W, 3)`."""
    small = at_one_rate([shrink(clip.frames, _VIDEO_SIDE) for clip in clips], [clip.fps for clip in clips])
    height, width = (max(clip.shape[axis] for clip in small) for axis in (1, 2))
    columns = min(_VIDEO_COLUMNS, len(small))
    num_rows = -(-len(small) // columns)
    sheet = torch.zeros(len(small[0]), num_rows * height, columns * width, 3, dtype=torch.uint8)
    for index, clip in enumerate(small):
        row, column = divmod(index, columns)
        top, left = row * height + (height - clip.shape[1]) // 2, column * width + (width - clip.shape[2]) // 2
        sheet[:, top : top + clip.shape[1], left : left + clip.shape[2]] = clip
    return sheet
