"""The objective of a video autoencoder and of its discriminators: which terms, with which weight, in which step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from telecine.discriminators import Discriminator, Discriminator3D, build_discriminator
from telecine.losses import gradient_penalty, hinge_discriminator, hinge_generator, mse
from telecine.objective.arguments import (
    check_frames,
    check_interval,
    check_last_layer,
    check_pair,
    check_step,
    check_weight,
    named_aux_losses,
    without_inference_mode,
)
from telecine.objective.balance import adaptive_weight, average_over_ranks, gradient_norm
from telecine.objective.critics import Critic, frozen, one_frame, scaled_down, whole_video
from telecine.objective.terms import Log, each, mean, total, weighted, with_aux
from telecine.perceptual import LPIPS, pick_frames, sample_frame_indices
from telecine.precision import autocast_off
from telecine.shapes import Scalar, Video, argument_error, describe


class VideoAutoencoderLoss(nn.Module):
    """MSE + LPIPS + hinge GAN with adaptive weight + gradient penalty + auxiliary losses, in two steps.

    The autoencoder's step (`optimizer_idx=0`) returns::

        mse + perceptual_weight * lpips + adversarial_loss_weight * sum_d w_d g_d
            + multiscale_adversarial_loss_weight * sum_m w_m g_m + quantizer_aux_loss_weight * aux

    with `g = -mean(D(reconstructions))` from `disc_start` on, and `w = |grad lpips| / |grad g|` at the last layer.
    The discriminators' step (`optimizer_idx=1`) returns::

        sum_d [mean(relu(1 + D_d(fake))) + mean(relu(1 - D_d(real)))] + grad_penalty_loss_weight * sum_d gp_d

    with `gp = mean_b (|d sum D(real) / d real_b| - 1)^2`. In both sums of the second step `d` runs over every
    discriminator, the multi-scale ones included. Only the discriminators are in the state dict; the frozen LPIPS that
    checkpoints of the reference carry as well is passed over when one is loaded.

    Args:
        disc_start: Step from which the adversarial terms count in the autoencoder's step.
        perceptual_weight: Weight of LPIPS; at 0 it is not built.
        adversarial_loss_weight: Weight of the adversarial terms of `discr_kwargs` and `discr_3d_kwargs`.
        multiscale_adversarial_loss_weight: Weight of the adversarial terms of `multiscale_discr_kwargs`.
        grad_penalty_loss_weight: Weight of the gradient penalty.
        quantizer_aux_loss_weight: Weight of the sum of `aux_losses`.
        vgg_weights: VGG16 of LPIPS: a torchvision enum, the path of a file, or a state dict.
        discr_kwargs: The discriminator of single frames: an `nn.Module`, arguments of `Discriminator`, or
            `{"target": "<dotted class>", "params": {...}}`.
        discr_3d_kwargs: The discriminator of whole videos; as above, arguments are those of `Discriminator3D`.
        multiscale_discr_kwargs: Discriminators of the video at 1/2, 1/4, ... of its height and width, in this order;
            each given as `discr_3d_kwargs`.
        perceptual_frames: How many random frames of each clip LPIPS looks at, or "all".
        disc_train_start: Step from which the discriminators train; before it, their loss is 0.
        grad_penalty_every: The penalty is computed on every n-th step, with n times its weight (lazy
            regularisation, Karras et al., arXiv:1912.04958, appendix B).
        generator: Source of the random frames, on the videos' device; PyTorch's own by default.
        reduce: Averages a tensor over ranks, for the adaptive weight; by default over `torch.distributed`'s default
            group where it is initialised.

    Raises:
        ValueError: If a weight or a step is negative, or an adversarial weight is set without a discriminator.
        FileNotFoundError: If the weights of LPIPS cannot be had.
    """

    # What an sgm-style engine passes besides the two videos.
    forward_keys = ("optimizer_idx", "global_step", "last_layer", "split", "regularization_log")

    def __init__(
        self,
        disc_start: int,
        perceptual_weight: float = 1,
        adversarial_loss_weight: float = 0,
        multiscale_adversarial_loss_weight: float = 0,
        grad_penalty_loss_weight: float = 0,
        quantizer_aux_loss_weight: float = 0,
        vgg_weights: Any = VGG16_Weights.DEFAULT,
        discr_kwargs: Any = None,
        discr_3d_kwargs: Any = None,
        *,
        multiscale_discr_kwargs: Sequence[Any] = (),
        perceptual_frames: int | Literal["all"] = 1,
        disc_train_start: int = 0,
        grad_penalty_every: int = 1,
        generator: torch.Generator | None = None,
        reduce: Callable[[Tensor], Tensor] = average_over_ranks,
    ) -> None:
        super().__init__()
        self.disc_start = check_step("disc_start", disc_start)
        self.perceptual_weight = check_weight("perceptual_weight", perceptual_weight)
        self.adversarial_loss_weight = check_weight("adversarial_loss_weight", adversarial_loss_weight)
        self.multiscale_adversarial_loss_weight = check_weight(
            "multiscale_adversarial_loss_weight", multiscale_adversarial_loss_weight
        )
        self.grad_penalty_loss_weight = check_weight("grad_penalty_loss_weight", grad_penalty_loss_weight)
        self.quantizer_aux_loss_weight = check_weight("quantizer_aux_loss_weight", quantizer_aux_loss_weight)
        self.perceptual_frames = check_frames(perceptual_frames)
        self.disc_train_start = check_step("disc_train_start", disc_train_start)
        self.grad_penalty_every = check_interval("grad_penalty_every", grad_penalty_every)
        self.generator = generator
        self.reduce = reduce

        self.perceptual_model = LPIPS(weights=vgg_weights) if self.perceptual_weight > 0 else None
        self.register_load_state_dict_pre_hook(_drop_perceptual_weights)
        self.discr = _build(discr_kwargs, Discriminator, "discr_kwargs")
        self.discr_3d = _build(discr_3d_kwargs, Discriminator3D, "discr_3d_kwargs")
        self.multiscale_discrs = nn.ModuleList(
            build_discriminator(spec, default=Discriminator3D, name=f"multiscale_discr_kwargs[{index}]")
            for index, spec in enumerate(multiscale_discr_kwargs)
        )
        _check_someone_judges("adversarial_loss_weight", adversarial_loss_weight, self.critics)
        _check_someone_judges(
            "multiscale_adversarial_loss_weight", multiscale_adversarial_loss_weight, self.multiscale_critics
        )

    @property
    def critics(self) -> list[Critic]:
        """The discriminators of single frames and of whole videos, as far as there are any."""
        given = (("discr", self.discr, one_frame), ("discr_3d", self.discr_3d, whole_video))
        return [Critic(name, module, see) for name, module, see in given if module is not None]

    @property
    def multiscale_critics(self) -> list[Critic]:
        """The discriminators of the video at 1/2, 1/4, ... of its size."""
        return [
            Critic(f"multiscale_discrs.{level}", module, scaled_down(2 ** (level + 1)))
            for level, module in enumerate(self.multiscale_discrs)
        ]

    def get_trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of every discriminator, for the second optimizer."""
        return [weight for d in self.critics + self.multiscale_critics for weight in d.module.parameters()]

    def penalises(self, global_step: int) -> bool:
        """Say whether the discriminators' step computes the gradient penalty at `global_step`."""
        due = global_step % self.grad_penalty_every == 0
        trains = global_step >= self.disc_train_start
        return due and trains and self.grad_penalty_loss_weight > 0 and torch.is_grad_enabled()

    def forward(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        optimizer_idx: int,
        global_step: int,
        aux_losses: Tensor | float | Mapping[str, Any] | None = None,
        last_layer: Tensor | None = None,
        split: str = "train",
        *,
        regularization_log: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Log]:
        """Compute the loss of one step.

        Args:
            inputs: Real videos `(B, C, T, H, W)`, floating point, in [-1, 1].
            reconstructions: What the autoencoder made of them; same shape and device.
            optimizer_idx: 0 for the autoencoder's step, 1 for the discriminators'.
            global_step: Number of autoencoder updates so far.
            aux_losses: The quantizer's or posterior's loss: a tensor, a number, or a dict of them, each logged.
            last_layer: Weight of the decoder's last layer, for the adaptive weight.
            split: Prefix of the log's keys.
            regularization_log: Stands in for `aux_losses` in sgm-style engines: the entries of it that
                are named "...loss" or "loss/...".

        Returns:
            The loss, a 0-d tensor to call `backward()` on, and a log of 0-d detached float32 tensors.

        Raises:
            ValueError: If an argument is not as above. Nothing given is ever mutated.
        """
        check_pair(inputs, reconstructions)
        check_last_layer(last_layer)
        real = without_inference_mode(inputs.detach())
        fake = without_inference_mode(reconstructions)
        if optimizer_idx == 0:
            aux = named_aux_losses(aux_losses, regularization_log, inputs.device)
            loss, log = self._autoencoder_step(real, fake, aux, last_layer, global_step)
        elif optimizer_idx == 1:
            loss, log = self._discriminator_step(real, fake.detach(), global_step)
        else:
            contract = "0 (autoencoder) or 1 (discriminators)"
            got = describe(optimizer_idx)
            raise argument_error("optimizer_idx", contract, got, "Call once with each in an update.")
        return loss, {f"{split}/{name}": value.detach().float() for name, value in log.items()}

    def _autoencoder_step(
        self, real: Video, fake: Video, aux: Log, last_layer: Tensor | None, global_step: int
    ) -> tuple[Scalar, Log]:
        recon = mse(reconstruction=fake, target=real)
        perceptual = self._perceptual(real, fake)
        started = global_step >= self.disc_start
        g = self._judge(fake, self.critics if started and self.adversarial_loss_weight else [])
        g_m = self._judge(fake, self.multiscale_critics if started and self.multiscale_adversarial_loss_weight else [])
        w = self._adaptive_weights({**g, **g_m}, perceptual, last_layer)
        aux_sum = total(aux.values(), like=recon)

        loss = recon + weighted(
            (self.perceptual_weight, perceptual),
            (self.adversarial_loss_weight, total((w[d] * g[d] for d in g), like=recon)),
            (self.multiscale_adversarial_loss_weight, total((w[m] * g_m[m] for m in g_m), like=recon)),
            (self.quantizer_aux_loss_weight, aux_sum),
        )
        log = {
            "total_loss": loss,
            "recon_loss": recon,
            "perceptual_loss": perceptual,
            "gen_loss": total({**g, **g_m}.values(), like=recon),
            "aux_losses": aux_sum,
            "adaptive_weight": mean(w.values(), like=recon),
            **each("gen_loss", {**g, **g_m}),
            **each("adaptive_weight", w),
        }
        return loss, with_aux(log, aux)

    def _discriminator_step(self, real: Video, fake: Video, global_step: int) -> tuple[Scalar, Log]:
        hinge: Log = {}
        penalty: Log = {}
        logits_real: Log = {}
        logits_fake: Log = {}
        frame_indices = sample_frame_indices(real, 1, self.generator)
        penalise = self.penalises(global_step)
        # The penalty is the gradient of a gradient: neither it nor what it is compared with is left to autocast.
        with autocast_off(real.device) if penalise else nullcontext():
            for d in self._critics_in_training(global_step):
                real_view = d.see(real, frame_indices).detach().requires_grad_(penalise)
                d_real, d_fake = d.judge(real_view), d.judge(d.see(fake, frame_indices))
                hinge[d.name] = hinge_discriminator(real=d_real, fake=d_fake)
                if penalise:
                    penalty[d.name] = gradient_penalty(real=real_view, logits=d_real)
                logits_real[d.name], logits_fake[d.name] = d_real.float().mean(), d_fake.float().mean()

        discr, gp = total(hinge.values(), like=real), total(penalty.values(), like=real)
        loss = discr + weighted((self.grad_penalty_loss_weight * self.grad_penalty_every, gp))
        if not hinge:
            loss.requires_grad_()  # nothing trains yet, and `backward()` on it does nothing
        return loss, {
            "total_disc_loss": loss,
            "discr_loss": discr,
            "grad_penalty_loss": gp,
            "logits_real": mean(logits_real.values(), like=real),
            "logits_fake": mean(logits_fake.values(), like=real),
            **each("discr_loss", hinge),
            **each("logits_real", logits_real),
            **each("logits_fake", logits_fake),
        }

    def _perceptual(self, real: Video, fake: Video) -> Scalar:
        """Return the mean LPIPS of the frames sampled from each clip."""
        if self.perceptual_model is None:
            return torch.zeros((), device=fake.device)
        indices = sample_frame_indices(fake, self.perceptual_frames, self.generator)
        return self.perceptual_model(
            reconstruction=pick_frames(fake, indices), target=pick_frames(real, indices)
        ).mean()

    def _judge(self, fake: Video, critics: list[Critic]) -> Log:
        """Return each critic's generator loss by name; the critics' parameters stay out of the graph."""
        losses = {}
        for critic in critics:
            view = critic.see(fake, sample_frame_indices(fake, 1, self.generator))
            with frozen(critic.module):
                losses[critic.name] = hinge_generator(fake=critic.judge(view))
        return losses

    def _adaptive_weights(self, g: Log, perceptual: Scalar, last_layer: Tensor | None) -> Log:
        """Return the weight of each generator loss: 1 where there is no gradient or nothing to compare it with."""
        if not g or last_layer is None or not last_layer.requires_grad or not perceptual.requires_grad:
            return {name: torch.ones_like(loss) for name, loss in g.items()}
        reference_norm = gradient_norm(perceptual, last_layer, self.reduce)
        norms = {name: gradient_norm(loss, last_layer, self.reduce) for name, loss in g.items()}
        return {name: adaptive_weight(reference_norm=reference_norm, norm=norm) for name, norm in norms.items()}

    def _critics_in_training(self, global_step: int) -> list[Critic]:
        critics = self.critics + self.multiscale_critics
        if not critics:
            remedy = "Build it with `discr_3d_kwargs` or `discr_kwargs`."
            raise argument_error("optimizer_idx", "0 for a loss without discriminators", 1, remedy)
        return critics if global_step >= self.disc_train_start else []


def _build(spec: Any, default: type[nn.Module], name: str) -> nn.Module | None:
    return None if spec is None else build_discriminator(spec, default=default, name=name)


def _drop_perceptual_weights(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state_dict if key.startswith(f"{prefix}perceptual_model.")]:
        del state_dict[key]


def _check_someone_judges(name: str, weight: float, critics: list[Critic]) -> None:
    if weight > 0 and not critics:
        given = "`multiscale_discr_kwargs`" if name.startswith("multiscale") else "`discr_3d_kwargs` or `discr_kwargs`"
        raise argument_error(name, "0 where no discriminator is given", weight, f"Give one with {given}.")
