"""The settings of the objective: the definition, default, check and help text of each, once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias, cast

import pydantic

from telecine.base.checks import argument_error
from telecine.base.logged_values import LOGGED_VALUES
from telecine.settings.group import Count, CountOrZero, Function, NonNegative, Positive, group

Augmentation: TypeAlias = Literal["color", "translation", "cutout"]


@group
class Ramp:
    """A weight that is `initial` before `start` and changes linearly to `weight` within `steps`.

    Steps count updates of the autoencoder. `Ramp(0, initial=1, start=1000, steps=500)` removes a term.

    Raises:
        ValueError: If a weight is negative or not finite, or a step is not a whole number >= 0.
    """

    weight: NonNegative
    """The final weight."""
    start: CountOrZero | None = None
    """Step at which it begins to change; by default `disc_start` for adversarial terms and feature matching, else 0."""
    steps: CountOrZero = 0
    """Number of steps from `initial` to `weight`; 0 to switch at once."""
    initial: NonNegative = 0.0
    """The weight before `start`."""

    def at(self, step: int) -> float:
        """Return the weight at a step."""
        start = self.start or 0
        if step < start:
            return self.initial
        fraction = min((step - start) / self.steps, 1.0) if self.steps else 1.0
        return self.initial + (self.weight - self.initial) * fraction

    @property
    def is_ever_on(self) -> bool:
        """Whether the weight is above 0 at any step."""
        return self.weight > 0 or self.initial > 0


def _kind_of_weight(value: object) -> str:
    """Return which type of `Weight` a value is meant to be."""
    return "ramp" if isinstance(value, Ramp | dict) else "number"


Weight: TypeAlias = Annotated[
    Annotated[NonNegative, pydantic.Tag("number")] | Annotated[Ramp, pydantic.Tag("ramp")],
    pydantic.Discriminator(_kind_of_weight),
]
Side: TypeAlias = Literal["autoencoder", "discriminators"]
"""Whose loss it is."""
DiscriminatorKind: TypeAlias = Literal[
    "full-size discriminator", "multiscale discriminator", "any discriminator"
]
"""What a discriminator sees: the video in full size, or at 1/2, 1/4, ... of it."""


@dataclass(frozen=True)
class TermSchedule:
    """A term of the objective: its names, the weight at each step, and its needs."""

    name: str  # by which the objective looks the weight up, as in `weights["perceptual"]`
    setting: str  # the dotted name of the weight in `ObjectiveConfig`
    weight: Weight
    # Its weight is 0 before, whatever its ramp says. It is the default of `Ramp.start`.
    first_step: int = 0
    side: Side = "autoencoder"  # whose loss it is part of
    needs: DiscriminatorKind | None = None  # the kind of discriminator that it is computed with
    part_of: str | None = None  # the logged value that has it, if the log has no `{name}_loss`
    is_saved: bool = False  # whether a checkpoint has further tensors if the weight is ever above 0

    @property
    def weight_key(self) -> str:
        """The name of the weight in the log, which has the weights that are ramps."""
        if self.setting.startswith("terms."):
            return f"{self.name}_loss_weight"
        return self.setting.rpartition(".")[2]

    @cached_property
    def ramp(self) -> Ramp:
        """The weight as a ramp; where its start is left out, it is `first_step`."""
        ramp = self.weight if isinstance(self.weight, Ramp) else Ramp(self.weight)
        if ramp.start is not None:
            return ramp
        return replace(ramp, start=self.first_step)

    def at(self, step: int) -> float:
        """Return the weight at a step."""
        if step < self.first_step:
            return 0.0  # also of a ramp that starts earlier, or whose `initial` is above 0
        return self.ramp.at(step)


@group
class Term:
    """A function and its weight: `Term(edges, weight=0.1)` adds `0.1 * edges(reconstruction=..., target=...)`.

    A class of modules is called with `params`, when the term is first used; the parameters of a module are trained and
    saved with the objective, unless they are frozen.

    The function is called with those of these arguments that it has parameters for:

    - `reconstruction`, `target`: videos `(B, C, T, H, W)`, floating point, in [-1, 1]; masked-out pixels are equal;
    - `weight`: the factor `(B,)` of each clip's mean error over all pixels, or `None` for 1: `sample_weight` divided by
      the fraction of pixels that the mask of the call keeps;
    - `mask`: bool, broadcasts to the videos, or `None`;
    - `sample_weight`: the weight of each clip `(B,)` as it was passed, or `None` for 1. It takes the place of `weight`
      in a function that has `mask`, or has no `reconstruction`;
    - `latent`, `decode`: the latent `(B, ...)`, with the graph to the encoder, and the decoder, see `BatchOptions`;
    - `encode`: the encoder, from a video to the mode of its posterior;
    - `first_frame_apart`: whether the first latent frame encodes the first frame alone;
    - `model`: the trained autoencoder, see `BatchOptions`;
    - `posterior`: the posterior among the auxiliary losses, with tensors `mean` and `logvar` `(B, ...)`, or `None`;
    - `generator`: the source of random numbers of this call.

    It returns a 0-d tensor with its graph. A function of `reconstruction_features` and `target_features` is called
    instead with lists of the perceptual network's feature maps `(N, C, H, W)` of the sampled frames, and returns one
    value per frame `(N,)`.

    The function is imported, and its arguments are checked, where the objective is built.

    Raises:
        ValueError: If the weight is invalid.
    """

    target: str | Callable[..., Any] | None = None
    """The function, its dotted path, or the name of one of telecine's functions, such as "wavelet"; by default the
    term's own name."""
    weight: Weight = 1.0
    """A number, or a ramp."""
    params: Mapping[str, object] = field(default_factory=dict)
    """Further keyword arguments of the function, such as `{levels: 2}` of "wavelet", or of the class."""


