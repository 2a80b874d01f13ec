"""Any `nn.Module` with a `forward` as a `VideoAutoencoder`."""

import inspect
import json
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from telecine.base.checks import OutputError, argument_error, check_type, describe
from telecine.base.files import read_json, write_json
from telecine.base.imports import origin_of
from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators
from telecine.base.shapes import Video
from telecine.losses import AuxLoss, Moments
from telecine.models.clip_sizes import ClipSizes, ProbedAutoencoder
from telecine.models.interface import Reconstruction, VideoAutoencoder
from telecine.models.latent import (
    LatentGrid,
    Posterior,
)
from telecine.models.linear import LinearAutoencoder
from telecine.models.lora import merge_low_rank
from telecine.models.pretrained import (
    CONFIG_FILE,
    load_weights,
    save_model,
)

CLASS_PATH_KEY = "_class_path"
"""Key of the `config.json` beside a custom module's weights: the dotted path of its class."""
ARGUMENTS_KEY = "_arguments"
"""Key of the `config.json` beside a custom module's weights: the arguments of its class."""
# Optional methods of the module, which replace those of `CustomAutoencoder`.
_METHODS = (
    "check_clip",
    "covering_clip",
    "decode",
    "enable_gradient_checkpointing",
    "enable_temporal_chunks",
    "latent_normalisation",
    "linear_autoencoder",
    "set_latent_statistics",
)
# Optional arguments of `forward`, as sizes are probed with them.
_PROBED_WITH = {"sample_posterior": False, "generator": None}


def as_video_autoencoder(
    module: nn.Module, arguments: Mapping[str, object] | None = None
) -> VideoAutoencoder:
    """Return `module` as a `VideoAutoencoder`, unchanged if it is one.

    A diffusers model becomes a `DiffusersAutoencoder`, every other module a `CustomAutoencoder`.

    Args:
        module: The module.
        arguments: Those that the class of a custom module was called with, see `CustomAutoencoder`.

    Raises:
        ValueError: It is no module, or `torch.compile` returned it, and it is not a custom one.
    """
    check_type(
        "autoencoder",
        module,
        nn.Module,
        "Call a class; load the model of a name with `load_autoencoder`.",
    )
    plain = getattr(module, "_orig_mod", module)  # that `torch.compile` was called with
    is_diffusers = type(plain).__module__.startswith("diffusers.")
    if not isinstance(plain, VideoAutoencoder) and not is_diffusers:
        return CustomAutoencoder(module, arguments)
    if plain is not module:
        contract = "compiled only if it is a module of your own"
        got = f"a compiled {type(plain).__name__}"
        raise argument_error("autoencoder", contract, got, "Pass it without `torch.compile`.")
    if isinstance(module, VideoAutoencoder):
        return module
    from telecine.models.diffusers import DiffusersAutoencoder

    return DiffusersAutoencoder(module)


