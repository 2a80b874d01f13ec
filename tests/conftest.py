"""Shape types are checked at run time, in tests only.

`telecine.perceptual` is left out: its functions raise errors of their own, which are tested, for the very arguments
that the shape types refuse, and the checker would speak first.
"""

import gc
import random
import sys

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

CHECKED = ("telecine.losses", "telecine.discriminators")

assert not any(name.startswith("telecine") for name in sys.modules), "telecine was imported before the hook"
install_import_hook(list(CHECKED), "beartype.beartype")


settings.register_profile("same every time", derandomize=True, database=None)
settings.load_profile("same every time")


def pytest_collection_finish():
    """Let no later collection of garbage look at what the imports have made, as the end of each training asks for."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Let the fixtures that several tests share be the same, whichever test comes first."""
    _seed()


@pytest.fixture(autouse=True)
def same_numbers_in_any_order():
    """Draw the same numbers in a test whatever ran before it in the same process."""
    _seed()


def _seed():
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def cached_weights():
    """Have the real weights in the cache; where they cannot be had, each test that needs them fails and says why."""
    from telecine.perceptual import fetch

    return {net: fetch(net) for net in ("vgg", "alex")}
