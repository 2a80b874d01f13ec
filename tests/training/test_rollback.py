"""What is said about a divergence. Runs that diverge are in `test_trainer.py`."""

import pickle

import pytest

from telecine.settings import OptimizerConfig
from telecine.training.step import DivergenceError
from telecine.training.trainer import _remedy


@pytest.mark.parametrize(
    ("step", "past", "start", "end"),
    [
        (None, 0, "Run the same command", ": it starts again, as it has no checkpoint."),
        (10, 0, "Run the same command", ": it resumes from step 10."),
        (10, 2, "It went back 2 times already. Run the same command", ": it resumes from step 10."),
    ],
)
def test_the_remedy_names_settings_and_the_checkpoint(step, past, start, end):
    rates = OptimizerConfig(lr=1e-4, disc_lr=3e-4)
    assert _remedy(rates, step, past) == f"{start} with --optimizer.lr 5e-05 --optimizer.disc_lr 0.00015{end}"


def test_a_divergence_passes_from_process_to_process():
    error = pickle.loads(pickle.dumps(DivergenceError("`a` is not finite.", "a")))
    assert (type(error), str(error), error.value) == (DivergenceError, "`a` is not finite.", "a")
