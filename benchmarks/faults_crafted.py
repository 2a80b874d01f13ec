"""Faults of small files that are made to cost much: tables, playlists, programs, frames, sizes, and no files at all."""

from __future__ import annotations

import os
import shutil
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import av
from faults_inputs import in_a_fork, is_one_line, samples
from faults_row import Row
from PIL import Image

from telecine.data import DataError, load_spans
from telecine.settings import ClipConfig

HEIGHT, WIDTH = 48, 64  # of the samples
SPARSE = 40 * 2**30  # bytes
LISTS = (".csv", ".jsonl", ".tar")
Write: TypeAlias = Callable[[Path], object]


def crafted(folder: Path) -> Row:
    """Read each of the files: it must be refused by name, or left out of its folder by name."""
    row = Row(
        "small media with unbounded work, and what is no media or no regular file, are refused by name"
    )
    files = {path.name: path for path in samples(folder / "originals")}
    for index, (what, name, write) in enumerate(cases(files["video.mp4"])):
        here = folder / f"crafted-{index}"
        here.mkdir()
        shutil.copy(files["video.mp4"], here / "good.mp4")
        write(here / name)
        held, why = in_a_fork(lambda path=here / name: is_refused_by_name(path))
        row.add(held=held, what=f"{what}, {name}: {why}")
        shutil.rmtree(here)
    return row


def is_refused_by_name(path: Path) -> bool:
    """Return whether a file is refused in a line that names it, or left out of its folder for a reason of one line."""
    is_alone = path.suffix in LISTS or not path.is_file()  # what is no file is none of its folder
    try:
        spans, skipped = load_spans(
            path if is_alone else path.parent, ClipConfig(max_pixels=HEIGHT * WIDTH)
        )
    except DataError as error:
        print(error, file=sys.stderr)
        return is_alone and is_one_line(str(error)) and path.name in str(error)
    print(spans, skipped, file=sys.stderr)
    is_read = [span.info.source for span in spans] == [path.with_name("good.mp4")]
    return is_read and [skip.path for skip in skipped] == [path] and is_one_line(skipped[0].reason)


def cases(video: Path) -> list[tuple[str, str, Write]]:
    """Return what each file is, its name, and how it is written; some are made of a video."""
    text, link, box = Path.write_text, Path.symlink_to, struct.Struct(">I4s")
    compressed = box.pack(24, b"moov") + box.pack(16, b"cmov") + bytes(8)
    return [
        *(
            (
                f"sizes of frames {values}",
                "a.mp4",
                lambda path, values=values: write_claim(path, video, values),
            )
            for values in ((0, 10**8), (1, 10**8), (700, 10**4))
        ),
        ("compressed tables", "a.mov", lambda path: path.write_bytes(compressed)),
        (
            "list of FFmpeg",
            "a.mp4",
            lambda path: text(path, "ffconcat version 1.0\nfile good.mp4\n"),
        ),
        (
            "list of itself",
            "a.mp4",
            lambda path: text(path, "ffconcat version 1.0\n" + 9 * "file a.mp4\n"),
        ),
        ("playlist", "a.mp4", lambda path: text(path, "#EXTM3U\n#EXTINF:1,\ngood.mp4\n")),
        ("session", "a.mp4", lambda path: text(path, "v=0\ns=-\n")),
        *(
            ("program without an end", f"a{suffix}", write_postscript)
            for suffix in (".png", ".jpg", ".webp")
        ),
        ("frames that grow", "a.h264", write_growing),
        ("array of a TiB", "a.npz", lambda path: write_npz(path, b"(100000000, 48, 64, 3)")),
        (
            "size that is no C long",
            "a.npz",
            lambda path: write_npz(path, b"(1" + 30 * b"0" + b", )"),
        ),
        ("brackets without an end", "a.npz", lambda path: write_npz(path, b"(" * 9000)),
        *(
            (
                f"size {size}",
                "a.tar",
                lambda path, size=size, kind=kind: write_tar(path, size, kind),
            )
            for size in (-512, -1536)
            for kind in (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME)
        ),
        ("name of a TiB", "a.tar", lambda path: write_tar(path, 2**40, tarfile.GNUTYPE_LONGNAME)),
        (
            "size in attributes",
            "a.tar",
            lambda path: write_tar(path, 0, tarfile.REGTYPE, {"size": "-1024"}),
        ),
        *(("FIFO", f"a{suffix}", os.mkfifo) for suffix in (".mp4", ".png", *LISTS)),
        *(
            ("device", f"a{suffix}", lambda path: link(path, "/dev/zero"))
            for suffix in (".mp4", ".png", *LISTS)
        ),
        *(("sparse", f"a{suffix}", write_sparse) for suffix in (".mp4", ".png", *LISTS)),
    ]


def write_claim(path: Path, video: Path, values: tuple[int, int]) -> None:
    """Write an MP4 file whose table says this common size of the frames, or 0, and this number of them."""
    content = bytearray(video.read_bytes())
    struct.pack_into(">II", content, content.index(b"stsz") + 8, *values)
    path.write_bytes(content)


def write_postscript(path: Path) -> None:
    """Write an EPS picture whose program has no end."""
    Image.new("RGB", (8, 8)).save(path, "EPS")
    path.write_bytes(path.read_bytes().replace(b"%%EndComments\n", b"%%EndComments\n{ } loop\n"))


def write_growing(path: Path) -> None:
    """Write a stream whose frames grow to twenty times the height and the width."""
    for scale in (1, 20):
        part = path.with_name("part")
        with av.open(str(part), "w", format="h264") as container:
            height, width = HEIGHT * scale, WIDTH * scale
            stream = container.add_stream(
                "libx264", rate=12, height=height, width=width, pix_fmt="yuv420p"
            )
            for _ in range(4):
                container.mux(stream.encode(av.VideoFrame(width, height, "yuv420p")))
            container.mux(stream.encode())
        with path.open("ab") as file:
            file.write(part.read_bytes())
        part.unlink()


def write_npz(path: Path, shape: bytes) -> None:
    """Write an `.npz` whose only array says this shape, and has a MiB of zeros."""
    head = b"{'descr': '|u1', 'fortran_order': False, 'shape': " + shape + b"}\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        size = struct.pack("<H", len(head))
        archive.writestr("arr_0.npy", b"\x93NUMPY\1\0" + size + head + bytes(2**20))


def write_tar(path: Path, size: int, kind: bytes, attributes: dict[str, str] | None = None) -> None:
    """Write a tar file whose second member has this size in its header, or in its attributes."""
    first, second = tarfile.TarInfo("a.mp4"), tarfile.TarInfo("b.mp4")
    second.size, second.type, second.pax_headers = size, kind, attributes or {}
    header = second.tobuf(tarfile.PAX_FORMAT if attributes else tarfile.GNU_FORMAT)
    path.write_bytes(first.tobuf() + header + bytes(2048))


def write_sparse(path: Path) -> None:
    """Write a file that seems to have 40 GiB."""
    path.touch()
    os.truncate(path, SPARSE)
