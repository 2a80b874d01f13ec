"""Benchmarks import names that telecine has: most of them run for too long to be tested."""

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_the_names_that_a_benchmark_imports_exist(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("telecine"):
            module = importlib.import_module(node.module)
            for imported in node.names:
                is_module = hasattr(module, "__path__") and find_spec(
                    f"{node.module}.{imported.name}"
                )
                assert hasattr(module, imported.name) or is_module, (node.module, imported.name)
