import pytest

from telecine.settings import ObjectiveConfig, PerceptualConfig


@pytest.fixture
def light(tiny):
    """Return a function that creates settings that are planned fast: without discriminators."""

    def make(**changes):
        return tiny(**{"objective": ObjectiveConfig(perceptual=PerceptualConfig(net="alex")), **changes})

    return make
