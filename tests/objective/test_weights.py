"""Weights that start late or ramp, however they are given."""

import pytest

from telecine import Ramp, VideoAutoencoderLoss
from telecine.objective.schedule import as_ramp, as_ramps, check_step, check_weight


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        (Ramp(2.0), {0: 2.0, 7: 2.0}),
        (Ramp(2.0, start=3), {0: 0.0, 2: 0.0, 3: 2.0, 9: 2.0}),
        (Ramp(2.0, start=10, steps=4), {9: 0.0, 10: 0.0, 11: 0.5, 12: 1.0, 13: 1.5, 14: 2.0, 99: 2.0}),
        (Ramp(0, start=2, steps=2, initial=1.0), {0: 1.0, 2: 1.0, 3: 0.5, 4: 0.0, 5: 0.0}),
        (Ramp(3.0, steps=3), {0: 0.0, 1: 1.0, 3: 3.0}),
    ],
)
def test_values(ramp, expected):
    assert {step: ramp.at(step) for step in expected} == pytest.approx(expected)


def test_what_is_ever_on_and_what_changes():
    assert Ramp(1.0).is_ever_on
    assert Ramp(0, initial=1, start=4).is_ever_on
    assert not Ramp(0).is_ever_on
    assert not Ramp(1.0).changes
    assert not Ramp(1.0, initial=1.0, start=9, steps=9).changes
    assert Ramp(1.0, start=1).changes
    assert Ramp(1.0, steps=1).changes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, Ramp(0.5, start=7)),
        (Ramp(0.5, steps=2), Ramp(0.5, start=7, steps=2)),
        (Ramp(0.5, start=0), Ramp(0.5, start=0)),
        ({"weight": 1, "start": 9, "steps": 3}, Ramp(1, start=9, steps=3)),
        ({"weight": 1, "initial": 0.5}, Ramp(1, start=7, initial=0.5)),
    ],
)
def test_every_form(value, expected):
    assert as_ramp("perceptual_weight", value, start=7) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, "`some_weight` must be a finite number >= 0"),
        (float("nan"), "`some_weight` must be a finite number"),
        ("much", "`some_weight` must be a finite number"),
        (True, "`some_weight` must be a finite number"),
        ({"weight": 1, "strat": 3}, r"`some_weight.strat` must be a field of a ramp.*Did you mean `start`\?"),
        ({"start": 3}, "`some_weight` must be a number or a ramp with a `weight`"),
        ({"weight": -1}, "`weight` must be a finite number >= 0"),
        ({"weight": 1, "steps": 1.5}, "`steps` must be a whole number"),
        ({"weight": 1, "start": -1}, "`start` must be a whole number"),
        ({"weight": 1, "initial": float("inf")}, "`initial` must be a finite number"),
    ],
)
def test_mistakes(value, message):
    with pytest.raises(ValueError, match=message):
        as_ramp("some_weight", value)


def test_several_by_name():
    assert as_ramps("aux_loss_weights", {"kl": 2}) == {"kl": Ramp(2.0, start=0)}
    with pytest.raises(ValueError, match="`aux_loss_weights` must be a dict of weights by name, but got 3"):
        as_ramps("aux_loss_weights", 3)
    with pytest.raises(ValueError, match=r"`aux_loss_weights\['kl'\]` must be a finite number"):
        as_ramps("aux_loss_weights", {"kl": "x"})


@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf"), True, False, "1", None, [1.0]])
def test_bad_weights(value):
    with pytest.raises(ValueError, match=r"`perceptual_weight` must be a finite number >= 0, but got .*Use 0 to turn"):
        check_weight("perceptual_weight", value)


def test_good_weights():
    assert check_weight("w", 3) == 3.0
    assert check_weight("w", 0) == 0.0


@pytest.mark.parametrize("value", [-1, 0.5, float("nan"), float("inf"), True, "1", None])
def test_bad_steps(value):
    with pytest.raises(ValueError, match=r"`disc_start` must be a whole number of steps >= 0, but got .*Use 0"):
        check_step("disc_start", value)


def test_good_steps():
    assert (check_step("s", 0), check_step("s", 5e3)) == (0, 5000)


class TestInTheLoss:
    def test_a_ramp_scales_its_term_and_is_logged(self, make_loss, clip):
        loss = make_loss(perceptual_weight=Ramp(2.0, start=1, steps=4))
        x, y = clip((1, 3, 2, 16, 16)), clip((1, 3, 2, 16, 16), seed=2)
        for step, weight in {0: 0.0, 1: 0.0, 2: 0.5, 3: 1.0, 5: 2.0}.items():
            total, log = loss(x, y, 0, step)
            assert log["train/perceptual_weight"].item() == weight
            assert (log["train/perceptual_loss"] > 0) == (weight > 0)
            expected = log["train/recon_loss"] + weight * log["train/perceptual_loss"]
            assert total.item() == pytest.approx(expected.item(), rel=1e-6)

    def test_constant_weights_are_not_logged(self, make_loss, clip):
        log = make_loss()(clip(), clip(seed=2), 0, 0)[1]
        assert not [name for name in log if name.endswith("_weight") and name != "train/adaptive_weight"]

    def test_nothing_is_computed_while_a_weight_is_0(self, make_loss, make_judge, clip):
        ramp = {"weight": 1, "start": 5}
        judge = make_judge()
        loss = make_loss(perceptual_weight=ramp, adversarial_loss_weight=ramp, discr_3d_kwargs=judge)
        calls = []
        loss.perceptual_model.register_forward_hook(lambda *_: calls.append(1))
        for step in range(5):
            loss(clip(), clip(seed=2), 0, step)
        assert not calls
        assert not judge.seen
        loss(clip(), clip(seed=2), 0, 5)
        assert len(calls) == len(judge.seen) == 1

    @pytest.mark.parametrize("start", [None, 0, 3])
    def test_no_adversarial_term_counts_before_disc_start(self, make_loss, make_judge, clip, start):
        ramp = Ramp(1.0, start=start, steps=2)
        loss = make_loss(disc_start=3, perceptual_weight=0, adversarial_loss_weight=ramp, discr_3d_kwargs=make_judge())
        weights = [loss.weights_at(step)["adversarial_loss_weight"] for step in range(6)]
        assert weights == ([0, 0, 0, 1, 1, 1] if start == 0 else [0, 0, 0, 0, 0.5, 1])
        assert [bool(loss(clip(), clip(seed=2), 0, step)[1]["train/gen_loss"]) for step in range(6)] == [
            weight > 0 for weight in weights
        ]

    def test_a_discriminators_terms_may_ramp(self, make_loss, clip):
        loss = make_loss(
            perceptual_weight=0,
            grad_penalty_loss_weight=Ramp(2.0, start=1, steps=2),
            discr_3d_kwargs={"dim": 1, "image_size": 16, "frame_num": 2},
        )
        assert [loss.penalises(step) for step in range(4)] == [False, False, True, True]
        for step in range(4):
            total, log = loss(clip(), clip(seed=2), 1, step)
            penalty = loss.weights_at(step)["grad_penalty_loss_weight"] * log["train/grad_penalty_loss"]
            assert total.item() == pytest.approx((log["train/discr_loss"] + penalty).item(), rel=1e-6)

    def test_a_term_taken_away_needs_its_network(self, make_judge):
        with pytest.raises(ValueError, match="`adversarial_loss_weight` must be 0 where no discriminator is given"):
            VideoAutoencoderLoss(0, perceptual_weight=0, adversarial_loss_weight=Ramp(0, initial=1, start=5))
