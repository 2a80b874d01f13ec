"""Any `nn.Module` with a `forward` as a `VideoAutoencoder`."""

import inspect
import json
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from telecine.base.checks import OutputError, argument_error, check_type, describe, shorten
from telecine.base.files import read_json, write_json
from telecine.base.imports import CODE_ERRORS, import_allowed, is_dotted, origin_of
from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators
from telecine.base.shapes import Video
from telecine.models.clip_sizes import ClipSizes, ProbedAutoencoder
from telecine.models.interface import Reconstruction, VideoAutoencoder
from telecine.models.latent import Posterior
from telecine.models.lora import merge_low_rank
from telecine.models.pretrained import CONFIG_FILE, load_weights, save_model

# Methods of a module that replace those of its `CustomAutoencoder`.
_METHODS = (
    *("check_clip", "covering_clip", "decode", "enable_gradient_checkpointing", "enable_temporal_chunks"),
    *("latent_normalisation", "linear_autoencoder", "set_latent_statistics"),
)
# Keys of the `config.json` beside a custom module's weights: the dotted path of its class, and the arguments of that.
CLASS_PATH_KEY, ARGUMENTS_KEY = "_class_path", "_arguments"
# Optional arguments of `forward`, as sizes are probed with them.
_PROBED_WITH = {"sample_posterior": False, "generator": None}


def as_video_autoencoder(module: nn.Module) -> VideoAutoencoder:
    """Return `module` as a `VideoAutoencoder`, unchanged if it is one.

    A diffusers model becomes a `DiffusersAutoencoder`, every other module a `CustomAutoencoder`.

    Raises:
        ValueError: It is no module, or `torch.compile` returned it, and it is not a custom one.
    """
    check_type("autoencoder", module, nn.Module, "Call a class; load the model of a name with `load_autoencoder`.")
    plain = getattr(module, "_orig_mod", module)  # that `torch.compile` was called with
    is_diffusers = type(plain).__module__.startswith("diffusers.")
    if not isinstance(plain, VideoAutoencoder) and not is_diffusers:
        return CustomAutoencoder(module)
    if plain is not module:
        contract, remedy = "compiled only if it is a module of your own", "Pass it without `torch.compile`."
        raise argument_error("autoencoder", contract, f"a compiled {type(plain).__name__}", remedy)
    if isinstance(module, VideoAutoencoder):
        return module
    from telecine.models.diffusers import DiffusersAutoencoder

    return DiffusersAutoencoder(module)


class CustomAutoencoder(ProbedAutoencoder):
    """A user's module that reconstructs video, with the methods that training needs.

    The module's `forward(video)` maps `(B, C, T, H, W)` in [-1, 1] to a reconstruction of the same shape, which is not
    clamped; or to a tuple of the reconstruction, a dict of auxiliary losses by name, 0-d tensors such as
    `{"kl_loss": ...}`, and, for terms of the loss that read it, the latent `(B, C, t, h, w)`. Parameters of `forward`
    named `sample_posterior`, false in validation, and `generator`, one for each clip, are passed. Optional members of
    the module, see docs/own-model.md, replace defaults.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: nn.Module = getattr(module, "_orig_mod", module)
        self.leaves_weights_unused = True  # it may, which is not known
        # What `torch.compile` returned has the same weights; PyTorch does not find a module inside a tuple.
        self._compiled = () if self.module is module else (module,)
        self.options = _PROBED_WITH.keys() & set(inspect.signature(self.module.forward).parameters)
        deterministic = {name: each for name, each in _PROBED_WITH.items() if name in self.options}
        channels = getattr(self.module, "in_channels", 3)
        self.sizes = ClipSizes(self.module, partial(_reconstruct, options=deterministic), channels)
        for name in _METHODS:
            if (method := getattr(self.module, name, None)) is not None:
                vars(self)[name] = method  # not registered if it is a module

    def forward(
        self,
        video: Video,
        sample_posterior: bool = True,
        generator: Generators = None,
        posterior: Posterior | None = None,
    ) -> Reconstruction:
        """Return the reconstruction, the auxiliary losses, and the latent if the module returns it.

        Raises:
            TypeError: The module's output is not a video, with or without a dict of losses and a latent.
            ValueError: The reconstruction's shape differs from the video's, or a posterior is passed.
        """
        if posterior is not None:
            remedy = "Leave it out: the module's `forward` encodes."
            raise argument_error("posterior", "None for a custom module", describe(posterior), remedy)
        arguments = {"sample_posterior": sample_posterior, "generator": generator}
        (module,) = self._compiled or (self.module,)
        result = _as_reconstruction(module(video, **{name: arguments[name] for name in self.options}))
        if result.video.shape != video.shape:
            contract = f"of the video's shape {tuple(video.shape)}"
            raise argument_error("the reconstruction", contract, result.video, "Use clips of a size that it accepts.")
        return result

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the last layer, where the adaptive weight compares gradients."""
        weight = getattr(self.module, "last_layer", None)
        return super().last_layer if weight is None else weight

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the module's weights, low-rank updates merged, with its own `save_pretrained` if it has one."""
        module, file = merge_low_rank(self.module), Path(folder) / CONFIG_FILE
        getattr(module, "save_pretrained", partial(save_model, module, {}))(folder)
        if file.parent.is_dir():
            found = read_json(file) if file.is_file() else {}
            write_json(file, found | {CLASS_PATH_KEY: origin_of(module), ARGUMENTS_KEY: _declared_arguments(module)})

    def load_weights(self, folder: str | PathLike[str]) -> None:
        """Copy the weights in `folder` into the module, with its own `load_weights` if it has one."""
        getattr(self.module, "load_weights", partial(load_weights, self.module))(folder)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is not compiled.
        return {**self.__dict__, "_compiled": ()}


