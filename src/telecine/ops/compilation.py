"""Compiled functions that take gradients inside, such as a penalty's, and compiled parts of networks.

`torch.compile` cannot differentiate twice through compiled code (https://github.com/pytorch/pytorch/issues/91469). Here
the compiled code is a function that returns values and gradients, and nothing is differentiated through it. PyTorch
traces the operators that run in it, so the backward of an `autograd.Function` counts. Under `torch.func.grad`, Dynamo
would leave it out (https://github.com/pytorch/pytorch/issues/193279).
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import compress, count
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.frozen import Frozen

Tensors: TypeAlias = dict[str, Tensor]
_Function: TypeAlias = Callable[[Tensors], Tensors]
_Gradients: TypeAlias = list[tuple[Tensor, Tensor]]  # tensors, each with its gradient
_Found: TypeAlias = dict[str, list[bool]]  # which gradients a scalar has; written while the function is traced

_numbers = count()


class Compiler:
    """`torch.compile` with its options; it keeps what it has compiled.

    With `is_dynamic` the sizes of clips differ: compiled code takes any size, where PyTorch can.
    """

    def __init__(self, backend: str, mode: str | None = None, *, is_dynamic: bool = False) -> None:
        # Without `fullgraph`, what cannot be compiled would run as it is, and nobody would know.
        self.options: dict[str, Any] = {"backend": backend, "mode": mode, "fullgraph": True, "dynamic": is_dynamic}
        self.functions: dict[Hashable, tuple[_Found, Callable[..., Any]]] = {}

    def terms(
        self, key: Hashable, function: _Function, module: nn.Module, inputs: Tensors, *, leaf: str
    ) -> dict[str, tuple[Tensor, _Gradients]]:
        """Return each scalar of `function(inputs)`, detached, with its gradients for an input and the parameters.

        The function must read no other tensors than the inputs and those of `module`, whose buffers it may change. It
        is called only while it is compiled: `key` stands for all else that its operators depend on.
        """
        if key not in self.functions:
            arguments: Any = ({}, function, module, leaf, tuple(inputs))
            in_graph = torch.compiler.allow_in_graph(lambda *tensors: _values_and_gradients(*arguments, *tensors))
            self.functions[key] = arguments[0], self._compiled(in_graph)
        found, compiled = self.functions[key]
        with torch.no_grad():
            results = iter(compiled(*(x.detach() for x in inputs.values()), *_tensors(module)))
        leaves = [inputs[leaf], *_trainable(module)]
        return {
            name: (next(results), [(x, next(results)) for x in compress(leaves, which)])
            for name, which in found.items()
        }

    def compile_parts(self, module: nn.Module, last_layer: nn.Parameter) -> None:
        """Compile a network's parts in place: the largest ones that do not hold `last_layer`.

        The gradient of that weight alone, which the adaptive weight needs, would otherwise take a whole backward.
        Without gradients, as in validation, the parts run as they are written.
        """
        for part in _parts_without(last_layer, module):
            # As `part.compile` sets it.
            part._compiled_call_impl = partial(_call, part._call_impl, self._compiled(part._call_impl))

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        # PyTorch keeps compiled code by the code object, and finds functions by `id`, which later ones may have again.
        code = run.__code__.replace(co_name=f"compiled_{next(_numbers)}")
        return torch.compile(FunctionType(code, globals(), closure=run.__closure__), **self.options)

    @contextmanager
    def update(self) -> Iterator[None]:
        """Begin an update; raise a `ValueError` that names the setting if something in it cannot be compiled."""
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # slow

        torch.compiler.cudagraph_mark_step_begin()  # memory of the update before may be used again
        try:
            yield
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            contract, got = "no for what PyTorch cannot compile", f"{self.options['backend']}, {type(error).__name__}"
            remedy = "PyTorch's message, above, names the code."
            raise argument_error("dynamo_backend", contract, got, remedy) from error


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


def _values_and_gradients(
    found: _Found, function: _Function, module: nn.Module, leaf: str, names: Sequence[str], *tensors: Tensor
) -> list[Tensor]:
    """Return each scalar, followed by the gradients that it has; `tensors` are inputs, then those of the module."""
    inputs = dict(zip(names, tensors, strict=False))
    inputs[leaf] = inputs[leaf].detach().requires_grad_()
    slots = list(_slots(module))
    own = zip(_tensors(module), tensors[len(inputs) :], strict=True)
    given = {id(x): y.detach().requires_grad_() if x.requires_grad else y for x, y in own}
    try:
        for holder, name, x in slots:
            holder[name] = given[id(x)]
        with torch.enable_grad():
            leaves, values = [inputs[leaf], *_trainable(module)], function(inputs)
            grad = partial(torch.autograd.grad, inputs=leaves, retain_graph=True, allow_unused=True)
            gradients = {name: grad(value) if value.requires_grad else () for name, value in values.items()}
    finally:
        for holder, name, x in slots:
            holder[name] = x
    found |= {name: [gradient is not None for gradient in of] for name, of in gradients.items()}
    lists = ([value.detach(), *(x for x in gradients[name] if x is not None)] for name, value in values.items())
    return [x for each in lists for x in each]


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _tensors(module: nn.Module) -> list[Tensor]:
    return list({id(x): x for _, _, x in _slots(module)}.values())


def _slots(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Yield each tensor of a module, also those that a `Frozen` hides, with its dict and its name there."""
    for part in module.modules():
        hidden = part.module if isinstance(part, Frozen) else None
        for tensors in (part._parameters, part._buffers, hidden if isinstance(hidden, dict) else {}):
            yield from ((tensors, name, x) for name, x in tensors.items() if x is not None)
        if isinstance(hidden, nn.Module):
            yield from _slots(hidden)
