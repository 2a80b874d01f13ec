"""Names of the layers of a model before and after residual blocks were removed from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RemovedBlocks:
    """Blocks that a pruned model lacks: the blocks behind them have smaller numbers in it than in its teacher."""

    indices: Mapping[str, Sequence[int]]
    """The numbers of removed blocks in the teacher, by the name of the list that has the blocks."""

    def of_decoder(self) -> "RemovedBlocks":
        """Return the same blocks with the names that lists have inside the module `decoder`."""
        return RemovedBlocks(
            {name.removeprefix("decoder."): removed for name, removed in self.indices.items()}
        )

    def to_pruned(self, name: str) -> str | None:
        """Return the name in the pruned model of a layer or weight of the teacher; None in a removed block."""
        list_name = self._list_of(name)
        if list_name is None:
            return name
        index, rest = _split(name, list_name)
        removed = self.indices[list_name]
        if index in removed:
            return None
        index -= sum(block < index for block in removed)
        return f"{list_name}.{index}{rest}"

    def to_teacher(self, name: str) -> str:
        """Return the name in the teacher of a layer or weight of the pruned model."""
        list_name = self._list_of(name)
        if list_name is None:
            return name
        index, rest = _split(name, list_name)
        for block in sorted(self.indices[list_name]):
            if block <= index:
                index += 1
        return f"{list_name}.{index}{rest}"

    def _list_of(self, name: str) -> str | None:
        """Return the list with removed blocks that has a layer, or None."""
        for list_name in self.indices:
            if name.startswith(f"{list_name}."):
                return list_name
        return None


def _split(name: str, list_name: str) -> tuple[int, str]:
    """Return the number of the block of a list that has a layer, and the rest of the layer's name with its dot."""
    number, dot, rest = name.removeprefix(f"{list_name}.").partition(".")
    return int(number), dot + rest
