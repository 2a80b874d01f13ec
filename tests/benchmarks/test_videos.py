import gzip
import hashlib

import pytest


@pytest.fixture
def videos(benchmark_module, monkeypatch, tmp_path):
    """Return the module, with a package of two files and one sample video."""
    module = benchmark_module("videos")
    sample = tmp_path / "sample.mp4"
    sample.write_bytes(b"sample")
    files = {"doc/a.avi": b"a", "doc/b.mp4.gz": gzip.compress(b"b")}

    def unpack(name, folder):
        for path, content in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)

    monkeypatch.setattr(module, "unpack_package", unpack)
    monkeypatch.setattr(module, "sample_videos", lambda: [sample])
    monkeypatch.setattr(module, "SEEN", {"sample.mp4": hashlib.sha256(b"sample").hexdigest()})
    digests = {
        "doc/a.avi": hashlib.sha256(b"a").hexdigest(),
        "doc/b.mp4.gz": hashlib.sha256(b"b").hexdigest(),
    }
    monkeypatch.setattr(module, "UNSEEN", digests)
    return module


def test_videos_are_unpacked_into_two_folders(videos, tmp_path):
    folder = tmp_path / "videos"
    paths = videos.fetch(folder)
    assert [str(path.relative_to(folder)) for path in paths] == [
        "seen/sample.mp4",
        "unseen/a.avi",
        "unseen/b.mp4",
    ]
    assert [path.read_bytes() for path in paths] == [b"sample", b"a", b"b"]


def test_another_file_is_refused(videos, tmp_path):
    videos.UNSEEN["doc/a.avi"] = "0" * 64
    with pytest.raises(
        ValueError, match=r"`a.avi` must be the file of SHA-256 0{64}.*[Aa]nother version"
    ):
        videos.fetch(tmp_path / "videos")
    assert not (tmp_path / "videos" / "unseen").exists()


def test_another_system_is_told_what_is_missing(benchmark_module, monkeypatch, tmp_path):
    module = benchmark_module("debian")
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"has apt-get.*Debian"):
        module.unpack_package("opencv-doc", tmp_path)
