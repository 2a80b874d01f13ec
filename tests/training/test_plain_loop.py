"""Updates equal those of the loop that a user of diffusers would write, with the objective of VQGAN and a PatchGAN."""

import json
from itertools import pairwise

import diffusers
import pytest
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.optim import AdamW

from telecine.base.randomness import clip_generators
from telecine.losses.perceptual import LPIPS
from telecine.settings.parse import read_config
from telecine.training.step import MicroBatch, train_step

from ..models.tiny_models import FEW_LEVELS
from .helpers import new_state

MODELS = {
    "decoder.conv_out.weight": {
        "_class_name": "AutoencoderKLWan",
        "base_dim": 8,
        "num_res_blocks": 1,
        **FEW_LEVELS["wan"],
    },
    "decoder.conv_out.conv.weight": {
        "_class_name": "AutoencoderKLCogVideoX",
        "layers_per_block": 1,
        "norm_num_groups": 2,
        **FEW_LEVELS["cogvideox"],
    },
}
LOSSES = (
    "total_loss",
    "recon_loss",
    "perceptual_loss",
    "kl_loss",
    "gen_loss",
    "adaptive_weight",
    "total_disc_loss",
)
PERCEPTUAL_WEIGHT = 1.0
ADVERSARIAL_WEIGHT = 0.5
KL_WEIGHT = 0.1
LR = 1e-5
BETAS = [0.5, 0.9]
GRAD_CLIP = 1.0
CHANNELS = 16  # of the first layer of the discriminator
SETTINGS = {
    "device": "cpu",
    "trackers": [],
    "batch_size": 1,
    "clips": {"num_frames": 5, "height": 32, "width": 32},
    "discriminator": {"video": "patch", "dim": CHANNELS // 4},
    "objective": {
        "perceptual_weight": PERCEPTUAL_WEIGHT,
        "adversarial_loss_weight": ADVERSARIAL_WEIGHT,
        "quantizer_aux_loss_weight": KL_WEIGHT,
        "perceptual": {"net": "alex", "num_frames": "all"},
        "adaptive_weight": {"reference": "recon_and_perceptual"},
    },
    "optimizer": {
        "lr": LR,
        "disc_lr": LR,
        "betas": BETAS,
        "disc_betas": BETAS,
        "grad_clip": GRAD_CLIP,
    },
}


class PatchGAN(nn.Module):
    """The layers of `PatchDiscriminator3D`, whose parameters have the same names."""

    def __init__(self, dim):
        super().__init__()
        widths = [3, dim, 2 * dim, 4 * dim, 8 * dim]
        strides = [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 1, 1)]
        self.blocks = nn.Sequential()
        for (width_in, width_out), stride in zip(pairwise(widths), strides, strict=True):
            kernel = (3, 4, 4) if stride[-1] == 2 else 3
            layers = [nn.Conv3d(width_in, width_out, kernel, stride, padding=1)]
            if width_in > 3:
                layers.append(nn.GroupNorm(width_out // 16, width_out))
            self.blocks.append(nn.Sequential(*layers, nn.LeakyReLU(0.2)))
        self.to_logits = nn.Conv3d(widths[-1], 1, 3, padding=1)

    def forward(self, x):
        return self.to_logits(self.blocks(x))


class PlainLoop:
    """Starts from the weights of a run, with diffusers' own model."""

    def __init__(self, values, last_layer, state):
        self.model = getattr(diffusers, values["_class_name"]).from_config(values).train()
        self.model.load_state_dict(state.autoencoder.module.state_dict())
        self.last_layer = self.model.get_parameter(last_layer)
        self.discriminator = PatchGAN(CHANNELS)
        self.discriminator.load_state_dict(state.objective.discr_3d.state_dict())
        self.lpips = LPIPS("alex")
        self.optimizers = [
            AdamW(network.parameters(), LR, betas=BETAS, weight_decay=0.0)
            for network in (self.model, self.discriminator)
        ]

    def update(self, video, clips):
        posterior = self.model.encode(video).latent_dist
        fake = self.model.decode(posterior.sample(clip_generators(0, clips, video.device))).sample
        frames, targets = (rearrange(clip, "b c t h w -> (b t) c h w") for clip in (fake, video))
        recon = F.mse_loss(fake, video)
        perceptual = self.lpips(reconstruction=frames, target=targets).mean()
        nll = recon + PERCEPTUAL_WEIGHT * perceptual
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        g = -self.discriminator(fake).mean()
        norms = [
            torch.autograd.grad(loss, self.last_layer, retain_graph=True)[0].norm()
            for loss in (nll, g)
        ]
        weight = (norms[0] / norms[1]).clamp(max=1e3).detach()
        loss = nll + ADVERSARIAL_WEIGHT * weight * g + KL_WEIGHT * kl
        self.step(loss, self.model, self.optimizers[0])
        self.discriminator.zero_grad()
        disc_loss = (
            F.relu(1 + self.discriminator(fake.detach())).mean()
            + F.relu(1 - self.discriminator(video)).mean()
        )
        self.step(disc_loss, self.discriminator, self.optimizers[1])
        losses = torch.stack([loss, recon, perceptual, kl, g, weight, disc_loss])
        return dict(zip(LOSSES, losses.tolist(), strict=True))

    def step(self, loss, module, optimizer):
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.slow
@pytest.mark.parametrize("last_layer", MODELS, ids=["wan", "cogvideox"])
def test_losses_and_weights_are_those_of_a_plain_loop(cached_weights, tmp_path, last_layer):
    values = MODELS[last_layer]
    (tmp_path / "model.json").write_text(json.dumps(values))
    config = read_config(SETTINGS, {"model": str(tmp_path / "model.json")})
    state = new_state(config)
    with torch.no_grad():
        state.autoencoder.last_layer.mul_(
            0.4
        )  # diffusers' Wan clamps its output, telecine does not
    plain = PlainLoop(values, last_layer, state)
    networks = {
        plain.model: state.autoencoder.module,
        plain.discriminator: state.objective.discr_3d,
    }
    before = [parameters_to_vector(network.parameters()) for network in networks]
    losses = []
    expected = []
    for number in range(2):
        video = 2 * torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(number)) - 1
        log = train_step(state, [MicroBatch(video, [number])])
        losses.append({name: float(log[f"train/{name}"]) for name in LOSSES})
        expected.append(plain.update(video, [number]))
    assert losses[0] == pytest.approx(expected[0], rel=1e-4)
    assert losses[1] == pytest.approx(expected[1], rel=1e-3)
    assert all(losses[0][name] != losses[1][name] for name in LOSSES)
    for (theirs, ours), start in zip(networks.items(), before, strict=True):
        moved, other = (
            parameters_to_vector(network.parameters()) - start for network in (theirs, ours)
        )
        assert (moved - other).norm() < 1e-2 * moved.norm()
