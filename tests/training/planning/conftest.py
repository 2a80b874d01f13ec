from dataclasses import replace

import pytest

from telecine.settings import ObjectiveConfig, PerceptualConfig


@pytest.fixture
def light(tiny):
    """Return a function that creates settings that are planned fast: without discriminators, with one level."""

    def make(**changes):
        smallest = replace(tiny().causal_vae, patch_size=4, channel_multipliers=(1,))
        objective = ObjectiveConfig(perceptual=PerceptualConfig(net="alex"))
        return tiny(**{"objective": objective, "causal_vae": smallest, **changes})

    return make
