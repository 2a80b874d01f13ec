"""A small causal decoder for the latents of another autoencoder, its teacher."""

from __future__ import annotations

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from telecine.base.checks import argument_error, describe
from telecine.base.frozen import FrozenModule
from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.causal_networks import build_decoder
from telecine.models.frozen_encoder import (
    TEACHER_KEY,
    LoadTeacher,
    TeacherEncoderModel,
    folder_of_teacher,
)
from telecine.models.interface import Reconstruction, VideoAutoencoder
from telecine.models.latent import (
    NORMALISATION_KEYS,
    ChannelMoments,
    Normalisation,
)
from telecine.models.linear import LatentFit
from telecine.models.lora import merge_low_rank
from telecine.models.pretrained import (
    CLASS_KEY,
    CONFIG_FILE,
    check_num_weights,
    digest_of_encoder,
    load_config,
    load_weights,
    mismatches,
    save_model,
)
from telecine.runs.checkpoints import Checkpoints
from telecine.runs.saved_settings import read_saved_settings
from telecine.settings import CausalVAEConfig
from telecine.settings.errors import validate
from telecine.settings.upgrade import upgrade_autoencoder

# Keys of `config.json`.
DECODER_KEY = "decoder"
DIGEST_KEY = "teacher_encoder_sha256"


class StudentAutoencoder(TeacherEncoderModel, CausalAutoencoder):
    """The frozen encoder of a teacher, and a trained decoder of the kind of `CausalVAE`, see `student_config`.

    It has the teacher's latents: `decode` takes a generator's latents for the teacher's decoder. Saved models
    hold the decoder, the name of the teacher (of a local one without its path) and a digest of its encoder.

    Args:
        config: The architecture of the decoder.
        teacher: The teacher's name.
        load: Called with this name when the teacher is needed.
        digest: That of the teacher's encoder.
        normalisation: The teacher's numbers that normalise the latent.
    """

    def __init__(
        self,
        config: CausalVAEConfig,
        teacher: str,
        load: LoadTeacher,
        *,
        digest: str,
        normalisation: Normalisation,
    ) -> None:
        super().__init__(teacher, load, digest)
        self.normalisation = normalisation
        self.imitated: FrozenModule[CausalAutoencoder] | None = None
        self.set_decoder(config)

    @classmethod
    def of(
        cls, loaded: VideoAutoencoder, teacher: str, load: LoadTeacher, config: CausalVAEConfig
    ) -> StudentAutoencoder:
        """Return a new student.

        Args:
            loaded: The teacher, which is frozen in place. Of a student, its teacher is used.
            teacher: The teacher's name.
            load: Called with this name when a loaded student needs the teacher.
            config: The architecture of the decoder.
        """
        if isinstance(loaded, TeacherEncoderModel):
            teacher = loaded.teacher
        digest = digest_of_encoder(loaded.encoder_model)
        student = cls(
            config, teacher, load, digest=digest, normalisation=loaded.latent_normalisation()
        )
        student._frozen = FrozenModule(loaded.encoder_model)
        return student

    def imitate(self, teacher: CausalAutoencoder) -> bool:
        """Train on the samples of a teacher that generates, from the same noise, instead of on the videos.

        The decoder starts from the teacher's weights if it has the same.

        Returns:
            Whether it does.
        """
        self.imitated = FrozenModule(teacher)
        weights = teacher.decoder.state_dict()
        if self.config.flow.prediction != teacher.config.flow.prediction:
            return False
        if mismatches(self.decoder.state_dict(), weights):
            return False
        self.decoder.load_state_dict(weights)
        return True

    def training_output(
        self, latent: Tensor, video: Video, generator: Generators
    ) -> Reconstruction:
        """Add noise to each video at a random level and remove it; the target is the sample of an imitated teacher.

        Args:
            latent: `(B, latent_channels, k, h, w)`.
            video: The clean video, `(B, C, T, H, W)` in [-1, 1].
            generator: One generator, or one for each clip; PyTorch's default generator if None.
        """
        denoised = self._denoise_clips(latent, video, generator)
        target = None
        if self.imitated is not None:
            with torch.no_grad():
                sample = self.imitated.in_eval_mode().decode(latent, denoised.noise)
                target = at_least_float32(sample).clamp(*VALUE_RANGE)
        return Reconstruction(denoised.video, {}, weight=denoised.weight, target=target)

    @torch.no_grad()
    def fit_linear_to_latents(self, videos: Iterable[Video]) -> None:
        """Set the linear map to the best one for samples of the latents of clips, and scale the first layer to them."""
        device = self.last_layer.device
        generator = torch.Generator(device).manual_seed(0)
        moments = ChannelMoments()
        fit = LatentFit(self.decoder.linear)
        for video in videos:
            latent = self.encode(video.to(device)).sample(generator)
            moments.add(latent)
            fit.add(latent, video)
        fit.solve()
        statistics = moments.statistics()
        weight = self.decoder.network.get_parameter("0.conv.weight")
        bias = self.decoder.network.get_parameter("0.conv.bias")
        mean = weight.new_tensor(statistics.mean).view(1, -1, 1, 1, 1)
        std = weight.new_tensor(statistics.std).view(1, -1, 1, 1, 1)
        weight.div_(std)
        bias.sub_((weight * mean).sum((1, 2, 3, 4)))

    def latent_normalisation(self) -> Normalisation:
        """Return the numbers that normalise the teacher's latent, which is the student's, too."""
        return self.normalisation

    def to_json_string(self) -> str:
        """Return the decoder's settings and the digest of the teacher's encoder, which a run keeps when it resumes."""
        return json.dumps(
            {
                CLASS_KEY: type(self).__name__,
                DECODER_KEY: self.config.saved_values(),
                DIGEST_KEY: self.digest,
            }
        )

    def saved_config(self, folder: str | PathLike[str]) -> dict[str, Any]:
        """Return what `config.json` in a folder holds beside the name of the class."""
        return {
            DECODER_KEY: self.config.saved_values(),
            TEACHER_KEY: self.teacher_from(folder),
            DIGEST_KEY: self.digest,
            **self.normalisation,
        }

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `config.json` and the decoder's weights atomically, LoRA adapters merged into the weights."""
        save_model(merge_low_rank(self), self.saved_config(folder), folder)

    @classmethod
    def from_pretrained(
        cls, folder: str | PathLike[str], load: LoadTeacher, *, with_weights: bool = True
    ) -> StudentAutoencoder:
        """Return the model that `save_pretrained` wrote, on the CPU.

        Args:
            folder: Where it was saved.
            load: Called with the teacher's name when the teacher is needed: at once without weights.
            with_weights: Whether it has the saved weights. Otherwise only its configuration is read.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: The configuration is invalid, or the weights do not match it.
        """
        saved = _read_student(Path(folder))
        weights_folder = folder if with_weights else None
        check_num_weights(lambda: build_decoder(saved.config), str(folder), weights_folder)
        model = cls(
            saved.config,
            saved.teacher,
            load,
            digest=saved.digest,
            normalisation=saved.normalisation,
        )
        if with_weights:
            load_weights(model, folder)
        else:
            model._frozen = FrozenModule(model.load_teacher())
        return model


