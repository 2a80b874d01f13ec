"""Rules that recognise common failures of a run from its logged means. Each warns once per run."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import fmean
from typing import NamedTuple, TypeAlias

from rich.console import Console

from telecine.runs import Run
from telecine.runs.history import TrainingWarning, frame_of
from telecine.settings import ObjectiveConfig, OptimizerConfig
from telecine.training.logging import ADVERSARIAL_SHARE
from telecine.training.state import Rollback

logger = logging.getLogger(__name__)
# Without a handler Python would also print warnings, which the console shows already, to standard error.
logger.addHandler(logging.NullHandler())

# The rule of the lines about rollbacks, which can be several in a run.
_ROLLED_BACK = "rolled_back"
EMA_BEHIND = "train/ema_psnr_behind"

# Records that most rules average: one record is a mean over `log_every` updates, and a single one may be chance.
RECENT = 10
# Records for what is harmless unless it lasts.
LONG = 20
# 1 % leaves room for one odd clip in a window of a discriminator that is otherwise always correct.
SATURATED_ACCURACY = 0.99
# With fewer active logits the hinge loss teaches a discriminator nothing. BigGAN's discriminators that got there had
# memorised their data (arXiv:1809.11096, section 4.2).
INACTIVE_HINGE = 0.05
# The same for a loss without a hinge, in nats or squared logits; guessing costs 0.5 to 1.4.
SATURATED_LOSS = 0.1
# Guessing is correct half of the time. A discriminator that learns is correct a little more often.
GUESSING_MARGIN = 0.05
# The hinge loss asks for logits 2 apart; a fortieth of that is no information.
INDIFFERENT_LOGITS = 0.05
# 19 times the gradient of all other terms together. The adaptive weight aims at equal gradients at the last layer
# (VQGAN, arXiv:2012.09841, equation 7); this share is measured at the reconstruction.
DOMINATING_SHARE = 0.95
# A mean of weights within this factor is at the maximum, up to rounding.
AT_MAXIMUM = 0.99
# VQGAN's weights are about 0.1 to 10; below this one the discriminators have no effect.
AT_MINIMUM = 1e-5
# LPIPS falls by tens of per cent once an autoencoder learns; single frames vary by 2 %.
FLAT = 0.98
# Fraction of the run after the warm-up in which LPIPS need not have fallen yet. In the demo it is a tenth lower then.
PERCEPTUAL_PATIENCE = 0.2
# Fine-tuned autoencoders start below this LPIPS, which then has little left to fall.
LOW_PERCEPTUAL = 0.1
# Fraction of the mean gradient of a frame. Frames that LPIPS did not draw have a few hundredths.
MIN_FRAME_GRADIENT = 1e-3
# Averaged weights should be better than the raw ones (EDM2, arXiv:2312.02696); 1 dB is far beyond noise.
EMA_GAP = 1.0
# Validations in a row: early in a run the average is behind weights that improve fast.
EMA_VALIDATIONS = 2
# Pascanu et al. (arXiv:1211.5063, section 3.2) set the threshold to 0.5 to 10 times the usual norm: clipping is the
# exception.
CLIPPED = 0.98
# A norm this many times the threshold is outside of that range.
CLIPPED_NORM = 10.0
# PyTorch's gradient scaler skips a few steps until it has found its scale, then about one in 2000.
OVERFLOWING = 0.5
# CS231n ("Babysitting the learning process") considers updates of 1e-3 of the weights good. A thousandth of that needs
# a million updates to replace a network; a tenth of the weights needs ten.
TINY_UPDATE = 1e-6
LARGE_UPDATE = 0.1
# Prefix of a network's log keys, and its name in messages.
NETWORKS = (("", "autoencoder"), ("disc_", "discriminators"))


class _RecentValues:
    """The first `RECENT` and the last `LONG` logged values of each name, and the settings that the rules read."""

    def __init__(self, objective: ObjectiveConfig, optimizer: OptimizerConfig, num_steps: int) -> None:
        self.objective, self.optimizer, self.num_steps = objective, optimizer, num_steps
        self.first: defaultdict[str, list[float]] = defaultdict(list)
        self._last: defaultdict[str, deque[tuple[int, float]]] = defaultdict(partial(deque, maxlen=LONG))

    def add(self, step: int, record: Mapping[str, float]) -> None:
        """Append the values of a record."""
        for name, value in record.items():
            if len(self.first[name]) < RECENT:
                self.first[name].append(value)
            self._last[name].append((step, value))

    def last(self, name: str, count: int = RECENT, *, after: int = 0) -> list[float]:
        """Return the last `count` values, or none if fewer were logged after the step `after`."""
        values = [value for step, value in list(self._last.get(name, ()))[-count:] if step > after]
        return values if len(values) == count else []


# Returns what was found, with figures, or None. Its docstring says why this is a failure.
_Check: TypeAlias = Callable[[_RecentValues], str | None]


class _Rule(NamedTuple):
    """A failure, how to recognise it, and what to try."""

    name: str
    check: _Check
    remedy: str


RULES: list[_Rule] = []
_REGULARISERS = " or ".join(
    f"`objective.{term.setting}`" for term in ObjectiveConfig().all_terms().values() if term.step == "discriminators"
)


def _rule(remedy: str) -> Callable[[_Check], _Check]:
    """Add a function to `RULES`, under its name without the underscore."""

    def add(check: _Check) -> _Check:
        RULES.append(_Rule(check.__name__.removeprefix("_"), check, remedy))
        return check

    return add


@_rule(
    f"Lower `optimizer.disc_lr`, raise {_REGULARISERS}, "
    "use a smaller `discriminator.dim`, or start the discriminators later (`objective.gan.disc_train_start`)."
)
def _discriminator_saturated(history: _RecentValues) -> str | None:
    """A discriminator that is always correct gives the autoencoder little information (arXiv:1701.04862)."""
    real, fake = (history.last(f"train/accuracy_{side}") for side in ("real", "fake"))
    has_hinge = bool(history.last("train/hinge_active"))
    name, limit = ("hinge_active", INACTIVE_HINGE) if has_hinge else ("discr_loss", SATURATED_LOSS)
    left = history.last(f"train/{name}")
    if not (real and fake and left) or min(fmean(real), fmean(fake)) < SATURATED_ACCURACY or fmean(left) > limit:
        return None
    return (
        f"the discriminators classify {fmean(real):.1%} of real and {fmean(fake):.1%} of reconstructed clips correctly "
        f"and have stopped learning (mean {name} {fmean(left):.3g}): their gradient may be useless"
    )


@_rule(
    "Raise `optimizer.disc_lr` or `discriminator.dim`, lower `objective.grad_penalty_loss_weight`, or try another kind "
    "of `discriminator.video`. If reconstructions are already very good, ignore this warning."
)
def _discriminator_collapsed(history: _RecentValues) -> str | None:
    """The gradient of a discriminator that guesses is noise, which the autoencoder follows."""
    names = ("accuracy_real", "accuracy_fake", "logits_real", "logits_fake")
    values = [history.last(f"train/{name}", LONG) for name in names]
    if not all(values):
        return None
    accuracy_real, accuracy_fake, real, fake = map(fmean, values)
    accuracy, gap = (accuracy_real + accuracy_fake) / 2, abs(real - fake)
    if abs(accuracy - 0.5) > GUESSING_MARGIN or gap > INDIFFERENT_LOGITS:
        return None
    return f"the discriminators guess: {accuracy:.1%} correct, mean logits of real and fake {gap:.2g} apart"


@_rule(
    "Lower `objective.adversarial_loss_weight`, use the adaptive weight (`objective.adaptive_weight.reference: "
    "perceptual`), or lower `objective.adaptive_weight.max`."
)
def _adversarial_dominates(history: _RecentValues) -> str | None:
    """The autoencoder follows the discriminators instead of its input."""
    share = history.last(ADVERSARIAL_SHARE)
    if share and fmean(share) >= DOMINATING_SHARE:
        return f"{fmean(share):.1%} of the gradient at the reconstruction comes from the discriminators"
    return None


@_rule(
    "At the maximum: check the discriminators' accuracy and gradient, lower `objective.adaptive_weight.max`, or raise "
    "`objective.grad_penalty_loss_weight`. Near 0: raise `objective.perceptual_weight`, or choose another "
    "`objective.adaptive_weight.reference`."
)
def _adaptive_weight_at_bound(history: _RecentValues) -> str | None:
    """At the maximum the weight amplifies noise; near 0 the discriminators have no effect."""
    weights = history.last("train/adaptive_weight", after=history.objective.disc_start)
    maximum = history.objective.adaptive_weight.max
    if 0.0 in history.last("train/gen_loss"):  # there is no adversarial term yet
        return None
    if weights and min(weights) >= AT_MAXIMUM * maximum:
        return f"the adaptive weight is at its maximum {maximum:g}: the discriminators' gradient is too weak to balance"
    if weights and max(weights) <= AT_MINIMUM:
        return f"the adaptive weight is below {AT_MINIMUM:g}: the discriminators have no effect"
    return None


@_rule(
    "Raise `objective.perceptual_weight` or `objective.perceptual.num_frames`, or `optimizer.lr` if the other terms do "
    "not fall either. Check that the clips are in [-1, 1] and that `trainable` names the right weights."
)
def _perceptual_flat(history: _RecentValues) -> str | None:
    """Reconstructions look no better than at the start, long after the warm-up."""
    name = "train/perceptual_loss"
    patience = history.optimizer.warmup_steps + int(PERCEPTUAL_PATIENCE * history.num_steps)
    last = history.last(name, LONG, after=patience)
    final_weight = history.objective.all_terms()["perceptual"].ramp.weight
    (weight,) = history.last("train/perceptual_weight", 1) or [final_weight]
    if not last or weight <= 0:
        return None
    first, now = fmean(history.first[name]), fmean(last)
    if now <= LOW_PERCEPTUAL or now < FLAT * first:
        return None
    return f"LPIPS was {first:.3g} at the start and is {now:.3g} now"


@_rule(
    "Check whether the model copies these frames from its input; otherwise set `discriminator.time_weighting: frames` "
    "and raise `objective.perceptual.num_frames`."
)
def _frames_without_gradient(history: _RecentValues) -> str | None:
    """Frames without a gradient do not improve."""
    values = {frame_of(name): history.last(name) for name in sorted(history.first)}
    means = {frame: fmean(last) for frame, last in values.items() if frame is not None and last}
    poor = [index for index, mean in means.items() if mean < MIN_FRAME_GRADIENT]
    found = f"frames {poor} of {len(means)}, counted from 0, get less than {MIN_FRAME_GRADIENT:g} of the mean gradient"
    return found if poor else None


@_rule(
    "Train for longer: few updates are not enough. Or raise `optimizer.lr`. Telecine's own autoencoder starts from the "
    "baseline unless `linear_start` is false. If only PSNR is below, the perceptual and adversarial weights may be too "
    "large."
)
def _below_linear(history: _RecentValues) -> str | None:
    """At the end of a run the model is worse than a matrix that was fitted in seconds."""
    names = ("psnr", "ssim", "lpips_alex")
    ours, linear = (
        {name: value for name in names for value in history.last(f"{kind}/{name}", 1, after=history.num_steps - 1)}
        for kind in ("val", "linear")
    )
    worse = [name for name in linear if (ours[name] > linear[name]) == name.startswith("lpips")]
    values = ", ".join(f"{name} {ours[name]:.4g} against {linear[name]:.4g}" for name in worse)
    return f"the model is worse than the linear baseline of the same latent: {values}" if worse else None


@_rule("Lower `optimizer.ema_decay`: the average should span a small part of the run; 0.999 spans about 1000 updates.")
def _ema_behind(history: _RecentValues) -> str | None:
    """Evaluation and export use the averaged weights, which are the worse ones."""
    gaps = history.last(EMA_BEHIND, EMA_VALIDATIONS)
    if not gaps or min(gaps) < EMA_GAP:
        return None
    return f"the raw weights reconstruct held-out clips {gaps[-1]:.2f} dB better than the averaged ones"


@_rule(
    "Raise `optimizer.grad_clip` to about the usual norm, or lower the weights of the loss: now each update has the "
    "same length, whatever the loss is."
)
def _always_clipped(history: _RecentValues) -> str | None:
    """If the norm is always far above the limit, each update has the same length, whatever the loss is."""
    # Discriminators are not checked: an exact penalty makes their gradients tens of times longer, without harm.
    clipped, norms = (
        history.last(f"train/{name}", LONG, after=history.optimizer.warmup_steps)
        for name in ("grad_clipped", "grad_norm")
    )
    limit = history.optimizer.grad_clip
    if not (clipped and norms) or fmean(clipped) < CLIPPED or fmean(norms) < CLIPPED_NORM * limit:
        return None
    return f"the autoencoder's gradients are always clipped: their norm is {fmean(norms):.3g}, the limit {limit:g}"


@_rule("Use `mixed_precision: bf16`, or lower the learning rates.")
def _gradients_overflow(history: _RecentValues) -> str | None:
    """Skipped updates train nothing. A scale that never settles means gradients beyond half precision's range."""
    for prefix, network in NETWORKS:
        skipped = history.last(f"train/{prefix}grad_overflow")
        if skipped and fmean(skipped) >= OVERFLOWING:
            return f"{fmean(skipped):.0%} of the updates of the {network} were skipped: the gradients were not finite"
    return None


