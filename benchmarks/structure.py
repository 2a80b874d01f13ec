"""Size and structure of a checkout's source, beside their targets: a Markdown table.

    python benchmarks/structure.py
    python benchmarks/structure.py ../before . --names    # two checkouts side by side, and the names behind the figures

The source is parsed and not imported: the command needs the standard library only, and reads the version of telecine
whose settings stand in `training/config.py` as well as later ones.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
PACKAGE = "telecine"
Function = ast.FunctionDef | ast.AsyncFunctionDef
SETTINGS = "TrainConfig"
# Importing one of these imports PyTorch.
LOADS_TORCH = re.compile(r"(torch|torchvision|torchmetrics|accelerate|diffusers|lpips|safetensors\.torch)(\.|$)")
# The command line where it lay beside the packages; now it is `cli/`, and the files of `settings/` without settings.
COMMAND_LINE = {
    *("__main__.py", "start.py", "cli.py", "commands.py", "help.py", "completion.py", "tables.py"),
    *("settings_source.py", "argument_errors.py", "settings_file.py", "training/config_file.py"),
    "recipes/__init__.py",
}
REGULAR_EXPRESSIONS = {"compile", "search", "match", "fullmatch", "sub", "split", "findall", "finditer"}
# Functions that read settings beside the validator; modules that parse source code do so, too.
HAND_WRITTEN_READERS = {"check_names", "as_config", "as_terms", "as_ramp"}
# A constant of `telecine.runs`, and the files of a run that have no other meaning.
RUN_CONSTANT = re.compile(rf"{PACKAGE}\.runs(\.\w+)*\.[A-Z_]+")
RUN_FILES = {
    *("config.yaml", "state.json", "manifest.json", "environment.json", "summary.json"),
    *("metrics.jsonl", "health.jsonl", "side_by_side.mp4", "curves.png"),
}
OBJECTIVE, LOSS = "objective/video_autoencoder.py", "VideoAutoencoderLoss"
BUILT_IN_TERM = "latent_noise"
GENERATED_TABLE = re.compile(r"<!-- settings: .*?<!-- end -->", re.DOTALL)


@dataclass(frozen=True)
class Import:
    """An imported name, in full, such as `telecine.losses.mse`."""

    name: str
    line: int
    at_start: bool
    """Whether importing the module runs it: it stands in no function and not under `TYPE_CHECKING`."""


@dataclass(frozen=True)
class Module:
    """A source file of the package."""

    path: str
    """Relative to the package, with slashes."""
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the syntax tree."""
        return list(ast.walk(self.tree))

    @property
    def num_lines(self) -> int:
        """The number of lines, with comments and blank lines."""
        return len(self.text.splitlines())

    @property
    def folder(self) -> str:
        """The package of the file, or its own name if it lies beside the packages."""
        return self.path.partition("/")[0].removesuffix(".py")

    @property
    def name(self) -> str:
        """The dotted name."""
        parts = [PACKAGE, *self.path.removesuffix(".py").split("/")]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def imports(self) -> list[Import]:
        """All imported names, with lazy ones and those for type checkers."""
        return list(self._imports(self.tree, at_start=True))

    def _imports(self, node: ast.AST, *, at_start: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_start) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = self._origin(node)
            yield from (Import(f"{origin}.{alias.name}", node.lineno, at_start) for alias in node.names)
        else:
            later: list[ast.stmt] = []
            if isinstance(node, Function | ast.Lambda):
                at_start = False
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                later = node.body
            for child in ast.iter_child_nodes(node):
                yield from self._imports(child, at_start=at_start and child not in later)

    def _origin(self, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        parts = self.name.split(".")
        above = parts[: len(parts) - node.level + self.path.endswith("__init__.py")]
        return ".".join([*above, node.module] if node.module else above)

    @cached_property
    def definitions(self) -> list[Function | ast.ClassDef]:
        """The functions and classes at the top level."""
        return [node for node in self.tree.body if isinstance(node, Function | ast.ClassDef)]

    @property
    def public_names(self) -> list[str]:
        """The names of functions and classes at the top level that do not begin with an underscore."""
        return sorted({node.name for node in self.definitions if not node.name.startswith("_")})

    @property
    def dataclasses(self) -> list[ast.ClassDef]:
        """The classes with the decorator `dataclass`."""
        classes = [node for node in self.definitions if isinstance(node, ast.ClassDef)]
        return [node for node in classes if any("dataclass" in ast.unparse(each) for each in node.decorator_list)]

    @cached_property
    def identifiers(self) -> set[str]:
        """All names in the code, and the words of strings, which may be dotted paths."""
        found: set[str] = set()
        for node in self.nodes:
            if isinstance(node, ast.Name):
                found.add(node.id)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.alias):
                found |= {*node.name.split("."), node.asname or ""}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
                found |= set(re.findall(r"\w+", node.value))
        return found

    @property
    def strings(self) -> set[str]:
        """All literal strings."""
        return {node.value for node in self.nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@dataclass(frozen=True)
class Checkout:
    """A checkout of telecine."""

    root: Path

    @property
    def package(self) -> Path:
        """The folder of the package."""
        return self.root / "src" / PACKAGE

    @cached_property
    def modules(self) -> dict[str, Module]:
        """All modules by their dotted name.

        Raises:
            SystemExit: There is no package.
        """
        paths = sorted(self.package.rglob("*.py"))
        if not paths:
            raise SystemExit(f"`CHECKOUT` must be a folder with `src/{PACKAGE}`, but got {self.root}.")
        modules = [Module(path.relative_to(self.package).as_posix(), path.read_text("utf-8")) for path in paths]
        return {module.name: module for module in modules}

    @property
    def files(self) -> list[Module]:
        """All modules."""
        return list(self.modules.values())

    def module_of(self, imported: Import) -> str | None:
        """Return the module of the package that an import names, or in which the imported name stands."""
        if imported.name in self.modules:
            return imported.name
        parent = imported.name.rpartition(".")[0]
        return parent if parent in self.modules else None

    def loaded_by(self, name: str) -> set[str]:
        """Return the modules of the package that importing one of them loads, with itself and the packages around."""
        loaded, todo = set(), [name]
        while todo:
            current = todo.pop()
            if current not in self.modules or current in loaded:
                continue
            loaded.add(current)
            todo.append(current.rpartition(".")[0])
            found = (self.module_of(each) for each in self.modules[current].imports if each.at_start)
            todo += [each for each in found if each is not None]
        return loaded

    @cached_property
    def settings(self) -> dict[str, list[ast.ClassDef]]:
        """The dataclasses named `...Config` and their bases, by the module that defines them."""
        defined = {node.name: (name, node) for name, module in self.modules.items() for node in module.dataclasses}
        todo, seen = [name for name in defined if name.endswith("Config")], set()
        found: dict[str, list[ast.ClassDef]] = defaultdict(list)
        while todo:
            current = todo.pop()
            if current in defined and current not in seen:
                seen.add(current)
                module, node = defined[current]
                found[module].append(node)
                todo += [ast.unparse(base) for base in node.bases]
        return dict(found)

    @cached_property
    def setting_names(self) -> list[str]:
        """The names of all settings; a group of settings is none."""
        classes = [node for nodes in self.settings.values() for node in nodes]
        groups = {node.name for node in classes}
        items = [item for node in classes for item in node.body if isinstance(item, ast.AnnAssign)]
        named = [item for item in items if isinstance(item.target, ast.Name)]
        return [ast.unparse(item.target) for item in named if ast.unparse(item.annotation) not in groups]

    @cached_property
    def command_line(self) -> list[Module]:
        """The files of the command line: parsing, help, messages."""
        return [module for module in self.files if self._is_command_line(module)]

    def _is_command_line(self, module: Module) -> bool:
        has_functions = any(isinstance(node, Function) for node in module.definitions)
        reads_settings = module.folder == "settings" and has_functions and module.name not in self.settings
        return module.path in COMMAND_LINE or module.folder == "cli" or reads_settings


Found = tuple[str, Sequence[str]]
"""A figure, and the names that it counts."""


def counted(names: Sequence[str]) -> Found:
    """Return the number of names, and these."""
    return str(len(names)), names


def settings_load(checkout: Checkout) -> Found:
    """Count the modules that importing the settings loads, and say whether PyTorch is among what they import."""
    (start,) = (name for name, nodes in checkout.settings.items() if SETTINGS in {node.name for node in nodes})
    loaded = sorted(checkout.loaded_by(start))
    imports = (each for name in loaded for each in checkout.modules[name].imports if each.at_start)
    with_torch = any(LOADS_TORCH.match(each.name) for each in imports)
    return f"{len(loaded)} of {len(checkout.modules)}, {'and' if with_torch else 'no'} torch", loaded


def command_line(checkout: Checkout) -> Found:
    """Count the lines and files of the command line."""
    return size(checkout.command_line), [module.path for module in checkout.command_line]


def size(modules: Sequence[Module]) -> str:
    """Return lines and number of files."""
    return f"{sum(module.num_lines for module in modules)} lines in {len(modules)} files"


def regular_expressions(checkout: Checkout) -> Found:
    """Count the regular expressions of the command line: they take apart the English of its parser."""
    calls = [
        (module.path, node)
        for module in checkout.command_line
        for node in module.nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in REGULAR_EXPRESSIONS
    ]
    return counted([f"{path}:{node.lineno}" for path, node in calls if ast.unparse(node.func).startswith("re.")])


def hand_written_readers(checkout: Checkout) -> Found:
    """Count the functions that read settings by hand, and the modules that parse their source."""
    found = [
        f"{module.path}: {node.name}"
        for module in checkout.files
        for node in module.definitions
        if node.name in HAND_WRITTEN_READERS
    ]
    return counted([*found, *(m.path for m in checkout.files if any(each.name == "ast" for each in m.imports))])


def whole_settings(checkout: Checkout) -> Found:
    """Count the functions with a parameter that is the whole `TrainConfig`."""
    found = []
    for module in checkout.files:
        for node in module.nodes:
            if isinstance(node, Function):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                kinds = " ".join(ast.unparse(each.annotation) for each in given if each.annotation is not None)
                if re.search(rf"\b{SETTINGS}\b", kinds):
                    found.append(f"{module.path}: {node.name}")
    return counted(found)


def report_in_training(checkout: Checkout) -> Found:
    """Count the statements in `training` that import from `report`."""
    prefix = f"{PACKAGE}.report"
    lines = {
        f"{module.path}:{each.line}"
        for module in checkout.files
        if module.folder == "training"
        for each in module.imports
        if each.name == prefix or each.name.startswith(f"{prefix}.")
    }
    return counted(sorted(lines))


def run_layout(checkout: Checkout) -> Found:
    """Count the files that name files of a run, by a constant of `runs` or literally, and name their packages."""
    found = [
        module
        for module in checkout.files
        if module.strings & RUN_FILES or any(RUN_CONSTANT.fullmatch(each.name) for each in module.imports)
    ]
    packages = sorted({module.folder for module in found})
    return f"{len(found)} in {', '.join(packages) or 'none'}", [module.path for module in found]


def lecam(checkout: Checkout) -> Found:
    """Count the files in which LeCam occurs."""
    return counted([module.path for module in checkout.files if "lecam" in module.text.lower()])


def kinds_of_terms(checkout: Checkout) -> Found:
    """Count `Term`, and as another kind the weights beside it, from which a table of reserved names keeps it apart."""
    reserved = [module.path for module in checkout.files if "RESERVED" in module.identifiers]
    return str(1 + bool(reserved)), reserved


def built_in_term(checkout: Checkout) -> Found:
    """Count the files that name a built-in term, but for that of its function."""
    word = re.compile(rf"\b{BUILT_IN_TERM}\b")
    return counted(
        [
            module.path
            for module in checkout.files
            if word.search(module.text) and BUILT_IN_TERM not in module.public_names
        ]
    )


def circles(checkout: Checkout) -> Found:
    """Count the circles of imports, lazy ones and those for type checkers included.

    The package's own `__init__` is left out: it loads its names on first use.
    """
    targets = {
        name: {to for each in module.imports if (to := checkout.module_of(each)) not in (None, name, PACKAGE)}
        for name, module in checkout.modules.items()
    }
    reached = {name: reachable(name, targets) for name in checkout.modules}
    found = {frozenset(other for other in reached[name] if name in reached[other]) for name in reached}
    return counted(sorted(" - ".join(sorted(circle)) for circle in found if circle))


def reachable(name: str, targets: dict[str, set[str]]) -> set[str]:
    """Return the modules that imports lead to from one, with itself only if there is a way back."""
    found: set[str] = set()
    todo = [name]
    while todo:
        new = targets[todo.pop()] - found
        found |= new
        todo += new
    return found


def loose_files(checkout: Checkout) -> Found:
    """Count the files beside the packages."""
    return counted([module.path for module in checkout.files if "/" not in module.path])


def defined_twice(checkout: Checkout) -> Found:
    """Count the public names that more than one module defines."""
    defining: dict[str, list[str]] = defaultdict(list)
    for module in checkout.files:
        for name in module.public_names:
            defining[name].append(module.path)
    return counted([f"{name} ({', '.join(paths)})" for name, paths in sorted(defining.items()) if len(paths) > 1])


def public_names(checkout: Checkout) -> Found:
    """Count the public functions and classes at the top level of modules, for 1000 lines."""
    number = sum(len(module.public_names) for module in checkout.files)
    return f"{1000 * number / sum(module.num_lines for module in checkout.files):.1f}", []


def used_by_own_file(checkout: Checkout) -> Found:
    """Count the public functions and classes that no other file of the package names."""
    number_of_files: dict[str, int] = defaultdict(int)
    for module in checkout.files:
        for name in module.identifiers | set(module.public_names):
            number_of_files[name] += 1
    found = [(module.path, name) for module in checkout.files for name in module.public_names]
    return counted([f"{path}: {name}" for path, name in found if number_of_files[name] == 1])


def settings(checkout: Checkout) -> Found:
    """Count the settings."""
    return counted(checkout.setting_names)


def unused_settings(checkout: Checkout) -> Found:
    """Count the settings that no recipe and no page names, the generated tables aside."""
    pages = [checkout.root / "README.md", *sorted((checkout.root / "docs").glob("*.md"))]
    texts = [GENERATED_TABLE.sub("", page.read_text("utf-8")) for page in pages if page.is_file()]
    texts += [path.read_text("utf-8") for path in sorted(checkout.package.rglob("*.yaml"))]
    words = set(re.findall(r"\w+", " ".join(texts)))
    return counted([name for name in checkout.setting_names if name not in words])


def objective_lines(checkout: Checkout) -> Found:
    """Count the lines of the file that has both steps."""
    return str(sum(module.num_lines for module in checkout.files if module.path == OBJECTIVE)), []


def constructor_lines(checkout: Checkout) -> Found:
    """Count the lines of the objective's constructor, with its signature."""
    classes = [node for m in checkout.files for node in m.definitions if node.name == LOSS]
    methods = [item for node in classes for item in node.body if isinstance(item, Function) and item.name == "__init__"]
    return str(sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in methods)), []


