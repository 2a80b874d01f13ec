"""The gradient penalties against loops over samples, differences of logits, and known values; on images and video."""

import inspect

import pytest
import torch
from torch import nn

from telecine.losses import GRAD_PENALTIES, Judged, approximate_r1, gradient_penalty, r1, r1_and_r2, sample_norms
from telecine.losses.penalty import wgan_gp

IMAGE, VIDEO = (3, 2, 4, 3), (2, 2, 3, 2, 4)
SEED = 5
shapes = pytest.mark.parametrize("shape", [IMAGE, VIDEO])
penalties = pytest.mark.parametrize("name", sorted(GRAD_PENALTIES))


class Net(nn.Module):
    """A smooth discriminator of images or video, with one logit a sample or a map of them."""

    def __init__(self, shape, num_patches=1, dtype=torch.float64, device="cpu"):
        super().__init__()
        torch.manual_seed(0)
        size = torch.Size(shape[1:]).numel()
        self.hidden = nn.Linear(size, 6, dtype=dtype, device=device)
        self.logits = nn.Linear(6, num_patches, dtype=dtype, device=device)
        self.num_patches = num_patches

    def forward(self, x):
        logits = self.logits(torch.tanh(2 * self.hidden(x.flatten(1))))
        return logits.squeeze(1) if self.num_patches == 1 else logits.unflatten(1, (1, -1))


def batch(shape, seed=1, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).to(device)


def judged(net, view, *, requires_grad):
    view = view.detach().clone().requires_grad_(requires_grad)
    return Judged(view, net(view))


def call(name, net, real, fake, seed=SEED):
    """Compute a penalty with the views' gradients just as it asks for them."""
    penalty = GRAD_PENALTIES[name]
    return penalty.compute(
        judge=net,
        real=judged(net, real, requires_grad=penalty.of_real),
        fake=judged(net, fake, requires_grad=penalty.of_fake),
        generator=torch.Generator().manual_seed(seed),
    )


# The references: one sample at a time, one element at a time.


def squared_norm(net, sample):
    x = sample.detach().clone()[None].requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    total = torch.zeros((), dtype=x.dtype)
    for element in gradient.flatten():
        total = total + element * element
    return total


def naive(name, net, real, fake):
    generator = torch.Generator().manual_seed(SEED)
    num, total = len(real), torch.zeros((), dtype=real.dtype)
    epsilons = torch.rand((num, *[1] * (real.ndim - 1)), generator=generator, dtype=real.dtype).flatten().tolist()
    noises = torch.randn(real.shape, generator=generator.manual_seed(SEED), dtype=real.dtype)
    for b in range(num):
        if name == "one_centered":
            total = total + (squared_norm(net, real[b]).sqrt() - 1) ** 2
        if name in ("r1", "r1_and_r2"):
            total = total + squared_norm(net, real[b]) / 2
        if name in ("r2", "r1_and_r2"):
            total = total + squared_norm(net, fake[b]) / 2
        if name == "wgan_gp":
            between = epsilons[b] * real[b] + (1 - epsilons[b]) * fake[b]
            total = total + (squared_norm(net, between).sqrt() - 1) ** 2
        if name == "approximate_r1":
            step = (net(real[b][None] + 0.01 * noises[b][None]) - net(real[b][None])).sum()
            total = total + (step / 0.01) ** 2 / 2
    return total / num


def differences(net, sample, step=1e-5):
    """Return the squared norm of the gradient from central differences of the logits."""
    total = 0.0
    for k in range(sample.numel()):
        offset = torch.zeros_like(sample).flatten()
        offset[k] = step
        offset = offset.view_as(sample)
        slope = (net((sample + offset)[None]).sum() - net((sample - offset)[None]).sum()) / (2 * step)
        total += slope.item() ** 2
    return total


def test_every_penalty_is_tested():
    expected = ["approximate_r1", "one_centered", "r1", "r1_and_r2", "r2", "wgan_gp"]
    assert sorted(GRAD_PENALTIES) == expected
    for name, penalty in GRAD_PENALTIES.items():
        assert penalty.compute.__name__ == name
        assert list(inspect.signature(penalty.compute).parameters)[:4] == ["judge", "real", "fake", "generator"]


