import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import get_args, get_type_hints

import pytest
import torch
from rich.console import Console
from torch import nn

from telecine import Ramp, VideoAutoencoderLoss
from telecine.discriminators import (
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
    FeatureDiscriminator,
    PatchDiscriminator,
    PatchDiscriminator3D,
)
from telecine.models import CausalVAE
from telecine.runs import Run
from telecine.settings import (
    AdaptiveWeightConfig,
    CausalVAEConfig,
    DiscriminatorConfig,
    FeaturesConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PerceptualConfig,
    ReconstructionConfig,
    TrainableConfig,
)
from telecine.training import train
from telecine.training.build import (
    OPTIMIZERS,
    build_accelerator,
    build_autoencoder,
    build_objective,
    build_state,
    to_channels_last,
)
from telecine.training.step import set_learning_rates
from telecine.training.tensor_files import save_tensors

from .helpers import quiet


def objective_of(config):
    return build_objective(config.objective, config.discriminator, config.clips)


def test_every_setting_reaches_the_loss(tiny, everything):
    objective = replace(
        everything["objective"],
        reconstruction=ReconstructionConfig(nll_reduction="sum"),
        adaptive_weight=AdaptiveWeightConfig(min_norm=0.1, max=7.0),
    )
    loss = objective_of(tiny(objective=objective, discriminator=everything["discriminator"]))
    assert loss.config == objective != ObjectiveConfig()


