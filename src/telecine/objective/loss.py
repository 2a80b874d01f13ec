"""The objective of a video autoencoder and its discriminators: how it is built, and the losses of both steps."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from telecine.base.checks import argument_error, check_choice
from telecine.base.precision import autocast_dtype
from telecine.base.shapes import Scalar
from telecine.discriminators import (
    Discriminator,
    Discriminator3D,
    DiscriminatorSpec,
    build_discriminator,
)
from telecine.losses import AuxLoss, AuxLosses
from telecine.losses.lecam import LeCam
from telecine.losses.perceptual import WeightsSource
from telecine.objective.batch import Batch, BatchOptions, make_batch
from telecine.objective.bound_discriminator import BoundDiscriminator, check_discriminators
from telecine.objective.functions import check_result, import_functions
from telecine.objective.gan import GANBatch
from telecine.objective.gradient_probes import GradientProbe
from telecine.objective.gradients import choose_gradients, compute_gan_losses
from telecine.objective.log import (
    COGVIDEO_LOG,
    Log,
    check_names_of_aux_losses,
    names_in_autoencoder_log,
)
from telecine.objective.perceptual_term import PerceptualTerm, drop_lpips_weights
from telecine.objective.sums import VideoLosses, sum_autoencoder_losses, sum_discriminator_losses
from telecine.objective.terms import build_gan_terms, build_terms, compute_on_batch, module_name
from telecine.objective.weights import Weights, WeightSchedule
from telecine.ops.pass_options import shared_spectral_norms
from telecine.settings import (
    AdaptiveWeightConfig,
    GANConfig,
    ObjectiveConfig,
    PenaltyConfig,
    PerceptualConfig,
    Ramp,
    ReconstructionConfig,
    Side,
    Term,
)
from telecine.settings.errors import validate

NumberOrRamp: TypeAlias = float | Ramp
"""A `Weight` without its checks, which would fill the signature."""


class BothLosses(NamedTuple):
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

    `both_losses` computes both on one batch and is faster than two calls. A weight is a number, a `Ramp`, or a dict of
    a ramp's fields; a term is not computed while its weight is 0. The state dict holds what is learned and the running
    averages. It loads checkpoints of the reference, whose frozen LPIPS is skipped.

    Args:
        disc_start, perceptual_weight, ..., gradient_checkpointing: The fields of `ObjectiveConfig`, explained there.
            A group is an instance of its class or a dict of its fields; a term is a `Term`, a dict, or a weight.
        vgg_weights: VGG16 of LPIPS: `None` for torchvision's `DEFAULT`, its enum, the path of a file, or a state dict.
        discr_kwargs: The discriminator of single frames: an `nn.Module`, arguments of `Discriminator`, or
            `{"target": "<dotted class>", "params": {...}}`. A module returns logits, or logits and features.
        discr_3d_kwargs: The discriminator of whole videos, in the same forms, with arguments of `Discriminator3D`.
        multiscale_discr_kwargs: Discriminators of the video at 1/2, 1/4, ... of its size, each as `discr_3d_kwargs`.

    Raises:
        ValueError: If a setting is invalid, or an adversarial weight has no discriminator.
        FileNotFoundError: If the weights of LPIPS cannot be found.
    """

    # Keyword arguments of an sgm-style engine beside the two videos.
    forward_keys = ("optimizer_idx", "global_step", "last_layer", "split", "regularization_log")

    def __init__(
        self,
        disc_start: int,
        perceptual_weight: NumberOrRamp = ObjectiveConfig.perceptual_weight,
        adversarial_loss_weight: NumberOrRamp = ObjectiveConfig.adversarial_loss_weight,
        multiscale_adversarial_loss_weight: NumberOrRamp = ObjectiveConfig.multiscale_adversarial_loss_weight,
        grad_penalty_loss_weight: NumberOrRamp = ObjectiveConfig.grad_penalty_loss_weight,
        quantizer_aux_loss_weight: NumberOrRamp = ObjectiveConfig.quantizer_aux_loss_weight,
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
        terms: Mapping[str, Term | NumberOrRamp | Mapping[str, object]] | None = None,
        eager_gradients: bool = ObjectiveConfig.eager_gradients,
        gradient_checkpointing: bool = ObjectiveConfig.gradient_checkpointing,
    ) -> None:
        super().__init__()
        settings = {
            "disc_start": disc_start,
            "perceptual_weight": perceptual_weight,
            "adversarial_loss_weight": adversarial_loss_weight,
            "multiscale_adversarial_loss_weight": multiscale_adversarial_loss_weight,
            "grad_penalty_loss_weight": grad_penalty_loss_weight,
            "quantizer_aux_loss_weight": quantizer_aux_loss_weight,
            "reconstruction": reconstruction,
            "perceptual": perceptual,
            "gan": gan,
            "penalty": penalty,
            "adaptive_weight": adaptive_weight,
            "terms": terms or {},
            "eager_gradients": eager_gradients,
            "gradient_checkpointing": gradient_checkpointing,
        }
        self.config = validate(ObjectiveConfig, settings)
        self.schedule = WeightSchedule(self.config)
        functions = import_functions(self.config)
        self.recon_loss = functions.recon_loss
        self.gan_loss = functions.gan_loss
        self.penalty = functions.penalty
        self.loss_terms = build_terms(self.config)
        self.term_modules = nn.ModuleDict()
        for name, term in self.loss_terms.items():
            if isinstance(term.function, nn.Module):
                self.term_modules[module_name(name)] = term.function
        self.logvar: nn.Parameter | None = None
        if self.config.reconstruction.learn_logvar:
            self.logvar = nn.Parameter(torch.zeros(()))
        self.perceptual = PerceptualTerm(self.config, functions, self.loss_terms, vgg_weights)
        self.register_load_state_dict_pre_hook(drop_lpips_weights)
        self._build_discriminators(discr_kwargs, discr_3d_kwargs, multiscale_discr_kwargs)
        self.lecam = nn.ModuleDict()
        if self.schedule.is_ever_on("lecam"):
            for d in self.discriminators:
                self.lecam[d.key] = LeCam()
        self.gan_terms = build_gan_terms(self.config, self.gan_loss)
        self._logged_names = names_in_autoencoder_log(
            self.schedule.schedules.values(),
            [d.name for d in self.discriminators],
            has_logvar=self.logvar is not None,
        )
        # For callers who wrap this module in DDP, as telecine's own loop does not: DDP would wait for gradients of the
        # autoencoder's parameters in the discriminators' step. It looks names up with a leading dot and without.
        of_discriminators = set(self.get_trainable_parameters())
        names = [name for name, p in self.named_parameters() if p not in of_discriminators]
        self._ddp_params_and_buffers_to_ignore = [*names, *(f".{name}" for name in names)]

    def _build_discriminators(
        self,
        frames: DiscriminatorSpec | None,
        videos: DiscriminatorSpec | None,
        scales: Sequence[DiscriminatorSpec],
    ) -> None:
        self.discr: nn.Module | None = None
        self.discr_3d: nn.Module | None = None
        if frames is not None:
            self.discr = build_discriminator(frames, default=Discriminator, name="discr_kwargs")
        if videos is not None:
            self.discr_3d = build_discriminator(
                videos, default=Discriminator3D, name="discr_3d_kwargs"
            )
        if not isinstance(scales, (Sequence, nn.ModuleList)):
            raise argument_error(
                "multiscale_discr_kwargs", "a list", type(scales).__name__, "Put it into a list."
            )
        self.multiscale_discrs = nn.ModuleList()
        for index, spec in enumerate(scales):
            name = f"multiscale_discr_kwargs[{index}]"
            self.multiscale_discrs.append(
                build_discriminator(spec, default=Discriminator3D, name=name)
            )
        check_discriminators(self.discriminators, self.schedule.schedules.values())
        if self.config.gradient_checkpointing:
            for d in self.discriminators:
                d.enable_gradient_checkpointing()

    @property
    def discriminators(self) -> list[BoundDiscriminator]:
        """The discriminators of single frames, of whole videos, and of the video at 1/2, 1/4, ... of its size."""
        discriminators = []
        if self.discr is not None:
            discriminators.append(BoundDiscriminator("discr", self.discr, "frames"))
        if self.discr_3d is not None:
            discriminators.append(BoundDiscriminator("discr_3d", self.discr_3d, "video"))
        for index, module in enumerate(self.multiscale_discrs):
            discriminators.append(
                BoundDiscriminator(
                    f"multiscale_discrs.{index}",
                    module,
                    sees=getattr(module, "sees", "video"),
                    factor=2 ** (index + 1),
                )
            )
        return discriminators

    def get_trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of every discriminator, for the second optimizer."""
        return [parameter for d in self.discriminators for parameter in d.module.parameters()]

    def learn_with_autoencoder(self, name: str, module: nn.Module) -> None:
        """Train a module's parameters with the autoencoder's, and save them with the modules of the terms.

        Args:
            name: Its name in the state dict, after `term_modules`.
            module: The module.
        """
        self.term_modules[name] = module

    def get_trainable_autoencoder_parameters(self) -> list[nn.Parameter]:
        """Return the first optimizer's parameters beside the autoencoder's: `logvar`, and parameters of terms."""
        parameters = [weight for weight in self.term_modules.parameters() if weight.requires_grad]
        if self.logvar is not None:
            parameters.insert(0, self.logvar)
        return parameters

    def forward(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        optimizer_idx: int,
        global_step: int,
        aux_losses: AuxLosses | AuxLoss | None = None,
        last_layer: Tensor | GradientProbe | None = None,
        split: str = "train",
        **options: Unpack[BatchOptions],
    ) -> tuple[Scalar, Log]:
        """Compute the loss of one step, as sgm's engine and others like it call it.

        Args:
            inputs: Real videos `(B, C, T, H, W)`, floating point, in [-1, 1].
            reconstructions: The autoencoder's output; same shape and device.
            optimizer_idx: 0 for `autoencoder_loss`, 1 for `discriminator_loss`.
            global_step: Number of autoencoder updates so far.
            aux_losses, last_layer: See `autoencoder_loss`. The discriminators' step ignores them.
            split: Prefix of the log's keys.
            options: See `BatchOptions`.

        Returns:
            The loss, a 0-d tensor to call `backward()` on, and a log of 0-d detached float32 tensors. As in CogVideo,
            it has the values of `COGVIDEO_LOG` always: 0 while they are not computed.

        Raises:
            ValueError: If an argument is not as above. No argument is mutated.
        """
        check_choice(
            "optimizer_idx",
            optimizer_idx,
            (0, 1),
            remedy="0 trains the autoencoder, 1 the discriminators.",
        )
        if optimizer_idx == 1:
            loss, log = self.discriminator_loss(
                inputs, reconstructions, global_step, split, **options
            )
        else:
            loss, log = self.autoencoder_loss(
                inputs, reconstructions, global_step, aux_losses, last_layer, split, **options
            )
        for name in COGVIDEO_LOG[optimizer_idx]:
            log.setdefault(f"{split}/{name}", torch.zeros((), device=loss.device))
        return loss, log

    def autoencoder_loss(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        global_step: int,
        aux_losses: AuxLosses | AuxLoss | None = None,
        last_layer: Tensor | GradientProbe | None = None,
        split: str = "train",
        **options: Unpack[BatchOptions],
    ) -> tuple[Scalar, Log]:
        """Compute the loss of the autoencoder's step.

        Args:
            inputs: Real videos `(B, C, T, H, W)`, floating point, in [-1, 1].
            reconstructions: The autoencoder's output; same shape and device.
            global_step: Number of autoencoder updates so far.
            aux_losses: The quantizer's or posterior's loss: a tensor, a number, a posterior with `mean` and `logvar`
                as diffusers has (its divergence is logged as `kl_loss`), or a dict of them, each logged.
            last_layer: Weight of the decoder's last layer, or a `GradientProbe`. Without it `w` is 1.
            split: Prefix of the log's keys.
            options: `mask`, `sample_weight`, `generator`, `latent`, `decode` and others, see `BatchOptions`.

        Returns:
            The loss, a 0-d tensor to call `backward()` on, and a log of 0-d detached float32 tensors. Terms that are
            not computed are left out.

        Raises:
            ValueError: If an argument is not as above.
        """
        batch = make_batch(
            self.config, inputs, reconstructions, aux_losses, last_layer, split, **options
        )
        return self._compute_losses(batch, global_step, ["autoencoder"])["autoencoder"]

    def discriminator_loss(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        global_step: int,
        split: str = "train",
        **options: Unpack[BatchOptions],
    ) -> tuple[Scalar, Log]:
        """Compute the loss of the discriminators' step.

        Args:
            inputs: Real videos `(B, C, T, H, W)`, floating point, in [-1, 1].
            reconstructions: The autoencoder's output; same shape and device. It gets no gradient.
            global_step: Number of autoencoder updates so far.
            split: Prefix of the log's keys.
            options: `mask`, `sample_weight`, `generator` and others, see `BatchOptions`.

        Returns:
            The loss and its log, as of `autoencoder_loss`.

        Raises:
            ValueError: If an argument is not as above, or there are no discriminators.
        """
        batch = make_batch(self.config, inputs, reconstructions, {}, None, split, **options)
        return self._compute_losses(batch, global_step, ["discriminators"])["discriminators"]

    def both_losses(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        global_step: int,
        aux_losses: AuxLosses | AuxLoss | None = None,
        last_layer: Tensor | GradientProbe | None = None,
        split: str = "train",
        **options: Unpack[BatchOptions],
    ) -> BothLosses:
        """Compute the losses of both steps on one batch, where possible with one pass of each discriminator.

        Two calls have the same values, except for random numbers: where one pass serves both steps, a discriminator of
        frames sees the same frames in both. It needs `eager_gradients`, a GAN loss and regularisers that do not read
        real and fake videos together, and one precision in both steps: not float16, and not bfloat16 with a penalty
        that is differentiated twice. `choose_gradients` in `objective/gradients.py` has the reasons.

        Args:
            inputs: Real videos `(B, C, T, H, W)`, floating point, in [-1, 1].
            reconstructions: The autoencoder's output; same shape and device.
            global_step: Number of autoencoder updates so far.
            aux_losses, last_layer: See `autoencoder_loss`.
            split: Prefix of the log's keys.
            options: See `BatchOptions`.

        Returns:
            Both losses and logs. Call `backward()` on both, in any order, before an optimizer's step. With
            `eager_gradients`, the gradients of the discriminators' parameters are computed already: `backward()` of
            `disc_loss` scales and adds them.

        Raises:
            ValueError: If an argument is not as in a call, or there are no discriminators.
        """
        _check_has_graph(reconstructions, last_layer)
        batch = make_batch(
            self.config, inputs, reconstructions, aux_losses, last_layer, split, **options
        )
        losses = self._compute_losses(batch, global_step, ["autoencoder", "discriminators"])
        return BothLosses(*losses["autoencoder"], *losses["discriminators"])

    @shared_spectral_norms()
    def _compute_losses(
        self, batch: Batch, global_step: int, sides: Sequence[Side]
    ) -> dict[Side, tuple[Scalar, Log]]:
        """Return the loss and the log of each of `sides`.

        Raises:
            ValueError: There are no discriminators, and their loss is asked for.
        """
        if "discriminators" in sides and not self.discriminators:
            remedy = "Build the loss with `discr_3d_kwargs` or `discr_kwargs`, or call it with `optimizer_idx=0`."
            raise argument_error("discriminators", "at least one for their step", "none", remedy)
        weights = self.schedule.at(global_step)
        has_penalty = weights["grad_penalty"] > 0 and torch.is_grad_enabled()
        gan = GANBatch(
            sides=sides,
            discriminators=self.discriminators,
            real=batch.real,
            fake=batch.fake,
            loss=self.gan_loss,
            autoencoder_terms=[term for term in self.gan_terms if weights[term.name] > 0],
            penalty=self.penalty if has_penalty else None,
            lecam=self.lecam if weights["lecam"] > 0 else None,
            weights=weights,
            rng=batch.rng,
        )
        # Eager gradients in float16 would underflow: only the caller's scaler knows a suitable loss scale.
        is_float16 = autocast_dtype(batch.target.device) == torch.float16
        is_eager = self.config.eager_gradients and not is_float16
        losses: dict[Side, tuple[Scalar, Log]] = {}
        if "autoencoder" in sides:
            check_names_of_aux_losses(batch.aux, self._logged_names)
            video_losses = self._compute_video_losses(batch, weights, eager=is_eager)
        generator_losses, discriminator_losses = compute_gan_losses(
            gan,
            choose_gradients(gan, eager=self.config.eager_gradients),
            autoencoder_is_eager=is_eager,
        )
        if "autoencoder" in sides:
            losses["autoencoder"] = sum_autoencoder_losses(
                self.config.adaptive_weight,
                batch,
                weights,
                video_losses,
                generator_losses,
                logvar=self.logvar,
            )
            # For the caller's backward: the objective's backwards, such as for the adaptive weight, are done.
            hook = batch.options.get("grad_hook")
            if hook is not None and batch.reconstruction_for_gan.requires_grad:
                batch.reconstruction_for_gan.register_hook(hook)
        if "discriminators" in sides:
            losses["discriminators"] = sum_discriminator_losses(
                batch, discriminator_losses, self.gan_loss
            )
        return losses

    def _compute_video_losses(self, batch: Batch, weights: Weights, *, eager: bool) -> VideoLosses:
        """Return the terms of the autoencoder's loss that need no discriminator. A term of weight 0 is not computed.

        Args:
            batch: The videos.
            weights: The weights at this step.
            eager: Compute the gradients of LPIPS together with its value.
        """
        recon = self.recon_loss(
            reconstruction=batch.reconstruction, target=batch.target, weight=batch.clip_weight
        )
        check_result(self.recon_loss, recon)
        values = self.perceptual(batch, weights, eager=eager)
        perceptual = values.pop("perceptual", None)
        for name, term in self.loss_terms.items():
            if weights[name] > 0 and not term.reads_features:
                values[name] = compute_on_batch(term, batch)
        return VideoLosses(recon, perceptual, values)


def _check_has_graph(reconstructions: object, last_layer: object) -> None:
    """Check that reconstructions were computed with gradients if a weight is passed at which these are compared."""
    is_trained = isinstance(last_layer, Tensor) and last_layer.requires_grad
    if not (is_trained and torch.is_grad_enabled() and isinstance(reconstructions, Tensor)):
        return
    if not reconstructions.requires_grad:
        remedy = "Remove `torch.no_grad` and `detach` from the autoencoder."
        contract = "computed with gradients for the autoencoder's step"
        raise argument_error("reconstructions", contract, "a tensor without a graph", remedy)
