"""Weights that start late or change linearly, in every form, and all weights at a step."""

import pytest

from telecine import Ramp
from telecine.objective.weights import WeightSchedule
from telecine.settings import ObjectiveConfig
from telecine.settings.errors import validate


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        (Ramp(2.0), {0: 2.0, 7: 2.0}),
        (Ramp(2.0, start=3), {0: 0.0, 2: 0.0, 3: 2.0, 9: 2.0}),
        (
            Ramp(2.0, start=10, steps=4),
            {9: 0.0, 10: 0.0, 11: 0.5, 12: 1.0, 13: 1.5, 14: 2.0, 99: 2.0},
        ),
        (Ramp(0, start=2, steps=2, initial=1.0), {0: 1.0, 2: 1.0, 3: 0.5, 4: 0.0, 5: 0.0}),
        (Ramp(3.0, steps=3), {0: 0.0, 1: 1.0, 3: 3.0}),
    ],
)
def test_values_of_a_ramp(ramp, expected):
    assert {step: ramp.at(step) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, Ramp(0.5, start=7)),
        (Ramp(0.5, steps=2), Ramp(0.5, start=7, steps=2)),
        (Ramp(0.5, start=0), Ramp(0.5, start=0)),
    ],
)
def test_every_form_of_a_weight(value, expected):
    config = ObjectiveConfig(disc_start=7, adversarial_loss_weight=value)
    assert config.term_schedules()["adversarial"].ramp == expected


def schedule(**options):
    return WeightSchedule(validate(ObjectiveConfig, options))


def test_all_weights_at_a_step():
    weights = schedule(
        perceptual_weight=0.7,
        adversarial_loss_weight=0.3,
        multiscale_adversarial_loss_weight=0.2,
        grad_penalty_loss_weight=1.5,
        quantizer_aux_loss_weight=0.9,
        gan={"feature_matching_loss_weight": 0.4, "lecam_loss_weight": Ramp(0.5, steps=2)},
        penalty={"every": 2},
        terms={"wavelet": 0.1, "gram": {"weight": {"weight": 2.0, "start": 3}}},
        disc_start=3,
    )
    before = weights.at(2)
    after = weights.at(4)
    constant = {
        "perceptual": 0.7,
        "quantizer_aux": 0.9,
        "lecam": 0.5,
        "grad_penalty": 3.0,
        "wavelet": 0.1,
    }
    late = {"adversarial": 0.3, "multiscale_adversarial": 0.2, "feature_matching": 0.4, "gram": 2.0}
    assert before.by_term == {**constant, **dict.fromkeys(late, 0)}
    assert after.by_term == {**constant, **late}
    assert (weights.at(1).ramps, after.ramps) == (
        {"lecam_loss_weight": 0.25, "gram_loss_weight": 0.0},
        {"lecam_loss_weight": 0.5, "gram_loss_weight": 2.0},
    )
    assert [weights.at(step)["grad_penalty"] for step in range(4)] == [3.0, 0.0, 3.0, 0.0]
    assert weights.is_ever_on("lecam")
    assert weights.is_ever_on("gram")
    assert not schedule(terms={"gram": 0}).is_ever_on("gram")


def test_the_penalty_starts_with_the_discriminators():
    weights = schedule(grad_penalty_loss_weight=1, gan={"disc_train_start": 2}, disc_start=9)
    assert [weights.at(step)["grad_penalty"] for step in range(4)] == [0, 0, 1, 1]


def test_the_log_has_the_ramp_of_a_lazy_penalty_not_its_weight_in_the_loss():
    weights = schedule(grad_penalty_loss_weight=Ramp(2.0, steps=4), penalty={"every": 2})
    at_steps = [weights.at(step) for step in range(5)]
    assert [at["grad_penalty"] for at in at_steps] == [0, 0, 2, 0, 4]
    logged = [at.ramps["grad_penalty_loss_weight"] for at in at_steps]
    assert logged == [0, 0.5, 1, 1.5, 2]


@pytest.mark.parametrize("start", [None, 0, 3])
def test_no_adversarial_term_counts_before_disc_start(start):
    weights = schedule(disc_start=3, adversarial_loss_weight=Ramp(1.0, start=start, steps=2))
    values = [weights.at(step)["adversarial"] for step in range(6)]
    assert values == ([0, 0, 0, 1, 1, 1] if start == 0 else [0, 0, 0, 0, 0.5, 1])