def _kind_of_term(value: object) -> str:
    """Return which type of `TermOrWeight` a value is meant to be."""
    if isinstance(value, Term):
        return "term"
    if isinstance(value, dict):
        is_ramp = not value.keys().isdisjoint({"start", "steps", "initial"})
        return "ramp" if is_ramp else "term"
    return _kind_of_weight(value)


TermOrWeight: TypeAlias = Annotated[
    Annotated[NonNegative, pydantic.Tag("number")]
    | Annotated[Ramp, pydantic.Tag("ramp")]
    | Annotated[Term, pydantic.Tag("term")],
    pydantic.Discriminator(_kind_of_term),
]


def _as_terms(values: dict[str, Term | Weight]) -> dict[str, Term]:
    """Return terms by name. A target that is left out is the name; a weight is for telecine's function of that name."""
    terms = {}
    for name, value in values.items():
        term = value if isinstance(value, Term) else Term(weight=value)
        if term.target is None:
            term = replace(term, target=name)
        terms[name] = term
    return terms


@group
class ReconstructionConfig:
    """The pixel loss, and the likelihood that it may be part of."""

    loss: Literal["mse", "l1", "charbonnier"] | Function = "mse"
    """The error of each pixel: squared ("mse", which PSNR measures), absolute ("l1", which blurs edges less and ignores
    outliers), absolute and smooth at 0 ("charbonnier"), or a function of `reconstruction`, `target` and `weight`.
    Source: "mse" in CogVideo and MAGVIT-2; most others train with "l1".
    Drawback: "mse" alone blurs. The gradients of "l1" do not shrink with the error: lower the learning rate late.
    Those of "charbonnier" do below an error of 0.001."""
    nll_reduction: Literal["mean", "sum"] = "mean"
    """"mean" averages; "sum" multiplies pixel and perceptual loss by the number of values of a clip, and sums a
    posterior's KL over the latent. Use "sum" with weights of image models, such as a KL weight of 1e-6.
    Source: "sum" in latent diffusion. VidTok sums over a frame. With "mean" a weight means the same at any resolution.
    Drawback: with "sum", a weight tuned at one resolution is wrong at another."""
    learn_logvar: bool = False
    """Divide pixel and perceptual loss by a learned variance: `nll(x) = x / exp(logvar) + logvar`. Pass
    `get_trainable_autoencoder_parameters()` to the autoencoder's optimizer.
    Source: the autoencoders of Stable Diffusion and VidTok.
    Drawback: the log-variance falls with the error, and with it the relative weight of all other terms: watch
    `logvar`."""


