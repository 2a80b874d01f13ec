"""Latents of training clips: posteriors that are kept on the disk, and the statistics that a checkpoint carries."""

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from telecine.base.checks import argument_error, describe
from telecine.base.devices import gigabytes
from telecine.base.files import atomic_write, read_json, write_json
from telecine.base.terminal import with_progress
from telecine.data import ClipBatchSampler, ClipDataset, ClipLoader, DataError
from telecine.data.find import check_output
from telecine.data.index_cache import fingerprint_of
from telecine.models import DeterministicPosterior, DiagonalGaussian, Posterior, VideoAutoencoder
from telecine.models.latent import ChannelMoments, LatentStatistics
from telecine.models.pretrained import digest_of_encoder, safetensors_write
from telecine.training.distributed import on_first_process
from telecine.training.state import TrainState
from telecine.training.trainable import trains_encoder
from telecine.training.weight_files import architecture_of

_IDENTITY_FILE = "identity.json"
_PATTERN = "latents-*.safetensors"
# Increase the number when the content of the files changes. Older folders are then refused.
_FORMAT = 1
# Clips are collected in memory until they fill a file of this size.
_FILE_BYTES = 2**26
_MEAN, _LOGVAR = "mean", "logvar"
# Of the values of a file, in its metadata. Telecine 0.2 wrote none.
_DIGEST = "sha256"
# Numbers of a channel-wise value that a line shows.
_NUM_SHOWN = 4


