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
from torch.utils._python_dispatch import TorchDispatchMode

from telecine.perceptual import LPIPS
from telecine.perceptual.backbones import BACKBONES, run_stage
from telecine.perceptual.lpips import feature_distance, load_heads

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
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("net", NETS)
def test_equals_the_published_package_on_real_frames(net, clip, models, references, real_frames):
    frames = real_frames[clip]
    for reconstruction, target in ((frames[:2], frames[2:]), (noisy(frames[:2], 0.2), frames[:2])):
        ours, our_gradient = distance_and_gradient(call(models[net]), reconstruction, target)
        theirs, their_gradient = distance_and_gradient(references[net], reconstruction, target)
        assert (ours > 1e-4).all()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert (our_gradient - their_gradient).norm() < 1e-5 * their_gradient.norm()


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


@pytest.mark.parametrize("net", NETS)
def test_is_zero_for_equal_frames_symmetric_and_grows_with_noise(net, models, real_frames):
    frames = real_frames["bikes.mp4"][:2]
    distances = [models[net](reconstruction=noisy(frames, a), target=frames) for a in (0, 0.02, 0.05, 0.1, 0.3)]
    assert torch.equal(distances[0], torch.zeros(2))
    for less, more in itertools.pairwise(distances):
        assert (less < more).all()
    swapped = models[net](reconstruction=frames, target=noisy(frames, 0.3))
    torch.testing.assert_close(swapped, distances[-1])


