"""What a run logs while it trains: means over updates, shares of the gradient, and progress on the console."""

import time
from collections.abc import Callable, Iterable, Mapping

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from torch import Tensor

from telecine.base.logged_values import TRAIN, TRAIN_LPIPS, TRAIN_PSNR, logged_by
from telecine.base.terminal import SECONDS_BETWEEN_LINES, NotebookBar, describe_duration
from telecine.losses.reconstruction import psnr_of_mse
from telecine.objective.log import name_error
from telecine.runs.history import History

ADVERSARIAL_SHARE = "train/adversarial_gradient_share"
# With fewer columns than this, the bar has the most important numbers only.
_WIDE = 110
# Weight of the newest update in the moving average of the time that an update takes.
_NEWEST_WEIGHT = 0.05


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines, which the console does not wrap."""
    for line in lines:
        console.print(line, soft_wrap=True)


def print_warnings(console: Console, warnings: Iterable[str]) -> None:
    """Print a line for each warning."""
    for warning in warnings:
        console.print(f"warning: {warning}", soft_wrap=True)


def describe_metrics(metrics: Mapping[str, float]) -> str:
    """Return the names and values of metrics in one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def check_names_in_training(aux_losses: Iterable[str]) -> None:
    """Check that no auxiliary loss has the name of a value that training logs beside the objective's.

    Those that a report computes from logged values count, too.

    Raises:
        ValueError: One has.
    """
    for name in aux_losses:
        key = f"{TRAIN}{name}"
        is_of_frame = History.frame_of(key) is not None
        is_of_report = key == TRAIN_PSNR or key.startswith(TRAIN_LPIPS)
        if logged_by(name) == "training" or is_of_frame or is_of_report:
            raise name_error(name)


class IntervalMeans:
    """Means of the logged values over the updates since the last record; a checkpoint may have saved their `sums`."""

    def __init__(self, sums: Mapping[str, tuple[float, int]] | None = None) -> None:
        self.sums: dict[str, tuple[float, int]] = {}
        for name, (total, count) in (sums or {}).items():
            self.sums[name] = (total, count)

    def add(self, values: Mapping[str, float]) -> None:
        """Add the values of one update. Not every update needs to have every value."""
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)

    def pop(self) -> dict[str, float]:
        """Return the mean of each value, and start the next interval."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        return means


class Monitor:
    """Shows progress: a bar on a terminal and in a notebook, otherwise a line every `SECONDS_BETWEEN_LINES`.

    Args:
        console: Where progress is shown.
        num_steps: The number of updates of the run.
        start: The number of updates that were done before.
        batch_size: The number of clips in an update, over all processes.
    """

    def __init__(self, console: Console, *, num_steps: int, start: int, batch_size: int) -> None:
        self.console = console
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.clips_per_second = 0.0
        self._seconds = 0.0  # of an update, as a moving average
        self._last_update = time.perf_counter()
        self._last_line = time.monotonic()
        columns: list[ProgressColumn] = [
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[numbers]}"),
        ]
        if console.width >= _WIDE:
            columns.append(TimeElapsedColumn())
        columns += [TextColumn("{task.fields[left]}"), BarColumn(bar_width=None)]
        self._progress = Progress(
            *columns, console=console, disable=not console.is_terminal, expand=True
        )
        self._task = self._progress.add_task(
            "", total=num_steps, completed=start, numbers="", left=""
        )
        self._notebook_bar = NotebookBar(num_steps) if console.is_jupyter else None

    def __enter__(self) -> "Monitor":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._progress.disable:  # older releases of Rich would print an empty line
            self._progress.stop()

    def restart_clock(self) -> None:
        """Exclude the time since the last update, which validation or a checkpoint took, from the speed."""
        self._last_update = time.perf_counter()

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of the latest update; `step` updates are done."""
        now = time.perf_counter()
        seconds = now - self._last_update
        self._last_update = now
        is_first = self._seconds == 0
        self._seconds += (1.0 if is_first else _NEWEST_WEIGHT) * (seconds - self._seconds)
        self.clips_per_second = self.batch_size / self._seconds
        numbers = self._numbers(values)
        left = f"{describe_duration((self.num_steps - step) * self._seconds)} left"
        self._progress.update(self._task, completed=step, numbers=numbers, left=left)
        if self._notebook_bar is not None:
            self._notebook_bar.show(step, f"{numbers}  {left}")
            return
        time_since_line = time.monotonic() - self._last_line
        if not self.console.is_terminal and time_since_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.console.print(f"step {step}/{self.num_steps}  {numbers}  {left}")

    def _numbers(self, values: Mapping[str, float]) -> str:
        psnr = psnr_of_mse(torch.tensor(values["train/mse"])).item()
        numbers = f"loss {values['train/total_loss']:.3f}  psnr {psnr:.1f} dB"
        if self.console.is_terminal and self.console.width < _WIDE:
            return numbers
        if values["train/adaptive_weight"]:
            numbers += f"  w {values['train/adaptive_weight']:.2f}"
        return f"{numbers}  {self.clips_per_second:.1f} clips/s"


def is_share_of_gradient(name: str) -> bool:
    """Return whether `ReconstructionGradient` logs a value; a gradient of 0 has no shares, which are then NaN."""
    return name == ADVERSARIAL_SHARE or History.frame_of(name) is not None


class ReconstructionGradient:
    """Measures the gradient at a reconstruction `(B, C, T, H, W)`: the share of each frame, and of the discriminators.

    It is measured in the backward of an update, without a host sync.
    """

    def __init__(self) -> None:
        self._log: dict[str, Tensor] = {}
        self._adversarial: Tensor | None = None

    def keep_adversarial(self, gradient: Tensor) -> None:
        """Keep the part of the gradient that the discriminators cause: the `grad_hook` of the objective."""
        self._adversarial = gradient.detach()

    def measure(
        self,
        reconstruction: Tensor,
        losses: Iterable[Tensor],
        backward: Callable[[Tensor], object],
    ) -> dict[str, Tensor]:
        """Run the backward of each loss, and return the log of the gradient at the reconstruction.

        Args:
            reconstruction: The video, with its graph.
            losses: Scalars; one of them depends on the reconstruction.
            backward: Runs a backward, as `torch.Tensor.backward` does.
        """
        with reconstruction.register_hook(self._measure):
            for loss in losses:
                backward(loss)
        return self._log

    @torch.no_grad()
    def _measure(self, gradient: Tensor) -> None:
        norms = _frame_norms(gradient)
        if len(norms) > 1:
            for frame, share in enumerate(norms / norms.mean()):
                self._log[History.gradient_of_frame(frame)] = share
        if self._adversarial is not None:
            adversarial = _frame_norms(self._adversarial).norm()
            rest = _frame_norms(gradient.float() - self._adversarial.float()).norm()
            self._log[ADVERSARIAL_SHARE] = adversarial / (adversarial + rest)


def _frame_norms(gradient: Tensor) -> Tensor:
    """Return the 2-norm of each frame of a gradient `(B, C, T, H, W)`, in float32, `(T,)`."""
    return torch.linalg.vector_norm(gradient.detach().float(), dim=(0, 1, 3, 4))