@penalties
@shapes
@pytest.mark.parametrize("num_patches", [1, 6])
def test_equals_a_loop_over_samples_as_do_the_gradients_of_the_parameters(name, shape, num_patches):
    net = Net(shape, num_patches)
    real, fake = batch(shape, 1), batch(shape, 2)
    value, expected = call(name, net, real, fake), naive(name, net, real, fake)
    assert value.shape == ()
    torch.testing.assert_close(value, expected)
    weights = [net.hidden.weight, net.hidden.bias, net.logits.weight]
    ours, theirs = torch.autograd.grad(value, weights), torch.autograd.grad(expected, weights)
    torch.testing.assert_close(ours, theirs)
    assert all(gradient.abs().max() > 1e-4 for gradient in ours)


@shapes
def test_the_gradient_is_that_of_differences_of_logits(shape):
    net, real, fake = Net(shape, 4), batch(shape, 1), batch(shape, 2)
    of_real, of_fake = ([differences(net, sample) for sample in x] for x in (real, fake))
    expected = {
        "one_centered": sum((square**0.5 - 1) ** 2 for square in of_real) / len(real),
        "r1": sum(of_real) / len(real) / 2,
        "r2": sum(of_fake) / len(fake) / 2,
        "r1_and_r2": (sum(of_real) + sum(of_fake)) / len(real) / 2,
    }
    assert {name: call(name, net, real, fake).item() for name in expected} == pytest.approx(expected, rel=1e-6)


@penalties
def test_gradcheck_with_respect_to_the_parameters(name):
    shape = (2, 1, 2, 2)
    net, real, fake = Net(shape), batch(shape, 1), batch(shape, 2)
    weights = dict(net.named_parameters())
    inputs = [weights[key].detach().clone().requires_grad_() for key in weights]

    def penalty(*tensors):
        return call(
            name, lambda x: torch.func.functional_call(net, dict(zip(weights, tensors, strict=True)), (x,)), real, fake
        )

    # The finite difference inside of approximate_r1 divides rounding errors by sigma^2.
    assert torch.autograd.gradcheck(penalty, inputs, atol=1e-4 if name == "approximate_r1" else 1e-5)


class Plane(nn.Module):
    """Logits `scale * sum(x)`, whose gradient is `scale` in every element."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x):
        return self.scale * x.flatten(1).sum(1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("one_centered", 25.0), ("r1", 18.0), ("r2", 18.0), ("r1_and_r2", 36.0), ("wgan_gp", 25.0)],
)
def test_known_values_of_a_plane(name, expected):
    shape = (3, 1, 2, 2)  # |gradient| = 3 sqrt(4) = 6
    assert call(name, Plane(3.0), batch(shape, 1), batch(shape, 2)).item() == pytest.approx(expected)


def test_a_norm_of_1_costs_the_centred_penalties_nothing():
    shape = (3, 1, 2, 2)
    for name in ("one_centered", "wgan_gp"):
        assert call(name, Plane(0.5), batch(shape, 1), batch(shape, 2)).item() == pytest.approx(0, abs=1e-20)


@penalties
def test_grows_with_the_slope_above_1(name):
    shape = (3, 1, 2, 2)
    values = [call(name, Plane(scale), batch(shape, 1), batch(shape, 2)).item() for scale in (0.6, 1.0, 2.0, 4.0)]
    assert values == sorted(set(values))


@penalties
@shapes
def test_flags_say_which_views_have_to_require_gradients(name, shape):
    net, penalty = Net(shape), GRAD_PENALTIES[name]

    def compute(of_real, of_fake):
        real = judged(net, batch(shape, 1), requires_grad=of_real)
        fake = judged(net, batch(shape, 2), requires_grad=of_fake)
        return penalty.compute(judge=net, real=real, fake=fake)

    compute(penalty.of_real, penalty.of_fake).backward()  # what the flags ask for is enough
    assert all(parameter.grad is not None for parameter in net.hidden.parameters())
    refused = [(penalty.of_real and not r, penalty.of_fake and not f) for r in (True, False) for f in (True, False)]
    for (of_real, of_fake), lacks in zip(((r, f) for r in (True, False) for f in (True, False)), refused, strict=True):
        if any(lacks):
            with pytest.raises(ValueError, match="`view` must be a tensor that requires gradients"):
                compute(of_real, of_fake)
        else:
            compute(of_real, of_fake)


class Once(torch.autograd.Function):
    """The sine, whose gradient refuses to be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.cos()


