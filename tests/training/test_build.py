import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from telecine import Ramp
from telecine.autoencoders import CausalVAE
from telecine.data import DataError
from telecine.discriminators import (
    ConditionalDiscriminator,
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
    FeatureDiscriminator,
    PatchDiscriminator,
    PatchDiscriminator3D,
)
from telecine.report.video import write_mp4
from telecine.runs import Run
from telecine.settings import (
    AdaptiveWeightConfig,
    DiscriminatorConfig,
    FeaturesConfig,
    ObjectiveConfig,
    PerceptualConfig,
    ReconstructionConfig,
)
from telecine.training import train
from telecine.training.build import build_accelerator, build_autoencoder, build_clips, build_objective, build_state
from telecine.training.optim import set_lr
from telecine.training.tensor_files import optimizer_tensors, save_tensors


def test_every_setting_reaches_the_loss(tiny, everything):
    objective = replace(
        everything["objective"],
        reconstruction=ReconstructionConfig(nll_reduction="sum"),
        adaptive_weight=AdaptiveWeightConfig(min_norm=0.1, max=7.0),
    )
    loss = build_objective(tiny(objective=objective, discriminator=everything["discriminator"]))
    assert loss.config == objective != ObjectiveConfig()


def test_images_are_counted_as_images(tiny, small_video, tmp_path):
    shutil.copy(small_video, tmp_path)
    for number in range(3):
        Image.new("RGB", (64, 48), (90 * number, 90, 90)).save(tmp_path / f"{number}.png")
    for ratio, counted in ((0.5, "1 video and 3 images"), (0.0, "1 video"), (1.0, "3 images")):
        config = tiny(data=str(tmp_path), clips=replace(tiny().clips, image_ratio=ratio))
        clips = build_clips(config, build_autoencoder(config))
        clips = replace(clips, val=clips.val[:1])
        assert clips.describe() == f"{counted}, 1 held-out clip"
        assert replace(clips, val=2 * clips.val).describe() == f"{counted}, 2 held-out clips"


VIDEO = {
    "first_frame": Discriminator3DWithfirstframe,
    "plain": Discriminator3D,
    "patch": PatchDiscriminator3D,
    "features": FeatureDiscriminator,
    "none": type(None),
}
IMAGE = {"attention": Discriminator, "patch": PatchDiscriminator, "none": type(None)}


@pytest.mark.parametrize("video", VIDEO)
@pytest.mark.parametrize("image", IMAGE)
def test_every_kind_of_discriminator_returns_logits(tiny, video, image):
    num_scales = int(video != "none")
    weight = 0.5 if {video, image} != {"none"} else 0.0
    config = tiny(
        objective=ObjectiveConfig(adversarial_loss_weight=weight, multiscale_adversarial_loss_weight=0.1 * num_scales),
        discriminator=DiscriminatorConfig(video=video, image=image, num_scales=num_scales, dim=2, max_dim=16),
    )
    loss = build_objective(config)
    assert type(loss.discr_3d) is VIDEO[video]
    assert type(loss.discr) is IMAGE[image]
    assert [type(module) for module in loss.multiscale_discrs] == [VIDEO[video]] * num_scales
    clip = torch.rand(2, 3, 5, 32, 32)
    discriminators = loss.discriminators + loss.multiscale_discriminators
    assert len(discriminators) == 2 * num_scales + (image != "none")
    for discriminator in discriminators:
        logits = discriminator.logits(discriminator.input_of(clip, torch.zeros(2, 1, dtype=torch.long)))
        assert len(logits) == 2
        assert logits.isfinite().all()


def test_a_weight_that_starts_later_builds_its_discriminator(tiny):
    objective = ObjectiveConfig(adversarial_loss_weight=Ramp(0.5, start=1000))
    assert build_objective(tiny(objective=objective)).discr_3d is not None
    objective = ObjectiveConfig(adversarial_loss_weight=Ramp(0.0, start=1000))
    assert build_objective(tiny(objective=objective)).discr_3d is None


def test_settings_of_one_kind_reach_it(tiny):
    first_frame = DiscriminatorConfig(time_weighting="frames", pad_mode="constant", dim=2)
    discriminator = build_objective(tiny(discriminator=first_frame)).discr_3d
    assert discriminator.time_weighting == "frames"
    assert {block.net[0].pad_mode for block in discriminator.blocks[: discriminator.temporal_num_layers]} == {
        "constant"
    }
    patch = DiscriminatorConfig(video="patch", image="patch", dim=2, num_layers=2, num_temporal_layers=0, norm="none")
    loss = build_objective(tiny(discriminator=patch))
    assert loss.discr_3d(torch.zeros(1, 3, 5, 32, 32)).logits.shape == (1, 5, 8, 8), "every frame, every 4 x 4 pixels"
    assert loss.discr(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 8, 8)
    for discriminator in (loss.discr_3d, loss.discr):
        assert discriminator.blocks[0][0].out_channels == 8, "`dim` is a quarter of it, as for the other kinds"
        assert not [module for module in discriminator.modules() if isinstance(module, torch.nn.GroupNorm)]


def test_discriminators_of_pairs(tiny):
    settings = DiscriminatorConfig(video="patch", image="attention", dim=2, max_dim=16, conditional=True, num_scales=1)
    objective = ObjectiveConfig(
        adversarial_loss_weight=0.5, multiscale_adversarial_loss_weight=0.1, perceptual=PerceptualConfig(net="alex")
    )
    loss = build_objective(tiny(discriminator=settings, objective=objective))
    pairs = [loss.discr_3d, loss.discr, *loss.multiscale_discrs]
    assert {type(module) for module in pairs} == {ConditionalDiscriminator}
    networks = [PatchDiscriminator3D, Discriminator, PatchDiscriminator3D]
    assert [type(module.network) for module in pairs] == networks
    assert [module.network.channels for module in pairs] == [6, 6, 6]


