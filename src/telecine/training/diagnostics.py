"""Rules that recognise common failures of a run from its logged means. Each warns once per run."""

import logging
import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import TypeAlias

from rich.console import Console

from telecine.base.logged_values import LOGGED_VALUES
from telecine.evaluation.metrics import METRICS
from telecine.runs import Run
from telecine.runs.history import History, TrainingWarning
from telecine.settings import ObjectiveConfig, TrainConfig
from telecine.training.state import Rollback

logger = logging.getLogger(__name__)
# Without a handler Python would also print warnings, which the console shows already, to standard error.
logger.addHandler(logging.NullHandler())

# The rule of the lines about rollbacks, which can be several in a run.
ROLLED_BACK = "rolled_back"
EMA_BEHIND = "train/ema_psnr_behind"

# Records that most rules average: one record is a mean over `log_every` updates, and a single one may be chance.
RECENT = 10
# Records for what is harmless unless it lasts.
LONG = 20
# The networks by the prefix of their log keys.
_NETWORKS = {"": "autoencoder", "disc_": "discriminators"}


class RecentValues:
    """The first `RECENT` and the last `LONG` logged values of each name, and the settings that the rules read.

    Args:
        config: The settings of the run.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.objective = config.objective
        self.optimizer = config.optimizer
        self.num_steps = config.steps
        self.first: defaultdict[str, list[float]] = defaultdict(list)
        self._last: defaultdict[str, deque[tuple[int, float]]] = defaultdict(
            partial(deque, maxlen=LONG)
        )

    def add(self, step: int, record: Mapping[str, float]) -> None:
        """Append the values of a record."""
        for name, value in record.items():
            if len(self.first[name]) < RECENT:
                self.first[name].append(value)
            self._last[name].append((step, value))

    def last(self, name: str, count: int = RECENT, *, after: int = 0) -> list[float]:
        """Return the last values of a name, the newest one last.

        Args:
            name: The log key.
            count: The number of values, at most `LONG`.
            after: Values up to this step do not count.

        Returns:
            `count` values, or none if there are fewer.
        """
        if name not in self._last:
            return []
        newest = list(self._last[name])[-count:]
        values = [value for step, value in newest if step > after]
        return values if len(values) == count else []

    def of_training(self, name: str, count: int = RECENT, *, after: int = 0) -> list[float]:
        """Return the last values of one of `LOGGED_VALUES`, as `last` does.

        Args:
            name: Its name there, without `train/`.
            count: See `last`.
            after: See `last`.
        """
        return self.last(LOGGED_VALUES[name].key, count, after=after)


@dataclass(frozen=True)
class Finding:
    """What a rule has found."""

    message: str
    remedy: str


def discriminator_saturated(values: RecentValues) -> Finding | None:
    """A discriminator that is always correct gives the autoencoder little information (arXiv:1701.04862)."""
    min_accuracy = 0.99  # 1 % leaves room for one odd clip in a window of a discriminator that is otherwise correct.
    # With fewer active logits the hinge loss teaches a discriminator nothing. BigGAN's discriminators that got there
    # had memorised their data (arXiv:1809.11096, section 4.2).
    max_hinge_active = 0.05
    max_loss = 0.1  # The same for a loss without a hinge, in nats or squared logits; guessing costs 0.5 to 1.4.

    real = values.of_training("accuracy_real")
    fake = values.of_training("accuracy_fake")
    name = "hinge_active"
    limit = max_hinge_active
    signal = values.of_training("hinge_active")
    if not signal:
        name = "discr_loss"
        limit = max_loss
        signal = values.of_training("discr_loss")
    if not real or not fake or not signal:
        return None
    if fmean(real) < min_accuracy or fmean(fake) < min_accuracy or fmean(signal) > limit:
        return None
    regularisers = " or ".join(f"`objective.{setting}`" for setting in _regularisers())
    return Finding(
        f"the discriminators classify {fmean(real):.1%} of real and {fmean(fake):.1%} of reconstructed clips correctly "
        f"and have stopped learning (mean {name} {fmean(signal):.3g}): their gradient may be useless",
        f"Lower `optimizer.disc_lr`, raise {regularisers}, or, in a new run, use a smaller `discriminator.dim` or "
        "start the discriminators later (`objective.gan.disc_train_start`).",
    )


def _regularisers() -> list[str]:
    """Return the settings of the terms that regularise the discriminators."""
    terms = ObjectiveConfig().term_schedules().values()
    return [term.setting for term in terms if term.side == "discriminators"]


def discriminator_collapsed(values: RecentValues) -> Finding | None:
    """The gradient of a discriminator that guesses is noise, which the autoencoder follows."""
    margin = 0.05  # Guessing is correct half of the time. A discriminator that learns is correct a little more often.
    max_gap = 0.05  # The hinge loss asks for logits 2 apart; a fortieth of that is no information.

    accuracy_real = values.of_training("accuracy_real", LONG)
    accuracy_fake = values.of_training("accuracy_fake", LONG)
    logits_real = values.of_training("logits_real", LONG)
    logits_fake = values.of_training("logits_fake", LONG)
    if not accuracy_real or not accuracy_fake or not logits_real or not logits_fake:
        return None
    accuracy = (fmean(accuracy_real) + fmean(accuracy_fake)) / 2
    gap = abs(fmean(logits_real) - fmean(logits_fake))
    if abs(accuracy - 0.5) > margin or gap > max_gap:
        return None
    return Finding(
        f"the discriminators guess: {accuracy:.1%} correct, mean logits of real and fake {gap:.2g} apart",
        "Raise `optimizer.disc_lr`, lower `objective.grad_penalty_loss_weight`, or, in a new run, raise "
        "`discriminator.dim` or try another kind of `discriminator.video`. If reconstructions are already very good, "
        "ignore this warning.",
    )


def adversarial_dominates(values: RecentValues) -> Finding | None:
    """The autoencoder follows the discriminators instead of its input."""
    # 19 times the gradient of all other terms together. The adaptive weight aims at equal gradients at the last layer
    # (VQGAN, arXiv:2012.09841, equation 7); this share is measured at the reconstruction.
    max_share = 0.95

    shares = values.of_training("adversarial_gradient_share")
    if not shares or fmean(shares) < max_share:
        return None
    return Finding(
        f"{fmean(shares):.1%} of the gradient at the reconstruction comes from the discriminators",
        "Lower `objective.adversarial_loss_weight`, use the adaptive weight (`objective.adaptive_weight.reference: "
        "perceptual`), or lower `objective.adaptive_weight.max`.",
    )


def adaptive_weight_at_bound(values: RecentValues) -> Finding | None:
    """At the maximum the weight amplifies noise; near 0 the discriminators have no effect."""
    rounding = 0.99  # Weights above this fraction of the maximum are at the maximum.
    minimum = 1e-5  # VQGAN's weights are about 0.1 to 10; below this one the discriminators have no effect.

    weights = values.of_training("adaptive_weight", after=values.objective.disc_start)
    if not weights or 0.0 in values.of_training("gen_loss"):  # there is no adversarial term yet
        return None
    maximum = values.objective.adaptive_weight.max
    if min(weights) >= rounding * maximum:
        bound = f"at its maximum {maximum:g}: the discriminators' gradient is too weak to balance"
    elif max(weights) <= minimum:
        bound = f"below {minimum:g}: the discriminators have no effect"
    else:
        return None
    return Finding(
        f"the adaptive weight is {bound}",
        "At the maximum: check the discriminators' accuracy and gradient, lower `objective.adaptive_weight.max`, or "
        "raise `objective.grad_penalty_loss_weight`. Near 0: raise `objective.perceptual_weight`, or choose another "
        "`objective.adaptive_weight.reference`.",
    )


def perceptual_flat(values: RecentValues) -> Finding | None:
    """Reconstructions look no better than at the start, long after the warm-up."""
    flat = 0.98  # LPIPS falls by tens of per cent once an autoencoder learns; single frames vary by 2 %.
    # Fraction of the run after the warm-up in which LPIPS need not have fallen yet. In the demo it is a tenth lower
    # then.
    patience = 0.2
    low = 0.1  # Fine-tuned autoencoders start below this LPIPS, which then has little left to fall.

    first_step = values.optimizer.warmup_steps + int(patience * values.num_steps)
    last = values.of_training("perceptual_loss", LONG, after=first_step)
    scheduled_weight = values.last("train/perceptual_weight", 1)
    weight = values.objective.term_schedules()["perceptual"].ramp.weight
    if scheduled_weight:
        weight = scheduled_weight[0]
    if not last or weight <= 0:
        return None
    first = fmean(values.first[LOGGED_VALUES["perceptual_loss"].key])
    now = fmean(last)
    if now <= low or now < flat * first:
        return None
    return Finding(
        f"LPIPS was {first:.3g} at the start and is {now:.3g} now",
        "Raise `objective.perceptual_weight` or `objective.perceptual.num_frames`, or `optimizer.lr` if the other "
        "terms do not fall either. Check that the clips are in [-1, 1] and that `trainable` names the right weights.",
    )


def frames_without_gradient(values: RecentValues) -> Finding | None:
    """Frames without a gradient do not improve."""
    # Fraction of the mean gradient of a frame. Frames that LPIPS did not draw have a few hundredths.
    min_gradient = 0.001

    num_frames = 0
    poor: list[int] = []
    for name in sorted(values.first):
        frame = History.frame_of(name)
        last = values.last(name)
        if frame is None or not last:
            continue
        num_frames += 1
        if fmean(last) < min_gradient:
            poor.append(frame)
    if not poor:
        return None
    return Finding(
        f"frames {poor} of {num_frames}, counted from 0, get less than {min_gradient:g} of the mean gradient",
        "Check whether the model copies these frames from its input; otherwise set `discriminator.time_weighting: "
        "frames` and raise `objective.perceptual.num_frames`.",
    )


def below_linear(values: RecentValues) -> Finding | None:
    """At the end of a run the model is worse than a matrix that was fitted in seconds."""
    tolerance = 0.001  # A model that starts from the baseline and has hardly trained differs from it by rounding.

    worse: list[str] = []
    for name in ("psnr", "ssim", "lpips_alex"):
        model = values.last(f"val/{name}", 1, after=values.num_steps - 1)
        linear = values.last(f"linear/{name}", 1, after=values.num_steps - 1)
        if not model or not linear or math.isclose(model[0], linear[0], rel_tol=tolerance):
            continue
        direction = METRICS[name].direction
        if direction.badness(model[0]) > direction.badness(linear[0]):
            worse.append(f"{name} {model[0]:.4g} against {linear[0]:.4g}")
    if not worse:
        return None
    return Finding(
        f"the model is worse than the linear baseline of the same latent: {', '.join(worse)}",
        "Train for longer: few updates are not enough. Or raise `optimizer.lr`. If only PSNR is below, the perceptual "
        "and adversarial weights may be too large.",
    )


def ema_behind(values: RecentValues) -> Finding | None:
    """Evaluation and export use the averaged weights, which are the worse ones."""
    # Averaged weights should be better than the raw ones (EDM2, arXiv:2312.02696); 1 dB is far beyond noise.
    max_gap = 1.0
    num_validations = 2  # In a row: early in a run the average is behind weights that improve fast.

    gaps = values.of_training("ema_psnr_behind", num_validations)
    if not gaps or min(gaps) < max_gap:
        return None
    return Finding(
        f"the raw weights reconstruct held-out clips {gaps[-1]:.2f} dB better than the averaged ones",
        "Lower `optimizer.ema_decay`: the average should span a small part of the run; 0.999 spans about 1000 updates.",
    )


def always_clipped(values: RecentValues) -> Finding | None:
    """If the norm is always far above the limit, each update has the same length, whatever the loss is.

    Discriminators are not checked: an exact penalty makes their gradients tens of times longer, without harm.
    """
    # Pascanu et al. (arXiv:1211.5063, section 3.2) set the threshold to 0.5 to 10 times the usual norm: clipping is
    # the exception.
    min_clipped = 0.98
    norm_factor = 10.0  # A norm this many times the threshold is outside of that range.

    limit = values.optimizer.grad_clip
    clipped = values.of_training("grad_clipped", LONG, after=values.optimizer.warmup_steps)
    norms = values.of_training("grad_norm", LONG, after=values.optimizer.warmup_steps)
    if not clipped or not norms:
        return None
    if fmean(clipped) < min_clipped or fmean(norms) < norm_factor * limit:
        return None
    return Finding(
        f"the autoencoder's gradients are always clipped: their norm is {fmean(norms):.3g}, the limit {limit:g}",
        "Raise `optimizer.grad_clip` to about the usual norm, or lower the weights of the loss: now each update has "
        "the same length, whatever the loss is.",
    )


def gradients_overflow(values: RecentValues) -> Finding | None:
    """Skipped updates train nothing. A scale that never settles means gradients beyond half precision's range."""
    max_skipped = 0.5  # PyTorch's gradient scaler skips a few steps until it has found its scale, then one in 2000.

    for prefix, network in _NETWORKS.items():
        skipped = values.of_training(f"{prefix}grad_overflow")
        if skipped and fmean(skipped) >= max_skipped:
            return Finding(
                f"{fmean(skipped):.0%} of the updates of the {network} were skipped: the gradients were not finite",
                "Use `mixed_precision: bf16`, or lower the learning rates.",
            )
    return None


