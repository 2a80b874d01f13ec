"""Latents of training clips: posteriors that are kept on the disk, and the statistics that a checkpoint carries."""

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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from telecine.base.checks import argument_error, describe
from telecine.base.devices import gigabytes
from telecine.base.files import atomic_write, create_json, read_json
from telecine.base.terminal import with_progress
from telecine.data import ClipBatchSampler, ClipDataset, ClipLoader, DataError
from telecine.data.find import check_output
from telecine.data.index_cache import fingerprint_of
from telecine.data.mapped import MappedClips
from telecine.models import DeterministicPosterior, DiagonalGaussian, Posterior, VideoAutoencoder
from telecine.models.latent import ChannelMoments, LatentStatistics
from telecine.models.pretrained import digest_of_encoder, safetensors_write
from telecine.training.distributed import on_first_process
from telecine.training.logging import print_lines
from telecine.training.state import TrainState
from telecine.training.trainable import trains_encoder
from telecine.training.weight_files import architecture_of

IDENTITY_FILE = "identity.json"
_PATTERN = "latents-*.safetensors"
# Increase the number when the content of the files changes. Older folders are then refused.
_FORMAT = 1
# Clips are collected in memory until they fill a file of this size.
_FILE_BYTES = 2**26
_MEAN, _LOGVAR = "mean", "logvar"
# The digest of a file's values, in its metadata. Files of older versions have none.
_DIGEST = "sha256"
# Numbers of a channel-wise value that a line shows.
_NUM_SHOWN = 4


class LatentCache:
    """Posteriors of clips by name, in safetensors files of an existing folder, which appear whole and with a digest.

    The values are the encoder's own, in float32, with their order in memory, as convolutions round differently in
    another. A quantizer's losses are not kept: those of a frozen encoder have no gradient.

    Args:
        folder: The folder, which exists.
        file_bytes: A file is written once the posteriors that were added need as many bytes.
    """

    def __init__(self, folder: Path, *, file_bytes: int = _FILE_BYTES) -> None:
        self.folder = folder
        self.file_bytes = file_bytes
        self._files: dict[
            str, Path
        ] = {}  # by "name of the clip/mean" and "name of the clip/logvar"
        self._new: dict[str, Tensor] = {}  # that are not written yet
        self._new_orders: dict[str, str] = {}  # of their axes in memory
        self._intact: set[Path] = set()  # whose digest was compared, when they were first read
        self.find_files()

    def find_files(self) -> None:
        """Find the files that this and other processes have written."""
        for path in self.folder.glob(_PATTERN):
            with _opened(path) as file:
                for key in file.keys():  # noqa: SIM118 - a file is no dict
                    self._files[key] = path

    def __contains__(self, name: str) -> bool:
        return f"{name}/{_MEAN}" in self._files

    def add(self, names: Sequence[str], posterior: Posterior) -> int:
        """Add the posteriors of a batch of clips, and return the bytes of one. Clips that the cache has are skipped."""
        bytes_of_clip = 0
        for moment, on_device in _moments_of(posterior).items():
            tensor = on_device.cpu()
            bytes_of_clip += tensor[0].nbytes
            axes = _memory_order(tensor[0])
            for index, name in enumerate(names):
                if name in self:
                    continue
                key = f"{name}/{moment}"
                self._new[key] = (
                    tensor[index].permute(axes).clone(memory_format=torch.contiguous_format)
                )
                self._new_orders[key] = " ".join(str(axis) for axis in axes)
        if sum(tensor.nbytes for tensor in self._new.values()) >= self.file_bytes:
            self.write()
        return bytes_of_clip

    def write(self) -> None:
        """Write the posteriors that were added since the last call."""
        if not self._new:
            return
        path = self.folder / _PATTERN.replace("*", uuid.uuid4().hex)
        metadata = {**self._new_orders, _DIGEST: _digest_of(self._new, self._new_orders)}
        with safetensors_write(path):
            atomic_write(path, lambda partial: save_file(self._new, partial, metadata=metadata))
        for key in self._new:
            self._files[key] = path
        self._new = {}
        self._new_orders = {}

    def read(self, names: Sequence[str], device: torch.device) -> Posterior:
        """Return the posteriors of clips as a batch on `device`; raise a `ValueError` if one is missing."""
        mean = self._stack(names, _MEAN).to(device)
        if f"{names[0]}/{_LOGVAR}" not in self._files:
            return DeterministicPosterior(mean)
        return DiagonalGaussian(mean=mean, logvar=self._stack(names, _LOGVAR).to(device))

    def _stack(self, names: Sequence[str], moment: str) -> Tensor:
        tensors = [self._tensor(f"{name}/{moment}") for name in names]
        axes = _memory_order(tensors[0])
        stacked = torch.stack([tensor.permute(axes) for tensor in tensors])
        return stacked.permute(0, *[1 + axis for axis in _inverse(axes)])

    def _tensor(self, key: str) -> Tensor:
        if key not in self._files:
            remedy = "Do not change it while a run trains, and use a disk that all processes share."
            raise argument_error(
                "latent_cache", "a folder with all latents", f"one without {key}", remedy
            )
        path = self._files[key]
        with _opened(path) as file:
            metadata = file.metadata()
            if path not in self._intact and _DIGEST in metadata:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                digest = _digest_of(tensors, metadata)
                if digest != metadata[_DIGEST]:
                    raise _damaged(path, f"other values ({_DIGEST} {digest})")
            self._intact.add(path)
            axes = [int(axis) for axis in metadata[key].split()]
            tensor: Tensor = file.get_tensor(key)
            return tensor.permute(_inverse(axes))


