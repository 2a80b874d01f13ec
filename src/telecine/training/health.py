"""Rules that say what is wrong with a run, each once: its logged means are looked at whenever they are written."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console

from telecine.files import write_aside
from telecine.report.curves import FRAME_GRADIENT
from telecine.report.records import read_lines, read_records
from telecine.runs import HEALTH_FILE, METRICS_FILE
from telecine.training.config import TrainConfig
from telecine.training.gradients import ADVERSARIAL_SHARE

logger = logging.getLogger(__name__)
# The console says it already; without a handler, Python would print it to standard error as well.
logger.addHandler(logging.NullHandler())

EMA_BEHIND = "train/ema_psnr_behind"

# Records that a rule looks at: one is a mean over `log_every` updates, and one alone may be chance.
RECENT = 10
# Records for what is harmless unless it lasts.
LONG = 20
# By its own sign a discriminator is then never wrong: 1 % leaves room for one odd clip in a window.
SATURATED_ACCURACY = 0.99
# Below this share of the hinge nothing is left to learn for it, and BigGAN's (arXiv:1809.11096, section 4.2)
# discriminators that got there had learnt their data by heart.
INACTIVE_HINGE = 0.05
# The same of a loss without a hinge, in nats or squared logits; guessing costs 0.5 to 1.4.
SATURATED_LOSS = 0.1
# Guessing is right half of the time. A discriminator that is fooled now and then is right a little more often.
GUESSING = 0.05
# A hinge of width 1 on either side wants logits 2 apart; a fortieth of that tells nothing.
INDIFFERENT_LOGITS = 0.05
# 19 times what all other terms together pull. With the adaptive weight the two are meant to be of one size
# (VQGAN, arXiv:2012.09841, equation 7), here at the reconstruction instead of at the last layer.
DOMINATING_SHARE = 0.95
# Within this factor a mean of weights is at the cap, up to rounding.
AT_CAP = 0.99
# VQGAN's weights are between 0.1 and 10 or so; with this one the discriminators have no say.
AT_FLOOR = 1e-5
# LPIPS falls by tens of per cent once an autoencoder learns; 2 % is what single frames scatter.
FLAT = 0.98
# Share of the run after the warm-up in which it need not have fallen yet.
PERCEPTUAL_SHARE = 0.05
# Fine-tuned autoencoders start below it, where LPIPS has little left to fall.
LOW_PERCEPTUAL = 0.1
# Of an even share. Frames that LPIPS did not draw have a few hundredths.
FRAME_SHARE = 1e-3
# The average is there to be better than the raw weights (EDM2, arXiv:2312.02696); 1 dB is far beyond noise.
EMA_GAP = 1.0
# Validations in a row: early in a run the average trails what is learnt fast.
EMA_VALIDATIONS = 2
# Pascanu et al. (arXiv:1211.5063, section 3.2) put the threshold at half to ten times the usual norm: what is
# clipped is the exception.
CLIPPED = 0.98
# And a norm this much above the threshold is out of that range.
CLIPPED_NORM = 10.0
# PyTorch's scaler skips a few steps until it has found its scale, then about one in 2000.
OVERFLOWING = 0.5
# CS231n ("Babysitting the learning process") takes 1e-3 of the weights for a good update. A thousandth of that
# needs a million updates to replace a network; a tenth of the weights does in ten.
TINY_UPDATE = 1e-6
LARGE_UPDATE = 0.1


class History:
    """The first and the last values of each name, as far as a rule looks."""

    def __init__(self) -> None:
        self._first: dict[str, list[float]] = {}
        self._last: dict[str, deque[tuple[int, float]]] = {}

    def add(self, step: int, record: Mapping[str, float]) -> None:
        """Take in a record's values."""
        for name, value in record.items():
            first = self._first.setdefault(name, [])
            if len(first) < RECENT:
                first.append(value)
            self._last.setdefault(name, deque(maxlen=LONG)).append((step, value))

    def last(self, name: str, count: int = RECENT, *, after: int = 0) -> list[float]:
        """Return the last `count` values, or none while there are fewer that were logged after a step."""
        values = [value for step, value in list(self._last.get(name, ()))[-count:] if step > after]
        return values if len(values) == count else []

    def first(self, name: str) -> list[float]:
        """Return the first values, as many as `RECENT`."""
        return self._first.get(name, [])

    def count(self, name: str) -> int:
        """Return how many values there are to look at, at most `LONG`."""
        return len(self._last.get(name, ()))

    def names(self, prefix: str) -> list[str]:
        """Return what is logged under a prefix."""
        return sorted(name for name in self._last if name.startswith(prefix))


