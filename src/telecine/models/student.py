"""A small causal decoder for the latents of another autoencoder, its teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from telecine.base.checks import argument_error, describe
from telecine.base.frozen import Frozen
from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.base.yaml_files import read_yaml
from telecine.models.bottleneck import Bottleneck
from telecine.models.causal import CausalAutoencoder, build_decoder
from telecine.models.interface import Reconstruction, VideoAutoencoder
from telecine.models.latent import (
    NORMALISATION_KEYS,
    AuxLosses,
    ChannelMoments,
    Normalisation,
    Posterior,
)
from telecine.models.latent_autoencoder import LatentAutoencoder
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
from telecine.models.stream import StreamEncoder
from telecine.runs.checkpoints import Checkpoints
from telecine.runs.saved_settings import read_saved_settings
from telecine.settings import CausalVAEConfig
from telecine.settings.autoencoder import with_older_flow, with_presets
from telecine.settings.validate import validate

# The sizes of `CausalVAEConfig` that are meant for decoders.
DECODER_SIZES = ("tiny", "small")
_LIKE_TEACHER = "teacher"
_LARGEST_PATCH = 4
_LARGEST_MULTIPLIER = 4
# The compression in time is read from clips of at least this length.
_FRAMES_OF_A_CLIP = 9
# Keys of `config.json`.
DECODER_KEY = "decoder"
TEACHER_KEY = "teacher"
DIGEST_KEY = "teacher_encoder_sha256"

LoadTeacher = Callable[[str], VideoAutoencoder]
"""From the name of a teacher to its model."""


class Student(LatentAutoencoder):
    """The frozen encoder of a teacher; a subclass has the decoder that is trained for its latents.

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
        self._frozen: Frozen[VideoAutoencoder] | None = None

    @staticmethod
    def public_name(teacher: str) -> str:
        """Return the name of a teacher for a model that others may get: the last part of an absolute path."""
        return Path(teacher).name if Path(teacher).is_absolute() else teacher

    @property
    def latent_model(self) -> VideoAutoencoder:
        """The teacher, which is loaded if needed.

        Raises:
            FileNotFoundError: There is no such model.
            ValueError: Its encoder is another one than when the student was trained.
        """
        if self._frozen is None:
            loaded = self.load_teacher()
            if isinstance(loaded, Student) or digest_of_encoder(loaded) != self.digest:
                got = f"{self.teacher}, whose encoder differs"
                remedy = f"Set `{self.teacher_key}` in its config.json to that one."
                raise argument_error(
                    "teacher", "the teacher that the student was trained with", got, remedy
                )
            self._frozen = Frozen(loaded).to(self.last_layer.device)
        return self._frozen.module

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

    def losses_of(self, posterior: Posterior) -> AuxLosses:
        """Return no losses, as the encoder is frozen."""
        return {}

    @torch.no_grad()
    def encode(self, video: Video) -> Posterior:
        """Return the teacher's posterior, without a graph."""
        return self.latent_model.encode(video)

    def stream_encoder(self, num_frames: int | None = None) -> StreamEncoder:
        """Return a stream of the teacher's encoder."""
        return self.latent_model.stream_encoder(num_frames)

    @property
    def streams(self) -> bool:
        """Whether the teacher's encoder and this decoder keep frames between chunks."""
        return super().streams and self.latent_model.streams

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Check that the teacher accepts clips of this size.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.
        """
        self.latent_model.check_clip(num_frames, height, width)

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest (frames, height, width) that the teacher accepts and that is at least this large.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.
        """
        return self.latent_model.covering_clip(num_frames, height, width)

    def load_weights(self, folder: str | PathLike[str]) -> Self:
        """Copy the trained weights that `save_pretrained` wrote into this model, and return it."""
        load_weights(self, folder)
        return self

    @property
    def codebook(self) -> Bottleneck | None:
        """The teacher's."""
        return self.latent_model.codebook

    def __getstate__(self) -> dict[str, Any]:
        # A copy, from which checkpoints are written, is without the teacher.
        modules = dict(self._modules)
        modules.pop("_frozen", None)
        return {**self.__dict__, "_modules": modules, "_frozen": None}


