"""The names of logged values."""

import pytest

from telecine.report.names import key_of, label_of, plot_label


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("train/psnr", "PSNR, training"),
        ("val/lpips_alex", "LPIPS (Alex), held out"),
        ("linear/ssim", "SSIM, linear baseline"),
        ("train/lpips_mine.distance", "perceptual distance (mine.distance), training"),
        ("train/gen_loss", "generator loss"),
        ("train/gen_loss_discr_3d", "generator loss, discr_3d"),
        ("train/logits_real_std_discr", "spread of logits, real, discr"),
        ("train/grad_penalty_loss_weight", "grad penalty loss weight"),
        ("train/adaptive_weight", "adaptive weight"),
        ("train/edges_loss", "edges loss"),
        ("train/frame_gradient_007", "frame 7"),
        ("latent/effective_rank", "latent effective rank"),
        ("other", "other"),
    ],
)
def test_labels(name, label):
    assert label_of(name) == label


def test_keys_are_those_of_the_records():
    assert key_of("train/psnr") == "train/mse"
    assert key_of("train/lpips_vgg") == "train/perceptual_loss"
    assert key_of("val/psnr") == "val/psnr"


def test_matplotlib_shows_a_label_as_it_is():
    assert plot_label("runs/a_$5_$6") == r"runs/a_\$5_\$6"
    assert plot_label("_run") == " _run"
