"""What a run shows while it trains: a progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from telecine.report.curves import psnr_of_mse

SECONDS_BETWEEN_LINES = 30.0
# Share of the newest update in the running mean of an update's duration.
NEWEST = 0.05


class Monitor:
    """Shows the numbers that matter of each update.

    Args:
        console: Where to.
        num_steps: Updates of the whole run.
        start: Updates done before.
        batch_size: Clips in an update.
    """

    def __init__(self, console: Console, *, num_steps: int, start: int, batch_size: int) -> None:
        self.console = console
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.clips_per_second = 0.0
        self._seconds = 0.0
        self._last_update = time.perf_counter()
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )
        self._task = self._progress.add_task("", total=num_steps, completed=start, numbers="")

    def __enter__(self) -> Monitor:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def rest(self) -> None:
        """Leave the time since the last update out of the speed: it went into a validation or a checkpoint."""
        self._last_update = time.perf_counter()

    def show(self, done: int, values: Mapping[str, float]) -> None:
        """Show the values of the update that was the `done`-th."""
        now = time.perf_counter()
        seconds, self._last_update = now - self._last_update, now
        self._seconds = seconds if self._seconds == 0 else (1 - NEWEST) * self._seconds + NEWEST * seconds
        self.clips_per_second = self.batch_size / self._seconds
        numbers = self._numbers(values)
        self._progress.update(self._task, completed=done, numbers=numbers)
        if not self.console.is_terminal and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = (self.num_steps - done) * self._seconds
            self.console.print(f"step {done}/{self.num_steps}  {numbers}  {left / 60:.1f} min left")

    def _numbers(self, values: Mapping[str, float]) -> str:
        psnr = psnr_of_mse(values["train/mse"])
        numbers = f"loss {values['train/total_loss']:.3f}  psnr {psnr:.1f} dB"
        numbers += f"  w {values['train/adaptive_weight']:.2f}" if values["train/adaptive_weight"] else ""
        return f"{numbers}  {self.clips_per_second:.1f} clips/s"
