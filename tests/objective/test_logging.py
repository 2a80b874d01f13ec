"""The statistics of logits, and which values are logged under which names."""

import pytest
import torch

from telecine import Ramp, Term
from telecine.losses import GAN_LOSSES, JointGANLoss, hinge
from telecine.objective.log import logit_statistics

REAL = torch.tensor([[2.0, 0.7], [0.2, -1.0]])
FAKE = torch.tensor([[-2.0, -0.5], [0.6, -1.5]])


def statistics(gan_loss, real=REAL, fake=FAKE):
    log = logit_statistics(real=real, fake=fake, gan_loss=GAN_LOSSES.get(gan_loss, gan_loss))
    return {name: value.item() for name, value in log.items()}


def test_known_values_of_the_hinge():
    assert statistics("hinge") == pytest.approx(
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
    [
        ("hinge", 0.75, 0.75),
        ("vanilla", 0.75, 0.75),
        ("least_squares", 0.5, 0.75),
        ("relativistic", 0.75, 0.75),
    ],
)
def test_accuracies_depend_on_the_loss(gan_loss, real, fake):
    log = statistics(gan_loss)
    assert (log["accuracy_real"], log["accuracy_fake"]) == (real, fake)
    assert ("hinge_active" in log) == (gan_loss == "hinge")
    assert {"hinge", "vanilla", "least_squares", "relativistic"} == set(GAN_LOSSES)


def test_logits_are_paired_without_a_boundary():
    assert statistics("relativistic", REAL + 9, FAKE + 9)["accuracy_fake"] == 0.75
    assert statistics("hinge", REAL + 9, FAKE + 9)["accuracy_fake"] == 0.0
    assert statistics(JointGANLoss(hinge), REAL + 9, FAKE + 9)["accuracy_fake"] == 0.0, "undeclared"


def test_a_function_declares_boundary_and_margin():
    loss = JointGANLoss(hinge, boundary=0.65, margin=2.0)
    log = statistics(loss)
    assert (log["accuracy_real"], log["accuracy_fake"]) == (0.5, 1.0)
    assert log["hinge_active"] == pytest.approx((3 / 4 + 3 / 4) / 2)


@pytest.mark.parametrize("gan_loss", ["hinge", "relativistic"])
def test_logits_on_the_boundary_are_wrong(gan_loss):
    log = statistics(gan_loss, torch.zeros(2), torch.zeros(2))
    assert (log["accuracy_real"], log["accuracy_fake"]) == (0, 0)


def test_a_single_logit_has_no_spread():
    assert statistics("hinge", torch.ones(1), torch.ones(1))["logits_real_std"] == 0.0


def test_auxiliary_losses_that_would_hide_a_term(make_loss, clip):
    loss = make_loss(perceptual_weight=0, terms={"temporal": 1})
    for name in (
        "recon_loss",
        "total_loss",
        "aux_losses",
        "gen_loss",
        "temporal_loss",
        "discr_loss",
        "grad_penalty_loss",
        "lecam_loss",
        "logits_real_discr_3d",
        "hinge_active",
    ):
        message = rf"`aux_losses` must be named unlike .*'{name}'. Rename it.*'quantizer_{name}"
        with pytest.raises(ValueError, match=message):
            loss(clip(), clip(), 0, 0, aux_losses={name: 1.0})


@pytest.mark.parametrize("name", ["kl", "entropy", "commitment", "commit", "quantizer", "temporal"])
def test_a_term_that_has_the_name_of_an_auxiliary_loss(make_loss, clip, name):
    """The loss may be that of a model, which users cannot rename."""
    loss = make_loss(perceptual_weight=0, terms={name: Term("temporal")})
    message = rf"'{name}_loss'\. Rename it, .*, or the term `{name}` of the objective\.$"
    with pytest.raises(ValueError, match=message):
        loss(clip(), clip(), 0, 0, aux_losses={f"{name}_loss": 1.0})


def test_names_of_what_is_logged_later_are_refused_from_the_first_step(
    make_loss, make_feature_discriminator, clip, pair
):
    ramp = Ramp(1.0, start=5, steps=2)
    loss = make_loss(
        disc_start=5,
        adversarial_loss_weight=1,
        multiscale_adversarial_loss_weight=1,
        perceptual_weight=ramp,
        reconstruction={"learn_logvar": True},
        terms={"temporal": Term("temporal", ramp), "wavelet": 0},
        discr_3d_kwargs=make_feature_discriminator(),
        multiscale_discr_kwargs=[make_feature_discriminator()],
        gan={"feature_matching_loss_weight": ramp},
        adaptive_weight={"reference": "none"},
    )
    log = loss(*pair, 0, 10)[1]
    names = {name.removeprefix("train/") for name in log}
    later = {"perceptual_loss", "temporal_loss", "feature_matching_loss", "gen_loss_discr_3d"}
    assert later < names
    for name in names:
        with pytest.raises(ValueError, match=rf"`aux_losses` must be named unlike .*'{name}'"):
            loss(clip(), clip(), 0, 0, aux_losses={name: 1.0})
    loss(clip(), clip(), 0, 0, aux_losses={"wavelet_loss": 1.0})  # its term is always off


def test_other_names_of_auxiliary_losses(make_loss, clip):
    names = [
        "quantizer_aux_loss",
        "adversarial_loss",
        "disc_loss",
        "mse_loss",
        "kl_loss",
        "grad_loss",
        "accuracy_loss",
    ]
    log = make_loss(perceptual_weight=0)(
        clip(), clip(), 0, 0, aux_losses=dict.fromkeys(names, 1.0)
    )[1]
    assert {f"train/{name}" for name in names} < set(log)


def test_logged_values_do_not_change_afterwards(make_loss, pair):
    loss = make_loss(perceptual_weight=0, reconstruction={"learn_logvar": True})
    aux = torch.tensor(1.0)
    total, log = loss(*pair, 0, 0, {"commitment": aux})
    before = {name: value.item() for name, value in log.items()}
    with torch.no_grad():
        loss.logvar.add_(5.0)
        aux.add_(3.0)
    total /= 4
    assert {name: value.item() for name, value in log.items()} == before
