"""The table of the values that training logs."""

import pytest

from telecine.base.logged_values import LOGGED_VALUES, find_logged_value
from telecine.settings import ObjectiveConfig


def test_the_terms_of_the_objective_are_in_the_table():
    terms = ObjectiveConfig().term_schedules().values()
    assert len(terms) == 7
    for term in terms:
        value = LOGGED_VALUES[term.part_of or f"{term.name}_loss"]
        assert value.logged_by == term.side, term.name


def test_values_of_several_discriminators():
    assert find_logged_value("logits_real_std_discr_3d").label == "spread of logits, real, discr_3d"
    assert find_logged_value("lecam_loss_discr_3d") is None, "only the sum is logged"
    assert find_logged_value("adaptive_weight_weight") is None
    assert find_logged_value("edges_loss") is None


@pytest.mark.parametrize(
    "name", ["kl_loss", "entropy_loss", "commitment_loss", "quantizer_loss", "commit_loss"]
)
def test_the_auxiliary_losses_of_models_are_in_the_table(name):
    value = find_logged_value(name)
    assert (value.kind, value.logged_by) == ("loss", "model")
