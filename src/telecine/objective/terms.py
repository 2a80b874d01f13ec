"""The terms of the objective: one kind of `LossTerm`, and how it is built and called.

To add a term, add a line to `term_functions.py`; nothing here changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.func import functional_call

from telecine.base.checks import argument_error, describe
from telecine.base.imports import check_arguments, choose
from telecine.base.shapes import Scalar
from telecine.losses import GANLoss, SeparableGANLoss, feature_matching
from telecine.objective.batch import Batch
from telecine.objective.functions import (
    check_result,
    import_functions,
    listed,
    name_of,
    signature_of,
)
from telecine.objective.term_functions import TERM_FUNCTIONS
from telecine.ops.ranks import with_averaged_gradient
from telecine.settings import ClipConfig, ObjectiveConfig, Term, TermSchedule

TermValues: TypeAlias = dict[str, Scalar]
"""Values of terms by name, with their graphs."""

# The inputs of a function in `terms`, by the names of its parameters: from a batch, or from LPIPS' network.
BATCH_INPUTS = (
    "reconstruction",
    "target",
    "weight",
    "sample_weight",
    "mask",
    "latent",
    "posterior",
    "first_frame_apart",
    "decode",
    "encode",
    "model",
    "generator",
)
FEATURE_INPUTS = ("reconstruction_features", "target_features")


@dataclass(frozen=True, eq=False)
class LossTerm:
    """One term of the autoencoder's loss: a function, its arguments and its schedule."""

    schedule: TermSchedule
    """Its name, its weight at each step, and the discriminator that it needs."""
    function: Callable[..., Any]
    """The function or module that computes it, or, until it is built, a class of modules."""
    arguments: tuple[str, ...]
    """The inputs that the function is called with, by the names of its parameters."""
    params: Mapping[str, object] = field(default_factory=dict)
    """Further keyword arguments of the function, or of the class."""

    @property
    def name(self) -> str:
        """The name by which its weight is looked up."""
        return self.schedule.name

    @property
    def reads_features(self) -> bool:
        """Whether it compares features of LPIPS' network."""
        return any(name in FEATURE_INPUTS for name in self.arguments)

    @property
    def needs_rgb(self) -> bool:
        """Whether it shows frames to a network of RGB: LPIPS', or that of a class which declares `needs_rgb`."""
        return self.reads_features or getattr(self.function, "needs_rgb", False)

    @property
    def weight_argument(self) -> str:
        """The argument with the weights of the clips that fits its other arguments.

        A mean over all pixels takes `weight`, which contains the fraction that a mask keeps. A function that takes the
        mask, or that does not look at the reconstruction, takes `sample_weight`.
        """
        if "mask" in self.arguments or "reconstruction" not in self.arguments:
            return "sample_weight"
        return "weight"

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of its module that are not frozen, by name."""
        if not isinstance(self.function, nn.Module):
            return {}
        parameters = self.function.named_parameters()
        return {name: parameter for name, parameter in parameters if parameter.requires_grad}

    def __call__(self, **inputs: Any) -> Any:
        """Call the function with those inputs that it takes. Gradients of its weights are averaged over ranks."""
        arguments = {name: inputs[name] for name in self.arguments}
        parameters = {
            name: with_averaged_gradient(weight)
            for name, weight in self.trained_parameters().items()
        }
        if parameters:
            assert isinstance(self.function, nn.Module)
            return functional_call(self.function, parameters, (), {**arguments, **self.params})
        return self.function(**arguments, **self.params)


def module_name(term: str) -> str:
    """Return the name of a term's module in `VideoAutoencoderLoss.term_modules` and in the state dict."""
    return f"{term}_loss"


def build_terms(config: ObjectiveConfig) -> dict[str, LossTerm]:
    """Return the terms of `config.terms` by name; classes of modules are built.

    Raises:
        ValueError: A function cannot be imported, or does not have the parameters of a term.
    """
    terms = import_terms(config)
    for name, term in terms.items():
        if isinstance(term.function, type):
            # It may read weights, also where a run is planned without any values.
            with unset_fake_temporarily():
                module = term.function(**term.params)
            terms[name] = replace(term, function=module, params={})
    return terms


def import_terms(config: ObjectiveConfig, prefix: str = "") -> dict[str, LossTerm]:
    """Import and check the functions of `config.terms`, by name; classes of modules are not built.

    Args:
        config: The settings.
        prefix: What errors put before the name of a setting, such as "objective.".

    Raises:
        ValueError: A function cannot be imported, or does not have the parameters of a term.
    """
    schedules = config.term_schedules()
    terms = {}
    for name, term in config.term_settings.items():
        terms[name] = _import_term(term, schedules[name], f"{prefix}terms.{name}")
    return terms


def _import_term(term: Term, schedule: TermSchedule, setting: str) -> LossTerm:
    """Import and check the function of a term; errors name the `setting`."""
    function = choose(f"{setting}.target", term.target, TERM_FUNCTIONS)
    is_class = isinstance(function, type)
    if isinstance(function, type) and not issubclass(function, nn.Module):
        contract = "a function, a module or a class of modules"
        remedy = f"Pass an instance, `{name_of(function)}(...)`."
        raise argument_error(f"{setting}.target", contract, describe(function), remedy)
    check_arguments(f"{setting}.params", function, term.params, are_all=is_class)
    names: list[str] = []
    required: list[str] = []
    for parameter in signature_of(function).parameters.values():
        is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        is_set = not is_class and parameter.name in term.params
        if is_variadic or is_set:
            continue
        if parameter.kind is not parameter.POSITIONAL_ONLY:
            names.append(parameter.name)
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    available = FEATURE_INPUTS if set(FEATURE_INPUTS) & set(names) else BATCH_INPUTS
    contract = f"a function of {listed(BATCH_INPUTS)}, or of {listed(FEATURE_INPUTS)} alone"
    unknown = [name for name in required if name not in available]
    if unknown:
        remedy = (
            "Give the others default values or `params`, or wrap it in a function with these names."
        )
        raise argument_error(
            f"{setting}.target", contract, f"one that needs {listed(unknown)}", remedy
        )
    arguments = tuple(name for name in available if name in names)
    if not arguments:
        raise argument_error(
            f"{setting}.target",
            contract,
            "one of none of them",
            "Add a parameter `reconstruction`.",
        )
    loss_term = LossTerm(schedule, function, arguments, term.params)
    _check_weight_argument(loss_term, setting)
    return loss_term