class CustomAutoencoder(ProbedAutoencoder):
    """A user's module that reconstructs video, with the methods that training needs.

    The module's `forward(video)` maps `(B, C, T, H, W)` in [-1, 1] to a reconstruction of the same shape, which is not
    clamped; or to a tuple of the reconstruction, a dict of auxiliary losses by name, 0-d tensors or posteriors
    such as `{"kl_loss": posterior}`, and, for terms of the loss that read it, the latent `(B, C, t, h, w)`. Parameters
    of `forward` named `sample_posterior`, false in validation, and `generator`, one for each clip, are passed. Optional
    members of the module, see docs/own-model.md, replace defaults.

    Args:
        module: The module, or what `torch.compile` returned for it.
        arguments: Those that its class was called with, by name. They are saved with the weights, so that commands
            can build the module again. Default: the module's attribute `config`, or none if its class needs none.
    """

    def __init__(self, module: nn.Module, arguments: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self.module: nn.Module = getattr(module, "_orig_mod", module)
        self.arguments = arguments
        self.leaves_weights_unused = True  # it may
        # What `torch.compile` returned has the same weights; PyTorch does not find a module inside a tuple.
        self._compiled = () if self.module is module else (module,)
        parameters = inspect.signature(self.module.forward).parameters
        self.options = [name for name in _PROBED_WITH if name in parameters]
        deterministic = {name: _PROBED_WITH[name] for name in self.options}
        channels = getattr(self.module, "in_channels", 3)
        self.sizes = ClipSizes(self.module, partial(_reconstruct, options=deterministic), channels)
        self._take_methods()

    def _take_methods(self) -> None:
        for name in _METHODS:
            method = getattr(self.module, name, None)
            if method is not None:
                # Not by `setattr`, which would register a layer that has the name of a method.
                self.__dict__[name] = method

    def forward(
        self,
        video: Video,
        sample_posterior: bool = True,
        generator: Generators = None,
        posterior: Posterior | None = None,
    ) -> Reconstruction:
        """Return the reconstruction, the auxiliary losses, and the latent if the module returns it.

        Args:
            video: `(B, C, T, H, W)` in [-1, 1].
            sample_posterior: Passed to the module if it has such an argument, as the next.
            generator: One generator, or one for each clip; PyTorch's default generator if None.
            posterior: None: the module's `forward` encodes.

        Raises:
            TypeError: The module's output is not a video, with or without a dict of losses and a latent.
            ValueError: The reconstruction's shape differs from the video's, or a posterior is passed.
        """
        if posterior is not None:
            remedy = "Leave it out: the module's `forward` encodes."
            raise argument_error(
                "posterior", "None for a custom module", describe(posterior), remedy
            )
        module = self._compiled[0] if self._compiled else self.module
        options: dict[str, Any] = {}
        if "sample_posterior" in self.options:
            options["sample_posterior"] = sample_posterior
        if "generator" in self.options:
            options["generator"] = generator
        result = _as_reconstruction(module(video, **options))
        if result.video.shape != video.shape:
            contract = f"of the video's shape {tuple(video.shape)}"
            raise argument_error(
                "the reconstruction", contract, result.video, "Use clips of a size that it accepts."
            )
        return result

    @property
    def first_frame_apart(self) -> bool:
        """Whether the first latent frame encodes the first frame alone: the module's attribute, or true."""
        return bool(getattr(self.module, "first_frame_apart", True))

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the last layer, where the adaptive weight compares gradients."""
        weight = getattr(self.module, "last_layer", None)
        return super().last_layer if weight is None else weight

    def latent_grid(self, num_frames: int, height: int, width: int) -> LatentGrid | None:
        """Return how the latent divides clips: as that of the module's linear autoencoder, if it has one.

        Args:
            num_frames: Frames of the clips.
            height: Height in pixels.
            width: Width in pixels.
        """
        method = getattr(self.module, "linear_autoencoder", None)
        linear: LinearAutoencoder | None = None
        if method is not None:
            linear = method(num_frames, height, width)
        return None if linear is None else linear.grid

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the module's weights, LoRA adapters merged, with its own `save_pretrained` if it has one."""
        module: Any = merge_low_rank(self.module)
        if hasattr(module, "save_pretrained"):
            module.save_pretrained(folder)
        else:
            save_model(module, {}, folder)
        file = Path(folder) / CONFIG_FILE
        if not file.parent.is_dir():
            return
        config = read_json(file) if file.is_file() else {}
        config[CLASS_PATH_KEY] = origin_of(module)
        config[ARGUMENTS_KEY] = self.saved_arguments()
        write_json(file, config)

    def load_weights(self, folder: str | PathLike[str]) -> Self:
        """Copy the weights in `folder` into the module, with its own `load_weights` if it has one; return the model."""
        module: Any = self.module
        if hasattr(module, "load_weights"):
            module.load_weights(folder)
        else:
            load_weights(module, folder)
        return self

    def saved_arguments(self) -> dict[str, Any] | None:
        """Return the arguments of the module's class, as JSON has them; None if they are not known."""
        arguments = self.arguments
        if arguments is None:
            arguments = getattr(self.module, "config", None)
        if not isinstance(arguments, Mapping):
            return {} if needs_no_arguments(type(self.module)) else None
        try:
            plain = json.loads(json.dumps(dict(arguments)))
        except (TypeError, ValueError):
            return None
        return {name: value for name, value in plain.items() if not name.startswith("_")}

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_compiled": ()}  # a copy is not compiled
        for name in _METHODS:  # those of a scripted module cannot be copied
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._take_methods()


def needs_no_arguments(cls: type[nn.Module]) -> bool:
    """Return whether a class can be called without arguments."""
    for parameter in inspect.signature(cls).parameters.values():
        is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not is_variadic:
            return False
    return True


def _reconstruct(module: nn.Module, video: Video, options: dict[str, Any]) -> Video:
    return _as_reconstruction(module(video, **options)).video


def _as_reconstruction(output: object) -> Reconstruction:
    """Return the output of a module's `forward`: a video, or a tuple of a video, losses and perhaps a latent.

    Raises:
        OutputError: It is something else.
    """
    video: object = output
    losses: object = {}
    latent: object = None
    weight: Tensor | None = None
    target: Video | None = None
    if isinstance(output, Reconstruction):
        video, losses, latent, weight, target = output
    elif isinstance(output, tuple) and len(output) == 2:
        video, losses = output
    elif isinstance(output, tuple) and len(output) == 3:
        video, losses, latent = output
    aux: dict[str, AuxLoss] = {}
    are_losses = isinstance(losses, Mapping)
    if isinstance(losses, Mapping):
        for name, loss in losses.items():
            if isinstance(loss, Tensor):
                aux[name] = loss.float()
            elif hasattr(loss, "mean") and hasattr(loss, "logvar"):
                aux[name] = Moments(at_least_float32(loss.mean), at_least_float32(loss.logvar))
            else:
                are_losses = False
    if not isinstance(video, Tensor) or not are_losses or not isinstance(latent, Tensor | None):
        remedy = "Return the reconstruction, (reconstruction, {name: loss}) or (reconstruction, {name: loss}, latent)."
        contract = "a video, or a tuple of a video, a dict of losses and a latent"
        # Not a `ValueError`, which means an unsupported size while sizes are probed.
        raise argument_error("the module's output", contract, describe(output), remedy, OutputError)
    if latent is not None:
        latent = at_least_float32(latent)
    return Reconstruction(video=video, aux=aux, latent=latent, weight=weight, target=target)
