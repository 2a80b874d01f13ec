import pytest
import torch

from telecine.losses import GAN_LOSSES, hinge, is_separable
from telecine.objective.standing import mean_standing, standing
from telecine.objective.video_autoencoder import VideoAutoencoderLoss

REAL = torch.tensor([[2.0, 0.7], [0.2, -1.0]])
FAKE = torch.tensor([[-2.0, -0.5], [0.6, -1.5]])


def of(gan_loss, real=REAL, fake=FAKE):
    loss = GAN_LOSSES[gan_loss]
    log = standing(real=real, fake=fake, gan_loss=loss, is_separable=is_separable(loss))
    return {name: value.item() for name, value in log.items()}


def test_known_values_of_the_hinge():
    assert of("hinge") == pytest.approx(
        {
            "logits_real": 0.475,
            "logits_fake": -0.85,
            "logits_real_std": REAL.std(correction=0).item(),
            "logits_fake_std": FAKE.std(correction=0).item(),
            "accuracy_real": 0.75,
            "accuracy_fake": 0.75,
            "hinge_active": 5 / 8,  # 0.7, 0.2 and -1 are below 1, -0.5 and 0.6 above -1
        }
    )


@pytest.mark.parametrize(
    ("gan_loss", "real", "fake"),
    [("hinge", 0.75, 0.75), ("vanilla", 0.75, 0.75), ("least_squares", 0.5, 0.75), ("relativistic", 0.75, 0.75)],
)
def test_what_is_right_depends_on_the_loss(gan_loss, real, fake):
    log = of(gan_loss)
    assert (log["accuracy_real"], log["accuracy_fake"]) == (real, fake)
    assert ("hinge_active" in log) == (gan_loss == "hinge")


def test_every_loss_is_tried():
    assert set(GAN_LOSSES) == {"hinge", "vanilla", "least_squares", "relativistic"}


def test_a_partner_counts_only_where_the_loss_pairs():
    assert of("relativistic", REAL + 9, FAKE + 9)["accuracy_fake"] == 0.75
    assert of("hinge", REAL + 9, FAKE + 9)["accuracy_fake"] == 0.0


def test_a_single_logit_has_no_spread():
    assert of("hinge", torch.ones(1), torch.ones(1))["logits_real_std"] == 0.0


def test_there_is_a_mean_and_each_one_by_name():
    log = standing(real=REAL, fake=FAKE, gan_loss=hinge, is_separable=True)
    other = standing(real=FAKE, fake=REAL, gan_loss=hinge, is_separable=True)
    means = mean_standing({"discr": log, "discr_3d": other}, like=REAL)
    assert len(means) == 3 * 7
    assert means["accuracy_real"].item() == (0.75 + 0.25) / 2
    assert means["accuracy_real_discr_3d"].item() == 0.25
    assert set(mean_standing({"discr": log}, like=REAL)) == set(log)
    assert set(mean_standing({}, like=REAL)) == {"logits_real", "logits_fake"}


@pytest.mark.parametrize("eager", [True, False])
def test_what_the_discriminators_cause_can_be_watched(eager):
    loss = VideoAutoencoderLoss(
        0,
        perceptual_weight=0,
        adversarial_loss_weight=0.5,
        discr_3d_kwargs={"dim": 2, "image_size": 16, "frame_num": 5},
        adaptive_weight={"reference": "none"},
        eager_gradients=eager,
    )
    real, fake = torch.rand(2, 2, 3, 5, 16, 16) * 2 - 1
    fake.requires_grad_()
    seen = []
    loss.watch = seen.append
    total, _ = loss(real, fake, 0, 1)
    total.backward()
    of_error = 2 * (fake - real).detach() / fake.numel()
    torch.testing.assert_close(seen[-1], fake.grad - of_error)
    assert seen[-1].abs().sum() > 0
