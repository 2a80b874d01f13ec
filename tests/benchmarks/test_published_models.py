import pytest

from telecine.settings.parse import RECIPES, read_config

# The demo without discriminators, whose plan takes a third of the time.
SMALL = read_config(
    "demo",
    {"objective": {"adversarial_loss_weight": 0.0}, "discriminator": {"video": "none"}},
    {"causal_vae": {"channel_multipliers": [1, 1]}},
)


@pytest.mark.slow
@pytest.mark.benchmarks
def test_the_plan_of_a_model(benchmark_module, monkeypatch, tmp_path):
    module = benchmark_module("published_models")
    monkeypatch.setattr(module, "read_config", lambda name: SMALL)
    monkeypatch.setattr(module, "PLANNED_SIZE", (17, 1024, 1024))
    ((name, clip, *numbers),) = module.planned_rows(tmp_path, ["telecine (gpu)"])
    assert (name, clip) == ("telecine (gpu)", "17 x 1024 x 1024")
    plain, recomputed, half, both = (float(number) for number in numbers[2:6])
    assert both <= recomputed <= half < plain
    assert float(numbers[6]) > 0


def test_every_recipe_of_a_model_is_planned(benchmark_module):
    recipes = benchmark_module("published_models").RECIPES
    assert set(recipes.values()) == {path.stem for path in (RECIPES / "models").glob("*.yaml")}
