"""Files of weights on a disk that fails."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from telecine.base.safetensors_files import check_readable, load_safetensors

# A regular file whose first byte cannot be read: EIO, as of a broken disk.
BROKEN = Path("/proc/self/mem")


def test_tensors_do_not_depend_on_their_file_once_they_are_read(tmp_path):
    """The pages of a mapped file are read when they are used: what the disk has lost by then ends the process."""
    path = tmp_path / "model.safetensors"
    written = {
        "weight": torch.arange(5000.0).reshape(50, 100),
        "scalar": torch.tensor(2, dtype=torch.float16),
        "empty": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
    }
    save_file(written, path)
    tensors = load_safetensors(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert tensors.keys() == written.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == written[name].dtype
        assert torch.equal(tensor, written[name])


@pytest.mark.skipif(not BROKEN.exists(), reason="needs Linux")
@pytest.mark.parametrize("read", [load_safetensors, check_readable])
def test_an_error_of_the_disk_names_the_file_of_weights(read, tmp_path):
    path = tmp_path / "model.safetensors"
    path.symlink_to(BROKEN)
    with pytest.raises(OSError, match=f"Input/output error: '{path}'"):
        read(path)
