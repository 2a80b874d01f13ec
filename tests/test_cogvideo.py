"""The seed's names, and its usage example with only the import line changed."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import telecine
from telecine import cogvideo

SEED_NAMES = {
    "Blur",
    "CausalConv3d",
    "Discriminator",
    "Discriminator3D",
    "Discriminator3DWithfirstframe",
    "DiscriminatorBlock",
    "DiscriminatorBlock3D",
    "DownSample3D",
    "FeedForward",
    "LinearSpaceAttention",
    "VideoAutoencoderLoss",
}


def test_the_names_of_the_seed():
    assert set(cogvideo.__all__) >= SEED_NAMES
    for name in cogvideo.__all__:
        assert getattr(cogvideo, name).__name__ == name


def test_they_are_the_same_classes():
    for name in (
        "VideoAutoencoderLoss",
        "Discriminator",
        "Discriminator3D",
        "Discriminator3DWithfirstframe",
    ):
        assert getattr(cogvideo, name) is getattr(telecine, name)


@pytest.mark.parametrize(
    "name", ["Discriminator", "Discriminator3D", "Discriminator3DWithfirstframe"]
)
def test_the_discriminators_defaults_are_the_seeds(name):
    """Published checkpoints only fit networks with these defaults."""
    parameters = inspect.signature(getattr(cogvideo, name)).parameters
    seed = {
        "channels": 3,
        "max_dim": 512,
        "linear_attn_dim_head": 8,
        "linear_attn_heads": 16,
        "ff_mult": 4,
        "antialiased_downsample": False,
    }
    assert {key: parameters[key].default for key in seed} == seed


def test_the_signature_can_be_read():
    assert "Annotated" not in str(inspect.signature(cogvideo.VideoAutoencoderLoss))


def test_the_signature_is_the_seeds():
    parameters = inspect.signature(cogvideo.VideoAutoencoderLoss).parameters
    positional = {n: p.default for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert (
        positional
        == {
            "disc_start": inspect.Parameter.empty,
            "perceptual_weight": 1,
            "adversarial_loss_weight": 0,
            "multiscale_adversarial_loss_weight": 0,
            "grad_penalty_loss_weight": 0,
            "quantizer_aux_loss_weight": 0,
            "vgg_weights": None,  # as the seed's `VGG16_Weights.DEFAULT`, but torchvision is not imported for it
            "discr_kwargs": None,
            "discr_3d_kwargs": None,
        }
    )
    assert next(iter(positional)) == "disc_start"
    added = [p for n, p in parameters.items() if n not in positional]
    assert added
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in added)
    call = inspect.signature(cogvideo.VideoAutoencoderLoss.forward).parameters
    assert list(call)[1:8] == [
        *("inputs", "reconstructions", "optimizer_idx", "global_step"),
        *("aux_losses", "last_layer", "split"),
    ]
    assert (call["aux_losses"].default, call["last_layer"].default, call["split"].default) == (
        None,
        None,
        "train",
    )


@pytest.fixture
def random_default_vgg(monkeypatch):
    """Replace the default of `vgg_weights` by random weights, so that nothing is downloaded."""
    channels = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    positions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    generator = torch.Generator().manual_seed(0)
    state, width = {}, 3
    for position, out in zip(positions, channels, strict=True):
        state[f"features.{position}.weight"] = (
            torch.randn(out, width, 3, 3, generator=generator) * (2 / 9 / width) ** 0.5
        )
        state[f"features.{position}.bias"] = torch.zeros(out)
        width = out
    monkeypatch.setattr("telecine.losses.perceptual.lpips.load_backbone", lambda net, source: state)


@pytest.mark.slow
def test_the_usage_example_runs(random_default_vgg):
    """Only the import line and `dim` differ from the seed's example; the clips are small, because any size works."""
    from telecine.cogvideo import VideoAutoencoderLoss

    torch.manual_seed(0)
    model = SimpleNamespace(decoder=nn.Module())
    model.decoder.conv_out = nn.Conv3d(3, 3, 1)
    video_batch = torch.rand(1, 3, 4, 16, 16) * 2 - 1
    recon_video = model.decoder.conv_out(video_batch)
    quantizer_loss = torch.tensor(0.25)
    step = 5000

    # Initialize with 3D discriminator
    loss_fn = VideoAutoencoderLoss(
        disc_start=5000,
        perceptual_weight=1.0,
        adversarial_loss_weight=0.5,
        grad_penalty_loss_weight=10.0,
        quantizer_aux_loss_weight=1.0,
        discr_3d_kwargs={
            "target": "sgm.modules.autoencoding.losses.video_loss.Discriminator3D",
            "params": {"dim": 8, "image_size": 256, "frame_num": 16},
        },
    )

    # Generator update
    gen_loss, gen_log = loss_fn(
        inputs=video_batch,  # (B, 3, T, H, W)
        reconstructions=recon_video,  # (B, 3, T, H, W)
        optimizer_idx=0,
        global_step=step,
        aux_losses=quantizer_loss,
        last_layer=model.decoder.conv_out.weight,
    )

    # Discriminator update
    disc_loss, disc_log = loss_fn(
        inputs=video_batch,
        reconstructions=recon_video,
        optimizer_idx=1,
        global_step=step,
    )

    gen_loss.backward()
    assert model.decoder.conv_out.weight.grad.abs().sum() > 0
    assert type(loss_fn.discr_3d) is telecine.Discriminator3D
    assert gen_log["train/gen_loss"] != 0
    assert gen_log["train/aux_losses"] == 0.25
    assert disc_log["train/grad_penalty_loss"] > 0
    assert disc_loss.isfinite()
