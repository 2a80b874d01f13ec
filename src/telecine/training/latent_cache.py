"""Posteriors of training clips that are kept on the disk, for runs whose encoder is frozen."""

import math
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from telecine.base.checks import argument_error
from telecine.base.devices import in_gib
from telecine.base.terminal import with_progress
from telecine.data import ClipBatchSampler, ClipLoader, DataError, TrainingClips
from telecine.data.fingerprint import fingerprint_of
from telecine.data.outputs import check_is_local
from telecine.data.source import Source
from telecine.models import Posterior, VideoAutoencoder
from telecine.models.latent_shards import (
    LatentShard,
    LatentShards,
    ShardError,
    check_identity,
    moments_of,
    posterior_of,
)
from telecine.models.pretrained import digest_of_encoder
from telecine.training.distributed import on_first_process
from telecine.training.logging import print_lines
from telecine.training.state import TrainState
from telecine.training.trainable import trains_encoder
from telecine.training.weight_files import architecture_of

# Increase the number when the content of the files changes. Older folders are then refused.
_FORMAT = 2
# Clips are collected in memory until they fill a shard of this size.
_SHARD_BYTES = 2**26


class LatentCache:
    """Posteriors of clips by name, in shards of an existing folder, see `telecine.models.latent_shards`.

    The values are the encoder's own, in float32. A quantizer's losses are not kept: those of a frozen encoder have no
    gradient.

    Args:
        folder: The folder, which exists.
        shard_bytes: A shard is written once the posteriors that were added need as many bytes.

    Raises:
        DataError: A file is damaged.
    """

    def __init__(self, folder: Path, *, shard_bytes: int = _SHARD_BYTES) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self._shard = self._new_shard()
        with _data_errors():
            self.shards = LatentShards(folder)

    def _new_shard(self) -> LatentShard:
        return LatentShard(self.folder / f"latents-{uuid.uuid4().hex}.tar")

    def find_shards(self) -> None:
        """Find the shards that this and other processes have written."""
        with _data_errors():
            self.shards.find()

    def __contains__(self, name: str) -> bool:
        return name in self.shards or name in self._shard

    def add(
        self,
        names: Sequence[str],
        posterior: Posterior,
        metadata: Sequence[Mapping[str, object]] | None = None,
    ) -> int:
        """Add the posteriors of a batch of clips, and return the bytes of one. Clips that the cache has are skipped.

        Args:
            names: The name of each clip.
            posterior: The posterior of the batch.
            metadata: The metadata of each clip, as JSON has it.
        """
        moments = {}
        for moment, tensor in moments_of(posterior).items():
            moments[moment] = tensor.cpu()
        for index, name in enumerate(names):
            if name not in self:
                tensors = {moment: tensor[index] for moment, tensor in moments.items()}
                self._shard.add(name, tensors, None if metadata is None else metadata[index])
        if self._shard.num_bytes >= self.shard_bytes:
            self.write()
        return sum(tensor[0].nbytes for tensor in moments.values())

    def write(self) -> None:
        """Write the posteriors that were added since the last call."""
        if len(self._shard) == 0:
            return
        self._shard.write()
        self._shard = self._new_shard()
        self.find_shards()

    def read(self, names: Sequence[str], device: torch.device) -> Posterior:
        """Return the posteriors of clips as a batch on `device`.

        Raises:
            ValueError: A clip is missing.
            DataError: A file is damaged.
        """
        for name in names:
            if name not in self.shards:
                remedy = (
                    "Do not change it while a run trains, and use a disk that all processes share."
                )
                raise argument_error(
                    "latent_cache", "a folder with all latents", f"one without {name}", remedy
                )
        with _data_errors():
            moments = self.shards.stacked(names)
        return posterior_of({moment: tensor.to(device) for moment, tensor in moments.items()})


@contextmanager
def _data_errors() -> Iterator[None]:
    """Turn a `ShardError` into a `DataError`, which ends a run."""
    try:
        yield
    except ShardError as error:
        raise DataError(str(error)) from error


def open_cache(
    folder: str | None,
    model: VideoAutoencoder,
    clips: TrainingClips,
    accelerator: Accelerator,
) -> LatentCache | None:
    """Return the cache in a folder, which is created if needed. Every process has to call this.

    Args:
        folder: `TrainConfig.latent_cache`; without one there is no cache.
        model: The autoencoder of the run.
        clips: The clips to train on.
        accelerator: The processes and the precision.

    Raises:
        ValueError: If the encoder is trained, or the folder has latents of another encoder, other data or clips.
    """
    if folder is None:
        return None
    if model.encoder_model is model and trains_encoder(model):
        remedy = "Use `trainable.weights: decoder`, or leave it out."
        raise argument_error(
            "latent_cache", "left out if the encoder is trained", repr(folder), remedy
        )
    check_is_local("latent_cache", folder)

    def check() -> None:
        identity = identity_of(model.encoder_model, clips, accelerator.mixed_precision)
        check_identity(Path(folder), identity, name="latent_cache")

    on_first_process(check, accelerator)
    return LatentCache(Path(folder))


