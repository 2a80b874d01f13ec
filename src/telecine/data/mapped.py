"""Clips of a data set of the user's: any object with `len(dataset)` and `dataset[index]`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from telecine.base.checks import argument_error, describe
from telecine.data.clip import Clip
from telecine.data.dataset import Item, epoch_order
from telecine.data.errors import DataError
from telecine.data.source import Span
from telecine.data.spacing import evenly_spaced
from telecine.settings import ClipConfig

_FPS = 25.0  # of clips that do not say theirs


class MapDataset(Protocol):
    """A map-style data set: for each index from 0, a clip, or a mapping with the clip as `video`, maybe with `fps`."""

    def __len__(self) -> int:
        """Return the number of clips."""
        ...

    def __getitem__(self, index: int, /) -> Tensor | Mapping[str, Any]:
        """Return a clip, float32 `(C, T, H, W)` in [-1, 1]."""
        ...


class MappedClips(Dataset[Clip]):
    """An endless sequence of clips of a map-style data set, each checked, as `ClipDataset` is one of files.

    Item `(step, index)` depends on the index and the seed alone: each epoch has all clips once, in an order of its own.
    A resumed run therefore asks for the same indices. Its clips are the same if `dataset[index]` is the same for the
    same index: random changes inside it are not.

    Args:
        dataset: The clips.
        indices: The indices to draw from.
        config: The channels, length and size that all clips must have.
        seed: Determines the order.
    """

    spans: Sequence[Span] = ()

    def __init__(
        self, dataset: MapDataset, indices: Sequence[int], config: ClipConfig, *, seed: int = 0
    ) -> None:
        self.dataset = dataset
        self.indices = list(indices)
        self.config = config
        self.seed = seed

    def __getitem__(self, item: int | Item) -> Clip:
        return read_mapped(self.dataset, self._index_of(item), self.config)

    def names_of(self, items: Sequence[Item]) -> list[str]:
        """Return the names of items. Clips of one name are equal."""
        return [f"clip-{self._index_of(item)}" for item in items]

    def source_at(self, step: int, index: int) -> str:
        """Return the name of the clip of an item, for errors."""
        return f"dataset[{self._index_of((step, index))}]"

    def _index_of(self, item: int | Item) -> int:
        number = item if isinstance(item, int) else item[1]
        if self.config.num_clips is not None:
            number %= self.config.num_clips
        epoch, position = divmod(number, len(self.indices))
        order = epoch_order(self.seed, epoch, len(self.indices))
        return self.indices[int(order[position])]


def read_mapped(dataset: MapDataset, index: int, config: ClipConfig) -> Clip:
    """Return a clip of a map-style data set.

    Args:
        dataset: The clips.
        index: The index of one.
        config: The channels, length and size that it must have.

    Raises:
        DataError: it is no clip, or has another shape, type or range.
    """
    name = f"dataset[{index}]"
    value = dataset[index]
    fps = _FPS
    if isinstance(value, Mapping):
        fps = float(value.get("fps", _FPS))
        value = value.get("video", value)
    shape = (config.num_channels, config.num_frames, config.height, config.width)
    is_video = isinstance(value, Tensor) and value.dtype == torch.float32
    if not is_video or tuple(value.shape) != shape:
        remedy = "Set `clips.channels`, `num_frames`, `height` and `width` to those of the clips."
        contract = f"float32 of shape {shape}, channels, frames, height and width"
        raise argument_error(name, contract, describe(value), remedy, DataError)
    smallest = float(value.min())
    largest = float(value.max())
    if not (smallest >= -1 and largest <= 1):  # also for NaN
        got = f"values from {smallest:g} to {largest:g}"
        remedy = "Scale black to -1 and white to 1."
        raise argument_error(name, "finite and in [-1, 1]", got, remedy, DataError)
    return {"video": value, "source": name, "start": 0, "fps": fps}


def split_indices(num_clips: int, val_fraction: float) -> tuple[list[int], list[int]]:
    """Return the indices to train on, and evenly spaced ones that are held out.

    Raises:
        DataError: there are fewer than two clips.
    """
    if num_clips < 2:
        remedy = "One is held out for validation."
        raise argument_error("dataset", "two clips or more", num_clips, remedy, DataError)
    held_out = evenly_spaced(num_clips, max(1, round(num_clips * val_fraction)))
    train = sorted(set(range(num_clips)) - set(held_out))
    return train, held_out
