"""Fixtures of all tests, and the run-time check of shape types, which exists in tests only.

`telecine.losses.perceptual` is not checked: its tests of errors pass arguments of wrong types, for which the check
would raise before the functions do.
"""

import gc
import json
import os
import random
import runpy
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

CHECKED = (
    "telecine.losses.adversarial",
    "telecine.losses.divergence",
    "telecine.losses.latent",
    "telecine.losses.lecam",
    "telecine.losses.penalty",
    "telecine.losses.reconstruction",
    "telecine.losses.wavelet",
    "telecine.discriminators",
)

# A thread each, set before PyTorch is imported. Several test processes slow each other's OpenMP threads down, and a
# process that has computed on several threads cannot be forked. Commands of several threads leave the cores while they
# wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A kill does not lose what was written, and the power failure for which files are flushed is not tested.
os.fsync = lambda descriptor: None
gc.disable()  # until `pytest_collection_finish`: imports create millions of objects, and no garbage

assert not any(name.startswith("telecine") for name in sys.modules), (
    "telecine was imported before the hook"
)
install_import_hook(list(CHECKED), "beartype.beartype")

FORK_SERVER = pytest.StashKey()
NUM_MODULES = pytest.StashKey()

settings.register_profile("deterministic", derandomize=True, database=None)
settings.load_profile("deterministic")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Put files with slow tests first, and the last of the alphabet before others.

    A process gets a file at a time: short ones then fill up the end, where `tests/video` and `tests/training` would
    leave the other cores idle.
    """
    with_slow_tests = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path in with_slow_tests, item.path), reverse=True)


def pytest_collection_finish(session):
    needs_forks = any("forks" in getattr(item, "fixturenames", ()) for item in session.items)
    if needs_forks:
        for name in ("telecine.objective.loss", "torch._dynamo"):
            import_module(name)
        server = runpy.run_path(str(Path(__file__).with_name("forks.py")))["ForkServer"]
    _exclude_imports_from_collection(session.config)
    gc.set_threshold(10_000)  # 2 to 13 % less time in two comparisons
    gc.enable()
    if needs_forks:
        session.config.stash[FORK_SERVER] = server()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    if len(sys.modules) > item.config.stash[NUM_MODULES] + 50:
        gc.collect()  # what the test has left
        _exclude_imports_from_collection(item.config)


def _exclude_imports_from_collection(config):
    """Exclude the objects of imports from garbage collection, which each training run starts at its end."""
    gc.freeze()
    config.stash[NUM_MODULES] = len(sys.modules)


def pytest_unconfigure(config):
    if FORK_SERVER in config.stash:
        config.stash[FORK_SERVER].close()


@pytest.fixture(scope="session")
def forks(pytestconfig):
    """Run Python's command line in forks of a copy of this process, see `forks.py`."""
    return pytestconfig.stash[FORK_SERVER]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Seed before each test, so that shared fixtures do not depend on the test that creates them."""
    _seed()


@pytest.fixture(autouse=True)
def seed_each_test():
    """Seed each test, so that its random numbers do not depend on earlier tests in the process."""
    _seed()


def _seed():
    import torch  # takes two seconds, which the process that distributes the tests need not wait for

    torch.default_generator.manual_seed(
        0
    )  # `torch.manual_seed` also records the call stack for each kind of device
    random.seed(0)


@pytest.fixture(scope="session")
def shape_checks_off():
    """Return a context in which shape types are not checked, as for users; compilation breaks graphs at checks."""

    @contextmanager
    def off():
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)

    return off


@pytest.fixture
def no_shape_checks(shape_checks_off):
    """Leave out the check of shape types, which takes a part of the time of each call."""
    with shape_checks_off():
        yield


@pytest.fixture(scope="session")
def cached_weights():
    """Fetch the real weights into the cache; without them, each test that needs them fails with the reason."""
    from telecine.losses.perceptual import fetch

    return {net: fetch(net) for net in ("vgg", "alex")}


@pytest.fixture
def probe_each_configuration_once(monkeypatch, known_sizes):
    """Let models of one architecture share the sizes that they reproduce, and count no weights in advance.

    `tests/models` tests both.
    """
    from telecine.models.clip_sizes import ShapeProbe

    monkeypatch.setattr("telecine.models.diffusers.loading.check_num_weights", lambda *_: None)
    find = ShapeProbe.reproduces

    def reproduces(self, size):
        model = self.reconstruct.module
        key = (type(model), architecture_without_widths(model.config), self.on_meta, size)
        if key not in known_sizes:
            known_sizes[key] = find(self, size)
        return known_sizes[key]

    monkeypatch.setattr(ShapeProbe, "reproduces", reproduces)


def architecture_without_widths(config):
    """Return the settings of a model as JSON, with the number of its stages in place of their channels."""
    settings = {}
    for name, value in config.items():
        if name.startswith("_"):
            continue
        states_widths = name.endswith(("out_channels", "base_dim")) or name in ("ch", "channels")
        if states_widths:
            value = len(value) if isinstance(value, (list, tuple)) else None
        settings[name] = value
    return json.dumps(settings, sort_keys=True)


@pytest.fixture(scope="session")
def known_sizes():
    """Return what `probe_each_configuration_once` has found."""
    return {}


@pytest.fixture(scope="session")
def s3_server():
    """Start an S3 server on loopback, see `s3.py`."""
    module = runpy.run_path(str(Path(__file__).with_name("s3.py")))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in module["ENVIRONMENT"].items():
            patch.setenv(name, value)
        server = module["S3"]()
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        server.clear()
        yield server
        server.clear()
        server.stop()


@pytest.fixture
def s3(s3_server, tmp_path, monkeypatch):
    """Return a server with an empty bucket. Indices and copies of its files are kept in `tmp_path / "cache"`."""
    from telecine.losses.perceptual.weights import cache_path

    monkeypatch.setenv("TELECINE_WEIGHTS_DIR", str(cache_path("vgg").parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield s3_server
    s3_server.clear()


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Return a function that puts a model into the Hub's cache under a name. The Hub itself cannot be reached."""
    constants = import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(name, model, subfolder=""):
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        model.save_pretrained(repository / "snapshots" / ("0" * 40) / subfolder)

    return put
