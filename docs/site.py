"""A hook of MkDocs: the pages of the site that are made from the code and from files outside this folder.

    make docs

`README.md`, `CHANGELOG.md`, `CONTRIBUTING.md` and `SECURITY.md` become pages, as do the command line's help, the
settings and the API of every public name. Pages link to files of the repository; the site has copies of these files.
Formulas become MathML, which browsers draw by themselves.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Files of the repository that are pages, by their place on the site.
PAGES = {
    "index.md": ROOT / "README.md",
    "changelog.md": ROOT / "CHANGELOG.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "security.md": ROOT / "SECURITY.md",
}
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)
KEPT = re.compile(r"keptformula(\d+)end")
FORMULAS: list[str] = []
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", "": "text"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in this folder."""
    found = {uri: path.read_text(encoding="utf-8") for uri, path in PAGES.items()}
    found |= {"cli.md": command_line(), "settings.md": settings(), **api()}
    for uri, content in found.items():
        files.append(File.generated(config, uri, content=content))
    for path in linked_files(config):
        if path.suffix in LANGUAGES or path.is_dir():
            files.append(File.generated(config, place_of(path), content=listing(path)))
        else:
            files.append(File.generated(config, place_of(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the repository lead to their copies, and draw formulas."""
    origin = origin_of(page.file.src_uri)

    def replace(match: re.Match[str]) -> str:
        start, target, end = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        place = place_of((origin.parent / target).resolve())
        return f"{start}{os.path.relpath(place, Path(page.file.src_uri).parent)}{end}"

    parts = CODE.split(markdown)
    parts[::2] = [
        FORMULA.sub(keep_formula, LINK.sub(replace, text) if origin.exists() else text)
        for text in parts[::2]
    ]
    return "".join(parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the formulas back, and choose where names in code may be broken."""
    html = KEPT.sub(lambda match: FORMULAS[int(match[1])], html)
    return beside("line_breaks").with_line_breaks(html)


def origin_of(uri: str) -> Path:
    """Return the file of the repository that a page was made from; one that does not exist if it was generated."""
    if uri.startswith("files/"):
        return ROOT / uri.removeprefix("files/")
    return PAGES.get(uri, DOCS / uri)


def place_of(path: Path) -> str:
    """Return where a file of the repository is on the site."""
    for uri, page in PAGES.items():
        if path == page:
            return uri
    if path.is_relative_to(DOCS):
        return str(path.relative_to(DOCS))
    place = f"files/{path.relative_to(ROOT)}"
    return f"{place}.md" if path.suffix in LANGUAGES or path.is_dir() else place


def linked_files(config: MkDocsConfig) -> set[Path]:
    """Return the files outside this folder that pages link to, and those that these link to."""
    found: set[Path] = set()
    waiting = [*DOCS.glob("*.md"), *PAGES.values()]
    while waiting:
        origin = waiting.pop()
        for _, target, _ in LINK.findall(CODE.sub("", origin.read_text(encoding="utf-8"))):
            path = (origin.parent / target).resolve()
            if (
                "://" in target
                or path in found
                or path in PAGES.values()
                or path.is_relative_to(DOCS)
            ):
                continue
            if not path.exists():
                raise FileNotFoundError(f"{origin} links to {target}, which does not exist.")
            found.add(path)
            if path.suffix == ".md":
                waiting.append(path)
    return found


def listing(path: Path) -> str:
    """Return a page with the content of a file, or with the names in a folder. The search leaves it out."""
    title = f"---\nsearch: {{exclude: true}}\n---\n\n# `{path.relative_to(ROOT)}`\n\n"
    if path.is_dir():
        return title + "".join(
            f"- `{each.name}`\n" for each in sorted(path.iterdir()) if each.name[0] not in "._"
        )
    return f"{title}````{LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8')}\n````\n"


def keep_formula(match: re.Match[str]) -> str:
    """Keep a formula in TeX as MathML, and return what stands for it: Markdown would tear it out of its sentence."""
    block, inline = match.groups()
    display = "block" if block else "inline"
    FORMULAS.append(
        latex2mathml.converter.convert(" ".join((block or inline).split()), display=display)
    )
    return f"keptformula{len(FORMULAS) - 1}end"


def command_line() -> str:
    """Return the page of all commands, as `--help` prints them."""
    from telecine.cli.program import COMMANDS

    os.environ["COLUMNS"] = "100"
    text = "# Command line\n\nWhat `telecine COMMAND --help` prints. [Settings](settings.md) has tables.\n"
    for name, command in COMMANDS.items():
        text += f"\n## telecine {name}\n\n```text\n{command.help()}```\n"
    return text


def settings() -> str:
    """Return the page of all settings."""
    from telecine.settings import EvaluateConfig, LatentsConfig, ReconstructConfig, TrainConfig
    from telecine.settings.listing import settings_of
    from telecine.tools.decode.settings import DecodeConfig
    from telecine.tools.encode.settings import EncodeConfig
    from telecine.tools.prune.settings import PruneConfig

    commands = {"train": TrainConfig, "evaluate": EvaluateConfig, "latents": LatentsConfig}
    commands |= {"reconstruct": ReconstructConfig, "encode": EncodeConfig, "decode": DecodeConfig}
    commands["prune"] = PruneConfig
    text = "# Settings\n\nOptions of a command, or keys of a YAML file for `--config`. "
    text += "A dot is a group: `clips.height`.\n"
    for command, kind in commands.items():
        text += f"\n## {command}\n"
        every = list(settings_of(kind))
        for group in ["", *(item.name for item in every if item.is_group)]:
            title = f"\n### {command}: `{group}`\n" if group else ""
            text += f"{title}\n| setting | what it does | default |\n|---|---|---|\n"
            for item in every:
                if not item.is_group and item.name.rpartition(".")[0] == group:
                    what = " ".join(re.split(r"\n(?=Source: )", item.text)[0].split())
                    cells = (f"`{item.name}`", what, f"`{item.default!r}`")
                    text += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return text


@functools.cache
def beside(name: str) -> Any:
    """Import a module from a file beside this one."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def api() -> dict[str, str]:
    """Return a page for each package with public names, and one that lists them."""
    pages, index = {}, "# Python\n\n"
    modules = public_modules()
    for module in modules:
        names = [
            name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)
        ]
        text = f"# {module.__name__}\n\n{(module.__doc__ or '').strip()}\n\n"
        pages[f"api/{module.__name__}.md"] = text + "\n".join(
            entry(name, module, modules) for name in names
        )
        listed = ", ".join(f"`{name}`" for name in names)
        index += f"- [`{module.__name__}`]({module.__name__}.md): {listed}\n"
    return {**pages, "api/index.md": index}


def public_modules() -> list[ModuleType]:
    """Return telecine, and its packages that list their public names, the innermost first."""
    import telecine

    packages = [
        info.name for info in pkgutil.walk_packages(telecine.__path__, "telecine.") if info.ispkg
    ]
    found = [
        module for module in map(importlib.import_module, packages) if hasattr(module, "__all__")
    ]
    return [telecine, *sorted(found, key=lambda module: -len(module.__name__))]


def entry(name: str, module: ModuleType, modules: list[ModuleType]) -> str:
    """Return the entry of a public name: what griffe finds, or a link to the page of the package that defines it."""
    value: Any = getattr(module, name)
    home = (
        getattr(value, "__module__", None) if getattr(value, "__qualname__", None) == name else None
    )
    if home is None:
        return f"## `{name}`\n\nA value of type `{type(value).__name__}`.\n"
    homes = [
        each
        for each in modules
        if f"{home}.".startswith(f"{each.__name__}.") and name in each.__all__
    ]
    owner = homes[0] if homes else module
    if owner is module:
        return f"::: {home}.{name}\n"
    return f"## `{name}`\n\nThat of [`{owner.__name__}`]({owner.__name__}.md#{home}.{name}).\n"
