"""Diagnostics of a run: each rule warns once, on the console, in `health.jsonl` and through `logging`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from telecine.report.run import read_lines, read_records
from telecine.runs.layout import HEALTH_FILE, METRICS_FILE
from telecine.settings import TrainConfig
from telecine.training.diagnostic_rules import RULES, History
from telecine.training.records import write_lines
from telecine.training.rollback import Rollback

# The rule of the lines about rollbacks, which can be several in a run.
ROLLED_BACK = "rolled_back"

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
        run: The run's folder, with the records and warnings up to the step at which the run starts or resumes.
        config: The settings.
        console: Where to print warnings.
        enabled: Whether this process checks; the records are the same on all processes.
        rollbacks: How often the run went back after a divergence.
    """

    def __init__(
        self, run: Path, config: TrainConfig, console: Console, *, enabled: bool, rollbacks: Sequence[Rollback] = ()
    ) -> None:
        self.path = run / HEALTH_FILE
        self.config = config
        self.console = console
        self.enabled = enabled
        self.history = History()
        self.warned: set[str] = set()
        if enabled:
            self._restore(run, rollbacks)

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
        self.console.print(f"warning: {text}", markup=False, soft_wrap=True)  # a list of frames is in brackets
        logger.warning("%s", text)

    def _restore(self, run: Path, rollbacks: Sequence[Rollback]) -> None:
        """Read the records and warnings, and write the warnings again, with a line for each rollback.

        An empty file tells the report that nothing was found; without a file nothing was checked.
        """
        for record in read_records(run / METRICS_FILE):
            values = {name: value for name, value in record.items() if name.startswith("train/")}
            self.history.add(int(record["step"]), values)
        lines = [line for line in read_lines(self.path) if line["rule"] != ROLLED_BACK]
        self.warned = {line["rule"] for line in lines}
        lines += [asdict(rollback_warning(each, number)) for number, each in enumerate(rollbacks, 1)]
        write_lines(self.path, sorted(lines, key=lambda line: line["step"]))


def rollback_warning(rollback: Rollback, number: int) -> DiagnosticWarning:
    """Return the line for the rollback of this number, from 1."""
    remedy = "Lower `optimizer.lr` and `optimizer.disc_lr`, or the weight of that term."
    return DiagnosticWarning(rollback.to, ROLLED_BACK, rollback.describe(number), remedy)