def benchmarks(checkout: Checkout) -> Found:
    """Count the commands in `benchmarks/`, and its files and lines."""
    texts = {path.name: path.read_text("utf-8") for path in sorted((checkout.root / "benchmarks").glob("*.py"))}
    commands = [name for name, text in texts.items() if '\nif __name__ == "__main__":' in text]
    lines = sum(len(text.splitlines()) for text in texts.values())
    return f"{len(commands)} commands, {lines} lines in {len(texts)} files", commands


def source(checkout: Checkout) -> Found:
    """Count the lines and files of the package."""
    return size(checkout.files), []


# What is counted, how, and the target.
ROWS: dict[str, tuple[Callable[[Checkout], Found], str]] = {
    "modules that importing the settings loads": (settings_load, "<= 15, no torch"),
    "command line, parsing, help, messages": (command_line, "<= 600 in <= 5"),
    "regular expressions in these": (regular_expressions, "0"),
    "hand-written readers of settings": (hand_written_readers, "0"),
    "signatures that take the whole `TrainConfig`": (whole_settings, "<= 20"),
    "imports of `report` inside `training`": (report_in_training, "<= 3"),
    "files that know how a run's folder looks": (run_layout, "one package"),
    "files that know LeCam": (lecam, "<= 4"),
    "kinds of terms of the objective": (kinds_of_terms, "1"),
    f"files that name the term `{BUILT_IN_TERM}`, besides its function's": (built_in_term, "<= 1"),
    "circles of imports": (circles, "0"),
    "loose files beside the packages": (loose_files, "<= 4"),
    "names that more than one module defines": (defined_twice, "0"),
    "public names per 1000 lines": (public_names, "<= 24"),
    "public names that only their own file uses": (used_by_own_file, ""),
    "settings": (settings, ""),
    "settings in no recipe and on no page": (unused_settings, "0"),
    f"lines of `{OBJECTIVE}`": (objective_lines, "<= 300"),
    f"lines of `{LOSS}.__init__`": (constructor_lines, "<= 30"),
    "`benchmarks/`": (benchmarks, "a dozen commands"),
    f"`src/{PACKAGE}`": (source, "<= 26000 lines in <= 170 files"),
}


def print_row(cells: Sequence[str]) -> None:
    """Print a line of a Markdown table."""
    print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Print the table, and the names if asked for."""
    parser = argparse.ArgumentParser(description="Print the size and structure of checkouts, beside their targets.")
    parser.add_argument("checkouts", nargs="*", type=Path, default=[HERE], metavar="CHECKOUT", help="this by default")
    parser.add_argument("--names", action="store_true", help="also print what is counted")
    arguments = parser.parse_args()
    checkouts = [Checkout(path) for path in arguments.checkouts]
    found = {what: [count(each) for each in checkouts] for what, (count, _) in ROWS.items()}
    titles = [str(path) for path in arguments.checkouts] if len(checkouts) > 1 else ["value"]
    print_row(["what", *titles, "target"])
    print_row(["---"] * (2 + len(titles)))
    for what, values in found.items():
        print_row([what, *(value for value, _ in values), ROWS[what][1]])
    for what, values in found.items() if arguments.names else ():
        for title, (value, names) in zip(titles, values, strict=True):
            print(f"\n{what}, {title}: {value}", *names, sep="\n    ")


if __name__ == "__main__":
    main()
