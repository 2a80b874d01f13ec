import re

import pytest

from telecine.losses.perceptual import LPIPS
from telecine.settings import ObjectiveConfig
from telecine.settings.listing import settings_of


@pytest.mark.slow
@pytest.mark.benchmarks
def test_table(run_here, tables_in, monkeypatch):
    monkeypatch.setattr(
        "telecine.LPIPS", lambda net: LPIPS("alex")
    )  # a tenth of VGG16's operations
    text = run_here("options.py", "--smoke")
    assert text.startswith("dim 1, 32 px, 4 frames, batch 1; ")
    (_, [reference, *rows]), (_, latent) = tables_in(text)
    assert len(latent) == 8
    assert all(re.fullmatch(r"\d+\.\d+ x", cell) for _, cell in latent[1:])
    assert reference[0] == "reference"
    assert all(re.fullmatch(r"\d+\.\d+ s", cell) for cell in reference[1:])
    assert all(re.fullmatch(r"\d+\.\d+ x", cell) for _, *cells in rows[:-1] for cell in cells)
    assert rows[-1][0] == "no discriminator"
    assert rows[-1][2] == "-"


def test_every_setting_is_measured(benchmark_module):
    """Settings without a row change neither the terms nor how they are computed."""
    module = benchmark_module("options")
    measured = {name for options in module.OPTIONS.values() for name in options}
    rows = [*module.OPTIONS.values(), *module.LATENT_TERMS.values()]
    terms = {
        name.removeprefix("terms.")
        for options in rows
        for name in options
        if name.startswith("terms.")
    }
    assert terms == set(benchmark_module("telecine.objective.term_functions").TERM_FUNCTIONS)
    groups = ("reconstruction", "perceptual", "gan", "penalty", "adaptive_weight")
    names = {
        item.name for item in settings_of(ObjectiveConfig) if item.name.partition(".")[0] in groups
    }
    names -= {*groups}
    assert names - measured == {
        "reconstruction.nll_reduction",
        "gan.disc_train_start",
        "penalty.every",
        "adaptive_weight.min_norm",
        "adaptive_weight.max",
    }
