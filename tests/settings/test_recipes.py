"""Recipes are listed, shown and copied; given one after another they train."""

import runpy
from dataclasses import replace
from functools import cache
from itertools import cycle, islice, product
from pathlib import Path

import pytest
import torch
import yaml

from telecine.__main__ import main
from telecine.data import sample_videos
from telecine.objective.weights import WeightSchedule
from telecine.settings.parse import RECIPES, find_recipe, read_config, recipes
from telecine.training.step import MicroBatch, train_step
from telecine.training.trainable import DECODER

from ..models.tiny_models import CLIPS, shared, tiny_model
from ..training.helpers import new_state

NO_PICTURES = runpy.run_path(str(Path(__file__).parents[1] / "training" / "no_pictures.py"))
# The tiny model of the class of each recipe of a model.
MODELS = {
    "cogvideox": "cogvideox",
    "wan2.1": "wan",
    "wan2.2": "wan_residual",
    "ltx": "ltx_video",
    "hunyuanvideo": "hunyuan_video",
    "cosmos": "cosmos",
    "mochi": "mochi",
    "sd_vae": "kl_image",
    "flux_vae": "kl_image",
    "dc_ae": "dc_ae",
}
STAGES = ("whole", "decoder", "lora", "scratch_128", "scratch_256")
DISTILLATION = ("prune_align", "prune_match", "prune_gan")
HARDWARE = ("cpu", "24gb", "80gb")
OBJECTIVES = [
    f"{name}_objective"
    for name in ("cogvideo", "cosmos", "magvit2", "open_sora", "sharp", "vidtok", "wf_vae")
]


def names_in(group):
    return sorted(path.stem for path in (RECIPES / group).glob("*.yaml"))


@cache
def values_of(name):
    return yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))