def _declared_arguments(module: nn.Module) -> dict[str, Any] | None:
    """Return the arguments of a module's class, as JSON has them; None if the module does not declare them."""
    config = getattr(module, "config", None)
    if not isinstance(config, Mapping):
        return None if inspect.signature(type(module)).parameters else {}
    try:
        found = json.loads(json.dumps(dict(config)))
    except (TypeError, ValueError):
        return None
    return {name: value for name, value in found.items() if not name.startswith("_")}


def build_custom(path: object, arguments: object, source: str) -> VideoAutoencoder:
    """Return a module of the class at a dotted path, which `source` names and `allow_code` allows, with new weights."""
    if not isinstance(path, str) or not is_dotted(path) or path.startswith("__main__."):
        remedy = "Move the class to a file of its own; in Python, pass the module itself in the place of the folder."
        raise argument_error(source, "a class that can be imported", describe(path), remedy)
    found = import_allowed(path, source)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise argument_error(source, "a class of `torch.nn.Module`", f"{path}, which is none", "Name another.")
    if not isinstance(arguments, Mapping):
        remedy = f"Give {path} an attribute `config`, a dict of its arguments; in Python, pass the module itself."
        raise argument_error(f"the arguments of {source}", "those of the class", "none", remedy)
    try:
        return as_video_autoencoder(found(**arguments))
    except CODE_ERRORS as error:
        got = f"{shorten(repr(arguments))}, with which it raises {type(error).__name__}: {error}"
        raise argument_error(f"the arguments of {source}", f"those of {path}", got, "Correct them.") from error


def _reconstruct(module: nn.Module, video: Video, options: dict[str, Any]) -> Video:
    return _as_reconstruction(module(video, **options)).video


def _as_reconstruction(output: object) -> Reconstruction:
    output = output[:3] if isinstance(output, Reconstruction) else output
    parts = output if isinstance(output, tuple) and 2 <= len(output) <= 3 else (output, {})
    video, losses, latent = parts if len(parts) == 3 else (*parts, None)
    are_losses = isinstance(losses, Mapping) and all(isinstance(loss, Tensor) for loss in losses.values())
    if not isinstance(video, Tensor) or not are_losses or not isinstance(latent, Tensor | None):
        remedy = "Return the reconstruction, (reconstruction, {name: loss}) or (reconstruction, {name: loss}, latent)."
        contract = "a video, or a tuple of a video, a dict of tensors and a latent"
        # Not a `ValueError`, which means an unsupported size while sizes are probed.
        raise argument_error("the module's output", contract, describe(output), remedy, OutputError)
    latent = None if latent is None else at_least_float32(latent)
    return Reconstruction(video=video, aux={name: loss.float() for name, loss in losses.items()}, latent=latent)
