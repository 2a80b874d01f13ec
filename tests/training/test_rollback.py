"""What is said about a divergence. Runs that diverge are in `test_trainer.py`."""

import pickle

import pytest

from telecine.settings import OptimizerConfig
from telecine.training.rollback import Rollback, lr_factor, remedy
from telecine.training.step import DivergenceError

PAST = [Rollback(12, 10, "a"), Rollback(14, 10, "a")]


def test_each_rollback_halves_the_learning_rates():
    assert [lr_factor(PAST[:number]) for number in range(3)] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("step", "past", "start", "end"),
    [
        (None, [], "Run the same command", ": it starts again, as it has no checkpoint."),
        (10, [], "Run the same command", ": it resumes from step 10."),
        (10, PAST, "It went back 2 times already. Run the same command", ": it resumes from step 10."),
    ],
)
def test_the_remedy_names_settings_and_the_checkpoint(step, past, start, end):
    rates = OptimizerConfig(lr=1e-4, disc_lr=3e-4)
    assert remedy(rates, step, past) == f"{start} with --optimizer.lr 5e-05 --optimizer.disc_lr 0.00015{end}"


def test_a_divergence_passes_from_process_to_process():
    error = pickle.loads(pickle.dumps(DivergenceError("`a` is not finite.", "a")))
    assert (type(error), str(error), error.value) == (DivergenceError, "`a` is not finite.", "a")
