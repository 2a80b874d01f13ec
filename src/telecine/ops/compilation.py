"""Compiled functions that take gradients inside, such as a penalty's, and compiled parts of networks.

`torch.compile` cannot differentiate twice through compiled code (https://github.com/pytorch/pytorch/issues/91469). Here
the compiled code is a function that returns values and gradients, and nothing is differentiated through it. PyTorch
traces the operators that run in it, so the backward of an `autograd.Function` counts. Under `torch.func.grad`, Dynamo
would leave it out (https://github.com/pytorch/pytorch/issues/193279).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import compress
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.frozen import Frozen

Tensors: TypeAlias = dict[str, Tensor]
Gradients: TypeAlias = list[tuple[Tensor, Tensor]]
"""Tensors, each with its gradient."""

# PyTorch's 8 is too small: all that is compiled here counts together.
_RECOMPILE_LIMIT = 256
_SECONDS_BETWEEN_LINES = 10.0


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
        self.options: dict[str, Any] = {"backend": backend, "mode": mode, "fullgraph": True, "dynamic": is_dynamic}
        self.functions: dict[Hashable, _CompiledTerms] = {}

    def terms(
        self, key: Hashable, function: Callable[[Tensors], Tensors], module: nn.Module, inputs: Tensors, *, leaf: str
    ) -> dict[str, tuple[Tensor, Gradients]]:
        """Return each scalar of `function(inputs)`, detached, and its gradients; see `_CompiledTerms`.

        The function is called only while it is compiled, and `key` stands for all that its operators depend on, beside
        `inputs` and `module`.
        """
        if key not in self.functions:
            self.functions[key] = _CompiledTerms(function, module, leaf, self.options)
        return self.functions[key](inputs)

    def compile_parts(self, module: nn.Module, last_layer: nn.Parameter) -> list[nn.Module]:
        """Compile a network's parts in place, and return them: the largest ones that do not hold `last_layer`.

        The gradient of its weight alone, as the adaptive weight needs it, would otherwise take a whole backward:
        compiled code computes all of its gradients. Single layers are left as they are. Without gradients, as in
        validation, the parts run as they are written.
        """
        parts = list(_parts_without(last_layer, module))
        for part in parts:
            plain = part._call_impl
            part._compiled_call_impl = partial(
                _call, plain, _compiled(plain, self.options)
            )  # as `part.compile` sets it
        return parts

    @contextmanager
    def update(self) -> Iterator[None]:
        """Begin an update; raise a `ValueError` that names the setting if something in it cannot be compiled."""
        from torch._dynamo.exc import TorchDynamoException  # slow

        torch.compiler.cudagraph_mark_step_begin()  # memory of the update before may be used again
        try:
            yield
        except TorchDynamoException as error:
            contract, got = "no for what PyTorch cannot compile", f"{self.options['backend']}, {type(error).__name__}"
            remedy = "PyTorch's message, above, names the code."
            raise argument_error("dynamo_backend", contract, got, remedy) from error


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Return a compiled function that calls this one: PyTorch compiles no frames of its own files."""
    return torch.compile(lambda *args, **kwargs: function(*args, **kwargs), **options)


def _call(plain: Callable[..., Any], compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return plain(*args, **kwargs)
    with torch._C.DisableTorchFunction():  # Dynamo would trace modes of Python into each call
        return compiled(*args, **kwargs)


def _parts_without(weight: nn.Parameter, module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList) or any(parameter is weight for parameter in child.parameters()):
            yield from _parts_without(weight, child)
        elif sum(part._parameters != {} for part in child.modules()) > 1:
            yield child


@contextmanager
def report_compilation(report: Callable[[str], None]) -> Iterator[None]:
    """Call `report` with a line when PyTorch compiles something inside the block, at most every ten seconds."""
    from torch._dynamo.callback import callback_handler  # slow

    num_functions, due = 0, 0.0

    def on_start(*_: object) -> None:
        nonlocal num_functions, due
        num_functions, now = num_functions + 1, time.monotonic()
        if now >= due:
            due = now + _SECONDS_BETWEEN_LINES
            report(f"compiling: function {num_functions}")

    callback_handler.register_start_callback(on_start)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(on_start)


class _CompiledTerms:
    """A function from tensors to scalars, with their gradients for the input `leaf` and the parameters of `module`.

    The function must read no other tensors than the inputs and those of `module`; it may change buffers.
    """

    def __init__(
        self, function: Callable[[Tensors], Tensors], module: nn.Module, leaf: str, options: dict[str, Any]
    ) -> None:
        self.function, self.module, self.leaf = function, module, leaf
        self.input_names: list[str] = []
        # Written while the function is traced: the scalars' names, and which gradients each has.
        self.found: dict[str, list[bool]] = {}
        self.run = _compiled(torch.compiler.allow_in_graph(self._values_and_gradients), options)

    def __call__(self, inputs: Tensors) -> dict[str, tuple[Tensor, Gradients]]:
        self.input_names = list(inputs)
        with torch.no_grad():
            results = iter(self.run(*(x.detach() for x in inputs.values()), *_tensors(self.module)))
        leaves = [inputs[self.leaf], *_trainable(self.module)]
        return {
            name: (next(results), [(leaf, next(results)) for leaf in compress(leaves, which)])
            for name, which in self.found.items()
        }

    def _values_and_gradients(self, *tensors: Tensor) -> list[Tensor]:
        """Return each scalar, followed by the gradients that it has."""
        inputs = dict(zip(self.input_names, tensors, strict=False))
        inputs[self.leaf] = inputs[self.leaf].detach().requires_grad_()
        own = zip(_tensors(self.module), tensors[len(inputs) :], strict=True)
        given = {id(x): y.detach().requires_grad_() if x.requires_grad else y for x, y in own}
        with torch.enable_grad(), _replaced(self.module, given):
            leaves = [inputs[self.leaf], *_trainable(self.module)]
            values = self.function(inputs)
            grad = partial(torch.autograd.grad, inputs=leaves, retain_graph=True, allow_unused=True)
            gradients = {name: grad(value) if value.requires_grad else () for name, value in values.items()}
        self.found = {name: [gradient is not None for gradient in of] for name, of in gradients.items()}
        lists = ([value.detach(), *(x for x in gradients[name] if x is not None)] for name, value in values.items())
        return [x for each in lists for x in each]


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return parameters, buffers and frozen tensors, each once."""
    return list({id(x): x for x in (tensors[name] for tensors, name in _slots(module))}.values())


def _slots(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the dicts and names of a module's tensors, also of those that a `Frozen` hides."""
    for part in module.modules():
        hidden = part.module if isinstance(part, Frozen) else None
        for tensors in (part._parameters, part._buffers, hidden if isinstance(hidden, dict) else {}):
            yield from ((tensors, name) for name, x in tensors.items() if x is not None)
        if isinstance(hidden, nn.Module):
            yield from _slots(hidden)


@contextmanager
def _replaced(module: nn.Module, by_id: dict[int, Tensor]) -> Iterator[None]:
    """Put other tensors in the place of a module's own."""
    before = [(tensors, name, tensors[name]) for tensors, name in _slots(module)]
    try:
        for tensors, name, x in before:
            tensors[name] = by_id[id(x)]
        yield
    finally:
        for tensors, name, x in before:
            tensors[name] = x
