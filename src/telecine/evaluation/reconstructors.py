"""Reconstructors of clips: an autoencoder, or files that hold the reconstructions."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from telecine.base.checks import argument_error, describe
from telecine.base.shapes import Video
from telecine.data import (
    DataError,
    DecodeError,
    Span,
    VideoInfo,
    read_clip,
)
from telecine.data.find import sources_of
from telecine.data.paths import files_below
from telecine.data.source import Source, as_source, is_address, kind_of, resolve_source
from telecine.evaluation.load_model import (
    Model,
    checkpoint_of,
    clips_of_run,
    load_infos,
    load_model,
    load_with_data,
    one_frame_of_images,
    title_of,
)
from telecine.evaluation.protocols.configured import ConfiguredClips
from telecine.evaluation.protocols.interface import ClipProtocol
from telecine.evaluation.protocols.papers import PROTOCOLS
from telecine.models import VideoAutoencoder
from telecine.ops.pass_options import clip_position
from telecine.runs import Run, find_checkpoint
from telecine.runs.saved_settings import read_saved_settings
from telecine.settings import ClipConfig, EvaluateConfig, PixelFormat

logger = logging.getLogger(__name__)

# A folder with one of these files is a model, even if it contains videos.
_MODEL_FILES = ("config.json", "model_index.json")


@dataclass(frozen=True)
class ModelReconstructor:
    """Reconstructs clips with an autoencoder."""

    model: VideoAutoencoder
    clip_protocol: ClipProtocol
    title: str
    """The folder of the model, and which of its weights; for `protocol.json`."""

    def reconstruct(self, span: Span, target: Video) -> Video:
        """Return the reconstruction of a clip `(1, C, T, H, W)`, as the protocol says."""
        with clip_position(first_frame=span.first_frame):
            return self.clip_protocol.reconstruct(self.model, span, target)


@dataclass(frozen=True)
class FileReconstructor:
    """Reads the reconstruction of each clip from another file, in the same way as the clip."""

    matches: Mapping[str, VideoInfo]
    """The reconstruction of each video, by the path of the video."""
    clip_protocol: ClipProtocol
    title: str
    """The folder of the reconstructions, for `protocol.json`."""

    def reconstruct(self, span: Span, target: Video) -> Video:
        """Return the same frames of the matching video, `(1, C, T, H, W)`.

        Raises:
            ValueError: They cannot be decoded.
        """
        match = self.matches[str(span.info.source)]
        clip = self.clip_protocol.read(span, match)
        if clip is None:
            frames = f"frames {span.first_frame} to {span.last_frame}"
            got = f"{match.source}, whose {frames} cannot be decoded"
            contract = "videos that can be decoded wherever those of `data` can"
            raise argument_error("checkpoint", contract, got, "Write that file again.")
        return clip["video"][None].to(target)


Reconstructor: TypeAlias = ModelReconstructor | FileReconstructor


def open_reconstructor(
    checkpoint: Model, config: EvaluateConfig, device: torch.device
) -> tuple[Reconstructor, list[VideoInfo]]:
    """Return the reconstructor of the clips, and the videos or images of `config.data`.

    Args:
        checkpoint: An autoencoder, or a folder of videos (or one video) that are reconstructions.
        config: The settings.
        device: Where the autoencoder is.
    """
    data = config.input_data
    if not isinstance(checkpoint, nn.Module) and contains_videos(Path(checkpoint)):
        infos = load_infos(data, config.with_arrays(ClipConfig()))
        return _file_reconstructor(Path(checkpoint), infos, config), infos
    if config.protocol is None:
        measured, infos = load_with_data(checkpoint, config, device)
        clips = ConfiguredClips(measured.clips, config.clip_limit)
        reconstructor = ModelReconstructor(measured.model, clips, measured.title)
    else:
        model = load_model(checkpoint, config, device)
        protocol = PROTOCOLS[config.protocol]
        protocol.check_model(model)
        reconstructor = ModelReconstructor(model, protocol, title_of(checkpoint, config))
        run_clips = clips_of_run(checkpoint, model)
        arrays = ClipConfig(layout=run_clips.layout, range=run_clips.range)
        infos = load_infos(data, config.with_arrays(arrays))
    _log_trained_on(checkpoint_of(checkpoint), data, infos)
    return reconstructor, infos


def _log_trained_on(checkpoint: Path | None, data: str, infos: Sequence[VideoInfo]) -> None:
    """Log how many of the videos the run of a checkpoint has trained on."""
    settings = read_saved_settings(checkpoint) if checkpoint is not None else {}
    if "data" not in settings:
        return
    paths = settings["data"]
    if not isinstance(paths, list):
        paths = [paths]
    unknown = "whether the model has trained on these files is not known: %s"
    if not all(isinstance(path, str | None) for path in paths):
        logger.warning(
            unknown, f"`data` in the settings of the run is {describe(settings['data'])}"
        )
        return
    trained_on: set[Source] = set()
    for path in paths:
        if is_address(path or "") != is_address(data):
            continue
        try:
            trained_on |= {resolve_source(source) for source in sources_of(path)}
        except DataError:  # it was trained on another machine, or this data is no more
            continue
        except OSError as error:
            logger.warning(unknown, error)
    num_trained_on = sum(resolve_source(info.source) in trained_on for info in infos)
    if num_trained_on > 0:
        text = "%d of %d files are in the data of the run, %s: but for what it held out, the model has trained on them"
        saved_data = ", ".join(path or "the sample videos" for path in paths)
        logger.warning(text, num_trained_on, len(infos), saved_data)


def _file_reconstructor(
    folder: Path, infos: Sequence[VideoInfo], config: EvaluateConfig
) -> FileReconstructor:
    """Match reconstructions with the videos of `data`. Their clips have the videos' size unless `config` has one."""
    for name in config.sampling:
        contract = "left out for reconstructions as videos"
        raise argument_error(f"decode_{name}", contract, "a number", "Leave it out.")
    if config.decoder is not None:
        contract = "left out for reconstructions as videos"
        raise argument_error("decoder", contract, config.decoder, "Leave it out.")
    matches = _match_videos(infos, config, reconstructions=folder)
    _log_alpha(next(iter(matches.values())))
    title = f"{folder}, as videos"
    if config.protocol is not None:
        return FileReconstructor(matches, PROTOCOLS[config.protocol], title)
    sizes = sorted({(info.height, info.width) for info in infos})
    if len(sizes) > 1 and (config.height is None or config.width is None):
        got = f"{len(sizes)} sizes, from {sizes[0][0]} x {sizes[0][1]} to {sizes[-1][0]} x {sizes[-1][1]}"
        remedy = "Set `height` and `width`, to which all are resized and cropped."
        raise argument_error("data", "files of one size", got, remedy)
    clips = config.clip_config(ClipConfig(height=sizes[0][0], width=sizes[0][1]))
    clips = one_frame_of_images(infos, clips, config)
    return FileReconstructor(matches, ConfiguredClips(clips, config.clip_limit), title)


