from dataclasses import replace
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from telecine import Term
from telecine.discriminators.build import IMAGE, VIDEO
from telecine.discriminators.patch import Norm
from telecine.discriminators.residual import TimeWeighting
from telecine.losses import (
    GAN_LOSSES,
    GRAD_PENALTIES,
    RECONSTRUCTION_LOSSES,
    mse,
    wavelet_l1,
)
from telecine.losses.perceptual.backbones import BACKBONES
from telecine.objective import VideoAutoencoderLoss
from telecine.runs.saved_settings import as_yaml
from telecine.settings import (
    CausalVAEConfig,
    ClipConfig,
    DiscriminatorConfig,
    GANConfig,
    ObjectiveConfig,
    PenaltyConfig,
    PerceptualConfig,
    ReconstructionConfig,
    TrainConfig,
    Weight,
)
from telecine.settings.parse import read_config

from ..training.conftest import EVERY_DISCRIMINATOR, EVERY_TERM

# Settings as a file has them, and what is said.
WRONG = [
    ("{steps: 0}", "`steps` must be at least 1"),
    ("{steps: 1000000000}", "`steps` must be at most 100000000"),
    ("{steps: 100000000000000000000}", "`steps` must be at most"),
    (
        "{batch_size: 100000000000000000000}",
        "`batch_size` must be at most 2147483647 or 'auto', but got 100000000000000000000",
    ),
    (
        "{clips: {num_frames: 100000000000000000000}}",
        "`clips.num_frames` must be at most 2147483647",
    ),
    (
        "{objective: {disc_start: 100000000000000000000}}",
        "`objective.disc_start` must be at most 2147483647",
    ),
    ("{seed: 100000000000000000000}", "`seed` must be"),
    (
        "{gradient_accumulation_steps: 1000000000}",
        "`gradient_accumulation_steps` must be at most 100000000",
    ),
    ("{batch_size: -1}", "`batch_size` must be at least 1 or 'auto'"),
    ("{keep: 0}", "`keep` must be at least 1"),
    (
        "{trainable: {lora_rank: 4}}",
        '`trainable.lora_rank` must be left out unless `weights` is "lora"',
    ),
    ("{trainable: {lora_alpha: 4}}", "`trainable.lora_alpha` must be left out unless `weights` is"),
    (
        "{predictive: {max_dropped: 1.0}, latent_cache: x}",
        "`latent_cache` must be left out with `predictive",
    ),
    (
        "{predictive: {max_dropped: 1.0}, sharding: fsdp2}",
        '`sharding` must be "none" with `predictive',
    ),
    ("{objective: {disc_start: -1}}", "`objective.disc_start` must be at least 0"),
    ("{process_timeout: 0}", "`process_timeout` must be above 0"),
    (
        "{process_timeout: 540.0}",
        r"`process_timeout` must be more than 3 times `clips.timeout`, 540 seconds, but got 540",
    ),
    ("{optimizer: {lr: 0.0}}", "`optimizer.lr` must be above 0"),
    ("{optimizer: {betas: [2.0, 0.9]}}", "`optimizer.betas.0` must be below 1, but got 2.0"),
    ("{optimizer: {disc_betas: [0.5, -0.1]}}", "`optimizer.disc_betas.1` must be at least 0"),
    (
        "{optimizer: {weight_decay: .inf}}",
        "`optimizer.weight_decay` must be a finite number",
    ),
    (
        "{trainable: {lora_alpha: .nan}}",
        "`trainable.lora_alpha` must be a finite number",
    ),
    ("{seed: -1}", "`seed` must be at least 0"),
    ("{seed: 4294967296}", r"`seed` must be below 4294967296, but got 4294967296 \(int\)"),
    ("{temporal_chunk: -4}", "`temporal_chunk` must be at least 1"),
    (
        "{discriminator: {num_temporal_layers: -1}}",
        "`discriminator.num_temporal_layers` must be at least 0",
    ),
    ("{optimizer: {warmup_steps: -1}}", "`optimizer.warmup_steps` must be at least 0"),
    ("{optimizer: {ema_decay: 1.0}}", "`optimizer.ema_decay` must be below 1"),
    (
        "{objective: {adversarial_loss_weight: 0.5}, discriminator: {video: none}}",
        "`objective.adversarial_loss_weight` must be 0 without",
    ),
    (
        "{discriminator: {num_scales: 1}}",
        "must be above 0 exactly if `discriminator.num_scales`",
    ),
    (
        "{objective: {multiscale_adversarial_loss_weight: 0.1}}",
        "must be above 0 exactly if `discriminator.num_scales`",
    ),
    (
        "{objective: {multiscale_adversarial_loss_weight: 0.1}, discriminator: {video: none, "
        "image: patch, num_scales: 1}}",
        "`discriminator.num_scales` must be 0 without video",
    ),
    (
        "{objective: {disc_start: 10, adversarial_loss_weight: 0.5, gan: {disc_train_start: 11}}}",
        r"`objective.gan.disc_train_start` must be at most `objective.disc_start` \(10\)",
    ),
    (
        "{sharding: fsdp2, latent_cache: x}",
        "`latent_cache` must be left out with sharded weights, but got 'x'",
    ),
    (
        "{context_parallel: 2, latent_cache: x}",
        "`latent_cache` must be left out with `context_parallel`, but got 'x'",
    ),
    (
        "{sharding: fsdp2, optimizer.name: adamw_8bit}",
        "`optimizer.name` must be adamw with sharded weights",
    ),
    (
        "{sharding: fsdp2, mixed_precision: fp16}",
        "`mixed_precision` must be no or bf16 with sharded weights",
    ),
    ("{init: x, model: y}", "`init` must be left out with `model` or LoRA, but got 'x'"),
    (
        "{teacher: x, trainable.weights: lora}",
        "`trainable.weights` must be all or decoder for a student",
    ),
    (
        "{teacher: x, context_parallel: 2, feature_weight: 0.1}",
        "`feature_weight` must be 0 with `context_parallel`",
    ),
    (
        "{process_timeout: 1000000000000000.0}",
        "`process_timeout` must be at most 31536000, but got 1000",
    ),
    (
        "{clips: {channels: 2}}",
        r"`objective.perceptual_weight` must be 0 for 2 channels, but got 1.0 .*LPIPS needs RGB frames: "
        "set `objective.perceptual_weight` to 0.",
    ),
    (
        "{clips: {channels: 2}, objective: {perceptual_weight: 0}, best_metric: lpips_alex}",
        "`best_metric` must be psnr or ssim for channels without colours, but got lpips_alex",
    ),
    (
        "{clips: {channels: 2}, objective: {perceptual_weight: 0}, discriminator: {video: features}}",
        "`discriminator.video` must be a discriminator of 2 channels, but got features, which needs RGB. Use patch.",
    ),
    (
        "{clips: {height: 16}}",
        "`clips` must be at least 31 pixels high and wide, which LPIPS needs",
    ),
    (
        "{clips: {channels: 2, height: 10}, objective: {perceptual_weight: 0}}",
        "`clips` must be at least 11 pixels high and wide, which SSIM needs",
    ),
    ("{discriminator: {num_scales: -1}}", "`discriminator.num_scales` must be at least 0"),
    (
        "{objective: {adversarial_loss_weight: {weight: 0.0, start: 9, initial: 0.5}}, discriminator: {video: none}}",
        r"`objective.adversarial_loss_weight` must be 0 without a discriminator, but got Ramp\(",
    ),
    (
        "{objective: {multiscale_adversarial_loss_weight: {weight: 0.1, start: 9}}}",
        "must be above 0 exactly if `discriminator.num_scales`",
    ),
    (
        "{objective: {adversarial_loss_weight: 0.0, gan: {feature_matching_loss_weight: 1.0}}}",
        "`objective.gan.feature_matching_loss_weight` must be 0 without an adversarial term, but got 1.0",
    ),
    (
        "{objective: {adversarial_loss_weight: 0.0, gan: {lecam_loss_weight: {weight: 1.0, steps: 3}}}}",
        "`objective.gan.lecam_loss_weight` must be 0 without an adversarial term",
    ),
    ("{discriminator: {num_layers: 0}}", "`discriminator.num_layers` must be at least 1"),
    ("{discriminator: {dim: 0}}", "`discriminator.dim` must be at least 1"),
    (
        "{discriminator: {video: patch, num_layers: 6}, clips: {height: 48}}",
        "`discriminator.num_layers` must be at most 5, which halve 48 pixels to one, but got 6",
    ),
    (
        "{objective: {multiscale_adversarial_loss_weight: 0.1}, discriminator: {video: patch, "
        "num_scales: 2, num_layers: 4}, clips: {width: 48}}",
        "`discriminator.num_layers` must be at most 3, which halve 12 pixels to one, but got 4",
    ),
    (
        "{discriminator: {video: features, features: {net: alex}, num_scales: 1}, "
        "objective: {multiscale_adversarial_loss_weight: 0.1}, clips: {width: 48}}",
        "`discriminator.features.net` must be a network that accepts 24 pixels, but got 'alex', which needs 31",
    ),
    (
        "{discriminator: {image: patch, num_layers: 6}, clips: {width: 48}}",
        "`discriminator.num_layers` must be at most 5",
    ),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_settings_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_config(yaml.safe_load(text))


def test_patches_may_be_as_small_as_a_pixel():
    config = replace(
        TrainConfig(),
        discriminator=DiscriminatorConfig(video="patch", image="patch", num_layers=4, num_scales=1),
        objective=ObjectiveConfig(multiscale_adversarial_loss_weight=0.1),
        clips=ClipConfig(height=31, width=64),  # 31 pixels at half the size are 16
    )
    assert config.discriminator.num_layers == 4


def test_layers_of_an_image_discriminator_need_clips_of_full_size_only():
    """It has no scales."""
    config = TrainConfig(
        clips=ClipConfig(height=256, width=256),
        objective=ObjectiveConfig(multiscale_adversarial_loss_weight=1.0),
        discriminator=DiscriminatorConfig(
            video="features", image="patch", num_layers=6, num_scales=3
        ),
    )
    assert config.discriminator.num_layers == 6


CHOICES = {
    (ReconstructionConfig, "loss"): RECONSTRUCTION_LOSSES,
    (PerceptualConfig, "net"): BACKBONES,
    (GANConfig, "loss"): GAN_LOSSES,
    (PenaltyConfig, "kind"): GRAD_PENALTIES,
    (DiscriminatorConfig, "video"): [*VIDEO, "none"],
    (DiscriminatorConfig, "image"): [*IMAGE, "none"],
    (DiscriminatorConfig, "time_weighting"): get_args(TimeWeighting),
    (DiscriminatorConfig, "norm"): get_args(Norm),
}


def literals(kind):
    """Return the words of a `Literal`, or of the one in a union."""
    words = get_args(kind)
    return (
        words
        if get_origin(kind) is Literal
        else next(get_args(k) for k in words if get_origin(k) is Literal)
    )


@pytest.mark.parametrize(("options", "name"), CHOICES)
def test_choices_are_those_of_the_library(options, name):
    assert sorted(literals(get_type_hints(options)[name])) == sorted(CHOICES[options, name])


def test_every_weight_can_be_a_ramp():
    weights = 0
    for options in (ObjectiveConfig, GANConfig):
        for name, kind in get_type_hints(options, include_extras=True).items():
            if name.endswith("_weight") and name != "adaptive_weight":
                assert kind == Weight, name
                weights += 1
    assert weights == 7


@pytest.fixture
def everything():
    """Return settings that turn every term on."""
    return {"objective": EVERY_TERM, "discriminator": EVERY_DISCRIMINATOR}


def test_ramps_and_choices_are_read_back(tmp_path, everything):
    config = replace(TrainConfig(), data="x", **everything)
    objective = config.objective
    defaults = ObjectiveConfig()
    assert {
        name for name in vars(defaults) if getattr(objective, name) == getattr(defaults, name)
    } == {
        "eager_gradients",
        "gradient_checkpointing",
    }
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    again = read_config(tmp_path / "config.yaml")
    assert again == config
    assert as_yaml(again) == as_yaml(config)


def test_functions_are_saved_by_their_paths(tmp_path):
    objective = ObjectiveConfig(
        reconstruction=ReconstructionConfig(loss=mse),
        gan=GANConfig(loss="telecine.losses.adversarial.hinge"),
        terms={"detail": Term(wavelet_l1, 0.2, {"levels": 2})},
    )
    (tmp_path / "config.yaml").write_text(as_yaml(TrainConfig(objective=objective)))
    again = read_config(tmp_path / "config.yaml").objective
    assert again.reconstruction.loss == "telecine.losses.reconstruction.mse"
    assert again.gan.loss == "telecine.losses.adversarial.hinge"
    assert again.terms["detail"] == Term("telecine.losses.wavelet.wavelet_l1", 0.2, {"levels": 2})
    loss = VideoAutoencoderLoss(
        0,
        reconstruction=again.reconstruction,
        gan=again.gan,
        terms=again.terms,
        perceptual_weight=0,
    )
    assert loss.gan_loss is GAN_LOSSES["hinge"]
    assert (loss.recon_loss, loss.loss_terms["detail"].function) == (mse, wavelet_l1)


@pytest.mark.parametrize(("latent", "channels"), [("4x8x8", 16), ("4x16x16", 48), ("8x32x32", 128)])
def test_presets_have_the_latents_of_published_models(latent, channels):
    sizes = []
    for size in ("tiny", "small", "base", "large"):
        config = read_config({"causal_vae": {"size": size, "latent": latent}}).causal_vae
        assert config == CausalVAEConfig(size=size, latent=latent)
        assert config == TrainConfig(causal_vae={"size": size, "latent": latent}).causal_vae
        compression = (
            config.time_compression,
            config.spatial_compression,
            config.spatial_compression,
        )
        assert ("x".join(map(str, compression)), config.latent_channels) == (latent, channels)
        sizes.append((config.base_channels, config.blocks_per_level))
    assert sizes == sorted(set(sizes))


def test_in_python_a_preset_leaves_what_is_passed():
    config = CausalVAEConfig(size="tiny", base_channels=128)  # which is also the default
    assert (config.base_channels, config.blocks_per_level) == (128, 1)
    with pytest.raises(ValueError, match="`size` must be left out if all settings"):
        replace(config, size="base")


def test_presets_override_earlier_files_and_are_overridden_beside_them():
    earlier = {"causal_vae": {"base_channels": 8, "latent_channels": 3, "time_kernel": 1}}
    config = read_config(
        earlier, {"causal_vae": {"size": "large", "blocks_per_level": 7}}
    ).causal_vae
    assert (
        config.base_channels,
        config.blocks_per_level,
        config.latent_channels,
        config.time_kernel,
    ) == (256, 7, 3, 1)
    saved = yaml.safe_load(as_yaml(TrainConfig(causal_vae=config)))["causal_vae"]
    assert saved.keys() == vars(config).keys(), "a run saves what a preset stands for"
    with pytest.raises(
        ValueError, match=r"`causal_vae.size` must be one of 'tiny', .* Did you mean `large`"
    ):
        read_config({"causal_vae": {"size": "lage"}})


def test_the_demo_turns_the_gan_on_in_its_last_third():
    config = read_config("demo")
    assert config.data is None
    assert config.objective.disc_start == config.steps * 2 / 3


def test_paths_may_begin_with_the_users_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/users/me")
    names = ("data", "val_data", "model", "output_dir")
    config = TrainConfig(**{name: f"~/{name}" for name in names})
    assert [getattr(config, name) for name in names] == [f"/users/me/{name}" for name in names]
    assert TrainConfig(data="a/~/b").data == "a/~/b"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sharding", {"sharding": "fsdp2"}),
        ("context_parallel", {"context_parallel": 2}),
        ("temporal_chunk", {"temporal_chunk": 4}),
        ("model_gradient_checkpointing", {"model_gradient_checkpointing": True}),
        (
            "objective.gradient_checkpointing",
            {"objective": ObjectiveConfig(gradient_checkpointing=True)},
        ),
    ],
)
def test_what_compiled_code_cannot_do_is_refused(name, options):
    TrainConfig(**options)
    with pytest.raises(
        ValueError, match=f"`dynamo_backend` must be `no` with `{name}`, but got inductor"
    ):
        TrainConfig(dynamo_backend="inductor", **options)
