"""Both forms of the attention against a double loop over tokens, and the other layers against their formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from telecine.discriminators.attention import (
    FeedForward,
    LinearSpaceAttention,
    RMSNorm,
    TaylorAttention,
    linear_attention,
    quadratic_attention,
)


def qkv(batch=2, tokens=5, dim=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, tokens, dim, generator=generator, dtype=dtype) for _ in range(3)]


def naive_attention(q, k, v):
    out = torch.zeros_like(v)
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            scores = torch.stack([(q[b, i] * k[b, j]).sum() for j in range(k.shape[1])])
            kernel = 1 + scores + scores**2 / 2
            out[b, i] = (
                sum(weight * value for weight, value in zip(kernel, v[b], strict=True))
                / kernel.sum()
            )
    return out


@pytest.mark.parametrize("form", [quadratic_attention, linear_attention])
@settings(max_examples=10, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 7),
    dim=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_both_forms_equal_a_double_loop(form, batch, tokens, dim, seed):
    q, k, v = qkv(batch, tokens, dim, seed=seed)
    torch.testing.assert_close(form(q, k, v), naive_attention(q, k, v), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("tokens", "cost_of_twice_as_many"), [(3, lambda cost: cost > 2.1), (8, lambda cost: cost == 2)]
)
def test_the_cheaper_form_is_used(tokens, cost_of_twice_as_many):
    """With 2 channels per head there are 1 + 2 + 4 = 7 features, and from 8 tokens on the cost is linear."""
    layer = TaylorAttention(4, dim_head=2, heads=2)
    flops = []
    for num_tokens in (tokens, 2 * tokens):
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(1, num_tokens, 4))
        flops.append(counter.get_total_flops())
    assert cost_of_twice_as_many(flops[1] / flops[0])


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: LinearSpaceAttention(dim=2, dim_head=2, heads=2), (1, 2, 1, 2)),  # quadratic
        (lambda: LinearSpaceAttention(dim=2, dim_head=1, heads=2), (1, 2, 3, 3)),  # linear
        (lambda: FeedForward(2, mult=2), (1, 2, 1, 2)),
    ],
)
def test_gradcheck_and_gradgradcheck(make, shape):
    torch.manual_seed(0)
    layer = make().double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_heads_are_separate_and_scores_are_scaled():
    torch.manual_seed(0)
    layer = TaylorAttention(6, dim_head=4, heads=3).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    q, (k, v) = layer.to_q(x) / 2, layer.to_kv(x).chunk(2, dim=-1)
    heads = [
        naive_attention(*(tensor[..., 4 * h : 4 * h + 4] for tensor in (q, k, v))) for h in range(3)
    ]
    torch.testing.assert_close(layer(x), layer.to_out(torch.cat(heads, dim=-1)))


@pytest.mark.parametrize("axis", ["first", "last"])
def test_rms_norm(axis):
    torch.manual_seed(0)
    norm = RMSNorm(4, channel_first=axis == "first").double()
    torch.nn.init.normal_(norm.gamma)
    x = torch.randn(2, 4, 3, 4, dtype=torch.float64)
    dim = 1 if axis == "first" else -1
    expected = x / x.square().mean(dim, keepdim=True).sqrt() * norm.gamma
    torch.testing.assert_close(norm(x), expected)


def test_rms_norm_of_zeros_has_a_finite_gradient_and_large_halves_do_not_overflow():
    norm = RMSNorm(4)
    x = torch.zeros(1, 4, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.isfinite().all()
    out = norm(torch.full((1, 4), 6e4, dtype=torch.float16))
    assert out.dtype == torch.float16
    assert out.tolist() == [[1.0] * 4]


def test_frames_of_a_video_are_independent():
    torch.manual_seed(0)
    layer = LinearSpaceAttention(dim=4)
    x = torch.randn(2, 4, 3, 2, 5)
    out = layer(x)
    assert out.shape == x.shape
    for t in range(3):
        torch.testing.assert_close(out[:, :, t], layer(x[:, :, t]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [4, 16], ids=["quadratic", "linear"])
def test_large_scores_stay_finite_in_half_precision(dtype, size):
    torch.manual_seed(0)
    layer = LinearSpaceAttention(dim=8)
    for projection in (layer.attn.to_q, layer.attn.to_kv):
        torch.nn.init.constant_(projection[0].weight, 1.5)
    x = torch.randn(2, 8, size, size)
    with torch.autocast("cpu", dtype):
        under_autocast = layer(x)
    assert under_autocast.isfinite().all()
    assert layer.to(dtype)(x.to(dtype)).isfinite().all()


@pytest.mark.parametrize(("dim", "mult", "hidden"), [(8, 4, 21), (4, 1, 2), (3, 2, 4)])
def test_feed_forward(dim, mult, hidden):
    layer = FeedForward(dim, mult=mult)
    assert layer.net[0].weight.shape == (2 * hidden, dim, 1, 1)
    x = torch.randn(2, dim, 3, 5)
    value, gate = layer.net[0](layer.norm(x)).chunk(2, 1)
    torch.testing.assert_close(layer(x), layer.net[2](value * F.gelu(gate)))


def test_the_output_is_contiguous():
    """The double backward of channels-last convolutions, which would follow, corrupts the heap on the CPU."""
    attention = LinearSpaceAttention(dim=8, dim_head=4, heads=2)
    for shape in ((3, 8, 4, 6), (3, 8, 2, 4, 6)):
        assert attention(torch.zeros(shape)).is_contiguous()