def test_the_launcher_does_not_scale_gradients(tiny, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = nn.Parameter(torch.zeros(1))
    build_accelerator(tiny()).backward(weight.sum())
    assert weight.grad == 1


VIDEO = {
    "first_frame": Discriminator3DWithfirstframe,
    "plain": Discriminator3D,
    "patch": PatchDiscriminator3D,
    "features": FeatureDiscriminator,
    "none": type(None),
}
IMAGE = {"attention": Discriminator, "patch": PatchDiscriminator, "none": type(None)}


@pytest.mark.parametrize(
    ("video", "image"), [*((video, "none") for video in VIDEO), ("none", "attention"), ("patch", "patch")]
)
def test_every_kind_of_discriminator_returns_logits(tiny, video, image):
    num_scales = int(video != "none")
    weight = 0.5 if {video, image} != {"none"} else 0.0
    config = tiny(
        objective=ObjectiveConfig(adversarial_loss_weight=weight, multiscale_adversarial_loss_weight=0.1 * num_scales),
        discriminator=DiscriminatorConfig(video=video, image=image, num_scales=num_scales, dim=2, max_dim=16),
    )
    loss = objective_of(config)
    assert type(loss.discr_3d) is VIDEO[video]
    assert type(loss.discr) is IMAGE[image]
    assert [type(module) for module in loss.multiscale_discrs] == [VIDEO[video]] * num_scales
    clip = torch.rand(2, 3, 5, 32, 32)
    discriminators = loss.discriminators
    assert len(discriminators) == 2 * num_scales + (image != "none")
    for discriminator in discriminators:
        discriminator = replace(discriminator, frame_indices=torch.zeros(2, 1, dtype=torch.long))
        logits = discriminator(discriminator.input_of(clip)).logits
        assert len(logits) == 2
        assert logits.isfinite().all()


def test_a_weight_that_starts_later_builds_its_discriminator(tiny):
    objective = ObjectiveConfig(adversarial_loss_weight=Ramp(0.5, start=1000))
    assert objective_of(tiny(objective=objective)).discr_3d is not None
    objective = ObjectiveConfig(adversarial_loss_weight=Ramp(0.0, start=1000))
    assert objective_of(tiny(objective=objective)).discr_3d is None


def test_settings_of_one_kind_reach_it(tiny):
    first_frame = DiscriminatorConfig(time_weighting="frames", dim=2)
    discriminator = objective_of(tiny(discriminator=first_frame)).discr_3d
    assert discriminator.time_weighting == "frames"
    patch = DiscriminatorConfig(video="patch", image="patch", dim=2, num_layers=2, num_temporal_layers=0, norm="none")
    loss = objective_of(tiny(discriminator=patch))
    assert loss.discr_3d(torch.zeros(1, 3, 5, 32, 32)).logits.shape == (1, 5, 8, 8), "every frame, every 4 x 4 pixels"
    assert loss.discr(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 8, 8)
    for discriminator in (loss.discr_3d, loss.discr):
        assert discriminator.blocks[0][0].out_channels == 8, "`dim` is a quarter of it, as for the other kinds"
        assert not [module for module in discriminator.modules() if isinstance(module, torch.nn.GroupNorm)]


def test_settings_of_the_frozen_features(tiny):
    features = DiscriminatorConfig(video="features", dim=2, num_scales=2, features=FeaturesConfig(net="alex", size=40))
    objective = ObjectiveConfig(
        adversarial_loss_weight=0.5, multiscale_adversarial_loss_weight=0.1, perceptual=PerceptualConfig(net="alex")
    )
    loss = objective_of(tiny(discriminator=features, objective=objective))
    networks = [loss.discr_3d, *loss.multiscale_discrs]
    for network in networks:
        assert network.backbone.size == 40
        assert [head.conv_in.weight.shape[:2] for head in network.heads] == [
            (8, channels) for channels in (64, 192, 384, 256, 256)
        ]
    assert len({id(network.backbone.module) for network in networks}) == 1, "one frozen network serves all"
    names = {name.split(".")[1] for name in loss.state_dict() if name.startswith("discr_3d.")}
    assert names == {"heads"}, "the frozen network is not saved"
    with pytest.raises(ValueError, match=r"^`discriminator.features.net` must be .*torchvision/NAME"):
        objective_of(tiny(discriminator=DiscriminatorConfig(video="features", features=FeaturesConfig(net="vgg9"))))


def test_logvar_is_trained_with_the_autoencoder_without_weight_decay(tiny):
    settings = replace(tiny().optimizer, weight_decay=0.1)
    objective = ObjectiveConfig(adversarial_loss_weight=0.5, reconstruction=ReconstructionConfig(learn_logvar=True))
    config = tiny(objective=objective, optimizer=settings)
    state = build_state(config, build_accelerator(config), build_autoencoder(config))
    network, logvar = state.optimizer.param_groups
    assert logvar["params"] == [state.objective.logvar]
    assert (network["weight_decay"], logvar["weight_decay"]) == (0.1, 0.0)
    set_learning_rates(state, replace(settings, lr=0.25, warmup_steps=0), num_steps=1)
    assert (network["lr"], logvar["lr"]) == (0.25, 0.25)
    discriminators = {id(weight) for group in state.disc_optimizer.param_groups for weight in group["params"]}
    assert id(state.objective.logvar) not in discriminators


@pytest.fixture
def other_run(tiny, tmp_path):
    """Return a function that writes a checkpoint of another run with these discriminators, and returns both."""

    def write(**settings):
        torch.manual_seed(1)
        weight = 0.0 if settings.get("video") == "none" else 0.5
        objective = ObjectiveConfig(adversarial_loss_weight=weight, perceptual=PerceptualConfig(net="alex"))
        loss = objective_of(tiny(discriminator=DiscriminatorConfig(**settings), objective=objective))
        folder = tmp_path / "other" / "checkpoints" / "step-00000002"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        save_tensors(folder / "objective.safetensors", loss.state_dict())
        return loss, str(tmp_path / "other")

    return write


def with_discriminators_of(tiny, run, **settings):
    config = tiny(discriminator=DiscriminatorConfig(init=run, **settings))
    return build_state(config, build_accelerator(config), build_autoencoder(config)).objective


def test_discriminators_of_another_run(tiny, other_run):
    theirs, run = other_run(dim=2)
    ours = with_discriminators_of(tiny, run, dim=2)
    expected = theirs.discr_3d.state_dict()
    assert len(expected) > 5
    assert all(torch.equal(weight, expected[name]) for name, weight in ours.discr_3d.state_dict().items())


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (
            {"dim": 2},
            {"dim": 4},
            r"a run with the same discriminators, but got discr_3d\..* instead of .* and \d+ more",
        ),
        ({"dim": 2, "video": "patch"}, {"dim": 2}, "a run with the same discriminators, but got no discr_3d"),
        ({"video": "none"}, {"dim": 2}, "given with discriminators of .*other, but got none"),
    ],
)
def test_discriminators_that_do_not_fit(tiny, other_run, theirs, ours, message):
    _, run = other_run(**theirs)
    with pytest.raises(ValueError, match=rf"`discriminator.init` must be {message}"):
        with_discriminators_of(tiny, run, **ours)


