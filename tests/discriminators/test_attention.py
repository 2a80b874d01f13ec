"""Both forms of the attention against a double loop over tokens, and the other layers against their formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from telecine.discriminators import blocks as module
from telecine.discriminators.blocks import (
    _GEGLU,
    FeedForward,
    LinearSpaceAttention,
    _Residual,
    _RMSNorm,
    _TaylorAttention,
)

FORMS = {"quadratic": module._quadratic_attention, "linear": module._linear_attention}


def qkv(batch=2, tokens=5, dim=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, tokens, dim, generator=generator, dtype=dtype) for _ in range(3)]


def naive_attention(q, k, v):
    out = torch.zeros_like(v)
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            total = 0.0
            for j in range(k.shape[1]):
                score = sum(q[b, i, d].item() * k[b, j, d].item() for d in range(q.shape[2]))
                kernel = 1 + score + score**2 / 2
                out[b, i] += kernel * v[b, j]
                total += kernel
            out[b, i] /= total
    return out


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 3), tokens=st.integers(1, 7), dim=st.integers(1, 4), seed=st.integers(0, 99))
def test_both_forms_equal_a_double_loop(form, batch, tokens, dim, seed):
    q, k, v = qkv(batch, tokens, dim, seed=seed)
    torch.testing.assert_close(FORMS[form](q, k, v), naive_attention(q, k, v), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("tokens", [4, 100])
def test_the_forms_equal_each_other(dtype, tolerance, tokens):
    q, k, v = qkv(3, tokens, 8, dtype)
    q = q * 8**-0.5
    quadratic, linear = (form(q, k, v) for form in FORMS.values())
    torch.testing.assert_close(quadratic, linear, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("tokens", "form"), [(1, "quadratic"), (7, "quadratic"), (8, "linear"), (50, "linear")])
def test_the_cheaper_form_is_used(tokens, form, monkeypatch):
    """With 2 channels per head there are 1 + 2 + 4 = 7 features."""
    used = []
    for name, function in FORMS.items():
        monkeypatch.setattr(module, function.__name__, lambda *args, n=name, f=function: (used.append(n), f(*args))[1])
    _TaylorAttention(4, dim_head=2, heads=2)(torch.randn(1, tokens, 4))
    assert used == [form]


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_and_gradgradcheck(form):
    inputs = tuple(tensor.requires_grad_() for tensor in qkv(1, 3, 2))
    assert torch.autograd.gradcheck(FORMS[form], inputs)
    assert torch.autograd.gradgradcheck(FORMS[form], inputs)


@pytest.mark.parametrize("size", [(1, 2), (3, 3)], ids=["quadratic", "linear"])
def test_gradgradcheck_of_the_whole_layer(size):
    torch.manual_seed(0)
    layer = LinearSpaceAttention(dim=2, dim_head=2 if size == (1, 2) else 1, heads=2).double()
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_heads_are_separate_and_scores_are_scaled():
    torch.manual_seed(0)
    layer = _TaylorAttention(6, dim_head=4, heads=3).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    q, (k, v) = layer.to_q(x) / 2, layer.to_kv(x).chunk(2, dim=-1)
    heads = [naive_attention(*(tensor[..., 4 * h : 4 * h + 4] for tensor in (q, k, v))) for h in range(3)]
    torch.testing.assert_close(layer(x), layer.to_out(torch.cat(heads, dim=-1)))


@pytest.mark.parametrize("axis", ["first", "last"])
def test_rms_norm(axis):
    torch.manual_seed(0)
    norm = _RMSNorm(4, channel_first=axis == "first").double()
    torch.nn.init.normal_(norm.gamma)
    x = torch.randn(2, 4, 3, 4, dtype=torch.float64)
    dim = 1 if axis == "first" else -1
    expected = x / x.square().mean(dim, keepdim=True).sqrt() * norm.gamma
    torch.testing.assert_close(norm(x), expected)


def test_rms_norm_of_zeros_has_a_finite_gradient_and_large_halves_do_not_overflow():
    norm = _RMSNorm(4)
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


def test_attention_is_equivariant_to_permutations():
    torch.manual_seed(0)
    layer = LinearSpaceAttention(dim=4).double()
    x = torch.randn(1, 4, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x).flip(-1, -2), layer(x.flip(-1, -2)))
    torch.testing.assert_close(layer(x).mT, layer(x.mT))


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


def test_geglu_gates_the_first_half_with_the_second():
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(_GEGLU()(x), x[:, :3] * F.gelu(x[:, 3:]))


@pytest.mark.parametrize(("dim", "mult", "hidden"), [(8, 4, 21), (4, 1, 2), (3, 2, 4)])
def test_feed_forward(dim, mult, hidden):
    layer = FeedForward(dim, mult=mult)
    assert layer.net[0].weight.shape == (2 * hidden, dim, 1, 1)
    x = torch.randn(2, dim, 3, 5)
    value, gate = layer.net[0](layer.norm(x)).chunk(2, 1)
    torch.testing.assert_close(layer(x), layer.net[2](value * F.gelu(gate)))


def test_gradgradcheck_of_feed_forward():
    torch.manual_seed(0)
    layer = FeedForward(2, mult=2).double()
    x = torch.randn(1, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_residual():
    x = torch.randn(3)
    assert torch.equal(_Residual(torch.nn.ReLU())(x), x.relu() + x)


def test_names_of_published_checkpoints():
    names = {f"attn.{name}.0.weight" for name in ("to_q", "to_kv", "to_out")} | {"norm.gamma"}
    state = LinearSpaceAttention(dim=4).state_dict()
    assert set(state) == names
    assert state["attn.to_q.0.weight"].shape == (8 * 8, 4)
    assert set(FeedForward(4).state_dict()) == {
        "norm.gamma",
        *(f"net.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")),
    }


def test_the_output_is_contiguous():
    """The double backward of channels-last convolutions, which would follow, corrupts the heap on the CPU."""
    attention = LinearSpaceAttention(dim=8, dim_head=4, heads=2)
    for shape in ((3, 8, 4, 6), (3, 8, 2, 4, 6)):
        assert attention(torch.zeros(shape)).is_contiguous()
