"""Diagnostics of a run: each rule warns once, on the console, in `health.jsonl` and through `logging`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from telecine.files import atomic_write
from telecine.report.run import read_lines, read_records
from telecine.runs import HEALTH_FILE, METRICS_FILE
from telecine.training.config import TrainConfig
from telecine.training.diagnostic_rules import RULES, History

logger = logging.getLogger(__name__)
# Without a handler Python would also print warnings, which the console shows already, to standard error.
logger.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class DiagnosticWarning:
    """A line of `health.jsonl`."""

    step: int
    rule: str
    message: str
    remedy: str


class Diagnostics:
    """Checks the rules on each record of a run. Each rule warns once per run.

    Args:
        run: The run's folder, with the records up to `step` in its `metrics.jsonl`.
        config: The settings.
        console: Where to print warnings.
        step: Step at which the run starts or resumes. Warnings of later steps are dropped and may be given again.
        enabled: Whether this process checks; the records are the same on all processes.
    """

    def __init__(self, run: Path, config: TrainConfig, console: Console, *, step: int, enabled: bool) -> None:
        self.path = run / HEALTH_FILE
        self.config = config
        self.console = console
        self.enabled = enabled
        self.history = History()
        self.warned: set[str] = set()
        if enabled:
            self._restore(run, step)

    def check(self, step: int, record: Mapping[str, float]) -> None:
        """Add a record, and warn if a rule finds a failure for the first time."""
        if not self.enabled:
            return
        self.history.add(step, record)
        for rule in RULES:
            message = None if rule.name in self.warned else rule.check(self.history, self.config)
            if message is not None:
                self._warn(DiagnosticWarning(step, rule.name, message, rule.remedy))

    def _warn(self, warning: DiagnosticWarning) -> None:
        self.warned.add(warning.rule)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(warning)) + "\n")
        text = f"step {warning.step}: {warning.message} ({warning.rule}). {warning.remedy}"
        self.console.print(f"warning: {text}", markup=False)  # a list of frames is in brackets
        logger.warning("%s", text)

    def _restore(self, run: Path, step: int) -> None:
        """Read the records and warnings up to `step`, and write the warnings again.

        An empty file tells the report that nothing was found; without a file nothing was checked.
        """
        for record in read_records(run / METRICS_FILE):
            if record["step"] <= step:
                values = {name: value for name, value in record.items() if name.startswith("train/")}
                self.history.add(int(record["step"]), values)
        kept = [line for line in read_lines(self.path) if line["step"] <= step]
        self.warned = {line["rule"] for line in kept}
        text = "".join(json.dumps(line) + "\n" for line in kept)
        atomic_write(self.path, lambda partial: partial.write_text(text, encoding="utf-8"))
