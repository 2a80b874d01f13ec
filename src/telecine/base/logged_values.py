"""The values that training logs: what they are called, and what they are.

`metrics.jsonl` has them as `train/` and the name. The table has all but those whose names depend on a run: of the terms
and auxiliary losses that users add, of scheduled weights, and of the gradient of a frame.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

TRAIN = "train/"
"""The prefix of values of training in `metrics.jsonl`."""
TRAIN_PSNR = "train/psnr"
"""The PSNR of the mean squared error, which a report computes."""
TRAIN_LPIPS = "train/lpips_"
"""The perceptual loss in a report, with the name of its network behind this one."""
Kind: TypeAlias = Literal["loss", "sum of losses", "weight", "other"]
LoggedBy: TypeAlias = Literal["autoencoder", "discriminators", "model", "training"]
"""What computes a value: the objective, in the step of the autoencoder or of the discriminators; the model, as an
auxiliary loss; or the training around them."""


@dataclass(frozen=True)
class LoggedValue:
    """A value of training."""

    name: str
    label: str
    """What charts and tables call it."""
    kind: Kind
    logged_by: LoggedBy
    is_of_discriminators: bool = False
    """Whether the log of several discriminators also has the value of each of them, as `NAME_DISCRIMINATOR`."""

    @property
    def key(self) -> str:
        """Its name in `metrics.jsonl`."""
        return TRAIN + self.name


_ROWS = (
    # sums of losses, and losses of both steps that are no terms
    LoggedValue("total_loss", "total loss", "sum of losses", "autoencoder"),
    LoggedValue("recon_loss", "reconstruction loss", "loss", "autoencoder"),
    LoggedValue("nll_loss", "negative log-likelihood", "loss", "autoencoder"),
    LoggedValue("gen_loss", "generator loss", "loss", "autoencoder", is_of_discriminators=True),
    LoggedValue("total_disc_loss", "total discriminator loss", "sum of losses", "discriminators"),
    LoggedValue(
        "discr_loss", "discriminator loss", "loss", "discriminators", is_of_discriminators=True
    ),
    LoggedValue("aux_losses", "auxiliary losses", "loss", "autoencoder"),
    LoggedValue("logvar", "log variance", "loss", "autoencoder"),
    # terms
    LoggedValue("perceptual_loss", "perceptual loss", "loss", "autoencoder"),
    LoggedValue("feature_matching_loss", "feature matching loss", "loss", "autoencoder"),
    LoggedValue("grad_penalty_loss", "gradient penalty", "loss", "discriminators"),
    LoggedValue("lecam_loss", "LeCam regularisation", "loss", "discriminators"),
    # auxiliary losses of models
    LoggedValue("kl_loss", "KL loss", "loss", "model"),
    LoggedValue("entropy_loss", "entropy loss", "loss", "model"),
    LoggedValue("commitment_loss", "commitment loss", "loss", "model"),
    LoggedValue("quantizer_loss", "quantizer loss", "loss", "model"),
    LoggedValue("commit_loss", "commit loss", "loss", "model"),
    # the GAN
    LoggedValue(
        "adaptive_weight", "adaptive weight", "other", "autoencoder", is_of_discriminators=True
    ),
    LoggedValue(
        "logits_real", "mean logit, real", "other", "discriminators", is_of_discriminators=True
    ),
    LoggedValue(
        "logits_fake",
        "mean logit, reconstruction",
        "other",
        "discriminators",
        is_of_discriminators=True,
    ),
    LoggedValue(
        "logits_real_std",
        "spread of logits, real",
        "other",
        "discriminators",
        is_of_discriminators=True,
    ),
    LoggedValue(
        "logits_fake_std",
        "spread of logits, reconstruction",
        "other",
        "discriminators",
        is_of_discriminators=True,
    ),
    LoggedValue(
        "accuracy_real", "accuracy, real", "other", "discriminators", is_of_discriminators=True
    ),
    LoggedValue(
        "accuracy_fake",
        "accuracy, reconstruction",
        "other",
        "discriminators",
        is_of_discriminators=True,
    ),
    LoggedValue(
        "hinge_active",
        "logits within the margin",
        "other",
        "discriminators",
        is_of_discriminators=True,
    ),
    # updates
    LoggedValue("mse", "mean squared error", "loss", "training"),
    LoggedValue("lr", "learning rate", "other", "training"),
    LoggedValue("clips_per_second", "clips a second", "other", "training"),
    LoggedValue("grad_norm", "gradient norm", "other", "training"),
    LoggedValue("disc_grad_norm", "gradient norm, discriminators", "other", "training"),
    LoggedValue("grad_clipped", "clipped updates", "other", "training"),
    LoggedValue("disc_grad_clipped", "clipped updates, discriminators", "other", "training"),
    LoggedValue("grad_overflow", "skipped updates", "other", "training"),
    LoggedValue("disc_grad_overflow", "skipped updates, discriminators", "other", "training"),
    LoggedValue("update_ratio", "update ratio", "other", "training"),
    LoggedValue("disc_update_ratio", "update ratio, discriminators", "other", "training"),
    LoggedValue(
        "adversarial_gradient_share", "gradient of the adversarial terms", "other", "training"
    ),
    LoggedValue(
        "ema_psnr_behind",
        "PSNR, raw minus averaged weights (dB)",
        "other",
        "training",
    ),
)
LOGGED_VALUES = {value.name: value for value in _ROWS}
"""All values of the table by name."""


def find_logged_value(name: str) -> LoggedValue | None:
    """Return a value of the table by its name without `train/`, also one of a single discriminator; None for others."""
    if name in LOGGED_VALUES:
        return LOGGED_VALUES[name]
    # `discr_loss_weight`, for instance, is the weight of a term of that name, not a discriminator's `discr_loss`.
    if name.endswith("_weight"):
        return None
    longest: LoggedValue | None = None
    for value in _ROWS:
        if not (value.is_of_discriminators and name.startswith(f"{value.name}_")):
            continue
        if longest is None or len(value.name) > len(longest.name):
            longest = value
    if longest is None:
        return None
    label = f"{longest.label}, {name.removeprefix(longest.name + '_')}"
    return LoggedValue(name, label, longest.kind, longest.logged_by)


def logged_by(name: str) -> LoggedBy | None:
    """Return what computes a value, by its name without `train/`; None for a value that is not in the table."""
    value = find_logged_value(name)
    return None if value is None else value.logged_by


def label_and_kind(name: str) -> tuple[str, Kind]:
    """Return what a value of training is called and what it is, by its name without `train/`.

    The names of values that are not in the table say what they are: those that end in `_weight` are weights, and those
    with "loss" are losses.
    """
    value = find_logged_value(name)
    if value is not None:
        return value.label, value.kind
    label = name.replace("_", " ")
    if name.endswith("_weight"):
        return label, "weight"
    if "loss" in name:
        return label, "loss"
    return label, "other"
