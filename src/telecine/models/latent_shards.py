"""Latents on disk: tar files as WebDataset reads them, with a safetensors and a JSON file for each clip.

| file | content |
|---|---|
| `NAME.tar` | a shard: of a clip `KEY.safetensors` with `mean` and perhaps `logvar`, `(C, t, h, w)`, and `KEY.json` |
| `NAME.json` | its index: the shard's SHA-256, where each clip is, and the sums of its statistics |

A shard appears whole, and its index after it. The bytes are a function of the clips alone.
"""

import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.data import Dataset

from telecine.base.checks import ArgumentError, argument_error, describe, shorten
from telecine.base.files import atomic_write, create_json, digest_of, read_json, write_text
from telecine.models.latent import (
    MEAN_KEY,
    SCALE_KEY,
    SHIFT_KEY,
    STD_KEY,
    ChannelMoments,
    DeterministicPosterior,
    DiagonalGaussian,
    Normalisation,
    Posterior,
)
from telecine.models.pretrained import safetensors_write

MEAN = "mean"
LOGVAR = "logvar"
ORDER_KEY = "memory_order"
"""The key of a clip's JSON with the axes of each tensor in memory, the axis of the largest stride first."""
FORMAT = 1
"""Of the files that `telecine encode` writes. Increase it when their content changes."""
IDENTITY_FILE = "identity.json"
"""The file with what all latents of a folder depend on."""
MANIFEST_FILE = "manifest.json"
"""The file that is written when all latents are there: the identity, statistics, and a digest of each shard."""
# Bytes of a shard that are kept in memory before a file is used.
_MEMORY_BYTES = 2**26
# Bytes of a name in the header of a tar file.
_NAME_BYTES = 100
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class ShardError(ArgumentError):
    """A shard is damaged or missing."""


def moments_of(posterior: Posterior) -> dict[str, Tensor]:
    """Return the tensors of a posterior by name: `mean`, and `logvar` of a normal one.

    Raises:
        ValueError: It is neither normal nor without noise.
    """
    if isinstance(posterior, DiagonalGaussian):
        return {MEAN: posterior.mean, LOGVAR: posterior.logvar}
    if isinstance(posterior, DeterministicPosterior):
        return {MEAN: posterior.latent}
    contract = "normal or without noise, to be stored"
    raise argument_error("posterior", contract, describe(posterior), "Encode in each update.")


def posterior_of(moments: Mapping[str, Tensor]) -> Posterior:
    """Invert `moments_of`."""
    if LOGVAR in moments:
        return DiagonalGaussian(mean=moments[MEAN], logvar=moments[LOGVAR])
    return DeterministicPosterior(moments[MEAN])


def normalised(moments: Mapping[str, Tensor], normalisation: Normalisation) -> dict[str, Tensor]:
    """Return moments `(B, C, t, h, w)` normalised as generators do: `(z - mean) / std`, or `(z - shift) * scale`.

    Args:
        moments: `mean`, and perhaps `logvar`.
        normalisation: The numbers of the model.
    """
    shift, scale = _shift_and_scale(moments[MEAN], normalisation)
    result = {MEAN: (moments[MEAN] - shift) * scale}
    if LOGVAR in moments:
        result[LOGVAR] = moments[LOGVAR] + 2 * scale.log()
    return result


def denormalised(mean: Tensor, normalisation: Normalisation) -> Tensor:
    """Return the latent `(B, C, t, h, w)` of a normalised one."""
    shift, scale = _shift_and_scale(mean, normalisation)
    return mean / scale + shift


def _shift_and_scale(latent: Tensor, normalisation: Normalisation) -> tuple[Tensor, Tensor]:
    if normalisation.get(MEAN_KEY) is not None:
        shift = latent.new_tensor(normalisation[MEAN_KEY]).view(1, -1, 1, 1, 1)
        scale = 1 / latent.new_tensor(normalisation[STD_KEY]).view(1, -1, 1, 1, 1)
        return shift, scale
    shift = latent.new_tensor(normalisation.get(SHIFT_KEY) or 0.0)
    return shift, latent.new_tensor(normalisation.get(SCALE_KEY) or 1.0)


