"""LPIPS against the published package: values, gradients, precision, memory, and its behaviour as a frozen module."""

import copy
import io
import itertools
import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from telecine.losses.perceptual import LPIPS
from telecine.losses.perceptual.backbones import BACKBONES
from telecine.losses.perceptual.lpips import feature_distance

NETS = ("vgg", "alex")
CLIPS = ("carphone_pristine.mp4", "bikes.mp4", "bigbuckbunny.mp4")


BLACK, GREY, WHITE = -1.0, 0.0, 1.0


def constant(value, size=64):
    return torch.full((1, 3, size, size), value)


def constant_weights(net, value):
    return {
        name: torch.full(shape, value) for name, shape in BACKBONES[net].tensor_shapes().items()
    }


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
    torch.testing.assert_close(
        ours, reference(reconstruction, target).mean((1, 2, 3)), rtol=5e-5, atol=0
    )


@pytest.mark.parametrize(
    ("net", "reconstruction", "target", "expected"),
    [
        ("vgg", BLACK, WHITE, 0.453837),
        ("vgg", GREY, BLACK, 0.538974),
        ("alex", BLACK, WHITE, 0.813954),
        ("alex", GREY, BLACK, 0.707362),
    ],
)
def test_known_values(net, reconstruction, target, expected, models):
    distance = models[net](reconstruction=constant(reconstruction), target=constant(target))
    assert distance.shape == (1,)
    assert distance.tolist() == pytest.approx([expected], abs=2e-6)


def test_is_zero_for_equal_frames_symmetric_and_grows_with_noise(models, real_frames):
    frames = real_frames["bikes.mp4"][:2]
    distances = [
        models["alex"](reconstruction=noisy(frames, a), target=frames)
        for a in (0, 0.02, 0.05, 0.1, 0.3)
    ]
    assert torch.equal(distances[0], torch.zeros(len(frames)))
    for less, more in itertools.pairwise(distances):
        assert (less < more).all()
    swapped = models["alex"](reconstruction=frames, target=noisy(frames, 0.3))
    torch.testing.assert_close(swapped, distances[-1])


@pytest.mark.parametrize("net", NETS)
def test_heads_are_the_published_ones(net):
    folders = [Path(find_spec("lpips").origin).parent / "weights" / "v0.1"]
    if torchmetrics := find_spec("torchmetrics"):  # found, not imported: that takes seconds
        folders.append(Path(torchmetrics.origin).parent / "functional" / "image" / "lpips_models")
    tensors = LPIPS(net, weights=constant_weights(net, 0.0)).weights
    assert sum(name.startswith("head.") for name in tensors) == 5
    for folder in folders:
        state = torch.load(folder / f"{net}.pth", "cpu", weights_only=True)
        for index in range(5):
            assert torch.equal(
                tensors[f"head.{index}"], state[f"lin{index}.model.1.weight"].flatten()
            )


# Gradients


