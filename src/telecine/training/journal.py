"""What a run records of itself: `metrics.jsonl`, and the trackers' scalars and previews."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from telecine.files import write_aside
from telecine.report.records import read_records, validations
from telecine.report.trackers import log_preview
from telecine.runs import METRICS_FILE


class Journal:
    """Appends records to `metrics.jsonl` and passes them on to Accelerate's trackers.

    Args:
        run: The run's folder.
        accelerator: Its trackers must be initialised.
        step: Records of later steps, left by a run that was cut off after its last checkpoint, are dropped.
        interval: What was collected of the interval that a checkpoint lies in; see `interval`.
    """

    def __init__(
        self, run: Path, accelerator: Accelerator, *, step: int, interval: Mapping[str, tuple[float, int]] | None = None
    ) -> None:
        self.path = run / METRICS_FILE
        self.accelerator = accelerator
        self._interval = {name: (total, count) for name, (total, count) in (interval or {}).items()}
        if accelerator.is_main_process:
            kept = [record for record in read_records(self.path) if record["step"] <= step]
            text = "".join(json.dumps(record) + "\n" for record in kept)
            write_aside(self.path, lambda aside: aside.write_text(text, encoding="utf-8"))

    def collect(self, values: Mapping[str, float]) -> None:
        """Add the values of one update to the means of the current interval."""
        for name, value in values.items():
            total, count = self._interval.get(name, (0.0, 0))
            self._interval[name] = (total + value, count + 1)

    @property
    def interval(self) -> dict[str, tuple[float, int]]:
        """The sum and the number of the values of each name that were collected since the last time."""
        return dict(self._interval)

    def write_means(self, step: int, **extra: float) -> dict[str, float]:
        """Record the means of what was collected since the last time, and return them."""
        means = {name: total / count for name, (total, count) in self._interval.items()} | extra
        self.write(step, means)
        self._interval = {}
        return means

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step; only the first process does."""
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(dict(values), step=step)

    def preview(self, step: int, frames: Tensor, fps: float) -> None:
        """Show frames `(T, H, W, 3)`, uint8, as a moving picture in the trackers that can."""
        log_preview(self.accelerator.trackers, step, frames, fps)


def best_validation(records: list[dict[str, float]], metric: str) -> dict[str, float] | None:
    """Return the record of the best validation after the start by `metric`, the earliest of equals; None before one.

    The smallest value is the best of a distance, which `lpips` is in the name of, the largest of others. A value that
    is not finite is never the best.
    """
    name = f"val/{metric}"
    later = [record for record in validations(records) if record["step"] > 0 and math.isfinite(record[name])]
    sign = -1 if "lpips" in metric else 1
    return max(later, key=lambda record: sign * record[name], default=None)
