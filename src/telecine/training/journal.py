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
    """

    def __init__(self, run: Path, accelerator: Accelerator, *, step: int) -> None:
        self.path = run / METRICS_FILE
        self.accelerator = accelerator
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        if accelerator.is_main_process:
            kept = [record for record in read_records(self.path) if record["step"] <= step]
            text = "".join(json.dumps(record) + "\n" for record in kept)
            write_aside(self.path, lambda aside: aside.write_text(text, encoding="utf-8"))

    def collect(self, values: Mapping[str, float]) -> None:
        """Add the values of one update to the means of the current interval."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def write_means(self, step: int, **extra: float) -> dict[str, float]:
        """Record the means of what was collected since the last time, and return them."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()} | extra
        self.write(step, means)
        self._sums, self._counts = {}, {}
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
