"""Custom modules from the path of their class: how they are built, and whether a run can be loaded that way."""

import inspect
import math
import sys
from collections.abc import Mapping

import torch
from torch import nn

from telecine.base.checks import argument_error, describe, shorten
from telecine.base.imports import CODE_ERRORS, import_allowed, is_dotted, origin_of
from telecine.models.custom import CustomAutoencoder, as_video_autoencoder, needs_no_arguments
from telecine.models.interface import VideoAutoencoder
from telecine.models.pretrained import MAX_LISTED, mismatches


def check_reload(model: CustomAutoencoder) -> str | None:
    """Check that commands can build the module of a model again, from the path of its class and the saved arguments.

    Returns:
        A warning if the class cannot be imported, so that only Python can load the run; None otherwise.

    Raises:
        ValueError: The arguments are not known, or the class makes another module of them.
    """
    cls = type(model.module)
    path = origin_of(cls)
    defined = getattr(sys.modules.get(cls.__module__), cls.__name__, None)
    if cls.__module__ == "__main__" or defined is not cls:
        remedy = "move the class to a file of its own, or pass the module itself in Python"
        return f"commands cannot load this run, since {path} cannot be imported; {remedy}"
    arguments = model.saved_arguments()
    if arguments is None:
        raise _reload_error(f"a {path}, whose arguments are not known or not plain values")
    try:
        with torch.random.fork_rng(devices=[]):
            rebuilt = cls(**arguments)
            problems = mismatches(rebuilt.state_dict(), model.module.state_dict())
            if not problems:
                rebuilt.load_state_dict(model.module.state_dict())
    except CODE_ERRORS as error:
        got = f"a {path}, which raises {type(error).__name__} with {arguments}: {error}"
        raise _reload_error(got) from error
    if not problems and not _computes_the_same(model, rebuilt):
        problems = ["other outputs with the same weights"]
    if problems:
        got = f"a {path}, which with {arguments} has {'; '.join(problems[:MAX_LISTED])}"
        raise _reload_error(got)
    return None


@torch.no_grad()
def _computes_the_same(model: CustomAutoencoder, module: nn.Module) -> bool:
    """Return whether a module of the same weights reconstructs a small clip as the module of a model does."""
    try:
        size = model.covering_clip(1, 1, 1)
    except ValueError:  # no small clip is accepted
        return True
    device = next((weight.device for weight in model.module.parameters()), torch.device("cpu"))
    video = torch.linspace(-1, 1, model.in_channels * math.prod(size), device=device)
    video = video.view(1, model.in_channels, *size)
    other = CustomAutoencoder(module.to(device))
    outputs = []
    for tried in (model, model, other):
        was_training = tried.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs.append(tried.eval()(video, sample_posterior=False).video)
        tried.train(was_training)
    first, second, rebuilt = outputs
    is_deterministic = torch.equal(first, second)
    return not is_deterministic or torch.allclose(
        first, rebuilt, rtol=1e-3, atol=1e-4, equal_nan=True
    )


def _reload_error(got: str) -> Exception:
    remedy = (
        "Give it an attribute `config`, a dict of all arguments that it was called with, or pass "
    )
    remedy += "`as_video_autoencoder(module, arguments)`."
    contract = "a module that its class can rebuild from the saved arguments, so that the run can be loaded"
    return argument_error("autoencoder", contract, got, remedy)


def build_custom(path: object, arguments: object, source: str) -> VideoAutoencoder:
    """Return a module with new weights.

    Args:
        path: The dotted path of its class, which `allow_code` allows.
        arguments: Those of the class, by name; None if they were not saved.
        source: Where the path is from, for errors.

    Raises:
        ValueError: The path or the arguments are wrong.
    """
    if not isinstance(path, str) or not is_dotted(path) or path.startswith("__main__."):
        remedy = "Move the class to a file of its own; in Python, pass the module itself in the place of the folder."
        raise argument_error(source, "a class that can be imported", describe(path), remedy)
    cls = import_allowed(path, source)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise argument_error(
            source,
            "a subclass of `torch.nn.Module`",
            f"{path}, which is not",
            "Name another class.",
        )
    if arguments is None and needs_no_arguments(cls):
        arguments = {}
    if not isinstance(arguments, Mapping):
        remedy = f"In Python, pass the module: `as_video_autoencoder({cls.__name__}(...)).load_weights(folder)`."
        raise argument_error(f"the arguments of {source}", "those of the class", "none", remedy)
    try:
        return as_video_autoencoder(cls(**arguments), arguments)
    except CODE_ERRORS as error:
        got = f"{shorten(repr(arguments))}, with which it raises {type(error).__name__}: {error}"
        raise argument_error(
            f"the arguments of {source}", f"those of {path}", got, "Correct them."
        ) from error
