"""Arguments of commands that are not settings: the kinds that annotate them, and those that commands share.

An argument is annotated with its help, `Annotated[bool, "Print more."]`, or with one of the kinds below that has it.
"""

from dataclasses import dataclass
from typing import Annotated, TypeAlias


@dataclass(frozen=True)
class Output:
    """The file or folder that a command writes, also called `-o`. It must be another path than
    the data, and no folder above it."""

    help: str


@dataclass(frozen=True)
class Data:
    """The data that a command reads. Without such an argument it is the setting `data`."""

    help: str


MODEL_HELP = (
    "Folder of a run (its last checkpoint), of a checkpoint or of a saved autoencoder, a name on the Hub, or tiny, the "
    "model in the package"
)
ModelPath: TypeAlias = Annotated[str, f"{MODEL_HELP}."]
StealLock: TypeAlias = Annotated[
    bool, "Take the lock of the run's folder from a process whose machine is gone."
]
ChangeData: TypeAlias = Annotated[
    bool, "Resume although --data is other data than before. Without it, such a run is refused."
]