@group
class PerceptualConfig:
    """LPIPS: its network, and the frames that it compares."""

    net: Literal["vgg", "alex"] | Function = "vgg"
    """The network of LPIPS: "vgg", "alex" (cheaper, the usual metric), or a callable of `reconstruction` and `target`
    frames `(N, 3, H, W)`. A module is frozen and not saved.
    Source: "vgg" for training, as LPIPS' authors recommend.
    Drawback: a model that is trained and measured with the same network looks better than it is."""
    num_frames: Count | Literal["all"] = 1
    """Number of random frames of each clip, or "all".
    Source: 1 in CogVideo; most others take all.
    Drawback: few frames make a noisy gradient: raise the batch size or the number of frames."""
    chunk_size: Count | None = None
    """Number of frames that are compared at a time. Limits memory; with `eager_gradients` nothing is computed twice,
    otherwise each backward computes the features again.
    Source: telecine; by default as many frames as there are clips with `eager_gradients`, else all frames.
    Drawback: small chunks leave a GPU idle."""


@group
class GANConfig:
    """The GAN loss, when the discriminators train, and what keeps them stable besides the penalty."""

    loss: Literal["hinge", "vanilla", "least_squares", "relativistic"] | Function = "hinge"
    """The GAN loss: "hinge" has no gradient beyond its margin, "vanilla" (non-saturating) always has one,
    "least_squares" pulls logits to 0 and 1, "relativistic" compares each clip with its reconstruction. Or a
    `SeparableGANLoss`, or a function of `real` and `fake` logits that returns `GANLosses`.
    Source: "hinge" in CogVideo and most others; "relativistic" in R3GAN.
    Drawback: "hinge" stops training a discriminator that separates all clips by the margin. "vanilla" overshoots
    without a penalty. "relativistic" has a convergence proof only with the penalty "r1_and_r2"."""
    disc_train_start: CountOrZero = 0
    """Step from which the discriminators train. Set it some thousand steps before `disc_start`.
    Source: 0 in CogVideo; Open-Sora-Plan and TATS start late.
    Drawback: a discriminator that is untrained at `disc_start` misleads the autoencoder."""
    window: Count | None = None
    """Frames that the discriminators see of each longer clip, from a random frame on; the same ones of the clip and of
    its reconstruction. All frames by default.
    Source: ours, for long clips; a discriminator of DVD-GAN (arXiv:1907.06571) sees eight random frames.
    Drawback: a short window hides slow flicker from the discriminators. Frames near the ends are drawn less often."""
    augment: tuple[Augmentation, ...] = ()
    """Random changes of what the discriminators see, the same ones of a clip and of its reconstruction: "color"
    (brightness, saturation, contrast), "translation" (by up to 1/8), "cutout" (of a quarter). For little data.
    Source: all three in DiffAugment (arXiv:2006.10738), there drawn for real and fake samples by themselves.
    Drawback: discriminators that see no clip as it is learn more slowly. "cutout" hides a quarter of the
    reconstruction."""
    feature_matching_loss_weight: Weight = 0.0
    """Weight of the mean absolute difference of the discriminators' features, from `disc_start` on. Stabilises a GAN.
    Source: 4 in TATS and OmniTokenizer.
    Drawback: features of an untrained discriminator mean little."""
    lecam_loss_weight: Weight = 0.0
    """Weight of LeCam regularisation, which keeps logits near running means. For little data.
    Source: 0.005 in VidTok, 0.001 in 1D-tokenizer.
    Drawback: a large weight makes the discriminator ignore its input."""


@group
class PenaltyConfig:
    """The gradient penalty of the discriminators; its weight is `grad_penalty_loss_weight`."""

    kind: (
        Literal["one_centered", "r1", "r2", "r1_and_r2", "wgan_gp", "approximate_r1"] | Function
    ) = "one_centered"
    """"one_centered" pulls the gradient's norm at real clips to 1, "r1" to 0, "r2" to 0 at reconstructions, "r1_and_r2"
    both, "wgan_gp" to 1 between the two. These are exact: they differentiate a gradient. "approximate_r1" is "r1" from
    two forward passes. Or a `Penalty` or a function, see `telecine.losses.penalty`.
    Source: "one_centered" in CogVideo; "r1" in StyleGAN2; "r1_and_r2" in R3GAN; "approximate_r1" in Seaweed-APT.
    Drawback: weights of different penalties do not compare; that of "r1" is the paper's gamma. "approximate_r1" is
    noisy and vanishes in bfloat16 weights: raise its `sigma` with `functools.partial`. With a map of logits the
    gradient is that of their sum, so a weight belongs to a resolution."""
    every: Count = 1
    """Compute the penalty on every n-th step, with n times its weight (lazy regularisation, arXiv:1912.04958). Under
    autocast the discriminators' loss is computed in float32 in steps with an exact penalty, and in half precision in
    the others.
    Source: 16 in StyleGAN2, 4 in MAGVIT-2.
    Drawback: a large n makes `disc_grad_norm` spike: clip gradients."""


