"""Compiled networks have the values and gradients of plain ones, within rounding."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config

from telecine import PatchDiscriminator3D, VideoAutoencoderLoss
from telecine.models import CausalVAE, as_video_autoencoder, load_autoencoder
from telecine.models.diffusers import DiffusionDecoder
from telecine.training.build import build_autoencoder
from telecine.training.compilation import compile_networks

from ..models.tiny_models import tiny_model
from .helpers import graph_breaks, new_state


class Frames(nn.Module):
    """A perceptual network."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, *, reconstruction, target):
        return (self.conv(reconstruction) - self.conv(target)).square().mean((1, 2, 3))


class Convolution(nn.Conv3d):
    """A network: layers of PyTorch itself are not compiled alone."""

    def forward(self, x):
        return super().forward(x)


class TwoConvolutions(nn.Module):
    """An autoencoder that is compiled in a part of a second."""

    def __init__(self):
        super().__init__()
        self.encoder = Convolution(3, 4, 1)
        self.decoder = Convolution(4, 3, 1)
        self.last_layer = self.decoder.weight

    def forward(self, video, *, generator):
        latent = self.encoder(video)
        return SimpleNamespace(video=self.decoder(latent), aux=latent.square().mean())


def build_loss(*, norm="group", **options):
    discriminator = PatchDiscriminator3D(
        base_channels=4, num_layers=1, num_temporal_layers=1, norm=norm
    )
    return VideoAutoencoderLoss(
        0,
        perceptual={"net": Frames()},
        adversarial_loss_weight=0.5,
        quantizer_aux_loss_weight=0.1,
        discr_3d_kwargs=discriminator,
        **options,
    )


def values_of(model, loss, autocast=None):
    """Return losses, logs and gradients of two updates."""
    values = []
    for step in range(2):
        torch.manual_seed(step)
        video = torch.rand(2, 3, 5, 16, 16) * 2 - 1
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            output = model(video, generator=torch.Generator().manual_seed(step))
            both = loss.both_losses(video, output.video, step, output.aux, model.last_layer)
        both.loss.backward()
        both.disc_loss.backward()
        values += [
            both.loss.detach(),
            *both.log.values(),
            both.disc_loss.detach(),
            *both.disc_log.values(),
        ]
        for weight in [*model.parameters(), *loss.parameters()]:
            values.append(weight.grad)
            weight.grad = None
        assert both.log["train/adaptive_weight"] not in (0, 1)
    return values


PENALTY = "discr_3d (the gradient penalty differentiates it twice)"
SPECTRAL = "discr_3d (its spectral norms are shared by all passes of an update)"


def check_compiled(model, loss, autocast, *, eager, tolerance):
    """Compile networks, of which `eager` stay as they are, and compare their values with those of copies."""
    torch._dynamo.reset()
    counters.clear()
    expected = values_of(*copy.deepcopy((model, loss)), autocast)
    assert compile_networks("aot_eager", model, loss) == eager
    values = values_of(model, loss, autocast)
    torch.testing.assert_close(values, expected, rtol=tolerance, atol=tolerance)
    assert counters["stats"]["unique_graphs"] >= 3, "encoder, decoder and perceptual network"
    assert not graph_breaks()


@pytest.mark.parametrize(
    ("options", "autocast", "eager", "tolerance"),
    [
        ({}, None, [], 1e-4),
        # Without eager gradients, which would underflow.
        (
            {"grad_penalty_loss_weight": 1.0, "eager_gradients": False},
            torch.float16,
            [PENALTY],
            1e-2,
        ),
    ],
)
def test_values_are_those_of_plain_networks(options, autocast, eager, tolerance):
    """The adaptive weight and the loss take gradients through the same compiled autoencoder.

    `test_run.py` has the compiled `CausalVAE` and LPIPS, which takes seconds.
    """
    torch.manual_seed(0)
    loss = build_loss(**options)
    check_compiled(TwoConvolutions(), loss, autocast, eager=eager, tolerance=tolerance)


def test_the_options_of_accelerate_compile(tiny, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_DYNAMIC", "true")
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "max-autotune")
    calls = []
    monkeypatch.setattr(
        nn.Module, "compile", lambda module, **options: calls.append((module, options))
    )
    config = tiny(dynamo_backend="aot_eager")
    state = new_state(config)
    networks = [
        state.autoencoder.encoder,
        state.autoencoder.decoder,
        state.objective.perceptual.distance,
    ]
    assert [module for module, _ in calls] == networks
    assert all(
        options == {"backend": "aot_eager", "mode": "max-autotune", "dynamic": True}
        for _, options in calls
    )
    assert f"not compiled: {PENALTY}" in caplog.text


@pytest.mark.parametrize(
    ("backend", "module", "keeps_buffers"),
    [("no", None, False), ("aot_eager", None, True), ("no", nn.Conv3d(3, 3, 1), True)],
)
@functorch_config.patch(donated_buffer=True)
def test_compiled_code_of_a_run_keeps_its_buffers(tiny, backend, module, keeps_buffers):
    """A module of the user may be compiled, in a part of it that nobody finds."""
    config = tiny(dynamo_backend=backend)
    new_state(config, build_autoencoder(config, module))
    assert functorch_config.donated_buffer is not keeps_buffers


def test_what_is_not_compiled_is_named(tiny):
    model = CausalVAE(tiny().causal_vae)
    assert compile_networks("aot_eager", model, build_loss(norm="spectral")) == [SPECTRAL]
    loss = VideoAutoencoderLoss(0, perceptual_weight=0)
    model = as_video_autoencoder(nn.Conv3d(3, 3, 1))
    assert compile_networks("aot_eager", model, loss) == ["the autoencoder (a module of yours)"]
    module = tiny_model("ltx2_diffusion_decoder")
    decoder = DiffusionDecoder(module, "vae", load_autoencoder, digest="")
    assert compile_networks("aot_eager", decoder, loss) == [
        "the decoder (its stages are called one by one)"
    ]
