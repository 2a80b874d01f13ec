"""LeCam in the objective: its averages are trained, saved, reduced, and left alone in validation."""

import pytest
import torch

from telecine.losses import lecam
from telecine.objective.lecam import LeCam

VIDEO = {"dim": 1, "image_size": 16, "frame_num": 2}


def same(tensor):
    return tensor


def test_the_means_take_the_batch_in_first():
    regulariser = LeCam(0.9, same)
    real, fake = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([-1.0, 0.0], requires_grad=True)
    value = regulariser(real=real, fake=fake)
    expected = lecam(real=real, fake=fake, real_average=torch.tensor(2.0), fake_average=torch.tensor(-0.5))
    assert value.item() == expected.item() > 0
    assert value.requires_grad


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_validation_does_not_move_them(how):
    regulariser = LeCam(0.9, same)
    regulariser(real=torch.ones(2), fake=-torch.ones(2))
    before = {name: value.clone() for name, value in regulariser.state_dict().items()}
    if how == "eval":
        regulariser.eval()
    with torch.set_grad_enabled(how != "no_grad"):
        regulariser(real=torch.ones(2) * 9, fake=torch.ones(2) * 9)
    assert all(torch.equal(value, before[name]) for name, value in regulariser.state_dict().items())


def test_they_are_averaged_over_ranks():
    regulariser = LeCam(0.9, lambda means: (means + torch.tensor([5.0, -5.0])) / 2)
    regulariser(real=torch.ones(2), fake=-torch.ones(2))
    assert (regulariser.real().item(), regulariser.fake().item()) == (3, -3)


def test_in_the_loss(make_loss, clip):
    loss = make_loss(perceptual_weight=0, gan={"lecam_loss_weight": 3.0}, discr_3d_kwargs=VIDEO)
    total, log = loss(clip(), clip(seed=2), 1, 0)
    assert log["train/lecam_loss"] > 0
    expected = log["train/discr_loss"] + 3 * log["train/lecam_loss"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    saved = {name for name in loss.state_dict() if not name.startswith("discr_3d.")}
    assert saved == {f"lecam.discr_3d.{side}.{name}" for side in ("real", "fake") for name in ("mean", "num_values")}
    assert loss.lecam["discr_3d"].real().item() == pytest.approx(log["train/logits_real"].item(), rel=1e-6)