# A rule's docstring is its reason.
Found = Callable[[History, TrainConfig], str | None]


@dataclass(frozen=True)
class Rule:
    """What may go wrong, how it shows, and what to try."""

    name: str
    found: Found
    """Returns what is seen, with its figures, or None."""
    remedy: str


@dataclass(frozen=True)
class Warned:
    """A line of `health.jsonl`."""

    step: int
    rule: str
    message: str
    remedy: str


def discriminator_saturated(history: History, config: TrainConfig) -> str | None:
    """Both sides are judged right, nothing is left to learn: a perfect judge teaches little (arXiv:1701.04862)."""
    real, fake = (history.last(f"train/accuracy_{side}") for side in ("real", "fake"))
    name, limit = ("discr_loss", SATURATED_LOSS)
    if history.last("train/hinge_active"):
        name, limit = "hinge_active", INACTIVE_HINGE
    left = history.last(f"train/{name}")
    if not (real and fake and left) or min(fmean(real), fmean(fake)) < SATURATED_ACCURACY or fmean(left) > limit:
        return None
    return (
        f"the discriminators tell {fmean(real):.1%} of real and {fmean(fake):.1%} of reconstructed clips right and "
        f"learn nothing any more (mean {name} {fmean(left):.3g}): what they teach may be useless"
    )


def discriminator_collapsed(history: History, config: TrainConfig) -> str | None:
    """They guess, so that their gradient is noise; the autoencoder follows it all the same."""
    sides = [history.last(f"train/{name}", LONG) for name in ("accuracy_real", "accuracy_fake")]
    logits = [history.last(f"train/{name}", LONG) for name in ("logits_real", "logits_fake")]
    if not all(sides + logits):
        return None
    accuracy = (fmean(sides[0]) + fmean(sides[1])) / 2
    gap = abs(fmean(logits[0]) - fmean(logits[1]))
    if abs(accuracy - 0.5) > GUESSING or gap > INDIFFERENT_LOGITS:
        return None
    return f"the discriminators guess: {accuracy:.1%} right, logits of real and fake {gap:.2g} apart"


def adversarial_dominates(history: History, config: TrainConfig) -> str | None:
    """The autoencoder follows the discriminators away from its input."""
    share = history.last(ADVERSARIAL_SHARE)
    if not share or fmean(share) < DOMINATING_SHARE:
        return None
    return f"{fmean(share):.1%} of the gradient at the reconstruction comes from the discriminators"


def adaptive_weight_at_bound(history: History, config: TrainConfig) -> str | None:
    """At the cap noise is amplified; near 0 discriminators are trained for nothing."""
    weights = history.last("train/adaptive_weight", after=config.objective.disc_start)
    cap = config.objective.adaptive_weight_max
    if 0.0 in history.last("train/gen_loss"):  # no adversarial term yet, so no weight of it
        return None
    if weights and min(weights) >= AT_CAP * cap:
        return f"the adaptive weight is at its cap of {cap:g}: the discriminators' gradient is weaker still"
    if weights and max(weights) <= AT_FLOOR:
        return f"the adaptive weight is below {AT_FLOOR:g}: the discriminators have no say"
    return None