@pytest.mark.slow
def test_a_run_resumes_without_the_run_its_discriminators_started_from(tiny, other_run):
    _, run = other_run(dim=2, video="patch")
    config = tiny(steps=1, discriminator=DiscriminatorConfig(init=run, dim=2, video="patch"))
    train(config, console=Console(quiet=True))
    shutil.rmtree(run)
    train(replace(config, steps=2), console=Console(quiet=True))
    assert [step for step, _ in Run(Path(config.output_dir)).checkpoints.all()] == [1, 2]


def test_discriminators_of_no_run(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"`discriminator.init` must be a run with a checkpoint, .*, without one"):
        with_discriminators_of(tiny, str(tmp_path / "nothing"), dim=2)


def test_a_configuration_that_does_not_fit_the_machine(tiny):
    config = tiny(causal_vae=CausalVAEConfig(base_channels=2**16, blocks_per_level=3))
    with pytest.raises(ValueError, match=r"`causal_vae` must be one whose weights fit into the .* GiB .* with \d{12,}"):
        build_autoencoder(config)


def test_random_weights_are_those_of_no_saved_model(tiny, tmp_path):
    saved = build_autoencoder(tiny())
    saved.save_pretrained(tmp_path / "model")
    torch.manual_seed(1)
    loaded, fresh = (
        build_autoencoder(tiny(model=str(tmp_path / "model"), random_weights=random)) for random in (False, True)
    )
    assert loaded.config == fresh.config == saved.config
    same = [torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True)]
    assert all(same)
    same = [torch.equal(a, b) for a, b in zip(saved.parameters(), fresh.parameters(), strict=True)]
    assert not all(same)


def test_a_decoder_of_a_new_encoder_is_noticed(tiny, tmp_path, caplog):
    config = tiny(trainable=TrainableConfig(weights="decoder"))
    build_autoencoder(config).save_pretrained(tmp_path)
    assert "only the decoder is trained, and the encoder is new: add `--model`" in caplog.text
    caplog.clear()
    build_autoencoder(replace(config, model=str(tmp_path)))
    build_autoencoder(config, CausalVAE(config.causal_vae))
    assert caplog.text == ""


def test_low_rank_updates_need_a_trained_model(tiny, tmp_path):
    config = tiny(trainable=TrainableConfig(weights="lora"))
    with pytest.raises(ValueError, match=r"`trainable.weights` must be all or decoder without `model`.* `--model`"):
        build_autoencoder(config)
    own = CausalVAE(config.causal_vae)
    build_autoencoder(config, own).save_pretrained(tmp_path)
    build_autoencoder(replace(config, model=str(tmp_path)))


@pytest.mark.parametrize("random_weights", [False, True])
def test_a_model_of_telecine_on_the_hub(tiny, hub_cache, random_weights):
    saved = CausalVAE(tiny().causal_vae)
    hub_cache("me/faces", saved)
    model = build_autoencoder(tiny(model="me/faces", random_weights=random_weights))
    assert model.config == saved.config
    assert torch.equal(next(model.parameters()), next(saved.parameters())) != random_weights


PLAIN_3D = {"dim": 2, "image_size": 16, "frame_num": 2, "linear_attn_heads": 2}


def objective_with(**options):
    torch.manual_seed(0)
    return VideoAutoencoderLoss(
        0,
        **{"adversarial_loss_weight": 1, "discr_3d_kwargs": PLAIN_3D, **options},
        adaptive_weight={"at": "reconstruction"},
    )


def figures(loss):
    """Return losses and gradients of two updates; a fixed seed draws the same frames."""
    torch.manual_seed(1)
    real = torch.rand(2, 3, 2, 16, 16) * 2 - 1
    results = []
    for step in range(2):
        fake = (0.5 * real).requires_grad_()
        both = loss.update(real, fake, step)
        both.loss.backward()
        both.disc_loss.backward()
        results += [both.loss, both.disc_loss, fake.grad, *(w.grad for w in loss.get_trainable_parameters())]
        loss.zero_grad()
    return results