def learns_nothing(values: RecentValues) -> Finding | None:
    """With such small updates the network will not change within the run.

    CS231n ("Babysitting the learning process") considers updates of 1e-3 of the weights good.
    """
    min_ratio = 1e-6  # A thousandth of that: it would take a million updates to replace a network.

    for prefix, network in _NETWORKS.items():
        ratios = values.of_training(f"{prefix}update_ratio", after=values.optimizer.warmup_steps)
        if ratios and fmean(ratios) <= min_ratio:
            return Finding(
                f"an update changes the weights of the {network} by {fmean(ratios):.2g} of their norm",
                "Raise `optimizer.lr` or `optimizer.disc_lr`, or check that the loss depends on the trained weights.",
            )
    return None


def learns_too_fast(values: RecentValues) -> Finding | None:
    """Such updates overwrite the whole network in a few steps."""
    max_ratio = 0.1  # Ten such updates overwrite it.

    for prefix, network in _NETWORKS.items():
        ratios = values.of_training(f"{prefix}update_ratio", after=values.optimizer.warmup_steps)
        if ratios and fmean(ratios) >= max_ratio:
            return Finding(
                f"an update changes the weights of the {network} by {fmean(ratios):.2g} of their norm",
                "Lower `optimizer.lr` or `optimizer.disc_lr`, or warm up for longer (`optimizer.warmup_steps`).",
            )
    return None


