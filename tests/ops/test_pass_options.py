"""The options of passes, and the table of `ops/pass_options.py` against the source: who sets one, and who reads it."""

import ast
import re
from pathlib import Path

import telecine
from telecine.ops import pass_options

SOURCE = Path(telecine.__file__).parent
SETTERS = {
    "differentiated_twice": "is_differentiated_twice",
    "shared_spectral_norms": "spectral_norms",
}


def functions_of(path):
    """Yield the name of each function and method of a module, and its node."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    yield f"{node.name}.{member.name}", member


def uses():
    """Return the functions that set an option and those that read it, by option."""
    setters = {option: set() for option in SETTERS.values()}
    readers = {option: set() for option in SETTERS.values()}
    for path in SOURCE.rglob("*.py"):
        if path == Path(pass_options.__file__) or "pass_options" not in path.read_text("utf-8"):
            continue
        for name, function in functions_of(path):
            for node in ast.walk(function):
                if isinstance(node, ast.Call):
                    option = SETTERS.get(getattr(node.func, "id", None))
                    if option is not None:
                        setters[option].add(name)
                if isinstance(node, ast.Attribute) and node.attr in readers:
                    readers[node.attr].add(name)
    return setters, readers


def test_the_table_names_who_sets_and_who_reads_an_option():
    setters = {option: set() for option in SETTERS.values()}
    readers = {option: set() for option in SETTERS.values()}
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| (.+) \|$", pass_options.__doc__, re.MULTILINE)
    for option, function, what in rows:
        if "sets it" in what:
            setters[option].add(function)
        if "reads it" in what:
            readers[option].add(function)
    assert len(rows) == 7
    assert (setters, readers) == uses()


def test_the_end_of_one_context_leaves_the_options_of_others():
    """They need not end in the order in which they began, as in generators."""
    twice = pass_options.differentiated_twice()
    shared = pass_options.shared_spectral_norms()
    twice.__enter__()
    shared.__enter__()
    norms = pass_options.pass_options().spectral_norms
    twice.__exit__(None, None, None)
    assert not pass_options.pass_options().is_differentiated_twice
    assert pass_options.pass_options().spectral_norms is norms
    shared.__exit__(None, None, None)
    assert not pass_options.pass_options().is_differentiated_twice
    assert pass_options.pass_options().spectral_norms is None