@_rule("Raise `optimizer.lr` or `optimizer.disc_lr`, or check that the loss depends on the trained weights.")
def _learns_nothing(history: _RecentValues) -> str | None:
    """With such small updates the network will not change within the run."""
    return _update_ratio(history, lambda ratio: ratio <= TINY_UPDATE)


@_rule("Lower `optimizer.lr` or `optimizer.disc_lr`, or warm up for longer (`optimizer.warmup_steps`).")
def _learns_too_fast(history: _RecentValues) -> str | None:
    """Ten such updates overwrite the whole network."""
    return _update_ratio(history, lambda ratio: ratio >= LARGE_UPDATE)


def _update_ratio(history: _RecentValues, is_wrong: Callable[[float], bool]) -> str | None:
    for prefix, network in NETWORKS:
        ratios = history.last(f"train/{prefix}update_ratio", after=history.optimizer.warmup_steps)
        if ratios and is_wrong(fmean(ratios)):
            return f"an update changes the weights of the {network} by {fmean(ratios):.2g} of their norm"
    return None


class Diagnostics:
    """Checks the rules on each record of a run, after those that it has, and adds a warning for each rollback."""

    def __init__(
        self,
        run: Run,
        objective: ObjectiveConfig,
        optimizer: OptimizerConfig,
        num_steps: int,
        console: Console,
        rollbacks: Sequence[Rollback] = (),
    ) -> None:
        self.run = run
        self.history = _RecentValues(objective, optimizer, num_steps)
        self.console = console
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
        for rule in RULES:
            message = None if rule.name in self.warned else rule.check(self.history)
            if message is not None:
                self.warned.add(rule.name)
                self.run.warnings.add(TrainingWarning(step, rule.name, message, rule.remedy))
                text = f"step {step}: {message} ({rule.name}). {rule.remedy}"
                self.console.print(f"warning: {text}", markup=False, soft_wrap=True)  # a list of frames is in brackets
                logger.warning("%s", text)
