"""LPIPS against the published package: values, gradients, precision, memory, and its behaviour as a frozen module."""

import copy
import io
import itertools
import pickle
from importlib.util import find_spec
from pathlib import Path

import lpips as published
import pytest
import torch
from torch import nn

from telecine.losses.perceptual import LPIPS
from telecine.losses.perceptual.backbones import BACKBONES
from telecine.losses.perceptual.lpips import _feature_distance, _load_heads, _run_stages

NETS = ("vgg", "alex")
CLIPS = ("carphone_pristine.mp4", "bikes.mp4", "bigbuckbunny.mp4")
SMALLEST = {"vgg": 16, "alex": 31}
FLAT = {"black": -1.0, "grey": 0.0, "white": 1.0}


def distance_and_gradient(model, reconstruction, target):
    reconstruction = reconstruction.clone().requires_grad_()
    distance = model(reconstruction, target)
    (gradient,) = torch.autograd.grad(distance.sum(), reconstruction)
    return distance.detach().flatten(), gradient


def call(model):
    return lambda reconstruction, target: model(reconstruction=reconstruction, target=target)


def noisy(frames, amount, seed=0):
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed))
    return (frames + amount * noise).clamp(-1, 1)


def flat(value, size=64, count=1):
    return torch.full((count, 3, size, size), FLAT[value])


@pytest.mark.filterwarnings("ignore:.*'pretrained'.*", "ignore:Arguments other than a weight enum")
@pytest.mark.parametrize(
    ("net", "clip"),
    [*(("alex", clip) for clip in CLIPS), pytest.param("vgg", CLIPS[0], marks=pytest.mark.slow)],
)
def test_equals_the_published_package_on_real_frames(net, clip, models, references, real_frames):
    frames, targets = real_frames[clip][:1, :, :64, :64], real_frames[clip][2:3, :, :64, :64]
    for reconstruction, target in ((frames, targets), (noisy(frames, 0.2), frames)):
        ours, our_gradient = distance_and_gradient(call(models[net]), reconstruction, target)
        theirs, their_gradient = distance_and_gradient(references(net), reconstruction, target)
        assert (ours > 1e-4).all()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert (our_gradient - their_gradient).norm() < 1e-5 * their_gradient.norm()


@pytest.mark.filterwarnings("ignore:.*'pretrained'.*", "ignore:Arguments other than a weight enum")
def test_maps_resized_to_the_frame_have_nearly_the_same_mean(models, references, real_frames):
    """WF-VAE measures with `spatial=True`, where only the edges of maps have other weights. The noise is at an edge."""
    target = real_frames["bikes.mp4"][:2, :, :61, :75]
    reconstruction = torch.cat([noisy(target[..., :6], 1.0), target[..., 6:]], dim=-1)
    reference = copy.copy(references("alex"))
    reference.spatial = True
    ours = models["alex"](reconstruction=reconstruction, target=target)
    torch.testing.assert_close(ours, reference(reconstruction, target).mean((1, 2, 3)), rtol=5e-5, atol=0)


@pytest.mark.parametrize(
    ("net", "pair", "expected"),
    [
        ("vgg", ("black", "white"), 0.453837),
        ("vgg", ("grey", "black"), 0.538974),
        ("alex", ("black", "white"), 0.813954),
        ("alex", ("grey", "black"), 0.707362),
    ],
)
def test_known_values(net, pair, expected, models):
    reconstruction, target = (flat(value) for value in pair)
    distance = models[net](reconstruction=reconstruction, target=target)
    assert distance.shape == (1,)
    assert distance.tolist() == pytest.approx([expected], abs=2e-6)


def test_is_zero_for_equal_frames_symmetric_and_grows_with_noise(models, real_frames):
    frames = real_frames["bikes.mp4"][:2]
    distances = [models["alex"](reconstruction=noisy(frames, a), target=frames) for a in (0, 0.02, 0.05, 0.1, 0.3)]
    assert torch.equal(distances[0], torch.zeros(len(frames)))
    for less, more in itertools.pairwise(distances):
        assert (less < more).all()
    swapped = models["alex"](reconstruction=frames, target=noisy(frames, 0.3))
    torch.testing.assert_close(swapped, distances[-1])


