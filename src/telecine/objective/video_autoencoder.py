"""The objective of a video autoencoder and of its discriminators: which terms, with which weight, in which step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from telecine.discriminators import Discriminator, Discriminator3D, build_discriminator
from telecine.discriminators.base import frozen
from telecine.losses import (
    GAN_LOSSES,
    RECONSTRUCTION_LOSSES,
    Judged,
    Penalty,
    feature_matching,
    gaussian_nll,
    generator_needs_real,
    is_separable,
    temporal_difference,
    wavelet_l1,
)
from telecine.objective.arguments import (
    as_penalty,
    check_choice,
    check_finite,
    check_fraction,
    check_frames,
    check_interval,
    check_last_layer,
    check_pair,
    check_positive,
    choose,
    without_inference_mode,
)
from telecine.objective.auxiliary import named_aux_losses, weighted_sum
from telecine.objective.balance import (
    MAX_WEIGHT,
    MIN_NORM,
    Anchor,
    Balance,
    Reference,
    average_over_ranks,
    with_reduced_gradient,
)
from telecine.objective.carry import carry, watched, with_gradients
from telecine.objective.critics import (
    Critic,
    Trial,
    build_critic,
    one_frame,
    scaled_down,
    view_of,
    whole_video,
)
from telecine.objective.layer_uses import LayerUses
from telecine.objective.lecam import LeCam
from telecine.objective.perceptual_term import PerceptualTerm
from telecine.objective.region import (
    check_mask,
    check_sample_weight,
    clip_weights,
    share,
    within,
    without_broken_pixels,
)
from telecine.objective.schedule import Ramp, as_ramp, as_ramps, check_step
from telecine.objective.shared_backward import can_share, shared_backward
from telecine.objective.standing import mean_standing, standing
from telecine.objective.terms import Log, by_critic, each, mean, named, only_if, scheduled, total, weighted, with_aux
from telecine.ops.double_backward import differentiated_twice
from telecine.perceptual import Perceptual, sample_frame_indices
from telecine.precision import at_least_float32, autocast_dtype, autocast_off
from telecine.randomness import Generators
from telecine.shapes import Scalar, Video, argument_error, describe


class Batch(NamedTuple):
    """What a call is about: the videos, and how much of them counts."""

    real: Video
    fake: Video
    """The reconstructions, put right where they are masked out."""
    reconstructions: Video
    """The reconstructions as they came, in at least float32."""
    mask: Tensor | None
    sample_weight: Tensor | None


class Update(NamedTuple):
    """The losses of both steps on one batch, and their logs."""

    loss: Scalar
    log: Log
    disc_loss: Scalar
    disc_log: Log


Weight: TypeAlias = float | Ramp | Mapping[str, Any]
# The weights of terms that the discriminators judge: off before `disc_start`.
JUDGED = ("adversarial_loss_weight", "multiscale_adversarial_loss_weight", "feature_matching_loss_weight")


class VideoAutoencoderLoss(nn.Module):
    """Reconstruction + LPIPS + GAN with adaptive weight + gradient penalty + auxiliary losses, in two steps.

    The autoencoder's step (`optimizer_idx=0`) returns::

        nll(recon + perceptual_weight * lpips) + gram_loss_weight * gram
            + wavelet_loss_weight * wavelet + temporal_loss_weight * temporal
            + adversarial_loss_weight * sum_d w_d g_d + multiscale_adversarial_loss_weight * sum_m w_m g_m
            + feature_matching_loss_weight * feature_matching + quantizer_aux_loss_weight * aux

    with `nll` the identity, `recon` the mean squared error, `g = -mean(D(reconstructions))` from `disc_start` on and
    `w = |grad lpips| / |grad g|` at the last layer, unless told otherwise. The discriminators' step
    (`optimizer_idx=1`) returns::

        sum_d discr_d + grad_penalty_loss_weight * sum_d gp_d + lecam_loss_weight * sum_d lecam_d

    with `discr = mean(relu(1 + D(fake))) + mean(relu(1 - D(real)))` and
    `gp = mean_b (|d sum D(real) / d real_b| - 1)^2` unless told otherwise; `d` runs over every discriminator, the
    multi-scale ones included.

    Only the discriminators, and what the options below keep (`learn_logvar`, LeCam's and the adaptive weight's
    averages), are in the state dict; the frozen LPIPS that checkpoints of the reference carry as well is passed over
    when one is loaded.

    Every weight is a number, or a `Ramp` (or a dict of its fields) that starts late or changes linearly over the
    autoencoder's steps. A term is not computed at a step at which its weight is 0. Each term's log key is the name of
    its weight without `_weight`; only `perceptual_weight` (`perceptual_loss`), the adversarial weights (`gen_loss`)
    and `quantizer_aux_loss_weight` (`aux_losses`) keep the names of the reference.

    Args:
        disc_start: Step from which the adversarial terms count in the autoencoder's step.
        perceptual_weight: Weight of LPIPS; at 0 it is not built.
        adversarial_loss_weight: Weight of the adversarial terms of `discr_kwargs` and `discr_3d_kwargs`.
        multiscale_adversarial_loss_weight: Weight of the adversarial terms of `multiscale_discr_kwargs`.
        grad_penalty_loss_weight: Weight of the gradient penalty.
        quantizer_aux_loss_weight: Weight of the sum of `aux_losses`.
        vgg_weights: VGG16 of LPIPS: a torchvision enum, the path of a file, or a state dict.
        discr_kwargs: The discriminator of single frames: an `nn.Module`, arguments of `Discriminator`, or
            `{"target": "<dotted class>", "params": {...}}`. A module of your own returns logits, or a pair of logits
            and features.
        discr_3d_kwargs: The discriminator of whole videos; as above, arguments are those of `Discriminator3D`.
        multiscale_discr_kwargs: Discriminators of the video at 1/2, 1/4, ... of its height and width, in this order;
            each given as `discr_3d_kwargs`. One of single frames sees one frame of the scaled video.
        recon_loss: "mse", "l1", "charbonnier", or a function of `reconstruction`, `target` and `weight` (of each
            clip, or None).
        nll_reduction: "sum" multiplies the first term by the number of elements in a clip, and a posterior's
            divergence is summed over the latent as well: latent diffusion's and VidTok's convention, which their
            published weights belong to.
        learn_logvar: Learn the logarithm of the reconstruction's variance: `nll(x) = x / exp(logvar) + logvar`.
            It belongs to the autoencoder's optimizer, see `get_trainable_autoencoder_parameters`.
        logvar_init: Its initial value, or its constant value where it is not learned.
        wavelet_loss_weight: Weight of the mean absolute difference of 3D Haar coefficients.
        wavelet_levels: How many times the low band is split again.
        temporal_loss_weight: Weight of the mean absolute difference of frame-to-frame changes.
        perceptual_net: The network of the perceptual loss: "vgg" (with `vgg_weights`), "alex", an `LPIPS`, or a
            callable of `reconstruction` and `target` frames `(N, 3, H, W)`; a module is frozen, and not saved.
        perceptual_frames: How many random frames of each clip LPIPS looks at, or "all".
        perceptual_stride: Choose among every n-th frame from a random one on; with `perceptual_frames="all"`, take
            every n-th.
        perceptual_chunk_size: Look at so many frames at a time and compute their features again in the backward, so
            that memory does not grow with their number.
        gram_loss_weight: Weight of the squared difference of Gram matrices of LPIPS' features.
        gan_loss: "hinge", "vanilla", "least_squares", "relativistic", or a function of `real` and `fake` logits that
            returns the pair (discriminator's loss, generator's loss).
        feature_matching_loss_weight: Weight of the mean absolute difference of the discriminators' features.
        lecam_loss_weight: Weight of LeCam's regulariser in the discriminators' step.
        lecam_decay: Decay of its running means of the logits.
        disc_train_start: Step from which the discriminators train; before it, their loss is 0.
        grad_penalty: "one_centered", "r1", "r2", "r1_and_r2", "wgan_gp", "approximate_r1", a `Penalty`, or a function
            of `judge`, `real`, `fake` and `generator`.
        grad_penalty_every: The penalty is computed on every n-th step, with n times its weight (lazy
            regularisation, Karras et al., arXiv:1912.04958, appendix B).
        adaptive_weight_reference: What the adversarial terms are made as strong as: "perceptual" (LPIPS),
            "recon_and_perceptual" (VQGAN's code: the whole first term), or "none" for weights of 1.
        adaptive_weight_at: Compare gradients at the "last_layer" or at the "reconstruction".
        adaptive_weight_min_norm: The denominator of the adaptive weight is this at least.
        adaptive_weight_max: The adaptive weight is this at most.
        adaptive_weight_decay: Decay of a moving average of the adaptive weight; 0 for none.
        aux_loss_weights: Weights of `aux_losses` by name, within their sum; 1 where none is given.
        eager_gradients: Compute each term's gradient together with its value and let its graph go, so that memory is
            that of the largest term; the alternative is an ordinary graph of all terms. Values and gradients are the
            same. Under float16 autocast the graph is always an ordinary one.
        gradient_checkpointing: Compute the inside of the discriminators' blocks again in the backward, so that only
            the blocks' outputs are kept.
        generator: Source of the random frames and of a penalty's noise, on the videos' device: one, or one for each
            clip; PyTorch's own by default. It may be set anew before each call.
        reduce: Averages a tensor over ranks; by default over `torch.distributed`'s default group where it is
            initialised.

    Raises:
        ValueError: If a weight or a step is negative, an option is unknown, or a weight is set for something that no
            discriminator is there for.
        FileNotFoundError: If the weights of LPIPS cannot be had.
    """

    # What an sgm-style engine passes besides the two videos.
    forward_keys = ("optimizer_idx", "global_step", "last_layer", "split", "regularization_log")

    def __init__(
        self,
        disc_start: int,
        perceptual_weight: Weight = 1,
        adversarial_loss_weight: Weight = 0,
        multiscale_adversarial_loss_weight: Weight = 0,
        grad_penalty_loss_weight: Weight = 0,
        quantizer_aux_loss_weight: Weight = 0,
        vgg_weights: Any = VGG16_Weights.DEFAULT,
        discr_kwargs: Any = None,
        discr_3d_kwargs: Any = None,
        *,
        multiscale_discr_kwargs: Sequence[Any] = (),
        recon_loss: Literal["mse", "l1", "charbonnier"] | Callable[..., Scalar] = "mse",
        nll_reduction: Literal["mean", "sum"] = "mean",
        learn_logvar: bool = False,
        logvar_init: float = 0.0,
        wavelet_loss_weight: Weight = 0,
        wavelet_levels: int = 1,
        temporal_loss_weight: Weight = 0,
        perceptual_net: Literal["vgg", "alex"] | Callable[..., Tensor] = "vgg",
        perceptual_frames: int | Literal["all"] = 1,
        perceptual_stride: int = 1,
        perceptual_chunk_size: int | None = None,
        gram_loss_weight: Weight = 0,
        gan_loss: Literal["hinge", "vanilla", "least_squares", "relativistic"] | Callable[..., Any] = "hinge",
        feature_matching_loss_weight: Weight = 0,
        lecam_loss_weight: Weight = 0,
        lecam_decay: float = 0.999,
        disc_train_start: int = 0,
        grad_penalty: Literal["one_centered", "r1", "r2", "r1_and_r2", "wgan_gp", "approximate_r1"]
        | Penalty
        | Callable[..., Scalar] = "one_centered",
        grad_penalty_every: int = 1,
        adaptive_weight_reference: Reference = "perceptual",
        adaptive_weight_at: Anchor = "last_layer",
        adaptive_weight_min_norm: float = MIN_NORM,
        adaptive_weight_max: float = MAX_WEIGHT,
        adaptive_weight_decay: float = 0.0,
        aux_loss_weights: Mapping[str, Weight] | None = None,
        eager_gradients: bool = True,
        gradient_checkpointing: bool = False,
        generator: Generators = None,
        reduce: Callable[[Tensor], Tensor] = average_over_ranks,
    ) -> None:
        super().__init__()
        self.disc_start = check_step("disc_start", disc_start)
        self.disc_train_start = check_step("disc_train_start", disc_train_start)
        weights: dict[str, Weight] = {
            "perceptual_weight": perceptual_weight,
            "gram_loss_weight": gram_loss_weight,
            "wavelet_loss_weight": wavelet_loss_weight,
            "temporal_loss_weight": temporal_loss_weight,
            "adversarial_loss_weight": adversarial_loss_weight,
            "multiscale_adversarial_loss_weight": multiscale_adversarial_loss_weight,
            "feature_matching_loss_weight": feature_matching_loss_weight,
            "quantizer_aux_loss_weight": quantizer_aux_loss_weight,
            "grad_penalty_loss_weight": grad_penalty_loss_weight,
            "lecam_loss_weight": lecam_loss_weight,
        }
        self.weights = {name: as_ramp(name, value, self._start_of(name)) for name, value in weights.items()}
        self.scheduled = [name for name, value in weights.items() if not isinstance(value, (int, float))]
        self.aux_loss_weights = as_ramps("aux_loss_weights", aux_loss_weights or {})
        self.generator = generator
        # Called with the gradient at the reconstructions that the discriminators caused, in each backward.
        self.watch: Callable[[Tensor], None] | None = None
        self.reduce = reduce

        self.recon_loss = choose("recon_loss", recon_loss, RECONSTRUCTION_LOSSES)
        self.nll_reduction = check_choice("nll_reduction", nll_reduction, ("mean", "sum"))
        self._init_logvar(check_finite("logvar_init", logvar_init), learn_logvar)
        self.wavelet_levels = check_interval("wavelet_levels", wavelet_levels)

        self.perceptual_term = self._build_perceptual_term(
            perceptual_net, vgg_weights, perceptual_frames, perceptual_stride, perceptual_chunk_size
        )
        self.register_load_state_dict_pre_hook(_drop_perceptual_weights)

        self.discr = build_critic(discr_kwargs, default=Discriminator, name="discr_kwargs", sees="frames")
        self.discr_3d = build_critic(discr_3d_kwargs, default=Discriminator3D, name="discr_3d_kwargs", sees="video")
        self.multiscale_discrs = nn.ModuleList(
            build_discriminator(spec, default=Discriminator3D, name=f"multiscale_discr_kwargs[{index}]")
            for index, spec in enumerate(multiscale_discr_kwargs)
        )
        if gradient_checkpointing:
            for critic in self.critics + self.multiscale_critics:
                critic.enable_gradient_checkpointing()
        self._check_someone_judges()
        names = [critic.key for critic in self.critics + self.multiscale_critics]
        self.gan_loss = choose("gan_loss", gan_loss, GAN_LOSSES)
        self.compares_real = generator_needs_real(self.gan_loss)
        self.is_separable = is_separable(self.gan_loss)
        self.eager_gradients = eager_gradients
        self.grad_penalty = as_penalty("grad_penalty", grad_penalty)
        self.grad_penalty_every = check_interval("grad_penalty_every", grad_penalty_every)
        lecam_decay = check_fraction("lecam_decay", lecam_decay)
        self.lecam = nn.ModuleDict()
        if self.weights["lecam_loss_weight"].is_ever_on:
            self.lecam.update({name: LeCam(lecam_decay, reduce) for name in names})
        self.adaptive_weight_reference = check_choice(
            "adaptive_weight_reference", adaptive_weight_reference, get_args(Reference)
        )
        self.balance = Balance(
            names,
            at=check_choice("adaptive_weight_at", adaptive_weight_at, get_args(Anchor)),
            min_norm=check_positive("adaptive_weight_min_norm", adaptive_weight_min_norm),
            max_weight=check_positive("adaptive_weight_max", adaptive_weight_max),
            decay=check_fraction("adaptive_weight_decay", adaptive_weight_decay),
            reduce=reduce,
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
            Critic(f"multiscale_discrs.{level}", module, scaled_down(2 ** (level + 1), view_of(module)))
            for level, module in enumerate(self.multiscale_discrs)
        ]

    @property
    def perceptual_model(self) -> Perceptual | None:
        """The distance of frames, if the perceptual term has a weight."""
        return None if self.perceptual_term is None else self.perceptual_term.distance

    def get_trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of every discriminator, for the second optimizer."""
        return [weight for d in self.critics + self.multiscale_critics for weight in d.module.parameters()]

    def get_trainable_autoencoder_parameters(self) -> list[nn.Parameter]:
        """Return what the loss itself learns in the autoencoder's step, for the first optimizer: `logvar`, if any."""
        return [self.logvar] if isinstance(self.logvar, nn.Parameter) else []

    def weights_at(self, global_step: int) -> dict[str, float]:
        """Return the weight of each term at a step, by the argument's name."""
        return {
            name: 0.0 if global_step < self._start_of(name) else ramp.at(global_step)
            for name, ramp in self.weights.items()
        }

    def penalises(self, global_step: int) -> bool:
        """Say whether the discriminators' step computes the gradient penalty at `global_step`."""
        due = global_step % self.grad_penalty_every == 0
        trains = global_step >= self.disc_train_start
        return (
            due and trains and self.weights_at(global_step)["grad_penalty_loss_weight"] > 0 and torch.is_grad_enabled()
        )

    def forward(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        optimizer_idx: int,
        global_step: int,
        aux_losses: Any = None,
        last_layer: Tensor | LayerUses | None = None,
        split: str = "train",
        *,
        regularization_log: Mapping[str, Any] | None = None,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> tuple[Tensor, Log]:
        """Compute the loss of one step.

        Args:
            inputs: Real videos `(B, C, T, H, W)`, floating point, in [-1, 1].
            reconstructions: What the autoencoder made of them; same shape and device.
            optimizer_idx: 0 for the autoencoder's step, 1 for the discriminators'.
            global_step: Number of autoencoder updates so far.
            aux_losses: The quantizer's or posterior's loss: a tensor, a number, a posterior with `mean` and `logvar`
                as diffusers has (its divergence is logged as `kl_loss`), or a dict of them, each logged.
            last_layer: Weight of the decoder's last layer, for the adaptive weight; the `LayerUses` of that layer
                where its weight is sharded.
            split: Prefix of the log's keys.
            regularization_log: Stands in for `aux_losses` in sgm-style engines: the entries of it that
                are named "...loss" or "loss/...".
            mask: Bool, broadcasts to the videos; where it is False the reconstruction counts as right in every term
                of both steps, and reconstruction errors are means over the rest.
            sample_weight: Weight `(B,)` of each clip's reconstruction and perceptual errors, which it multiplies.

        Returns:
            The loss, a 0-d tensor to call `backward()` on, and a log of 0-d detached float32 tensors.

        Raises:
            ValueError: If an argument is not as above. Nothing given is ever mutated.
        """
        batch = self._check(inputs, reconstructions, mask, sample_weight)
        if optimizer_idx == 0:
            aux = named_aux_losses(aux_losses, regularization_log, inputs.device, self.nll_reduction)
            loss, log = self._autoencoder_step(batch, aux, self._anchor(batch, last_layer), global_step)
        elif optimizer_idx == 1:
            loss, log = self._discriminator_step(batch, global_step)
        else:
            contract = "0 (autoencoder) or 1 (discriminators)"
            got = describe(optimizer_idx)
            raise argument_error("optimizer_idx", contract, got, "Call once with each in an update.")
        return loss, named(log, split)

    def update(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        global_step: int,
        aux_losses: Any = None,
        last_layer: Tensor | LayerUses | None = None,
        split: str = "train",
        *,
        regularization_log: Mapping[str, Any] | None = None,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Update:
        """Compute the losses of both steps on one batch; each discriminator passes over the reconstructions once.

        The arguments are those of a call. The figures are those of two calls, one with each `optimizer_idx`; only a
        discriminator of single frames sees the same frames in both steps. Where a pass cannot serve both steps (an
        ordinary graph, LeCam, a penalty on reconstructions or in another precision, a GAN loss that pairs samples),
        each step makes its own.

        Returns:
            The autoencoder's loss and log, and the discriminators'. Call `backward()` on each before its optimizer's
            step, in any order.

        Raises:
            ValueError: If an argument is not as in a call, or there are no discriminators.
        """
        batch = self._check(inputs, reconstructions, mask, sample_weight)
        aux = named_aux_losses(aux_losses, regularization_log, inputs.device, self.nll_reduction)
        anchor = self._anchor(batch, last_layer)
        trials: dict[str, Trial] | None = {} if self._pass_serves_both(batch.reconstructions, global_step) else None
        loss, log = self._autoencoder_step(batch, aux, anchor, global_step, trials)
        disc_loss, disc_log = self._discriminator_step(batch, global_step, trials)
        return Update(loss, named(log, split), disc_loss, named(disc_log, split))

    def _check(self, inputs: Any, reconstructions: Any, mask: Any, sample_weight: Any) -> Batch:
        check_pair(inputs, reconstructions)
        check_mask(mask, inputs)
        check_sample_weight(sample_weight, inputs)
        mask, sample_weight = (None if x is None else without_inference_mode(x) for x in (mask, sample_weight))
        real = without_broken_pixels(mask, without_inference_mode(inputs.detach()))
        # In float32, where the gradients of all terms meet: of half precision, small ones would be lost before.
        reconstructions = at_least_float32(without_inference_mode(reconstructions))
        fake = within(mask, reconstruction=reconstructions, target=real)
        return Batch(real, fake, reconstructions, mask, sample_weight)

    def _anchor(self, batch: Batch, last_layer: Tensor | LayerUses | None) -> Tensor | LayerUses | None:
        """Return the tensor at which gradients are compared."""
        check_last_layer(last_layer)
        return last_layer if self.balance.at == "last_layer" else batch.reconstructions

    def _autoencoder_step(
        self,
        batch: Batch,
        aux: Log,
        anchor: Tensor | LayerUses | None,
        global_step: int,
        trials: dict[str, Trial] | None = None,
    ) -> tuple[Scalar, Log]:
        weight = self.weights_at(global_step)
        real, fake = batch.real, batch.fake
        counted = share(batch.mask, like=real)
        clip_weight = clip_weights(counted, batch.sample_weight, like=real)
        pair: dict[str, Any] = {"reconstruction": fake, "target": real, "weight": clip_weight}
        recon = self.recon_loss(**pair)
        lpips, gram = self._perceptual(**pair, on=weight)
        num_elements = fake[0].numel() * counted if self.nll_reduction == "sum" else 1
        nll = num_elements * self._nll(recon + weighted((weight["perceptual_weight"], lpips)))
        pixel = self._pixel_terms(batch, clip_weight, weight)
        frame_indices = self._frames_to_judge(real, weight)
        if trials is not None:
            trials.update(self._try_real(real, frame_indices, global_step))
        shown = watched(fake, self.watch)
        asked = frame_indices, trials or {}
        g, features = self._judge(real, shown, self.critics, "adversarial_loss_weight", weight, *asked)
        g_m, features_m = self._judge(
            real, shown, self.multiscale_critics, "multiscale_adversarial_loss_weight", weight, *asked
        )
        matching = mean((features | features_m).values(), like=recon)
        w = self.balance(g | g_m, self._reference(nll, num_elements * lpips), anchor)
        aux_sum = weighted_sum(aux, self.aux_loss_weights, global_step, like=recon)

        loss = nll + weighted(
            (weight["gram_loss_weight"], gram),
            *((weight[f"{name}_weight"], term) for name, term in pixel.items()),
            (weight["adversarial_loss_weight"], total((w[d] * g[d] for d in g), like=recon)),
            (weight["multiscale_adversarial_loss_weight"], total((w[m] * g_m[m] for m in g_m), like=recon)),
            (weight["feature_matching_loss_weight"], matching),
            (weight["quantizer_aux_loss_weight"], aux_sum),
        )
        log = {
            "total_loss": loss,
            "recon_loss": recon,
            "perceptual_loss": lpips,
            "gen_loss": total((g | g_m).values(), like=recon),
            "aux_losses": aux_sum,
            "adaptive_weight": mean(w.values(), like=recon),
            **each("gen_loss", g | g_m),
            **each("adaptive_weight", w),
            **pixel,
            **only_if(weight["gram_loss_weight"], gram_loss=gram),
            **only_if(features | features_m, feature_matching_loss=matching),
            **({} if self.logvar is None else {"nll_loss": nll, "logvar": self.logvar}),
            **scheduled(self.scheduled, weight, like=recon),
        }
        return loss, with_aux(log, aux)

    def _discriminator_step(
        self, batch: Batch, global_step: int, trials: Mapping[str, Trial] | None = None
    ) -> tuple[Scalar, Log]:
        weight = self.weights_at(global_step)
        real, fake = batch.real, batch.fake.detach()
        penalty = self.grad_penalty if self.penalises(global_step) else None
        # The penalty is the gradient of a gradient: neither it nor what it is compared with is left to autocast.
        with autocast_off(real.device) if penalty and penalty.double_backward else nullcontext():
            if trials is None and self._splits(penalty, weight) and self._takes_gradients(real):
                trials = self._try_real(real, {}, global_step)
            if trials is None:
                frame_indices = sample_frame_indices(real, 1, self.generator)
                duels = {
                    d.name: self._duel(d, real, fake, frame_indices, penalty, weight)
                    for d in self._critics_in_training(global_step)
                }
            else:
                duels = {
                    d.name: self._end(d, fake, trials[d.name], weight) for d in self._critics_in_training(global_step)
                }
        losses, discr, gp, lecam = (
            by_critic(duels, name) for name in ("loss", "discr_loss", "grad_penalty_loss", "lecam_loss")
        )
        loss = total(losses.values(), like=real)
        if torch.is_grad_enabled() and not loss.requires_grad:
            loss.requires_grad_()  # nothing trains, and `backward()` on it does nothing
        return loss, {
            "total_disc_loss": loss,
            "discr_loss": total(discr.values(), like=real),
            "grad_penalty_loss": total(gp.values(), like=real),
            **each("discr_loss", discr),
            **mean_standing(duels, like=real),
            **only_if(lecam, lecam_loss=total(lecam.values(), like=real)),
        }

    def _perceptual(self, *, on: Mapping[str, float], **pair: Any) -> tuple[Scalar, Scalar]:
        """Return LPIPS and the Gram distance of the frames sampled from each clip; 0 for what is off."""
        zero = torch.zeros((), device=pair["target"].device)
        lpips_on, gram_on = on["perceptual_weight"] > 0, on["gram_loss_weight"] > 0
        if self.perceptual_term is None or not (lpips_on or gram_on):
            return zero, zero
        eager = self._is_eager(pair["target"])
        lpips, gram = self.perceptual_term(**pair, gram=gram_on, generator=self.generator, eager=eager)
        return (lpips if lpips_on else zero), gram

    def _pixel_terms(self, batch: Batch, clip_weight: Tensor | None, on: Mapping[str, float]) -> Log:
        """Return the terms that compare neighbourhoods of pixels, as far as they have a weight."""
        pair = {"reconstruction": batch.fake, "target": batch.real}
        terms: dict[str, Callable[[], Scalar]] = {
            "wavelet_loss": lambda: wavelet_l1(**pair, levels=self.wavelet_levels, weight=clip_weight),
            # By itself it knows the mask: a change counts where both of its frames do.
            "temporal_loss": lambda: temporal_difference(**pair, weight=batch.sample_weight, mask=batch.mask),
        }
        return {name: term() for name, term in terms.items() if on[f"{name}_weight"] > 0}

    def _nll(self, distance: Scalar) -> Scalar:
        """Return the negative log-likelihood of an element, up to a constant: the distance itself, unless told so."""
        if self.logvar is None:
            return distance
        return gaussian_nll(distance=distance, logvar=with_reduced_gradient(self.logvar, self.reduce))

    def _reference(self, nll: Scalar, lpips: Scalar) -> Scalar | None:
        """Return the loss that the adversarial terms are made as strong as."""
        return {"perceptual": lpips, "recon_and_perceptual": nll, "none": None}[self.adaptive_weight_reference]

    def _frames_to_judge(self, video: Video, weight: Mapping[str, float]) -> dict[str, Tensor]:
        """Return a frame index a clip `(B, 1)` for each critic that the autoencoder's step asks, by its name."""
        features_on = weight["feature_matching_loss_weight"] > 0
        asked = [
            *(self.critics if features_on or weight["adversarial_loss_weight"] > 0 else []),
            *(self.multiscale_critics if features_on or weight["multiscale_adversarial_loss_weight"] > 0 else []),
        ]
        return {critic.name: sample_frame_indices(video, 1, self.generator) for critic in asked}

    def _judge(
        self,
        real: Video,
        fake: Video,
        critics: list[Critic],
        name: str,
        weight: Mapping[str, float],
        frame_indices: Mapping[str, Tensor],
        trials: Mapping[str, Trial],
    ) -> tuple[Log, Log]:
        """Return each critic's generator loss and its feature matching loss by name, as far as they have a weight.

        The critics' parameters get no gradient, and the real videos have no graph. What a critic's trial needs of the
        same pass is added to it.
        """
        gen_on, features_on = weight[name] > 0, weight["feature_matching_loss_weight"] > 0
        losses: Log = {}
        matching: Log = {}
        for critic in (critic for critic in critics if critic.name in frame_indices):
            frames, trial = frame_indices[critic.name], trials.get(critic.name)

            def verdict(
                view: Tensor, critic: Critic = critic, frames: Tensor = frames, trial: Trial | None = trial
            ) -> list[Scalar]:
                of_fake = critic.judge(view)
                # Logits of the fakes stand in for the real ones where the generator's loss does not look at them.
                of_real = of_fake
                if features_on or (gen_on and self.compares_real):
                    with torch.no_grad():
                        of_real = critic.judge(critic.see(real, frames))
                values = []
                if gen_on:
                    values.append(self.gan_loss(real=of_real.logits.detach(), fake=of_fake.logits).generator)
                if features_on:
                    values.append(feature_matching(real=of_real.features, fake=of_fake.features))
                if trial is not None:
                    logits = of_fake.logits
                    if gen_on and not self.compares_real and can_share(critic.module, logits, view):
                        values[0] = self._try_fake_once(critic, trial, logits, view, values[0], again=features_on)
                    else:
                        self._try_fake(critic, trial, logits)
                return values

            with frozen(critic.module) if trial is None else nullcontext():
                values = list(self._run(verdict, critic.see(fake, frames)))
            if gen_on:
                losses[critic.name] = values.pop(0)
            if features_on:
                matching[critic.name] = values.pop(0)
        return losses, matching

    def _try_real(self, real: Video, frame_indices: Mapping[str, Tensor], global_step: int) -> dict[str, Trial]:
        """Begin the trial of every discriminator that trains, with the real videos.

        They come before the reconstructions, because a penalty's gradient of a gradient takes the most memory: the
        other part's gradients need not wait beside it.
        """
        weight = self.weights_at(global_step)
        penalty = self.grad_penalty if self.penalises(global_step) else None
        common = sample_frame_indices(real, 1, self.generator)
        return {
            d.name: self._trial(d, real, frame_indices.get(d.name, common), penalty, weight)
            for d in self._critics_in_training(global_step)
        }

    def _trial(
        self, d: Critic, real: Video, frame_indices: Tensor, penalty: Penalty | None, weight: Mapping[str, float]
    ) -> Trial:
        view = d.see(real, frame_indices).detach().requires_grad_(penalty is not None and penalty.of_real)
        with differentiated_twice(penalty is not None and penalty.double_backward):
            logits = d.judge(view).logits
        loss = self.gan_loss(real=logits, fake=logits.detach()).discriminator
        value = None if penalty is None else self._penalty_of(d, penalty, Judged(view, logits), Judged(view, logits))
        loss = loss + weighted((weight["grad_penalty_loss_weight"] * self.grad_penalty_every, value))
        value = None if value is None else value.detach()
        return Trial(frame_indices, logits.detach(), value, d.gradients(loss))

    def _penalty_of(self, d: Critic, penalty: Penalty, real: Judged, fake: Judged) -> Scalar:
        return penalty.compute(judge=lambda view: d.judge(view).logits, real=real, fake=fake, generator=self.generator)

    def _try_fake(self, d: Critic, trial: Trial, logits: Tensor) -> None:
        """Add the part of the reconstructions to a trial; the graph is kept."""
        loss = self.gan_loss(real=logits.detach(), fake=logits).discriminator
        trial.fake = logits.detach()
        trial.gradients = d.gradients(loss, retain_graph=True, onto=trial.gradients)

    def _try_fake_once(
        self, d: Critic, trial: Trial, logits: Tensor, view: Tensor, generator: Scalar, *, again: bool
    ) -> Scalar:
        """Do the same, and return the generator's loss with its gradient, by one backward instead of two.

        The graph is kept if it is needed `again`.
        """
        trial.fake = logits.detach()
        of_view, trial.gradients = shared_backward(
            self.gan_loss, logits, view, d.trainable, retain_graph=again, onto=trial.gradients
        )
        return with_gradients(generator, [view], [of_view])

    def _end(self, d: Critic, fake: Video, trial: Trial, weight: Mapping[str, float]) -> Log:
        """Return the loss of one discriminator after its trial and, for the log, its terms."""
        if trial.fake is None:
            self._try_fake(d, trial, d.judge(d.see(fake, trial.frame_indices)).logits)
        assert trial.fake is not None
        discr = self.gan_loss(real=trial.real, fake=trial.fake).discriminator
        terms = {"discr_loss": discr, **({} if trial.penalty is None else {"grad_penalty_loss": trial.penalty})}
        loss = discr + weighted((weight["grad_penalty_loss_weight"] * self.grad_penalty_every, trial.penalty))
        return self._duel_log(with_gradients(loss, d.trainable, trial.gradients), terms, trial.real, trial.fake)

    def _duel(
        self,
        d: Critic,
        real: Video,
        fake: Video,
        frame_indices: Tensor,
        penalty: Penalty | None,
        weight: Mapping[str, float],
    ) -> Log:
        """Return the same where the two parts depend on each other, or an ordinary graph is asked for."""
        real_view = d.see(real, frame_indices).detach().requires_grad_(penalty is not None and penalty.of_real)
        fake_view = d.see(fake, frame_indices).detach().requires_grad_(penalty is not None and penalty.of_fake)
        with differentiated_twice(penalty is not None and penalty.double_backward):
            d_real = d.judge(real_view).logits
            d_fake = d.judge(fake_view).logits
        terms = {"discr_loss": self.gan_loss(real=d_real, fake=d_fake).discriminator}
        if penalty is not None:
            sides = Judged(real_view, d_real), Judged(fake_view, d_fake)
            terms["grad_penalty_loss"] = self._penalty_of(d, penalty, *sides)
        if weight["lecam_loss_weight"] > 0:
            terms["lecam_loss"] = self.lecam[d.key](real=d_real, fake=d_fake)
        loss = terms["discr_loss"] + weighted(
            (weight["grad_penalty_loss_weight"] * self.grad_penalty_every, terms.get("grad_penalty_loss")),
            (weight["lecam_loss_weight"], terms.get("lecam_loss")),
        )
        if self._takes_gradients(real):
            loss = with_gradients(loss, d.trainable, d.gradients(loss))
        return self._duel_log(loss, terms, d_real, d_fake)

    def _duel_log(self, loss: Scalar, terms: Log, real: Tensor, fake: Tensor) -> Log:
        return {
            "loss": loss,
            **{name: term.detach() for name, term in terms.items()},
            **standing(real=real, fake=fake, gan_loss=self.gan_loss, is_separable=self.is_separable),
        }

    def _pass_serves_both(self, reconstructions: Video, global_step: int) -> bool:
        """Say whether the autoencoder's pass over the reconstructions is what the discriminators need as well."""
        penalty = self.grad_penalty if self.penalises(global_step) else None
        keeps_precision = (
            penalty is None or not penalty.double_backward or autocast_dtype(reconstructions.device) is None
        )
        both_train = reconstructions.requires_grad and global_step >= self.disc_train_start
        splits = self._splits(penalty, self.weights_at(global_step))
        return both_train and splits and keeps_precision and self._takes_gradients(reconstructions)

    def _splits(self, penalty: Penalty | None, weight: Mapping[str, float]) -> bool:
        """Say whether the discriminators' loss is a part of the real videos plus one of the reconstructions."""
        joins = (penalty is not None and penalty.sees_fake) or weight["lecam_loss_weight"] > 0
        return self.is_separable and not joins

    def _is_eager(self, video: Video) -> bool:
        """Say whether gradients are taken as soon as a term is known.

        In float16 they would underflow: only the caller's scaler knows a loss scale that fits.
        """
        return self.eager_gradients and autocast_dtype(video.device) != torch.float16

    def _takes_gradients(self, video: Video) -> bool:
        """Say whether the discriminators' step takes its gradients as soon as they are known.

        Hooks on parameters would be called for those and once more in the caller's backward.
        """
        is_free = not any(critic.has_hooks for critic in self.critics + self.multiscale_critics)
        return self._is_eager(video) and torch.is_grad_enabled() and is_free

    def _run(self, term: Callable[[Tensor], Sequence[Scalar]], x: Tensor) -> Sequence[Scalar]:
        return carry(term, x) if self._is_eager(x) else term(x)

    def _critics_in_training(self, global_step: int) -> list[Critic]:
        critics = self.critics + self.multiscale_critics
        if not critics:
            remedy = "Build it with `discr_3d_kwargs` or `discr_kwargs`."
            raise argument_error("optimizer_idx", "0 for a loss without discriminators", 1, remedy)
        return critics if global_step >= self.disc_train_start else []

    def _init_logvar(self, value: float, learn: bool) -> None:
        """Set `logvar` to a parameter, to a constant that is not saved, or to None where it is 0 for good."""
        if learn:
            self.logvar: Tensor | None = nn.Parameter(torch.full((), value))
            # It has no gradient in the discriminators' step, which a data-parallel wrapper would wait for. The reducer
            # knows a parameter of the wrapped module itself by a name with a dot before it, the broadcast without.
            self._ddp_params_and_buffers_to_ignore = ["logvar", ".logvar"]
        else:
            self.register_buffer("logvar", torch.full((), value) if value else None, persistent=False)

    def _start_of(self, weight_name: str) -> int:
        """Return the step before which a term is off whatever its weight."""
        return self.disc_start if weight_name in JUDGED else 0

    def _build_perceptual_term(
        self, net: Any, vgg_weights: Any, num_frames: Any, stride: Any, chunk_size: Any
    ) -> PerceptualTerm | None:
        if net != "vgg" and vgg_weights is not VGG16_Weights.DEFAULT:
            remedy = "Load another network's weights with `perceptual_net=LPIPS('alex', weights=...)`."
            raise argument_error("vgg_weights", 'left out where `perceptual_net` is not "vgg"', describe(net), remedy)
        check_frames(num_frames)
        check_interval("perceptual_stride", stride)
        gram_on = self.weights["gram_loss_weight"].is_ever_on
        if not (gram_on or self.weights["perceptual_weight"].is_ever_on):
            return None
        term = PerceptualTerm(net, vgg_weights, num_frames=num_frames, stride=stride, chunk_size=chunk_size)
        if gram_on and not term.has_features:
            remedy = 'Use "vgg" or "alex" as `perceptual_net`.'
            got = self.weights["gram_loss_weight"].weight
            raise argument_error("gram_loss_weight", "0 for a perceptual loss without features", got, remedy)
        return term

    def _check_someone_judges(self) -> None:
        needed = {
            "adversarial_loss_weight": (self.critics, "`discr_3d_kwargs` or `discr_kwargs`"),
            "multiscale_adversarial_loss_weight": (self.multiscale_critics, "`multiscale_discr_kwargs`"),
            "feature_matching_loss_weight": (self.critics + self.multiscale_critics, "`discr_3d_kwargs`"),
            "lecam_loss_weight": (self.critics + self.multiscale_critics, "`discr_3d_kwargs`"),
        }
        for name, (critics, remedy) in needed.items():
            if self.weights[name].is_ever_on and not critics:
                weight = self.weights[name].weight
                raise argument_error(name, "0 where no discriminator is given", weight, f"Give one with {remedy}.")


def _drop_perceptual_weights(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state_dict if key.startswith(f"{prefix}perceptual_model.")]:
        del state_dict[key]