class LatentCache:
    """Posteriors of clips by name, in safetensors files of an existing folder, which appear whole and with a digest.

    The values are the encoder's own, in float32, with their order in memory, as convolutions round differently in
    another. A quantizer's losses are not kept: those of a frozen encoder have no gradient.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}  # by "name of the clip/mean" and "name of the clip/logvar"
        self._new: dict[str, Tensor] = {}
        self._new_orders: dict[str, str] = {}
        self._intact: set[Path] = set()  # whose digest was compared, when they were first read
        self.find_files()

    def find_files(self) -> None:
        """Find the files that this and other processes have written."""
        for path in self.folder.glob(_PATTERN):
            with _opened(path) as file:
                self._files.update(dict.fromkeys(file.keys(), path))

    def __contains__(self, name: str) -> bool:
        return f"{name}/{_MEAN}" in self._files

    def add(self, names: Sequence[str], posterior: Posterior) -> int:
        """Add the posteriors of a batch of clips, and return the bytes of one. Known names are skipped."""
        moments = {moment: tensor.cpu() for moment, tensor in _moments_of(posterior).items()}
        for moment, tensor in moments.items():
            axes = _memory_order(tensor[0])
            for index, name in enumerate(names):
                if name not in self:
                    key = f"{name}/{moment}"
                    self._new[key] = tensor[index].permute(axes).clone(memory_format=torch.contiguous_format)
                    self._new_orders[key] = " ".join(map(str, axes))
        if sum(tensor.nbytes for tensor in self._new.values()) >= _FILE_BYTES:
            self.write()
        return sum(tensor[0].nbytes for tensor in moments.values())

    def write(self) -> None:
        """Write the posteriors that were added since the last call."""
        if not self._new:
            return
        path = self.folder / _PATTERN.replace("*", uuid.uuid4().hex)
        with safetensors_write(path):
            metadata = self._new_orders | {_DIGEST: _digest_of(self._new, self._new_orders)}
            atomic_write(path, lambda partial: save_file(self._new, partial, metadata=metadata))
        self._files.update(dict.fromkeys(self._new, path))
        self._new, self._new_orders = {}, {}

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
        return stacked.permute(0, *(1 + axes.index(axis) for axis in range(len(axes))))

    def _tensor(self, key: str) -> Tensor:
        if key not in self._files:
            remedy = "Do not change it while a run trains, and use a disk that all processes share."
            raise argument_error("latent_cache", "a folder with all latents", f"one without {key}", remedy)
        path = self._files[key]
        with _opened(path) as file:
            metadata = file.metadata()
            if path not in self._intact and _DIGEST in metadata:
                found = _digest_of({name: file.get_tensor(name) for name in file.keys()}, metadata)  # noqa: SIM118
                if found != metadata[_DIGEST]:
                    raise _damaged(path, f"other values ({_DIGEST} {found})")
            self._intact.add(path)
            axes = [int(axis) for axis in metadata[key].split()]
            return cast(Tensor, file.get_tensor(key).permute([axes.index(axis) for axis in range(len(axes))]))


def _digest_of(tensors: Mapping[str, Tensor], orders: Mapping[str, str]) -> str:
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {orders.get(name)} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _damaged(path: Path, got: str) -> Exception:
    remedy = "Delete it: its clips are encoded again."
    return argument_error(str(path), "a safetensors file, as it was written", got, remedy, DataError)


def _memory_order(tensor: Tensor) -> list[int]:
    return sorted(range(tensor.ndim), key=lambda axis: -tensor.stride()[axis])


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
    folder: str | None, model: VideoAutoencoder, clips: ClipDataset, accelerator: Accelerator
) -> LatentCache | None:
    """Return the cache in a folder, which is created if needed; None without one. Every process has to call this."""
    if folder is None:
        return None
    if model.latent_model is model and trains_encoder(model):
        remedy = "Use `trainable.weights: decoder`, or leave it out."
        raise argument_error("latent_cache", "left out if the encoder is trained", repr(folder), remedy)
    check_output("latent_cache", None, folder)
    path, precision = Path(folder), accelerator.mixed_precision
    on_first_process(lambda: _check_identity(path, identity_of(model.latent_model, clips, precision)), accelerator)
    return LatentCache(path)


def identity_of(encoder: VideoAutoencoder, clips: ClipDataset, mixed_precision: str) -> dict[str, object]:
    """Return what the latents of clips depend on, by name."""
    digest = sha256()
    for span in clips.spans:  # the name, size and modification time of each file, and its frames that are used
        source = span.info.path
        digest.update(repr((source.name, fingerprint_of(source), span.first_frame, span.last_frame)).encode())
    settings = clips.config.identity().items()
    return {
        "format": _FORMAT,
        "architecture": architecture_of(encoder),
        "encoder": digest_of_encoder(encoder),
        "mixed_precision": mixed_precision,
        "data": digest.hexdigest(),
        "seed": clips.seed,
        **{f"clips.{name}": list(value) if isinstance(value, tuple) else value for name, value in settings},
    }


def _check_identity(folder: Path, identity: dict[str, object]) -> None:
    """Write the identity of its latents to a new folder; raise a `ValueError` if a folder has another one."""
    path = folder / _IDENTITY_FILE
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, identity)
        return
    saved = {"clips.weighting": "frames"} | read_json(path)  # telecine 0.2 had no other
    if changed := [name for name, value in identity.items() if saved.get(name) != value]:
        contract = "a folder of latents of this encoder, data and clips"
        got = f"{str(folder)!r}, with another value of {', '.join(changed)}"
        raise argument_error("latent_cache", contract, got, "Use another folder, or delete this one.")


def _find_missing(cache: LatentCache, clips: ClipDataset, sampler: ClipBatchSampler) -> tuple[list[int], int, int]:
    """Return the batches with clips that a cache lacks, the number of these clips, and that of all clips."""
    needed, batches, num_missing = set[str](), list[int](), 0
    for position, number in enumerate(sampler.batches):
        new = set(clips.names_of(sampler.items(position))) - needed
        unknown = sum(name not in cache for name in new)
        batches += [number] if unknown else []
        num_missing += unknown
        needed |= new
    return batches, num_missing, len(needed)


def fill_latent_cache(
    cache: LatentCache,
    state: TrainState,
    clips: ClipDataset,
    sampler: ClipBatchSampler,
    console: Console,
    before_each: Callable[[], None],
) -> None:
    """Encode the clips of a sampler, which has the batches of all processes, that are not in the cache.

    The processes share the batches; every process has to call this. It calls `before_each` before each batch, equally
    often on every process. Encoded clips are written to the disk also after an error, such as one of `before_each`.
    """
    accelerator = state.accelerator
    rank, num_ranks = accelerator.process_index, accelerator.num_processes
    missing, num_missing, num_clips = on_first_process(lambda: _find_missing(cache, clips, sampler), accelerator)
    if num_clips == 0:
        return
    found = num_clips - num_missing
    console.print(f"{num_clips} clips, the latents of {found} of them in {cache.folder}", soft_wrap=True)
    if clips.config.num_clips is not None and clips.config.augments:
        console.print("augmentation is on: each of these clips keeps the crop and the flip that were drawn for it")
    own = replace(sampler, batches=missing[rank::num_ranks])
    videos = iter(ClipLoader(clips, own))
    positions = range(-(-len(missing) // num_ranks))
    try:
        for position in with_progress(positions, "encoding") if accelerator.is_main_process else positions:
            before_each()
            if position < len(own):
                video = next(videos)["video"].to(accelerator.device)
                with torch.no_grad(), accelerator.autocast():
                    posterior = state.autoencoder.latent_model.encode(video)
                size = cache.add(clips.names_of(own.items(position)), posterior)
                if position == 0:
                    _check_disk(cache.folder, size * num_missing)
    finally:
        cache.write()
    before_each()  # every process has written its part
    cache.find_files()


def _check_disk(folder: Path, size: int) -> None:
    if size > (free := shutil.disk_usage(folder).free):
        contract, remedy = f"on a disk with {gigabytes(size)} free", "Use another disk, or a smaller `clips.num_clips`."
        raise argument_error("latent_cache", contract, gigabytes(free), remedy)


@torch.no_grad()
def measure_latents(
    model: VideoAutoencoder,
    clips: ClipDataset,
    num_clips: int,
    accelerator: Accelerator,
    check: Callable[[Exception | None], None],
) -> LatentStatistics | None:
    """Return statistics of the posterior's mode over the first `num_clips` clips; None if the model offers no latent.

    The processes share the clips, and the result is the same for any number of processes. Every process has to call
    this. It calls `check` after reading each clip, with the error if that failed, which has to raise one everywhere.
    The whole `forward` runs: sharded weights are gathered there only.
    """
    was_training = model.training
    model.eval()
    moments, world = ChannelMoments(), accelerator.num_processes
    try:
        # Equally many clips on each process: sharded models compute together.
        for index in range(accelerator.process_index, -(-num_clips // world) * world, world):
            error = None
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
    if world > 1:
        moments.sums = accelerator.reduce(moments.sums.to(accelerator.device), "sum").cpu()
    return moments.statistics()


def describe_change(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """Return the changes of a model's normalisation of the latent, in one line."""
    changed = {name: value for name, value in after.items() if value != before.get(name)}
    shown = (f"{name} {_shown(before.get(name))} -> {_shown(value)}" for name, value in changed.items())
    return "; ".join(shown) or "nothing"


def _shown(value: object) -> str:
    if not isinstance(value, (list, tuple)):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    more = " ..." if len(value) > _NUM_SHOWN else ""
    return " ".join(f"{number:.3g}" for number in value[:_NUM_SHOWN]) + more
