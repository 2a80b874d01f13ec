"""The distance of Gram matrices, also with LPIPS: known value, sums over pixels, gradients, precision, memory."""

import functools
import itertools

import pytest
import torch

from telecine.losses.perceptual import gram
from telecine.losses.perceptual.backbones import BACKBONES
from telecine.losses.perceptual.lpips import gram_matrix


def features(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gram_distance(x, y):
    return gram(reconstruction_features=[x], target_features=[y])


def test_known_value():
    x = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # two features, one row of two pixels
    assert torch.equal(gram_matrix(x), torch.tensor([[[5.0, 11.0], [11.0, 25.0]]]) / 4)
    assert gram_distance(x, torch.zeros_like(x)).tolist() == [(25 + 2 * 121 + 625) / 16]


def test_equals_sums_over_pixels():
    x, y = features(2, 3, 4, 5), features(2, 3, 4, 5, seed=1)
    expected = torch.zeros(2, dtype=torch.float64)
    for frame, i, j in itertools.product(range(2), range(3), range(3)):
        difference = 0.0
        for h, w in itertools.product(range(4), range(5)):
            difference += (
                x[frame, i, h, w] * x[frame, j, h, w] - y[frame, i, h, w] * y[frame, j, h, w]
            )
        expected[frame] += (difference / (3 * 4 * 5)) ** 2
    torch.testing.assert_close(gram_distance(x, y), expected)
    assert torch.equal(gram_distance(x, y), gram_distance(y, x))


def test_is_zero_for_equal_features_at_other_positions():
    x = features(2, 3, 4, 5)
    assert gram_distance(x, x.clone()).tolist() == [0, 0]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(2)[..., order].unflatten(2, (4, 5))
    for same_texture in (shuffled, x.repeat(1, 1, 2, 3)):
        torch.testing.assert_close(
            gram_distance(x, same_texture), torch.zeros(2, dtype=x.dtype), rtol=0, atol=1e-24
        )
    assert (gram_distance(x, x.flip(1)) > 1e-4).all()


def test_gradcheck_with_equal_and_empty_features():
    x, y = features(3, 3, 2, 3), features(3, 3, 2, 3, seed=1)
    y[1] = x[1]
    x[2] = y[2] = 0
    inputs = (x.requires_grad_(), y.requires_grad_())
    assert torch.autograd.gradcheck(gram_distance, inputs)
    assert torch.autograd.gradgradcheck(gram_distance, inputs)
    gradient, _ = torch.autograd.grad(gram_distance(x, y).sum(), inputs)
    assert gradient.flatten(1).ne(0).any(1).tolist() == [True, False, False]


def test_half_precision_does_not_overflow():
    x = torch.full((1, 4, 8, 8), 65504.0, dtype=torch.float16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = gram_distance(x, torch.zeros_like(x))
    # Each of the 16 entries is the square divided by the 4 features.
    assert distance.item() == pytest.approx(65504.0**4, rel=1e-6)
    assert torch.autograd.grad(distance / 65504**4, x)[0].isfinite().all()


def test_the_graph_holds_no_copy_of_the_features(saved_storages):
    x = features(1, 3, 32, 32).relu_().requires_grad_()
    with saved_storages() as sizes:
        distance = gram_distance(x, features(1, 3, 32, 32, seed=1))
    assert distance.requires_grad
    assert sizes.pop(x.untyped_storage().data_ptr()) == 8 * 3 * 32 * 32
    assert sum(sizes.values()) < 8 * 3 * 3 * 4


# With LPIPS


def lpips_and_gram(model, x, y):
    return model(reconstruction=x, target=y, feature_terms=[gram])


@pytest.mark.slow
def test_gram_equals_that_of_the_published_packages_features(models, references, real_frames):
    pair = real_frames["bikes.mp4"][:2], real_frames["bikes.mp4"][2:]
    x, y = (references("alex").net(references("alex").scaling_layer(frames)) for frames in pair)
    assert len(x) == len(y) == 5
    expected = gram(
        reconstruction_features=[m.double() for m in x], target_features=[m.double() for m in y]
    )
    lpips, actual = lpips_and_gram(models["alex"], *pair)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=0)
    assert torch.equal(lpips, models["alex"](reconstruction=pair[0], target=pair[1]))


def test_feature_terms_do_not_change_a_bit_of_the_distances_gradient(random_models):
    """Autograd adds the gradients of a feature map in the order of the calls, so it must be the same with terms."""
    x, y = (features(2, 3, 48, 48, seed=seed, dtype=torch.float32) * 2 - 1 for seed in (0, 1))
    inputs = (x.requires_grad_(), y.requires_grad_())
    plain = random_models["alex"](reconstruction=x, target=y)
    expected = torch.autograd.grad(plain.sum(), inputs)
    for feature_terms in ([gram], [gram, gram]):
        distance, *_ = random_models["alex"](
            reconstruction=x, target=y, feature_terms=feature_terms
        )
        assert torch.equal(distance, plain)
        for actual, gradient in zip(
            torch.autograd.grad(distance.sum(), inputs), expected, strict=True
        ):
            assert gradient.abs().max() > 0
            assert torch.equal(actual, gradient)


@pytest.mark.parametrize("net", BACKBONES)
def test_terms_share_one_pass_of_the_backbone_and_are_computed_only_on_request(
    net, random_models, no_sync
):
    frames = torch.rand(1, 3, 32, 32) * 2 - 1
    compare = functools.partial(random_models[net], feature_terms=[gram])
    for call, num_products in ((random_models[net], 0), (compare, 10)):
        with no_sync() as mode:
            call(reconstruction=frames, target=-frames)
        assert mode.calls.count("convolution") == 2 * len(BACKBONES[net].convolutions())
        assert mode.calls.count("bmm") == num_products


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_both_are_at_least_float32_also_under_autocast(dtype, random_models, real_frames):
    x, y = (frames.to(dtype) for frames in real_frames["carphone_pristine.mp4"][:2].split(1))
    widest = torch.promote_types(dtype, torch.float32)
    expected = lpips_and_gram(random_models["alex"], x.to(widest), y.to(widest))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = lpips_and_gram(random_models["alex"], x, y)
    assert [values.dtype for values in actual] == [widest] * 2
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