def identity_of(
    encoder: VideoAutoencoder, clips: TrainingClips, mixed_precision: str
) -> dict[str, object]:
    """Return what the latents of clips depend on, by name.

    Files count by size and time of change, as in the index of the data. `telecine encode` compares their contents: its
    folder may be moved to a machine that has copies of them.

    Args:
        encoder: The model that encodes.
        clips: The clips, of which the files and their modification times count.
        mixed_precision: The precision of the encoder, `TrainConfig.mixed_precision`.
    """
    # A probe's generator has a student, whose latents are its teacher's.
    while encoder.encoder_model is not encoder:
        encoder = encoder.encoder_model
    data = sha256()
    fingerprints: dict[Source, tuple[int, ...]] = {}
    for span in clips.spans:
        source = span.source
        if source not in fingerprints:  # a server is asked for each file once
            fingerprints[source] = fingerprint_of(source)
        place = (source.name, fingerprints[source], span.first_frame, span.last_frame)
        data.update(repr(place).encode())
    identity: dict[str, object] = {
        "format": _FORMAT,
        "architecture": architecture_of(encoder),
        "encoder": digest_of_encoder(encoder),
        "mixed_precision": mixed_precision,
        "data": data.hexdigest(),
        "seed": clips.seed,
    }
    for name, value in clips.config.identity().items():
        identity[f"clips.{name}"] = list(value) if isinstance(value, tuple) else value
    return identity


def find_missing_batches(
    cache: LatentCache, clips: TrainingClips, sampler: ClipBatchSampler
) -> tuple[list[int], int, int]:
    """Return the batches with clips that a cache lacks, the number of these clips, and the number of all clips.

    Args:
        cache: The cache.
        clips: The clips to train on.
        sampler: All batches; those of the result are some of its numbers.
    """
    names: set[str] = set()
    missing: set[str] = set()
    batches: list[int] = []
    for position, number in enumerate(sampler.batches):
        new = set(clips.names_of(sampler.items(position))) - names
        new_missing = {name for name in new if name not in cache}
        if new_missing:
            batches.append(number)
        names |= new
        missing |= new_missing
    return batches, len(missing), len(names)


def fill_latent_cache(
    cache: LatentCache,
    state: TrainState,
    clips: TrainingClips,
    sampler: ClipBatchSampler,
    console: Console,
    *,
    before_each: Callable[[], None],
) -> None:
    """Encode the clips that are not in the cache. Every process has to call this; they share the batches.

    Encoded clips are written to the disk also after an error, such as one of `before_each`.

    Args:
        cache: The cache to fill.
        state: The autoencoder and its device.
        clips: The clips to train on.
        sampler: The batches of all processes.
        console: Where progress is printed.
        before_each: Called before each batch, equally often on every process.

    Raises:
        ValueError: If the disk has too little space.
    """
    accelerator = state.accelerator
    find_missing = partial(find_missing_batches, cache, clips, sampler)
    missing, num_missing, num_clips = on_first_process(find_missing, accelerator)
    if num_clips == 0:
        return
    num_cached = num_clips - num_missing
    print_lines(
        console, [f"{num_clips} clips, the latents of {num_cached} of them in {cache.folder}"]
    )
    if clips.config.num_clips is not None and clips.config.augments:
        console.print(
            "augmentation is on: each of these clips keeps the crop and the flip that were drawn for it"
        )
    num_ranks = accelerator.num_processes
    sampler_of_rank = replace(sampler, batches=missing[accelerator.process_index :: num_ranks])
    videos = iter(ClipLoader(clips, sampler_of_rank))
    positions: Iterable[int] = range(math.ceil(len(missing) / num_ranks))
    if accelerator.is_main_process:
        positions = with_progress(positions, "encoding")
    try:
        for position in positions:
            before_each()
            if position < len(sampler_of_rank):
                batch = next(videos)
                video = batch["video"].to(accelerator.device)
                with torch.no_grad(), accelerator.autocast():
                    posterior = state.autoencoder.encoder_model.encode(video)
                names = clips.names_of(sampler_of_rank.items(position))
                size = cache.add(names, posterior, _metadata_of(batch))
                if position == 0:
                    check_disk(cache.folder, size * num_missing)
    finally:
        cache.write()
    accelerator.wait_for_everyone()  # until every process has written its part
    cache.find_shards()


def _metadata_of(batch: Mapping[str, Any]) -> list[dict[str, object]]:
    """Return the metadata of the clips of a batch."""
    num_frames, height, width = batch["video"].shape[2:]
    metadata: list[dict[str, object]] = []
    for index, source in enumerate(batch["source"]):
        metadata.append(
            {
                "source": source,
                "first_frame": int(batch["start"][index]),
                "num_frames": num_frames,
                "height": height,
                "width": width,
                "fps": float(batch["fps"][index]),
            }
        )
    return metadata


def check_disk(folder: Path, size: int) -> None:
    """Raise a `ValueError` if the disk of a folder has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if size > free:
        remedy = "Use another disk, or a smaller `clips.num_clips`."
        raise argument_error(
            "latent_cache", f"on a disk with {in_gib(size)} free", in_gib(free), remedy
        )
