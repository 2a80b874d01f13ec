"""Each figure of a made-up checkout, and the figures of this one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "structure.py"
CONFIG = "@dataclass(frozen=True)\nclass TrainConfig:\n    steps: int = 1\n"
FORMER = {
    "__init__.py": "",
    "training/__init__.py": "",
    "training/config.py": f"from telecine.data import config\n{CONFIG}",
    "data/__init__.py": "from telecine.data.clip import Clip",
    "data/clip.py": "import os",
    "data/config.py": "",
    "cli.py": "",
}
WITH_TORCH = FORMER | {"data/clip.py": "from torch.nn import functional as F"}
LAZY = FORMER | {
    "data/clip.py": "if TYPE_CHECKING:\n    import torch\nelse:\n    import os",
    "data/config.py": "def read():\n    from telecine import cli",
}
PRESENT = {
    "__init__.py": "",
    "__main__.py": "",
    "settings/__init__.py": "from telecine.settings.train import TrainConfig",
    "settings/train.py": f"from .data import ClipConfig\n{CONFIG}    clips: ClipConfig = ClipConfig()\n",
    "settings/data.py": "@dataclass\nclass Size:\n    width: int\n@dataclass\nclass ClipConfig(Size):\n    a: int = 1",
    "settings/parse.py": "import re\ndef parse():\n    return re.search('a', '')\n\n",
    "cli/__init__.py": "",
    "cli/help.py": "text.match('b')",
    "runs/run.py": "METRICS_FILE = 'metrics.jsonl'",
}
CIRCLE = {
    "a.py": "import telecine.b",
    "b.py": "def run():\n    from telecine import c",
    "c.py": "if TYPE_CHECKING:\n    from telecine.a import A",
    "d.py": "import telecine.a",
    "__init__.py": "from telecine import d",
}
LOSS = (
    "class VideoAutoencoderLoss:\n    def __init__(self):\n        self.x = 1\n\n    def other(self):\n        pass\n"
)
BOTH = "def f(): ...\n"


@pytest.fixture
def structure(benchmark_module):
    return benchmark_module("structure")


def write(root, files):
    for name, text in files.items():
        path = root / ("" if name.startswith(("docs/", "benchmarks/")) else "src/telecine") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("counter", "files", "figure", "names"),
    [
        ("settings_load", FORMER, "6 of 7, no torch", None),
        ("settings_load", WITH_TORCH, "6 of 7, and torch", None),
        ("settings_load", LAZY, "6 of 7, no torch", None),
        ("settings_load", PRESENT, "4 of 9, no torch", None),
        ("command_line", FORMER | {"cli.py": "a\nb\n", "data/cli.py": "c\n"}, "2 lines in 1 files", ["cli.py"]),
        (
            "command_line",
            PRESENT,
            "5 lines in 4 files",
            ["__main__.py", "cli/__init__.py", "cli/help.py", "settings/parse.py"],
        ),
        ("regular_expressions", PRESENT, "1", ["settings/parse.py:3"]),
        ("regular_expressions", {"losses/parse.py": "import re\nre.compile('')"}, "0", []),
        ("hand_written_readers", {"a.py": "def check_names(): ...", "b.py": "import ast"}, "2", None),
        ("hand_written_readers", {"a.py": "def check_name(): ...", "b.py": "import asttokens"}, "0", []),
        ("whole_settings", {"a.py": "def f(*, config: TrainConfig | None): ..."}, "1", ["a.py: f"]),
        ("whole_settings", {"a.py": "def f(config: MyTrainConfig, a=TrainConfig()) -> TrainConfig: ..."}, "0", []),
        (
            "report_in_training",
            {"training/a.py": "def f():\n    from telecine.report.page import a, b\nimport telecine.reports"},
            "1",
            ["training/a.py:2"],
        ),
        ("report_in_training", {"report/a.py": "from telecine.report import b"}, "0", []),
        (
            "run_layout",
            PRESENT | {"report/a.py": "from telecine.runs.layout import METRICS_FILE", "data/b.py": "x = 'state.json'"},
            "3 in data, report, runs",
            ["data/b.py", "report/a.py", "runs/run.py"],
        ),
        ("run_layout", PRESENT | {"a.py": "from telecine.runs import Run\n'''See `state.json`.'''"}, "1 in runs", None),
        ("lecam", {"a.py": "# LeCam", "b.py": "lecam_loss = 1", "c.py": "le_cam = 1"}, "2", ["a.py", "b.py"]),
        ("kinds_of_terms", {"a.py": "if name in RESERVED: ..."}, "2", ["a.py"]),
        ("kinds_of_terms", {"a.py": "class Term: ...  # RESERVED"}, "1", []),
        (
            "built_in_term",
            {"losses/latent.py": "def latent_noise(): ...", "a.py": "'latent_noise'", "b.py": "latent_noise_2"},
            "1",
            ["a.py"],
        ),
        ("circles", CIRCLE, "1", ["telecine.a - telecine.b - telecine.c"]),
        ("circles", CIRCLE | {"c.py": "import telecine.e"}, "0", []),
        ("loose_files", PRESENT, "2", ["__init__.py", "__main__.py"]),
        ("defined_twice", {"a.py": BOTH, "b.py": "class f: ...", "c.py": "f = 1"}, "1", ["f (a.py, b.py)"]),
        ("defined_twice", {"a.py": f"{BOTH}{BOTH}", "b.py": "def _f(): ...\nclass A:\n    def f(self): ..."}, "0", []),
        ("public_names", {"a.py": "def f(): ...\ndef _g(): ...\nclass A:\n    def h(self): ...\nX = 1\n"}, "400.0", []),
        (
            "used_by_own_file",
            {"a.py": "def f(): ...\ndef g(): ...\ndef h(): ...\nf()", "b.py": "import telecine.a\na.g('telecine.a.h')"},
            "1",
            ["a.py: f"],
        ),
        ("settings", PRESENT, "3", ["steps", "a", "width"]),
        ("settings", {"a.py": "class TrainConfig:\n    steps: int = 1"}, "0", []),
        (
            "unused_settings",
            PRESENT
            | {"settings/recipes/a.yaml": "steps: 1", "docs/b.md": "`width`<!-- settings: A -->\na\n<!-- end -->"},
            "1",
            ["a"],
        ),
        ("objective_lines", {"objective/video_autoencoder.py": LOSS, "objective/b.py": "a"}, "6", []),
        (
            "constructor_lines",
            {"objective/video_autoencoder.py": LOSS, "a.py": "class A:\n    def __init__(self): ..."},
            "2",
            [],
        ),
        (
            "benchmarks",
            {"benchmarks/a.py": '1\n\nif __name__ == "__main__":\n    2\n', "benchmarks/b.py": "1\n", "a.py": "2\n"},
            "1 commands, 5 lines in 2 files",
            ["a.py"],
        ),
        ("source", {"a.py": "1\n\n# 2\n", "b/c.py": "3\n", "b/d.yaml": "a: 1\n"}, "4 lines in 2 files", []),
    ],
)
def test_figures(structure, tmp_path, counter, files, figure, names):
    write(tmp_path, {"__init__.py": ""} | files if counter in ("settings_load", "circles") else files)
    found, listed = getattr(structure, counter)(structure.Checkout(tmp_path))
    assert found == figure
    if names is not None:
        assert sorted(listed) == sorted(names)


def test_every_figure_is_tested(structure):
    (mark,) = [mark for mark in test_figures.pytestmark if mark.name == "parametrize"]
    assert {row[0] for row in mark.args[1]} == {count.__name__ for count, _ in structure.ROWS.values()}


def test_two_checkouts_side_by_side(run_here, tables_in, tmp_path):
    for name, files in {"before": FORMER, "after": PRESENT}.items():
        write(tmp_path / name, files)
    folders = [str(tmp_path / name) for name in ("before", "after")]
    text = run_here("structure.py", *folders, "--names")
    ((header, rows),) = tables_in(text)
    assert header == ["what", *folders, "target"]
    figures = {what: values for what, *values, _ in rows}
    assert figures["loose files beside the packages"] == ["2", "2"]
    assert figures["modules that importing the settings loads"] == ["6 of 7, no torch", "4 of 9, no torch"]
    assert f"loose files beside the packages, {folders[0]}: 2\n    __init__.py\n    cli.py\n" in text


def test_a_folder_without_the_package(run_here, tmp_path):
    with pytest.raises(SystemExit, match="must be a folder with `src/telecine`"):
        run_here("structure.py", str(tmp_path))


WITHOUT_IMPORTS = """
import runpy, sys
runpy.run_path(sys.argv.pop(1), run_name="__main__")
print({"torch", "telecine"} & {*sys.modules})
"""


def test_this_checkout_is_parsed_only(tables_in):
    done = subprocess.run([sys.executable, "-c", WITHOUT_IMPORTS, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("set()\n")
    ((header, rows),) = tables_in(done.stdout)
    assert header == ["what", "value", "target"]
    figures = {what: value for what, value, _ in rows}
    assert len(figures) == len(rows) >= 20
    assert int(figures["lines of `objective/video_autoencoder.py`"]) <= 300
    assert int(figures["loose files beside the packages"]) <= 4
