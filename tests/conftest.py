"""Shape types are checked at run time, in tests only.

`telecine.perceptual` is left out: its functions raise errors of their own, which are tested, for the very arguments
that the shape types refuse, and the checker would speak first.
"""

import gc
import sys

import pytest
from jaxtyping import install_import_hook

CHECKED = ("telecine.losses", "telecine.discriminators")

assert not any(name.startswith("telecine") for name in sys.modules), "telecine was imported before the hook"
install_import_hook(list(CHECKED), "beartype.beartype")


def pytest_collection_finish():
    """Let no later collection of garbage look at what the imports have made, as the end of each training asks for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def cached_weights():
    """Have the real weights in the cache; where they cannot be had, each test that needs them fails and says why."""
    from telecine.perceptual import fetch

    return {net: fetch(net) for net in ("vgg", "alex")}
