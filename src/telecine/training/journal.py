"""What a run records of itself: `metrics.jsonl`, and the trackers' scalars and previews."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from telecine.files import write_aside
from telecine.report.video import gif_bytes
from telecine.runs import METRICS_FILE

Record = dict[str, float]


class Journal:
    """Appends records to `metrics.jsonl` and passes them on to Accelerate's trackers.

    Args:
        run: The run's folder.
        accelerator: Its trackers must be initialised.
        step: Records of later steps, left by a run that was cut off after its last checkpoint, are dropped.
    """

    def __init__(self, run: Path, accelerator: Accelerator, *, step: int) -> None:
        self.path = run / METRICS_FILE
        self.accelerator = accelerator
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        kept = [record for record in read_records(self.path) if record["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        write_aside(self.path, lambda aside: aside.write_text(text, encoding="utf-8"))

    def collect(self, values: Mapping[str, float]) -> None:
        """Add the values of one update to the means of the current interval."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def write_means(self, step: int, **extra: float) -> None:
        """Record the means of what was collected since the last time."""
        self.write(step, {name: total / self._counts[name] for name, total in self._sums.items()} | extra)
        self._sums, self._counts = {}, {}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(dict(values), step=step)

    def preview(self, step: int, frames: Tensor, fps: float) -> None:
        """Show frames `(T, H, W, 3)`, uint8, as a moving picture in TensorBoard where that is a tracker."""
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                _add_gif(tracker.writer, "val/side_by_side", frames, fps, step)


def _add_gif(writer: Any, tag: str, frames: Tensor, fps: float, step: int) -> None:
    # `SummaryWriter.add_video` does nothing without moviepy; an image summary may hold any GIF.
    from tensorboard.compat.proto.summary_pb2 import Summary

    _, height, width, channels = frames.shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=gif_bytes(frames, fps))
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
    writer.flush()


def read_records(path: Path) -> list[Record]:
    """Return the records of a journal, oldest first; a last line that was cut off while it was written is dropped."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def validations(records: list[Record]) -> list[Record]:
    """Return the records of validations, oldest first."""
    return [record for record in records if "val/psnr" in record]
