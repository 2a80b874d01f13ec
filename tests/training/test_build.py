"""The parts of a run are those that its settings name."""

import shutil
from dataclasses import replace

import pytest
import torch
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
from telecine.discriminators.build import IMAGE, VIDEO
from telecine.models import CausalVAE
from telecine.settings import (
    CausalVAEConfig,
    DiscriminatorConfig,
    FeaturesConfig,
    ObjectiveConfig,
    PerceptualConfig,
    ReconstructionConfig,
    TrainableConfig,
)
from telecine.training import train
from telecine.training.build import (
    build_accelerator,
    build_autoencoder,
    build_objective,
    to_channels_last,
)
from telecine.training.step import set_learning_rates
from telecine.training.tensor_files import save_tensors

from .helpers import assert_equal, checkpoint_steps, new_state


def objective_of(config):
    return build_objective(config.objective, config.discriminator, config.clips)


def test_the_launcher_does_not_scale_gradients(tiny, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = nn.Parameter(torch.zeros(1))
    build_accelerator(tiny()).backward(weight.sum())
    assert weight.grad == 1


VIDEO_CLASSES = {
    "first_frame": Discriminator3DWithfirstframe,
    "plain": Discriminator3D,
    "patch": PatchDiscriminator3D,
    "features": FeatureDiscriminator,
    "none": type(None),
}
IMAGE_CLASSES = {"attention": Discriminator, "patch": PatchDiscriminator, "none": type(None)}


@pytest.mark.parametrize(
    ("video", "image"),
    [
        *((video, "none") for video in [*VIDEO, "none"]),
        *(("none", image) for image in IMAGE),
        ("patch", "patch"),
    ],
)
def test_every_kind_of_discriminator_returns_logits(tiny, video, image):
    num_scales = int(video != "none")
    config = tiny(
        objective=ObjectiveConfig(
            adversarial_loss_weight=0.0 if video == image == "none" else 0.5,
            multiscale_adversarial_loss_weight=0.1 * num_scales,
        ),
        discriminator=DiscriminatorConfig(
            video=video, image=image, num_scales=num_scales, dim=2, max_dim=16
        ),
    )
    loss = objective_of(config)
    assert type(loss.discr_3d) is VIDEO_CLASSES[video]
    assert type(loss.discr) is IMAGE_CLASSES[image]
    assert [type(module) for module in loss.multiscale_discrs] == [
        VIDEO_CLASSES[video]
    ] * num_scales
    assert len(loss.discriminators) == 2 * num_scales + (image != "none")
    clip = torch.rand(2, 3, 5, 32, 32)
    first_frames = torch.zeros(2, 1, dtype=torch.long)
    for discriminator in loss.discriminators:
        logits = discriminator(discriminator.input_of(clip, first_frames)).logits
        assert len(logits) == 2
        assert logits.isfinite().all()


def test_a_weight_that_starts_later_builds_its_discriminator(tiny):
    objective = ObjectiveConfig(adversarial_loss_weight=Ramp(0.5, start=1000))
    assert objective_of(tiny(objective=objective)).discr_3d is not None
    objective = ObjectiveConfig(adversarial_loss_weight=Ramp(0.0, start=1000))
    assert objective_of(tiny(objective=objective)).discr_3d is None


def test_settings_of_one_kind_reach_it(tiny):
    first_frame = DiscriminatorConfig(time_weighting="frames", dim=2)
    assert objective_of(tiny(discriminator=first_frame)).discr_3d.time_weighting == "frames"
    patch = DiscriminatorConfig(
        video="patch", image="patch", dim=2, num_layers=2, num_temporal_layers=0, norm="none"
    )
    loss = objective_of(tiny(discriminator=patch))
    assert loss.discr_3d(torch.zeros(1, 3, 5, 32, 32)).logits.shape == (1, 5, 8, 8), (
        "every frame, every 4 x 4 pixels"
    )
    assert loss.discr(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 8, 8)
    for discriminator in (loss.discr_3d, loss.discr):
        assert discriminator.blocks[0][0].out_channels == 8, (
            "`dim` is a quarter of it, as for the other kinds"
        )
        assert not any(isinstance(module, nn.GroupNorm) for module in discriminator.modules())


def test_settings_of_the_frozen_features(tiny):
    features = DiscriminatorConfig(
        video="features", dim=2, num_scales=2, features=FeaturesConfig(net="alex", size=40)
    )
    objective = ObjectiveConfig(
        adversarial_loss_weight=0.5,
        multiscale_adversarial_loss_weight=0.1,
        perceptual=PerceptualConfig(net="alex"),
    )
    loss = objective_of(tiny(discriminator=features, objective=objective))
    networks = [loss.discr_3d, *loss.multiscale_discrs]
    for network in networks:
        assert network.backbone.size == 40
        widths = [head.conv_in.weight.shape[:2] for head in network.heads]
        assert widths == [(8, 64), (8, 192), (8, 384), (8, 256), (8, 256)]
        assert network.backbone.in_eval_mode() is loss.discr_3d.backbone.in_eval_mode(), (
            "one frozen network serves all"
        )
    names = {name.split(".")[1] for name in loss.state_dict() if name.startswith("discr_3d.")}
    assert names == {"heads"}, "the frozen network is not saved"
    with pytest.raises(
        ValueError, match=r"^`discriminator.features.net` must be .*torchvision/NAME"
    ):
        objective_of(
            tiny(
                discriminator=DiscriminatorConfig(
                    video="features", features=FeaturesConfig(net="vgg9")
                )
            )
        )


def test_logvar_is_trained_with_the_autoencoder_without_weight_decay(tiny):
    settings = replace(tiny().optimizer, weight_decay=0.1)
    objective = ObjectiveConfig(
        adversarial_loss_weight=0.5, reconstruction=ReconstructionConfig(learn_logvar=True)
    )
    config = tiny(objective=objective, optimizer=settings)
    state = new_state(config)
    network, logvar = state.optimizer.param_groups
    assert logvar["params"] == [state.objective.logvar]
    assert (network["weight_decay"], logvar["weight_decay"]) == (0.1, 0.0)
    set_learning_rates(state, replace(settings, lr=0.25, warmup_steps=0), num_steps=1)
    assert (network["lr"], logvar["lr"]) == (0.25, 0.25)
    discriminators = {
        id(weight) for group in state.disc_optimizer.param_groups for weight in group["params"]
    }
    assert id(state.objective.logvar) not in discriminators


@pytest.fixture
def other_run(tiny, tmp_path):
    """Return a function that writes a checkpoint of another run with these discriminators, and returns both."""

    def write(**settings):
        torch.manual_seed(1)
        weight = 0.0 if settings.get("video") == "none" else 0.5
        objective = ObjectiveConfig(
            adversarial_loss_weight=weight, perceptual=PerceptualConfig(net="alex")
        )
        loss = objective_of(
            tiny(discriminator=DiscriminatorConfig(**settings), objective=objective)
        )
        folder = tmp_path / "other" / "checkpoints" / "step-00000002"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        save_tensors(folder / "objective.safetensors", loss.state_dict())
        return loss, str(tmp_path / "other")

    return write


def with_discriminators_of(tiny, run, **settings):
    config = tiny(discriminator=DiscriminatorConfig(init=run, **settings))
    return new_state(config).objective


def test_discriminators_of_another_run(tiny, other_run):
    theirs, run = other_run(dim=2)
    assert_equal(
        with_discriminators_of(tiny, run, dim=2).discr_3d.state_dict(), theirs.discr_3d.state_dict()
    )


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (
            {"dim": 2},
            {"dim": 4},
            r"a run with the same discriminators, .*discr_3d\..* instead of .* and \d+ more",
        ),
        (
            {"dim": 2, "video": "patch"},
            {"dim": 2},
            "a run with the same discriminators, but got no discr_3d",
        ),
        ({"video": "none"}, {"dim": 2}, "a run with discriminators, but got .*other.*, without"),
        (None, {"dim": 2}, "a run with a checkpoint, .*, without one"),
    ],
)
def test_discriminators_that_do_not_fit(tiny, tmp_path, other_run, theirs, ours, message):
    run = str(tmp_path / "nothing")
    if theirs is not None:
        _, run = other_run(**theirs)
    with pytest.raises(ValueError, match=rf"`discriminator.init` must be {message}"):
        with_discriminators_of(tiny, run, **ours)