def perceptual_flat(history: History, config: TrainConfig) -> str | None:
    """Nothing visible is being learnt, long after the warm-up."""
    name = "train/perceptual_loss"
    patience = config.optimizer.warmup_steps + int(PERCEPTUAL_SHARE * config.steps)
    last = history.last(name, after=patience) if history.count(name) == LONG else []
    weights = history.last("train/perceptual_weight", 1) or [config.objective.ramps()["perceptual_weight"].weight]
    if not last or weights[0] <= 0:
        return None
    first, now = fmean(history.first(name)), fmean(last)
    if now <= LOW_PERCEPTUAL or now < FLAT * first:
        return None
    return f"LPIPS was {first:.3g} at the beginning and is {now:.3g} now"


def frames_without_gradient(history: History, config: TrainConfig) -> str | None:
    """What gets no gradient is not learnt."""
    shares = {name: history.last(name) for name in history.names(FRAME_GRADIENT)}
    means = {int(name.removeprefix(FRAME_GRADIENT)): fmean(values) for name, values in shares.items() if values}
    poor = [index for index, mean in means.items() if mean < FRAME_SHARE]
    if not poor:
        return None
    return f"frames {poor} of {len(means)}, counted from 0, get less than {FRAME_SHARE:g} of an even share of gradient"


def ema_behind(history: History, config: TrainConfig) -> str | None:
    """What is evaluated and shipped is the average, and it is the worse one."""
    gaps = history.last(EMA_BEHIND, EMA_VALIDATIONS)
    if not gaps or min(gaps) < EMA_GAP:
        return None
    return f"the raw weights reconstruct held-out clips {gaps[-1]:.2f} dB better than the averaged ones"


def always_clipped(history: History, config: TrainConfig) -> str | None:
    """Each update is of one length, whatever the loss says, since the norm is always far above the limit."""
    # Not the discriminators: an exact penalty makes their gradients tens of times longer, and training does well.
    clipped, norms = (
        history.last(f"train/{name}", LONG, after=config.optimizer.warmup_steps)
        for name in ("grad_clipped", "grad_norm")
    )
    limit = config.optimizer.grad_clip
    if not (clipped and norms) or fmean(clipped) < CLIPPED or fmean(norms) < CLIPPED_NORM * limit:
        return None
    return f"the autoencoder's gradients are always clipped: their norm is {fmean(norms):.3g}, the limit {limit:g}"


def gradients_overflow(history: History, config: TrainConfig) -> str | None:
    """Skipped updates teach nothing; a scale that never settles means gradients that half precision cannot hold."""
    for prefix, who in (("", "autoencoder"), ("disc_", "discriminators")):
        skipped = history.last(f"train/{prefix}grad_overflow")
        if skipped and fmean(skipped) >= OVERFLOWING:
            return f"{fmean(skipped):.0%} of the updates of the {who} were skipped: their gradients were not finite"
    return None


def learns_nothing(history: History, config: TrainConfig) -> str | None:
    """At this pace the network will not change within the run."""
    return _update_ratio(history, config, lambda ratio: ratio <= TINY_UPDATE)


def learns_too_fast(history: History, config: TrainConfig) -> str | None:
    """What was learnt is overwritten within ten updates."""
    return _update_ratio(history, config, lambda ratio: ratio >= LARGE_UPDATE)


def _update_ratio(history: History, config: TrainConfig, is_bad: Callable[[float], bool]) -> str | None:
    for prefix, who in (("", "autoencoder"), ("disc_", "discriminators")):
        ratios = history.last(f"train/{prefix}update_ratio", after=config.optimizer.warmup_steps)
        if ratios and is_bad(fmean(ratios)):
            return f"an update changes the weights of the {who} by {fmean(ratios):.2g} of their norm"
    return None


