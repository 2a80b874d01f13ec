"""`in_chunks`: memory, number of forwards, autocast. `test_options.py` compares values and gradients."""

import pytest
import torch

from telecine.losses.perceptual import gram
from telecine.losses.perceptual.frames import in_chunks

NUM_FRAMES = 5


def frame_pair(num_frames=NUM_FRAMES, size=32, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = (num_frames, 3, size, size)
    x, y = (torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1 for _ in range(2))
    return x.requires_grad_(), y


def squares(*, reconstruction, target):
    return (reconstruction - target).square().mean((1, 2, 3))


class Counted:
    """A distance that records the number of frames of each call."""

    def __init__(self, compare):
        self.compare = compare
        self.sizes = []

    def __call__(self, *, reconstruction, target):
        self.sizes.append(len(reconstruction))
        return self.compare(reconstruction=reconstruction, target=target)


def test_runs_each_chunk_again_in_the_backward(distance_in_chunks):
    compare = Counted(squares)
    x, y = frame_pair(size=2)
    distance = distance_in_chunks(compare, x, y, 2)
    assert compare.sizes == [2, 2, 1]
    distance.sum().backward()
    assert compare.sizes == [2, 2, 1, 1, 2, 2]
    for plain in (None, NUM_FRAMES):
        compare.sizes.clear()
        distance_in_chunks(compare, x, y, plain).sum().backward()
        assert compare.sizes == [NUM_FRAMES]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_runs_once_without_gradients(context, distance_in_chunks):
    compare = Counted(squares)
    x, y = frame_pair()
    with context():
        distance = distance_in_chunks(compare, x, y, 2)
    assert not distance.requires_grad
    assert not distance_in_chunks(compare, x.detach(), y, 2).requires_grad
    assert compare.sizes == [2, 2, 1] * 2
    torch.testing.assert_close(
        distance, squares(reconstruction=x, target=y).detach(), rtol=1e-12, atol=1e-12
    )


def test_saved_tensors_do_not_grow_with_the_number_of_frames(random_models, saved_storages):
    model = random_models["alex"]

    def compare(*, reconstruction, target):
        lpips, textures = model(reconstruction=reconstruction, target=target, feature_terms=[gram])
        return {"perceptual": lpips, "gram": textures}

    def kept(num_frames, chunk_size):
        x, y = frame_pair(num_frames, dtype=torch.float32)
        ignored = {
            tensor.untyped_storage().data_ptr() for tensor in (x, y, *model.weights.values())
        }
        with saved_storages() as sizes:
            distances = in_chunks(compare, reconstruction=x, target=y, chunk_size=chunk_size)
        assert all(distance.requires_grad for distance in distances.values())
        return sum(size for pointer, size in sizes.items() if pointer not in ignored)

    assert kept(4, 2) == kept(16, 2) < 100
    assert kept(4, None) > 1e6
    assert kept(16, None) > 3.5 * kept(4, None)


def test_the_second_forward_uses_the_same_autocast(distance_in_chunks):
    """The second forward runs outside the caller's autocast and must compute the same."""
    weight = torch.linspace(-1, 1, 12).view(3, 4)
    dtypes = []

    def compare(*, reconstruction, target):
        difference = (reconstruction - target).mean((2, 3)) @ weight
        dtypes.append(difference.dtype)
        return difference.float().square().sum(1)

    gradients = []
    for chunk_size in (None, 2):
        x, y = frame_pair(dtype=torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            distance = distance_in_chunks(compare, x, y, chunk_size)
        assert distance.dtype == torch.float32
        distance.sum().backward()
        gradients.append(x.grad)
    assert dtypes == [torch.bfloat16] * (1 + 3 + 3)
    torch.testing.assert_close(*gradients, rtol=0.02, atol=1e-5)