@group
class AdaptiveWeightConfig:
    """The adaptive weight of the adversarial terms."""

    reference: Literal["perceptual", "recon_and_perceptual", "none"] = "perceptual"
    """Each adversarial term is scaled so that its gradient is as large as that of this loss: LPIPS, or pixel loss and
    LPIPS together. "none" sets the weights to 1.
    Source: "perceptual" in CogVideo; "recon_and_perceptual" in VQGAN's code.
    Drawback: as the reference falls, so does the adversarial term. In float16 "recon_and_perceptual" underflows."""
    at: Literal["last_layer", "reconstruction"] = "last_layer"
    """Where gradients are compared: at the decoder's last layer, or at the reconstruction, which is cheaper and needs
    no layer.
    Source: "last_layer" in VQGAN.
    Drawback: at the reconstruction, gradients that the decoder cannot follow count too, and norms shrink as clips grow:
    lower `min_norm`."""
    min_norm: Positive = 1e-3
    """The weight is the norm of the reference's gradient divided by that of the adversarial gradient, or by this number
    if that norm is smaller.
    Source: 1e-3 in CogVideo.
    Drawback: too small, the weight jumps when the discriminator has hardly any gradient."""
    max: Positive = 1e3
    """Largest adaptive weight.
    Source: 1e3 in CogVideo; 1e4 in VQGAN.
    Drawback: a weight at its maximum means that the discriminator gives no gradient."""


