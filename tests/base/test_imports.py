"""Settings import only what is telecine's own or was allowed. Errors name what to install."""

import ast
import importlib.metadata
import re
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import telecine
from telecine import allow_code
from telecine.__main__ import main
from telecine.base.imports import choose, how_to_install, import_allowed
from telecine.base.moved_modules import MOVED_MODULES
from telecine.discriminators import Discriminator, build_discriminator
from telecine.objective.terms import import_terms
from telecine.settings import ObjectiveConfig, Term
from telecine.settings.parse import read_config

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


BUILT = {
    "objective: {{gan: {{loss: {0}.my_loss}}}}": lambda config: choose(
        "gan.loss", config.objective.gan.loss, {}
    ),
    "objective: {{penalty: {{kind: {0}.my_loss}}}}": lambda config: choose(
        "kind", config.objective.penalty.kind, {}
    ),
    "objective: {{terms: {{edges: {{target: {0}.edges}}}}}}": lambda config: import_terms(
        config.objective
    ),
}


@pytest.mark.parametrize("text", BUILT)
def test_nothing_is_imported_that_is_not_allowed(text, package, tmp_path):
    name, marker = package
    path = tmp_path / "settings.yaml"
    path.write_text(text.format(name))
    config = read_config(path)
    message = rf"must be in telecine .*, but got '{name}\.\w+'. If you trust it, add `--allow_code {name}`"
    with pytest.raises(ValueError, match=message) as error:
        BUILT[text](config)
    assert not marker.exists()
    assert len(str(error.value)) < 400
    allow_code(name)
    assert BUILT[text](config)
    assert marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "objective: {{penalty: {{kind: {{class_path: {0}.Options}}}}}}",
        "objective: {{terms: {{edges: {{target: {{class_path: {0}.Options}}}}}}}}",
        "objective: {{terms: {{edges: {{class_path: {0}.Options}}}}}}",
        "objective: {{class_path: {0}.Options}}",
        "optimizer: {0}.Options",
    ],
)
def test_no_setting_is_made_from_a_class_path(text, package, tmp_path):
    name, marker = package
    path = tmp_path / "settings.yaml"
    path.write_text(text.format(name))
    with pytest.raises(
        ValueError, match=r"^`(objective|optimizer)[\w.]*` (is not a setting|must be)"
    ):
        read_config(path)
    assert not marker.exists()


def test_an_argument_of_a_term_that_looks_like_a_class_is_not_made(package):
    name, marker = package
    options = {"class_path": f"{name}.Options"}
    config = read_config({"objective": {"terms": {"wavelet": {"params": {"levels": options}}}}})
    assert config.objective.terms["wavelet"].params == {"levels": options}
    assert not marker.exists()


def test_the_command_line_allows_it_and_a_file_does_not(package, tmp_path, capsys):
    name, marker = package
    path = tmp_path / "settings.yaml"
    terms = f"objective: {{terms: {{edges: {{target: {name}.edges}}}}}}\n"
    path.write_text(f"allow_code: [{name}]\n{terms}")
    assert main(["config", "validate", str(path)]) == 2
    assert main(["train", "--config", str(path)]) == 2
    for error in capsys.readouterr().err.splitlines():
        assert error.startswith("telecine: error: `allow_code` ")
    path.write_text(terms)
    assert main(["config", "validate", str(path)]) == 2
    assert capsys.readouterr().err.startswith(
        "telecine: error: `objective.terms.edges.target` must be in telecine"
    )
    assert not marker.exists()
    assert (
        main(["config", "validate", str(path), "--allow_code", "json", f"--allow_code={name}"]) == 0
    )
    assert marker.exists()


# A module that imports its parts when they are used.
LAZY = """
def __getattr__(name):
    if name == "edges":
        import no_such_package
    raise AttributeError(name)
"""


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (None, r"\. No module named '{0}'\. Install it, or add its folder to `PYTHONPATH`\."),
        ("edge = 1", r": {0} has no `edges`\. Did you mean `edge`\?"),
        (
            "import torch\nmissing",
            r"\. Its module raises NameError: .*{0}\.py, line 2\)\. Correct it there\.",
        ),
        (
            "import no_such_package",
            r"\. Its module raises ModuleNotFoundError: .*{0}\.py, line 1\)\. Correct",
        ),
        (
            "raise RuntimeError('two\\nlines')",
            r"\. Its module raises RuntimeError: two lines \(.*line 1\)\. Correct",
        ),
        (
            "import json\njson.loads('{')",
            r"\. Its module raises JSONDecodeError: .*{0}\.py, line 2\)\. Correct",
        ),
        (
            LAZY,
            r"\. Its module raises ModuleNotFoundError: .*'no_such_package' \(.*{0}\.py, line 4\)\. Correct",
        ),
        ("def edges(:", r"\. Its module raises SyntaxError: .*\({0}\.py, line 1\)\. Correct"),
    ],
)
def test_code_that_cannot_be_imported_is_one_line(code, reason, package, tmp_path, capsys):
    name, _ = package
    if code is None:
        name = "telecine_no_such_package"
    else:
        (tmp_path / f"{name}.py").write_text(code)
    path = tmp_path / "settings.yaml"
    path.write_text(f"objective: {{terms: {{mine: {{target: {name}.edges, weight: 1}}}}}}")
    assert main(["config", "validate", str(path), "--allow_code", name]) == 2
    error = capsys.readouterr().err
    text = rf"`objective.terms.mine.target` must be importable, but got '{name}\.edges'{reason.format(name)}"
    assert re.fullmatch(rf"telecine: error: {text}.*\n", error)


