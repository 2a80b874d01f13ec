"""Any module of one's own as an autoencoder that can be trained: it needs a `forward`, and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import Tensor, nn

from telecine.autoencoders.lora import merged
from telecine.autoencoders.pretrained import load_weights, save_model
from telecine.autoencoders.probe import ClipSizes, find_last_layer
from telecine.autoencoders.protocol import Reconstruction, VideoAutoencoder
from telecine.randomness import Generators
from telecine.shapes import Video, argument_error, describe


def own_autoencoder(module: nn.Module) -> nn.Module:
    """Return `module` itself if it has all that a `VideoAutoencoder` has, else an `OwnAutoencoder` of it.

    A model of a class of diffusers, whose `forward` returns something else, becomes a `DiffusersAutoencoder`.
    """
    if isinstance(module, VideoAutoencoder):
        return module
    if type(module).__module__.startswith("diffusers."):
        from telecine.autoencoders.diffusers import DiffusersAutoencoder

        return DiffusersAutoencoder(module)
    return OwnAutoencoder(module)


class OwnAutoencoder(nn.Module):
    """A module that reconstructs video, with what training needs around it.

    Its `forward(video)` maps `(B, 3, T, H, W)` in [-1, 1] to a reconstruction of the same shape, near that range but
    not clamped; or to a pair of it and a dict of auxiliary losses by name, 0-d tensors such as `{"kl_loss": ...}`. If
    it takes `sample_posterior` or `generator` (one for each clip), it is given these: the first is false in
    validation, and with the second a run draws the same noise on one device as on many.

    Where the module has them, used are `last_layer` (a weight, for the adaptive weight; by default that of the layer
    which computes last), `check_clip(num_frames, height, width)` (raises a `ValueError` for a size that it does not
    reproduce; by default sizes are tried out), `save_pretrained(folder)` and `load_weights(folder)` (by default its
    state dict as safetensors), and `enable_gradient_checkpointing()`.

    Args:
        module: The autoencoder.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module
        self.options = {"sample_posterior", "generator"} & set(inspect.signature(module.forward).parameters)
        self.sizes = ClipSizes(_Passage(module, self.options), module)

    def forward(self, video: Video, sample_posterior: bool = True, generator: Generators = None) -> Reconstruction:
        """Return the reconstruction and the auxiliary losses.

        Raises:
            TypeError: The module returns something else.
            ValueError: It returns another shape.
        """
        given = {"sample_posterior": sample_posterior, "generator": generator}
        result = as_reconstruction(self.module(video, **{name: given[name] for name in self.options}))
        if result.video.shape != video.shape:
            remedy = "Give it clips of a size that it reproduces."
            raise argument_error(
                "the reconstruction", f"of the video's shape {tuple(video.shape)}", result.video, remedy
            )
        return result

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight at which the adaptive weight compares gradients."""
        weight = getattr(self.module, "last_layer", None)
        return self.module.get_parameter(find_last_layer(self.sizes)) if weight is None else weight

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` unless the module reproduces clips of this size."""
        check = getattr(self.module, "check_clip", self.sizes.check)
        check(num_frames, height, width)

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest (frames, rows, columns) that the module reproduces and that cover these."""
        cover = getattr(self.module, "covering_clip", self.sizes.cover)
        return cover(num_frames, height, width)

    def enable_gradient_checkpointing(self) -> None:
        """Let the module keep less for the backward.

        Raises:
            ValueError: It has no method of this name.
        """
        if not hasattr(self.module, "enable_gradient_checkpointing"):
            remedy = "Give it a method `enable_gradient_checkpointing`, or train without."
            got = f"a {type(self.module).__name__}"
            raise argument_error("gradient checkpointing", "off for a module that has no way to", got, remedy)
        self.module.enable_gradient_checkpointing()

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the module's weights into `folder`, low-rank updates merged, in its own way if it has one."""
        module = merged(self.module)
        if hasattr(module, "save_pretrained"):
            module.save_pretrained(folder)
        else:
            save_model(module, {}, folder)

    def load_weights(self, folder: str | PathLike[str]) -> None:
        """Copy the weights in `folder` into the module, in its own way if it has one.

        Raises:
            FileNotFoundError: There are none.
            ValueError: They are not the module's.
        """
        if hasattr(self.module, "load_weights"):
            self.module.load_weights(folder)
        else:
            load_weights(self.module, folder)


class _Passage(nn.Module):
    """The way through a module without chance, for its sizes to be tried out."""

    def __init__(self, module: nn.Module, options: set[str]) -> None:
        super().__init__()
        self.module = module
        self.options = {"sample_posterior": False} if "sample_posterior" in options else {}

    def forward(self, video: Video) -> Video:
        return as_reconstruction(self.module(video, **self.options)).video


def as_reconstruction(result: Any) -> Reconstruction:
    """Return what a module's `forward` returned, a video or a pair of a video and a dict of losses.

    Raises:
        TypeError: If it is neither; a `ValueError` would pass for the refusal of a clip's size.
    """
    video, losses = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if not isinstance(video, Tensor) or not isinstance(losses, Mapping):
        remedy = "Return the reconstruction, or (reconstruction, {name: loss})."
        contract = "a video, or a video and a dict"
        raise argument_error("the module's output", contract, describe(result), remedy, TypeError)
    return Reconstruction(video=video, aux={name: loss.float() for name, loss in losses.items()})
