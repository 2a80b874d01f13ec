"""Settings import only what is telecine's own or was allowed."""

import ast
import re
import sys
from pathlib import Path

import pytest

import telecine
from telecine import allow_code
from telecine.base.imports import import_allowed
from telecine.cli.main import main
from telecine.discriminators.build import _resolve_class
from telecine.settings import Term
from telecine.settings.parse import config_from, read_config

MODULE = """
import sys
from os import system
from pathlib import Path
Path({marker!r}).touch()
def edges(*, reconstruction, target):
    return (reconstruction - target).abs().mean()
def my_loss(*, real, fake):
    return real
class Options:
    def __call__(self):
        return None
"""


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """A module that leaves a file behind when it is imported; each test has another, since what is allowed stays so."""
    name = f"package_of_{abs(hash(request.node.name))}"
    marker = tmp_path / "imported"
    (tmp_path / f"{name}.py").write_text(MODULE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    yield name, marker
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("objective: {{gan: {{loss: {0}.my_loss}}}}", "objective.gan.loss"),
        ("objective: {{penalty: {{kind: {{class_path: {0}.Options}}}}}}", "objective.penalty.kind"),
        ("objective: {{terms: {{edges: {{target: {0}.edges}}}}}}", "target"),
        ("objective: {{terms: {{edges: {{target: {{class_path: {0}.Options}}}}}}}}", "objective.terms"),
        ("objective: {{terms: {{edges: {{class_path: {0}.Options}}}}}}", "objective.terms"),
        ("objective: {{class_path: {0}.Options}}", "a setting"),
        ("optimizer: {0}.Options", "optimizer"),
    ],
)
def test_a_settings_file_imports_nothing_that_is_not_allowed(text, setting, package, tmp_path):
    name, marker = package
    path = tmp_path / "settings.yaml"
    path.write_text(text.format(name))
    message = rf"`{setting}` must be in telecine .*, but got '{name}\.\w+'. If you trust it, add `--allow_code {name}`"
    with pytest.raises(ValueError, match=message) as found:
        read_config(path)
    assert not marker.exists()
    assert len(str(found.value)) < 400


def test_an_argument_of_a_term_that_looks_like_a_class_is_not_made(package):
    name, marker = package
    options = {"class_path": f"{name}.Options"}
    config = config_from({"objective": {"terms": {"wavelet": {"params": {"levels": options}}}}})
    assert config.objective.terms["wavelet"].params == {"levels": options}
    assert not marker.exists()


def test_what_is_allowed_is_imported(package):
    name, marker = package
    settings = {"objective": {"gan": {"loss": f"{name}.my_loss"}, "terms": {"edges": {"target": f"{name}.edges"}}}}
    allow_code(name)
    assert config_from(settings).objective.gan.loss.__name__ == "my_loss"
    assert marker.exists()