@pytest.mark.slow
def test_a_run_resumes_without_the_run_its_discriminators_started_from(tiny, other_run):
    _, run = other_run(dim=2, video="patch")
    config = tiny(steps=1, discriminator=DiscriminatorConfig(init=run, dim=2, video="patch"))
    train(config)
    shutil.rmtree(run)
    train(replace(config, steps=2))
    assert checkpoint_steps(config) == [1, 2]


def test_a_configuration_that_does_not_fit_the_machine(tiny):
    config = tiny(causal_vae=CausalVAEConfig(base_channels=2**16, blocks_per_level=3))
    with pytest.raises(
        ValueError,
        match=r"`causal_vae` must be one whose weights fit into the .* GiB .* with \d{12,}",
    ):
        build_autoencoder(config)


@pytest.mark.parametrize("random_weights", [False, True])
@pytest.mark.parametrize("name", ["here", "me/faces"])
def test_random_weights_are_those_of_no_saved_model(
    tiny, tmp_path, monkeypatch, hub_cache, name, random_weights
):
    """In a folder, and on the Hub."""
    monkeypatch.chdir(tmp_path)
    saved = CausalVAE(tiny().causal_vae)
    if name == "here":
        saved.save_pretrained(name)
    else:
        hub_cache(name, saved)
    model = build_autoencoder(tiny(model=name, random_weights=random_weights))
    assert model.config == saved.config
    is_same = []
    for ours, theirs in zip(model.parameters(), saved.parameters(), strict=True):
        is_same.append(torch.equal(ours, theirs))
    assert all(is_same) != random_weights


