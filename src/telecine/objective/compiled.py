"""The GAN with compiled steps: a discriminator's passes, penalty and gradients are one compiled function."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error, describe
from telecine.base.precision import at_least_float32, autocast_dtype, autocast_off
from telecine.base.shapes import Scalar
from telecine.discriminators.spectral_norm import step_spectral_norms
from telecine.objective.adversarial import NO_PENALTY, VideoDiscriminator
from telecine.objective.batch import Batch
from telecine.objective.eager import with_gradients
from telecine.objective.eager_adversarial import EagerAdversarialLosses, _GradientMode
from telecine.objective.video_autoencoder import VideoAutoencoderLoss
from telecine.objective.weights import Log
from telecine.ops.compilation import Compiler, Tensors
from telecine.ops.ranks import num_ranks

_Step: TypeAlias = Callable[[Any, VideoDiscriminator], Any]

_NO_BATCH = Batch._make([None] * len(Batch._fields))


def compile_networks(loss: VideoAutoencoderLoss, compiler: Compiler) -> None:
    """Compile discriminators and LPIPS in place, or raise a `ValueError` about a setting that cannot be compiled.

    Values change by rounding, the state dict stays as it is.
    """
    penalty = loss.penalty
    if loss.schedule.is_ever_on("grad_penalty") and penalty.noise is None and penalty.takes("generator"):
        remedy = "Give its `Penalty` a function `noise`, which draws its random numbers."
        raise argument_error("penalty.kind", "without random numbers of its own", describe(penalty), remedy)
    for name in loss.logit_terms if num_ranks() > 1 else ():
        contract, remedy = "0 in compiled code of several processes", "Leave the compiler out, or use one process."
        raise argument_error(loss.schedule.terms[name].setting, contract, "above 0", remedy)
    loss.compiler, loss.losses = compiler, partial(_CompiledAdversarialLosses, compiler=compiler)
    if loss.perceptual.distance is not None:
        loss.perceptual.distance.compile(**compiler.options)


def _compiled(step: _Step) -> Any:
    """Return a step of one discriminator that is compiled where there are gradients."""

    def run(losses: "_CompiledAdversarialLosses", d: VideoDiscriminator) -> Any:
        is_plain = torch.compiler.is_compiling() or not torch.is_grad_enabled()
        return step(losses, d) if is_plain else losses.compiled(step, d)

    return run


@dataclass
class _CompiledAdversarialLosses(EagerAdversarialLosses):
    """The losses of `EagerAdversarialLosses`, within rounding. Without gradients nothing is compiled."""

    compiler: Compiler = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode is _GradientMode.GRAPH or not self.is_eager:
            contract = "no with hooks on the discriminators' parameters, or with autocast to float16"
            got, remedy = self.compiler.options["backend"], "Remove the hooks, or use bfloat16."
            raise argument_error("dynamo_backend", contract, got, remedy)

    _generator_step = _compiled(EagerAdversarialLosses._generator_step)
    _discriminator_step = _compiled(EagerAdversarialLosses._discriminator_step)
    _split_step = _compiled(EagerAdversarialLosses._split_step)
    _shared_step = _compiled(EagerAdversarialLosses._shared_step)

    def compiled(self, step: _Step, d: VideoDiscriminator) -> Any:
        step_spectral_norms(d.module)
        fake = d.input_of(self.batch.disc_fake)
        inputs = {"real": d.input_of(self.batch.disc_real), "fake": at_least_float32(fake)}
        # As tensors: a number would be a constant of the compiled code, and weights change.
        weighted = ("grad_penalty", *self.logit_terms)
        inputs |= {name: torch.full((), self.weights[name], device=fake.device) for name in weighted}
        has_penalty = step is not EagerAdversarialLosses._generator_step and self.penalty is not NO_PENALTY
        if has_penalty and self.penalty.noise is not None:
            inputs["noise"] = self.penalty.noise(inputs["real"], self.batch.generator)
        on = [name for name in (d.term, "feature_matching", *weighted) if self.weights[name] > 0]
        amp = autocast_dtype(fake.device)
        key = (step, d.name, self.mode, has_penalty, d.module.training, amp, *on)
        losses, plain = copy(self), replace(d, sees="video", factor=1, frame_indices=None)
        losses.batch = _NO_BATCH  # its tensors would be kept as long as the compiled code
        of_logits = {name: modules[d.key] for name, modules in self.logit_terms.items()}
        modules = nn.ModuleDict({"discriminator": d.module, **of_logits})
        terms = self.compiler.terms(key, partial(losses._terms, step, plain, amp), modules, inputs, leaf="fake")
        logs: tuple[Log, Log] = {}, {}
        for name, (value, gradients) in terms.items():
            side, _, term = name.partition("/")
            logs[int(side)][term] = with_gradients(value, *zip(*gradients, strict=True)) if gradients else value
        return logs if step is EagerAdversarialLosses._shared_step else logs[0]

    def _terms(self, step: _Step, d: VideoDiscriminator, amp: torch.dtype | None, inputs: Tensors) -> Tensors:
        """Return the terms of a step, named "0/name" and "1/name", from tensors alone; called while it is traced."""
        losses, device = copy(self), inputs["real"].device
        own: Any = {"disc_real": inputs["real"], "disc_fake": inputs["fake"], "generator": inputs.get("noise")}
        losses.batch = _NO_BATCH._replace(**own)
        losses.discriminator_loss = partial(self.discriminator_loss, weights=_TensorWeights(inputs))
        with autocast_off(device) if amp is None else torch.autocast(device.type, amp):
            found = step(losses, d)
        logs = found if isinstance(found, tuple) else (found,)
        return {f"{side}/{name}": value for side, log in enumerate(logs) for name, value in log.items()}


class _TensorWeights(dict[str, Tensor]):
    """The weights of terms that are on, as 0-d tensors, in place of `Weights`."""

    def sum(self, terms: Log) -> Scalar | float:
        return sum((self[name] * term for name, term in terms.items()), 0.0)
