"""The values of runs that charts draw: those that were logged, and those that follow from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from telecine.base.logged_values import TRAIN, TRAIN_LPIPS, TRAIN_PSNR, Kind, label_and_kind
from telecine.losses.reconstruction import psnr_of_mse
from telecine.report.reported_run import ReportedRun

TRAIN_MSE = "train/mse"


@dataclass(frozen=True)
class Column:
    """A value of a run at each step."""

    run: int
    """Index of the run."""
    logged_name: str
    """The name in `metrics.jsonl` of the value, or of the one that it follows from."""
    points: list[tuple[int, float]]
    """Steps and values."""


def columns_of_runs(runs: Sequence[ReportedRun]) -> dict[str, list[Column]]:
    """Return the columns of each value with a finite number, one for each run that has it, by the name of the value.

    A name is that in `metrics.jsonl`, with these exceptions:

    - `train/perceptual_loss` becomes `train/lpips_NETWORK`, as values of different networks do not compare;
    - `train/psnr`, in dB, is computed of `train/mse`;
    - a sum that equals its only term in every run is left out.
    """
    of_runs = [_columns_of_run(index, run) for index, run in enumerate(runs)]
    columns: dict[str, list[Column]] = {}
    for of_run in of_runs:
        for name, column in of_run.items():
            columns.setdefault(name, []).append(column)
    drawn: set[str] = set()
    for of_run in of_runs:
        drawn.update(of_run.keys() - _sums_of_one_term(of_run))
    return {name: columns[name] for name in sorted(drawn) if _is_finite(columns[name])}


def kind_of(name: str) -> Kind:
    """Return the kind of a value; "other" for those that are not of training."""
    if not name.startswith(TRAIN):
        return "other"
    _, kind = label_and_kind(name.removeprefix(TRAIN))
    return kind


def _columns_of_run(index: int, run: ReportedRun) -> dict[str, Column]:
    """Return the columns of one run by name."""
    columns: dict[str, Column] = {}
    for record in run.records:
        step = int(record["step"])
        for logged_name, value in record.items():
            if logged_name == "step":
                continue
            name = logged_name
            if name == "train/perceptual_loss" and run.perceptual_net is not None:
                name = f"{TRAIN_LPIPS}{run.perceptual_net}"
            if name not in columns:
                columns[name] = Column(index, logged_name, [])
            columns[name].points.append((step, float(value)))
    if TRAIN_MSE in columns:
        points = columns[TRAIN_MSE].points
        steps = [step for step, _ in points]
        errors = torch.tensor([error for _, error in points], dtype=torch.float64)
        psnr_points = list(zip(steps, psnr_of_mse(errors).tolist(), strict=True))
        columns[TRAIN_PSNR] = Column(index, TRAIN_MSE, psnr_points)
    return columns


def _sums_of_one_term(columns: dict[str, Column]) -> set[str]:
    """Return the names of sums of a run that equal their only term, which is logged, too."""
    losses = [name for name in columns if kind_of(name) == "loss" and name != "train/aux_losses"]
    terms_of_sums = {
        "train/recon_loss": [TRAIN_MSE],
        "train/total_disc_loss": ["train/discr_loss"],
        "train/aux_losses": losses,
    }
    sums = set()
    for name, terms in terms_of_sums.items():
        if name not in columns:
            continue
        for term in terms:
            if term in columns and _is_same(columns[name], columns[term]):
                sums.add(name)
    return sums


def _is_same(column: Column, other: Column) -> bool:
    if len(column.points) != len(other.points):
        return False
    for (step, value), (other_step, other_value) in zip(column.points, other.points, strict=True):
        if step != other_step or not math.isclose(value, other_value, rel_tol=1e-5):
            return False
    return True


def _is_finite(columns: Sequence[Column]) -> bool:
    values = [value for column in columns for _, value in column.points]
    return any(math.isfinite(value) for value in values)
