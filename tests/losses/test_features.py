"""Feature matching against a loop over layers, and whom it teaches."""

import pytest
import torch

from telecine.losses import feature_matching

SHAPES = ((2, 3, 4, 5), (2, 6, 2, 2), (2, 7))


def maps(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def naive(real, fake):
    layers = []
    for x, y in zip(real, fake, strict=True):
        errors = [abs(a - b) for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)]
        layers.append(sum(errors) / len(errors))
    return sum(layers) / len(layers)


def test_equals_a_loop_over_layers():
    value = feature_matching(real=maps(1), fake=maps(2))
    assert value.shape == ()
    assert value.item() == pytest.approx(naive(maps(1), maps(2)), rel=1e-12)


def test_by_hand_each_layer_counts_the_same_whatever_its_size():
    real = (torch.zeros(1, 100), torch.zeros(1, 2))
    fake = (torch.full((1, 100), 0.5), torch.tensor([[2.0, -1.0]]))
    assert feature_matching(real=real, fake=fake).item() == (0.5 + 1.5) / 2


def test_only_the_fake_side_learns():
    real, fake = ([tensor.requires_grad_() for tensor in maps(seed)] for seed in (1, 2))
    feature_matching(real=real, fake=fake).backward()
    assert [tensor.grad for tensor in real] == [None] * 3
    assert all(tensor.grad.ne(0).all() for tensor in fake)


@pytest.mark.parametrize("level", [0.0, 1.0, "noise"])
def test_equal_features_lose_0_with_a_gradient_of_0(level):
    real = maps() if level == "noise" else [torch.full(shape, level) for shape in SHAPES]
    fake = [tensor.clone().requires_grad_() for tensor in real]
    value = feature_matching(real=real, fake=fake)
    value.backward()
    assert value == 0
    assert all(tensor.grad.eq(0).all() for tensor in fake)


def test_gradcheck_and_order():
    real, fake = maps(1), [tensor.requires_grad_() for tensor in maps(2)]
    assert torch.autograd.gradcheck(lambda *maps: feature_matching(real=real, fake=maps), fake)
    nearer = [(x + y) / 2 for x, y in zip(real, fake, strict=True)]
    assert feature_matching(real=real, fake=nearer) < feature_matching(real=real, fake=fake)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_float32_also_under_autocast(dtype):
    real, fake = ([100 * tensor for tensor in maps(seed, dtype)] for seed in (1, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = feature_matching(real=real, fake=fake)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value.item() == pytest.approx(naive(real, fake), rel=1e-5)


def test_layers_must_pair():
    with pytest.raises(ValueError, match="`real` must be one feature map a layer, but got none"):
        feature_matching(real=[], fake=[])
    with pytest.raises(ValueError, match="`fake` must be as long as `real`, 3 feature maps, but got 2"):
        feature_matching(real=maps(), fake=maps()[:2])
    with pytest.raises(ValueError, match=r"`fake\[0\]` must be of `real\[0\]`'s shape \(2, 3, 4, 5\)"):
        feature_matching(real=maps(), fake=maps()[::-1])


def test_nothing_waits_for_the_device():
    fake = [torch.empty(shape, device="meta", requires_grad=True) for shape in SHAPES]
    value = feature_matching(real=fake, fake=fake)
    value.backward()
    assert value.shape == ()
