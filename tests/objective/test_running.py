"""Running means: unbiased from the first value on, saved, equal on every rank; and LeCam with its means."""

import pytest
import torch
from torch import distributed as dist
from torch import nn

from telecine.losses import lecam
from telecine.objective import running
from telecine.objective.running import LeCam, RunningMean, average_over_ranks, with_averaged_gradient


@pytest.fixture
def other_rank(monkeypatch):
    """Return a function that sets the values of a second rank."""

    def set_values(values):
        monkeypatch.setattr(running, "average_over_ranks", lambda x: (x + torch.as_tensor(values)) / 2)

    return set_values


def test_without_a_process_group_the_average_is_the_tensor_itself():
    x = torch.ones(2)
    assert average_over_ranks(x) is x


def test_the_average_over_ranks_is_a_new_tensor(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    x = torch.tensor([1.0, 10.0])
    assert average_over_ranks(x) is x
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.add_(torch.tensor([2.0, 10.0])))
    assert average_over_ranks(x).tolist() == [1.5, 10.0]
    assert x.tolist() == [1.0, 10.0]


def test_a_gradient_is_averaged_before_it_reaches_the_parameter(other_rank):
    other_rank(7.0)
    w = nn.Parameter(torch.tensor(2.0))
    (3 * with_averaged_gradient(w)).backward()
    assert w.grad.item() == 5
    with torch.no_grad():
        assert with_averaged_gradient(w).item() == 2


def after(decay, *values):
    mean = RunningMean(decay)
    for value in values:
        mean.update(torch.tensor(value))
    return mean


def test_the_first_values_are_averaged_evenly():
    assert after(0.99)().item() == 0
    assert after(0.99, 3.0)().item() == 3
    assert after(0.99, 3.0, 5.0)().item() == 4
    assert after(0.99, 3.0, 5.0, 10.0)().item() == 6


def test_then_the_decay_takes_over():
    expected, mean = 4.0, after(0.5, 3.0, 5.0)
    for value in (7.0, -2.0, 11.0):
        mean.update(torch.tensor(value))
        expected = 0.5 * expected + 0.5 * value
        assert mean().item() == pytest.approx(expected)


def test_without_decay_the_newest_value_counts():
    assert after(0.0, 3.0, 5.0)().item() == 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_ignored(bad):
    assert after(0.9, bad)().item() == 0
    assert after(0.9, 2.0, bad, 4.0)().item() == 3


def test_the_mean_is_a_detached_copy():
    mean = RunningMean(0.9)
    mean.update(torch.tensor(2.0, requires_grad=True))
    before = mean()
    assert not before.requires_grad
    mean.update(torch.tensor(4.0))
    assert before.item() == 2


def test_save_and_load():
    restored = RunningMean(0.9)
    restored.load_state_dict(after(0.9, 1.0, 2.0).state_dict())
    restored.update(torch.tensor(6.0))
    assert restored().item() == after(0.9, 1.0, 2.0, 6.0)().item()


@pytest.mark.parametrize("convert", ["half", "bfloat16"])
def test_half_precision_modules_keep_float32_means(convert):
    mean = getattr(after(0.999, *[0.0] * 100), convert)()
    assert mean.mean.dtype == mean.num_values.dtype == torch.float32
    for _ in range(400):
        mean.update(torch.ones(()))
    assert mean.num_values.item() == 500
    assert mean().item() == pytest.approx(0.8)
    assert getattr(mean.double(), convert)().mean.dtype == torch.float64


def test_an_update_does_not_synchronise():
    mean = RunningMean(0.9).to("meta")
    mean.update(torch.ones((), device="meta"))
    assert mean().device.type == "meta"


class TestLeCam:
    def test_the_means_are_updated_first(self):
        regulariser = LeCam(0.9)
        real, fake = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([-1.0, 0.0], requires_grad=True)
        value = regulariser(real=real, fake=fake)
        expected = lecam(real=real, fake=fake, real_average=torch.tensor(2.0), fake_average=torch.tensor(-0.5))
        assert value.item() == expected.item() > 0
        assert value.requires_grad

    @pytest.mark.parametrize("how", ["eval", "no_grad"])
    def test_validation_does_not_update_them(self, how):
        regulariser = LeCam(0.9)
        regulariser(real=torch.ones(2), fake=-torch.ones(2))
        before = {name: value.clone() for name, value in regulariser.state_dict().items()}
        if how == "eval":
            regulariser.eval()
        with torch.set_grad_enabled(how != "no_grad"):
            regulariser(real=torch.ones(2) * 9, fake=torch.ones(2) * 9)
        assert all(torch.equal(value, before[name]) for name, value in regulariser.state_dict().items())

    def test_they_are_averaged_over_ranks(self, other_rank):
        other_rank([5.0, -5.0])
        regulariser = LeCam(0.9)
        regulariser(real=torch.ones(2), fake=-torch.ones(2))
        assert (regulariser.real().item(), regulariser.fake().item()) == (3, -3)

    def test_in_the_loss(self, make_loss, clip):
        video = {"dim": 1, "image_size": 16, "frame_num": 2}
        loss = make_loss(perceptual_weight=0, gan={"lecam_loss_weight": 3.0, "lecam_decay": 0.5}, discr_3d_kwargs=video)
        total, log = loss(clip(), clip(seed=2), 1, 0)
        assert log["train/lecam_loss"] > 0
        expected = log["train/discr_loss"] + 3 * log["train/lecam_loss"]
        assert total.item() == pytest.approx(expected.item(), rel=1e-6)
        saved = {name for name in loss.state_dict() if not name.startswith("discr_3d.")}
        assert saved == {f"lecam.discr_3d.{side}.{x}" for side in ("real", "fake") for x in ("mean", "num_values")}
        regulariser = loss.lecam["discr_3d"]
        assert regulariser.real().item() == pytest.approx(log["train/logits_real"].item(), rel=1e-6)
        assert (regulariser.real.decay, regulariser.fake.decay) == (0.5, 0.5)
