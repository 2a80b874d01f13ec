"""Sharded tensors in files: each process writes its shards, and any number of processes reads what it needs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from telecine.autoencoders.pretrained import MAX_LISTED, mismatches, safetensors_write
from telecine.base.checks import argument_error
from telecine.runs.manifest import DamagedError
from telecine.training.distributed import is_sharded, local_shard, offsets_of
from telecine.training.host_copy import HostCopy

# The subfolder of a checkpoint for the files of shards.
SHARDS = "shards"
# The keys by which PyTorch's `HuggingFaceStorageReader` finds where a shard begins.
SHARDING_INFO, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"


def shard_file(folder: Path, rank: int, num_ranks: int) -> Path:
    """Return the file in the folder of a checkpoint in which a process writes its shards."""
    return folder / SHARDS / f"shard-{rank:05d}-of-{num_ranks:05d}.safetensors"


def save_shards(path: Path, groups: Mapping[str, HostCopy]) -> None:
    """Write the copies of this process as "name of the group.name of the tensor".

    The file has the format of PyTorch's `HuggingFaceStorageWriter(save_distributed=True)`, which itself would first
    hold all bytes of the file a second time, and let the processes communicate.

    Raises:
        OSError: The file cannot be written.
    """
    tensors, offsets = {}, {}
    for group, copy in groups.items():
        for name, tensor in copy.tensors.items():
            tensors[f"{group}.{name}"], offsets[f"{group}.{name}"] = tensor, {OFFSETS: copy.offsets[name]}
    path.parent.mkdir(exist_ok=True)
    with safetensors_write(path):
        save_file(tensors, path, {SHARDING_INFO: json.dumps(offsets), "format": "pt"})


def saved_tensors(folder: Path, group: str) -> SavedTensors:
    """Return the tensors of a group in a checkpoint: those of a file of its own, otherwise those in the shards."""
    whole, shards = folder / f"{group}.safetensors", sorted((folder / SHARDS).glob("*.safetensors"))
    return SavedTensors(shards, prefix=f"{group}.") if shards and not whole.exists() else SavedTensors([whole])


class Piece(NamedTuple):
    """The rows of a tensor that one file has."""

    begin: int
    end: int
    file: Any
    key: str


class SavedTensors:
    """Tensors whose first dimension may be divided over several files. They are read when they are asked for.

    Args:
        paths: The files.
        prefix: Only tensors whose name begins with this, which is removed.

    Raises:
        DamagedError: A file is missing or damaged.
    """

    def __init__(self, paths: Iterable[Path], *, prefix: str = "") -> None:
        pieces: defaultdict[str, list[Piece]] = defaultdict(list)
        shapes: dict[str, list[int]] = {}
        for path in paths:
            with damage_named(path):
                file: Any = safe_open(path, "pt")
            offsets = json.loads((file.metadata() or {}).get(SHARDING_INFO, "{}"))
            for key in file.keys():  # noqa: SIM118
                name, shape = key.removeprefix(prefix), file.get_slice(key).get_shape()
                if key.startswith(prefix):
                    begin = offsets[key][OFFSETS][0] if shape and offsets else 0
                    end = begin + shape[0] if shape else 1
                    pieces[name].append(Piece(begin, end, file, key))
                    shapes[name] = [max(end, *shapes.get(name, [0])[:1]), *shape[1:]] if shape else []
        self._pieces = {name: sorted(found, key=lambda piece: piece.begin) for name, found in pieces.items()}
        # Without memory.
        self.whole = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    def read(self, name: str, like: Tensor | None = None) -> Tensor:
        """Return a tensor on the CPU; if `like` is sharded, only the rows that its shard in this process has."""
        pieces = self._pieces[name]
        if self.whole[name].ndim == 0:
            return pieces[0].file.get_tensor(pieces[0].key)
        begin, end = 0, len(self.whole[name])
        if like is not None and is_sharded(like):
            begin = offsets_of(like)[0]
            end = begin + len(local_shard(like))
        parts = [piece.file.get_slice(piece.key)[_rows(piece, begin, end)] for piece in pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.no_grad()
    def copy_into(self, tensors: Mapping[str, Tensor], *, source: Path) -> None:
        """Copy all tensors by name into others of the same shapes, whole or sharded.

        Raises:
            ValueError: Names or shapes differ; the first few are listed. `source` is where they were saved.
        """
        if problems := mismatches(tensors, self.whole):
            more = f" and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
            remedy = "Use the previous model, or another --output_dir."
            raise argument_error(str(source), "the model's weights", "; ".join(problems[:MAX_LISTED]) + more, remedy)
        for name, tensor in tensors.items():
            local_shard(tensor).copy_(self.read(name, tensor))


def _rows(piece: Piece, begin: int, end: int) -> slice:
    """Return the rows of a piece that are rows `begin` to `end` of the whole."""
    first, last = (min(max(row, piece.begin), piece.end) - piece.begin for row in (begin, end))
    return slice(first, last)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn the error of a safetensors file that is missing or damaged into a `DamagedError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        contract, got = "a safetensors file", f"a missing or damaged one ({error})"
        raise argument_error(str(path), contract, got, "Use another checkpoint.", DamagedError) from error
