"""Size and structure of a checkout's source: a Markdown table.

    python benchmarks/structure.py
    python benchmarks/structure.py --src ../other/src

The source is parsed and not imported. Run the command for two checkouts to compare them.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from measure import table

SRC = Path(__file__).resolve().parents[1] / "src"
OBJECTIVE = "objective/video_autoencoder.py"
TRAIN_CONFIG = "training/config.py"
LOSS = "VideoAutoencoderLoss"
SHORT = 4
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A source file."""

    source: str

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the syntax tree."""
        return list(ast.walk(ast.parse(self.source)))

    @cached_property
    def code_lines(self) -> set[int]:
        """The numbers of the lines that are not blank, comments or docstrings."""
        lines = enumerate((line.strip() for line in self.source.splitlines()), 1)
        code = {number for number, line in lines if line and not line.startswith("#")}
        for node in self.nodes:
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                code -= {*lines_of(node)}
        return code

    @property
    def functions(self) -> list[Function]:
        """All functions and methods."""
        return [node for node in self.nodes if isinstance(node, Function)]

    @property
    def short_functions(self) -> list[Function]:
        """The functions of at most `SHORT` lines, with signature and docstring."""
        return [function for function in self.functions if len(lines_of(function)) <= SHORT]

    @property
    def any_lines(self) -> set[int]:
        """The numbers of the lines that use `Any`, without imports."""
        return {node.lineno for node in self.nodes if isinstance(node, ast.Name) and node.id == "Any"}

    @property
    def constants(self) -> dict[str, ast.expr]:
        """The values of all variables whose names are in upper case."""
        assignments = (node for node in self.nodes if isinstance(node, ast.Assign))
        pairs = ((target, node.value) for node in assignments for target in node.targets)
        return {name.id: value for name, value in pairs if isinstance(name, ast.Name) and name.id.isupper()}

    def constructor(self, name: str) -> dict[str, ast.expr | None]:
        """Return the defaults of the arguments of a class's constructor, without `self`."""
        (cls,) = (node for node in self.nodes if isinstance(node, ast.ClassDef) and node.name == name)
        (init,) = (node for node in cls.body if isinstance(node, Function) and node.name == "__init__")
        given = init.args
        positional = [argument.arg for argument in given.args]
        required = dict.fromkeys(positional[1 : len(positional) - len(given.defaults)])
        optional = dict(zip(positional[len(positional) - len(given.defaults) :], given.defaults, strict=True))
        keyword_only = dict(zip((argument.arg for argument in given.kwonlyargs), given.kw_defaults, strict=True))
        return {**required, **optional, **keyword_only}

    @property
    def fields(self) -> dict[str, ast.expr]:
        """The defaults of the fields of all classes."""
        items = (item for node in self.nodes if isinstance(node, ast.ClassDef) for item in node.body)
        annotated = (item for item in items if isinstance(item, ast.AnnAssign) and item.value is not None)
        return {item.target.id: item.value for item in annotated if isinstance(item.target, ast.Name) and item.value}


def lines_of(node: ast.stmt) -> range:
    """Return the numbers of a statement's lines, without decorators."""
    assert node.end_lineno is not None
    return range(node.lineno, node.end_lineno + 1)


def value_of(node: ast.expr | None, constants: dict[str, ast.expr]) -> object:
    """Return the value of a literal or of a named constant, else the source of an expression."""
    if isinstance(node, ast.Name) and node.id in constants:
        node = constants[node.id]
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def figures(src: Path) -> Iterator[tuple[str, int]]:
    """Yield the figures of the package in `src`, with their names."""
    package = src / "telecine"
    modules = {str(p.relative_to(package).as_posix()): Module(p.read_text("utf-8")) for p in package.rglob("*.py")}
    every = modules.values()
    arguments = modules[OBJECTIVE].constructor(LOSS)
    fields = modules[TRAIN_CONFIG].fields
    constants = {name: value for module in every for name, value in module.constants.items()}
    repeated = arguments.keys() & fields.keys()
    differing = [name for name in repeated if value_of(arguments[name], constants) != value_of(fields[name], constants)]
    yield f"lines of `{OBJECTIVE}`", len(modules[OBJECTIVE].source.splitlines())
    yield f"constructor arguments of `{LOSS}`", len(arguments)
    yield f"settings of `{LOSS}` that `{TRAIN_CONFIG}` defines again", len(repeated)
    yield "of these, with another default", len(differing)
    yield "source files", len(modules)
    yield "lines of code, without blank lines, comments and docstrings", sum(len(m.code_lines) for m in every)
    yield "functions", sum(len(m.functions) for m in every)
    yield f"functions of at most {SHORT} lines", sum(len(m.short_functions) for m in every)
    yield "lines that use `Any`, without imports", sum(len(m.any_lines) for m in every)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Print the size and structure of a checkout's source.")
    parser.add_argument("--src", type=Path, default=SRC, help="the folder that contains the package `telecine`")
    print(table(["figure", "value"], ([name, str(value)] for name, value in figures(parser.parse_args().src))))


if __name__ == "__main__":
    main()
