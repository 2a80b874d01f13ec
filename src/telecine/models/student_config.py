"""The settings of a student's decoder, which follow from the latent of its teacher and a size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from telecine.base.checks import argument_error, describe
from telecine.base.yaml_files import read_yaml
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.interface import VideoAutoencoder
from telecine.settings import CausalVAEConfig
from telecine.settings.autoencoder import with_presets
from telecine.settings.errors import validate

# The sizes of `CausalVAEConfig` that are meant for decoders.
DECODER_SIZES = ("tiny", "small")
_LIKE_TEACHER = "teacher"
_LARGEST_PATCH = 4
_LARGEST_MULTIPLIER = 4
# The compression in time is read from clips of at least this length.
_FRAMES_OF_A_CLIP = 9


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
    contract = "an autoencoder whose compression in time is the same for clips of all lengths"
    contract += ", and in space 1, 2, 4, ..."
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