def _check_weight_argument(term: LossTerm, setting: str) -> None:
    """Raise a `ValueError` about the `setting` if a term takes the weights of clips that do not fit its arguments."""
    right = term.weight_argument
    other = "weight" if right == "sample_weight" else "sample_weight"
    if other not in term.arguments:
        return
    contract = (
        "a function with `weight` if it averages over all pixels of `reconstruction`, "
        "or with `sample_weight` if it takes `mask` or no `reconstruction`"
    )
    got = f"{name_of(term.function)} of {listed(term.arguments)}"
    remedy = f"Rename its parameter `{other}` to `{right}`"
    if right in term.arguments:
        remedy = f"Remove its parameter `{other}`"
    if not isinstance(term.function, type):  # whose `params` are those of the class
        remedy += ", or set it by `params` if it is an option of yours"
    raise argument_error(f"{setting}.target", contract, got, f"{remedy}.")


def check_functions(
    config: ObjectiveConfig, *, clips: ClipConfig, sharding: str, max_dropped: float = 0.0
) -> None:
    """Import and check the functions that a run's settings name, before it reads any video.

    Args:
        config: The settings of the objective.
        clips: The settings of the clips.
        sharding: See `TrainConfig`.
        max_dropped: See `PredictiveConfig`. Above 0, the posterior has fewer frames than the latent.

    Raises:
        ValueError: A function does not fit its setting, a term needs RGB and clips have no colours, a term decodes or
            encodes while weights are sharded, or a term reads the posterior while frames are dropped.
    """
    import_functions(config, "objective.")
    for name, term in import_terms(config, "objective.").items():
        if term.needs_rgb and not clips.has_colours:
            contract = f"grey, rgb or rgba for {name}"
            remedy = f"Remove {name} from `objective.terms`."
            raise argument_error("clips.channels", contract, clips.channels, remedy)
        needs_model = {"decode", "encode", "model"} & set(term.arguments)
        if sharding != "none" and needs_model:
            contract = '"none" with terms that decode or encode'
            remedy = (
                "Leave the term out, or replicate the weights: a part of the model alone does not "
                "gather sharded ones."
            )
            raise argument_error("sharding", contract, f"{sharding} with {name}", remedy)
        if max_dropped > 0 and "posterior" in term.arguments:
            contract = "0 with terms that read the posterior"
            remedy = "Leave the term out: the posterior has the encoded frames alone."
            got = f"{max_dropped} with {name}"
            raise argument_error("predictive.max_dropped", contract, got, remedy)


def build_gan_terms(config: ObjectiveConfig, gan_loss: GANLoss) -> list[LossTerm]:
    """Return the terms of the autoencoder's loss that are computed with a discriminator."""
    schedules = config.term_schedules()
    generator_loss = gan_loss.compute_generator_loss
    logits: tuple[str, ...] = ("fake_logits", "real_logits")
    if isinstance(gan_loss, SeparableGANLoss):
        logits = ("fake_logits",)
    return [
        LossTerm(schedules["adversarial"], generator_loss, logits),
        LossTerm(schedules["multiscale_adversarial"], generator_loss, logits),
        LossTerm(schedules["feature_matching"], match_features, ("fake_features", "real_features")),
    ]


def match_features(
    *, real_features: tuple[Tensor, ...], fake_features: tuple[Tensor, ...]
) -> Scalar:
    """Return `feature_matching` of the features that a discriminator returned with its logits."""
    return feature_matching(real=real_features, fake=fake_features)


def compute_on_batch(term: LossTerm, batch: Batch) -> Scalar:
    """Return the value of a term of `config.terms` that reads the videos or the latent.

    Raises:
        ValueError: The call lacks an input of the function, or the function lacks a parameter for the call's weights,
            or returns anything else than a 0-d tensor.
    """
    weight_argument = term.weight_argument
    if weight_argument not in term.arguments and batch.clip_weight is not None:
        contract = f"a function with the parameter `{weight_argument}` if a call has `mask` or `sample_weight`"
        remedy = "Add it, and multiply the error of each clip by it."
        raise argument_error(name_of(term.function), contract, "one without", remedy)
    options = batch.options
    inputs = {
        "reconstruction": batch.reconstruction,
        "target": batch.target,
        "weight": batch.clip_weight,
        "sample_weight": batch.sample_weight,
        "mask": batch.mask,
        "latent": options.get("latent"),
        "posterior": batch.posterior,
        "first_frame_apart": options.get("first_frame_apart", True),
        "decode": options.get("decode"),
        "encode": options.get("encode"),
        "model": options.get("model"),
        "generator": batch.rng,
    }
    for name in ("latent", "decode", "encode", "model"):
        if name in term.arguments and inputs[name] is None:
            remedy = f"Pass `{name}=` of the autoencoder. A custom module returns its latent, and has a `decode`."
            raise argument_error(name, f"given for {name_of(term.function)}", "None", remedy)
    value = term(**inputs)
    return check_result(term.function, value)