@penalties
def test_flags_say_whether_there_is_a_double_backward(name):
    shape = (2, 1, 3, 3)
    net = Net(shape)

    def once(x):
        return net(Once.apply(x))

    value = call(name, once, batch(shape, 1), batch(shape, 2))
    if GRAD_PENALTIES[name].double_backward:
        with pytest.raises(RuntimeError, match="once_differentiable"):
            value.backward()
    else:
        value.backward()
        assert net.hidden.weight.grad.ne(0).any()


@penalties
@shapes
@pytest.mark.parametrize("fill", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("flat", [False, True])
def test_gradients_on_constant_views_and_flat_discriminators_are_finite(name, shape, fill, flat):
    net = Net(shape)
    if flat:
        nn.init.zeros_(net.logits.weight)  # as a discriminator starts out that ignores its input
    constant = torch.full(shape, fill, dtype=torch.float64)
    value = call(name, net, constant, constant)  # identical, too
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    if flat:
        assert value == (1 if name in ("one_centered", "wgan_gp") else 0)


@penalties
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_float32(name, dtype):
    net = Net(VIDEO, dtype=dtype)
    value = call(name, net, batch(VIDEO, 1, dtype), batch(VIDEO, 2, dtype))
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value.isfinite()


@penalties
def test_float32_under_autocast(name):
    net = Net(VIDEO, dtype=torch.float32)
    real, fake = batch(VIDEO, 1, torch.float32), batch(VIDEO, 2, torch.float32)
    outside = call(name, net, real, fake)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = call(name, net, real, fake)
    assert inside.dtype == torch.float32
    inside.backward()
    assert net.hidden.weight.grad.isfinite().all()
    # Those that are told of a double backward are computed without autocast; here they show the rounding of bfloat16.
    # The others divide the rounding of float32, which is another with other kernels, by their small step.
    rel = 0.1 if GRAD_PENALTIES[name].double_backward else 1e-3
    assert inside.item() == pytest.approx(outside.item(), rel=rel)


@pytest.mark.parametrize("view_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_step_of_the_logits_is_not_lost_in_their_rounding(view_dtype):
    net = Net(VIDEO, 3, dtype=torch.float32)
    x = batch(VIDEO, 1, view_dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = call("approximate_r1", net, x, x)
        rounded = net(x)
    expected = call("approximate_r1", net, x.float(), x.float())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(value, expected)
    weights = list(net.hidden.parameters())
    torch.testing.assert_close(torch.autograd.grad(value, weights), torch.autograd.grad(expected, weights))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("compute", [r1, r1_and_r2])
def test_squares_are_summed_in_float32(dtype, compute):
    view = torch.zeros(2, 100, dtype=dtype, requires_grad=True)
    real = Judged(view, (view * 300).sum(1))  # 300^2 = 90000 is out of float16's range
    value = compute(judge=never, real=real, fake=Judged(view, real.logits))
    assert value.item() == pytest.approx(100 * 300**2 / 2 * (1 if compute is r1 else 2), rel=1e-5)


def test_a_step_is_subtracted_in_float32():
    x = batch((2, 1, 4, 4), 1, torch.float32)
    real = Judged(x, torch.full((2, 3), 256.0, dtype=torch.bfloat16))
    near_1 = torch.full((2, 3), 1 + 2**-7, dtype=torch.bfloat16)  # less 256 it is no bfloat16
    value = approximate_r1(judge=lambda view: near_1, real=real, fake=real)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx((3 * (255 - 2**-7) / 0.01) ** 2 / 2, rel=1e-5)


@penalties
@shapes
def test_nothing_waits_for_the_device(name, shape):
    net = Net(shape, 3, device="meta")
    penalty = GRAD_PENALTIES[name]
    real = judged(net, torch.empty(shape, dtype=torch.float64, device="meta"), requires_grad=penalty.of_real)
    fake = judged(net, torch.empty(shape, dtype=torch.float64, device="meta"), requires_grad=penalty.of_fake)
    value = penalty.compute(judge=net, real=real, fake=fake)
    value.backward()
    assert (value.shape, value.device.type) == ((), "meta")
    assert net.hidden.weight.grad.shape == net.hidden.weight.shape


@penalties
def test_the_generator_decides_about_the_noise_and_the_rest_has_none(name):
    net, real, fake = Net(VIDEO), batch(VIDEO, 1), batch(VIDEO, 2)
    values = [call(name, net, real, fake, seed).item() for seed in (1, 1, 2)]
    assert values[0] == values[1]
    assert (values[1] == values[2]) is (name not in ("wgan_gp", "approximate_r1"))


@penalties
def test_the_views_are_left_alone(name):
    net, penalty = Net(VIDEO), GRAD_PENALTIES[name]
    real, fake = (judged(net, batch(VIDEO, seed), requires_grad=penalty.of_real) for seed in (1, 2))
    if penalty.of_fake != penalty.of_real:
        fake = judged(net, batch(VIDEO, 2), requires_grad=penalty.of_fake)
    before = [(x.view.clone(), x.view.requires_grad) for x in (real, fake)]
    penalty.compute(judge=net, real=real, fake=fake)
    for x, (view, requires_grad) in zip((real, fake), before, strict=True):
        assert torch.equal(x.view, view)
        assert x.view.requires_grad == requires_grad
        assert x.view.grad is None


@penalties
def test_the_judge_is_called_only_where_something_else_is_shown(name):
    net, shown = Net(VIDEO), []

    def judge(view):
        shown.append(view)
        return net(view)

    penalty = GRAD_PENALTIES[name]
    real = judged(net, batch(VIDEO, 1), requires_grad=True)
    fake = judged(net, batch(VIDEO, 2), requires_grad=True)
    penalty.compute(judge=judge, real=real, fake=fake)
    assert [view.shape for view in shown] == [VIDEO] * (name in ("wgan_gp", "approximate_r1"))


def test_interpolates_lie_between_real_and_fake_and_are_as_many():
    shape = (200, 1, 2, 2)
    shown = []

    def judge(view):
        shown.append(view)
        return view.flatten(1).sum(1)

    real, fake = (Judged(torch.full(shape, value), torch.zeros(200)) for value in (1.0, -1.0))
    wgan_gp(judge=judge, real=real, fake=fake, generator=torch.Generator().manual_seed(0))
    (view,) = shown
    at = view.detach().flatten(1)
    assert torch.equal(at, at[:, :1].expand_as(at))  # one epsilon a sample
    assert at.abs().max() <= 1
    assert at[:, 0].mean().abs() < 0.15  # uniform: the standard error is 0.04
    assert at[:, 0].std().item() == pytest.approx(3**-0.5, abs=0.06)


def test_the_type_of_mixed_views_is_the_wider_one():
    seen = []

    def judge(view):
        seen.append(view.dtype)
        return view.flatten(1).sum(1)

    real = Judged(torch.ones(2, 3), torch.zeros(2))
    for fake_dtype, real_dtype in ((torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        pair = (Judged(torch.ones(2, 3, dtype=dtype), real.logits) for dtype in (real_dtype, fake_dtype))
        wgan_gp(judge=judge, **dict(zip(("real", "fake"), pair, strict=True)))
    assert seen == [torch.float32, torch.bfloat16]


def test_interpolates_need_pairs():
    real, fake = (Judged(torch.ones(shape), torch.zeros(shape[0])) for shape in ((2, 3), (1, 3)))
    with pytest.raises(ValueError, match=r"`fake.view` must be of `real.view`'s shape \(2, 3\)"):
        wgan_gp(judge=lambda view: view.sum(1), real=real, fake=fake)


def approximate(net, sample, sigma, num_noises=20_000):
    """Return the mean over many noises, all in one batch, and the same for the exact penalty."""
    many = sample.expand(num_noises, *sample.shape)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        real = Judged(many, net(many))
        value = approximate_r1(judge=net, real=real, fake=real, generator=generator, sigma=sigma).item()
    one = judged(net, sample[None], requires_grad=True)
    return value, r1(judge=net, real=one, fake=one).item()


@shapes
@pytest.mark.parametrize("num_patches", [1, 6])
def test_the_mean_over_noises_approaches_r1(shape, num_patches):
    net, sample = Net(shape, num_patches), batch(shape)[0]
    value, exact = approximate(net, sample, sigma=0.01)
    # The estimate's standard error is sqrt(2 / 20000) = 1 %; a smooth net adds about sigma^2.
    assert value == pytest.approx(exact, rel=0.04)
    coarse, _ = approximate(net, sample, sigma=1.0)
    assert abs(coarse - exact) > 2 * 0.04 * exact


def test_the_estimate_of_a_plane_does_not_depend_on_sigma():
    shape = (4, 1, 2, 2)
    plane, x = Plane(3.0), batch(shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    expected = (3 * noise.flatten(1).sum(1)).square().mean().item() / 2
    for sigma in (1e-3, 0.01, 10.0):
        real = judged(plane, x, requires_grad=False)
        generator = torch.Generator().manual_seed(SEED)
        value = approximate_r1(judge=plane, real=real, fake=real, generator=generator, sigma=sigma)
        assert value.item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("sigma", [0.0, -0.1, float("nan")])
def test_sigma_must_be_above_0(sigma):
    real = Judged(torch.ones(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="`sigma` must be above 0"):
        approximate_r1(judge=lambda view: view.sum(1), real=real, fake=real, sigma=sigma)


class Quadratic(nn.Module):
    """Logits `sum(weight * x^2)`, whose gradient is `2 weight x`."""

    def __init__(self, shape):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))

    def forward(self, x):
        return (self.weight * x**2).flatten(1).sum(1)


def never(view):
    raise AssertionError("showed the discriminator something else")


def video(shape, seed=1):
    return batch(shape, seed).requires_grad_()


@pytest.mark.parametrize("shape", [(1, 5), (3, 2, 4, 4), (2, 3, 2, 4, 5)])
@pytest.mark.parametrize("center", [1.0, 0.0, 2.5])
def test_gradient_penalty_equals_a_loop_over_samples(shape, center):
    module = Quadratic(shape[1:])
    x = video(shape)
    expected = 0.0
    for sample in x.detach():
        squares = ((2 * module.weight * sample) ** 2).flatten().tolist()
        expected += (sum(squares) ** 0.5 - center) ** 2 / shape[0]
    penalty = gradient_penalty(real=x, logits=module(x), center=center)
    assert penalty.shape == ()
    assert penalty.item() == pytest.approx(expected, rel=1e-12)


def test_the_centre_is_one():
    x = video((2, 4))
    assert gradient_penalty(real=x, logits=x[:, 0]) == 0
    assert gradient_penalty(real=x, logits=3 * x[:, 0]) == 4


def test_the_norm_is_per_sample_not_per_batch():
    x = video((4, 3))
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert gradient_penalty(real=x, logits=scale * x[:, 1]).item() == (0 + 1 + 4 + 9) / 4
    real = Judged(x, scale * x[:, 1])
    assert r1(judge=never, real=real, fake=real).item() == (1 + 4 + 9 + 16) / 4 / 2


def test_its_gradient_reaches_the_parameters():
    module, x = Quadratic((3,)), video((2, 3))

    def penalty(weight):
        return gradient_penalty(real=x, logits=torch.func.functional_call(module, {"weight": weight}, (x,)))

    assert torch.autograd.gradcheck(penalty, (module.weight,))


def test_a_sample_that_is_ignored_has_a_finite_gradient():
    x = video((2, 3))
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(real=x, logits=(x**2) @ weight)
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert penalty == 1
    assert gradient.isfinite().all()


def test_a_map_of_logits_is_summed():
    x = video((2, 3))
    assert gradient_penalty(real=x, logits=torch.stack([x, 2 * x], 1)).item() == pytest.approx((27**0.5 - 1) ** 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_norms_are_float32(dtype):
    norms = sample_norms(torch.full((2, 100), 300.0, dtype=dtype))
    assert norms.dtype == torch.float32
    assert norms.tolist() == [3000.0, 3000.0]
    x = torch.randn(2, 3).to(dtype).requires_grad_()
    assert gradient_penalty(real=x, logits=x.sum(1)).dtype == torch.float32


def test_norms_check():
    assert torch.autograd.gradcheck(sample_norms, (video((2, 3, 2)),))
