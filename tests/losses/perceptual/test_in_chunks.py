"""`in_chunks` against one plain call: values, gradients, memory, and number of forwards."""

import copy
import functools
import gc
import itertools

import pytest
import torch

from telecine.losses.perceptual import gram
from telecine.losses.perceptual.frames import in_chunks

NUM_FRAMES = 5


@pytest.fixture(scope="module")
def model(random_models):
    """Return LPIPS on AlexNet with random weights in float64."""
    return copy.deepcopy(random_models["alex"]).double()


def frame_pair(num_frames=NUM_FRAMES, size=32, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = (num_frames, 3, size, size)
    x, y = (torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1 for _ in range(2))
    return x.requires_grad_(), y


class Counted:
    """A distance that records the number of frames of each call."""

    def __init__(self, compare):
        self.compare, self.sizes = compare, []

    def __call__(self, *, reconstruction, target):
        self.sizes.append(len(reconstruction))
        return self.compare(reconstruction=reconstruction, target=target)


@pytest.mark.parametrize("chunk_size", [2, NUM_FRAMES, None])
def test_changes_neither_values_nor_gradients(chunk_size, model):
    x, y = frame_pair()
    y.requires_grad_()
    compare = functools.partial(model, feature_terms=[gram])
    expected = compare(reconstruction=x, target=y)
    actual = in_chunks(compare, reconstruction=x, target=y, chunk_size=chunk_size)
    cotangents = torch.linspace(1, 2, NUM_FRAMES, dtype=torch.float64), torch.linspace(3, 1, NUM_FRAMES).double()
    for ours, theirs, cotangent in zip(actual, expected, cotangents, strict=True):
        assert ours.shape == (NUM_FRAMES,)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad(d, (x, y), cotangent, retain_graph=True) for d in (ours, theirs)]
        for our_gradient, their_gradient in zip(*gradients, strict=True):
            assert their_gradient.abs().max() > 1e-6
            torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [lambda *both: both, lambda first, second: first])
def test_returns_the_type_that_the_distance_returns(make):
    def compare(*, reconstruction, target):
        difference = (reconstruction - target).flatten(1)
        return make(difference.sum(1), difference.square().sum(1))

    x, y = frame_pair(size=2)
    expected = compare(reconstruction=x, target=y)
    actual = in_chunks(compare, reconstruction=x, target=y, chunk_size=2)
    assert type(actual) is type(expected)
    torch.testing.assert_close(actual, expected)
    for ours, theirs in zip(actual, expected, strict=True):
        gradients = [torch.autograd.grad(values.sum(), x, retain_graph=True)[0] for values in (ours, theirs)]
        torch.testing.assert_close(*gradients)


# Number of forwards, and memory


def test_runs_each_chunk_again_in_the_backward():
    compare = Counted(lambda *, reconstruction, target: (reconstruction - target).square().mean((1, 2, 3)))
    x, y = frame_pair(size=2)
    distance = in_chunks(compare, reconstruction=x, target=y, chunk_size=2)
    assert compare.sizes == [2, 2, 1]
    distance.sum().backward()
    assert compare.sizes == [2, 2, 1, 1, 2, 2]
    for plain in (None, NUM_FRAMES):
        compare.sizes.clear()
        in_chunks(compare, reconstruction=x, target=y, chunk_size=plain).sum().backward()
        assert compare.sizes == [NUM_FRAMES]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_runs_once_without_gradients(context, model):
    compare = Counted(model)
    x, y = frame_pair()
    with context():
        distance = in_chunks(compare, reconstruction=x, target=y, chunk_size=2)
    assert not distance.requires_grad
    assert not in_chunks(compare, reconstruction=x.detach(), target=y, chunk_size=2).requires_grad
    assert compare.sizes == [2, 2, 1] * 2
    torch.testing.assert_close(distance, model(reconstruction=x, target=y).detach(), rtol=1e-12, atol=1e-12)


def test_gradients_can_be_taken_twice(model):
    """The adaptive weight takes gradients before the backward of the whole loss."""
    x, y = frame_pair()
    distance = in_chunks(model, reconstruction=x, target=y, chunk_size=2).mean()
    first, second = (torch.autograd.grad(distance, x, retain_graph=True)[0] for _ in range(2))
    distance.backward()
    assert first.abs().max() > 0
    assert torch.equal(first, second)
    assert torch.equal(first, x.grad)


def test_gradient_of_a_layer_before_the_frames(model):
    x, y = frame_pair()
    layer = torch.ones(3, 1, 1, dtype=torch.float64, requires_grad=True)
    gradients = [
        torch.autograd.grad(in_chunks(model, reconstruction=x * layer, target=y, chunk_size=size).sum(), layer)[0]
        for size in (2, None)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_saved_tensors_do_not_grow_with_the_number_of_frames(random_models, saved_storages):
    model = random_models["alex"]
    compare = functools.partial(model, feature_terms=[gram])
    frozen = {tensor.untyped_storage().data_ptr() for tensor in model.module.values()}

    def kept(num_frames, chunk_size):
        x, y = frame_pair(num_frames, dtype=torch.float32)
        frames = {tensor.untyped_storage().data_ptr() for tensor in (x, y)}
        with saved_storages() as sizes:
            distances = in_chunks(compare, reconstruction=x, target=y, chunk_size=chunk_size)
        assert all(distance.requires_grad for distance in distances)
        return sum(size for pointer, size in sizes.items() if pointer not in frames | frozen)

    plain, chunked = ([kept(num_frames, size) for num_frames in (4, 8, 16)] for size in (None, 2))
    assert chunked[0] == chunked[1] == chunked[2] < 100
    assert plain[0] > 1e6
    assert 3.5 * plain[0] < plain[2]


def peak_bytes(compute):
    """Return the peak of allocated bytes while `compute` runs."""
    gc.collect()
    gc.disable()  # freeing other tests' garbage meanwhile would count as negative bytes
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            compute()
    finally:
        gc.enable()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert len(events) > 100
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.slow
def test_the_backward_recomputes_one_chunk_at_a_time(random_models):
    def peak(num_frames, chunk_size):
        x, y = frame_pair(num_frames, dtype=torch.float32)
        compare = functools.partial(random_models["alex"], feature_terms=[gram])
        return peak_bytes(
            lambda: in_chunks(compare, reconstruction=x, target=y, chunk_size=chunk_size)[0].sum().backward()
        )

    few, many, plain = peak(2, 1), peak(8, 1), peak(8, None)
    frame = 4 * 3 * 32 * 32  # bytes; 6 more frames have 12 more gradients, as chunks and concatenated
    assert 0 < many - few <= 6 * 2 * frame
    assert plain > 5 * many


# Precision


def test_the_second_forward_uses_the_same_autocast(random_models):
    """The second forward runs outside the caller's autocast and must compute the same."""
    weight = torch.linspace(-1, 1, 12).view(3, 4)
    dtypes = []

    def compare(*, reconstruction, target):
        difference = (reconstruction - target).mean((2, 3)) @ weight
        dtypes.append(difference.dtype)
        distance = random_models["alex"](reconstruction=reconstruction, target=target)
        return distance + difference.float().square().sum(1)

    gradients = []
    for chunk_size in (None, 2):
        x, y = frame_pair(dtype=torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            distance = in_chunks(compare, reconstruction=x, target=y, chunk_size=chunk_size)
        assert distance.dtype == torch.float32
        distance.sum().backward()
        gradients.append(x.grad)
    assert dtypes == [torch.bfloat16] * (1 + 3 + 3)
    torch.testing.assert_close(*gradients, rtol=0.02, atol=1e-5)
