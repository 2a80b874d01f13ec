"""Any video autoencoder of diffusers as a `VideoAutoencoder`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telecine.autoencoders.diffusers.checkpointing import enable_checked
from telecine.autoencoders.diffusers.families import family_of, prepare_for_training
from telecine.autoencoders.diffusers.loading import build_module, copy_weights, load_module
from telecine.autoencoders.diffusers.passage import Passage, clear_caches, decode, encode
from telecine.autoencoders.diffusers.posterior import LatentPosterior, auxiliary_losses
from telecine.autoencoders.lora import merged
from telecine.autoencoders.pretrained import writing_weights
from telecine.autoencoders.probe import ClipSizes, find_last_layer
from telecine.autoencoders.protocol import Reconstruction
from telecine.randomness import Generators
from telecine.shapes import Video, argument_error, check_video


class DiffusersAutoencoder(nn.Module):
    """A diffusers autoencoder that can be trained: encode, sample and decode in one `forward`, with all gradients.

    Video is `(B, 3, T, H, W)` in [-1, 1] on both sides whatever the class works on, and the output is not clamped.
    Tiles and slices, which change outputs and gradients, are off. Which sizes are accepted and which layer is the last
    is found by passing shapes through the model. Image autoencoders take a clip frame by frame.

    A clip of one frame leaves the weights of some classes (Wan, Qwen, Mochi) without a gradient, those that mix frames;
    a data-parallel wrapper has to be told so.

    Args:
        module: the diffusers model, or any module whose `encode` and `decode` are called as theirs are; it is put into
            training mode. Its weights and buffers are this module's, under `module.`.

    Raises:
        TypeError: the model lacks `encode` or `decode`.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.family = family_of(module)
        prepare_for_training(module)
        # `from_pretrained` of diffusers returns models in eval mode.
        self.module: Any = module.train()
        self.sizes = ClipSizes(Passage(module, self.family), module)
        self._last_layer = ""

    def forward(self, video: Video, sample_posterior: bool = True, generator: Generators = None) -> Reconstruction:
        """Encode, sample (or take the mode), decode.

        Returns:
            A reconstruction of the input's shape; and as `aux` `{"kl_loss": KL per latent element}`, a quantizer's
            losses, or nothing, as for Cosmos, KVAE and finite scalar quantization. The graph is kept.

        Raises:
            ValueError: the video is not `(B, 3, T, H, W)`, of a size `check_clip` refuses, or comes back in another.
        """
        posterior = self.encode(video)
        latent = posterior.sample(generator) if sample_posterior else posterior.mode()
        decoded, losses = decode(self.module, self.family, latent)
        if decoded.shape != video.shape:
            remedy = "This class reproduces small clips of this kind only; report it with its configuration."
            got = f"{tuple(decoded.shape)} from {type(self.module).__name__}"
            raise argument_error("the reconstruction", f"of the video's shape {tuple(video.shape)}", got, remedy)
        aux = {**auxiliary_losses(posterior), **losses}
        return Reconstruction(video=decoded, aux={name: loss.float() for name, loss in aux.items()})

    def encode(self, video: Video) -> LatentPosterior:
        """Return the posterior of `(B, 3, T, H, W)`, of a latent `(B, C, t, h, w)`, in float32 at least.

        Raises:
            ValueError: the video is not `(B, 3, T, H, W)` or of a size `check_clip` refuses.
        """
        check_video("video", video)
        if video.shape[1] != 3:
            raise argument_error("video", "RGB of shape (B, 3, T, H, W)", video, "Repeat a grey channel 3 times.")
        self.check_clip(*video.shape[2:])
        return encode(self.module, self.family, video)

    def decode(self, latent: Tensor) -> Video:
        """Return the video of a latent `(B, C, t, h, w)`, not clamped.

        Raises:
            ValueError: the latent has another number of axes.
        """
        check_video("latent", latent)
        return decode(self.module, self.family, latent).video

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's last layer, a convolution's or a linear one's, found by a decode of shapes."""
        if not self._last_layer:
            self._last_layer = find_last_layer(self.sizes)
        weight = self.module.get_parameter(self._last_layer)
        assert isinstance(weight, nn.Parameter)
        return weight

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` that names the nearest accepted value unless the model reproduces this size.

        What is asked first passes shapes through the model, which must not be sharded yet; later it is known.
        """
        self.sizes.check(num_frames, height, width)

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest (frames, rows, columns) that the model reproduces and that cover these.

        Raises:
            ValueError: the model takes no clip as long, as one for images.
        """
        return self.sizes.cover(num_frames, height, width)

    def enable_gradient_checkpointing(self) -> None:
        """Keep only the outputs of the model's blocks and compute their inside again in the backward.

        Gradients with and without are compared once, on a tiny clip: AutoencoderKLKVAEVideo's are silently wrong.

        Raises:
            ValueError: the class refuses, fails, or computes other gradients; checkpointing is off then.
        """
        enable_checked(self.module, self.sizes)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the configuration and the weights, low-rank updates merged, as diffusers loads them by itself.

        Raises:
            OSError: they cannot be written.
        """
        clear_caches(self.module)
        with writing_weights(Path(folder)):
            merged(self.module).save_pretrained(folder)

    def load_weights(self, folder: str | PathLike[str]) -> None:
        """Copy the weights of a folder into this model, which keeps its device and type.

        Raises:
            ValueError: they are another configuration's (the message names what differs), or not there.
        """
        copy_weights(self.module, folder)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | PathLike[str],
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> DiffusersAutoencoder:
        """Return the model in a folder or of a hub's name, on the CPU, in training mode.

        Args:
            name_or_folder: a folder that diffusers wrote, or a name such as "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"; of
                a whole pipeline its "vae" is taken.
            subfolder: where in it the model lies.
            revision: the hub's branch, tag or commit.
            dtype: type of the weights. Train float32 ones and let autocast lower the precision: small updates are lost
                in half-precision weights.

        Raises:
            ValueError: there is no configuration, its class is unknown, or weights are missing.
        """
        return cls(load_module(name_or_folder, subfolder=subfolder, revision=revision, dtype=dtype))

    @classmethod
    def from_config(cls, config: str | PathLike[str] | Mapping[str, Any]) -> DiffusersAutoencoder:
        """Return a model with random weights, to train from scratch.

        Args:
            config: a `config.json` as diffusers writes it, its folder, or its values: `_class_name` and the class's
                arguments.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the class is unknown or an argument is not its own; the message names the nearest.
        """
        return cls(build_module(config))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of; what a class caches are tensors of the graph, which cannot be copied."""
        clear_caches(self.module)
        return self.__dict__
