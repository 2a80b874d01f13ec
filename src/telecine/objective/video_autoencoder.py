"""The objective of a video autoencoder and its discriminators: the terms of both steps and their weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from telecine.base.checks import argument_error, check_choice
from telecine.base.shapes import Scalar
from telecine.discriminators import Discriminator, Discriminator3D, DiscriminatorSpec, build_discriminator
from telecine.discriminators.spectral_norm import shared_spectral_norms
from telecine.losses import gaussian_nll
from telecine.losses.lecam import LeCam
from telecine.losses.perceptual import WeightsSource
from telecine.objective.adaptive_weight import LayerActivations, adaptive_weights
from telecine.objective.adversarial import NO_PENALTY, AdversarialLosses, VideoDiscriminator, check_discriminators
from telecine.objective.batch import AuxLosses, Batch, BatchOptions, make_batch
from telecine.objective.eager_adversarial import EagerAdversarialLosses
from telecine.objective.terms import PerceptualTerm, check_result, functions_of
from telecine.objective.weights import Log, Weights, WeightSchedule, autoencoder_log, discriminator_log, mean, total
from telecine.ops.compilation import Compiler
from telecine.ops.ranks import with_averaged_gradient
from telecine.settings import (
    AdaptiveWeightConfig,
    GANConfig,
    ObjectiveConfig,
    PenaltyConfig,
    PerceptualConfig,
    ReconstructionConfig,
    Term,
    Weight,
)
from telecine.settings.validate import validate


class Update(NamedTuple):
    """The losses of both steps on one batch, and their logs."""

    loss: Scalar
    log: Log
    disc_loss: Scalar
    disc_log: Log


class VideoAutoencoderLoss(nn.Module):
    """Reconstruction + LPIPS + GAN with adaptive weight + gradient penalty + auxiliary losses, in two steps.

    The loss of the autoencoder is::

        nll(recon + perceptual_weight * lpips) + sum_t weight_t * term_t
            + adversarial_loss_weight * sum_d w_d g_d + multiscale_adversarial_loss_weight * sum_m w_m g_m
            + feature_matching_loss_weight * feature_matching + quantizer_aux_loss_weight * aux

    By default `nll` is the identity, `recon` the mean squared error, `g = -mean(D(reconstructions))` from `disc_start`
    on, and `w = |grad lpips| / |grad g|` at the last layer. The loss of the discriminators is::

        sum_d discr_d + grad_penalty_loss_weight * sum_d gp_d + lecam_loss_weight * sum_d lecam_d

    over all discriminators, by default with `discr = mean(relu(1 + D(fake))) + mean(relu(1 - D(real)))` and
    `gp = mean_b (|d sum D(real) / d real_b| - 1)^2`.

    `update` computes both on one batch and is faster than two calls. A weight is a number, a `Ramp`, or a dict of a
    ramp's fields; a term is not computed while its weight is 0. The state dict holds what is learned and the running
    averages. It loads checkpoints of the reference, whose frozen LPIPS is skipped.

    Args:
        disc_start, perceptual_weight, ..., gradient_checkpointing: The fields of `ObjectiveConfig`, explained there.
            A group is an instance of its class or a dict of its fields; a term is a `Term`, a dict, or a weight.
        vgg_weights: VGG16 of LPIPS: `None` for torchvision's `DEFAULT`, its enum, the path of a file, or a state dict.
        discr_kwargs: The discriminator of single frames: an `nn.Module`, arguments of `Discriminator`, or
            `{"target": "<dotted class>", "params": {...}}`. A module returns logits, or logits and features.
        discr_3d_kwargs: The discriminator of whole videos, likewise; arguments are those of `Discriminator3D`.
        multiscale_discr_kwargs: Discriminators of the video at 1/2, 1/4, ... of its height and width, each likewise.

    Raises:
        ValueError: If a setting is invalid, or an adversarial weight has no discriminator.
        FileNotFoundError: If the weights of LPIPS cannot be found.
    """

    losses: Callable[..., AdversarialLosses]
    compiler: Compiler | None = None  # see `compile_networks`
    # Keyword arguments of an sgm-style engine beside the two videos.
    forward_keys = ("optimizer_idx", "global_step", "last_layer", "split", "regularization_log")

    def __init__(
        self,
        disc_start: int,
        perceptual_weight: Weight = ObjectiveConfig.perceptual_weight,
        adversarial_loss_weight: Weight = ObjectiveConfig.adversarial_loss_weight,
        multiscale_adversarial_loss_weight: Weight = ObjectiveConfig.multiscale_adversarial_loss_weight,
        grad_penalty_loss_weight: Weight = ObjectiveConfig.grad_penalty_loss_weight,
        quantizer_aux_loss_weight: Weight = ObjectiveConfig.quantizer_aux_loss_weight,
        vgg_weights: WeightsSource = None,
        discr_kwargs: DiscriminatorSpec | None = None,
        discr_3d_kwargs: DiscriminatorSpec | None = None,
        *,
        multiscale_discr_kwargs: Sequence[DiscriminatorSpec] = (),
        reconstruction: ReconstructionConfig | Mapping[str, object] = ReconstructionConfig(),
        perceptual: PerceptualConfig | Mapping[str, object] = PerceptualConfig(),
        gan: GANConfig | Mapping[str, object] = GANConfig(),
        penalty: PenaltyConfig | Mapping[str, object] = PenaltyConfig(),
        adaptive_weight: AdaptiveWeightConfig | Mapping[str, object] = AdaptiveWeightConfig(),
        terms: Mapping[str, Term | Weight | Mapping[str, object]] | None = None,
        eager_gradients: bool = ObjectiveConfig.eager_gradients,
        gradient_checkpointing: bool = ObjectiveConfig.gradient_checkpointing,
    ) -> None:
        arguments = {**locals(), "terms": terms or {}}
        super().__init__()
        settings = {each.name: arguments[each.name] for each in fields(ObjectiveConfig)}
        self.config = validate(ObjectiveConfig, settings)
        self.schedule = WeightSchedule(self.config)
        self._build_terms(vgg_weights)
        self._build_discriminators(discr_kwargs, discr_3d_kwargs, multiscale_discr_kwargs)

    def _build_terms(self, vgg_weights: WeightsSource) -> None:
        functions = functions_of(self.config)
        self.losses = EagerAdversarialLosses if self.config.eager_gradients else AdversarialLosses
        self.recon_loss, self.gan_loss, self.penalty = functions.recon_loss, functions.gan_loss, functions.penalty
        self.terms, self.term_modules = functions.terms, functions.modules()
        self.logvar = nn.Parameter(torch.zeros(())) if self.config.reconstruction.learn_logvar else None
        # They have no gradient in the discriminators' step. DDP looks names up with a leading dot and without.
        self._ddp_params_and_buffers_to_ignore = [dot + n for n, _ in self.named_parameters() for dot in ("", ".")]
        self.perceptual = PerceptualTerm(self.config, vgg_weights, functions)
        self.register_load_state_dict_pre_hook(PerceptualTerm.drop_weights)

    def _build_discriminators(
        self, frames: DiscriminatorSpec | None, videos: DiscriminatorSpec | None, scales: Sequence[DiscriminatorSpec]
    ) -> None:
        build = build_discriminator
        self.discr = None if frames is None else build(frames, default=Discriminator, name="discr_kwargs")
        self.discr_3d = None if videos is None else build(videos, default=Discriminator3D, name="discr_3d_kwargs")
        if not isinstance(scales, (Sequence, nn.ModuleList)):
            raise argument_error("multiscale_discr_kwargs", "a list", type(scales).__name__, "Put it into a list.")
        self.multiscale_discrs = nn.ModuleList(
            build(spec, default=Discriminator3D, name=f"multiscale_discr_kwargs[{index}]")
            for index, spec in enumerate(scales)
        )
        every = self.discriminators
        check_discriminators(every, self.schedule.terms.values())
        for d in every if self.config.gradient_checkpointing else ():
            d.enable_gradient_checkpointing()
        self.lecam = nn.ModuleDict({d.key: LeCam() for d in every if self.schedule.is_ever_on("lecam")})
        self.logit_terms = {"lecam": self.lecam} if self.lecam else {}

    @property
    def discriminators(self) -> list[VideoDiscriminator]:
        """The discriminators of single frames, of whole videos, and of the video at 1/2, 1/4, ... of its size."""
        given = (("discr", self.discr, "frames"), ("discr_3d", self.discr_3d, "video"))
        found = [VideoDiscriminator(name, module, sees) for name, module, sees in given if module is not None]
        for level, module in enumerate(self.multiscale_discrs):
            name, sees, factor = f"multiscale_discrs.{level}", getattr(module, "sees", "video"), 2 ** (level + 1)
            found.append(VideoDiscriminator(name, module, sees, factor, "multiscale_adversarial"))
        return found

    def get_trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of every discriminator, for the second optimizer."""
        return [p for d in self.discriminators for p in d.module.parameters()]

    def get_trainable_autoencoder_parameters(self) -> list[nn.Parameter]:
        """Return the first optimizer's parameters beside the autoencoder's: `logvar`, and those of terms."""
        return [p for p in (self.logvar, *self.term_modules.parameters()) if p is not None and p.requires_grad]

    @shared_spectral_norms()
    def forward(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        optimizer_idx: int,
        global_step: int,
        aux_losses: AuxLosses = None,
        last_layer: Tensor | LayerActivations | None = None,
        split: str = "train",
        **options: Unpack[BatchOptions],
    ) -> tuple[Tensor, Log]:
        """Compute the loss of one step.

        Args:
            inputs: Real videos `(B, C, T, H, W)`, floating point, in [-1, 1].
            reconstructions: The autoencoder's output; same shape and device.
            optimizer_idx: 0 for the autoencoder's step, 1 for the discriminators'.
            global_step: Number of autoencoder updates so far.
            aux_losses: The quantizer's or posterior's loss: a tensor, a number, a posterior with `mean` and `logvar`
                as diffusers has (its divergence is logged as `kl_loss`), or a dict of them, each logged.
            last_layer: Weight of the decoder's last layer, or its `LayerActivations`. Without it `w` is 1.
            split: Prefix of the log's keys.
            options: `mask`, `sample_weight`, `generator`, `latent`, `decode` and others, see `BatchOptions`.

        Returns:
            The loss, a 0-d tensor to call `backward()` on, and a log of 0-d detached float32 tensors.

        Raises:
            ValueError: If an argument is not as above. No argument is mutated.
        """
        check_choice("optimizer_idx", optimizer_idx, (0, 1), remedy="0 trains the autoencoder, 1 the discriminators.")
        aux_losses = aux_losses if optimizer_idx == 0 else {}
        batch = make_batch(self.config, inputs, reconstructions, aux_losses, last_layer, split, **options)
        weights = self.schedule.at(global_step)
        step = self.discriminator_step if optimizer_idx else self.autoencoder_step
        return step(batch, weights, self._adversarial(batch, weights, both_steps=False))

    @shared_spectral_norms()
    def update(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        global_step: int,
        aux_losses: AuxLosses = None,
        last_layer: Tensor | LayerActivations | None = None,
        split: str = "train",
        **options: Unpack[BatchOptions],
    ) -> Update:
        """Compute the losses of both steps on one batch, with one pass of each discriminator over the reconstructions.

        Arguments and values are those of two calls, except for random numbers: where one pass serves both steps, which
        `EagerAdversarialLosses` decides, a discriminator of frames sees the same frames in both.

        Returns:
            Both losses and logs. Call `backward()` on both, in any order, before an optimizer's step.

        Raises:
            ValueError: If an argument is not as in a call, or there are no discriminators.
        """
        batch = make_batch(self.config, inputs, reconstructions, aux_losses, last_layer, split, **options)
        weights = self.schedule.at(global_step)
        adversarial = self._adversarial(batch, weights, both_steps=True)
        # A pass that serves both steps is made in the first, together with the discriminators' losses.
        autoencoder_step = self.autoencoder_step(batch, weights, adversarial)
        return Update(*autoencoder_step, *self.discriminator_step(batch, weights, adversarial))

    def autoencoder_step(self, batch: Batch, weights: Weights, adversarial: AdversarialLosses) -> tuple[Scalar, Log]:
        """The autoencoder's loss and its log. A term whose weight is 0 at this step is not computed."""
        recon = self.recon_loss(reconstruction=batch.fake, target=batch.real, weight=batch.clip_weight)
        check_result(self.recon_loss, recon)
        extra = self.perceptual(batch, weights, eager=adversarial.is_eager)  # with terms on features of its network
        lpips = extra.pop("perceptual", torch.zeros((), device=batch.real.device))
        distance = recon + weights.sum({"perceptual": lpips})
        if self.logvar is not None:  # the negative log-likelihood per element, up to a constant
            distance = gaussian_nll(distance=distance, logvar=with_averaged_gradient(self.logvar))
        nll = batch.num_elements * distance
        extra |= {name: t(batch) for name, t in self.terms.items() if weights[name] > 0 and not t.uses_features}
        found = adversarial.generator_losses()
        g, g_m, features = found["adversarial"], found["multiscale_adversarial"], found["feature_matching"]
        references = {"perceptual": batch.num_elements * lpips, "recon_and_perceptual": nll}
        w = adaptive_weights(self.config.adaptive_weight, g | g_m, references, batch.grad_at)
        matching = {"feature_matching": mean(features.values(), like=recon)} if features else {}
        loss = nll + weights.sum(
            {
                **extra,
                "adversarial": [w[d] * g[d] for d in g],
                "multiscale_adversarial": [w[m] * g_m[m] for m in g_m],
                **matching,
                "quantizer_aux": batch.aux.values(),
            }
        )
        log = {"total_loss": loss, "recon_loss": recon, "perceptual_loss": lpips}
        log |= {f"{name}_loss": term for name, term in (extra | matching).items()}
        log |= {} if self.logvar is None else {"nll_loss": nll, "logvar": self.logvar}
        return loss, autoencoder_log(log, g | g_m, w, weights, batch)

    def discriminator_step(self, batch: Batch, weights: Weights, adversarial: AdversarialLosses) -> tuple[Scalar, Log]:
        """The sum of `discriminator_loss` over the discriminators that train at this step, and its log."""
        found = adversarial.discriminator_losses()
        loss = total((terms["loss"] for terms in found.values()), like=batch.real)
        if torch.is_grad_enabled() and not loss.requires_grad:
            loss.requires_grad_()  # no discriminator trains: `backward()` does nothing
        return loss, discriminator_log(loss, found, batch)

    @staticmethod
    def discriminator_loss(terms: Log, weights: Weights) -> Scalar:
        """The loss of one discriminator from its terms; those that are not computed at this step are missing."""
        extra = {name.removesuffix("_loss"): term for name, term in terms.items() if name != "discr_loss"}
        return terms["discr_loss"] + weights.sum(extra)

    def _adversarial(self, batch: Batch, weights: Weights, *, both_steps: bool) -> AdversarialLosses:
        has_penalty = weights["grad_penalty"] > 0 and torch.is_grad_enabled()
        return self.losses(
            discriminators=self.discriminators,
            gan_loss=self.gan_loss,
            penalty=self.penalty if has_penalty else NO_PENALTY,
            logit_terms=self.logit_terms,
            discriminator_loss=partial(self.discriminator_loss, weights=weights),
            batch=batch,
            weights=weights,
            both_steps=both_steps,
        )
