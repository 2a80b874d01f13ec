import re
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine.base.memory_counter import MemoryCounter
from telecine.losses.perceptual.feature_maps import build_maps
from telecine.models import CausalVAE
from telecine.models.load import load_autoencoder
from telecine.models.student import StudentAutoencoder
from telecine.objective.weights import WeightSchedule
from telecine.settings import (
    DiscriminatorConfig,
    FeaturesConfig,
    ObjectiveConfig,
    PerceptualConfig,
    Ramp,
    Term,
    TrainConfig,
)
from telecine.settings.errors import validate
from telecine.settings.parse import RECIPES, read_config
from telecine.training.build import build_autoencoder
from telecine.training.checkpoint import Checkpointer
from telecine.training.fake_cuda_autocast import autocast_as_on_cuda
from telecine.training.memory import (
    fake_autoencoder,
    fake_lpips,
    fake_objective,
    plan_update,
)
from telecine.training.step import MicroBatch, train_step
from telecine.training.update_memory import (
    AUTOENCODER,
    AVERAGE,
    DATA,
    FROZEN,
    GRADIENTS,
    HOST_COPY,
    LOSSES,
    OPTIMIZER,
    PARAMETERS,
)

from ..models.tiny_models import FEW_LEVELS, tiny_model
from .helpers import new_state


@pytest.fixture
def light(tiny):
    """Return a function that creates settings that are planned fast: with a reconstruction loss alone."""
    pixels = ObjectiveConfig(perceptual_weight=0.0, perceptual=PerceptualConfig(net="alex"))

    def make(**changes):
        return tiny(**{"objective": pixels, **changes})

    return make


PLANS = {}  # tests of the same settings share a plan


def plan(config, device_type="cpu"):
    key = str(replace(config, output_dir="")), device_type
    if key not in PLANS:
        PLANS[key] = plan_update(config, device_type=device_type)
    return PLANS[key]


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def lpips_bytes():
    return bytes_of(fake_lpips("alex").weights.values())


def count(step, *held):
    """Return a counter after `step`, before which the tensors in `held` existed."""
    counter = MemoryCounter(LOSSES)
    with counter:
        counter.assign(PARAMETERS, held)
        counter.restart()
        step()
    return counter


def test_live_tensors_are_counted_once_and_freed():
    weight = torch.ones(100, 100)

    def step():
        first = weight * 2
        view = first.view(-1)
        del first
        second = view + 1
        del view
        second.add_(1)

    counter = count(step, weight)
    assert counter.peak_by_part == {PARAMETERS: 40_000, "losses": 80_000}
    assert counter.by_part == {PARAMETERS: 40_000, "losses": 0}


def test_activations_are_those_that_autograd_saves():
    layers = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4))
    x = torch.randn(5, 8)
    saved = []

    def keep(tensor):
        saved.append(tensor)
        return tensor

    def step():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            results.append(layers(x))

    results = []
    counter = count(step, x, *layers.parameters())
    storages = {id(tensor.untyped_storage()) for tensor in (x, *layers.parameters())}
    new = {
        id(s): s.nbytes()
        for s in (tensor.untyped_storage() for tensor in saved)
        if id(s) not in storages
    }
    output = bytes_of(results)
    assert sum(new.values()) == 2 * 5 * 16 * 4, "the inputs of SiLU and of the last layer"
    assert counter.by_part["losses"] == sum(new.values()) + output


def test_operations_are_two_for_each_product():
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    counter = count(lambda: F.conv2d(x, weight, padding=1))
    assert counter.flops_by_part.total() == 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)


@pytest.fixture
def full(tiny, everything):
    """Return settings of an autoencoder of two levels with every term and both discriminators; tests share a plan."""
    objective = everything["objective"]
    penalty = replace(objective.penalty, kind="r1")  # on real clips alone, which takes less time
    return tiny(
        causal_vae=replace(tiny().causal_vae, patch_size=2, channel_multipliers=(1, 2)),
        objective=replace(objective, multiscale_adversarial_loss_weight=0.0, penalty=penalty),
        discriminator=replace(
            everything["discriminator"], video="patch", num_scales=0, num_layers=1
        ),
    )