def test_a_part_of_a_package_that_does_not_exist():
    with pytest.raises(
        ValueError, match=r"No module named 'telecine.nowhere'\. Check the spelling\.$"
    ):
        import_allowed("telecine.nowhere.edges", "target")


def import_one(target, **params):
    return import_terms(ObjectiveConfig(terms={"x": Term(target, params=params)}))


def test_what_an_allowed_module_only_imports_is_not_allowed(package):
    name, _ = package
    allow_code(name)
    with pytest.raises(ValueError, match=rf"'{name}.system', which is posix.system"):
        import_one(f"{name}.system", command="true")
    with pytest.raises(ValueError, match=r"posix\.system"):
        choose("gan.loss", f"{name}.system", {})


@pytest.mark.parametrize("target", ["math.dist", "os.system", "builtins.eval"])
def test_terms_and_discriminators_of_other_packages(target):
    message = rf"but got '{target}'. If you trust it, add `--allow_code"
    with pytest.raises(ValueError, match=message):
        import_one(target)
    with pytest.raises(ValueError, match=message):
        build_discriminator({"target": target}, default=Discriminator, name="discr_kwargs")


def test_a_function_of_neither_video_is_no_term(tmp_path):
    path = tmp_path / "file.json"
    with pytest.raises(
        ValueError, match=r"`terms.x.target` must be a function of 'reconstruction'"
    ):
        import_one("telecine.base.files.write_json", path=path, value=1)
    assert not path.exists()


@pytest.mark.parametrize("package", ["", "a/b", "a b", ".a", "*"])
def test_only_names_of_packages_can_be_allowed(package):
    with pytest.raises(ValueError, match="`allow_code` must be the name of a package"):
        allow_code(package)


def test_no_assert_checks_what_could_be_wrong():
    """`python -O` skips asserts, so they only tell the type checker what is known."""
    beginnings = ("isinstance(", "not isinstance(", "is_dataclass(")
    num_asserts = 0
    for path in Path(telecine.__file__).parent.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "assert " not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Assert):
                test = ast.unparse(node.test)
                assert test.startswith(beginnings) or test.endswith(" is not None"), (path, test)
                num_asserts += 1
    assert num_asserts > 5


def test_a_name_or_a_function_is_chosen():
    assert choose("loss", "first", {"first": 1}) == 1
    assert choose("loss", max, {"first": min}) is max
    for value, remedy in (("firs", "Did you mean `first`"), (3, "Use one of: first.")):
        with pytest.raises(
            ValueError,
            match=rf"^`loss` must be one of 'first', or the dotted path .* but got .*{remedy}",
        ):
            choose("loss", value, {"first": min})


def test_the_packages_of_an_extra_are_named_with_their_versions(monkeypatch):
    lines = ["torch>=2.6", "a>=1; extra == 'x'", "b[c]>=2,<3; extra == 'x'", "d; extra == 'xy'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert how_to_install("x") == "Run `pip install 'a>=1' 'b[c]>=2,<3'`."
    assert how_to_install("xy") == "Run `pip install d`."


def test_every_extra_that_an_error_names_has_packages():
    calls = re.compile(r"how_to_install\([\"'](\w+)[\"']\)")
    paths = Path(telecine.__file__).parent.rglob("*.py")
    extras = [name for path in paths for name in calls.findall(path.read_text(encoding="utf-8"))]
    assert len(extras) == 9
    for extra in extras:
        assert re.fullmatch(
            r"Run `pip install( '[\w-]+(\[\w+\])?>=[\d.]+')+`\.", how_to_install(extra)
        )


def test_a_source_that_is_not_installed(monkeypatch):
    def requires(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert how_to_install("train") == "Run `pip install -e '.[train]'` in the checkout."


@pytest.mark.parametrize(
    "path",
    [
        "telecine.autoencoders.CausalVAE",
        "telecine.evaluation.flow.warp",
        "telecine.evaluation.metric.Metric",
        "telecine.evaluation.pixel_metrics.psnr",
        "telecine.evaluation.published_metrics.psnr_bytes",
        "telecine.evaluation.source.load_model",
        "telecine.perceptual.LPIPS",
        "telecine.report.run.read_run",
        "telecine.runs.settings.as_yaml",
        "telecine.training.distillation.TeacherLatent",
    ],
)
def test_paths_of_older_versions_lead_to_the_same_objects(path):
    assert import_allowed(path, "target").__name__ == path.rpartition(".")[2]


@pytest.mark.parametrize(
    "path",
    [
        "telecine.losses.additional_terms.temporal_difference",
        "telecine.evaluation.metrics.registry.PixelMetric",
        "telecine.evaluation.metrics.tiling.TilingDifference",
        "telecine.discriminators.base.GradientCheckpointing",
        "telecine.discriminators.base.frozen",
        "telecine.discriminators.base.DiscriminatorOutput",
    ],
)
def test_paths_of_modules_that_moved(path):
    assert import_allowed(path, "target").__name__ == path.rpartition(".")[2]


@pytest.mark.parametrize("old", MOVED_MODULES)
def test_each_moved_path_leads_somewhere(old):
    if old.endswith("."):
        with pytest.raises(ValueError, match=r": telecine\.[a-z_.]+ has no `nothing`"):
            import_allowed(f"{old}nothing", "target")
    else:
        assert callable(import_allowed(old, "target"))
