"""Members of tar files that nobody could have packed, and those that are no data."""

import io
import tarfile

import pytest

from telecine.data import tar_members


def header(name, kind=tarfile.REGTYPE, size=0, pax=None):
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.size = size
    entry.pax_headers = pax or {}
    return entry.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("second", "error"),
    [
        (header("b.mp4", size=-512), "with a size of"),
        (header("b.mp4", size=-1536), "with a size of"),
        (header("b.mp4", tarfile.GNUTYPE_LONGNAME, -512), "with a size of"),
        (header("b.mp4", tarfile.GNUTYPE_LONGNAME, 2**40), "with a size of"),
        (header("b.mp4", pax={"size": "-1024"}), "with a size of"),
        (
            header("b.mp4", tarfile.GNUTYPE_SPARSE),
            r"^b\.mp4 has holes, by `tar -S`; pack it without",
        ),
    ],
)
def test_impossible_members_of_a_tar_file_end_the_reading(tmp_path, second, error):
    text = header("a.txt", tarfile.GNUTYPE_SPARSE)  # which is not used
    (tmp_path / "a.tar").write_bytes(text + header("a.mp4") + second + bytes(2048))
    members = tar_members(tmp_path / "a.tar")
    assert next(members).name == "a.mp4"
    with pytest.raises(tarfile.TarError, match=error):
        next(members)


def test_only_videos_and_images_that_are_files(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("./b.mp4", "._b.mp4", "c/d.PNG", "c/.e.png", "f.json", "g"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        link = tarfile.TarInfo("h.mp4")
        link.type = tarfile.SYMTYPE
        link.linkname = "b.mp4"
        tar.addfile(link)
    assert [member.name for member in tar_members(tmp_path / "a.tar")] == ["./b.mp4", "c/d.PNG"]
    with open(tmp_path / "a.tar", "rb") as opened:
        names = [member.name for member in tar_members(tmp_path / "a.tar", opened)]
        assert not opened.closed
    assert names == ["./b.mp4", "c/d.PNG"]
