"""Posteriors of training clips on the disk, so that a frozen encoder runs once for each clip."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from telecine.autoencoders import DeterministicPosterior, DiagonalGaussian, Posterior, VideoAutoencoder
from telecine.autoencoders.pretrained import digest_of_encoder, safetensors_write
from telecine.base.checks import argument_error, describe
from telecine.base.devices import gigabytes
from telecine.base.files import atomic_write, read_json, write_json
from telecine.base.terminal import with_progress
from telecine.data import ClipBatchSampler, ClipDataset, ClipLoader, Span
from telecine.data.index_cache import fingerprint_of
from telecine.settings import TrainConfig
from telecine.training.distributed import on_first_process
from telecine.training.state import TrainState
from telecine.training.trainable import trains_encoder
from telecine.training.weight_files import architecture_of

IDENTITY_FILE = "identity.json"
PATTERN = "latents-*.safetensors"
# Increase the number when the content of the files changes. Older folders are then refused.
FORMAT = 1
# Clips are collected in memory until they fill a file of this size.
FILE_BYTES = 2**26
# Settings that do not change what a clip is.
OTHER_CLIP_SETTINGS = ("num_clips", "num_workers", "timeout", "cache", "max_pixels", "val_fraction")
MEAN, LOGVAR = "mean", "logvar"


class LatentCache:
    """Posteriors of clips by name, in safetensors files of a folder; each file appears whole.

    Values are those that the encoder has returned, in float32, and so is their order in memory, with which convolutions
    round differently. A quantizer's losses are not kept: those of a frozen encoder have no gradient.

    Args:
        folder: It exists.

    Raises:
        ValueError: A file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}  # by "name of the clip/mean" and "name of the clip/logvar"
        self._new: dict[str, Tensor] = {}
        self._new_orders: dict[str, str] = {}
        self.find_files()

    def find_files(self) -> None:
        """Look for what this process or another one has written."""
        for path in self.folder.glob(PATTERN):
            with opened(path) as file:
                self._files.update(dict.fromkeys(file.keys(), path))

    def __contains__(self, name: str) -> bool:
        return f"{name}/{MEAN}" in self._files

    def add(self, names: Sequence[str], posterior: Posterior) -> int:
        """Add the posteriors of a batch of clips, and return the bytes of one. Names that are there are skipped.

        Raises:
            ValueError: The posterior is of another kind.
            OSError: A file cannot be written.
        """
        moments = {moment: tensor.cpu() for moment, tensor in moments_of(posterior).items()}
        for moment, tensor in moments.items():
            axes = memory_order(tensor[0])
            for index, name in enumerate(names):
                if name not in self:
                    key = f"{name}/{moment}"
                    self._new[key] = tensor[index].permute(axes).clone(memory_format=torch.contiguous_format)
                    self._new_orders[key] = " ".join(map(str, axes))
        if sum(tensor.nbytes for tensor in self._new.values()) >= FILE_BYTES:
            self.write()
        return sum(tensor[0].nbytes for tensor in moments.values())

    def write(self) -> None:
        """Write what was added and is not on the disk yet.

        Raises:
            OSError: The file cannot be written.
        """
        if not self._new:
            return
        path = self.folder / PATTERN.replace("*", uuid.uuid4().hex)
        with safetensors_write(path):
            atomic_write(path, lambda partial: save_file(self._new, partial, metadata=self._new_orders))
        self._files.update(dict.fromkeys(self._new, path))
        self._new, self._new_orders = {}, {}

    def read(self, names: Sequence[str], device: torch.device) -> Posterior:
        """Return the posteriors of clips as a batch on `device`.

        Raises:
            ValueError: One is missing, or a file is damaged.
        """
        mean = self._stack(names, MEAN).to(device)
        if f"{names[0]}/{LOGVAR}" not in self._files:
            return DeterministicPosterior(mean)
        return DiagonalGaussian(mean=mean, logvar=self._stack(names, LOGVAR).to(device))

    def _stack(self, names: Sequence[str], moment: str) -> Tensor:
        tensors = [self._tensor(f"{name}/{moment}") for name in names]
        axes = memory_order(tensors[0])
        stacked = torch.stack([tensor.permute(axes) for tensor in tensors])
        return stacked.permute(0, *(1 + axes.index(axis) for axis in range(len(axes))))

    def _tensor(self, key: str) -> Tensor:
        if key not in self._files:
            remedy = "Do not change it while a run trains, and use a disk that all processes share."
            raise argument_error("latent_cache", "a folder with all latents", f"one without {key}", remedy)
        with opened(self._files[key]) as file:
            tensor, axes = file.get_tensor(key), [int(axis) for axis in file.metadata()[key].split()]
        restored: Tensor = tensor.permute([axes.index(axis) for axis in range(len(axes))])
        return restored