class LatentShard:
    """A shard that is written: clips are added to a file without a name, or to memory while it is small.

    Args:
        path: The tar file, whose folder exists. It appears with `write`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes = 0
        self.channels = ChannelMoments()
        self._content = SpooledTemporaryFile(  # noqa: SIM115 - closed by `write`, else with the object
            max_size=_MEMORY_BYTES, dir=str(path.parent)
        )
        self._digest = sha256()
        self._places: dict[str, list[int]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None
    ) -> None:
        """Add a clip.

        Args:
            name: The key, without a dot: WebDataset takes what follows for the suffix.
            tensors: `mean` and perhaps `logvar`, `(C, t, h, w)`.
            metadata: The metadata of the clip, as JSON has it.

        Raises:
            ValueError: The key has a dot.
        """
        if "." in name:
            raise argument_error("name", "a key without a dot", name)
        orders = {}
        contiguous = {}
        for moment, tensor in tensors.items():
            orders[moment] = _memory_order(tensor)
            contiguous[moment] = tensor.detach().cpu().contiguous()
        text = json.dumps({**(metadata or {}), ORDER_KEY: orders}) + "\n"
        self._places[name] = [
            *self._add_member(f"{name}.safetensors", save(contiguous)),
            *self._add_member(f"{name}.json", text.encode()),
        ]
        self.channels.add(tensors[MEAN][None].float())

    def _add_member(self, name: str, content: bytes) -> tuple[int, int]:
        """Append a file, and return where its content is: the first byte, and the number of bytes."""
        header = tarfile.TarInfo(name)
        header.size = len(content)
        header.mode = 0o644
        start = self.num_bytes + tarfile.BLOCKSIZE
        self._append(header.tobuf(tarfile.GNU_FORMAT))
        self._append(content)
        self._append(bytes(-len(content) % tarfile.BLOCKSIZE))
        return start, len(content)

    def _append(self, content: bytes) -> None:
        self._content.write(content)
        self._digest.update(content)
        self.num_bytes += len(content)

    def write(self, skipped: Mapping[str, object] | None = None) -> None:
        """Write the tar file, then its index.

        Args:
            skipped: What is known about clips that are not in it, by name.
        """
        self._append(bytes(2 * tarfile.BLOCKSIZE))
        with safetensors_write(self.path):
            atomic_write(self.path, self._copy)
        self._content.close()
        index = {
            "sha256": self._digest.hexdigest(),
            "channel_sums": self.channels.sums.tolist(),
            "clips": self._places,
            "skipped": skipped or {},
        }
        write_text(self.path.with_suffix(".json"), json.dumps(index) + "\n")

    def _copy(self, partial: Path) -> None:
        self._content.seek(0)
        with partial.open("wb") as file:
            shutil.copyfileobj(self._content, file, 2**20)


def check_identity(folder: Path, identity: Mapping[str, object], *, name: str) -> dict[str, Any]:
    """Write what the latents of a new folder depend on, or compare it with what a folder with latents has.

    Args:
        folder: The folder.
        identity: What the latents depend on, by name. `model` is not compared: the model may have another path.
        name: The setting that errors name.

    Returns:
        The identity that the folder has.

    Raises:
        ValueError: The folder has latents of another format or identity.
    """
    path = folder / IDENTITY_FILE
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        create_json(path, identity)
    saved: dict[str, Any] = read_json(path)  # another process may have created the file first
    if saved.get("format") != identity["format"]:
        got = f"{str(folder)!r}, of format {saved.get('format')}"
        remedy = "Delete it: its clips are encoded again."
        raise argument_error(name, f"a folder of format {identity['format']}", got, remedy)
    changed = []
    for key, value in identity.items():
        before = saved.get(key)
        if key == "model" or before == value:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            changed += _changes(before, value)
        else:
            changed.append(key)
    if changed:
        contract = "a folder of latents of this encoder, data and settings"
        got = f"{str(folder)!r}, with another value of {', '.join(changed)}"
        raise argument_error(name, contract, got, "Use another folder, or delete this one.")
    return saved


def _changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Return the names whose values differ, with both values."""
    changes = []
    for name in {**before, **after}:
        old = before.get(name)
        new = after.get(name)
        if old != new:
            changes.append(f"`{name}` ({shorten(repr(old))} there, {shorten(repr(new))} now)")
    return changes


@dataclass(frozen=True)
class StoredClip:
    """Where a clip is."""

    shard: Path
    tensors: tuple[int, int]
    """Offset and number of bytes of its safetensors file."""
    metadata: tuple[int, int]
    """Those of its JSON file."""