def test_gradcheck_of_one_layer_with_pixels_without_features():
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.rand(2, 4, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    head = torch.rand(4, generator=generator, dtype=torch.float64)
    x[:, :, 0, 0] = 0  # in one, in the other, in both
    y[:, :, 0, 1] = 0
    x[:, :, 1, 1] = y[:, :, 1, 1] = 0
    inputs = (x.requires_grad_(), y.requires_grad_(), head)
    assert torch.autograd.gradcheck(feature_distance, inputs, eps=1e-8, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("net", "dtype"),
    [
        pytest.param("vgg", torch.float32, marks=pytest.mark.slow),
        ("alex", torch.float32),
        ("alex", torch.float16),
        ("alex", torch.bfloat16),
    ],
)
def test_gradients_are_finite_on_constant_and_equal_frames(net, dtype, models):
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    frames = [noise, *(constant(value, size=32) for value in (BLACK, GREY, WHITE))]
    reconstruction, target = (
        torch.cat(side).to(dtype) for side in zip(*itertools.product(frames, frames), strict=True)
    )
    distance, gradient = distance_and_gradient(call(models[net]), reconstruction, target)
    assert distance.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.dtype == dtype


@pytest.mark.parametrize("net", NETS)
def test_gradient_is_zero_if_all_features_are_zero(net):
    frames = torch.rand(1, 3, 32, 32) * 2 - 1
    model = LPIPS(net, weights=constant_weights(net, 0.0))
    distance, gradient = distance_and_gradient(call(model), frames, -frames)
    assert not distance.any()
    assert not gradient.any()


@pytest.fixture
def saved_bytes(saved_storages):
    """Return the bytes that the graph of a call stores, without the frozen weights."""

    def measure(model, reconstruction, target):
        with saved_storages() as sizes:
            distance = model(reconstruction=reconstruction, target=target)
            assert distance.requires_grad
        frozen = {tensor.untyped_storage().data_ptr() for tensor in model.weights.values()}
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
    activations = {
        2: 64,
        0: 64,
        7: 32,
        5: 32,
        10: 16,
        12: 16,
        14: 16,
        17: 8,
        19: 8,
        21: 8,
        24: 4,
        26: 4,
        28: 4,
    }
    shapes = BACKBONES["vgg"].tensor_shapes()
    one_each = sum(
        4 * shapes[f"features.{layer}.bias"][0] * size**2 for layer, size in activations.items()
    )
    # The remainder: unit vectors and differences of a third of the layers, and the indices of the poolings.
    assert (
        one_each
        < saved_bytes(models["vgg"], frames.requires_grad_(), frames.detach().flip(-1))
        < 2.5 * one_each
    )


# Precision


@pytest.mark.parametrize(
    ("dtype", "target_dtype", "expected_dtype"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ],
)
def test_at_least_float32_also_under_autocast(
    dtype, target_dtype, expected_dtype, models, real_frames
):
    x, y = real_frames["bikes.mp4"][:2].to(dtype).split(1)
    expected = distance_and_gradient(
        call(models["alex"]), x.to(expected_dtype), y.to(expected_dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = distance_and_gradient(call(models["alex"]), x, y.to(target_dtype))
    assert actual[0].dtype == expected_dtype
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1].to(dtype))


def test_moved_to_float64_and_half_precision(models, real_frames):
    x, y = real_frames["bikes.mp4"][:2].split(1)
    model = copy.deepcopy(models["alex"])
    expected = model(reconstruction=x.double(), target=y.double())
    assert torch.equal(model.double()(reconstruction=x, target=y), expected)
    model = copy.deepcopy(models["alex"]).half()
    assert torch.equal(
        model(reconstruction=x, target=y), models["alex"](reconstruction=x, target=y)
    )


def test_inference_mode(models, real_frames):
    frames = real_frames["bikes.mp4"]
    with torch.inference_mode():
        inside = models["alex"](reconstruction=frames[:2], target=frames[2:])
        created_inside = frames[2:].clone()
    distance, gradient = distance_and_gradient(call(models["alex"]), frames[:2], created_inside)
    assert torch.equal(distance, inside)
    assert gradient.isfinite().all()


# As a frozen module


def test_frozen_hidden_and_deterministic(models, real_frames):
    x, y = real_frames["bikes.mp4"][:2].split(1)
    model = copy.deepcopy(models["alex"]).train().requires_grad_(True)
    assert not model.state_dict()
    assert not any(tensor.requires_grad for tensor in model.weights.values())
    assert torch.equal(
        model(reconstruction=x, target=y), models["alex"](reconstruction=x, target=y)
    )


def test_copies_pickles_and_saves(models, real_frames):
    x, y = real_frames["bikes.mp4"][:2].split(1)
    buffer = io.BytesIO()
    torch.save(models["alex"], buffer)
    buffer.seek(0)
    expected = models["alex"](reconstruction=x, target=y)
    for other in (
        pickle.loads(pickle.dumps(models["alex"])),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(other(reconstruction=x, target=y), expected)


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


@pytest.mark.parametrize(("net", "size"), [("vgg", 16), ("alex", 31)])
def test_the_smallest_frames(net, size):
    model = LPIPS(net, weights=constant_weights(net, 0.01))
    frames = torch.rand(1, 3, size, size + 1) * 2 - 1
    assert min(model.features(frames)[-1].shape) > 0
    assert model(reconstruction=frames, target=-frames).isfinite().all()
    with pytest.raises(ValueError, match=f"`frames` must be at least {size} pixels .*interpolate"):
        model.features(frames[..., : size - 1])


FRAME, GREY_FRAME = torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)


@pytest.mark.parametrize(
    ("reconstruction", "target", "message"),
    [
        (
            GREY_FRAME,
            GREY_FRAME,
            r"`reconstruction` must be .*\(N, 3, H, W\), .*\(1, 1, 32, 32\).*expand.*\(B, T, C",
        ),
        (FRAME, GREY_FRAME, r"`target` must be of `reconstruction`'s shape \(1, 3, 32, 32\)"),
        (FRAME[0], FRAME, r"`reconstruction` must be .*\[None\]"),
        (FRAME[..., :30], FRAME[..., :30], "`reconstruction` must be at least 31 pixels"),
    ],
)
def test_wrong_frames(reconstruction, target, message, random_models):
    with pytest.raises(ValueError, match=message):
        random_models["alex"](reconstruction=reconstruction, target=target)
    with pytest.raises(TypeError):
        random_models["alex"](FRAME, FRAME)


@pytest.mark.parametrize("net", ["squeeze", ["vgg"]])
def test_unknown_net(net):
    with pytest.raises(ValueError, match='`net` must be "vgg" or "alex", but got'):
        LPIPS(net)
