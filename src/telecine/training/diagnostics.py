"""Rules that recognise common failures of a run from its logged means. Each warns once per run."""

import logging
import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import fmean
from typing import Any

from rich.console import Console

from telecine.base.yaml_files import read_package_yaml
from telecine.runs import Run
from telecine.runs.history import History, TrainingWarning
from telecine.settings import ObjectiveConfig, OptimizerConfig
from telecine.training.state import Rollback

logger = logging.getLogger(__name__)
# Without a handler Python would also print warnings, which the console shows already, to standard error.
logger.addHandler(logging.NullHandler())

# The rule of the lines about rollbacks, which can be several in a run.
_ROLLED_BACK = "rolled_back"
EMA_BEHIND = "train/ema_psnr_behind"

# Records that most rules average: one record is a mean over `log_every` updates, and a single one may be chance.
_RECENT = 10
# Records for what is harmless unless it lasts.
_LONG = 20
# Prefix of a network's log keys, and its name in messages.
_NETWORKS = (("", "autoencoder"), ("disc_", "discriminators"))


class RecentValues:
    """The first `_RECENT` and the last `_LONG` logged values of each name, and the settings that the rules read."""

    def __init__(self, objective: ObjectiveConfig, optimizer: OptimizerConfig, num_steps: int) -> None:
        self.objective, self.optimizer, self.num_steps = objective, optimizer, num_steps
        self.first: defaultdict[str, list[float]] = defaultdict(list)
        self._last: defaultdict[str, deque[tuple[int, float]]] = defaultdict(partial(deque, maxlen=_LONG))

    def add(self, step: int, record: Mapping[str, float]) -> None:
        """Append the values of a record."""
        for name, value in record.items():
            if len(self.first[name]) < _RECENT:
                self.first[name].append(value)
            self._last[name].append((step, value))

    def last(self, name: str, count: int = _RECENT, *, after: int = 0) -> list[float]:
        """Return the last `count` values, or none if fewer were logged after the step `after`."""
        values = [value for step, value in list(self._last.get(name, ()))[-count:] if step > after]
        return values if len(values) == count else []