def test_a_part_that_is_trained_needs_a_trained_model(tiny, tmp_path, caplog):
    """Only the decoder is a warning, as the encoder is new; LoRA adapters are an error."""
    decoder = tiny(trainable=TrainableConfig(weights="decoder"))
    lora = tiny(trainable=TrainableConfig(weights="lora"))
    build_autoencoder(decoder).save_pretrained(tmp_path)
    assert "only the decoder is trained, and the encoder is new: add `--model`" in caplog.text
    caplog.clear()
    with pytest.raises(
        ValueError, match=r"`trainable.weights` must be all or decoder without `model`.* `--model`"
    ):
        build_autoencoder(lora)
    for config in (decoder, lora):
        build_autoencoder(replace(config, model=str(tmp_path)))
        build_autoencoder(config, CausalVAE(config.causal_vae))
    assert caplog.text == ""


PLAIN_3D = {"dim": 2, "image_size": 16, "frame_num": 2, "linear_attn_heads": 2}


def objective_with(**options):
    torch.manual_seed(0)
    adaptive = {"at": "reconstruction"}
    return VideoAutoencoderLoss(
        0, adversarial_loss_weight=1, discr_3d_kwargs=PLAIN_3D, adaptive_weight=adaptive, **options
    )


def losses_and_gradients(loss):
    """Return losses and gradients of two updates; a fixed seed draws the same frames."""
    torch.manual_seed(1)
    real = torch.rand(2, 3, 2, 16, 16) * 2 - 1
    results = []
    for step in range(2):
        fake = (0.5 * real).requires_grad_()
        both = loss.both_losses(real, fake, step)
        both.loss.backward()
        both.disc_loss.backward()
        results += [both.loss, both.disc_loss, fake.grad]
        results += [weight.grad for weight in loss.get_trainable_parameters()]
        loss.zero_grad()
    return results


def test_losses_and_gradients_in_channels_last_layout(cached_weights):
    plain = objective_with()
    loss = objective_with()
    to_channels_last(loss, torch.device("cpu"))
    torch.testing.assert_close(
        losses_and_gradients(loss), losses_and_gradients(plain), rtol=1e-3, atol=1e-5
    )
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    weights = [*loss.parameters(), *loss.perceptual.distance.weights.values()]
    assert all(
        weight.is_contiguous(memory_format=layouts[weight.ndim])
        for weight in weights
        if weight.ndim > 3
    )


@pytest.mark.slow
def test_an_exact_penalty_in_channels_last_layout_is_refused(cached_weights):
    cpu = torch.device("cpu")
    with pytest.raises(
        ValueError, match=r"`channels_last` must be false on the CPU .*approximate_r1"
    ):
        to_channels_last(objective_with(grad_penalty_loss_weight=1), cpu)
    approximate = objective_with(grad_penalty_loss_weight=1, penalty={"kind": "approximate_r1"})
    to_channels_last(approximate, cpu)
    assert all(value.isfinite().all() for value in losses_and_gradients(approximate))


def test_an_image_discriminator_does_not_change_the_initial_weights_of_the_others(tiny):
    weights = []
    for image in ("none", "patch"):
        torch.manual_seed(0)
        objective = objective_of(tiny(discriminator=replace(tiny().discriminator, image=image)))
        weights.append(objective.discr_3d.state_dict())
    assert len(weights[0]) > 10
    assert_equal(weights[1], weights[0])


def test_bfloat16_is_refused_on_a_gpu_without_it(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(
        ValueError,
        match=r"`mixed_precision` must be fp16 or no on this GPU, but got bf16. .* Ampere",
    ):
        build_accelerator(tiny(mixed_precision="bf16", device="cuda"))


def test_half_precision_with_a_loss_scale_is_for_gpus(tiny):
    """Accelerate trains in float32 on a CPU, and says fp16."""
    with pytest.raises(
        ValueError, match="`mixed_precision` must be no or bf16 on a CPU, but got fp16"
    ):
        train(tiny(mixed_precision="fp16"))