class LatentShards(Dataset[dict[str, Any]]):
    """The clips of all shards of a folder, by number or name; a `torch.utils.data.Dataset` of dicts.

    A dict has `mean`, perhaps `logvar`, `(C, t, h, w)`, `name` and `metadata`. Of a clip only its own bytes are read.

    Args:
        folder: The folder.
        verify: Compare the digest of each shard when it is first read.

    Raises:
        ShardError: An index is damaged.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        self.verify = verify
        self.clips: dict[str, StoredClip] = {}
        self.names: list[str] = []
        self.digests: dict[Path, str] = {}
        self.skipped: dict[Path, dict[str, Any]] = {}
        self.channel_sums: dict[Path, Tensor] = {}
        self._intact: set[Path] = set()
        self.find()

    def find(self) -> None:
        """Find the shards that this and other processes have written since the last call.

        Raises:
            ShardError: An index is damaged.
        """
        for index in sorted(self.folder.glob("*.json")):
            shard = index.with_suffix(".tar")
            if shard in self.digests or not shard.is_file():
                continue
            try:
                content = read_json(index)
                for name, numbers in content["clips"].items():
                    start, size, metadata_start, metadata_size = numbers
                    clip = StoredClip(shard, (start, size), (metadata_start, metadata_size))
                    self.clips[name] = clip
                self.channel_sums[shard] = torch.tensor(
                    content["channel_sums"], dtype=torch.float64
                )
                self.skipped[shard] = content["skipped"]
                self.digests[shard] = content["sha256"]
                self.names = list(self.clips)
            except (KeyError, TypeError, ValueError) as error:
                raise damaged(index, f"another index ({error})") from error

    def __contains__(self, name: str) -> bool:
        return name in self.clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> dict[str, Any]:
        name = self.names[number]
        tensors, metadata = self.read(name)
        return {**tensors, "name": name, "metadata": metadata}

    def read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors of a clip, ordered in memory as the encoder's, and its metadata.

        Raises:
            ShardError: The shard is damaged or missing.
        """
        clip = self.clips[name]
        if self.verify and clip.shard not in self._intact:
            self._check(clip.shard)
        try:
            with clip.shard.open("rb") as file:
                content = _read_member(file, f"{name}.safetensors", clip.tensors)
                metadata: dict[str, Any] = json.loads(
                    _read_member(file, f"{name}.json", clip.metadata)
                )
            stored = load(content)
            orders = metadata.pop(ORDER_KEY)
            tensors = {}
            for moment in orders:  # safetensors returns them in any order
                axes = orders[moment]
                ordered = stored[moment].permute(axes).contiguous()
                tensors[moment] = ordered.permute(inverse_order(axes))
        except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise damaged(clip.shard, f"a missing or damaged file ({error})") from error
        return tensors, metadata

    def metadata(self, name: str) -> dict[str, Any]:
        """Return the metadata of a clip, without its tensors."""
        clip = self.clips[name]
        with clip.shard.open("rb") as file:
            metadata: dict[str, Any] = json.loads(_read_member(file, f"{name}.json", clip.metadata))
        return metadata

    def _check(self, shard: Path) -> None:
        try:
            digest = digest_of(shard)
        except (OSError, ValueError) as error:
            raise damaged(shard, f"a missing or damaged file ({error})") from error
        if digest != self.digests[shard]:
            raise damaged(shard, f"other values (sha256 {digest})")
        self._intact.add(shard)

    def stacked(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the tensors of clips of one size as a batch, ordered in memory as the encoder's.

        Raises:
            ShardError: A shard is damaged or missing.
        """
        clips = [self.read(name)[0] for name in names]
        batch = {}
        for moment, first in clips[0].items():
            axes = _memory_order(first)
            stacked = torch.stack([clip[moment].permute(axes) for clip in clips])
            batch[moment] = stacked.permute(0, *[1 + axis for axis in inverse_order(axes)])
        return batch


def _read_member(file: Any, name: str, extent: tuple[int, int]) -> bytes:
    """Return the content of a member of a tar file, whose header comes before it.

    Raises:
        ValueError: It has another name.
    """
    start, num_bytes = extent
    file.seek(start - tarfile.BLOCKSIZE)
    content: bytes = file.read(tarfile.BLOCKSIZE + num_bytes)
    if content[:_NAME_BYTES].rstrip(b"\0") != name.encode():
        raise ValueError(f"no {name} at byte {start}")
    return content[tarfile.BLOCKSIZE :]


def damaged(path: Path, got: str) -> Exception:
    """Return the error for a file that is not as it was written."""
    remedy = "Delete it, and its .json or .tar beside it: its clips are encoded again."
    return argument_error(
        str(path), "a file of latents, as it was written", got, remedy, ShardError
    )


def _memory_order(tensor: Tensor) -> list[int]:
    """Return the axes of a tensor, the axis of the largest stride first."""
    return sorted(range(tensor.ndim), key=lambda axis: -tensor.stride()[axis])


def inverse_order(axes: Sequence[int]) -> list[int]:
    """Return the permutation that undoes another one."""
    return [axes.index(axis) for axis in range(len(axes))]