@pytest.mark.slow
def test_known_bytes_of_networks_and_optimizers(full):
    planned = plan(full)
    state = new_state(full)
    averaged = bytes_of(state.autoencoder.parameters())
    weights = [*state.autoencoder.parameters(), *state.objective.parameters()]
    trained = bytes_of(weights)
    buffers = bytes_of(state.objective.buffers())
    assert planned.resident_by_part[PARAMETERS] == trained + buffers
    count_of_steps = 4 * len(weights)
    assert planned.resident_by_part[OPTIMIZER] == 2 * trained + count_of_steps
    assert planned.resident_by_part[AVERAGE] == averaged
    assert planned.resident_by_part[FROZEN] == 2 * lpips_bytes(), (
        "that of the objective, and that of validation"
    )
    assert planned.largest_by_part[GRADIENTS] == trained
    assert planned.largest_by_part[DATA] == 4 * full.batch_size * 3 * 5 * 32 * 32
    assert {"image discriminator", "video discriminator"} <= set(planned.largest_by_part)
    assert any("discriminator" in part for part in planned.flops_by_part)


@pytest.mark.slow
def test_the_fake_update_allocates_what_a_real_one_does(full, light):
    planned = plan(full)
    state = new_state(full)
    video = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    step = state.objective.schedule.step_with_most_terms()

    def update():
        state.step = step
        train_step(state, [MicroBatch(video, range(2))])

    update()  # creates the states of the optimizers
    held = [*state.autoencoder.state_dict().values(), *state.objective.state_dict().values(), video]
    held += [
        x
        for optimizer in state.optimizers.values()
        for s in optimizer.state.values()
        for x in s.values()
    ]
    counter = count(update, *held, *state.ema.averages.values())
    assert counter.flops_by_part.total() == planned.flops
    real = (
        sum(counter.peak_by_part.values()) - bytes_of(held) - bytes_of(state.ema.averages.values())
    )
    assert planned.peak - planned.resident - planned.peak_by_part[DATA] == pytest.approx(
        real, rel=0.05
    )
    checkpointer = Checkpointer(full, state.autoencoder, is_main=True)
    for path in (checkpointer.files.history.path, checkpointer.files.warnings.path):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    checkpointer.save(state)
    checkpointer.wait()
    copied = [
        x
        for name, copy in checkpointer.copies.items()
        if name != "random"
        for x in copy.tensors.values()
    ]
    assert planned.resident_by_part[HOST_COPY] == planned.checkpoint == bytes_of(copied)
    on_gpu = plan(light(), "cuda")
    assert on_gpu.checkpoint > 0
    assert HOST_COPY not in on_gpu.largest_by_part


@pytest.mark.slow
def test_a_discriminator_with_attention_is_planned(light):
    objective = replace(light().objective, adversarial_loss_weight=0.5)
    discriminator = DiscriminatorConfig(video="first_frame", dim=1)
    config = light(objective=objective, discriminator=discriminator, batch_size=1)
    planned = plan(config)
    state = new_state(config)
    state.step = state.objective.schedule.step_with_most_terms()
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    counter = count(lambda: train_step(state, [MicroBatch(video, range(1))]))
    assert counter.flops_by_part.total() == planned.flops
    assert planned.flops_by_part["video discriminator"] > 0


@pytest.mark.slow
def test_what_depends_on_clips_grows_with_the_batch_and_less_with_checkpointing(light):
    two, six = (plan(light(batch_size=size)) for size in (2, 6))
    recomputed = plan(light(batch_size=6, model_gradient_checkpointing=True))
    assert two.resident_by_part == six.resident_by_part == recomputed.resident_by_part
    assert two.peak < six.peak
    assert six.flops == pytest.approx(3 * two.flops, rel=0.01)
    assert recomputed.largest_by_part[AUTOENCODER] < 0.9 * six.largest_by_part[AUTOENCODER]
    assert recomputed.flops_by_part[AUTOENCODER] > six.flops_by_part[AUTOENCODER]
    # Micro-batches are all on the device.
    both = plan(light(gradient_accumulation_steps=2))
    assert both.largest_by_part[DATA] == 2 * two.largest_by_part[DATA]
    assert both.flops == pytest.approx(2 * two.flops)


@pytest.fixture
def student(tiny, tmp_path):
    """Return the folder of a student of the tiny autoencoder."""
    name = str(tmp_path / "teacher")
    build_autoencoder(tiny()).save_pretrained(name)
    loaded = load_autoencoder(name)
    architecture = replace(loaded.config, base_channels=16)
    StudentAutoencoder.of(loaded, name, load_autoencoder, architecture).save_pretrained(
        tmp_path / "student"
    )
    return str(tmp_path / "student")