@pytest.mark.parametrize("net", NETS)
def test_frames_of_a_batch_do_not_mix(net, models, real_frames):
    frames = real_frames["carphone_pristine.mp4"]
    together = models[net](reconstruction=frames[:2], target=frames[2:])
    apart = [models[net](reconstruction=frames[i : i + 1], target=frames[i + 2 : i + 3]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(apart))


@pytest.mark.parametrize("net", NETS)
def test_heads_are_the_published_ones(net):
    folders = [Path(published.__file__).parent / "weights" / "v0.1"]
    if torchmetrics := find_spec("torchmetrics"):  # found, not imported: that takes seconds
        folders.append(Path(torchmetrics.origin).parent / "functional" / "image" / "lpips_models")
    heads = load_heads(net)
    assert len(heads) == 5
    for folder in folders:
        state = torch.load(folder / f"{net}.pth", "cpu", weights_only=True)
        for index in range(5):
            assert torch.equal(heads[f"head.{index}"], state[f"lin{index}.model.1.weight"].flatten())


# The Gram matrices beside it


def compare_gradient(model, reconstruction, target):
    return distance_and_gradient(lambda x, y: sum(model.compare(reconstruction=x, target=y)), reconstruction, target)


@pytest.mark.parametrize("net", NETS)
def test_gram_is_that_of_the_published_packages_features(net, models, references, real_frames):
    pair = real_frames["bikes.mp4"][:2], real_frames["bikes.mp4"][2:]
    x, y = (references[net].net(references[net].scaling_layer(frames)) for frames in pair)
    assert len(x) == len(y) == 5
    expected = torch.zeros(2, dtype=torch.float64)
    for frame, (x_l, y_l) in itertools.product(range(2), zip(x, y, strict=True)):
        f_x, f_y = (features[frame].flatten(1).double() for features in (x_l, y_l))
        expected[frame] += ((f_x @ f_x.T - f_y @ f_y.T) / f_x.numel()).pow(2).sum()
    actual = models[net].compare(reconstruction=pair[0], target=pair[1])
    torch.testing.assert_close(actual.gram.double(), expected, rtol=1e-4, atol=0)
    assert torch.equal(actual.lpips, models[net](reconstruction=pair[0], target=pair[1]))


@pytest.mark.parametrize("net", NETS)
def test_gram_is_zero_for_equal_frames_and_grows_with_noise(net, models, real_frames):
    frames = real_frames["bikes.mp4"][:1]
    noises = (0, 0.05, 0.1, 0.3)
    distances = [models[net].compare(reconstruction=noisy(frames, a), target=frames) for a in noises]
    assert distances[0] == (torch.zeros(1), torch.zeros(1))
    for less, more in itertools.pairwise(distances):
        assert less.lpips < more.lpips
        assert less.gram < more.gram


@pytest.mark.parametrize("net", NETS)
def test_compare_shares_one_pass_and_forward_multiplies_no_features(net, random_models):
    frames = torch.rand(1, 3, 32, 32) * 2 - 1
    num_layers = len(BACKBONES[net].tensor_shapes()) // 2
    for call, num_products in ((random_models[net], 0), (random_models[net].compare, 10)):
        with NoSync() as mode:
            call(reconstruction=frames, target=-frames)
        assert mode.ran.count("convolution") == 2 * num_layers
        assert mode.ran.count("bmm") == num_products


@pytest.mark.parametrize("net", NETS)
def test_gradcheck_of_both_in_float64(net, random_models):
    generator = torch.Generator().manual_seed(1)
    size = SMALLEST[net]
    pair = [torch.rand(1, 3, size, size, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2)]
    inputs = [frames.requires_grad_() for frames in pair]

    def both(x, y):
        return random_models[net].compare(reconstruction=x, target=y)

    assert torch.autograd.gradcheck(both, inputs, fast_mode=True)


def test_gradients_of_both_are_finite_on_flat_and_equal_frames(models):
    pairs = [(flat(x, size=32), flat(y, size=32)) for x in FLAT for y in FLAT]
    distance, gradient = compare_gradient(models["alex"], *map(torch.cat, zip(*pairs, strict=True)))
    assert distance.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_both_are_at_least_float32_also_under_autocast(dtype, random_models, real_frames):
    x, y = (frames.to(dtype) for frames in real_frames["carphone_pristine.mp4"][:2].split(1))
    widest = torch.promote_types(dtype, torch.float32)
    expected = random_models["alex"].compare(reconstruction=x.to(widest), target=y.to(widest))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = random_models["alex"].compare(reconstruction=x, target=y)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == widest
        assert torch.equal(ours, theirs)


# Gradients


@pytest.mark.parametrize("net", NETS)
def test_gradcheck_in_float64(net, models):
    model = copy.deepcopy(models[net]).double()
    generator = torch.Generator().manual_seed(1)
    size = SMALLEST[net]
    x, y = (torch.rand(2, 3, size, size, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2))
    x.requires_grad_()
    y.requires_grad_()
    assert torch.autograd.gradcheck(call(model), (x, y), fast_mode=True)


def test_gradcheck_of_one_layer_with_empty_pixels():
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.rand(2, 4, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    head = torch.rand(4, generator=generator, dtype=torch.float64)
    x[:, :, 0, 0] = 0  # no feature in one, in the other, in both
    y[:, :, 0, 1] = 0
    x[:, :, 1, 1] = y[:, :, 1, 1] = 0
    inputs = (x.requires_grad_(), y.requires_grad_(), head)
    assert torch.autograd.gradcheck(feature_distance, inputs, eps=1e-8, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("net", NETS)
def test_gradients_are_finite_on_flat_and_equal_frames(net, dtype, models):
    pairs = [(flat(x), flat(y)) for x in FLAT for y in FLAT]
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pairs += [(noise, noise), (noise, flat("black")), (flat("white"), noise)]
    reconstruction, target = (torch.cat(side).to(dtype) for side in zip(*pairs, strict=True))
    distance, gradient = distance_and_gradient(call(models[net]), reconstruction, target)
    assert distance.shape == (12,)
    assert distance.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.dtype == dtype


@pytest.mark.parametrize("net", NETS)
def test_a_network_without_any_feature_has_zero_gradient(net):
    state = {name: torch.zeros(shape) for name, shape in BACKBONES[net].tensor_shapes().items()}
    frames = torch.rand(1, 3, 32, 32) * 2 - 1
    distance, gradient = distance_and_gradient(call(LPIPS(net, weights=state)), frames, -frames)
    assert torch.equal(distance, torch.zeros(1))
    assert torch.equal(gradient, torch.zeros_like(frames))


@pytest.fixture
def saved_bytes(saved_storages):
    """Return how many bytes the graph of a call keeps, the frozen weights left out."""

    def measure(model, reconstruction, target):
        with saved_storages() as sizes:
            distance = model(reconstruction=reconstruction, target=target)
            assert distance.requires_grad
        frozen = {tensor.untyped_storage().data_ptr() for tensor in model._frozen.values()}
        return sum(size for pointer, size in sizes.items() if pointer not in frozen)

    return measure


@pytest.mark.parametrize("net", NETS)
def test_target_gets_a_graph_only_where_it_needs_one(net, models, real_frames, saved_bytes):
    frames = real_frames["bikes.mp4"]
    reconstruction, target = frames[:1].clone().requires_grad_(), frames[1:2].clone()
    without = saved_bytes(models[net], reconstruction, target)
    both = saved_bytes(models[net], reconstruction, target.requires_grad_())
    assert 0 < without < 0.65 * both
    models[net](reconstruction=reconstruction.detach(), target=target).sum().backward()
    assert target.grad.isfinite().all()
    with torch.no_grad():
        assert not models[net](reconstruction=reconstruction, target=target).requires_grad


def test_graph_holds_one_activation_a_layer(models, saved_bytes):
    frames = torch.rand(1, 3, 64, 64) * 2 - 1
    activations = {2: 64, 0: 64, 7: 32, 5: 32, 10: 16, 12: 16, 14: 16, 17: 8, 19: 8, 21: 8, 24: 4, 26: 4, 28: 4}
    shapes = BACKBONES["vgg"].tensor_shapes()
    one_each = sum(4 * shapes[f"features.{layer}.bias"][0] * size**2 for layer, size in activations.items())
    # The rest: what is compared (a third of the layers) as unit vectors and differences, the poolings' indices.
    assert one_each < saved_bytes(models["vgg"], frames.requires_grad_(), frames.detach().flip(-1)) < 2.5 * one_each


def test_inputs_are_left_as_they_are_and_inference_mode_works(models, real_frames):
    frames = real_frames["bikes.mp4"]
    reconstruction, target = frames[:2].clone(), frames[2:].clone()
    with torch.inference_mode():
        inside = models["alex"](reconstruction=reconstruction, target=target)
        made_inside = target.clone()
    assert torch.equal(reconstruction, frames[:2])
    assert torch.equal(target, frames[2:])
    distance, gradient = distance_and_gradient(call(models["alex"]), reconstruction, made_inside)
    assert torch.equal(distance, inside)
    assert gradient.isfinite().all()


# Precision


@pytest.mark.parametrize("net", NETS)
def test_autocast_changes_nothing(net, models, real_frames):
    frames = real_frames["carphone_pristine.mp4"]
    expected = distance_and_gradient(call(models[net]), frames[:1], frames[3:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (frames[0, 0] @ frames[0, 0].T).dtype == torch.bfloat16
        actual = distance_and_gradient(call(models[net]), frames[:1], frames[3:])
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("net", NETS)
def test_half_precision_inputs_are_computed_in_float32(net, dtype, models, real_frames):
    x, y = (frames.to(dtype) for frames in real_frames["bikes.mp4"][:2].split(1))
    expected = models[net](reconstruction=x.float(), target=y.float())
    for other in (y, y.float()):
        actual = models[net](reconstruction=x, target=other)
        assert actual.dtype == torch.float32
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("net", NETS)
def test_float64_inputs_are_computed_in_float64(net, models, real_frames):
    x, y = real_frames["bikes.mp4"][:2].double().split(1)
    cast = models[net](reconstruction=x, target=y)
    moved = copy.deepcopy(models[net]).double()(reconstruction=x, target=y)
    assert cast.dtype == moved.dtype == torch.float64
    assert torch.equal(cast, moved)
    torch.testing.assert_close(cast.float(), models[net](reconstruction=x.float(), target=y.float()))


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, lambda module: module.to(torch.float16)])
def test_casting_the_surrounding_model_to_half_precision_leaves_it_in_float32(cast, models, real_frames):
    x, y = real_frames["bikes.mp4"][:2].split(1)
    parent = nn.ModuleDict({"loss": copy.deepcopy(models["alex"]), "linear": nn.Linear(1, 1)})
    cast(parent)
    assert parent["linear"].weight.dtype != torch.float32
    actual = parent["loss"](reconstruction=x, target=y)
    assert torch.equal(actual, models["alex"](reconstruction=x, target=y))


# A frozen module


def test_stays_in_evaluation_mode_and_is_deterministic(models, real_frames):
    x, y = real_frames["bikes.mp4"][:2].split(1)
    parent = nn.ModuleList([copy.deepcopy(models["vgg"])])
    first = parent[0](reconstruction=x, target=y)
    parent.train()
    assert parent.training
    assert not any(module.training for module in parent[0].modules())
    for _ in range(2):
        assert torch.equal(parent[0](reconstruction=x, target=y), first)


@pytest.mark.parametrize("net", NETS)
def test_brings_nothing_into_optimizers_wrappers_and_checkpoints(net, models):
    parent = nn.ModuleDict({"loss": models[net], "linear": nn.Linear(1, 1)})
    assert not list(models[net].parameters())
    assert not list(models[net].buffers())
    assert list(parent.state_dict()) == ["linear.weight", "linear.bias"]
    parent.load_state_dict(parent.state_dict(), strict=True)
    parent.requires_grad_(True)
    assert not any(tensor.requires_grad for tensor in models[net]._frozen.values())


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
    assert copies[0]._frozen["scale"] is not models["alex"]._frozen["scale"]


def test_moves_with_its_parent(models):
    parent = nn.ModuleList([copy.deepcopy(models["alex"])]).to("meta")
    assert {tensor.device.type for tensor in parent[0]._frozen.values()} == {"meta"}
    parent = nn.ModuleList([copy.deepcopy(models["alex"])]).to("meta", torch.float16)
    assert {(tensor.device.type, tensor.dtype) for tensor in parent[0]._frozen.values()} == {("meta", torch.float32)}


class NoSync(TorchDispatchMode):
    """Fail on whatever makes the host wait for a device, and count what ran."""

    waits = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select")

    def __init__(self):
        super().__init__()
        self.ran = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ran.append(func._schema.name.removeprefix("aten::"))
        assert self.ran[-1] not in self.waits, self.ran[-1]
        assert (kwargs or {}).get("device") is None, f"{self.ran[-1]} to a device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("net", NETS)
def test_nothing_waits_for_the_device(net, models, real_frames):
    x, y = real_frames["bikes.mp4"][:2].split(1)
    x.requires_grad_()
    with NoSync() as mode:
        models[net](reconstruction=x, target=y).sum().backward()
    num_layers = len(BACKBONES[net].tensor_shapes()) // 2
    assert mode.ran.count("convolution") == 2 * num_layers
    assert mode.ran.count("convolution_backward") == num_layers
    with NoSync(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        x.sum().item()


# Arguments


@pytest.mark.parametrize("net", NETS)
def test_smallest_frames(net, models):
    size = SMALLEST[net]
    assert BACKBONES[net].minimum_size == size
    weights = {name: torch.zeros(shape) for name, shape in BACKBONES[net].tensor_shapes().items()}

    def run(size):
        features = torch.zeros(1, 3, size, size)
        for stage in BACKBONES[net].stages:
            features = run_stage(stage, weights, features)
        return features

    assert min(run(size).shape) > 0
    with pytest.raises(RuntimeError):
        run(size - 1)
    frames = torch.rand(1, 3, size, size + 1) * 2 - 1
    assert models[net](reconstruction=frames, target=-frames).isfinite().all()
    with pytest.raises(ValueError, match=f"`target` must be at least {size} pixels .*interpolate"):
        models[net](reconstruction=frames, target=frames[..., : size - 1])


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 1, 32, 32), r"`target` must be .*\(N, 3, H, W\), but got .*\(1, 1, 32, 32\).*expand"),
        (torch.zeros(1, 4, 32, 32), "choose three"),
        (torch.zeros(3, 32, 32), r"\[None\]"),
        (torch.zeros(1, 3, 2, 32, 32), "pick_frames"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "127.5"),
        (torch.zeros(2, 3, 32, 32), r"of shape \(1, 3, 32, 32\) on cpu, as `reconstruction`"),
        (torch.zeros(1, 3, 32, 33), r"of shape \(1, 3, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, device="meta"), "on meta"),
        ([1.0], "must be a floating-point tensor"),
    ],
)
def test_wrong_frames(frames, message, models):
    with pytest.raises(ValueError, match=message):
        models["alex"](reconstruction=torch.zeros(1, 3, 32, 32), target=frames)


def test_compare_refuses_what_forward_refuses(random_models):
    frames = torch.zeros(1, 3, 32, 32)
    for target in (frames[:, :1], frames[..., :30], frames[..., :31], frames.long()):
        with pytest.raises(ValueError, match="`target` must be"):
            random_models["alex"].compare(reconstruction=frames, target=target)


@pytest.mark.parametrize("net", ["squeeze", None, ["vgg"]])
def test_unknown_net(net):
    with pytest.raises(ValueError, match='`net` must be "vgg" or "alex", but got'):
        LPIPS(net)


def test_pairs_are_keyword_only(models):
    frames = torch.zeros(1, 3, 32, 32)
    with pytest.raises(TypeError):
        models["alex"](frames, frames)


def test_shows_its_net(models):
    assert repr(models["vgg"]) == "LPIPS(net='vgg')"
