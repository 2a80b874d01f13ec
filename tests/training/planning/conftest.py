import pytest

from telecine.settings import ObjectiveConfig, PerceptualConfig


@pytest.fixture
def light(tiny):
    """Return a function that creates settings without discriminators, which take the most time to plan."""

    def make(**changes):
        return tiny(objective=ObjectiveConfig(perceptual=PerceptualConfig(net="alex")), **changes)

    return make
