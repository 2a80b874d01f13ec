"""Decoding of the shards of `telecine encode`, clip by clip, each as a stream."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telecine.base.background import in_background
from telecine.base.checks import argument_error, count
from telecine.base.devices import device_of_process, launched_process
from telecine.base.files import read_json
from telecine.base.shapes import VALUE_RANGE
from telecine.base.terminal import with_progress
from telecine.data import bytes_from_video
from telecine.evaluation.load_model import load_model
from telecine.models import VideoAutoencoder
from telecine.models.latent_shards import (
    FORMAT,
    MANIFEST_FILE,
    MEAN,
    LatentShards,
    denormalised,
)
from telecine.models.pretrained import digest_of_encoder
from telecine.models.stream import run_stream
from telecine.settings import CHANNELS
from telecine.tools.decode.settings import DecodeConfig
from telecine.video.write import write_image, write_video

# Latent frames that are decoded at once.
_CHUNK = 16


def decode_latents(latents: str | Path, config: DecodeConfig, output: str | Path) -> int:
    """Decode the clips of a folder of shards whose files are missing; processes of torchrun share them.

    Args:
        latents: The folder.
        config: The settings.
        output: The folder of the videos.

    Returns:
        The number of files that this process has written.

    Raises:
        ValueError: The folder has no manifest, or latents of another encoder than the model's, or the files do not keep
            its channels.
        ShardError: A shard is damaged or missing.
    """
    manifest = _read_manifest(Path(latents))
    rank, num_ranks = launched_process()
    device = device_of_process(config.device, num_ranks)
    model = load_model(config.model or manifest["model"], config, device)
    if digest_of_encoder(model.encoder_model) != manifest["encoder_sha256"]:
        got = f"{config.model or manifest['model']!r}, whose encoder is another one"
        remedy = "Set `model` to the model that encoded, or to a student of it."
        raise argument_error("model", "of the encoder that encoded", got, remedy)
    normalisation = manifest["normalisation"] if manifest["settings"]["normalise"] else {}
    shards = LatentShards(latents)
    files = list(name_files(shards, Path(output), config.format).items())
    missing = [(name, path) for name, path in files[rank::num_ranks] if not path.exists()]
    has_videos = any(not shards.metadata(name)["is_image"] for name, _ in missing)
    if has_videos and config.format == "mp4" and model.in_channels != CHANNELS["rgb"]:
        contract = f"mkv for videos of {count(model.in_channels, 'channel')}"
        raise argument_error("format", contract, "mp4", "Add `--format mkv`.")
    for name, path in with_progress(missing, "decoding", is_shown=rank == 0):
        tensors, metadata = shards.read(name)
        latent = denormalised(tensors[MEAN][None].float().to(device), normalisation)
        frames = decode_latent(model, latent, metadata, config.chunk_frames)
        path.parent.mkdir(parents=True, exist_ok=True)
        if metadata["is_image"]:
            (frame,) = next(frames)
            write_image(path, frame)
        else:
            chunks = in_background(frames)
            write_video(path, (frame for chunk in chunks for frame in chunk), metadata["fps"])
    return len(missing)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        got = f"{str(folder)!r}, without {MANIFEST_FILE}"
        remedy = "Run `telecine encode` to its end."
        raise argument_error("latents", "a folder of encoded clips", got, remedy)
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        got = f"of format {manifest.get('format')}"
        raise argument_error(str(path), f"of format {FORMAT}", got, "Encode the data again.")
    return manifest


def name_files(shards: LatentShards, output: Path, video_format: str) -> dict[str, Path]:
    """Return the file of each clip: its source's name, with the first frame and the key where that is not unique.

    Sorted as text, the files of a source are in the order of its clips, up to a million frames.

    Args:
        shards: The clips.
        output: The folder of the files.
        video_format: The suffix of videos, without its dot.
    """
    stems = {}
    suffixes = {}
    first_frames = {}
    for name in shards.names:
        metadata = shards.metadata(name)
        source = Path(metadata["source"])
        if source.is_absolute() or ".." in source.parts:  # a foreign folder of latents
            source = Path(source.name)
        stems[name] = source.with_suffix("").as_posix()
        suffixes[name] = "png" if metadata["is_image"] else video_format
        first_frames[name] = metadata["first_frame"]
    clips_of_source = Counter(stems.values())
    for name, source_stem in stems.items():
        if clips_of_source[source_stem] > 1 or first_frames[name] > 0:
            stems[name] = f"{source_stem}-{first_frames[name]:06d}"
    counts = Counter(stems.values())
    files = {}
    for name, stem in stems.items():
        unique = stem if counts[stem] == 1 else f"{stem}-{name}"
        files[name] = output / f"{unique}.{suffixes[name]}"
    return files


@torch.no_grad()
def decode_latent(
    model: VideoAutoencoder, latent: Tensor, metadata: dict[str, Any], chunk_frames: int
) -> Iterator[Tensor]:
    """Yield the frames of a clip, uint8 `(T, H, W, C)` on the CPU, a few at once.

    Args:
        model: The model that decodes.
        latent: `(1, C, t, h, w)`.
        metadata: The metadata of the clip: frames, height and width.
        chunk_frames: Largest number of frames that are computed at once.
    """
    num_left = metadata["num_frames"]
    for video in _decoded(model, latent, chunk_frames):
        part = video[0, :, :num_left, : metadata["height"], : metadata["width"]]
        num_left -= part.shape[1]
        if part.shape[1] > 0:
            yield bytes_from_video(part.clamp(*VALUE_RANGE)).cpu()


def _decoded(model: VideoAutoencoder, latent: Tensor, chunk_frames: int) -> Iterator[Tensor]:
    if not model.streams:
        yield model.decode(latent)
        return
    yield from run_stream(model.stream_decoder(chunk_frames), latent.split(_CHUNK, dim=2))
