"""A plain implementation of the objective, which telecine is measured against, written as in the published reference.

The equations are the same. The graph is autograd's: the adaptive weight takes one more backward of each loss, the
discriminators' weights get gradients in the autoencoder step, and the discriminator step runs a second forward of the
reconstructions.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.losses.perceptual import LPIPS

MIN_NORM = 1e-3
MAX_WEIGHT = 1e3


class BaselineLoss(nn.Module):
    """Baseline of `VideoAutoencoderLoss`: squared error, LPIPS, hinge losses with adaptive weight, gradient penalty.

    It draws the same random frames as telecine, in the same order, from PyTorch's default generator.

    Args:
        discr: The discriminator of single frames, or `None`.
        discr_3d: The discriminator of whole videos, or `None`.
        perceptual_weight: Weight of LPIPS; at 0 it is not built.
        num_perceptual_frames: Number of random frames of each clip that LPIPS compares.
        adversarial_loss_weight: Weight of the adversarial terms.
        grad_penalty_loss_weight: Weight of the gradient penalty.
    """

    def __init__(
        self,
        *,
        discr: nn.Module | None = None,
        discr_3d: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        num_perceptual_frames: int = 1,
        adversarial_loss_weight: float = 0.5,
        grad_penalty_loss_weight: float = 10.0,
    ) -> None:
        super().__init__()
        self.discr = discr
        self.discr_3d = discr_3d
        self.perceptual_weight = perceptual_weight
        self.num_perceptual_frames = num_perceptual_frames
        self.adversarial_loss_weight = adversarial_loss_weight
        self.grad_penalty_loss_weight = grad_penalty_loss_weight
        self.lpips = LPIPS("vgg") if perceptual_weight > 0 else None

    def autoencoder_step(
        self, real: Tensor, fake: Tensor, last_layer: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the loss, its terms, and the adaptive weight of each discriminator, which is 1 without LPIPS."""
        terms = {"recon_loss": F.mse_loss(fake, real)}
        loss = terms["recon_loss"]
        if self.lpips is not None:
            index = random_frames(real, self.num_perceptual_frames)
            perceptual = self.lpips(
                reconstruction=frames_of(fake, index), target=frames_of(real, index)
            ).mean()
            terms["perceptual_loss"] = perceptual
            loss = loss + self.perceptual_weight * perceptual
        weights = {}
        for name, (discriminator, x_fake) in self._inputs(fake).items():
            g = -discriminator(x_fake).mean()
            weights[name] = torch.ones_like(g)
            if self.lpips is not None:
                weights[name] = adaptive_weight(terms["perceptual_loss"], g, last_layer)
            terms[f"gen_loss_{name}"] = g
            loss = loss + self.adversarial_loss_weight * weights[name] * g
        return loss, terms, weights

    def discriminator_step(
        self, real: Tensor, fake: Tensor, *, penalty: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its terms, with the gradient penalty if `penalty` is true."""
        terms: dict[str, Tensor] = {}
        loss = torch.zeros((), device=real.device, dtype=real.dtype)
        for name, (discriminator, x_real, x_fake) in self._input_pairs(real, fake.detach()).items():
            x_real = x_real.detach().clone().requires_grad_(penalty)
            d_real, d_fake = discriminator(x_real), discriminator(x_fake)
            terms[f"discr_loss_{name}"] = F.relu(1 + d_fake).mean() + F.relu(1 - d_real).mean()
            loss = loss + terms[f"discr_loss_{name}"]
            if penalty:
                terms[f"grad_penalty_loss_{name}"] = gradient_penalty(x_real, d_real)
                loss = loss + self.grad_penalty_loss_weight * terms[f"grad_penalty_loss_{name}"]
        return loss, terms

    def _inputs(self, video: Tensor) -> dict[str, tuple[nn.Module, Tensor]]:
        """Return each discriminator and its input, for that of single frames a random frame of each clip."""
        inputs: dict[str, tuple[nn.Module, Tensor]] = {}
        if self.discr is not None:
            inputs["discr"] = self.discr, frames_of(video, random_frames(video, 1))
        if self.discr_3d is not None:
            inputs["discr_3d"] = self.discr_3d, video
        return inputs

    def _input_pairs(
        self, real: Tensor, fake: Tensor
    ) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
        """Return each discriminator and its real and fake inputs, which are the same frames of both videos."""
        pairs: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
        if self.discr is not None:
            index = random_frames(real, 1)
            pairs["discr"] = self.discr, frames_of(real, index), frames_of(fake, index)
        if self.discr_3d is not None:
            pairs["discr_3d"] = self.discr_3d, real, fake
        return pairs


def random_frames(video: Tensor, num_frames: int) -> Tensor:
    """Return the indices `(B, k)` of random frames of each clip; of all frames, in order, if there are at most k."""
    batch, _, time = video.shape[:3]
    if num_frames >= time:
        return torch.arange(time, device=video.device).expand(batch, time)
    return torch.rand(batch, time, device=video.device).topk(num_frames, dim=1).indices


def frames_of(video: Tensor, index: Tensor) -> Tensor:
    """Return the frames `index` of each clip as one batch `(B * k, C, H, W)`."""
    frames = rearrange(video, "b c t h w -> b t c h w")
    clip = torch.arange(len(video), device=video.device)[:, None]
    return rearrange(frames[clip, index], "b k c h w -> (b k) c h w")


def adaptive_weight(perceptual: Tensor, g: Tensor, last_layer: Tensor) -> Tensor:
    """Return the ratio of the gradient norms of both losses at the last layer, from one backward of each."""
    norms = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
        for loss in (perceptual, g)
    ]
    return (norms[0] / norms[1].clamp(min=MIN_NORM)).clamp(max=MAX_WEIGHT).detach()


def gradient_penalty(real: Tensor, logits: Tensor) -> Tensor:
    """Return the mean over the batch of `(|d logit / d real| - 1)^2`, with its graph."""
    ones = torch.ones_like(logits)
    (gradient,) = torch.autograd.grad(
        logits, real, grad_outputs=ones, create_graph=True, retain_graph=True
    )
    return (rearrange(gradient, "b ... -> b (...)").norm(dim=1) - 1).square().mean()
