"""The GAN with compiled steps: a discriminator's passes, penalty and gradients are one compiled function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.precision import at_least_float32, autocast_dtype, autocast_off
from telecine.base.shapes import Scalar
from telecine.discriminators.spectral_norm import step_spectral_norms
from telecine.objective.adversarial import NO_PENALTY, VideoDiscriminator
from telecine.objective.batch import Batch
from telecine.objective.eager import with_gradients
from telecine.objective.eager_adversarial import EagerAdversarialLosses, _GradientMode
from telecine.objective.weights import Log
from telecine.ops.compilation import Compiler, Tensors

_Step = Callable[[EagerAdversarialLosses, VideoDiscriminator], Log | tuple[Log, Log]]
# The weights in the loss of a discriminator.
_WEIGHTS = ("grad_penalty", "lecam")


@dataclass
class CompiledAdversarialLosses(EagerAdversarialLosses):
    """The losses of `EagerAdversarialLosses`, within rounding. Without gradients nothing is compiled."""

    compiler: Compiler = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode is _GradientMode.GRAPH:
            contract = "no with hooks on the discriminators' parameters, or with autocast to float16"
            got, remedy = self.compiler.options["backend"], "Remove the hooks, or use bfloat16."
            raise argument_error("dynamo_backend", contract, got, remedy)

    def _generator_step(self, d: VideoDiscriminator) -> Log:
        return self._compiled(EagerAdversarialLosses._generator_step, d)[0]

    def _discriminator_step(self, d: VideoDiscriminator) -> Log:
        return self._compiled(EagerAdversarialLosses._discriminator_step, d)[0]

    def _split_step(self, d: VideoDiscriminator) -> Log:
        return self._compiled(EagerAdversarialLosses._split_step, d)[0]

    def _shared_step(self, d: VideoDiscriminator) -> tuple[Log, Log]:
        of_generator, of_discriminator = self._compiled(EagerAdversarialLosses._shared_step, d)
        return of_generator, of_discriminator

    def _compiled(self, step: _Step, d: VideoDiscriminator) -> list[Log]:
        """Return the logs of a step of one discriminator."""
        if not torch.is_grad_enabled():
            return _logs(step(self, d))
        step_spectral_norms(d.module)
        fake = d.input_of(self.batch.disc_fake)
        inputs = {"real": d.input_of(self.batch.disc_real), "fake": at_least_float32(fake)}
        inputs |= {} if d.condition is None else {"condition": d.condition}
        # As tensors: a number would be a constant of the compiled code, and weights change.
        inputs |= {name: torch.full((), self.weights[name], device=fake.device) for name in _WEIGHTS}
        has_penalty = step is not EagerAdversarialLosses._generator_step and self.penalty is not NO_PENALTY
        if has_penalty and self.penalty.noise is not None:
            inputs["noise"] = self.penalty.noise(inputs["real"], self.batch.generator)
        on = [name for name in (d.term, "feature_matching", *_WEIGHTS) if self.weights[name] > 0]
        amp = autocast_dtype(fake.device)
        key = (step, d.name, self.mode, has_penalty, d.module.training, amp, *on)
        options = {each.name: getattr(self, each.name) for each in fields(EagerAdversarialLosses)}
        del options["batch"]  # its tensors would be kept as long as the compiled code
        plain = replace(d, sees="video", factor=1, frame_indices=None, condition=None)
        modules = nn.ModuleDict({"discriminator": d.module, **({"lecam": self.lecam[d.key]} if self.lecam else {})})
        terms = self.compiler.terms(key, partial(_terms, step, plain, options, amp), modules, inputs, leaf="fake")
        leaves = [fake, *modules.parameters()]
        logs: list[Log] = [{}, {}]
        for name, (value, gradients) in terms.items():
            side, _, term = name.partition("/")
            # Without the others: a backward would go through their graphs, too. A value without gradients has none.
            found = [(x, dx) for x, dx in zip(leaves, gradients, strict=False) if dx is not None]
            logs[int(side)][term] = with_gradients(value, *zip(*found, strict=True)) if found else value
        return logs


def _logs(result: Log | tuple[Log, Log]) -> list[Log]:
    return list(result) if isinstance(result, tuple) else [result]


def _terms(
    step: _Step, d: VideoDiscriminator, options: dict[str, Any], amp: torch.dtype | None, inputs: Tensors
) -> Tensors:
    """Return the terms of a step, named "0/name" and "1/name", from tensors alone; it is called while it is traced."""
    others = dict(options)
    mode, is_eager, penalty, loss = (others.pop(each) for each in ("mode", "is_eager", "penalty", "discriminator_loss"))
    if "noise" in inputs:
        penalty = replace(penalty, function=partial(penalty.function, noise=inputs["noise"]))
    batch = Batch._make([None] * len(Batch._fields))._replace(disc_real=inputs["real"], disc_fake=inputs["fake"])
    loss = partial(loss, weights=_TensorWeights(inputs))
    losses = EagerAdversarialLosses(**others, penalty=penalty, discriminator_loss=loss, batch=batch)
    losses.mode, losses.is_eager = mode, is_eager
    device = inputs["real"].device
    with autocast_off(device) if amp is None else torch.autocast(device.type, amp):
        logs = _logs(step(losses, replace(d, condition=inputs.get("condition"))))
    return {f"{side}/{name}": value for side, log in enumerate(logs) for name, value in log.items()}


class _TensorWeights(dict[str, Tensor]):
    """The weights of terms that are on, as 0-d tensors, in place of `Weights`."""

    def sum(self, terms: Log) -> Scalar | float:
        return sum((self[name] * term for name, term in terms.items()), 0.0)