# A rule returns what it has found, or None. Its docstring says why that is a failure.
Rule: TypeAlias = Callable[[RecentValues], Finding | None]
_RULES: list[Rule] = [
    discriminator_saturated,
    discriminator_collapsed,
    adversarial_dominates,
    adaptive_weight_at_bound,
    perceptual_flat,
    frames_without_gradient,
    below_linear,
    ema_behind,
    always_clipped,
    gradients_overflow,
    learns_nothing,
    learns_too_fast,
]
RULES: dict[str, Rule] = {rule.__name__: rule for rule in _RULES}


class Diagnostics:
    """Checks the rules on each record of a run, after those that its folder has.

    Args:
        files: The folder of the run.
        config: The settings of the run.
        console: Where warnings are printed.

    Attributes:
        values: The recent values of all records.
        warned: The rules that have warned, which do so once.
    """

    def __init__(self, files: Run, config: TrainConfig, console: Console) -> None:
        self.files = files
        self.console = console
        self.values = RecentValues(config)
        for record in files.history:
            values = {name: value for name, value in record.items() if name.startswith("train/")}
            self.values.add(int(record["step"]), values)
        self.warned = {line.rule for line in self._lines_of_rules()}

    def _lines_of_rules(self) -> list[TrainingWarning]:
        lines = self.files.warnings.all() or []
        return [line for line in lines if line.rule != ROLLED_BACK]

    def rewrite_warnings(self, rollbacks: Sequence[Rollback]) -> None:
        """Write the file of warnings again: the warnings of rules, and one for each time that the run went back.

        Args:
            rollbacks: How the run went back after divergences, the oldest first.
        """
        lines = self._lines_of_rules()
        remedy = "Lower `optimizer.lr` and `optimizer.disc_lr`, or the weight of that term."
        for number, rollback in enumerate(rollbacks, 1):
            lines.append(
                TrainingWarning(rollback.to, ROLLED_BACK, rollback.describe(number), remedy)
            )
        lines.sort(key=lambda line: line.step)
        self.files.warnings.write(asdict(line) for line in lines)

    def check(self, step: int, record: Mapping[str, float]) -> None:
        """Add a record, and warn if a rule finds a failure for the first time."""
        self.values.add(step, record)
        for name, rule in RULES.items():
            if name in self.warned:
                continue
            finding = rule(self.values)
            if finding is None:
                continue
            self.warned.add(name)
            self.files.warnings.append(
                asdict(TrainingWarning(step, name, finding.message, finding.remedy))
            )
            text = f"step {step}: {finding.message} ({name}). {finding.remedy}"
            # Without markup, as a list of frames is in brackets.
            self.console.print(f"warning: {text}", markup=False, soft_wrap=True)
            logger.warning("%s", text)
