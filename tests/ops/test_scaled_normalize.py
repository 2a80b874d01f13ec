"""The norm against autograd through its formula."""

import pytest
import torch
from torch.nn import functional as F

from telecine.ops.scaled_normalize import scaled_normalize


def plain(x, weight):
    return F.normalize(x.float() if x.dtype == torch.bfloat16 else x) * weight


def leaves(*shape, dtype=torch.float64):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    x[..., 0] = 0
    return x.requires_grad_(), torch.randn(shape[1], *[1] * (len(shape) - 2)).to(
        dtype
    ).requires_grad_()


@pytest.mark.parametrize("shape", [(2, 5, 3, 4, 6), (2, 5, 4, 6), (1, 5, 1, 1, 2)])
def test_value_and_gradients(shape):
    results = []
    for function in (scaled_normalize, plain):
        x, weight = leaves(*shape)
        if shape[0] == 1:
            x = (
                x[..., 1:].detach().requires_grad_()
            )  # one position: sums over the others are the tensor itself
        y = function(x, weight)
        torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y).mul(y)[..., -3:].sum().backward()
        results.append((y.detach(), x.grad, weight.grad))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    assert results[0][2].abs().min() > 0


def test_gradients_of_what_is_trained_alone():
    x, weight = leaves(2, 4, 3, 3)
    assert torch.autograd.gradcheck(lambda x: scaled_normalize(x + 1, weight.detach()), x)
    scaled_normalize(x.detach(), weight).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


def test_half_precision_keeps_its_type_and_is_computed_in_float32():
    x, weight = leaves(2, 64, 3, 8, dtype=torch.bfloat16)
    weight = weight.detach().float()
    y = scaled_normalize(x, weight)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, plain(x, weight).to(torch.bfloat16))


def test_the_input_alone_is_kept():
    """The output, which the next layer keeps, is no copy of it; the formula keeps another tensor of its size."""
    x, weight = leaves(1, 8, 4, 4, 4)
    sizes = {}
    for function in (scaled_normalize, plain):
        kept = {}

        def keep(tensor, kept=kept):
            return kept.setdefault(tensor.data_ptr(), tensor)

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            function(x, weight)
        sizes[function] = sum(t.numel() for t in kept.values())
    assert sizes[scaled_normalize] == x.numel() + x[:, :1].numel() + weight.numel()
    assert sizes[plain] > 2 * x.numel()