def test_losses_and_gradients_in_channels_last_layout(cached_weights):
    plain, loss = (objective_with() for _ in range(2))
    to_channels_last(loss, torch.device("cpu"))
    torch.testing.assert_close(figures(loss), figures(plain), rtol=1e-3, atol=1e-5)
    weights = [*loss.parameters(), *loss.perceptual.distance.module.values()]
    laid_out = [w for w in weights if w.ndim == 4 and w.is_contiguous(memory_format=torch.channels_last)]
    laid_out += [w for w in weights if w.ndim == 5 and w.is_contiguous(memory_format=torch.channels_last_3d)]
    assert len(laid_out) == len([w for w in weights if w.ndim > 3])


@pytest.mark.slow
def test_an_exact_penalty_in_channels_last_layout_is_refused(cached_weights):
    exact = objective_with(grad_penalty_loss_weight=1)
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match=r"`channels_last` must be false on the CPU .*approximate_r1"):
        to_channels_last(exact, cpu)
    approximate = objective_with(grad_penalty_loss_weight=1, penalty={"kind": "approximate_r1"})
    to_channels_last(approximate, cpu)
    assert all(torch.isfinite(figure).all() for figure in figures(approximate))


def test_an_optimizer_of_eight_bits(tiny, monkeypatch):
    config = tiny(optimizer=OptimizerConfig(name="adamw_8bit", lr=0.5, disc_lr=0.25, weight_decay=0.125))
    accelerator = build_accelerator(config)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ImportError, match=r"`optimizer.name: adamw_8bit` needs bitsandbytes. Run `pip install"):
        build_state(config, accelerator, build_autoencoder(config))

    class AdamW8bit(torch.optim.AdamW):
        pass

    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["bitsandbytes.optim"].AdamW8bit = AdamW8bit
    state = build_state(config, accelerator, build_autoencoder(config))
    found = [(type(each), each.defaults["lr"], each.defaults["weight_decay"]) for each in state.optimizers.values()]
    assert found == [(AdamW8bit, 0.5, 0.125), (AdamW8bit, 0.25, 0.125)]
    elsewhere = nn.Linear(1, 1, device="meta")
    with pytest.raises(ValueError, match=r"`optimizer.name` must be adamw on meta, but got adamw_8bit"):
        OPTIMIZERS[config.optimizer.name](list(elsewhere.parameters()), lr=0.5)
    assert set(OPTIMIZERS) == set(get_args(get_type_hints(OptimizerConfig)["name"]))
    with pytest.raises(ValueError, match=r"`optimizer.name` must be adamw with sharded weights, but got adamw_8bit"):
        replace(config, sharding="fsdp2")


@pytest.mark.slow
def test_a_run_with_states_of_eight_bits_resumes(tiny):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    config = tiny(optimizer=OptimizerConfig(name="adamw_8bit", warmup_steps=0), steps=1, trackers=())
    train(config, console=Console(quiet=True))
    with pytest.raises(ValueError, match=r"`optimizer.name` must be 'adamw_8bit' as in .*, but got 'adamw'"):
        train(replace(config, optimizer=OptimizerConfig()), console=Console(quiet=True))
    assert train(replace(config, steps=2), console=Console(quiet=True)).last["psnr"] > 5


def test_an_image_discriminator_does_not_change_the_initial_weights_of_the_others(tiny):
    weights = []
    for image in ("none", "patch"):
        torch.manual_seed(0)
        objective = objective_of(tiny(discriminator=replace(tiny().discriminator, image=image)))
        weights.append({key: weight for key, weight in objective.state_dict().items() if key.startswith("discr_3d.")})
    assert len(weights[0]) > 10
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)


def test_half_precision_with_a_loss_scale_is_for_gpus(tiny):
    """Accelerate trains in float32 on a CPU, and says fp16."""
    with pytest.raises(ValueError, match="`mixed_precision` must be no or bf16 on a CPU, but got fp16"):
        train(tiny(mixed_precision="fp16"), console=quiet())