@pytest.mark.parametrize("net", NETS)
def test_heads_are_the_published_ones(net):
    folders = [Path(published.__file__).parent / "weights" / "v0.1"]
    if torchmetrics := find_spec("torchmetrics"):  # found, not imported: that takes seconds
        folders.append(Path(torchmetrics.origin).parent / "functional" / "image" / "lpips_models")
    heads = _load_heads(net)
    assert len(heads) == 5
    for folder in folders:
        state = torch.load(folder / f"{net}.pth", "cpu", weights_only=True)
        for index in range(5):
            assert torch.equal(heads[f"head.{index}"], state[f"lin{index}.model.1.weight"].flatten())


# Gradients


def test_gradcheck_of_one_layer_with_pixels_without_features():
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.rand(2, 4, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    head = torch.rand(4, generator=generator, dtype=torch.float64)
    x[:, :, 0, 0] = 0  # in one, in the other, in both
    y[:, :, 0, 1] = 0
    x[:, :, 1, 1] = y[:, :, 1, 1] = 0
    inputs = (x.requires_grad_(), y.requires_grad_(), head)
    assert torch.autograd.gradcheck(_feature_distance, inputs, eps=1e-8, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("net", "dtype"),
    [
        pytest.param("vgg", torch.float32, marks=pytest.mark.slow),
        ("alex", torch.float32),
        ("alex", torch.float16),
        ("alex", torch.bfloat16),
    ],
)
def test_gradients_are_finite_on_flat_and_equal_frames(net, dtype, models):
    flats = {name: flat(name, size=32) for name in FLAT}
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pairs = [(x, y) for x in flats.values() for y in flats.values()]
    pairs += [(noise, noise), (noise, flats["black"]), (flats["white"], noise)]
    reconstruction, target = (torch.cat(side).to(dtype) for side in zip(*pairs, strict=True))
    distance, gradient = distance_and_gradient(call(models[net]), reconstruction, target)
    assert distance.shape == (12,)
    assert distance.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.dtype == dtype


@pytest.mark.parametrize("net", NETS)
def test_gradient_is_zero_if_all_features_are_zero(net):
    state = {name: torch.zeros(shape) for name, shape in BACKBONES[net].tensor_shapes().items()}
    frames = torch.rand(1, 3, 32, 32) * 2 - 1
    distance, gradient = distance_and_gradient(call(LPIPS(net, weights=state)), frames, -frames)
    assert torch.equal(distance, torch.zeros(1))
    assert torch.equal(gradient, torch.zeros_like(frames))


@pytest.fixture
def saved_bytes(saved_storages):
    """Return the bytes that the graph of a call stores, without the frozen weights."""

    def measure(model, reconstruction, target):
        with saved_storages() as sizes:
            distance = model(reconstruction=reconstruction, target=target)
            assert distance.requires_grad
        frozen = {tensor.untyped_storage().data_ptr() for tensor in model.module.values()}
        return sum(size for pointer, size in sizes.items() if pointer not in frozen)

    return measure


def test_target_has_a_graph_only_if_it_requires_gradients(models, real_frames, saved_bytes):
    frames = real_frames["bikes.mp4"]
    reconstruction, target = frames[:1].clone().requires_grad_(), frames[1:2].clone()
    without = saved_bytes(models["alex"], reconstruction, target)
    both = saved_bytes(models["alex"], reconstruction, target.requires_grad_())
    assert 0 < without < 0.65 * both
    models["alex"](reconstruction=reconstruction.detach(), target=target).sum().backward()
    assert target.grad.isfinite().all()
    with torch.no_grad():
        assert not models["alex"](reconstruction=reconstruction, target=target).requires_grad


def test_graph_holds_one_activation_per_layer(models, saved_bytes):
    frames = torch.rand(1, 3, 64, 64) * 2 - 1
    activations = {2: 64, 0: 64, 7: 32, 5: 32, 10: 16, 12: 16, 14: 16, 17: 8, 19: 8, 21: 8, 24: 4, 26: 4, 28: 4}
    shapes = BACKBONES["vgg"].tensor_shapes()
    one_each = sum(4 * shapes[f"features.{layer}.bias"][0] * size**2 for layer, size in activations.items())
    # The remainder: unit vectors and differences of a third of the layers, and the indices of the poolings.
    assert one_each < saved_bytes(models["vgg"], frames.requires_grad_(), frames.detach().flip(-1)) < 2.5 * one_each


def test_inputs_are_not_changed_and_inference_mode_works(models, real_frames):
    frames = real_frames["bikes.mp4"]
    reconstruction, target = frames[:2].clone(), frames[2:].clone()
    with torch.inference_mode():
        inside = models["alex"](reconstruction=reconstruction, target=target)
        created_inside = target.clone()
    assert torch.equal(reconstruction, frames[:2])
    assert torch.equal(target, frames[2:])
    distance, gradient = distance_and_gradient(call(models["alex"]), reconstruction, created_inside)
    assert torch.equal(distance, inside)
    assert gradient.isfinite().all()


# Precision


def test_autocast_changes_nothing(models, real_frames):
    frames = real_frames["carphone_pristine.mp4"]
    expected = distance_and_gradient(call(models["alex"]), frames[:1], frames[3:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (frames[0, 0] @ frames[0, 0].T).dtype == torch.bfloat16
        actual = distance_and_gradient(call(models["alex"]), frames[:1], frames[3:])
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype, models, real_frames):
    x, y = (frames.to(dtype) for frames in real_frames["bikes.mp4"][:2].split(1))
    expected = models["alex"](reconstruction=x.float(), target=y.float())
    for other in (y, y.float()):
        actual = models["alex"](reconstruction=x, target=other)
        assert actual.dtype == torch.float32
        assert torch.equal(actual, expected)


def test_float64_inputs_are_computed_in_float64(models, real_frames):
    model = models["alex"]
    x, y = real_frames["bikes.mp4"][:2].double().split(1)
    cast = model(reconstruction=x, target=y)
    moved = copy.deepcopy(model).double()(reconstruction=x, target=y)
    assert cast.dtype == moved.dtype == torch.float64
    assert torch.equal(cast, moved)
    torch.testing.assert_close(cast.float(), model(reconstruction=x.float(), target=y.float()))


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, lambda module: module.to(torch.float16)])
def test_stays_in_float32_if_the_parent_becomes_half_precision(cast, models, real_frames):
    x, y = real_frames["bikes.mp4"][:2].split(1)
    parent = nn.ModuleDict({"loss": copy.deepcopy(models["alex"]), "linear": nn.Linear(1, 1)})
    cast(parent)
    assert parent["linear"].weight.dtype != torch.float32
    actual = parent["loss"](reconstruction=x, target=y)
    assert torch.equal(actual, models["alex"](reconstruction=x, target=y))


