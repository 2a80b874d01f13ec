"""One name for each logged value, in every plot, table and video of a report."""

from __future__ import annotations

from telecine.settings import ObjectiveConfig

METRICS = {"psnr": "PSNR", "ssim": "SSIM", "lpips_alex": "LPIPS (Alex)", "lpips_vgg": "LPIPS (VGG)"}
# Prefix of the logged gradient of each frame; the page plots all of them together.
FRAME_GRADIENT = "train/frame_gradient_"
# LPIPS of the training clips, under the name of its network; `metrics.jsonl` has it as `PERCEPTUAL_LOSS`.
TRAIN_LPIPS = "train/lpips_"
PERCEPTUAL_LOSS = "train/perceptual_loss"
# Computed from the mean squared error.
TRAIN_PSNR = "train/psnr"
SOURCES = {"train": "training", "val": "held out", "linear": "linear baseline"}
TRAINING = {
    **{term.loss_key: term.label for term in ObjectiveConfig().all_terms().values()},
    "mse": "mean squared error",
    "recon_loss": "reconstruction loss",
    "discr_loss": "discriminator loss",
    "kl_loss": "KL loss",
    "nll_loss": "negative log-likelihood",
    "total_loss": "total loss",
    "total_disc_loss": "total discriminator loss",
    "logvar": "log variance",
    "logits_real": "mean logit, real",
    "logits_fake": "mean logit, reconstruction",
    "logits_real_std": "spread of logits, real",
    "logits_fake_std": "spread of logits, reconstruction",
    "accuracy_real": "accuracy, real",
    "accuracy_fake": "accuracy, reconstruction",
    "hinge_active": "logits within the margin",
    "adaptive_weight": "adaptive weight",
    "grad_norm": "gradient norm",
    "disc_grad_norm": "gradient norm, discriminators",
    "update_ratio": "update ratio",
    "disc_update_ratio": "update ratio, discriminators",
    "adversarial_gradient_share": "gradient of the adversarial terms",
    "grad_clipped": "clipped updates",
    "disc_grad_clipped": "clipped updates, discriminators",
    "grad_overflow": "skipped updates",
    "disc_grad_overflow": "skipped updates, discriminators",
    "lr": "learning rate",
    "clips_per_second": "clips a second",
    "ema_psnr_behind": "PSNR of the raw weights above the averaged ones",
}


def label_of(name: str) -> str:
    """Return what a value is called, from its name in the records or that of `plotted_values`."""
    if name.startswith(FRAME_GRADIENT):
        return f"frame {int(name.removeprefix(FRAME_GRADIENT))}"
    prefix, _, rest = name.partition("/")
    if prefix in SOURCES and (rest in METRICS or name.startswith(TRAIN_LPIPS)):
        return f"{metric_label(rest)}, {SOURCES[prefix]}"
    if prefix != "train":
        return _words(name.replace("/", " "))
    known = [key for key in TRAINING if rest == key or rest.startswith(f"{key}_")]
    if not known or (rest.endswith("_weight") and rest != "adaptive_weight"):
        return _words(rest)
    key = max(known, key=len)  # "gen_loss_discr_3d" is the generator loss of one of several discriminators
    return TRAINING[key] if rest == key else f"{TRAINING[key]}, {rest.removeprefix(f'{key}_')}"


def metric_label(metric: str) -> str:
    """Return what a metric is called; one without a label has the name that it was logged under."""
    return METRICS.get(metric) or (f"perceptual distance ({metric[6:]})" if metric.startswith("lpips_") else metric)


def plot_label(text: str) -> str:
    r"""Return what makes matplotlib show a text as it is: `\$` instead of the `$` of a formula.

    It would leave a label with a leading `_` out of the legend, and refuse the name of a file that is not UTF-8.
    """
    escaped = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def key_of(name: str) -> str:
    """Return the name in `metrics.jsonl` of the value that is plotted under a name."""
    if name.startswith(TRAIN_LPIPS):
        return PERCEPTUAL_LOSS
    return "train/mse" if name == TRAIN_PSNR else name


def _words(name: str) -> str:
    return name.replace("_", " ")
