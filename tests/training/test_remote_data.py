"""Runs whose data is on an S3 server, which stops in the middle."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from telecine.data import ClipDataset, DataError, index_video, read_clip, remote
from telecine.training import train
from telecine.video.write import write_video

from .helpers import (
    LIGHT,
    assert_equal_tensors,
    checkpoint_steps,
    last_checkpoint,
    recorder,
    tensors,
)


@pytest.fixture
def folder(small_video, tmp_path):
    """Return a folder with two videos of about the same size."""
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(small_video, folder / "a.mp4")
    write_video(folder / "b.mp4", read_clip(index_video(small_video), 0, 60).flip(2), fps=25)
    return folder


@pytest.mark.slow
def test_a_run_whose_server_stops_resumes_with_the_weights_of_a_local_run(
    tiny, folder, tmp_path, s3, monkeypatch
):
    """The cache has room for one of the two videos, so that both are fetched again and again."""
    few = {**LIGHT, "batch_size": 2, "steps": 4, "val_every": 4, "save_every": 4, "latent_clips": 1}
    local = tiny(data=str(folder), output_dir=str(tmp_path / "local"), **few)
    there = tiny(data=s3.put(folder, "videos"), output_dir=str(tmp_path / "remote"), **few)
    size = max(path.stat().st_size for path in folder.glob("*.mp4"))
    monkeypatch.setenv("TELECINE_REMOTE_CACHE_GB", str(size / 1e9))
    monkeypatch.setattr(
        remote, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=lambda: 0.0)
    )
    train(local)

    read = ClipDataset.__getitem__

    def read_until_step_2(self, item):
        if item[0] == 2:
            s3.stop()
            monkeypatch.setattr(ClipDataset, "__getitem__", read)
        return read(self, item)

    monkeypatch.setattr(ClipDataset, "__getitem__", read_until_step_2)
    with pytest.raises(
        DataError, match=r"^s3://bucket/videos/[ab]\.mp4: cannot be read after 7 attempts"
    ):
        train(there)
    assert checkpoint_steps(there) == [2]

    s3.start()
    console = recorder()
    train(there, console=console)
    assert "resuming from " in console.export_text()
    assert (
        assert_equal_tensors(tensors(last_checkpoint(local)), tensors(last_checkpoint(there))) > 20
    )

    (folder / "b.mp4").unlink()
    other = replace(there, data=s3.put(folder, "other"))
    with pytest.raises(
        ValueError,
        match=r"`data` must be 's3://bucket/videos' as in .*, but got 's3://bucket/other'",
    ):
        train(other)