@pytest.mark.slow
def test_a_student_is_planned_with_its_teacher(light, student):
    config = light(model=student)
    planned = plan(config)
    state = new_state(config)
    teacher = state.autoencoder.encoder_model
    assert planned.resident_by_part[PARAMETERS] == bytes_of(
        state.autoencoder.parameters()
    ) + bytes_of(state.objective.buffers())
    assert planned.resident_by_part[FROZEN] == lpips_bytes() + bytes_of(teacher.parameters())
    assert not any(weight.requires_grad for weight in teacher.parameters())
    video = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    counter = count(lambda: train_step(state, [MicroBatch(video, range(2))]))
    assert counter.flops_by_part.total() == planned.flops
    recomputed = plan(light(model=student, model_gradient_checkpointing=True))
    assert recomputed.largest_by_part[AUTOENCODER] < planned.largest_by_part[AUTOENCODER]


@pytest.mark.slow
@pytest.mark.usefixtures("probe_each_configuration_once")
@pytest.mark.parametrize(
    ("name", "num_frames"), [("wan", 1), ("ltx_video", 9)]
)  # with telecine's checkpointing, and diffusers'
def test_a_model_of_diffusers_is_planned_with_checkpointing(name, num_frames, light, tmp_path):
    """Without values there are no gradients to compare."""
    tiny_model(name, **FEW_LEVELS[name]).save_pretrained(tmp_path / name)
    config = light(model=str(tmp_path / name))
    config = replace(config, clips=replace(config.clips, num_frames=num_frames))
    planned = plan(config)
    recomputed = plan(replace(config, model_gradient_checkpointing=True))
    assert recomputed.largest_by_part[AUTOENCODER] < planned.largest_by_part[AUTOENCODER]
    assert recomputed.flops_by_part[AUTOENCODER] > planned.flops_by_part[AUTOENCODER]


@pytest.mark.slow
def test_a_decoder_that_generates_is_planned(light):
    direct, config = light(), light()
    config = replace(config, causal_vae=replace(config.causal_vae, decoder="flow"))
    planned = plan(config)
    expected = plan(direct)
    assert planned.flops_by_part[AUTOENCODER] > expected.flops_by_part[AUTOENCODER]
    state = new_state(config)
    assert planned.resident_by_part[PARAMETERS] == bytes_of(
        state.autoencoder.parameters()
    ) + bytes_of(state.objective.buffers())
    video = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    counter = count(lambda: train_step(state, [MicroBatch(video, range(2))]))
    assert counter.flops_by_part.total() == planned.flops


def test_a_student_with_random_weights_is_refused(tiny, student):
    with pytest.raises(
        ValueError, match=r"`random_weights` must be false for a student.*telecine distill"
    ):
        build_autoencoder(tiny(model=student, random_weights=True))


class Tubes(nn.Conv3d):
    """Features of clips."""

    def __init__(self):
        super().__init__(3, 6, (2, 8, 8), stride=(2, 8, 8))


@pytest.mark.slow
def test_a_network_that_the_latent_is_aligned_with(light, monkeypatch):
    monkeypatch.setattr("telecine.base.imports.allowed_packages", {"telecine", __name__})
    params = {"latent_channels": 4, "net": f"{__name__}.Tubes", "time_stride": 2, "num_features": 6}
    objective = replace(light().objective, terms={"alignment": Term(weight=0.5, params=params)})
    planned = plan(light(objective=objective))
    assert planned.resident_by_part[FROZEN] == lpips_bytes() + bytes_of(Tubes().parameters())


@pytest.mark.slow
def test_terms_that_load_weights(light, tmp_path):
    CausalVAE(light().causal_vae).save_pretrained(tmp_path / "teacher")
    aligned = Term("alignment", weight=0.5, params={"latent_channels": 4})
    teacher = Term(
        "telecine.tools.distill.TeacherLatent", 0.5, {"teacher": str(tmp_path / "teacher")}
    )
    planned = plan(
        light(
            objective=replace(light().objective, terms={"alignment": aligned, "teacher": teacher})
        )
    )
    assert planned.resident_by_part[FROZEN] > 2 * lpips_bytes(), "LPIPS, and both networks"


def test_a_perceptual_network_that_no_term_uses_needs_no_memory(light):
    of_vgg = replace(light().objective, perceptual=PerceptualConfig(net="vgg"))
    vgg = plan(light(objective=of_vgg))
    alex = plan(light())
    assert vgg.resident_by_part == alex.resident_by_part
    assert vgg.peak_by_part == alex.peak_by_part
    assert vgg.resident_by_part[FROZEN] == lpips_bytes(), "that of validation"


