"""The chosen weights are trained, and all others keep their values."""

import copy

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from telecine.models import CausalVAE, load_autoencoder
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.lora import low_rank_layers
from telecine.settings import CausalVAEConfig, TrainableConfig
from telecine.training import trainable
from telecine.training.state import MovingAverage

SMALL = CausalVAEConfig(2, 4, 3, patch_size=2, base_channels=8, blocks_per_level=1)
KINDS = ("causal", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("wan", "hunyuan_video")))

pytestmark = pytest.mark.usefixtures("probe_each_configuration_once")


def build(kind):
    torch.manual_seed(0)
    if kind == "causal":
        return CausalVAE(SMALL)
    if kind == "wan":
        return DiffusersAutoencoder(
            diffusers.AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        )
    return DiffusersAutoencoder(
        diffusers.AutoencoderKLHunyuanVideo(
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
        )
    )


def clip():
    return torch.rand(2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def train(model, weights, num_steps=3):
    """Train with large steps and weight decay, in training mode."""
    optimizer = torch.optim.AdamW(weights, lr=0.05, weight_decay=0.1)
    model.train()
    for _ in range(num_steps):
        output = model(clip())
        (output.video - clip()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def tensors(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def select_trainable(model, config):
    """Return the weights that are trained then."""
    trainable.select_trainable(model, config)
    return [weight for weight in model.parameters() if weight.requires_grad]


def changed(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("kind", KINDS)
def test_all_weights_are_trained_by_default(kind):
    model = build(kind)
    assert select_trainable(model, TrainableConfig()) == list(model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_training_the_decoder_alone_keeps_the_latents_bit_for_bit(kind):
    model = build(kind)
    # Freeze first: for a frozen weight PyTorch may choose a kernel that rounds differently.
    weights = select_trainable(model, TrainableConfig(weights="decoder"))
    before, latent = tensors(model), model.encode(clip())
    train(model, weights)
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
        self.decoder = nn.Sequential(nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4), nn.Dropout(0.5), nn.Conv3d(4, 3, 1))

    def encode(self, x):
        for layer in self.encoder:  # the container itself is not called
            x = layer(x)
        return x

    def forward(self, video):
        return self.decoder(self.encode(video))


def test_frozen_normalisation_and_dropout_stay_in_eval_mode():
    torch.manual_seed(0)
    model, video = Drifting(), torch.rand(2, 3, 2, 4, 4)
    weights = select_trainable(model, TrainableConfig(weights="decoder"))
    assert weights == list(model.decoder.parameters())
    before, latent = tensors(model), model.train().encode(video)
    copied = copy.deepcopy(model)
    for learner in (model, copied):
        optimizer = torch.optim.SGD([weight for weight in learner.parameters() if weight.requires_grad], lr=0.1)
        for _ in range(3):
            learner.train()(video).square().mean().backward()
            optimizer.step()
        assert torch.equal(learner.train().encode(video), latent)
        moved = changed(learner, before)
        assert moved
        assert all(name.startswith("decoder.") for name in moved)
        assert "decoder.1.running_mean" in moved
        assert learner.decoder[2].training


@pytest.mark.parametrize(
    ("weights", "patterns", "expected"),
    [
        ("all", ("decoder.conv_out.*",), ["decoder.conv_out.weight", "decoder.conv_out.bias"]),
        (
            "all",
            ("quant_conv.weight", "*.conv_in.bias"),
            ["encoder.conv_in.bias", "quant_conv.weight", "decoder.conv_in.bias"],
        ),
        ("decoder", ("*.conv_in.bias",), ["decoder.conv_in.bias"]),
    ],
)
def test_patterns_choose_weights_by_name(weights, patterns, expected):
    model = build("wan")
    chosen = select_trainable(model, TrainableConfig(weights=weights, patterns=patterns))
    names = {id(weight): name for name, weight in model.module.named_parameters()}
    assert sorted(names[id(weight)] for weight in chosen) == sorted(expected)
    assert chosen == [weight for weight in model.parameters() if weight.requires_grad]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (TrainableConfig(patterns=("decoder.conv_uot.weight",)), "Did you mean `decoder.conv_out.weight`"),
        (TrainableConfig(patterns=("zzz",)), "The first is `encoder.conv_in.weight`"),
        (TrainableConfig(weights="decoder", patterns=("encoder.*",)), "patterns of names"),
        (TrainableConfig(weights="lora", patterns=("decoder.conv_uot",)), "Did you mean `decoder.conv_out`"),
    ],
)
def test_a_pattern_without_a_match_suggests_the_nearest_name(config, says):
    with pytest.raises(ValueError, match=says):
        select_trainable(build("wan"), config)


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match="`weights` must be 'all', 'decoder' or 'lora'"):
        TrainableConfig(weights="encoder")
    with pytest.raises(ValueError, match="`lora_rank` must be at least 1"):
        TrainableConfig(lora_rank=0)


@pytest.mark.parametrize("setting", [{"lora_rank": 4}, {"lora_alpha": 4.0}])
@pytest.mark.parametrize("weights", ["all", "decoder"])
def test_settings_of_lora_need_lora(setting, weights):
    (name,) = setting
    with pytest.raises(ValueError, match=f'`{name}` must be left out unless `weights` is "lora"'):
        TrainableConfig(weights=weights, **setting)
    TrainableConfig(weights="lora", **setting)


class Frozen(nn.Module):
    """A pretrained network with a new layer, which alone is trained."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv3d(3, 4, 1).requires_grad_(False)
        self.decoder = nn.Sequential(nn.Conv3d(4, 4, 1).requires_grad_(False), nn.Conv3d(4, 3, 1))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainableConfig(), ["decoder.1.weight", "decoder.1.bias"]),
        (TrainableConfig(weights="decoder"), ["decoder.1.weight", "decoder.1.bias"]),
        (TrainableConfig(patterns=("decoder.*.bias",)), ["decoder.0.bias", "decoder.1.bias"]),
        (TrainableConfig(patterns=("encoder.*",)), ["encoder.weight", "encoder.bias"]),
    ],
)
def test_frozen_weights_stay_frozen_unless_a_pattern_names_them(config, expected):
    model = Frozen()
    select_trainable(model, config)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == expected


def test_a_module_with_frozen_weights_only_is_refused():
    with pytest.raises(ValueError, match=r"`trainable` must be .* but got Frozen, all of which are frozen. .*patterns"):
        select_trainable(Frozen().requires_grad_(False), TrainableConfig())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_not_trained(dtype):
    with pytest.raises(ValueError, match=rf"must be float32, but got decoder.1.weight in {dtype}. Call `.float"):
        select_trainable(Frozen().to(dtype), TrainableConfig())
    mixed = Frozen()
    mixed.encoder.to(dtype)
    assert len(select_trainable(mixed, TrainableConfig())) == 2, "frozen weights may be in half precision"


def test_a_model_without_a_decoder_is_refused():
    with pytest.raises(ValueError, match="a model with a module `decoder`, but got Sequential with 0, 1"):
        select_trainable(nn.Sequential(nn.Conv3d(3, 3, 1), nn.ReLU()), TrainableConfig(weights="decoder"))


@pytest.mark.parametrize("patterns", [(), ("decoder",)])
def test_lora_of_a_model_without_suitable_layers_is_refused(patterns):
    model = nn.Module()
    model.decoder = model.last_layer = nn.ConvTranspose3d(3, 3, 1)
    with pytest.raises(ValueError, match=r'`weights` must be "all" or "decoder" for a model without .* but got "lora"'):
        select_trainable(model, lora(patterns=patterns))


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_lora_leaves_layers_out_whose_weights_are_computed(norm):
    model = nn.Module()
    model.decoder = nn.Sequential(norm(nn.Conv3d(3, 3, 1)), nn.Conv3d(3, 3, 1), nn.Conv3d(3, 3, 1))
    model.last_layer = model.decoder[2].weight
    select_trainable(model, lora())
    assert low_rank_layers(model) == [model.decoder[1]]


def lora(**changes):
    return TrainableConfig(**{"weights": "lora", "lora_rank": 2, "lora_alpha": 4.0, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_lora_updates_start_at_zero_and_train(kind):
    model = build(kind)
    expected = model(clip(), sample_posterior=False).video
    weights = select_trainable(model, lora())
    torch.testing.assert_close(model(clip(), sample_posterior=False).video, expected, rtol=1e-3, atol=1e-4)
    assert any(weight is model.last_layer for weight in weights)
    latent, before = model.encode(clip()).mean, tensors(model)
    train(model, weights)
    assert torch.equal(model.encode(clip()).mean, latent)
    moved = changed(model, before)
    assert len(moved) == len(weights)
    last = [name for name in moved if ".parametrizations." not in name]
    assert all(model.get_parameter(name) is model.last_layer or name.endswith("bias") for name in last)
    assert len(last) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_lora_updates_are_merged_when_they_are_saved(kind, tmp_path):
    model = build(kind)
    names = set(model.state_dict())
    train(model, select_trainable(model, lora()))
    expected = model(clip(), sample_posterior=False).video
    state = tensors(model)
    model.save_pretrained(tmp_path)
    assert not changed(model, state)
    torch.testing.assert_close(model(clip(), sample_posterior=False).video, expected)
    loaded = load_autoencoder(tmp_path)
    assert set(loaded.state_dict()) == names
    torch.testing.assert_close(loaded(clip(), sample_posterior=False).video, expected, rtol=1e-4, atol=1e-5)
    if kind != "causal":
        alone = diffusers.AutoModel.from_pretrained(str(tmp_path))
        assert {f"module.{name}" for name in alone.state_dict()} == names
        weights = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
        assert {f"module.{name}" for name in weights} == names


@pytest.mark.parametrize("kind", KINDS)
def test_lora_updates_are_averaged_and_resumed(kind, tmp_path):
    model = build(kind)
    weights = select_trainable(model, lora())
    average = MovingAverage(model, 0.0)
    train(model, weights)
    average.update()
    expected = model(clip(), sample_posterior=False).video
    train(model, weights)
    assert not torch.equal(model(clip(), sample_posterior=False).video, expected)
    with average.applied():
        torch.testing.assert_close(model(clip(), sample_posterior=False).video, expected)
        model.save_pretrained(tmp_path)
    torch.testing.assert_close(load_autoencoder(tmp_path)(clip(), False).video, expected, rtol=1e-4, atol=1e-5)

    resumed = build(kind)
    select_trainable(resumed, lora())
    resumed.load_state_dict(model.state_dict())
    assert torch.equal(resumed(clip(), sample_posterior=False).video, model(clip(), sample_posterior=False).video)


def test_merged_weights_cannot_be_loaded_below_lora_updates(tmp_path):
    model = build("wan")
    select_trainable(model, lora())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="before adding low-rank updates"):
        model.load_weights(tmp_path)


@pytest.mark.parametrize(("patterns", "last"), [(("encoder.*",), False), (("decoder.conv_*",), True)])
@pytest.mark.slow
def test_patterns_choose_layers_of_lora_updates(patterns, last):
    model = build("hunyuan_video")
    select_trainable(model, lora(patterns=(*patterns, "*.conv_in.conv")))
    trained = [name for name, weight in model.module.named_parameters() if weight.requires_grad]
    assert all(name.startswith((patterns[0].split(".")[0], "encoder.conv_in", "decoder.conv_in")) for name in trained)
    assert model.last_layer.requires_grad == last
    train(model, [weight for weight in model.parameters() if weight.requires_grad])