class StudentAutoencoder(Student, CausalAutoencoder):
    """The frozen encoder of a teacher, and a trained decoder of the kind of `CausalVAE`, see `student_config`.

    The latents are those of the teacher: `decode` takes a generator's latents for the teacher's decoder. Saved models
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
        self.imitated: Frozen[CausalAutoencoder] | None = None
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
        if isinstance(loaded, Student):
            teacher = loaded.teacher
        digest = digest_of_encoder(loaded.latent_model)
        student = cls(
            config, teacher, load, digest=digest, normalisation=loaded.latent_normalisation()
        )
        student._frozen = Frozen(loaded.latent_model)
        return student

    def imitate(self, teacher: CausalAutoencoder) -> bool:
        """Train on the samples of a teacher that generates, from the same noise, instead of on the videos.

        The decoder starts from the teacher's weights if it has the same.

        Returns:
            Whether it does.
        """
        self.imitated = Frozen(teacher)
        weights = teacher.decoder.state_dict()
        if self.config.flow.prediction != teacher.config.flow.prediction:
            return False
        if mismatches(self.decoder.state_dict(), weights):
            return False
        self.decoder.load_state_dict(weights)
        return True

    def denoise(self, latent: Tensor, video: Video, generator: Generators) -> Reconstruction:
        """Add noise to each video at a random level and remove it; the target is the sample of an imitated teacher.

        Args:
            latent: `(B, latent_channels, k, h, w)`.
            video: The clean video, `(B, C, T, H, W)` in [-1, 1].
            generator: One generator, or one for each clip; PyTorch's default generator if None.
        """
        denoised = self.denoised_clips(latent, video, generator)
        target = None
        if self.imitated is not None:
            with torch.no_grad():
                sample = self.imitated.module.decode(latent, denoised.noise)
                target = at_least_float32(sample).clamp(*VALUE_RANGE)
        return Reconstruction(denoised.video, {}, weight=denoised.weight, target=target)

    @torch.no_grad()
    def start_from(self, videos: Iterable[Video]) -> None:
        """Set the linear map to the best one for samples of the latents of clips, and scale the first layer to them."""
        moments = ChannelMoments()
        generator = torch.Generator(self.last_layer.device).manual_seed(0)

        def pairs() -> Iterable[tuple[Tensor, Video]]:
            for video in videos:
                latent = self.encode(video.to(self.last_layer.device)).sample(generator)
                moments.add(latent)
                yield latent, video

        fit_decoder(self.decoder.linear, pairs())
        statistics = moments.statistics()
        weight = self.decoder.network.get_parameter("0.conv.weight")
        bias = self.decoder.network.get_parameter("0.conv.bias")
        mean = weight.new_tensor(statistics.mean).view(1, -1, 1, 1, 1)
        std = weight.new_tensor(statistics.std).view(1, -1, 1, 1, 1)
        weight.div_(std)
        bias.sub_((weight * mean).sum((1, 2, 3, 4)))

    def latent_normalisation(self) -> Normalisation:
        """Return the teacher's."""
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

    def saved_config(self) -> dict[str, Any]:
        """Return what `config.json` holds beside the name of the class."""
        return {
            DECODER_KEY: self.config.saved_values(),
            TEACHER_KEY: self.public_name(self.teacher),
            DIGEST_KEY: self.digest,
            **self.normalisation,
        }

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `config.json` and the decoder's weights atomically, low-rank updates merged into the weights."""
        save_model(merge_low_rank(self), self.saved_config(), folder)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], load: LoadTeacher) -> StudentAutoencoder:
        """Return the model that `save_pretrained` wrote, on the CPU; the teacher is not loaded yet."""
        saved = _read_student(Path(folder))
        check_num_weights(lambda: build_decoder(saved.config), str(folder), folder)
        model = cls(
            saved.config,
            saved.teacher,
            load,
            digest=saved.digest,
            normalisation=saved.normalisation,
        )
        load_weights(model, folder)
        return model

    @classmethod
    def without_weights(cls, folder: str | PathLike[str], build: LoadTeacher) -> StudentAutoencoder:
        """Return the model in a folder with random weights; `build` makes its teacher, with any weights."""
        saved = _read_student(Path(folder))
        check_num_weights(lambda: build_decoder(saved.config), str(folder))
        model = cls(
            saved.config,
            saved.teacher,
            build,
            digest=saved.digest,
            normalisation=saved.normalisation,
        )
        model._frozen = Frozen(model.load_teacher())
        return model

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_modules"].pop("imitated", None)
        return {**state, "imitated": None}


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
    decoder = values.pop(DECODER_KEY)
    if isinstance(decoder.get("flow"), dict):
        decoder["flow"] = with_older_flow(decoder["flow"])
    config = validate(CausalVAEConfig, decoder, f"{DECODER_KEY}.")
    teacher = _find_teacher(folder, values.pop(TEACHER_KEY))
    digest = values.pop(DIGEST_KEY)
    return _SavedStudent(config, teacher, digest, normalisation=values)


