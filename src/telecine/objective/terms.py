"""The terms of the objective: one kind of `Term`, and the table of those that telecine has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.func import functional_call

from telecine.base.checks import argument_error
from telecine.base.shapes import Scalar
from telecine.losses import feature_matching
from telecine.objective.batch import Batch
from telecine.objective.functions import FEATURE_INPUTS, PENALTY_INPUTS, Functions, check_result, name_of
from telecine.objective.lecam_term import LeCamTerm
from telecine.ops.ranks import with_averaged_gradient
from telecine.settings import ObjectiveConfig, ObjectiveTerm


@dataclass(frozen=True, eq=False)
class Term:
    """One term of the loss of the autoencoder or of the discriminators."""

    settings: ObjectiveTerm
    """Its name, its weight at each step, the step of the update whose loss has it, and its key in the log."""
    function: Callable[..., Any]
    """The function or module that computes it."""
    arguments: tuple[str, ...]
    """The inputs that the function is called with, by the names of its parameters."""
    params: Mapping[str, object] = field(default_factory=dict)
    """Further keyword arguments of the function."""

    @property
    def name(self) -> str:
        """The name by which its weight is looked up."""
        return self.settings.name

    @property
    def reads_features(self) -> bool:
        """Whether it compares features of LPIPS' network."""
        return any(name in FEATURE_INPUTS for name in self.arguments)

    def trained_weights(self) -> dict[str, nn.Parameter]:
        """Return the weights of its module that are not frozen, by name."""
        if not isinstance(self.function, nn.Module):
            return {}
        return {name: weight for name, weight in self.function.named_parameters() if weight.requires_grad}

    def __call__(self, **inputs: Any) -> Any:
        """Call the function with those inputs that it takes. Gradients of its weights are averaged over ranks."""
        arguments = {name: inputs[name] for name in self.arguments}
        weights = {name: with_averaged_gradient(weight) for name, weight in self.trained_weights().items()}
        if weights:
            assert isinstance(self.function, nn.Module)
            return functional_call(self.function, weights, (), {**arguments, **self.params})
        return self.function(**arguments, **self.params)


def build_terms(config: ObjectiveConfig, functions: Functions) -> dict[str, Term]:
    """Return the terms of `config.terms` by name; classes of modules are built."""
    settings = config.all_terms()
    terms = {}
    for name, named in functions.terms.items():
        function = named.function
        params = config.named_terms[name].params
        if isinstance(function, type):
            with unset_fake_temporarily():  # it may read weights, also where a run is planned without any values
                function = function(**params)
            params = {}
        terms[name] = Term(settings[name], function, named.arguments, params)
    return terms


def build_gan_terms(config: ObjectiveConfig, functions: Functions, lecam: LeCamTerm) -> list[Term]:
    """Return the terms of both steps that are computed with a discriminator.

    Args:
        config: The settings.
        functions: The functions that they name.
        lecam: LeCam regularisation, which has buffers.
    """
    settings = config.all_terms()
    generator_loss = functions.gan_loss.generator
    logits = ("fake_logits",) if functions.gan_loss.parts is not None else ("fake_logits", "real_logits")
    penalty = functions.penalty.function
    penalty_inputs = [name for name in PENALTY_INPUTS if functions.penalty.takes(name)]
    if not functions.penalty.uses_fake:
        penalty_inputs = [name for name in penalty_inputs if name not in ("fake", "fake_logits")]
    return [
        Term(settings["adversarial"], generator_loss, logits),
        Term(settings["multiscale_adversarial"], generator_loss, logits),
        Term(settings["feature_matching"], match_features, ("fake_features", "real_features")),
        Term(settings["grad_penalty"], penalty, tuple(penalty_inputs)),
        Term(settings["lecam"], lecam, ("key", "fake_logits", "real_logits")),
    ]


def match_features(*, real_features: tuple[Tensor, ...], fake_features: tuple[Tensor, ...]) -> Scalar:
    """Return `feature_matching` of the features that a discriminator returned with its logits."""
    return feature_matching(real=real_features, fake=fake_features)


def compute_on_batch(term: Term, batch: Batch) -> Scalar:
    """Return the value of a term of `config.terms` that reads the videos or the latent.

    Raises:
        ValueError: The call lacks an input of the function, or the function lacks a parameter for the call's weights,
            or returns anything else than a 0-d tensor.
    """
    if "weight" not in term.arguments and batch.clip_weight is not None:
        contract = "a function with the parameter `weight` if a call has `mask` or `sample_weight`"
        remedy = "Add it, and multiply the error of each clip by it."
        raise argument_error(name_of(term.function), contract, "one without", remedy)
    for name, value in (("latent", batch.latent), ("decode", batch.decode)):
        if name in term.arguments and value is None:
            remedy = f"Pass `{name}=` of the autoencoder. A custom module returns its latent, and has a `decode`."
            raise argument_error(name, f"given for {name_of(term.function)}", "None", remedy)
    weight = batch.clip_weight
    if "mask" in term.arguments or "reconstruction" not in term.arguments:
        weight = batch.sample_weight  # the function looks at the mask itself, or not at pixels
    value = term(
        reconstruction=batch.fake,
        target=batch.real,
        weight=weight,
        mask=batch.mask,
        latent=batch.latent,
        posterior=batch.posterior,
        first_frame_apart=batch.first_frame_apart,
        decode=batch.decode,
        generator=batch.generator,
    )
    return check_result(term.function, value)