def test_a_model_of_rgb_for_other_channels(light, tmp_path):
    CausalVAE(light().causal_vae).save_pretrained(tmp_path / "model")
    config = light(model=str(tmp_path / "model"), clips=replace(light().clips, channels="rgba"))
    assert fake_autoencoder(config).in_channels == 4


def test_an_objective_is_planned_several_times(light):
    objective = ObjectiveConfig(perceptual_weight=0.0, adversarial_loss_weight=0.5)
    discriminator = DiscriminatorConfig(video="patch", dim=1, norm="spectral", num_layers=1)
    config = light(objective=objective, discriminator=discriminator)
    shared = fake_objective(config)
    first = plan_update(config, None, shared, device_type="cpu")
    assert first == plan_update(config, None, shared, device_type="cpu") == plan(config)


def test_frozen_features_are_planned_without_their_weights(light):
    features = FeaturesConfig(
        net="torchvision/squeezenet1_1", weights="missing.pth", layers=("features.1",)
    )
    weights = {"adversarial_loss_weight": 0.5, "multiscale_adversarial_loss_weight": 0.1}
    discriminator = DiscriminatorConfig(video="features", dim=2, features=features, num_scales=1)
    config = light(discriminator=discriminator, objective=replace(light().objective, **weights))
    planned = plan(config)
    network = build_maps(features.net, None, features.layers, load=False)
    frozen = bytes_of([*network.parameters(), *network.buffers()])
    assert planned.resident_by_part[FROZEN] == lpips_bytes() + frozen
    assert (
        planned.largest_by_part["video discriminator"]
        > planned.largest_by_part["discriminator at 1/2"]
        > 0
    )


def test_a_saved_model_is_planned_from_its_configuration(light, tmp_path):
    config = light()
    model = CausalVAE(config.causal_vae)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    assert plan_update(replace(config, model=str(tmp_path / "model")), device_type="cpu") == plan(
        config
    )


def test_a_size_that_the_model_does_not_reproduce(light):
    config = light()
    with pytest.raises(ValueError, match=r"num_frames.*Use 5, the nearest"):
        plan(replace(config, clips=replace(config.clips, num_frames=6)))


def test_autocast_computes_in_float32_what_cuda_does():
    x = torch.randn(2, 4, 8)

    def dtypes():
        with torch.autocast("cpu", torch.bfloat16):
            y = F.conv1d(x, torch.randn(4, 4, 1))
            return [
                z.dtype
                for z in (y, F.group_norm(y, 2), y.softmax(1), y.sum(), F.normalize(y), F.silu(y))
            ]

    before = dtypes()
    with autocast_as_on_cuda():
        assert dtypes() == [torch.bfloat16, *[torch.float32] * 4, torch.bfloat16]
    assert dtypes() == before == [torch.bfloat16] * 6


@pytest.mark.parametrize(
    "recipe", sorted((RECIPES / "models").glob("*.yaml")), ids=lambda path: path.stem
)
def test_models_of_recipes_are_planned_without_a_network(recipe, monkeypatch):
    """They have as many weights as the first line of the recipe says."""
    import_module("diffusers.configuration_utils")  # which would keep what is replaced here
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    model = fake_autoencoder(TrainConfig(model=read_config(recipe).model))
    millions = re.search(r"(\d+) M weights", recipe.read_text(encoding="utf-8"))[1]
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e6) == int(millions)


@pytest.mark.parametrize(
    ("options", "step", "off"),
    [
        ({"adversarial_loss_weight": Ramp(1.0, steps=100)}, 1104, []),
        (
            {"adversarial_loss_weight": 1.0, "perceptual_weight": Ramp(0, initial=1.0, start=2000)},
            1984,
            [],
        ),
        (
            {"adversarial_loss_weight": 1.0, "perceptual_weight": Ramp(0, initial=1.0, start=500)},
            1008,
            ["perceptual_weight"],
        ),
    ],
)
def test_the_step_with_most_terms_has_a_penalty_and_every_term_that_can_be_on(options, step, off):
    settings = {
        "disc_start": 1000,
        "grad_penalty_loss_weight": 1.0,
        "gan": {"disc_train_start": 800},
        "penalty": {"every": 16},
    }
    weights = WeightSchedule(validate(ObjectiveConfig, {**settings, **options}))
    assert weights.step_with_most_terms() == step
    assert weights.off_at(step) == off
    assert weights.at(step)["grad_penalty"] == 16
    assert weights.step_with_most_terms(900) < 900