# As a frozen module


def test_stays_in_evaluation_mode_and_is_deterministic(models, real_frames):
    x, y = real_frames["bikes.mp4"][:2].split(1)
    parent = nn.ModuleList([copy.deepcopy(models["alex"])])
    first = parent[0](reconstruction=x, target=y)
    parent.train()
    assert parent.training
    assert not any(module.training for module in parent[0].modules())
    for _ in range(2):
        assert torch.equal(parent[0](reconstruction=x, target=y), first)


def test_hidden_from_optimizers_wrappers_and_checkpoints(models):
    model = models["alex"]
    parent = nn.ModuleDict({"loss": model, "linear": nn.Linear(1, 1)})
    assert not list(model.parameters())
    assert not list(model.buffers())
    assert list(parent.state_dict()) == ["linear.weight", "linear.bias"]
    parent.load_state_dict(parent.state_dict(), strict=True)
    parent.requires_grad_(True)
    assert not any(tensor.requires_grad for tensor in model.module.values())


def test_copies_pickles_and_saves(models, real_frames):
    x, y = real_frames["bikes.mp4"][:2].split(1)
    expected = models["alex"](reconstruction=x, target=y)
    buffer = io.BytesIO()
    torch.save(models["alex"], buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(models["alex"]),
        pickle.loads(pickle.dumps(models["alex"])),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert torch.equal(other(reconstruction=x, target=y), expected)
    assert copies[0].module["scale"] is not models["alex"].module["scale"]


def test_moves_with_its_parent(models):
    parent = nn.ModuleList([copy.deepcopy(models["alex"])]).to("meta")
    assert {tensor.device.type for tensor in parent[0].module.values()} == {"meta"}
    parent = nn.ModuleList([copy.deepcopy(models["alex"])]).to("meta", torch.float16)
    assert {(tensor.device.type, tensor.dtype) for tensor in parent[0].module.values()} == {("meta", torch.float32)}


@pytest.mark.parametrize("net", [pytest.param("vgg", marks=pytest.mark.slow), "alex"])
def test_nothing_is_read_from_the_device(net, models, real_frames, no_sync):
    x, y = real_frames["bikes.mp4"][:2].split(1)
    x.requires_grad_()
    with no_sync() as mode:
        models[net](reconstruction=x, target=y).sum().backward()
    num_layers = len(BACKBONES[net].tensor_shapes()) // 2
    assert mode.calls.count("convolution") == 2 * num_layers
    assert mode.calls.count("convolution_backward") == num_layers
    with no_sync(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        x.sum().item()


# Arguments


@pytest.mark.parametrize("net", NETS)
def test_smallest_frames(net, models):
    size = SMALLEST[net]
    assert BACKBONES[net].minimum_size == size
    weights = {name: torch.zeros(shape) for name, shape in BACKBONES[net].tensor_shapes().items()}
    weights |= {"shift": torch.zeros(()), "scale": torch.ones(())}

    def run(size):
        *_, features = _run_stages(BACKBONES[net].stages, weights, torch.zeros(1, 3, size, size))
        return features

    assert min(run(size).shape) > 0
    with pytest.raises(RuntimeError):
        run(size - 1)
    frames = torch.rand(1, 3, size, size + 1) * 2 - 1
    assert models[net](reconstruction=frames, target=-frames).isfinite().all()
    frames = frames[..., : size - 1]
    with pytest.raises(ValueError, match=f"`reconstruction` must be at least {size} pixels .*interpolate"):
        models[net](reconstruction=frames, target=frames)


GREY = torch.zeros(1, 1, 32, 32)


@pytest.mark.parametrize(
    ("reconstruction", "target", "message"),
    [
        (
            GREY,
            GREY,
            r"`reconstruction` must be .*\(N, 3, H, W\), but got .*\(1, 1, 32, 32\).*expand.*\(B, T, C, H, W\)",
        ),
        (torch.zeros(1, 3, 32, 32), GREY, r"`target` must be of `reconstruction`'s shape \(1, 3, 32, 32\)"),
        (torch.zeros(3, 32, 32), GREY, r"`reconstruction` must be .*\[None\]"),
    ],
)
def test_wrong_frames(reconstruction, target, message, random_models):
    with pytest.raises(ValueError, match=message):
        random_models["alex"](reconstruction=reconstruction, target=target)


@pytest.mark.parametrize("net", ["squeeze", ["vgg"]])
def test_unknown_net(net):
    with pytest.raises(ValueError, match='`net` must be "vgg" or "alex", but got'):
        LPIPS(net)


def test_pairs_are_keyword_only(models):
    frames = torch.zeros(1, 3, 32, 32)
    with pytest.raises(TypeError):
        models["alex"](frames, frames)
