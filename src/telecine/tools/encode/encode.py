"""Encoding of a data set: each process writes its shards, the last one the manifest."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from telecine import __version__
from telecine.base.background import in_background
from telecine.base.checks import argument_error
from telecine.base.devices import device_of_process, launched_process
from telecine.base.files import (
    remove_partial,
    write_json,
    write_text,
)
from telecine.base.shapes import Video
from telecine.base.terminal import with_progress
from telecine.data import DecodeError, Span, load_spans
from telecine.data.processes import log_in_first_process
from telecine.evaluation.load_model import Model, clips_to_read, load_model
from telecine.evaluation.tiling import pad_to
from telecine.models import Posterior, VideoAutoencoder
from telecine.models.latent import (
    MEAN_KEY,
    SCALE_KEY,
    STD_KEY,
    ChannelMoments,
    LatentStatistics,
    Normalisation,
)
from telecine.models.latent_shards import (
    DTYPES,
    FORMAT,
    LOGVAR,
    MANIFEST_FILE,
    LatentShard,
    LatentShards,
    check_identity,
    moments_of,
    normalised,
)
from telecine.models.pretrained import digest_of_encoder
from telecine.models.stream import run_stream
from telecine.models.unwrapping import class_name
from telecine.settings import ClipConfig, PixelFormat
from telecine.tools.encode.card import dataset_card
from telecine.tools.encode.clips import SourceClip, list_clips, read_chunks
from telecine.tools.encode.settings import EncodeConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """What one process has done."""

    folder: Path
    num_clips: int
    """Clips in all shards that are there."""
    num_new: int
    """Clips that this process has encoded now."""
    is_complete: bool
    """Whether all shards are there, and with them the manifest."""

    def print_to(self, console: Console) -> None:
        """Print it in a line or two."""
        console.print(
            f"{self.num_clips} clips in {self.folder}, {self.num_new} of them new", soft_wrap=True
        )
        if not self.is_complete:
            console.print("other processes encode the rest; the last one writes manifest.json")


def encode_data(checkpoint: Model, config: EncodeConfig, output: str | Path) -> Encoded:
    """Encode a data set. The same call again encodes what is missing; the files are the same after any interruption.

    Processes that torchrun starts share the shards.

    Args:
        checkpoint: Folder of a run (its last checkpoint), of a checkpoint, or of a saved autoencoder; or a module.
        config: The settings.
        output: The folder of the shards.

    Raises:
        ValueError: The folder has latents of another encoder, data or settings, or whole videos are to be encoded by
            a model that does not stream, or the model has no statistics to normalise by.
        DataError: There is no clip.
    """
    started = time.time()
    if config.data is None:
        raise argument_error("data", "given", "nothing", "Pass `--data` with videos.")
    rank, num_ranks = launched_process()
    device = device_of_process(config.device, num_ranks)
    model = load_model(checkpoint, config, device)
    clip_config = clips_to_read(checkpoint, model, config)
    folder = Path(output)
    with log_in_first_process(rank):
        spans, _ = load_spans(config.data, clip_config, keep_columns=True)
        clips = list_clips(spans, config)
        _check_model(model, config)
        folder.mkdir(parents=True, exist_ok=True)
        identity = check_identity(
            folder,
            identity_of(checkpoint, model, spans, config, clip_config.pixel_format),
            name="output",
        )
    encoder = _Encoder(model, device, config, clip_config)
    missing: list[_ClipOfShard] = []
    for number, first in enumerate(range(0, len(clips), config.clips_per_shard)):
        path = folder / f"latents-{number:05d}.tar"
        is_there = path.is_file() and path.with_suffix(".json").is_file()
        if number % num_ranks == rank and not is_there:
            part = clips[first : first + config.clips_per_shard]
            missing += [_ClipOfShard(path, index, clip) for index, clip in enumerate(part, first)]
    progress = with_progress(missing, "encoding", is_shown=rank == 0)
    num_new = 0
    for path, clips_of_shard in groupby(progress, key=lambda clip: clip.shard):
        num_new += encoder.write_shard(path, clips_of_shard)
    num_shards = -(-len(clips) // config.clips_per_shard)
    shards = LatentShards(folder, verify=False)
    is_complete = len(shards.digests) == num_shards
    if is_complete:
        remove_partial(folder, started)
        write_manifest(folder, identity, shards)
    return Encoded(folder, len(shards), num_new, is_complete)


def _check_model(model: VideoAutoencoder, config: EncodeConfig) -> None:
    if config.num_frames is None and not model.streams:
        contract = f"set for {class_name(model)}, which keeps no frames between chunks"
        smallest = model.covering_clip(1, 1, 1)[0]
        remedy = f"The smallest number that it accepts is {smallest}."
        raise argument_error("num_frames", contract, "no number", remedy)
    if config.num_frames is not None:
        covering = model.covering_clip(config.num_frames, 1, 1)[0]
        if covering != config.num_frames:
            contract = "a number of frames that the model accepts"
            raise argument_error("num_frames", contract, config.num_frames, f"Use {covering}.")
    if config.normalise:
        _check_normalisation(model, config.num_frames or 1)


def _check_normalisation(model: VideoAutoencoder, num_frames: int) -> None:
    normalisation = model.latent_normalisation()
    remedy = "Leave it out: manifest.json has the statistics of the data."
    if not any(value is not None for value in normalisation.values()):
        raise argument_error("normalise", "false for a model without statistics", True, remedy)
    mean = normalisation.get(MEAN_KEY)
    grid = model.latent_grid(*model.covering_clip(num_frames, 1, 1))
    if isinstance(mean, list) and grid is not None and len(mean) != grid.latent_channels:
        contract = f"false for a model with {len(mean)} means for {grid.latent_channels} channels"
        raise argument_error("normalise", contract, True, remedy)


def _normalisation_of(model: VideoAutoencoder, config: EncodeConfig) -> Normalisation:
    """Return the numbers by which latents are normalised, as `normalised` takes them."""
    normalisation = model.latent_normalisation()
    std = normalisation.get(STD_KEY)
    scale = normalisation.get(SCALE_KEY)
    if not config.normalise or not isinstance(std, list) or not isinstance(scale, int | float):
        return normalisation
    # Pipelines of SDXL divide by the deviation, and multiply by the factor.
    return {**normalisation, STD_KEY: [value / scale for value in std]}


def identity_of(
    checkpoint: Model,
    model: VideoAutoencoder,
    spans: Sequence[Span],
    config: EncodeConfig,
    pixels: PixelFormat,
) -> dict[str, Any]:
    """Return what the bytes of all shards depend on, by name.

    Args:
        checkpoint: What the model was loaded from.
        model: The model.
        spans: The data.
        config: The settings.
        pixels: What is read of a pixel.
    """
    data = sha256()
    for span in spans:
        name = str(span.info.source).rpartition("/")[2]
        identity = (name, span.info.digest, span.first_frame, span.last_frame, dict(span.columns))
        data.update(repr(identity).encode())
    name = str(checkpoint)
    if isinstance(checkpoint, torch.nn.Module):
        name = type(checkpoint).__name__
    settings = asdict(config)
    for key in ("data", "device"):
        del settings[key]
    # Earlier versions read the pixels of every run by the default.
    if pixels != PixelFormat(pixels.channels):
        settings["pixels"] = pixels
    return {
        "format": FORMAT,
        "model": name,
        "encoder_sha256": digest_of_encoder(model.encoder_model),
        "normalisation": _normalisation_of(model, config),
        "data_sha256": data.hexdigest(),
        "settings": {key: _plain(value) for key, value in settings.items()},
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class _ClipOfShard:
    """A clip, the shard that it belongs to, and its number in the data set."""

    shard: Path
    number: int
    clip: SourceClip


class _Encoder:
    """Encodes clips with a model.

    Args:
        model: The model.
        device: Where it is.
        config: What is written.
        clips: How frames are read.
    """

    def __init__(
        self,
        model: VideoAutoencoder,
        device: torch.device,
        config: EncodeConfig,
        clips: ClipConfig,
    ) -> None:
        self.model = model
        self.device = device
        self.config = config
        self.clips = clips

    def write_shard(self, path: Path, clips: Iterable[_ClipOfShard]) -> int:
        """Write a shard, and return the number of its clips.

        Args:
            path: The tar file.
            clips: The clips. Those that cannot be decoded are logged, and listed in the index.
        """
        shard = LatentShard(path)
        skipped = {}
        for item in clips:
            name = f"{item.number:08d}"
            metadata = item.clip.metadata(str(self.config.data))
            try:
                tensors = self.encode(item.clip)
            except DecodeError as error:
                logger.warning("skipping a clip that cannot be decoded: %s", error)
                skipped[name] = metadata
                continue
            shard.add(name, tensors, metadata)
        shard.write(skipped)
        return len(shard)

    @torch.no_grad()
    def encode(self, clip: SourceClip) -> dict[str, Tensor]:
        """Return the tensors of a clip, `(C, t, h, w)` on the CPU; a thread reads ahead.

        Args:
            clip: The clip.
        """
        parts: dict[str, list[Tensor]] = {}
        for posterior in self._posteriors(in_background(read_chunks(clip, self.clips)), clip):
            for name, tensor in self._written(posterior).items():
                parts.setdefault(name, []).append(tensor)
        tensors = {}
        for name, chunks in parts.items():
            tensors[name] = chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)
        return tensors

    def _posteriors(self, chunks: Iterator[Video], clip: SourceClip) -> Iterator[Posterior]:
        """Yield the posteriors of consecutive chunks; the last frame, row and column are repeated where needed."""
        size = self.model.covering_clip(clip.num_frames, clip.height, clip.width)
        if not self.model.streams:
            video = torch.cat(list(chunks), dim=1).to(self.device)
            yield self.model.encoder_model.encode(pad_to(video, size)[None])
            return
        stream = self.model.stream_encoder(self.config.chunk_frames)
        videos = (
            pad_to(chunk.to(self.device), (chunk.shape[1], *size[1:]))[None] for chunk in chunks
        )
        yield from run_stream(stream, videos)

    def _written(self, posterior: Posterior) -> dict[str, Tensor]:
        """Return what is written of a posterior of one clip, on the CPU."""
        moments = moments_of(posterior)
        if self.config.normalise:
            moments = normalised(moments, _normalisation_of(self.model, self.config))
        if self.config.latent == "mode":
            moments.pop(LOGVAR, None)
        dtype = DTYPES[self.config.dtype]
        return {name: tensor[0].to("cpu", dtype) for name, tensor in moments.items()}


def write_manifest(folder: Path, identity: dict[str, Any], shards: LatentShards) -> None:
    """Write manifest.json and README.md, which are functions of the shards alone.

    Args:
        folder: The folder of the shards.
        identity: What they depend on.
        shards: All of them.
    """
    channels = ChannelMoments()
    num_frames = 0
    for shard in sorted(shards.channel_sums):
        channels.add_sums(shards.channel_sums[shard])
    for name in shards.names:
        num_frames += shards.metadata(name)["num_frames"]
    statistics: LatentStatistics | None = None
    if channels.sums.shape[1] > 0:
        statistics = channels.statistics()
    manifest = {
        **identity,
        "telecine": __version__,
        "num_clips": len(shards),
        "num_frames": num_frames,
        "num_skipped": sum(len(skipped) for skipped in shards.skipped.values()),
        "statistics": None if statistics is None else asdict(statistics),
        "shards": {shard.name: shards.digests[shard] for shard in sorted(shards.digests)},
    }
    write_json(folder / MANIFEST_FILE, manifest)
    write_text(folder / "README.md", dataset_card(manifest, shards))