def memory_order(tensor: Tensor) -> list[int]:
    """Return the axes of a tensor, those with the largest strides first."""
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda axis: -strides[axis])


def moments_of(posterior: Posterior) -> dict[str, Tensor]:
    """Return the tensors that a posterior is made from again.

    Raises:
        ValueError: It is of a class of the user's.
    """
    if isinstance(posterior, DiagonalGaussian):
        return {MEAN: posterior.mean, LOGVAR: posterior.logvar}
    if isinstance(posterior, DeterministicPosterior):
        return {MEAN: posterior.latent}
    contract = "left out for a posterior that is neither normal nor without noise"
    raise argument_error("latent_cache", contract, describe(posterior), "Leave it out.")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file.

    Raises:
        ValueError: It is damaged or gone.
    """
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, FileNotFoundError) as error:
        contract, got = "a safetensors file", f"a missing or damaged one ({error})"
        raise argument_error(str(path), contract, got, "Delete it: its clips are encoded again.") from error


def open_cache(
    config: TrainConfig, model: VideoAutoencoder, clips: ClipDataset, accelerator: Accelerator
) -> LatentCache | None:
    """Return the cache in the folder `config.latent_cache`, which is created if needed; None without such a setting.

    Args:
        config: The settings of the run.
        model: The autoencoder with its weights.
        clips: The training clips.
        accelerator: Of this process; every process has to call this.

    Raises:
        ValueError: The encoder is trained, or the latents are of another encoder, other data or other clips.
    """
    if config.latent_cache is None:
        return None
    if model.latent_model is model and trains_encoder(model):
        remedy = "Use `trainable.weights: decoder`, or leave it out."
        raise argument_error("latent_cache", "left out if the encoder is trained", repr(config.latent_cache), remedy)
    folder = Path(config.latent_cache)
    on_first_process(lambda: check_identity(folder, identity_of(config, model.latent_model, clips)), accelerator)
    return LatentCache(folder)


def identity_of(config: TrainConfig, encoder: VideoAutoencoder, clips: ClipDataset) -> dict[str, object]:
    """Return what decides the latents of the clips of a run, by name."""
    settings = {name: value for name, value in asdict(clips.config).items() if name not in OTHER_CLIP_SETTINGS}
    return {
        "format": FORMAT,
        "architecture": architecture_of(encoder),
        "encoder": digest_of_encoder(encoder),
        "mixed_precision": config.mixed_precision,
        "data": digest_of_data(clips.spans),
        "seed": clips.seed,
        **{f"clips.{name}": list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
    }


def digest_of_data(spans: Sequence[Span]) -> str:
    """Return a digest of the name, size and modification time of each file, and of its frames that are used."""
    digest = sha256()
    for span in spans:
        source = span.info.path
        digest.update(repr((source.name, fingerprint_of(source), span.first_frame, span.last_frame)).encode())
    return digest.hexdigest()


def check_identity(folder: Path, identity: dict[str, object]) -> None:
    """Check that a folder's latents belong to `identity`, which is written to a new folder.

    Raises:
        ValueError: They belong to another one; the message says what differs.
    """
    path = folder / IDENTITY_FILE
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, identity)
        return
    saved = read_json(path)
    if changed := [name for name, value in identity.items() if saved.get(name) != value]:
        contract = "a folder of latents of this encoder, data and clips"
        got = f"{str(folder)!r}, with another value of {', '.join(changed)}"
        raise argument_error("latent_cache", contract, got, "Use another folder, or delete this one.")


class Missing(NamedTuple):
    """What a run needs and a cache does not have."""

    batches: list[int]
    """Numbers of the micro-batches with such a clip, counted over all processes."""
    num_clips: int
    """How many such clips there are."""
    num_needed: int
    """How many clips the run needs in all."""


def find_missing(cache: LatentCache, clips: ClipDataset, sampler: ClipBatchSampler) -> Missing:
    """Return what the batches of a sampler need and a cache does not have."""
    needed: set[str] = set()
    batches: list[int] = []
    num_clips = 0
    for position, number in enumerate(sampler.batches):
        new = set(names_of(clips, sampler.items(position))) - needed
        unknown = sum(name not in cache for name in new)
        batches += [number] if unknown else []
        num_clips += unknown
        needed |= new
    return Missing(batches, num_clips, len(needed))


def names_of(clips: ClipDataset, items: Sequence[tuple[int, int]]) -> list[str]:
    """Return the names of the clips of a batch."""
    return clips.names_at(items[0][0], [index for _, index in items])


def fill(
    cache: LatentCache,
    state: TrainState,
    clips: ClipDataset,
    config: TrainConfig,
    console: Console,
    *,
    before_each: Callable[[], None],
) -> None:
    """Encode the clips of the remaining steps that are not in the cache, in the batches in which they are trained on.

    The processes share the batches. What is encoded is written to the disk also if this ends with an error.

    Args:
        cache: The cache.
        state: The networks, and the step that the run is at; every process has to call this.
        clips: The training clips.
        config: The settings of the run.
        console: Where to say what is encoded.
        before_each: Called before each batch, on every process equally often. Its errors end this function.

    Raises:
        ValueError: The disk is too small.
        OSError: A file cannot be written.
        DataError: A clip cannot be read.
    """
    accelerator = state.accelerator
    rank, num_ranks = accelerator.process_index, accelerator.num_processes
    per_step = config.gradient_accumulation_steps * num_ranks
    numbers = range(state.step * per_step, config.steps * per_step)
    sampler = ClipBatchSampler(numbers, config.clips_per_pass, per_step, rank=0, num_ranks=1)
    missing = on_first_process(lambda: find_missing(cache, clips, sampler), accelerator)
    if missing.num_needed == 0:
        return
    found = missing.num_needed - missing.num_clips
    console.print(f"{missing.num_needed} clips, the latents of {found} of them in {cache.folder}", soft_wrap=True)
    if config.clips.num_clips is not None and config.clips.augments:
        console.print("augmentation is on: each of these clips keeps the crop and the flip that were drawn for it")
    own = replace(sampler, batches=missing.batches[rank::num_ranks])
    videos = iter(ClipLoader(clips, own))
    positions = range(-(-len(missing.batches) // num_ranks))
    try:
        for position in with_progress(positions, "encoding") if accelerator.is_main_process else positions:
            before_each()
            if position < len(own):
                video = next(videos)["video"].to(accelerator.device)
                with torch.no_grad(), accelerator.autocast():
                    posterior = state.autoencoder.latent_model.encode(video)
                size = cache.add(names_of(clips, own.items(position)), posterior)
                if position == 0:
                    check_disk(cache.folder, size * missing.num_clips)
    finally:
        cache.write()
    before_each()  # every process has written its part
    cache.find_files()


def check_disk(folder: Path, size: int) -> None:
    """Raise a `ValueError` if `size` bytes do not fit on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if size > free:
        contract = f"on a disk with {gigabytes(size)} free"
        remedy = "Set `clips.num_clips` to a smaller number, or use another disk."
        raise argument_error("latent_cache", contract, gigabytes(free), remedy)
