"""Compiled functions that take gradients inside, such as a penalty's, and compiled parts of networks.

`torch.compile` cannot differentiate twice through compiled code (https://github.com/pytorch/pytorch/issues/91469). Here
the compiled code is a function that returns values and gradients, and nothing is differentiated through it. PyTorch
traces the operators that run in it, so the backward of an `autograd.Function` counts. Under `torch.func.grad`, Dynamo
would leave it out (https://github.com/pytorch/pytorch/issues/193279).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import count
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from telecine.base.checks import argument_error
from telecine.base.frozen import frozen_parts

Tensors: TypeAlias = dict[str, Tensor]

# PyTorch's 8 is too small for sizes of clips that need code of their own.
_RECOMPILE_LIMIT = 64
_SECONDS_BETWEEN_LINES = 10.0
# Equal code objects, also those of another run in this process, would share what PyTorch knows about them.
_numbers = count()


class Compiler:
    """`torch.compile` with its options; it keeps what it has compiled.

    Args:
        backend, mode: Those of `torch.compile`.
        is_dynamic: The sizes of clips differ: compiled code takes any size, where PyTorch can.
    """

    def __init__(self, backend: str, mode: str | None = None, *, is_dynamic: bool = False) -> None:
        import torch._dynamo  # slow, and needed only here

        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
        # Without `fullgraph`, what cannot be compiled would run as it is, and nobody would know.
        dynamic = None if is_dynamic else False
        self.options: dict[str, Any] = {"backend": backend, "mode": mode, "fullgraph": True, "dynamic": dynamic}
        self.functions: dict[Hashable, _CompiledTerms] = {}

    def terms(
        self, key: Hashable, function: Callable[[Tensors], Tensors], module: nn.Module, inputs: Tensors, *, leaf: str
    ) -> dict[str, tuple[Tensor, list[Tensor | None]]]:
        """Return each scalar of `function(inputs)`, detached, and its gradients; see `_CompiledTerms`.

        The function is called only while it is compiled, and `key` stands for all that its operators depend on, beside
        `inputs` and `module`.
        """
        if key not in self.functions:
            self.functions[key] = _CompiledTerms(function, module, leaf, self._compiled)
        return self.functions[key].terms(inputs, is_dynamic=self.options["dynamic"] is None)

    def compile_parts(self, module: nn.Module, last_layer: nn.Parameter) -> list[nn.Module]:
        """Compile a network's parts in place, and return them: the largest ones that do not hold `last_layer`.

        The gradient of its weight alone, as the adaptive weight needs it, would otherwise take a whole backward:
        compiled code computes all of its gradients. Single layers are left as they are.
        """
        parts = list(_parts_without(last_layer, module))
        for part in parts:
            part._compiled_call_impl = self._compiled(part._call_impl)  # as `part.compile` sets it
        return parts

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return compiled code of its own: PyTorch limits how often it compiles one, and skips frames of its own files.

        Modes of Python around it, which Dynamo would trace into each call, are off.
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        code = run.__code__.replace(co_name=f"compiled_{next(_numbers)}")
        compiled = torch.compile(FunctionType(code, run.__globals__, closure=run.__closure__), **self.options)

        def call(*args: Any, **kwargs: Any) -> Any:
            with torch._C.DisableTorchFunction():
                return compiled(*args, **kwargs)

        return call

    @contextmanager
    def update(self) -> Iterator[None]:
        """Begin an update; raise a `ValueError` that names the setting if something in it cannot be compiled."""
        from torch._dynamo.exc import TorchDynamoException  # slow

        torch.compiler.cudagraph_mark_step_begin()  # memory of the update before may be used again
        try:
            yield
        except TorchDynamoException as error:
            contract, got = "no for what PyTorch cannot compile", f"{self.options['backend']}, {type(error).__name__}"
            raise argument_error(
                "dynamo_backend", contract, got, "PyTorch's message, above, names the code."
            ) from error


def _parts_without(weight: nn.Parameter, module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList) or any(parameter is weight for parameter in child.parameters()):
            yield from _parts_without(weight, child)
        elif sum(part._parameters != {} for part in child.modules()) > 1:
            yield child


def uncompiled() -> AbstractContextManager[object]:
    """Return a context in which compiled code runs as it is written: it would be compiled again for a few calls."""
    # Nothing is compiled before this module is imported.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def report_compilation(report: Callable[[str], None]) -> Iterator[None]:
    """Call `report` with a line when PyTorch compiles something inside the block, at most every ten seconds."""
    from torch._dynamo.callback import callback_handler  # slow

    starts: list[float] = []

    def on_start(*_: object) -> None:
        starts.append(time.monotonic())
        seconds, before = (starts[-1] - starts[0], starts[-2] - starts[0]) if len(starts) > 1 else (0.0, -1.0)
        if seconds // _SECONDS_BETWEEN_LINES > before // _SECONDS_BETWEEN_LINES:
            report(f"compiling: function {len(starts)}, {seconds:.0f} s after the first")

    callback_handler.register_start_callback(on_start)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(on_start)


class _CompiledTerms(nn.Module):
    """A function from tensors to scalars and their gradients for the input `leaf` and each parameter of `module`.

    A gradient is None where a scalar does not depend on the leaf. The function must read no other tensors than the
    inputs and those of `module`; it may change buffers. As the `forward` of a module it can be called with any tensors
    in their place.
    """

    def __init__(
        self,
        function: Callable[[Tensors], Tensors],
        module: nn.Module,
        leaf: str,
        compiled: Callable[[Callable[..., Any]], Callable[..., Any]],
    ) -> None:
        super().__init__()
        self.function, self.module = function, module
        frozen = list(frozen_parts(module))
        self.hidden = nn.ModuleList(part.module for part in frozen if isinstance(part.module, nn.Module))
        self.dicts: list[Tensors] = [part.module for part in frozen if isinstance(part.module, dict)]
        self.leaves = [leaf, *(f"module.{name}" for name, _ in module.named_parameters())]
        self.input_names: list[str] = []
        # Written while the function is traced: the scalars' names, and which gradients each has.
        self.found: dict[str, list[bool]] = {}
        self.run = compiled(torch.compiler.allow_in_graph(self._values_and_gradients))

    def terms(self, inputs: Tensors, *, is_dynamic: bool) -> dict[str, tuple[Tensor, list[Tensor | None]]]:
        """Return each scalar, detached, and its gradients."""
        self.input_names = list(inputs)
        tensors = [x.detach() for x in inputs.values()]
        for x in tensors if is_dynamic else ():
            for dim in range(2, x.ndim):
                torch._dynamo.maybe_mark_dynamic(x, dim)
        with torch.no_grad():
            results = iter(self.run(*tensors, *self._tensors().values()))
        return {
            name: (next(results), [next(results) if exists else None for exists in which])
            for name, which in self.found.items()
        }

    def _tensors(self) -> Tensors:
        """Return parameters, buffers and frozen tensors by name."""
        in_dicts = {f"{index}/{name}": x for index, part in enumerate(self.dicts) for name, x in part.items()}
        return {**dict(self.named_parameters()), **dict(self.named_buffers()), **in_dicts}

    def _values_and_gradients(self, *tensors: Tensor) -> list[Tensor]:
        """Return each scalar, followed by the gradients that it has."""
        given, before = (
            dict(zip([*self.input_names, *self._tensors()], tensors, strict=True)),
            list(map(dict, self.dicts)),
        )
        with torch.enable_grad():
            leaves = {name: given[name].detach().requires_grad_() for name in self.leaves}
            given |= leaves
            inputs = {name: given.pop(name) for name in self.input_names}
            try:
                for index, part in enumerate(self.dicts):
                    part |= {name: given.pop(f"{index}/{name}") for name in part}
                values: Tensors = functional_call(self, given, (inputs,))
            finally:
                for part, own in zip(self.dicts, before, strict=True):
                    part |= own
            grad = partial(torch.autograd.grad, inputs=[*leaves.values()], retain_graph=True, allow_unused=True)
            gradients = {name: grad(value) if value.requires_grad else () for name, value in values.items()}
        self.found = {name: [gradient is not None for gradient in of] for name, of in gradients.items()}
        lists = ([value.detach(), *(x for x in gradients[name] if x is not None)] for name, value in values.items())
        return [x for each in lists for x in each]

    def forward(self, inputs: Tensors) -> Tensors:
        """Call the function."""
        return self.function(inputs)
