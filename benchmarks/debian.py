"""Files of packages of Debian, which are downloaded and unpacked, and not installed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from telecine.base.checks import argument_error


def unpack_package(name: str, folder: Path) -> None:
    """Download a package of Debian and unpack its files into `folder`; nothing is installed."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            remedy = f"Run it on Debian or Ubuntu, or unpack the package {name} yourself."
            raise argument_error(
                "the machine", f"one that has {program}", "one without", remedy, FileNotFoundError
            )
    subprocess.run(["apt-get", "-qq", "download", name], cwd=folder, check=True)
    (archive,) = folder.glob(f"{name}_*.deb")
    subprocess.run(["dpkg-deb", "--extract", str(archive), str(folder)], check=True)


def check_digest(content: bytes, name: str, digest: str) -> None:
    """Raise a `ValueError` unless the content of a file has this SHA-256."""
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        remedy = "Another version of the package has other files: figures would not compare."
        raise argument_error(Path(name).name, f"the file of SHA-256 {digest}", found, remedy)