def _check_saved(values: dict[str, Any], key: str, kind: type, contract: str, file: Path) -> None:
    if not isinstance(values.get(key), kind):
        got = describe(values[key]) if key in values else "none"
        raise argument_error(f"{key} in {file}", contract, got, "Copy it again.")


def _find_teacher(folder: Path, teacher: str) -> str:
    """Return the teacher of the student in a folder: the path in its run's settings, a folder beside it, or the name.

    The folders `model` and `ema` of a checkpoint hold the student itself, so they are not searched for the teacher.
    """
    beside = folder.parent / teacher
    is_part_of_checkpoint = teacher in ("model", "ema") and Checkpoints.is_checkpoint(folder.parent)
    is_beside = beside.is_dir() and not is_part_of_checkpoint
    path = read_saved_settings(folder.parent).get(TEACHER_KEY)
    if (
        isinstance(path, str)
        and Student.public_name(path) == teacher
        and (Path(path).exists() or not is_beside)
    ):
        return path
    return str(beside) if is_beside else teacher


def student_config(
    size: str, teacher: VideoAutoencoder, clip: tuple[int, int, int]
) -> CausalVAEConfig:
    """Return the settings of a student's decoder, with the compression and the channels of its teacher.

    Args:
        size: One of `DECODER_SIZES`, "teacher" for the teacher's own settings, or a YAML or JSON file with settings of
            `CausalVAEConfig`.
        teacher: The teacher.
        clip: Frames, height and width of the clips.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The teacher does not accept the clips, has a latent that such a decoder cannot decode, or a setting
            is wrong.
    """
    teacher.check_clip(*clip)
    if size == _LIKE_TEACHER:
        if not isinstance(teacher, CausalAutoencoder):
            got = f"that of a {type(teacher).__name__}"
            raise argument_error(
                "student", '"teacher" for a decoder of telecine', got, f"Use {DECODER_SIZES[-1]}."
            )
        return replace(teacher.config, bottleneck="gaussian")
    compression = _compression_of(teacher, clip)
    settings = _read_decoder(size)
    for name, value in compression.items():
        setting = settings.get(name, value)
        if setting != value:
            raise argument_error(
                f"{name} of {size}", f"{value}, the teacher's", describe(setting), "Leave it out."
            )
    bottleneck = settings.get("bottleneck", "gaussian")
    if bottleneck != "gaussian":
        remedy = "Train it with `telecine train`."
        raise argument_error(
            f"bottleneck of {size}", "left out for a student", repr(bottleneck), remedy
        )
    space = compression["spatial_compression"]
    patch = settings.get("patch_size", min(space, _LARGEST_PATCH))
    num_levels = 1
    if isinstance(patch, int) and 0 < patch <= space:  # else `validate` raises an error
        num_levels = (space // patch).bit_length()
    multipliers = [min(2**level, _LARGEST_MULTIPLIER) for level in range(num_levels)]
    defaults = {"patch_size": patch, "channel_multipliers": multipliers}
    return validate(CausalVAEConfig, defaults | settings | compression)


def _compression_of(teacher: VideoAutoencoder, clip: tuple[int, int, int]) -> dict[str, Any]:
    """Return the settings of `CausalVAEConfig` that a teacher's latent decides."""
    num_frames, height, width = clip
    if num_frames == 1:  # an image does not show the frames of a latent frame
        num_frames, height, width = teacher.covering_clip(_FRAMES_OF_A_CLIP, height, width)
    longer_clip = teacher.covering_clip(2 * num_frames - 1, height, width)
    grid = teacher.latent_grid(num_frames, height, width)
    longer = teacher.latent_grid(*longer_clip)
    if grid is not None and grid == longer and grid.spatial_compression.bit_count() == 1:
        return {**grid._asdict(), "in_channels": teacher.in_channels}
    got = "another one"
    if grid is not None:
        got = str(grid)
        if longer is not None and longer != grid:
            got += f", then {longer}"
    contract = "an autoencoder that makes a latent frame of the first frame, or none, and of every n others"
    contract += ", in clips of any length, with positions of 1, 2, 4, ... pixels squared"
    raise argument_error(
        "teacher", contract, got, "`telecine train --trainable.weights decoder` trains its own."
    )


def _read_decoder(size: str) -> dict[str, Any]:
    if size in DECODER_SIZES:
        return with_presets({"size": size})
    if not Path(size).is_file():
        contract = f"one of {', '.join(DECODER_SIZES)}, or a YAML or JSON file, or {_LIKE_TEACHER}"
        raise argument_error(
            "student", contract, repr(size), "Check the spelling.", FileNotFoundError
        )
    return with_presets(read_yaml(Path(size)) or {})
