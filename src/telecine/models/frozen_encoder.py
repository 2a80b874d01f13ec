"""Models with the frozen encoder of another autoencoder, whose latents they are trained on."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from typing_extensions import Self

from telecine.base.checks import argument_error
from telecine.base.frozen import Frozen, FrozenModule
from telecine.base.shapes import Video
from telecine.losses import AuxLosses
from telecine.models.bottleneck import Bottleneck
from telecine.models.interface import VideoAutoencoder
from telecine.models.latent import (
    Posterior,
)
from telecine.models.latent_autoencoder import LatentAutoencoder
from telecine.models.pretrained import (
    digest_of_encoder,
    load_weights,
)
from telecine.models.stream import StreamEncoder

TEACHER_KEY = "teacher"
"""Key of a student's `config.json`: the name of its teacher."""
LoadTeacher = Callable[[str], VideoAutoencoder]
"""From the name of a teacher to its model."""


def folder_of_teacher(folder: Path, teacher: str) -> Path | None:
    """Return where the teacher of a saved model is: at its path from there, or beside it, if one of both was moved.

    Args:
        folder: The folder of the model.
        teacher: What its configuration says, see `TeacherEncoderModel.teacher_from`.

    Returns:
        The absolute path of an existing folder, or None: the teacher is on the Hub, or missing.
    """
    path = (folder.parent / teacher).resolve()
    if path.is_dir():
        return path
    beside = folder.parent.resolve() / path.name
    is_local = teacher.startswith(".")
    return beside if is_local and beside.is_dir() else None


class FrozenEncoderModel(LatentAutoencoder):
    """The frozen encoder of another autoencoder, `encoder_model`; a subclass has what is trained on its latents."""

    @property
    @abstractmethod
    def encoder_model(self) -> VideoAutoencoder:
        """The autoencoder whose encoder is frozen."""

    def losses_of(self, posterior: Posterior) -> AuxLosses:
        """Return no losses, as the encoder is frozen."""
        return {}

    @torch.no_grad()
    def encode(self, video: Video) -> Posterior:
        """Return the posterior of the frozen encoder, without a graph."""
        return self.encoder_model.encode(video)

    def stream_encoder(self, num_frames: int | None = None) -> StreamEncoder:
        """Return a stream of the frozen encoder."""
        return self.encoder_model.stream_encoder(num_frames)

    @property
    def streams(self) -> bool:
        """Whether the frozen encoder and this decoder keep frames between chunks."""
        return super().streams and self.encoder_model.streams

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Check that the frozen encoder accepts clips of this size.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.
        """
        self.encoder_model.check_clip(num_frames, height, width)

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest (frames, height, width) that the frozen encoder accepts and that is at least this large.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.
        """
        return self.encoder_model.covering_clip(num_frames, height, width)

    def load_weights(self, folder: str | PathLike[str]) -> Self:
        """Copy the trained weights that `save_pretrained` wrote into this model, and return it."""
        load_weights(self, folder)
        return self

    @property
    def codebook(self) -> Bottleneck | None:
        """That of the frozen encoder."""
        return self.encoder_model.codebook


class TeacherEncoderModel(FrozenEncoderModel):
    """The frozen encoder of a named teacher; a subclass has the decoder that is trained for its latents.

    The teacher is in no checkpoint: a loaded student decodes without it, and loads it to encode the first video.

    Args:
        teacher: The teacher's name.
        load: Called with this name when the teacher is needed.
        digest: That of the teacher's encoder, see `digest_of_encoder`.
    """

    teacher_key: ClassVar[str] = TEACHER_KEY

    def __init__(self, teacher: str, load: LoadTeacher, digest: str) -> None:
        super().__init__()
        self.teacher = teacher
        self.digest = digest
        self._load = load
        self._frozen: FrozenModule[VideoAutoencoder] | None = None

    def teacher_from(self, folder: str | PathLike[str]) -> str:
        """Return what the configuration of this model says about its teacher: a Hub name, or a path from the folder.

        Others may get the model, so there is no absolute path: the name of a folder beside the model's, or a path that
        begins with "./" or "../".

        Args:
            folder: Where the model is saved.
        """
        if not Path(self.teacher).is_absolute():
            return self.teacher
        parent = Path(folder).resolve().parent
        path = Path(os.path.relpath(Path(self.teacher).resolve(), parent)).as_posix()
        is_beside = "/" not in path
        return path if is_beside or path.startswith("..") else f"./{path}"

    @property
    def encoder_model(self) -> VideoAutoencoder:
        """The teacher, which is loaded if needed.

        Raises:
            FileNotFoundError: There is no such model.
            ValueError: Its encoder is another one than when the student was trained.
        """
        if self._frozen is None:
            loaded = self.load_teacher()
            if isinstance(loaded, TeacherEncoderModel) or digest_of_encoder(loaded) != self.digest:
                got = f"{self.teacher}, whose encoder differs"
                remedy = f"Set `{self.teacher_key}` in its config.json to that one."
                raise argument_error(
                    "teacher", "the teacher that the student was trained with", got, remedy
                )
            self._frozen = FrozenModule(loaded).to(self.last_layer.device)
        return self._frozen.in_eval_mode()

    def load_teacher(self) -> VideoAutoencoder:
        """Return the model of the teacher's name.

        Raises:
            FileNotFoundError: There is none.
        """
        try:
            return self._load(self.teacher)
        except FileNotFoundError as error:
            got = f"{self.teacher!r}, which does not exist"
            remedy = f"Put it beside the student's folder, or set `{self.teacher_key}` in a copy's config.json."
            raise argument_error(
                "teacher", "a folder or a Hub name", got, remedy, FileNotFoundError
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no frozen network. It loads the teacher again if it has to encode.
        modules = dict(self._modules)
        for name, module in modules.items():
            if isinstance(module, Frozen):
                modules[name] = None
        return {**self.__dict__, "_modules": modules}
