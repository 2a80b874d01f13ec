"""The chosen weights are trained, and all others keep their values."""

import copy
from functools import partial

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from telecine.models import CausalVAE, as_video_autoencoder, load_autoencoder
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.lora import low_rank_layers
from telecine.settings import CausalVAEConfig, TrainableConfig
from telecine.training.state import MovingAverage
from telecine.training.trainable import select_trainable

# `tests/models` has LoRA adapters of every class of diffusers.
KINDS = ("causal", pytest.param("wan", marks=pytest.mark.slow))
DECODER = TrainableConfig(weights="decoder")
LORA = TrainableConfig(weights="lora", lora_rank=2, lora_alpha=4.0)

pytestmark = pytest.mark.usefixtures("probe_each_configuration_once")


def build(kind):
    torch.manual_seed(0)
    if kind == "causal":
        return CausalVAE(
            CausalVAEConfig(2, 4, 3, patch_size=2, base_channels=8, blocks_per_level=1)
        )
    if kind == "wan":
        model = diffusers.AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1
        )
    else:
        model = diffusers.AutoencoderKLHunyuanVideo(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        )
    return DiffusersAutoencoder(model)


def trained_weights(model):
    return [weight for weight in model.parameters() if weight.requires_grad]


def clip():
    return torch.rand(2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def reconstruct(model):
    return model(clip(), sample_posterior=False).video


def train(model):
    """Train with large steps and weight decay, in training mode."""
    optimizer = torch.optim.AdamW(trained_weights(model), lr=0.05, weight_decay=0.1)
    model.train()
    for _ in range(3):
        (model(clip()).video - clip()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def tensors(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model, before):
    return {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }


@pytest.mark.parametrize("kind", KINDS)
def test_all_weights_are_trained_by_default_and_the_decoder_alone_keeps_the_latents(kind):
    model = build(kind)
    select_trainable(model, TrainableConfig())
    assert trained_weights(model) == list(model.parameters())
    # Freeze first: for a frozen weight PyTorch may choose a kernel that rounds differently.
    select_trainable(model, DECODER)
    before = tensors(model)
    latent = model.encode(clip())
    train(model)
    after = model.encode(clip())
    assert torch.equal(after.mean, latent.mean)
    assert torch.equal(after.logvar, latent.logvar)
    moved = {name.removeprefix("module.").split(".")[0] for name in changed(model, before)}
    assert moved == ({"decoder"} if kind == "causal" else {"decoder", "post_quant_conv"})


class Drifting(nn.Module):
    """An autoencoder whose encoder has every kind of state that changes without a gradient."""

    def __init__(self):
        super().__init__()
        spectral = nn.utils.parametrizations.spectral_norm(nn.Conv3d(4, 4, 1))
        self.encoder = nn.Sequential(
            nn.Conv3d(3, 4, 1),
            nn.BatchNorm3d(4),
            nn.InstanceNorm3d(4, track_running_stats=True),
            nn.BatchNorm3d(4, affine=False),
            nn.Dropout(0.5),
            spectral,
        )
        self.decoder = nn.Sequential(
            nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4), nn.Dropout(0.5), nn.Conv3d(4, 3, 1)
        )

    def encode(self, x):
        for layer in self.encoder:  # the container itself is not called
            x = layer(x)
        return x

    def forward(self, video):
        return self.decoder(self.encode(video))


def test_frozen_normalisation_and_dropout_stay_in_eval_mode():
    torch.manual_seed(0)
    model = as_video_autoencoder(Drifting())
    video = torch.rand(2, 3, 2, 4, 4)
    select_trainable(model, DECODER)
    assert trained_weights(model) == list(model.module.decoder.parameters())
    before = tensors(model)
    latent = model.train().module.encode(video)
    for learner in (model, copy.deepcopy(model)):
        optimizer = torch.optim.SGD(trained_weights(learner), lr=0.1)
        for _ in range(3):
            learner.eval()
            learner.train()(video).video.square().mean().backward()
            optimizer.step()
        assert torch.equal(learner.train().module.encode(video), latent)
        moved = changed(learner, before)
        assert "module.decoder.1.running_mean" in moved
        assert all(name.startswith("module.decoder.") for name in moved)
        assert learner.module.decoder[2].training


class PartlyFrozen(nn.Module):
    """A pretrained network with a new layer, which alone is trained."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv3d(3, 4, 1).requires_grad_(False)
        self.decoder = nn.Sequential(nn.Conv3d(4, 4, 1).requires_grad_(False), nn.Conv3d(4, 3, 1))


@pytest.mark.parametrize(
    ("model", "config", "expected"),
    [
        (
            "wan",
            TrainableConfig(patterns=("decoder.conv_out.*",)),
            ["decoder.conv_out.bias", "decoder.conv_out.weight"],
        ),
        (
            "wan",
            TrainableConfig(patterns=("quant_conv.weight", "*.conv_in.bias")),
            ["decoder.conv_in.bias", "encoder.conv_in.bias", "quant_conv.weight"],
        ),
        (
            "wan",
            TrainableConfig(weights="decoder", patterns=("*.conv_in.bias",)),
            ["decoder.conv_in.bias"],
        ),
        # Frozen weights stay frozen unless a pattern names them.
        ("frozen", TrainableConfig(), ["decoder.1.bias", "decoder.1.weight"]),
        ("frozen", DECODER, ["decoder.1.bias", "decoder.1.weight"]),
        (
            "frozen",
            TrainableConfig(patterns=("decoder.*.bias",)),
            ["decoder.0.bias", "decoder.1.bias"],
        ),
        ("frozen", TrainableConfig(patterns=("encoder.*",)), ["encoder.bias", "encoder.weight"]),
    ],
)
def test_the_chosen_weights_by_name(model, config, expected):
    model = as_video_autoencoder(PartlyFrozen()) if model == "frozen" else build(model)
    select_trainable(model, config)
    trained = [
        name.removeprefix("module.")
        for name, weight in model.named_parameters()
        if weight.requires_grad
    ]
    assert sorted(trained) == expected


def transposed():
    """Return a model without layers for LoRA adapters."""
    model = nn.Module()
    model.decoder = model.last_layer = nn.ConvTranspose3d(3, 3, 1)
    return model


UNTRAINABLE = [
    (
        partial(build, "wan"),
        TrainableConfig(patterns=("decoder.conv_uot.weight",)),
        "mean `decoder.conv_out.weight`",
    ),
    (
        partial(build, "wan"),
        TrainableConfig(patterns=("zzz",)),
        "The first is `encoder.conv_in.weight`",
    ),
    (
        partial(build, "wan"),
        TrainableConfig(weights="decoder", patterns=("encoder.*",)),
        "patterns of names",
    ),
    (
        partial(build, "wan"),
        TrainableConfig(weights="lora", patterns=("decoder.conv_uot",)),
        "mean `decoder.conv_out`",
    ),
    (
        lambda: PartlyFrozen().requires_grad_(False),
        TrainableConfig(),
        "got PartlyFrozen, all of .*frozen. .*patterns",
    ),
    (
        lambda: PartlyFrozen().to(torch.bfloat16),
        TrainableConfig(),
        "must be float32, .*1.weight in torch.bfloat16.*Call",
    ),
    (
        lambda: PartlyFrozen().to(torch.float16),
        TrainableConfig(),
        "must be float32, .*1.weight in torch.float16.*Call",
    ),
    (
        lambda: nn.Sequential(nn.Conv3d(3, 3, 1), nn.ReLU()),
        DECODER,
        "`decoder`, but got Sequential with 0, 1",
    ),
    (
        transposed,
        LORA,
        r'`weights` must be "all" or "decoder" for a model without .* but got "lora"',
    ),
    (
        transposed,
        TrainableConfig(weights="lora", patterns=("decoder",)),
        r"for a model without .* but got ",
    ),
]


@pytest.mark.parametrize(("make", "config", "message"), UNTRAINABLE)
def test_what_cannot_be_trained_is_named(make, config, message):
    with pytest.raises(ValueError, match=message):
        select_trainable(as_video_autoencoder(make()), config)


def test_frozen_weights_may_be_in_half_precision():
    model = as_video_autoencoder(PartlyFrozen())
    model.module.encoder.half()
    select_trainable(model, TrainableConfig())
    assert len(trained_weights(model)) == 2


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_lora_leaves_layers_out_whose_weights_are_computed(norm):
    model = nn.Module()
    model.decoder = nn.Sequential(norm(nn.Conv3d(3, 3, 1)), nn.Conv3d(3, 3, 1), nn.Conv3d(3, 3, 1))
    model.last_layer = model.decoder[2].weight
    select_trainable(as_video_autoencoder(model), LORA)
    assert low_rank_layers(model) == [model.decoder[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_lora_updates_start_at_zero_and_are_merged_when_they_are_saved(kind, tmp_path):
    model = build(kind)
    names = set(model.state_dict())
    expected = reconstruct(model)
    select_trainable(model, LORA)
    torch.testing.assert_close(reconstruct(model), expected, rtol=1e-3, atol=1e-4)
    latent = model.encode(clip()).mean
    before = tensors(model)
    train(model)
    assert torch.equal(model.encode(clip()).mean, latent)
    moved = changed(model, before)
    assert len(moved) == len(trained_weights(model))
    last = [name for name in moved if ".parametrizations." not in name]
    assert len(last) == 2
    assert all(
        model.get_parameter(name) is model.last_layer or name.endswith("bias") for name in last
    )

    expected = reconstruct(model)
    state = tensors(model)
    model.save_pretrained(tmp_path)
    assert not changed(model, state)
    torch.testing.assert_close(reconstruct(model), expected)
    loaded = load_autoencoder(tmp_path)
    assert set(loaded.state_dict()) == names
    torch.testing.assert_close(reconstruct(loaded), expected, rtol=1e-4, atol=1e-5)
    if kind != "causal":
        alone = diffusers.AutoModel.from_pretrained(str(tmp_path))
        weights = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
        assert (
            {f"module.{name}" for name in alone.state_dict()}
            == {f"module.{name}" for name in weights}
            == names
        )
    with pytest.raises(ValueError, match="before adding LoRA adapters"):
        model.load_weights(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_updates_are_averaged_and_resumed(kind, tmp_path):
    model = build(kind)
    select_trainable(model, LORA)
    average = MovingAverage(model, 0.0)
    train(model)
    average.update()
    expected = reconstruct(model)
    train(model)
    assert not torch.equal(reconstruct(model), expected)
    with average.applied():
        torch.testing.assert_close(reconstruct(model), expected)
        model.save_pretrained(tmp_path)
    torch.testing.assert_close(
        reconstruct(load_autoencoder(tmp_path)), expected, rtol=1e-4, atol=1e-5
    )
    resumed = build(kind)
    select_trainable(resumed, LORA)
    resumed.load_state_dict(model.state_dict())
    assert torch.equal(reconstruct(resumed), reconstruct(model))


@pytest.mark.parametrize(("part", "last"), [("encoder.*", False), ("decoder.conv_*", True)])
@pytest.mark.slow
def test_patterns_choose_layers_of_lora_updates(part, last):
    model = build("hunyuan_video")
    select_trainable(
        model, TrainableConfig(weights="lora", lora_rank=2, patterns=(part, "*.conv_in.conv"))
    )
    trained = [name for name, weight in model.module.named_parameters() if weight.requires_grad]
    assert all(
        name.startswith((part.split(".")[0], "encoder.conv_in", "decoder.conv_in"))
        for name in trained
    )
    assert model.last_layer.requires_grad == last
    train(model)