def test_the_command_line_allows_it_and_a_file_does_not(package, tmp_path, capsys, monkeypatch):
    name, marker = package
    path = tmp_path / "settings.yaml"
    path.write_text(f"allow_code: [{name}]\nobjective: {{gan: {{loss: {name}.my_loss}}}}\n")
    assert main(["train", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("telecine: error: `objective.gan.loss` must be in telecine")
    assert error.count("\n") == 1
    assert not marker.exists()
    path.write_text(f"objective: {{gan: {{loss: {name}.my_loss}}}}\n")
    given = []
    monkeypatch.setattr("telecine.cli.main.train", lambda config, **_: given.append(config))
    monkeypatch.setattr("telecine.cli.main.print_result", lambda *_: None)
    assert main(["train", "--config", str(path), "--allow_code", "json", f"--allow_code={name}"]) == 0
    assert given[0].objective.gan.loss.__name__ == "my_loss"


# A module that imports its parts when they are used.
LAZY = """
def __getattr__(name):
    if name == "edges":
        import no_such_package
    raise AttributeError(name)
"""
NAMED = {
    "terms": "objective: {{terms: {{mine: {{target: {0}.edges, weight: 1}}}}}}",
    "loss": "objective: {{gan: {{loss: {0}.edges}}}}",
}


@pytest.mark.parametrize("setting", NAMED)
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (None, r"\. No module named '{0}'\. Install it, or add its folder to `PYTHONPATH`\."),
        ("edge = 1", r": {0} has no `edges`\. Did you mean `edge`\?"),
        ("import torch\nmissing", r"\. Its module raises NameError: .*{0}\.py, line 2\)\. Correct it there\."),
        ("import no_such_package", r"\. Its module raises ModuleNotFoundError: .*{0}\.py, line 1\)\. Correct"),
        ("raise RuntimeError('two\\nlines')", r"\. Its module raises RuntimeError: two lines \(.*line 1\)\. Correct"),
        ("import json\njson.loads('{')", r"\. Its module raises JSONDecodeError: .*{0}\.py, line 2\)\. Correct"),
        (LAZY, r"\. Its module raises ModuleNotFoundError: .*'no_such_package' \(.*{0}\.py, line 4\)\. Correct"),
        ("def edges(:", r"\. Its module raises SyntaxError: .*\({0}\.py, line 1\)\. Correct"),
    ],
)
def test_code_that_cannot_be_imported_is_one_line(code, reason, setting, package, tmp_path, capsys):
    name, _ = package
    if code is None:
        name = "telecine_no_such_package"
    else:
        (tmp_path / f"{name}.py").write_text(code)
    path = tmp_path / "settings.yaml"
    path.write_text(NAMED[setting].format(name))
    assert main(["config", "validate", str(path), "--allow_code", name]) == 2
    error = capsys.readouterr().err
    shown = "target" if setting == "terms" else r"(--)?objective\.gan\.loss"
    assert re.fullmatch(
        rf"telecine: error: `{shown}` must be importable, but got '{name}\.edges'{reason.format(name)}.*\n", error
    )


def test_a_part_of_a_package_that_does_not_exist():
    with pytest.raises(ValueError, match=r"No module named 'telecine.nowhere'\. Check the spelling\.$"):
        import_allowed("telecine.nowhere.edges", "target")


def test_what_an_allowed_module_only_imports_is_not_allowed(package):
    name, _ = package
    allow_code(name)
    with pytest.raises(ValueError, match=rf"'{name}.system', which is posix.system"):
        Term(f"{name}.system", params={"command": "true"})
    with pytest.raises(ValueError, match=r"posix\.system"):
        config_from({"objective": {"gan": {"loss": f"{name}.system"}}})


@pytest.mark.parametrize("target", ["math.dist", "os.system", "builtins.eval"])
def test_terms_and_discriminators_of_other_packages(target):
    for build in (Term, lambda path: _resolve_class(path, "discr_kwargs")):
        with pytest.raises(ValueError, match=rf"but got '{target}'. If you trust it, add `--allow_code"):
            build(target)


def test_a_function_of_neither_video_is_no_term(tmp_path):
    path = tmp_path / "file.json"
    with pytest.raises(ValueError, match="`target` must be a function of 'reconstruction'"):
        Term("telecine.base.files.write_json", params={"path": path, "value": 1})
    assert not path.exists()


@pytest.mark.parametrize("package", ["", "a/b", "a b", ".a", "*"])
def test_only_names_of_packages_can_be_allowed(package):
    with pytest.raises(ValueError, match="`allow_code` must be the name of a package"):
        allow_code(package)


def test_no_assert_checks_what_could_be_wrong():
    """`python -O` skips asserts, so they only tell the type checker what is known."""
    narrowing = 0
    for path in Path(telecine.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert):
                text = ast.unparse(node.test)
                assert text.startswith(("isinstance(", "is_dataclass(")) or text.endswith(" is not None"), (path, text)
                narrowing += 1
    assert narrowing > 5
