"""Read files of weights so that a broken disk is an error that names them."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from telecine.base.files import named_errors

# safetensors refuses longer headers.
_MAX_HEADER = 100_000_000


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file.

    They are read, not mapped into memory: where a disk cannot read a mapped page, or another program has cut the file,
    SIGBUS ends the process.

    Raises:
        OSError: The file cannot be read.
        SafetensorError: It is damaged.
    """
    # The library maps the header also if it reads the tensors. Read it once before.
    with named_errors(path), path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        file.read(min(num_bytes, _MAX_HEADER))
    return load_file(path, backend="pread")


def check_readable(path: Path) -> None:
    """Read a file once. Use it before a library maps the file into memory, see `load_safetensors`.

    Raises:
        OSError: The file cannot be read.
    """
    with named_errors(path), path.open("rb") as file:
        while file.read(2**20):
            pass
