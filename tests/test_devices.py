"""Devices by name."""

import pytest
import torch

from telecine.devices import pick_device


@pytest.mark.parametrize(("cuda", "mps", "auto"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_prefers_an_accelerator(cuda, mps, auto, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == torch.device(auto)
    assert pick_device("cpu") == torch.device("cpu")
    if not cuda:
        with pytest.raises(ValueError, match=r'`device` must be a device of this machine, but got cuda. Use "auto"'):
            pick_device("cuda")