RULES = (
    Rule(
        "discriminator_saturated",
        discriminator_saturated,
        "Lower `optimizer.disc_lr`, raise `objective.grad_penalty_loss_weight` or set a `lecam_loss_weight`, use a "
        "smaller `discriminator.dim`, or start the discriminators later (`objective.disc_train_start`).",
    ),
    Rule(
        "discriminator_collapsed",
        discriminator_collapsed,
        "Raise `optimizer.disc_lr` or `discriminator.dim`, lower `objective.grad_penalty_loss_weight`, or try another "
        "kind of `discriminator.video`. If reconstructions are very good already, nothing is wrong.",
    ),
    Rule(
        "adversarial_dominates",
        adversarial_dominates,
        "Lower `objective.adversarial_loss_weight`, let the adaptive weight balance it "
        "(`objective.adaptive_weight_reference: perceptual`), or lower `objective.adaptive_weight_max`.",
    ),
    Rule(
        "adaptive_weight_at_bound",
        adaptive_weight_at_bound,
        "At the cap: look at the discriminators' accuracy and gradient; lower `objective.adaptive_weight_max`, raise "
        "`objective.grad_penalty_loss_weight`. Near 0: raise `objective.perceptual_weight`, or choose another "
        "`objective.adaptive_weight_reference`.",
    ),
    Rule(
        "perceptual_flat",
        perceptual_flat,
        "Raise `objective.perceptual_weight` or `objective.perceptual_frames`, or `optimizer.lr` if the other terms do "
        "not fall either; see that the clips are in [-1, 1] and that what should train is in `trainable`.",
    ),
    Rule(
        "frames_without_gradient",
        frames_without_gradient,
        "See whether the model copies these frames from its input; otherwise set "
        "`discriminator.time_weighting: frames` and a larger `objective.perceptual_frames`.",
    ),
    Rule(
        "ema_behind",
        ema_behind,
        "Lower `optimizer.ema_decay`: the average should span a small part of the run, 0.999 about 1000 updates.",
    ),
    Rule(
        "always_clipped",
        always_clipped,
        "Raise `optimizer.grad_clip` to about the usual norm, or lower the weights: as it is, each update has the same "
        "length whatever the loss says.",
    ),
    Rule(
        "gradients_overflow",
        gradients_overflow,
        "Use `mixed_precision: bf16`, or lower the learning rates.",
    ),
    Rule(
        "learns_nothing",
        learns_nothing,
        "Raise `optimizer.lr` or `optimizer.disc_lr`, or see whether weights are trained that the loss depends on.",
    ),
    Rule(
        "learns_too_fast",
        learns_too_fast,
        "Lower `optimizer.lr` or `optimizer.disc_lr`, or warm up for longer (`optimizer.warmup_steps`).",
    ),
)


class Health:
    """Looks at each record of a run and warns once by each rule: on the console, in `health.jsonl`, by `logging`.

    Args:
        run: The run's folder, with the records up to `step` in its `metrics.jsonl`.
        config: The settings.
        console: Where warnings are shown.
        step: Where the run goes on; warnings of later steps are dropped, and may be given again.
        writes: Whether this process is the one that looks; the values are the same on all.
    """

    def __init__(self, run: Path, config: TrainConfig, console: Console, *, step: int, writes: bool) -> None:
        self.path = run / HEALTH_FILE
        self.config = config
        self.console = console
        self.writes = writes
        self.history = History()
        self.spoken: set[str] = set()
        if writes:
            self._go_on(run, step)

    def look(self, step: int, record: Mapping[str, float]) -> None:
        """Take a record in and warn of what it shows."""
        if not self.writes:
            return
        self.history.add(step, record)
        for rule in RULES:
            message = None if rule.name in self.spoken else rule.found(self.history, self.config)
            if message is not None:
                self._warn(Warned(step, rule.name, message, rule.remedy))

    def _warn(self, warned: Warned) -> None:
        self.spoken.add(warned.rule)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(warned)) + "\n")
        text = f"step {warned.step}: {warned.message} ({warned.rule}). {warned.remedy}"
        self.console.print(f"warning: {text}", markup=False)  # frames are listed in brackets
        logger.warning("%s", text)

    def _go_on(self, run: Path, step: int) -> None:
        """Recall what was logged and said up to `step`, and write the file anew: an empty one says that all is well."""
        for record in read_records(run / METRICS_FILE):
            if record["step"] <= step:
                values = {name: value for name, value in record.items() if name.startswith("train/")}
                self.history.add(int(record["step"]), values)
        kept = [line for line in read_lines(self.path) if line["step"] <= step]
        self.spoken = {line["rule"] for line in kept}
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_aside(self.path, lambda aside: aside.write_text(text, encoding="utf-8"))
