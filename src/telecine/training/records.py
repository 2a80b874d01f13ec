"""What a run records while it trains: its values, its warnings, its summary, and what trackers get."""

from collections.abc import Mapping
from functools import partial

from accelerate import Accelerator
from rich.console import Console

from telecine.base.devices import peak_memory
from telecine.runs import Run
from telecine.runs.environment import environment
from telecine.runs.saved_settings import plain_settings, write_settings
from telecine.runs.summary import RunSummary
from telecine.settings import TrainConfig
from telecine.training.diagnostics import Diagnostics
from telecine.training.distributed import on_first_process
from telecine.training.logging import print_warnings
from telecine.training.state import TrainState
from telecine.training.trackers import drop_after, start_trackers


class Records:
    """The records of a run, in its folder and in its trackers. Only the first process writes them.

    Every process has to make one, and to call its methods.

    Args:
        config: The settings of the run.
        accelerator: The handle of the trackers.
        console: Where warnings are printed.
        summary: The size and the data of the run, with the time and the memory until this process started it.
        start_time: When this process started the run, in seconds of `time.monotonic()`.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        console: Console,
        summary: RunSummary,
        *,
        start_time: float,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.console = console
        self.files = Run(config.output_dir)
        self.summary = summary
        self.start_time = start_time
        self.diagnostics: Diagnostics | None = None

    def open(self, state: TrainState, *, has_summary: bool, is_resumed: bool) -> None:
        """Remove the records after the state's step, write what the run starts with, and start the trackers.

        Args:
            state: The state from which the run trains on.
            has_summary: Whether the folder has an intact summary, which is replaced at the first record.
            is_resumed: Whether the state comes from a checkpoint. Otherwise all earlier records are removed.
        """
        if self.accelerator.is_main_process:
            self.files.write_environment(environment(self.accelerator.device))
            # A finished run keeps the settings that it was trained with.
            if state.step < self.config.steps:
                write_settings(self.files.folder, self.config)
                if self.summary.validated_from > state.step:
                    text = "other held-out clips: earlier validations and the linear baseline no longer count"
                    print_warnings(self.console, [text])
            if not has_summary:
                self.files.write_summary(self.summary)
        resumed_at = state.step if is_resumed else None
        self._remove_after(-1 if resumed_at is None else resumed_at, state)
        start_all = partial(
            start_trackers,
            self.accelerator,
            plain_settings(self.config),
            self.files,
            resumed_at,
        )
        on_first_process(start_all, self.accelerator)

    def _remove_after(self, step: int, state: TrainState) -> None:
        """Remove the records after a step, and restart the diagnostics with the records that are left."""
        if self.accelerator.is_main_process:
            state.num_records, notes = self.files.cut(step, expected=state.num_records)
            print_warnings(self.console, notes)
            self.diagnostics = Diagnostics(self.files, self.config, self.console)
            self.diagnostics.rewrite_warnings(state.rollbacks)

    def go_back(self, state: TrainState) -> None:
        """Remove the records after the state's step, to which the run has gone back."""
        drop_after(state.step, self.accelerator.trackers)
        self._remove_after(state.step, state)

    def add(self, state: TrainState, values: Mapping[str, float]) -> None:
        """Record values at the state's step, and check them for signs of a failure."""
        if self.accelerator.is_main_process:
            assert self.diagnostics is not None
            self.files.history.append({"step": state.step, **values})
            self.accelerator.log(dict(values), step=state.step)
            self.diagnostics.check(state.step, values)
            self.files.write_summary(
                self.summary.until_now(self.start_time, peak_memory(self.accelerator.device))
            )
        state.num_records += 1