def test_settings_of_the_frozen_features(tiny):
    features = DiscriminatorConfig(
        video="features", dim=2, num_scales=2, conditional=True, features=FeaturesConfig(net="alex", size=40)
    )
    objective = ObjectiveConfig(
        adversarial_loss_weight=0.5, multiscale_adversarial_loss_weight=0.1, perceptual=PerceptualConfig(net="alex")
    )
    loss = build_objective(tiny(discriminator=features, objective=objective))
    networks = [loss.discr_3d, *loss.multiscale_discrs]
    for network in networks:
        assert network.conditional
        assert network.backbone.size == 40
        assert [head.conv_in.weight.shape[:2] for head in network.heads] == [
            (8, 2 * channels) for channels in (64, 192, 384, 256, 256)
        ]
    assert len({id(network.backbone.hidden) for network in networks}) == 1, "one frozen network serves all"
    names = {name.split(".")[1] for name in loss.state_dict() if name.startswith("discr_3d.")}
    assert names == {"heads"}, "the frozen network is not saved"
    with pytest.raises(ValueError, match=r"^`discriminator.features.net` must be .*torchvision/NAME"):
        build_objective(tiny(discriminator=DiscriminatorConfig(video="features", features=FeaturesConfig(net="vgg9"))))


def test_logvar_is_trained_with_the_autoencoder_without_weight_decay(tiny):
    settings = replace(tiny().optimizer, weight_decay=0.1)
    objective = ObjectiveConfig(adversarial_loss_weight=0.5, reconstruction=ReconstructionConfig(learn_logvar=True))
    config = tiny(objective=objective, optimizer=settings)
    state = build_state(config, build_accelerator(config), build_autoencoder(config))
    network, logvar = state.optimizer.param_groups
    assert logvar["params"] == [state.objective.logvar]
    assert (network["weight_decay"], logvar["weight_decay"]) == (0.1, 0.0)
    set_lr(state.optimizer, 0.25)
    assert (network["lr"], logvar["lr"]) == (0.25, 0.25)
    discriminators = {id(weight) for group in state.disc_optimizer.param_groups for weight in group["params"]}
    assert id(state.objective.logvar) not in discriminators


def test_validation_clips_from_separate_videos(tiny):
    model = build_autoencoder(tiny())
    held_out, separate = build_clips(tiny(), model), build_clips(tiny(val_data=tiny().data), model)
    num_frames = [sum(span.num_frames for span in clips.train.spans) for clips in (held_out, separate)]
    assert num_frames[0] < num_frames[1], "nothing is held out"
    assert len(separate.val) == 2


def test_separate_videos_that_are_too_short_are_named(tiny, tmp_path):
    write_mp4(tmp_path / "short.mp4", torch.zeros(3, 48, 64, 3, dtype=torch.uint8), fps=25)
    config = tiny(val_data=str(tmp_path / "short.mp4"))
    message = r"`val_data` must be .* clip of 5 frames, but got none; the longest has 3 frames, .*short.mp4"
    with pytest.raises(DataError, match=message):
        build_clips(config, build_autoencoder(config))


@pytest.fixture
def other_run(tiny, tmp_path):
    """Return a function that writes a checkpoint of another run with these discriminators, and returns both."""

    def write(**settings):
        torch.manual_seed(1)
        weight = 0.0 if settings.get("video") == "none" else 0.5
        objective = ObjectiveConfig(adversarial_loss_weight=weight, perceptual=PerceptualConfig(net="alex"))
        loss = build_objective(tiny(discriminator=DiscriminatorConfig(**settings), objective=objective))
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


def test_the_state_of_their_optimizer(tiny, other_run):
    loss, run = other_run(dim=2)
    folder = next((Path(run) / "checkpoints").iterdir())
    with pytest.raises(ValueError, match="must be false without the optimizer's state"):
        build_with_optimizer_of(tiny, run)
    theirs = torch.optim.AdamW(loss.get_trainable_parameters(), 0.1)
    sum(weight.square().sum() for weight in loss.get_trainable_parameters()).backward()
    theirs.step()
    save_tensors(folder / "disc_optimizer.safetensors", optimizer_tensors(theirs))
    ours = build_with_optimizer_of(tiny, run)
    assert ours.param_groups[0]["lr"] == tiny().optimizer.disc_lr
    found, expected = ([each.state[p]["exp_avg"] for p in each.param_groups[0]["params"]] for each in (ours, theirs))
    assert len(found) > 5
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert any(x.abs().max() > 0 for x in found)
    with pytest.raises(ValueError, match="must be false without `init`"):
        DiscriminatorConfig(init_optimizer=True)


def build_with_optimizer_of(tiny, run):
    config = tiny(discriminator=DiscriminatorConfig(init=run, init_optimizer=True, dim=2))
    return build_state(config, build_accelerator(config), build_autoencoder(config)).disc_optimizer


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


@pytest.mark.parametrize("random_weights", [False, True])
def test_a_model_of_telecine_on_the_hub(tiny, hub_cache, random_weights):
    saved = CausalVAE(tiny().causal_vae)
    hub_cache("me/faces", saved)
    model = build_autoencoder(tiny(model="me/faces", random_weights=random_weights))
    assert model.config == saved.config
    assert torch.equal(next(model.parameters()), next(saved.parameters())) != random_weights