def _log_alpha(info: VideoInfo) -> None:
    """Log if a reconstruction has transparent pixels."""
    if info.layout:  # an array
        return
    try:
        frame = read_clip(info, 0, 1, pixels=PixelFormat("rgba"))
    except DecodeError:  # measuring it reports that
        return
    if (frame[..., 3] < 255).any():
        logger.warning(
            "%s has alpha, but reconstructions as files are measured as RGB", info.source
        )


def contains_videos(path: Path) -> bool:
    """Return whether a path is that of reconstructions, a file or a folder of videos or images, and not of a model."""
    if path.is_file():
        return kind_of(path) != ""
    if find_checkpoint(path) is not None or Run(path).settings_file.is_file():
        return False
    if any((path / name).is_file() for name in _MODEL_FILES):
        return False
    return path.is_dir() and any(kind_of(file) for file in files_below(path))


def _match_videos(
    infos: Sequence[VideoInfo], config: EvaluateConfig, *, reconstructions: Path
) -> dict[str, VideoInfo]:
    """Return the reconstruction of each video of `data`, by the path of the video; raise a `ValueError` for no match.

    Videos in folders match by their relative path without the suffix. Two single files match with any names.
    """
    data = config.input_data
    inputs = by_name(infos, data)
    arrays = config.with_arrays(ClipConfig())
    others = by_name(load_infos(reconstructions, arrays, name="checkpoint"), reconstructions)
    lacking = []
    for folder, missing in (
        (reconstructions, sorted(inputs.keys() - others.keys())),
        (data, sorted(others.keys() - inputs.keys())),
    ):
        if missing:
            more = " ..." if len(missing) > 3 else ""
            lacking.append(f"{folder} lacks {', '.join(missing[:3])}{more}")
    if lacking:
        contract = "files of the same names as `data` (suffixes do not count)"
        remedy = "Rename or remove files until both have the same names."
        raise argument_error("checkpoint", contract, "; ".join(lacking), remedy)
    matches = {}
    for name, info in inputs.items():
        match = others[name]
        if (match.num_frames, match.height, match.width) != (
            info.num_frames,
            info.height,
            info.width,
        ):
            contract = (
                f"of {info.num_frames} frames of {info.height} x {info.width}, as {info.source}"
            )
            got = f"{match.num_frames} frames of {match.height} x {match.width} in {match.source}"
            remedy = "Write the reconstructions at the length and size of `data`."
            raise argument_error("checkpoint", contract, got, remedy)
        matches[str(info.source)] = match
    return matches


def by_name(infos: Sequence[VideoInfo], root: str | Path) -> dict[str, VideoInfo]:
    """Return files of a folder by their relative path without the suffix.

    Raises:
        ValueError: Two have the same name.
    """
    if [info.source for info in infos] == [as_source(root)]:
        return {"(a single file)": infos[0]}
    files: dict[str, VideoInfo] = {}
    for info in infos:
        name = Path(os.path.relpath(str(info.source), str(root))).with_suffix("").as_posix()
        if name in files:
            got = f"{files[name].source} and {info.source}"
            raise argument_error(
                "data", "files of different names", got, "Rename one: suffixes do not count."
            )
        files[name] = info
    return files
