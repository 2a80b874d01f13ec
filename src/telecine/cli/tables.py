"""The tables that commands print."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table

from telecine.base.devices import gigabytes
from telecine.data_report.inspect import DataReport
from telecine.data_report.page import data_summary
from telecine.evaluation.compare import CONFIDENCE, Comparison
from telecine.evaluation.evaluate import Evaluation
from telecine.evaluation.latents import LatentReport
from telecine.objective.weights import WeightSchedule
from telecine.perceptual import weights
from telecine.settings import ObjectiveConfig
from telecine.training import TrainResult
from telecine.training.planning.capacity import USED_FRACTION, Plan
from telecine.training.planning.update import HOST_COPY
from telecine.training.run import DryRun


def print_result(console: Console, result: TrainResult) -> None:
    """Print the metrics before and after, and the files of a run."""
    table = Table("held-out clips", "before", "after", title="training finished")
    for name, before in result.first.items():
        table.add_row(name, f"{before:.4f}", f"{result.last[name]:.4f}")
    console.print(table)
    for name, path in result.files().items():
        console.print(f"{name:<13} {path}", soft_wrap=True)


def print_dry_run(console: Console, tried: DryRun, objective: ObjectiveConfig, *, num_steps: int) -> None:
    """Print the time, the memory and the losses of the update of a dry run, and the time of `num_steps` updates."""
    table = Table("dry run", f"an update of step {tried.step}", title="nothing was kept")
    table.add_row("seconds", f"{tried.seconds:.3g}")
    if tried.peak_memory is not None:
        table.add_row("memory at the peak", gigabytes(tried.peak_memory))
    for name, value in tried.values.items():
        if name.endswith("_loss"):
            table.add_row(name.removeprefix("train/"), f"{value:.4g}")
    console.print(table)
    if off := WeightSchedule(objective).off_at(tried.step):
        console.print(f"not on in this update: {', '.join(off)}", soft_wrap=True)
    else:
        console.print("every term is on in this update")
    hours = tried.seconds * num_steps / 3600
    console.print(f"{num_steps} such updates take {hours:.2g} hours; the first one of a process is the slowest")


def print_data(console: Console, report: DataReport) -> None:
    """Print the most important values about a data set, and the advice."""
    table = Table("data", Column(report.data, overflow="fold"))
    for name, value in data_summary(report):
        table.add_row(name, value)
    console.print(table)
    for text in report.advice:
        console.print(text, soft_wrap=True)


def print_plan(console: Console, plan: Plan) -> None:
    """Print the bytes of each part, the time, and the largest batches."""
    update = plan.update
    table = Table("part", "resident", "at the peak", "at most", title=f"memory of a process, {plan.title}")
    for part, most in sorted(update.largest.items(), key=lambda item: -item[1]):
        cells = (update.held.get(part, 0), update.at_peak.get(part, 0), most)
        table.add_row(part, *(gigabytes(size) if size else "" for size in cells))
    table.add_row("all", gigabytes(update.resident), gigabytes(update.peak), "", style="bold")
    console.print(table)
    if HOST_COPY not in update.held:
        host = f"memory of the first process' host: {gigabytes(update.checkpoint)} for the {HOST_COPY}"
        console.print(host, soft_wrap=True)
    console.print(plan.speed.describe(), soft_wrap=True)
    if update.peak > plan.memory * USED_FRACTION:
        console.print("With these settings an update does not fit. What does:", style="bold", soft_wrap=True)
    usable = f"{gigabytes(plan.memory)}, of which {USED_FRACTION:.0%} are used"
    columns = (Column("settings", overflow="fold"), "largest\nbatch", "most\nframes", "one clip\nneeds")
    fits = Table(*columns, title=f"what fits {usable}; frames are estimates")
    for row in plan.largest:
        fits.add_row(row.title, str(row.batch_size or "none"), str(row.num_frames or "none"), gigabytes(row.one_clip))
    console.print(fits)
    console.print(update.describe_largest_part(), soft_wrap=True)


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print each metric with its better direction, and the reason for each missing one."""
    protocol = evaluation.protocol
    frames = "whole videos" if protocol.num_frames is None else f"{protocol.num_frames} frames"
    size = "their size" if protocol.height is None else f"{protocol.height} x {protocol.width}"
    name = dict(protocol.published).get("name")
    title = f"{protocol.num_clips} clips, {frames} of {size}{f', protocol {name}' if name else ''}"
    table = Table("metric", "mean", "better", title=title)
    for name, value in evaluation.metrics.items():
        table.add_row(name, f"{value:.4f}", protocol.better(name))
    console.print(table)
    for name, reason in protocol.absent:
        console.print(f"no {name}: {reason}", soft_wrap=True)


def print_latents(console: Console, report: LatentReport) -> None:
    """Print a few numbers about each model."""
    lines = [space.figures() for space in report.models]
    table = Table("latent", *(Column(space.title, overflow="fold") for space in report.models))
    for name in dict.fromkeys(name for line in lines for name in line):
        table.add_row(name, *(f"{line[name]:.4g}" if name in line else "-" for line in lines))
    console.print(table)


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print every difference with its confidence interval, and the better of the two."""
    title = f"{comparison.num_clips} clips, {CONFIDENCE:.0%} intervals"
    table = Table("metric", "A", "B", "B - A", "better", title=title)
    for each in comparison.differences:
        table.add_row(each.name, f"{each.first:.4f}", f"{each.second:.4f}", each.text(), each.better)
    console.print(table)
    for warning in comparison.warnings:
        console.print(f"differs: {warning}", soft_wrap=True)


def print_weights(console: Console) -> None:
    """Print the networks in the cache."""
    table = Table("net", "status", "source", Column("file", overflow="fold"))
    for entry in weights.listing():
        table.add_row(entry.net, entry.status, entry.source or "", str(entry.path))
    console.print(table)
