"""Loading of the models that commands use, and the clips that each of them is measured on.

| command | clips |
|---|---|
| `evaluate`, `latents`, `prune` | those of the run, with the sizes and times of the settings: `load_with_data` |
| `evaluate --protocol` | those of the protocol: `load_model` alone |
| `evaluate` of videos | those of the settings, by default of the size of the videos: `FileReconstructor` |
| `encode`, `reconstruct` | whole files, whose pixels are read as in the run: `clips_to_read` |
| `decode` | none: `load_model` alone |
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from telecine.base.checks import argument_error, describe
from telecine.data import VideoInfo
from telecine.data.ahead_index import index_ahead
from telecine.data.find import find_videos
from telecine.data.lazy.saved_index import SavedIndex
from telecine.models import VideoAutoencoder, as_video_autoencoder, load_autoencoder
from telecine.models.interface import check_channels
from telecine.models.paired import PairedAutoencoder
from telecine.runs import find_checkpoint
from telecine.runs.saved_settings import read_saved_settings
from telecine.settings import ClipConfig, EvaluateConfig, MeasuredClips
from telecine.settings.data import DECODING
from telecine.settings.errors import validate
from telecine.settings.evaluate import ModelUse

Model: TypeAlias = str | Path | nn.Module
"""A folder of a run, of a checkpoint or of a saved autoencoder, a name on the Hub; or a module, as it is."""


@dataclass(frozen=True)
class MeasuredModel:
    """An autoencoder, and the clips that it is measured on."""

    model: VideoAutoencoder
    clips: ClipConfig
    title: str
    """Its folder, and which of its weights."""


def load_infos(
    path: str | Path, clips: ClipConfig | None = None, *, name: str = "data"
) -> list[VideoInfo]:
    """Return the videos and arrays at a path, or the images without one. Their index is saved, for training, too.

    Args:
        path: A file, a folder (searched recursively) or an address.
        clips: How arrays are read. None: as files state it.
        name: The setting that errors name.
    """
    videos = find_videos(path, name=name)
    infos, _ = index_ahead(videos, SavedIndex(str(path), clips or ClipConfig()))
    return infos


def load_with_data(
    checkpoint: Model, config: MeasuredClips, device: torch.device
) -> tuple[MeasuredModel, list[VideoInfo]]:
    """Load an autoencoder as `load_with_clips` does, and return the videos or images of `config.data`, too.

    Args:
        checkpoint: The autoencoder.
        config: The settings.
        device: Where the autoencoder is.
    """
    data = config.input_data
    measured = load_with_clips(checkpoint, config, device)
    infos = load_infos(data, measured.clips)
    return replace(measured, clips=one_frame_of_images(infos, measured.clips, config)), infos


def one_frame_of_images(
    infos: Sequence[VideoInfo], clips: ClipConfig, config: MeasuredClips
) -> ClipConfig:
    """Return clips of one frame if the data are images and `config` sets no other number."""
    if config.num_frames is None and all(info.is_image for info in infos):
        return replace(clips, num_frames=1)
    return clips


def load_with_clips(
    checkpoint: Model, config: MeasuredClips, device: torch.device
) -> MeasuredModel:
    """Load an autoencoder. Clips have the size of its run, or the default size without a run, unless `config` has one.

    Args:
        checkpoint: The autoencoder.
        config: The settings.
        device: Where the autoencoder is.
    """
    model = load_model(checkpoint, config, device)
    clips = config.clip_config(clips_of_run(checkpoint, model))
    check_channels(clips, model)
    model.check_clip(clips.num_frames, clips.height, clips.width)
    return MeasuredModel(model, clips, title_of(checkpoint, config))


def title_of(checkpoint: Model, config: MeasuredClips) -> str:
    """Return the folder of a model, and which of its weights."""
    if isinstance(checkpoint, nn.Module):
        return type(checkpoint).__name__
    if checkpoint_of(checkpoint) is None:
        return str(checkpoint)
    return f"{checkpoint}, weights {config.weights}"


def clips_of_run(checkpoint: Model, model: VideoAutoencoder) -> ClipConfig:
    """Return the clips of the run that has a checkpoint; without it the default with the channels of the model.

    Raises:
        ValueError: The settings of the run are damaged.
    """
    folder = checkpoint_of(checkpoint)
    settings: object = {"channels": model.in_channels}
    if folder is not None:
        settings = read_saved_settings(folder).get("clips")
    if not isinstance(settings, dict):
        name = f"clips in the settings of {folder}"
        raise argument_error(name, "a group of settings", describe(settings), "Restore it.")
    return validate(ClipConfig, settings, prefix=f"{folder}: clips.")


def clips_to_read(checkpoint: Model, model: VideoAutoencoder, config: ModelUse) -> ClipConfig:
    """Return how `encode` and `reconstruct` read whole files: as the run of a model does, but for arrays that `config`
    describes. Sizes, times and settings of training are the defaults.

    Args:
        checkpoint: What the model was loaded from.
        model: The model.
        config: The layout and the range of arrays.
    """
    values = clips_of_run(checkpoint, model).values_marked(DECODING)
    values["channels"] = model.in_channels
    return config.with_arrays(ClipConfig(**values))


def load_model(checkpoint: Model, config: ModelUse, device: torch.device) -> VideoAutoencoder:
    """Return an autoencoder on a device, in eval mode.

    Args:
        checkpoint: The autoencoder.
        config: Which weights of a run are loaded, the steps and seed of a decoder that generates, and another decoder.
        device: Where the autoencoder is.
    """
    model = _load_weights(checkpoint, config)
    if isinstance(config, EvaluateConfig) and config.decoder is not None:
        model = PairedAutoencoder(model, _load_weights(config.decoder, config))
    model.set_decoding(**config.sampling)
    return model.to(device).eval()


def _load_weights(checkpoint: Model, config: ModelUse) -> VideoAutoencoder:
    if not isinstance(checkpoint, nn.Module):
        folder = checkpoint_of(checkpoint)
        checkpoint = load_autoencoder(checkpoint if folder is None else folder / config.weights)
    return as_video_autoencoder(checkpoint)


def checkpoint_of(model: Model) -> Path | None:
    """Return the folder of the checkpoint that a run or a checkpoint names; None for other models."""
    return None if isinstance(model, nn.Module) else find_checkpoint(Path(model))
