"""Errors of the data, also from a loader's worker process."""

import pytest
from torch.utils.data import DataLoader, Dataset

from telecine.data import DataError, DecodeError

TEXT = "`data` must be decodable, but got: nothing that is. See the log."


class Broken(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise self.error(TEXT)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("error", [DataError, DecodeError])
def test_a_workers_error_reads_as_its_own(error, num_workers):
    with pytest.raises(error) as raised:
        next(iter(DataLoader(Broken(error), num_workers=num_workers)))
    assert str(raised.value) == TEXT