@group
class ObjectiveConfig:
    """The arguments of `VideoAutoencoderLoss`, without its networks.

    Every weight is a number, or a ramp: `{weight: 1.0, start: 1000, steps: 500}` is 0 before step 1000 and rises to 1
    until step 1500; `initial` is its value before. Steps count updates of the autoencoder.
    """

    disc_start: CountOrZero = 0
    """Step from which the adversarial terms and feature matching count.
    Source: 10 000 in VidTok, 0 to 10 000 in TATS; a required argument in CogVideo.
    Drawback: too early, the discriminator is untrained and misleads the autoencoder."""
    perceptual_weight: Weight = 1.0
    """Weight of LPIPS: structure and texture as a trained network sees them.
    Source: 1 in CogVideo; 0.1 in MAGVIT-2 and Cosmos.
    Drawback: too large, it prints a grid on flat regions."""
    adversarial_loss_weight: Weight = 0.0
    """Weight of the adversarial terms of the image and video discriminators, times their adaptive weight.
    Source: 0 in CogVideo; 0.1 to 1 elsewhere.
    Drawback: too large, it invents texture and PSNR falls."""
    multiscale_adversarial_loss_weight: Weight = 0.0
    """Weight of the adversarial terms of the discriminators of down-scaled clips: for large shapes.
    Source: an argument of CogVideo without effect there.
    Drawback: has little effect on small crops."""
    grad_penalty_loss_weight: Weight = 0.0
    """Weight of the gradient penalty, which limits the discriminators' slope.
    Source: 10 in MAGVIT-2 and CogVideo.
    Drawback: too large, the discriminator cannot tell real from fake: logits stay at 0."""
    quantizer_aux_loss_weight: Weight = 0.0
    """Weight of the autoencoder's auxiliary losses: a quantizer's, or the KL divergence per latent element.
    Source: 0 in CogVideo; VidTok, WF-VAE and Cosmos multiply a sum over the latent by 1e-6.
    Drawback: at 0, nothing limits a KL autoencoder: the posterior's variance goes to zero and its mean drifts."""
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
    # The functions by their names are in `objective/term_functions.py`: a new one needs no setting.
    terms: Annotated[dict[str, TermOrWeight], pydantic.AfterValidator(_as_terms)] = field(
        default_factory=dict
    )
    """Additional terms by name: `{edges: {target: my_package.edges, weight: 0.1}}`. A number is the weight of
    telecine's function of that name, such as "wavelet" (3D Haar coefficients), "temporal" (frame-to-frame changes),
    "gram" (textures), or of the latent "equivariance"; the error about an unknown name lists them all.
    Source: wavelet 0.1 in WF-VAE and Open-Sora-Plan; gram 0.06 in Cosmos; of the latent, equivariance 1 in EQ-VAE.
    Drawback: a large weight of "wavelet" sharpens noise. "temporal" does not see slow drifts, and "gram" no positions.
    Compare the logged values before choosing weights: those of "gram" are much larger."""
    eager_gradients: bool = True
    """Compute each term's gradient together with its value, so that memory is that of the largest term. Values and
    gradients are the same as with an ordinary graph. Under float16 autocast the graph is always an ordinary one.
    Source: telecine.
    Drawback: the loss has no second derivatives."""
    gradient_checkpointing: bool = False
    """Keep only the outputs of the discriminators' blocks, and compute the rest again in the backward.
    Source: arXiv:1604.06174.
    Drawback: costs one more forward in each backward."""

    def __post_init__(self) -> None:
        # A term is logged as `{name}_loss`. The objective logs other values under such names, too.
        names_of_losses = []
        for value in LOGGED_VALUES.values():
            is_of_objective = value.logged_by in ("autoencoder", "discriminators")
            if is_of_objective and value.name.endswith("_loss"):
                names_of_losses.append(value.name.removesuffix("_loss"))
        fixed_terms = [term.name for term in self._fixed_terms()]
        reserved = list(dict.fromkeys(names_of_losses + fixed_terms))
        for name in self.terms:
            if not name.isidentifier() or name in reserved:
                contract = f"named by an identifier other than {', '.join(reserved)}"
                raise argument_error("terms", contract, repr(name), "Rename the term.")

    @property
    def term_settings(self) -> dict[str, Term]:
        """`terms`: the validator of the field has made a `Term` with a target of each weight."""
        return cast(dict[str, Term], self.terms)

    def term_schedules(self) -> dict[str, TermSchedule]:
        """Return the schedule of every term by name: the terms that have a field for their weight, then `terms`."""
        schedules = {schedule.name: schedule for schedule in self._fixed_terms()}
        for name, term in self.term_settings.items():
            schedules[name] = TermSchedule(name, f"terms.{name}.weight", term.weight)
        return schedules

    def _fixed_terms(self) -> list[TermSchedule]:
        """Return the terms whose weights are fields of this group and of `gan`."""
        return [
            TermSchedule("perceptual", "perceptual_weight", self.perceptual_weight),
            TermSchedule(
                "adversarial",
                "adversarial_loss_weight",
                self.adversarial_loss_weight,
                first_step=self.disc_start,
                needs="full-size discriminator",
                part_of="gen_loss",
                is_saved=True,
            ),
            TermSchedule(
                "multiscale_adversarial",
                "multiscale_adversarial_loss_weight",
                self.multiscale_adversarial_loss_weight,
                first_step=self.disc_start,
                needs="multiscale discriminator",
                part_of="gen_loss",
                is_saved=True,
            ),
            TermSchedule(
                "grad_penalty",
                "grad_penalty_loss_weight",
                self.grad_penalty_loss_weight,
                side="discriminators",
            ),
            TermSchedule(
                "quantizer_aux",
                "quantizer_aux_loss_weight",
                self.quantizer_aux_loss_weight,
                part_of="aux_losses",
            ),
            TermSchedule(
                "feature_matching",
                "gan.feature_matching_loss_weight",
                self.gan.feature_matching_loss_weight,
                first_step=self.disc_start,
                needs="any discriminator",
            ),
            TermSchedule(
                "lecam",
                "gan.lecam_loss_weight",
                self.gan.lecam_loss_weight,
                side="discriminators",
                needs="any discriminator",
                is_saved=True,
            ),
        ]

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments of `VideoAutoencoderLoss`."""
        return {item.name: getattr(self, item.name) for item in fields(self)}