def _digest_of(tensors: Mapping[str, Tensor], orders: Mapping[str, str]) -> str:
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {orders.get(name)} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _damaged(path: Path, got: str) -> Exception:
    remedy = "Delete it: its clips are encoded again."
    return argument_error(
        str(path), "a safetensors file, as it was written", got, remedy, DataError
    )


def _memory_order(tensor: Tensor) -> list[int]:
    """Return the axes of a tensor, that of the largest stride first."""
    return sorted(range(tensor.ndim), key=lambda axis: -tensor.stride()[axis])


def _inverse(axes: list[int]) -> list[int]:
    """Return the permutation that undoes another one."""
    return [axes.index(axis) for axis in range(len(axes))]


def _moments_of(posterior: Posterior) -> dict[str, Tensor]:
    if isinstance(posterior, DiagonalGaussian):
        return {_MEAN: posterior.mean, _LOGVAR: posterior.logvar}
    if isinstance(posterior, DeterministicPosterior):
        return {_MEAN: posterior.latent}
    contract = "left out for a posterior that is neither normal nor without noise"
    raise argument_error("latent_cache", contract, describe(posterior), "Leave it out.")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, FileNotFoundError) as error:
        raise _damaged(path, f"a missing or damaged file ({error})") from error


def open_cache(
    folder: str | None,
    model: VideoAutoencoder,
    clips: ClipDataset | MappedClips,
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
    if model.latent_model is model and trains_encoder(model):
        remedy = "Use `trainable.weights: decoder`, or leave it out."
        raise argument_error(
            "latent_cache", "left out if the encoder is trained", repr(folder), remedy
        )
    check_output("latent_cache", None, folder)

    def check() -> None:
        _check_identity(
            Path(folder), identity_of(model.latent_model, clips, accelerator.mixed_precision)
        )

    on_first_process(check, accelerator)
    return LatentCache(Path(folder))


def identity_of(
    encoder: VideoAutoencoder, clips: ClipDataset | MappedClips, mixed_precision: str
) -> dict[str, object]:
    """Return what the latents of clips depend on, by name.

    Args:
        encoder: The model that encodes.
        clips: The clips, of which the files and their modification times count.
        mixed_precision: The precision of the encoder, `TrainConfig.mixed_precision`.
    """
    data = sha256()
    for span in clips.spans:
        source = span.info.source
        data.update(
            repr((source.name, fingerprint_of(source), span.first_frame, span.last_frame)).encode()
        )
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


def _check_identity(folder: Path, identity: dict[str, object]) -> None:
    """Write the identity of its latents to a new folder; raise a `ValueError` if a folder has another one."""
    path = folder / IDENTITY_FILE
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        create_json(path, identity)
    # Another run may have created the file first.
    saved = {"clips.weighting": "frames"} | read_json(path)  # older versions had no other
    changed = [name for name, value in identity.items() if saved.get(name) != value]
    if changed:
        contract = "a folder of latents of this encoder, data and clips"
        got = f"{str(folder)!r}, with another value of {', '.join(changed)}"
        raise argument_error(
            "latent_cache", contract, got, "Use another folder, or delete this one."
        )


def find_missing_batches(
    cache: LatentCache, clips: ClipDataset | MappedClips, sampler: ClipBatchSampler
) -> tuple[list[int], int, int]:
    """Return the batches with clips that a cache lacks, the number of these clips, and that of all clips.

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
    clips: ClipDataset | MappedClips,
    sampler: ClipBatchSampler,
    console: Console,
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
                video = next(videos)["video"].to(accelerator.device)
                with torch.no_grad(), accelerator.autocast():
                    posterior = state.autoencoder.latent_model.encode(video)
                size = cache.add(clips.names_of(sampler_of_rank.items(position)), posterior)
                if position == 0:
                    check_disk(cache.folder, size * num_missing)
    finally:
        cache.write()
    before_each()  # every process has written its part
    cache.find_files()


def check_disk(folder: Path, size: int) -> None:
    """Raise a `ValueError` if the disk of a folder has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if size > free:
        remedy = "Use another disk, or a smaller `clips.num_clips`."
        raise argument_error(
            "latent_cache", f"on a disk with {gigabytes(size)} free", gigabytes(free), remedy
        )


@torch.no_grad()
def measure_latents(
    model: VideoAutoencoder,
    clips: ClipDataset | MappedClips,
    num_clips: int,
    accelerator: Accelerator,
    check: Callable[[Exception | None], None],
) -> LatentStatistics | None:
    """Return statistics of the posterior's mode over the first clips; None if the model offers no latent.

    The processes share the clips, and the result is the same for any number of processes. Every process has to call
    this. The whole `forward` runs: sharded weights are gathered there only.

    Args:
        model: The autoencoder.
        clips: The clips to train on.
        num_clips: The number of clips to measure.
        accelerator: The device and the processes.
        check: Called after reading each clip, with the error if that failed, which has to raise one everywhere.
    """
    was_training = model.training
    model.eval()
    moments = ChannelMoments()
    num_ranks = accelerator.num_processes
    # Equally many clips on each process: sharded models compute together.
    num_steps = math.ceil(num_clips / num_ranks)
    try:
        for index in range(accelerator.process_index, num_steps * num_ranks, num_ranks):
            error: DataError | OSError | None = None
            try:
                video = clips[index % num_clips]["video"][None].to(accelerator.device)
            except (DataError, OSError) as unreadable:
                error = unreadable
            check(error)
            latent = model(video, sample_posterior=False).latent
            if latent is None:
                return None
            if index >= num_clips:
                latent = latent[:0]  # counted by another process
            moments.add(latent)
    finally:
        model.train(was_training)
    if num_ranks > 1:
        moments.sums = accelerator.reduce(moments.sums.to(accelerator.device), "sum").cpu()
    return moments.statistics()


def describe_change(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """Return the changes of a model's normalisation of the latent, in one line."""
    changes: list[str] = []
    for name, value in after.items():
        if value != before.get(name):
            changes.append(f"{name} {_short(before.get(name))} -> {_short(value)}")
    return "; ".join(changes) or "nothing"


def _short(value: object) -> str:
    """Return a number, or the first numbers of a channel-wise value."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if not isinstance(value, (list, tuple)):
        return str(value)
    text = " ".join(f"{number:.3g}" for number in value[:_NUM_SHOWN])
    return f"{text} ..." if len(value) > _NUM_SHOWN else text
