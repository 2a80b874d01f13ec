"""The settings of the objective: the definition, default, check and help text of each, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from telecine.base.checks import (
    argument_error,
    check_choice,
    check_count,
    check_finite,
    check_fraction,
    check_positive,
    check_step,
    choose,
    describe,
    suggestion,
)
from telecine.discriminators import Augmentation, check_augmentations
from telecine.losses import GAN_LOSSES, GRAD_PENALTIES, RECONSTRUCTION_LOSSES
from telecine.objective.terms import Term, as_terms
from telecine.objective.weights import Weight, as_ramp

C = TypeVar("C")


@dataclass(frozen=True)
class ReconstructionConfig:
    """The pixel loss, and the likelihood that it may be part of."""

    loss: Literal["mse", "l1", "charbonnier"] | Callable[..., Any] = "mse"
    """The error of each pixel: squared ("mse", which PSNR measures), absolute ("l1", which blurs edges less and ignores
    outliers), absolute and smooth at 0 ("charbonnier"), or a function of `reconstruction`, `target` and `weight`.

    Source: "mse" in CogVideo and MAGVIT-2; most others train with "l1".

    Fails: "mse" alone blurs. The gradients of "l1" do not shrink with the error: lower the learning rate late.
    "charbonnier" does not reach 0.
    """
    nll_reduction: Literal["mean", "sum"] = "mean"
    """"mean" averages; "sum" multiplies pixel and perceptual loss by the number of values of a clip, and sums a
    posterior's KL over the latent. Use "sum" with weights of image models, such as a KL weight of 1e-6.

    Source: "sum" in latent diffusion. VidTok sums over a frame. With "mean" a weight means the same at any resolution.

    Fails: with "sum", a weight tuned at one resolution is wrong at another.
    """
    learn_logvar: bool = False
    """Divide pixel and perceptual loss by a learned variance: `nll(x) = x / exp(logvar) + logvar`. Pass
    `get_trainable_autoencoder_parameters()` to the autoencoder's optimizer.

    Source: the autoencoders of Stable Diffusion and VidTok.

    Fails: the log-variance falls with the error, and with it the relative weight of all other terms: watch `logvar`.
    """
    logvar_init: float = 0.0
    """Initial value of the learned log-variance.

    Source: 0 in latent diffusion.

    Fails: a value far from the logarithm of the error takes long to correct.
    """

    def __post_init__(self) -> None:
        choose("reconstruction.loss", self.loss, RECONSTRUCTION_LOSSES)
        check_choice("reconstruction.nll_reduction", self.nll_reduction, ("mean", "sum"))
        if check_finite("reconstruction.logvar_init", self.logvar_init) != 0 and not self.learn_logvar:
            remedy = "Set `learn_logvar`; a constant factor belongs into the weights."
            raise argument_error("reconstruction.logvar_init", "0 without `learn_logvar`", self.logvar_init, remedy)


@dataclass(frozen=True)
class PerceptualConfig:
    """LPIPS: its network, and the frames that it compares."""

    net: Literal["vgg", "alex"] | Callable[..., Any] = "vgg"
    """The network of LPIPS: "vgg", "alex" (cheaper, the usual metric), or a callable of `reconstruction` and `target`
    frames `(N, 3, H, W)`. A module is frozen and not saved.

    Source: "vgg" for training, as LPIPS' authors recommend.

    Fails: a model that is trained and measured with the same network looks better than it is.
    """
    num_frames: int | Literal["all"] = 1
    """Number of random frames of each clip, or "all".

    Source: 1 in CogVideo; most others take all.

    Fails: few frames make a noisy gradient: raise the batch size or the number of frames.
    """
    stride: int = 1
    """Choose among every n-th frame, from a random one on. With `num_frames="all"`: take every n-th.

    Source: telecine; neighbouring frames are similar.

    Fails: with a stride as long as the clip, only one frame remains.
    """
    chunk_size: int | None = None
    """Number of frames that are compared at a time. Limits memory; with `eager_gradients` nothing is computed twice,
    otherwise each backward computes the features again.

    Source: telecine; by default as many frames as there are clips with `eager_gradients`, else all frames.

    Fails: small chunks leave a GPU idle.
    """

    def __post_init__(self) -> None:
        if isinstance(self.net, str):
            check_choice("perceptual.net", self.net, ("vgg", "alex"), remedy="")
        elif not callable(self.net):
            remedy = "Pass a function of (reconstruction=, target=) for another distance."
            raise argument_error("perceptual.net", '"vgg", "alex" or a callable', describe(self.net), remedy)
        if self.num_frames != "all":
            check_count("perceptual.num_frames", self.num_frames, remedy='Use "all" for every frame.')
        check_count("perceptual.stride", self.stride)
        if self.chunk_size is not None:
            check_count("perceptual.chunk_size", self.chunk_size)


@dataclass(frozen=True)
class GANConfig:
    """The GAN loss, when the discriminators train, and what keeps them stable besides the penalty."""

    loss: Literal["hinge", "vanilla", "least_squares", "relativistic"] | Callable[..., Any] = "hinge"
    """The GAN loss: "hinge" has no gradient beyond its margin, "vanilla" (non-saturating) always has one,
    "least_squares" pulls logits to 0 and 1, "relativistic" compares each clip with its reconstruction. Or a
    function of `real` and `fake` logits that returns `GANLosses`, see `GANLoss`.

    Source: "hinge" in CogVideo and most others; "relativistic" in R3GAN.

    Fails: "hinge" stops training a discriminator that separates all clips by the margin. "vanilla" overshoots without a
    penalty. "relativistic" has a convergence proof only with the penalty "r1_and_r2".
    """
    disc_train_start: int = 0
    """Step from which the discriminators train. Set it some thousand steps before `disc_start`.

    Source: 0 in CogVideo; Open-Sora-Plan and TATS start late.

    Fails: a discriminator that is untrained at `disc_start` misleads the autoencoder.
    """
    window: int | None = None
    """Frames that the discriminators see of each longer clip, from a random frame on; the same ones of the clip and of
    its reconstruction. All frames by default.

    Source: ours, for long clips; a discriminator of DVD-GAN (arXiv:1907.06571) sees eight random frames.

    Fails: a short window hides slow flicker from the discriminators. Frames near the ends are drawn less often.
    """
    augment: tuple[Augmentation, ...] = ()
    """Random changes of what the discriminators see, the same ones of a clip and of its reconstruction: "color"
    (brightness, saturation, contrast), "translation" (by up to 1/8), "cutout" (of a quarter). For little data.

    Source: all three in DiffAugment (arXiv:2006.10738), there drawn for real and fake samples by themselves.

    Fails: discriminators that see no clip as it is learn more slowly. "cutout" hides a quarter of the reconstruction.
    """
    feature_matching_loss_weight: Weight = 0.0
    """Weight of the mean absolute difference of the discriminators' features, from `disc_start` on. Stabilises a GAN.

    Source: 4 in TATS and OmniTokenizer.

    Fails: features of an untrained discriminator mean little.
    """
    lecam_loss_weight: Weight = 0.0
    """Weight of LeCam regularisation, which keeps logits near running means. For little data.

    Source: 0.005 in VidTok, 0.001 in 1D-tokenizer.

    Fails: a large weight makes the discriminator ignore its input.
    """
    lecam_decay: float = 0.999
    """Decay of LeCam's running means of the logits.

    Source: 0.999 in 1D-tokenizer.

    Fails: a small decay follows the noise of single batches.
    """

    def __post_init__(self) -> None:
        choose("gan.loss", self.loss, GAN_LOSSES)
        check_step("gan.disc_train_start", self.disc_train_start)
        if self.window is not None:
            check_count("gan.window", self.window, remedy="Use None for all frames.")
        object.__setattr__(self, "augment", check_augmentations("gan.augment", self.augment))
        as_ramp("gan.feature_matching_loss_weight", self.feature_matching_loss_weight)
        as_ramp("gan.lecam_loss_weight", self.lecam_loss_weight)
        check_fraction("gan.lecam_decay", self.lecam_decay)


@dataclass(frozen=True)
class PenaltyConfig:
    """The gradient penalty of the discriminators; its weight is `grad_penalty_loss_weight`."""

    kind: Literal["one_centered", "r1", "r2", "r1_and_r2", "wgan_gp", "approximate_r1"] | Callable[..., Any] = (
        "one_centered"
    )
    """"one_centered" pulls the gradient's norm at real clips to 1, "r1" to 0, "r2" to 0 at reconstructions, "r1_and_r2"
    both, "wgan_gp" to 1 between the two. "approximate_r1" is "r1" from two forward passes, for FSDP and
    `torch.compile`. Or a `Penalty` or a function, see `telecine.losses.penalty`.

    Source: "one_centered" in CogVideo; "r1" in StyleGAN2; "r1_and_r2" in R3GAN; "approximate_r1" in Seaweed-APT.

    Fails: weights of different penalties do not compare; that of "r1" is the paper's gamma. "approximate_r1" is noisy
    and vanishes in bfloat16 weights: raise its `sigma` with `functools.partial`. With a map of logits the gradient is
    that of their sum, so a weight belongs to a resolution.
    """
    every: int = 1
    """Compute the penalty on every n-th step, with n times its weight (lazy regularisation, arXiv:1912.04958).

    Source: 16 in StyleGAN2, 4 in MAGVIT-2.

    Fails: a large n makes `disc_grad_norm` spike: clip gradients.
    """

    def __post_init__(self) -> None:
        choose("penalty.kind", self.kind, GRAD_PENALTIES)
        check_count("penalty.every", self.every)


@dataclass(frozen=True)
class AdaptiveWeightConfig:
    """The adaptive weight of the adversarial terms."""

    reference: Literal["perceptual", "recon_and_perceptual", "none"] = "perceptual"
    """Each adversarial term is scaled so that its gradient is as large as that of this loss: LPIPS, or pixel loss and
    LPIPS together. "none" sets the weights to 1.

    Source: "perceptual" in CogVideo; "recon_and_perceptual" in VQGAN's code.

    Fails: as the reference falls, so does the adversarial term.
    """
    at: Literal["last_layer", "reconstruction"] = "last_layer"
    """Where gradients are compared: at the decoder's last layer, or at the reconstruction, which is cheaper and needs
    no layer.

    Source: "last_layer" in VQGAN.

    Fails: at the reconstruction, gradients that the decoder cannot follow count too, and norms shrink as clips grow:
    lower `min_norm`.
    """
    min_norm: float = 1e-3
    """The weight is the norm of the reference's gradient divided by that of the adversarial gradient, or by this number
    if that norm is smaller.

    Source: 1e-3 in CogVideo.

    Fails: too small, the weight jumps when the discriminator has hardly any gradient.
    """
    max: float = 1e3
    """Largest adaptive weight.

    Source: 1e3 in CogVideo; 1e4 in VQGAN.

    Fails: a weight at its maximum means that the discriminator gives no gradient.
    """
    decay: float = 0.0
    """Decay of a moving average of the adaptive weight, e.g. 0.99; 0 for the newest value only.

    Source: telecine.

    Fails: a slow average reacts late when the discriminator changes.
    """

    def __post_init__(self) -> None:
        check_choice("adaptive_weight.reference", self.reference, ("perceptual", "recon_and_perceptual", "none"))
        check_choice("adaptive_weight.at", self.at, ("last_layer", "reconstruction"))
        check_positive("adaptive_weight.min_norm", self.min_norm)
        check_positive("adaptive_weight.max", self.max)
        check_fraction("adaptive_weight.decay", self.decay)


@dataclass(frozen=True)
class ObjectiveConfig:
    """The arguments of `VideoAutoencoderLoss`, without its networks. Groups may be given as dicts.

    Every weight is a number, or a ramp: `{weight: 1.0, start: 1000, steps: 500}` is 0 before step 1000 and rises to 1
    until step 1500; `initial` is its value before. Steps count updates of the autoencoder.
    """

    disc_start: int = 0
    """Step from which the adversarial terms and feature matching count.

    Source: 10 000 in VidTok, 0 to 10 000 in TATS; a required argument in CogVideo.

    Fails: too early, the discriminator is untrained and misleads the autoencoder.
    """
    perceptual_weight: Weight = 1.0
    """Weight of LPIPS: structure and texture as a trained network sees them.

    Source: 1 in CogVideo; 0.1 in MAGVIT-2 and Cosmos.

    Fails: too large, it prints a grid on flat regions.
    """
    adversarial_loss_weight: Weight = 0.0
    """Weight of the adversarial terms of the image and video discriminators, times their adaptive weight.

    Source: 0 in CogVideo; 0.1 to 1 elsewhere.

    Fails: too large, it invents texture and PSNR falls.
    """
    multiscale_adversarial_loss_weight: Weight = 0.0
    """Weight of the adversarial terms of the discriminators of down-scaled clips: for large shapes.

    Source: an argument of CogVideo without effect there.

    Fails: has little effect on small crops.
    """
    grad_penalty_loss_weight: Weight = 0.0
    """Weight of the gradient penalty, which limits the discriminators' slope.

    Source: 10 in MAGVIT-2 and CogVideo.

    Fails: too large, the discriminator cannot tell real from fake: logits stay at 0.
    """
    quantizer_aux_loss_weight: Weight = 0.0
    """Weight of the autoencoder's auxiliary losses: a quantizer's, or the KL divergence per latent element.

    Source: 0 in CogVideo; VidTok, WF-VAE and Cosmos multiply a sum over the latent by 1e-6.

    Fails: at 0, nothing limits a KL autoencoder: the posterior's variance goes to zero and its mean drifts.
    """
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    """The pixel loss."""
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    """The perceptual loss, LPIPS."""
    gan: GANConfig = field(default_factory=GANConfig)
    """The GAN loss."""
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    """The gradient penalty."""
    adaptive_weight: AdaptiveWeightConfig = field(default_factory=AdaptiveWeightConfig)
    """The adaptive weight."""
    terms: dict[str, float | Term] = field(default_factory=dict)
    """Additional terms by name: `{edges: {target: my_package.edges, weight: 0.1}}`. A number is the weight of a
    built-in term: "wavelet" (3D Haar coefficients), "temporal" (frame-to-frame changes), "gram" (textures), or one of
    the latent: "equivariance", "scale_equivariance", "local_correlation", "latent_masking", "latent_noise",
    "alignment".

    Source: wavelet 0.1 in WF-VAE and Open-Sora-Plan; gram 0.06 in Cosmos; for those of the latent see below.

    Fails: a large weight of "wavelet" sharpens noise. "temporal" does not see slow drifts, and "gram" no positions.
    Compare the logged values before choosing weights: those of "gram" are much larger.
    """
    eager_gradients: bool = True
    """Compute each term's gradient together with its value, so that memory is that of the largest term. Values and
    gradients are the same as with an ordinary graph. Under float16 autocast the graph is always an ordinary one.

    Source: telecine.

    Fails: the loss has no second derivatives.
    """
    gradient_checkpointing: bool = False
    """Keep only the outputs of the discriminators' blocks, and compute the rest again in the backward.

    Source: arXiv:1604.06174.

    Fails: costs one more forward in each backward.
    """

    def __post_init__(self) -> None:
        check_step("disc_start", self.disc_start)
        for item in fields(self):
            if item.name.endswith("_weight") and item.name != "adaptive_weight":
                as_ramp(item.name, getattr(self, item.name))
            if is_dataclass(group := item.default_factory):
                object.__setattr__(self, item.name, as_config(group, item.name, getattr(self, item.name)))
        object.__setattr__(self, "terms", as_terms(self.terms))

    @property
    def named_terms(self) -> dict[str, Term]:
        """`terms`, each as a new `Term`, so that every objective builds its own modules."""
        return {name: replace(term) for name, term in as_terms(self.terms).items()}

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments of `VideoAutoencoderLoss`."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def as_config(cls: type[C], name: str, value: object) -> C:
    """Return the settings `value`: an instance of `cls`, or a mapping of its fields, as from a YAML file.

    Raises:
        ValueError: If it is neither, a field is unknown, or a value is invalid.
    """
    if isinstance(value, cls):
        return value
    assert is_dataclass(cls)
    known = [item.name for item in fields(cls)]
    if not isinstance(value, Mapping):
        contract = f"a {cls.__name__} or a dict of its fields"
        raise argument_error(name, contract, describe(value), f"Its fields are: {', '.join(known)}.")
    for key in value:
        if key not in known:
            raise argument_error(
                f"{name}.{key}", f"a field of {cls.__name__}", describe(value[key]), suggestion(key, known)
            )
    return cls(**value)
