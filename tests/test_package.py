"""The package as a whole: its public door, what it imports, and in which direction."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

import telecine

SOURCE = Path(telecine.__file__).parent
EXTRA = (
    "accelerate",
    "av",
    "jinja2",
    "matplotlib",
    "plotly",
    "psutil",
    "rich",
    "tensorboard",
    "torchmetrics",
    "yaml",
)
# From the bottom up: a module imports from its own folder or from folders above.
LAYERS = (
    {"base"},
    {"settings"},
    {"ops"},
    {"losses", "runs"},
    {"discriminators"},
    {"objective", "models", "data"},
    {"cogvideo", "video"},
    {"evaluation"},
    {"report"},
    {"training"},
    {"tools"},
    {"cli"},
    {"__main__", "__init__"},
)


@cache
def nodes_of(path):
    """Return the imports of a module, lazy ones and those for a type checker included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def layer_of(name):
    return next(index for index, names in enumerate(LAYERS) if name in names)


def imports(path):
    """Yield the telecine folder or file that each import of a module names, lazy ones included."""
    for node in nodes_of(path):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module]
                if node.module != "telecine"
                else [f"telecine.{a.name}" for a in node.names]
            )
        for name in names:
            parts = name.split(".")
            if parts[0] == "telecine" and len(parts) > 1:
                yield parts[1]


def test_imports_point_one_way():
    checked = 0
    for path in sorted(SOURCE.rglob("*.py")):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for other in imports(path):
            if other in ("__version__", own):
                continue
            checked += 1
            assert layer_of(other) <= layer_of(own), (
                f"{path.relative_to(SOURCE)} imports telecine.{other}"
            )
    assert checked > 60


def test_every_file_has_a_layer():
    names = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")}
    assert names == set().union(*LAYERS)


def test_only_commands_import_tools_and_no_tool_another_one():
    folders = [
        folder for folder in (SOURCE / "tools").iterdir() if (folder / "__init__.py").exists()
    ]
    assert len(folders) >= 4
    checked = 0
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).parts
        for node in nodes_of(path):
            module = getattr(node, "module", None) or ""
            if not module.startswith("telecine.tools."):
                continue
            checked += 1
            tool = module.split(".")[2]
            is_command = parts[0] == "cli" and module == f"telecine.tools.{tool}.command"
            assert is_command or parts[:2] == ("tools", tool), f"{'/'.join(parts)} imports {module}"
    assert checked > 10


def modules_imported(path, name, known):
    """Yield the modules of telecine that a module imports, lazy ones and those for a type checker included."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        if isinstance(node, ast.ImportFrom) and node.module in known:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from parts & known or {node.module}


def test_no_module_is_in_a_circle_of_imports():
    paths = {
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in SOURCE.rglob("*.py")
    }
    graph = {
        name: set(modules_imported(path, name, paths.keys())) - {name}
        for name, path in paths.items()
    }
    graph["telecine"] = set()  # it imports what is asked for
    order = list(TopologicalSorter(graph).static_order())  # raises a `CycleError` with the circle
    assert len(order) == len(paths) > 100


# Starts in a fork of the test process, and forgets the packages that it may have imported, and what has used them.
WITHOUT = """
import sys
names = sys.argv.pop(1).split(",")
for module in [*sys.modules]:
    if module.partition(".")[0] in (*names, "telecine"):
        del sys.modules[module]
sys.modules.update(dict.fromkeys(names))
"""


@pytest.fixture
def run_without(forks, tmp_path):
    """Return a function that runs code without packages, with the words as `sys.argv`."""

    def run(names, code, *words):
        (tmp_path / "script.py").write_text(WITHOUT + code)
        return forks.run(str(tmp_path / "script.py"), ",".join(names), *words)

    return run


@pytest.mark.slow
def test_the_objective_works_without_the_extra(run_without):
    code = """
import torch, telecine
loss = telecine.VideoAutoencoderLoss(
    0, perceptual_weight=0, adversarial_loss_weight=1, discr_3d_kwargs=dict(dim=1, image_size=16, frame_num=2)
)
x = torch.zeros(1, 3, 2, 16, 16)
loss(x, x.clone().requires_grad_(), 0, 0)[0].backward()
loss(x, x, 1, 0)[0].backward()
"""
    done = run_without(EXTRA, code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accelerate", "av", "rich", "yaml"])
def test_the_command_line_without_the_extra_says_how_to_install_it(run_without, name):
    done = run_without([name], "from telecine.__main__ import main\nsys.exit(main())", "train")
    assert done.returncode == 2
    assert all(line.startswith("without --data") for line in done.stdout.splitlines())
    (line,) = done.stderr.splitlines()
    package = "pyyaml" if name == "yaml" else name
    assert line.startswith("telecine: error: ")
    assert name in line
    assert re.search(rf"Run `pip install .*\b{package}>=.*`\.$", line)


def test_the_public_door():
    names = {
        "train",
        "evaluate",
        "reconstruct",
        "read_config",
        "TrainConfig",
        "EvaluateConfig",
        "ReconstructConfig",
        "distill",
        "DistillConfig",
        "plan",
        "load_autoencoder",
        "as_video_autoencoder",
    }
    assert names <= {*telecine.__all__}
    for name in telecine.__all__:
        assert getattr(telecine, name) is not None
        assert name in dir(telecine)
    with pytest.raises(AttributeError, match="nothing"):
        _ = telecine.nothing


def test_one_version():
    assert telecine.__version__ == version("telecine")


def test_types_are_shipped():
    assert (SOURCE / "py.typed").exists()


SCRIPT = """
from telecine import EvaluateConfig, TrainConfig, VideoAutoencoderLoss, evaluate, read_config, reconstruct, train

result = train(TrainConfig(data="my_videos", steps=1000))
psnr: float = result.last["psnr"]
loss = VideoAutoencoderLoss(5000, adversarial_loss_weight=0.5)
metrics: dict[str, float] = evaluate(result.checkpoint, EvaluateConfig(data="my_videos")).metrics
quality: float = reconstruct(result.run, "in.mp4", "out.mp4")
train(read_config("demo"), steps=3)
"""


@pytest.mark.slow
def test_a_type_checker_finds_the_mistake_of_a_script(tmp_path, monkeypatch, forks):
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setenv("MYPYPATH", str(SOURCE.parent))
    # PyTorch is not read, which would take a minute.
    options = [
        "--no-site-packages",
        "--ignore-missing-imports",
        "--follow-imports=silent",
        "--config-file=",
        f"--cache-dir={tmp_path}",
    ]
    done = forks.run("-m", "mypy", *options, str(tmp_path / "script.py"))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("error:") == 1
    assert 'script.py:9: error: Unexpected keyword argument "steps" for "train"' in done.stdout


def test_the_settings_need_no_pytorch():
    code = "import sys, telecine.settings; print(*sorted(name for name in sys.modules if name.startswith('te')))"
    code += "; print('torch' in sys.modules, 'pydantic' in sys.modules, 'yaml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    modules, others = done.stdout.splitlines()
    assert len([name for name in modules.split() if name.startswith("telecine")]) <= 18
    assert others == "False True False"