def test_the_recipes_are_those_that_are_tested():
    assert names_in("models") == sorted(MODELS)
    assert names_in("stages") == sorted(STAGES)
    assert names_in("hardware") == sorted(HARDWARE)
    assert names_in("distillation") == sorted(DISTILLATION)
    assert names_in("objectives") == sorted(OBJECTIVES)
    folders = {str(path.parent.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml")}
    assert folders == {
        ".",
        "models",
        "stages",
        "objectives",
        "hardware",
        "distillation",
    }
    assert len(recipes()) == len(list(RECIPES.rglob("*.yaml"))), "two recipes have the same name"


def leaves(values, prefix=""):
    for name, value in values.items():
        yield from (
            leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
        )


def test_models_stages_and_hardware_set_different_things():
    names = {
        name: set(leaves(values_of(name))) for name in (*MODELS, *STAGES, *OBJECTIVES, *HARDWARE)
    }
    for model, stage, hardware in product(MODELS, (*STAGES, *OBJECTIVES), HARDWARE):
        of_model = names[model]
        of_stage = names[stage]
        of_hardware = names[hardware]
        assert of_model & of_stage <= {"model"}
        assert not of_model & of_hardware
        smaller = {"discriminator.dim"} | (
            {"objective.perceptual.net"} if stage in OBJECTIVES else set()
        )
        assert of_stage & of_hardware <= {"clips.height", "clips.width"} | smaller


@pytest.mark.parametrize("name", [*MODELS, *STAGES, *OBJECTIVES, *HARDWARE, *DISTILLATION])
def test_every_setting_has_its_reason(name):
    first, *lines = find_recipe(name).read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    settings = [line for line in lines if not line.endswith(":") and not line.startswith("# ")]
    assert len(settings) >= 2
    alone = {line.split(":")[0].strip() for line in settings if " # " not in line}
    assert alone <= {"output_dir", "width"}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_have_the_gan_of_gpu(stage):
    config = read_config(stage)
    gpu = read_config("gpu")
    assert replace(config.discriminator, init=None) == gpu.discriminator
    assert config.optimizer.grad_clip == gpu.optimizer.grad_clip
    for name in (
        "adversarial_loss_weight",
        "reconstruction",
        "perceptual",
        "penalty",
        "adaptive_weight",
    ):
        assert getattr(config.objective, name) == getattr(gpu.objective, name)


@pytest.mark.usefixtures("probe_each_configuration_once")
@pytest.mark.parametrize("model", MODELS)
def test_the_clips_are_those_that_the_model_reproduces(model):
    sizes = {
        values["clips"][side]
        for values in map(values_of, HARDWARE + STAGES)
        for side in ("height", "width")
        if side in values.get("clips", {})
    }
    assert min(sizes) == 64
    assert all(size % 64 == 0 for size in sizes)
    shared(MODELS[model]).check_clip(values_of(model)["clips"]["num_frames"], 64, 64)


# Instead of the sizes that the recipes have.
SMALL = {
    "device": "cpu",
    "val_clips": 1,
    "latent_clips": 1,
    "trackers": [],
    "linear_baseline": False,
    "gradient_accumulation_steps": 1,
    "clips": {"num_workers": 0, "cache": False},
    "objective": {"perceptual": {"net": "alex"}},
    "discriminator": {"dim": 1, "num_layers": 1},
}
# Every model, stage and kind of hardware once or more; the second stage from scratch follows the first, see below.
RUNS = list(
    zip(
        MODELS,
        islice(cycle(STAGES[:4]), len(MODELS)),
        islice(cycle(HARDWARE), len(MODELS)),
        strict=True,
    )
)


def small(model):
    """Return settings that make a run of the tiny model of a recipe small."""
    num_frames, *sides = CLIPS[MODELS[model]]
    height, width = (max(side, 32) for side in sides)
    return {
        **SMALL,
        "clips": {**SMALL["clips"], "num_frames": num_frames, "height": height, "width": width},
    }


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "probe_each_configuration_once")
@pytest.mark.parametrize(("model", "stage", "hardware"), RUNS)
def test_an_update_with_the_recipes(model, stage, hardware, tmp_path, cached_weights):
    published = tiny_model(MODELS[model])
    published.save_config(tmp_path)
    values = [
        *map(values_of, (model, stage, hardware)),
        small(model),
        {"model": str(tmp_path / "config.json")},
    ]
    config = read_config(*values)
    state = new_state(config)
    before = {name: weight.clone() for name, weight in state.autoencoder.named_parameters()}
    state.step = WeightSchedule(config.objective).step_with_most_terms()
    clips = config.clips
    video = torch.rand(1, 3, clips.num_frames, clips.height, clips.width) * 2 - 1
    log = train_step(state, [MicroBatch(video, [0])])
    assert {"train/gen_loss", "train/perceptual_loss"} <= log.keys()
    changed = {
        name
        for name, weight in state.autoencoder.named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert changed
    if stage in ("decoder", "lora"):
        assert all(name.split(".")[1] in DECODER for name in changed)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "cached_weights")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_update_with_each_objective(name):
    size = {"num_frames": 5, "height": 32, "width": 32}
    model = {"base_channels": 8, "blocks_per_level": 1, "latent_channels": 4}
    values = {**SMALL, "clips": {**SMALL["clips"], **size}, "causal_vae": model}
    config = read_config(*map(values_of, ("gpu", name)), values)
    state = new_state(config)
    state.step = WeightSchedule(config.objective).step_with_most_terms()
    log = train_step(state, [MicroBatch(torch.rand(1, 3, 5, 32, 32) * 2 - 1, [0])])
    logged = {
        "adversarial_loss_weight": "gen_loss",
        "grad_penalty_loss_weight": "grad_penalty_loss",
        "quantizer_aux_loss_weight": "kl_loss",
    }
    objective = values_of(name)["objective"]
    assert {f"train/{logged[key]}" for key in logged if objective.get(key)} <= log.keys()
    assert {f"train/{term}_loss" for term in objective.get("terms", {})} <= log.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "probe_each_configuration_once")
def test_the_second_stage_from_scratch_takes_over_the_first(
    tmp_path, monkeypatch, cached_weights, capsys
):
    monkeypatch.chdir(tmp_path)
    NO_PICTURES["leave_pictures_out"](monkeypatch.setattr)
    tiny_model("wan").save_pretrained("published")
    Path("small.yaml").write_text(yaml.safe_dump(small("wan2.1")))
    first, second = (
        [
            "train",
            "--config=wan2.1",
            f"--config={stage}",
            "--config=small.yaml",
            "--data",
            str(sample_videos()[0]),
        ]
        for stage in ("scratch_128", "scratch_256")
    )
    one = ["--steps=1", "--objective.disc_start=0", "--objective.gan.disc_train_start=0"]
    assert main([*first, "--model=published", *one]) == 0
    assert main([*second, "--dry_run"]) == 0
    assert "every term is on" in capsys.readouterr().out
    assert [path.name for path in Path("runs").iterdir()] == ["scratch_128"]


def test_recipes_are_listed_and_shown(capsys):
    assert main(["recipes", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert listed == list(recipes())
    assert main(["recipes", "show", "decoder"]) == 0
    assert capsys.readouterr().out == find_recipe("decoder").read_text(encoding="utf-8")
