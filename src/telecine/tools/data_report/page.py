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
from telecine.base.devices import in_gib
from telecine.base.files import mark_output, write_json, write_text
from telecine.data import Span
from telecine.data.source import RemotePath
from telecine.report.clips import at_one_rate, write_preview
from telecine.report.html import render_page
from telecine.tools.data_report.measures import DEFINITIONS
from telecine.tools.data_report.report import DataReport, SampledClip
from telecine.video.frames import shrink

_PAGE_FILE = "data.html"
_VIDEO_FILE = "clips.mp4"
_MAX_ROWS = 200  # files on the page; the JSON has all
# Pixels of the longer side: of a frame on the sheet, and of a clip in the video.
_SHEET_SIDE = 160
_VIDEO_SIDE = 192
_VIDEO_COLUMNS = 6
MAX_IN_VIDEO = 120
"""Most clips in the video: frames of H.264 have at most 16 384 rows."""


def write_data(report: DataReport, folder: Path) -> Path:
    """Write data.html, data.json, clips.mp4 and a list, if there are cuts or copies, into a folder; return the page."""
    mark_output(folder)
    write_json(folder / "data.json", report.as_dict())
    shown = report.clips[:MAX_IN_VIDEO]
    fastest = max(clip.fps for clip in shown)
    write_preview(folder / _VIDEO_FILE, lay_out_clips(shown), fastest)
    if report.scenes:
        _write_list(folder / "scenes.csv", report.scenes)
    if report.grouped:
        _write_list(folder / "grouped.csv", report.grouped)
    write_text(folder / _PAGE_FILE, render_data(report))
    return folder / _PAGE_FILE


def _write_list(path: Path, spans: Sequence[Span]) -> None:
    """Write parts of files as a list for `--data`, with their groups if they have any.

    No cell is a formula in a spreadsheet: a path is absolute and an address begins with its scheme.
    """
    header = ["path", "start_frame", "end_frame"]
    has_groups = any(span.group for span in spans)
    if has_groups:
        header.append("group")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    for span in spans:
        source = span.info.source
        name = str(Path(str(source)).absolute())
        if isinstance(source, RemotePath):
            name = source.url
        row = [name, span.first_frame, span.last_frame + 1]
        if has_groups:
            row.append(span.group)
        writer.writerow(row)
    write_text(path, text.getvalue())


def render_data(report: DataReport) -> str:
    """Return the page as HTML."""
    return render_page(
        "data.html",
        titles=[report.data],
        report=report,
        summary=summarize(report),
        clips=[_clip_figure(clip) for clip in report.clips],
        video=_VIDEO_FILE,
        definitions=DEFINITIONS,
        max_rows=_MAX_ROWS,
        max_in_video=MAX_IN_VIDEO,
    )


def summarize(report: DataReport) -> dict[str, str]:
    """Return the most important values about a data set, as text by name."""
    used = [row for row in report.files if row.is_used]
    num_images = sum(row.is_image for row in used)
    rows = {
        "files used": f"{count_files(len(used) - num_images, num_images)}, of {len(report.files)} files",
        "frames to train on": f"{report.num_train:,}",
        "frames held out": f"{report.num_held_out:,}",
        "clips read": str(len(report.clips)),
    }
    for kind in ("black", "static", "cut"):
        num_clips = sum(any(flaw.startswith(kind) for flaw in clip.flaws) for clip in report.clips)
        rows[f"{kind} among them"] = str(num_clips)
    rows["groups of copies"] = str(len(report.copies))
    rows["clips a core reads in a second"] = f"{report.clips_per_second:.3g}"
    rows["decoded, at the size of clips"] = in_gib(report.cache_bytes)
    return rows


def print_data(console: Console, report: DataReport) -> None:
    """Print the most important values about a data set, and the advice."""
    table = Table("data", Column(report.data, overflow="fold"))
    for name, value in summarize(report).items():
        table.add_row(name, value)
    console.print(table)
    for text in report.advice:
        console.print(text, soft_wrap=True)


def _clip_figure(clip: SampledClip) -> dict[str, Any]:
    """Return the first, middle and last frame of a clip as a JPEG, and what its caption says."""
    last = len(clip.frames) - 1
    positions = sorted({0, last // 2, last})
    frames = shrink(clip.frames[positions], _SHEET_SIDE)
    strip = torch.cat(list(frames), dim=1)
    jpeg = io.BytesIO()
    Image.fromarray(strip.numpy()).save(jpeg, "JPEG", quality=85)
    return {
        "jpeg": base64.b64encode(jpeg.getvalue()).decode("ascii"),
        "width": strip.shape[1],
        "height": strip.shape[0],
        "source": Path(clip.source).name,
        "shape": " x ".join(str(size) for size in clip.shape[:3]),
        "clip": clip,
    }


def lay_out_clips(clips: Sequence[SampledClip]) -> Tensor:
    """Return a grid of clips, each in the middle of its cell and at its own speed, uint8 `(T, H, W, 3)`."""
    small = [shrink(clip.frames, _VIDEO_SIDE) for clip in clips]
    videos = at_one_rate(small, [clip.fps for clip in clips])
    height = max(video.shape[1] for video in videos)
    width = max(video.shape[2] for video in videos)
    num_columns = min(_VIDEO_COLUMNS, len(videos))
    num_rows = -(-len(videos) // num_columns)
    sheet = torch.zeros(
        len(videos[0]), num_rows * height, num_columns * width, 3, dtype=torch.uint8
    )
    for index, video in enumerate(videos):
        row, column = divmod(index, num_columns)
        top = row * height + (height - video.shape[1]) // 2
        left = column * width + (width - video.shape[2]) // 2
        sheet[:, top : top + video.shape[1], left : left + video.shape[2]] = video
    return sheet
