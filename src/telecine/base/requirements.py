"""How to install what an extra of this package needs."""

from __future__ import annotations

import shlex


def how_to_install(extra: str) -> str:
    """Return the sentence of an error that says how to install the packages of an extra, such as "diffusers".

    The packages are named, which also works where telecine was installed from a checkout.
    """
    from importlib.metadata import PackageNotFoundError, requires  # takes time that `telecine --version` must not spend

    try:
        lines = requires("telecine") or []
    except PackageNotFoundError:  # its source is used without being installed
        return f"Run `pip install -e '.[{extra}]'` in the checkout."
    parts = (line.partition(";") for line in lines)
    needed = [name.strip() for name, _, marker in parts if marker.strip() == f"extra == '{extra}'"]
    return f"Run `{shlex.join(['pip', 'install', *needed])}`."