# A check returns the figures of the message in the rule's entry of the table, or None if nothing was found. Its
# docstring, or a comment of the table, says why this is a failure.
def _mean_beyond(history: RecentValues, limits: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Check a rule of the table alone: the mean of a value, of each network if its name has one, against a limit."""
    after = history.optimizer.warmup_steps if limits.get("after_warmup") else 0
    for prefix, network in _NETWORKS:
        values = history.last(limits["value"].format(prefix=prefix), after=after)
        if values and limits.get("at_least", -math.inf) <= fmean(values) <= limits.get("at_most", math.inf):
            return {"mean": fmean(values), "network": network}
    return None


def _discriminator_saturated(history: RecentValues, limits: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A discriminator that is always correct gives the autoencoder little information (arXiv:1701.04862)."""
    real, fake = (history.last(f"train/accuracy_{side}") for side in ("real", "fake"))
    name = "hinge_active" if history.last("train/hinge_active") else "discr_loss"
    left = history.last(f"train/{name}")
    if not (real and fake and left) or min(fmean(real), fmean(fake)) < limits["accuracy"] or fmean(left) > limits[name]:
        return None
    return {"real": fmean(real), "fake": fmean(fake), "name": name, "left": fmean(left)}


def _discriminator_collapsed(history: RecentValues, limits: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The gradient of a discriminator that guesses is noise, which the autoencoder follows."""
    names = ("accuracy_real", "accuracy_fake", "logits_real", "logits_fake")
    values = [history.last(f"train/{name}", _LONG) for name in names]
    if not all(values):
        return None
    accuracy_real, accuracy_fake, real, fake = map(fmean, values)
    accuracy, gap = (accuracy_real + accuracy_fake) / 2, abs(real - fake)
    guesses = abs(accuracy - 0.5) <= limits["margin"] and gap <= limits["logits"]
    return {"accuracy": accuracy, "gap": gap} if guesses else None


def _adaptive_weight_at_bound(history: RecentValues, limits: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """At the maximum the weight amplifies noise; near 0 the discriminators have no effect."""
    weights = history.last("train/adaptive_weight", after=history.objective.disc_start)
    minimum, maximum = limits["minimum"], history.objective.adaptive_weight.max
    if 0.0 in history.last("train/gen_loss") or not weights:  # there is no adversarial term yet
        return None
    if min(weights) >= limits["at_maximum"] * maximum:
        return {"bound": limits["of_maximum"].format(maximum)}
    return {"bound": limits["of_minimum"].format(minimum)} if max(weights) <= minimum else None


def _perceptual_flat(history: RecentValues, limits: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Reconstructions look no better than at the start, long after the warm-up."""
    name = "train/perceptual_loss"
    patience = history.optimizer.warmup_steps + int(limits["patience"] * history.num_steps)
    last = history.last(name, _LONG, after=patience)
    final_weight = history.objective.all_terms()["perceptual"].ramp.weight
    (weight,) = history.last("train/perceptual_weight", 1) or [final_weight]
    if not last or weight <= 0:
        return None
    first, now = fmean(history.first[name]), fmean(last)
    return {"first": first, "now": now} if now > limits["low"] and now >= limits["flat"] * first else None


def _frames_without_gradient(history: RecentValues, limits: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Frames without a gradient do not improve."""
    values = {History.frame_of(name): history.last(name) for name in sorted(history.first)}
    means = {frame: fmean(last) for frame, last in values.items() if frame is not None and last}
    poor = [index for index, mean in means.items() if mean < limits["gradient"]]
    return {"poor": poor, "total": len(means)} if poor else None


def _below_linear(history: RecentValues, limits: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """At the end of a run the model is worse than a matrix that was fitted in seconds."""
    names = ("psnr", "ssim", "lpips_alex")
    ours, linear = (
        {name: value for name in names for value in history.last(f"{kind}/{name}", 1, after=history.num_steps - 1)}
        for kind in ("val", "linear")
    )
    others = [name for name in linear if not math.isclose(ours[name], linear[name], rel_tol=limits["tolerance"])]
    worse = [name for name in others if (ours[name] > linear[name]) == name.startswith("lpips")]
    values = ", ".join(f"{name} {ours[name]:.4g} against {linear[name]:.4g}" for name in worse)
    return {"values": values} if worse else None


def _ema_behind(history: RecentValues, limits: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Evaluation and export use the averaged weights, which are the worse ones."""
    gaps = history.last(EMA_BEHIND, limits["validations"])
    return {"last": gaps[-1]} if gaps and min(gaps) >= limits["gap"] else None


def _always_clipped(history: RecentValues, limits: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """If the norm is always far above the limit, each update has the same length, whatever the loss is."""
    # Discriminators are not checked: an exact penalty makes their gradients tens of times longer, without harm.
    after, limit = history.optimizer.warmup_steps, history.optimizer.grad_clip
    clipped, norms = (history.last(f"train/{name}", _LONG, after=after) for name in ("grad_clipped", "grad_norm"))
    if not (clipped and norms) or fmean(clipped) < limits["clipped"] or fmean(norms) < limits["norm_factor"] * limit:
        return None
    return {"norm": fmean(norms), "limit": limit}


_CHECKS: Mapping[str, Callable[..., Mapping[str, Any] | None]] = {
    check.__name__.removeprefix("_"): check
    for check in (
        *(_discriminator_saturated, _discriminator_collapsed, _adaptive_weight_at_bound, _perceptual_flat),
        *(_frames_without_gradient, _below_linear, _ema_behind, _always_clipped),
    )
}
_RULES = read_package_yaml(__package__, "diagnostics.yaml")
_REGULARISERS = " or ".join(
    f"`objective.{term.setting}`" for term in ObjectiveConfig().all_terms().values() if term.step == "discriminators"
)


def _found_by(rule: str, history: RecentValues) -> str | None:
    found = _CHECKS.get(rule, _mean_beyond)(history, limits := _RULES[rule])
    return None if found is None else str(limits["message"].format(**found, **limits))


class Diagnostics:
    """Checks the rules on each record of a run, after those that it has, and adds a warning for each rollback."""

    def __init__(self, run: Run, recent: RecentValues, *, console: Console, rollbacks: Sequence[Rollback] = ()) -> None:
        self.run, self.history, self.console = run, recent, console
        for record in run.history:
            values = {name: value for name, value in record.items() if name.startswith("train/")}
            self.history.add(int(record["step"]), values)
        lines = [line for line in run.warnings.all() or () if line.rule != _ROLLED_BACK]
        self.warned = {line.rule for line in lines}
        remedy = "Lower `optimizer.lr` and `optimizer.disc_lr`, or the weight of that term."
        lines += [TrainingWarning(r.to, _ROLLED_BACK, r.describe(n), remedy) for n, r in enumerate(rollbacks, 1)]
        run.warnings.write(map(asdict, sorted(lines, key=lambda line: line.step)))

    def check(self, step: int, record: Mapping[str, float]) -> None:
        """Add a record, and warn if a rule finds a failure for the first time."""
        self.history.add(step, record)
        for rule in [name for name in _RULES if name not in self.warned]:
            if (message := _found_by(rule, self.history)) is not None:
                self.warned.add(rule)
                remedy = _RULES[rule]["remedy"].replace("{regularisers}", _REGULARISERS)
                self.run.warnings.append(asdict(TrainingWarning(step, rule, message, remedy)))
                text = f"step {step}: {message} ({rule}). {remedy}"
                self.console.print(f"warning: {text}", markup=False, soft_wrap=True)  # a list of frames is in brackets
                logger.warning("%s", text)