class _SavedStudent(NamedTuple):
    """What the configuration of a saved student holds."""

    config: CausalVAEConfig
    teacher: str
    digest: str
    normalisation: Normalisation


def _read_student(folder: Path) -> _SavedStudent:
    keys = [DECODER_KEY, TEACHER_KEY, DIGEST_KEY, *NORMALISATION_KEYS]
    values = load_config(folder, StudentAutoencoder.__name__, keys)
    file = folder / CONFIG_FILE
    _check_saved(values, DECODER_KEY, dict, "a group of settings", file)
    _check_saved(values, TEACHER_KEY, str, "a text", file)
    _check_saved(values, DIGEST_KEY, str, "a text", file)
    decoder = upgrade_autoencoder(values.pop(DECODER_KEY))
    config = validate(CausalVAEConfig, decoder, f"{DECODER_KEY}.")
    teacher = _find_teacher(folder, values.pop(TEACHER_KEY))
    digest = values.pop(DIGEST_KEY)
    return _SavedStudent(config, teacher, digest, normalisation=values)


def _check_saved(values: dict[str, Any], key: str, kind: type, contract: str, file: Path) -> None:
    if not isinstance(values.get(key), kind):
        got = describe(values[key]) if key in values else "none"
        raise argument_error(f"{key} in {file}", contract, got, "Copy it again.")


def _find_teacher(folder: Path, teacher: str) -> str:
    """Return the teacher of the student in a folder: a folder, the path in its run's settings, or the name.

    The folders `model` and `ema` of a checkpoint hold the student itself, so they are not searched for the teacher.
    """
    local = folder_of_teacher(folder, teacher)
    parent = folder.parent.resolve()
    if Checkpoints.is_checkpoint(parent) and local in (parent / "model", parent / "ema"):
        local = None
    if local is not None:
        return str(local)
    is_on_hub = "/" in teacher and not teacher.startswith(".")
    resolved = read_saved_settings(folder.parent).get("resolved")
    path = resolved.get("encoder") if isinstance(resolved, dict) else None
    # The settings may be those of another run, which the student was copied beside.
    if not is_on_hub and isinstance(path, str) and Path(path).name == Path(teacher).name:
        return path
    return teacher
