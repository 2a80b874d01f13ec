"""A small causal decoder for the latents of another autoencoder, its teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import astuple, replace
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from telecine.base.checks import argument_error, describe
from telecine.base.frozen import Frozen
from telecine.base.shapes import Video
from telecine.base.yaml_files import read_yaml
from telecine.models.bottleneck import Bottleneck
from telecine.models.causal import COMPRESSION, CausalAutoencoder, Decoder
from telecine.models.interface import LatentAutoencoder, VideoAutoencoder
from telecine.models.latent import NORMALISATION_KEYS, ChannelMoments, Normalisation, Posterior
from telecine.models.linear import fit_decoder
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
from telecine.runs.settings import read_saved_settings
from telecine.settings import CausalVAEConfig
from telecine.settings.autoencoder import with_presets
from telecine.settings.validate import validate

# The sizes of `CausalVAEConfig` that are meant for decoders.
SIZES = ("tiny", "small")
_LIKE_TEACHER = "teacher"
_LARGEST_PATCH, _LARGEST_MULTIPLIER = 4, 4
DECODER_KEY, TEACHER_KEY, DIGEST_KEY = "decoder", "teacher", "teacher_encoder_sha256"

LoadTeacher = Callable[[str], VideoAutoencoder]


class Student(LatentAutoencoder):
    """The frozen encoder of a teacher; a subclass has the decoder that is trained for its latents.

    `digest` is that of the encoder. The teacher is in no checkpoint: a model that was loaded decodes without it, and
    `load` is called with its name when the first video is encoded.
    """

    teacher_key: ClassVar[str] = TEACHER_KEY

    def __init__(self, teacher: str, load: LoadTeacher, digest: str) -> None:
        super().__init__()
        self.teacher, self.digest, self._load = teacher, digest, load
        self._frozen: Frozen[VideoAutoencoder] | None = None

    @staticmethod
    def public_name(teacher: str) -> str:
        """Return the name of a teacher for a model that others may get: the last part of an absolute path."""
        return Path(teacher).name if Path(teacher).is_absolute() else teacher

    @property
    def latent_model(self) -> VideoAutoencoder:
        """The teacher, which is loaded if needed; another encoder than when the student trained is a `ValueError`."""
        if self._frozen is None:
            loaded = self.load_teacher()
            if isinstance(loaded, Student) or digest_of_encoder(loaded) != self.digest:
                got = f"{self.teacher}, whose encoder differs"
                remedy = f"Set `{self.teacher_key}` in its config.json to that one."
                raise argument_error("teacher", "the teacher that the student was trained with", got, remedy)
            self._frozen = Frozen(loaded).to(self.last_layer.device)
        return self._frozen.module

    def load_teacher(self) -> VideoAutoencoder:
        """Return the model of the teacher's name; raise a `FileNotFoundError` if there is none."""
        try:
            return self._load(self.teacher)
        except FileNotFoundError as error:
            got = f"{self.teacher!r}, which does not exist"
            remedy = f"Put it beside the student's folder, or set `{self.teacher_key}` in a copy's config.json."
            raise argument_error("teacher", "a folder or a Hub name", got, remedy, FileNotFoundError) from error

    def losses_of(self, posterior: Posterior) -> dict[str, Tensor]:
        """Return nothing, as the encoder is frozen."""
        return {}

    @torch.no_grad()
    def encode(self, video: Video) -> Posterior:
        """Return the teacher's posterior, without a graph."""
        return self.latent_model.encode(video)

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` unless the teacher accepts clips of this size."""
        self.latent_model.check_clip(num_frames, height, width)

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest (frames, height, width) that the teacher accepts and that is at least this large."""
        return self.latent_model.covering_clip(num_frames, height, width)

    def load_weights(self, folder: str | PathLike[str]) -> None:
        """Copy the trained weights that `save_pretrained` wrote into this model."""
        load_weights(self, folder)

    @property
    def codebook(self) -> Bottleneck | None:
        """The teacher's."""
        return self.latent_model.codebook

    def __getstate__(self) -> dict[str, Any]:
        # A copy, from which checkpoints are written, is without the teacher.
        modules = {name: module for name, module in self._modules.items() if name not in ("_frozen", "imitated")}
        return {**self.__dict__, "_modules": modules, "_frozen": None, "imitated": None}


class StudentAutoencoder(Student, CausalAutoencoder):
    """The frozen encoder of a teacher, and a trained decoder of the kind of `CausalVAE`, see `student_config`.

    The latents are those of the teacher: `decode` takes a generator's latents for the teacher's decoder. Saved models
    hold the decoder, the name of the teacher (of a local one without its path) and a digest of its encoder.
    """

    def __init__(
        self, config: CausalVAEConfig, teacher: str, load: LoadTeacher, *, digest: str, normalisation: Normalisation
    ) -> None:
        super().__init__(teacher, load, digest)
        self.normalisation = normalisation
        self.set_decoder(config)

    @classmethod
    def of(
        cls, loaded: VideoAutoencoder, teacher: str, load: LoadTeacher, config: CausalVAEConfig
    ) -> StudentAutoencoder:
        """Return a new student of a teacher that is loaded and will be frozen in place; other arguments as above."""
        if isinstance(loaded, Student):
            teacher = loaded.teacher
        digest, normalisation = digest_of_encoder(loaded.latent_model), loaded.latent_normalisation()
        student = cls(config, teacher, load, digest=digest, normalisation=normalisation)
        student._frozen = Frozen(loaded.latent_model)
        return student

    def imitate(self, teacher: CausalAutoencoder) -> bool:
        """Train on the samples of a teacher that generates, from the same noise, instead of on the videos.

        The decoder starts from the teacher's weights if it has the same; return whether it does.
        """
        self.imitated = Frozen(teacher)
        weights, predictions = teacher.decoder.state_dict(), {each.config.flow.prediction for each in (self, teacher)}
        if len(predictions) > 1 or mismatches(self.decoder.state_dict(), weights):
            return False
        self.decoder.load_state_dict(weights)
        return True

    @torch.no_grad()
    def start_from(self, videos: Iterable[Video]) -> None:
        """Set the linear map to the best one for samples of the latents of clips, and scale the first layer to them."""
        moments, generator = ChannelMoments(), torch.Generator(self.last_layer.device).manual_seed(0)

        def pairs() -> Iterable[tuple[Tensor, Video]]:
            for video in videos:
                latent = self.encode(video.to(self.last_layer.device)).sample(generator)
                moments.add(latent)
                yield latent, video

        fit_decoder(self.decoder.linear, pairs())
        weight, bias = (self.decoder.network.get_parameter(f"0.conv.{name}") for name in ("weight", "bias"))
        mean, std = (weight.new_tensor(values).view(1, -1, 1, 1, 1) for values in astuple(moments.statistics()))
        weight.div_(std)
        bias.sub_((weight * mean).sum((1, 2, 3, 4)))

    def latent_normalisation(self) -> Normalisation:
        """Return the teacher's."""
        return self.normalisation

    def to_json_string(self) -> str:
        """Return the decoder's settings and the digest of the teacher's encoder, which a run keeps when it resumes."""
        return json.dumps({CLASS_KEY: type(self).__name__, DECODER_KEY: self.config.saved(), DIGEST_KEY: self.digest})

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `config.json` and the decoder's weights atomically, low-rank updates merged into the weights."""
        config = {DECODER_KEY: self.config.saved(), TEACHER_KEY: self.public_name(self.teacher)}
        save_model(merge_low_rank(self), {**config, DIGEST_KEY: self.digest, **self.normalisation}, folder)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], load: LoadTeacher) -> StudentAutoencoder:
        """Return the model that `save_pretrained` wrote, on the CPU; the teacher is not loaded yet."""
        config, teacher, others = _read_student(Path(folder))
        check_num_weights(lambda: Decoder.of(config), str(folder), folder)
        model = cls(config, teacher, load, **others)
        load_weights(model, folder)
        return model

    @classmethod
    def without_weights(cls, folder: str | PathLike[str], build: LoadTeacher) -> StudentAutoencoder:
        """Return the model in a folder with random weights and the teacher of `build`, whatever that one's weights."""
        config, teacher, others = _read_student(Path(folder))
        check_num_weights(lambda: Decoder.of(config), str(folder))
        model = cls(config, teacher, build, **others)
        model._frozen = Frozen(model.load_teacher())
        return model


def _read_student(folder: Path) -> tuple[CausalVAEConfig, str, dict[str, Any]]:
    known = {DECODER_KEY: (dict, "a group of settings"), TEACHER_KEY: (str, "a text"), DIGEST_KEY: (str, "a text")}
    values = load_config(folder, StudentAutoencoder.__name__, [*known, *NORMALISATION_KEYS])
    for key, (kind, contract) in known.items():
        if not isinstance(values.get(key), kind):
            got = describe(values[key]) if key in values else "none"
            raise argument_error(f"{key} in {folder / CONFIG_FILE}", contract, got, "Copy it again.")
    settings, teacher, digest = (values.pop(key) for key in known)
    config = validate(CausalVAEConfig, settings, f"{DECODER_KEY}.")
    # The teacher is where the run's settings say, or beside the student; there, a checkpoint has the student itself.
    path, beside = read_saved_settings(folder.parent).get(TEACHER_KEY), folder.parent / teacher
    is_beside = beside.is_dir() and not (teacher in ("model", "ema") and Checkpoints.is_checkpoint(folder.parent))
    if isinstance(path, str) and Student.public_name(path) == teacher and (Path(path).exists() or not is_beside):
        teacher = path
    elif is_beside:
        teacher = str(beside)
    return config, teacher, {"digest": digest, "normalisation": values}


def student_config(size: str, teacher: VideoAutoencoder, clip: tuple[int, int, int]) -> CausalVAEConfig:
    """Return the settings of a student's decoder, with the compression and the channels of its teacher.

    `size` is one of `SIZES`, "teacher" for the teacher's own, or a YAML or JSON file with settings of
    `CausalVAEConfig`; `clip` is the clips' size.
    """
    teacher.check_clip(*clip)
    if size == _LIKE_TEACHER:
        if not isinstance(teacher, CausalAutoencoder):
            got = f"that of a {type(teacher).__name__}"
            raise argument_error("student", '"teacher" for a decoder of telecine', got, f"Use {SIZES[-1]}.")
        return replace(teacher.config, bottleneck="gaussian")
    of_teacher = _compression_of(teacher, clip)
    settings = _read_decoder(size)
    for name, value in of_teacher.items():
        if (found := settings.get(name, value)) != value:
            raise argument_error(f"{name} of {size}", f"{value}, the teacher's", describe(found), "Leave it out.")
    if (bottleneck := settings.get("bottleneck", "gaussian")) != "gaussian":
        remedy = "Train it with `telecine train`."
        raise argument_error(f"bottleneck of {size}", "left out for a student", repr(bottleneck), remedy)
    patch = settings.get("patch_size", min(of_teacher["spatial_compression"], _LARGEST_PATCH))
    is_valid = isinstance(patch, int) and patch > 0  # else `validate` raises an error
    num_levels = (of_teacher["spatial_compression"] // patch).bit_length() or 1 if is_valid else 1
    multipliers = [min(2**level, _LARGEST_MULTIPLIER) for level in range(num_levels)]
    values = {"patch_size": patch, "channel_multipliers": multipliers, **settings, **of_teacher}
    return validate(CausalVAEConfig, values)


def _compression_of(teacher: VideoAutoencoder, clip: tuple[int, int, int]) -> dict[str, int]:
    # An image does not show the frames of a latent frame. Clips have to show what clips of twice the length show.
    clip = clip if clip[0] > 1 else teacher.covering_clip(9, *clip[1:])
    linear = teacher.linear_autoencoder(*clip)
    longer = teacher.linear_autoencoder(*teacher.covering_clip(2 * clip[0] - 1, *clip[1:]))
    found = [f"{each.encoder.time} x {each.encoder.space} x {each.encoder.space}" for each in (linear, longer) if each]
    if linear is None or found[1:] != found[:1] or linear.encoder.space & (linear.encoder.space - 1):
        got = ", then ".join(dict.fromkeys(found)) or "another one"
        contract = "an autoencoder that makes a latent frame of the first frame, or none, and of every n others"
        contract += ", in clips of any length, with positions of 1, 2, 4, ... pixels squared"
        raise argument_error("teacher", contract, got, "`telecine train --trainable.weights decoder` trains its own.")
    maps = linear.encoder
    values = maps.time, maps.space, maps.rest.out_features, teacher.in_channels, maps.first is not None
    return dict(zip(COMPRESSION, values, strict=True))


def _read_decoder(size: str) -> dict[str, Any]:
    if size in SIZES:
        return with_presets({"size": size})
    if not Path(size).is_file():
        contract = f"one of {', '.join(SIZES)}, or a YAML or JSON file, or {_LIKE_TEACHER}"
        raise argument_error("student", contract, repr(size), "Check the spelling.", FileNotFoundError)
    return with_presets(read_yaml(Path(size)) or {})
