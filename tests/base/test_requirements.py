"""How to install what is missing."""

import importlib.metadata
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import telecine
from telecine.base.requirements import how_to_install

SOURCE = Path(telecine.__file__).parent


def test_the_packages_of_an_extra_are_named_with_their_versions(monkeypatch):
    lines = ["torch>=2.6", "a>=1; extra == 'x'", "b[c]>=2,<3; extra == 'x'", "d; extra == 'xy'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert how_to_install("x") == "Run `pip install 'a>=1' 'b[c]>=2,<3'`."
    assert how_to_install("xy") == "Run `pip install d`."


def test_every_extra_that_an_error_names_has_packages():
    calls = re.compile(r"how_to_install\([\"'](\w+)[\"']\)")
    extras = [name for path in SOURCE.rglob("*.py") for name in calls.findall(path.read_text(encoding="utf-8"))]
    assert len(extras) == 8
    for extra in extras:
        assert re.fullmatch(r"Run `pip install( '[\w-]+(\[\w+\])?>=[\d.]+')+`\.", how_to_install(extra))


def test_a_source_that_is_not_installed(monkeypatch):
    def requires(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert how_to_install("train") == "Run `pip install -e '.[train]'` in the checkout."
