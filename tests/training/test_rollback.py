"""What is said about a divergence. Runs that diverge are in `test_trainer.py`."""

import pickle

import pytest

from telecine.settings import OptimizerConfig
from telecine.training.loop import remedy_for_divergence
from telecine.training.step import DivergenceError


@pytest.mark.parametrize(
    ("known", "past", "start", "rates", "end"),
    [
        (None, 0, "Run", ("5e-05", "0.00015"), ": it starts again, as it has no checkpoint."),
        (0, 0, "Run", ("5e-05", "0.00015"), ": it resumes from step 10."),
        (2, 2, "It went back 2 times already. Run", ("5e-05", "0.00015"), ": it resumes from step 10."),
        (0, 3, "It went back 3 times already. Run", ("6.25e-06", "1.875e-05"), ": it resumes from step 10."),
    ],
)
def test_the_remedy_names_rates_below_the_last_and_the_checkpoint(known, past, start, rates, end):
    """A checkpoint has lower rates only if it `known`s that the run went back."""
    checkpoint = None if known is None else {"step": 10, "rollbacks": known * [(1, 0, "x")]}
    settings = f"--optimizer.lr {rates[0]} --optimizer.disc_lr {rates[1]}"
    found = remedy_for_divergence(OptimizerConfig(lr=1e-4, disc_lr=3e-4), checkpoint, past)
    assert found == f"{start} the same command with {settings}{end}"


def test_a_divergence_passes_from_process_to_process():
    error = pickle.loads(pickle.dumps(DivergenceError("`a` is not finite.", "a")))
    assert (type(error), str(error), error.value) == (DivergenceError, "`a` is not finite.", "a")
