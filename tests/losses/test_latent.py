"""Regularisers of the latent: known values, references, gradients, and decoders without the error."""

from functools import partial

import jaxtyping
import pytest
import torch
from torch.nn import functional as F

from telecine.losses import (
    equivariance,
    latent_masking,
    latent_noise,
    local_correlation,
    round_trip,
    scale_equivariance,
)
from telecine.losses.latent import resized

from .harness import LossCase, LossTester, random

SEED = 5


def example(seed):
    """Return a latent and a video of twice its size; with weights for seed 1, with a mask for seeds 2 and 3."""
    inputs = {
        "latent": random((2, 1, 1, 2, 4), seed),
        "target": random((2, 1, 1, 4, 8), seed + 100),
    }
    if seed % 2:
        inputs["sample_weight"] = 1 + random((2,), seed + 200)
    if seed % 4 > 1:
        inputs["mask"] = random((2, 1, 1, 4, 8) if seed % 2 else (1, 1, 1, 4, 1), seed + 300) > -0.9
    return inputs


def up(latent):
    """Decode each position to 2 x 2 pixels of a nonlinear function of its channels."""
    return latent.sin().repeat_interleave(2, -1).repeat_interleave(2, -2)


def seeded(loss, **options):
    """Return a loss that draws the same numbers in each call, and decodes with `up`."""

    def call(**inputs):
        torch.manual_seed(SEED)
        inputs["target"] = inputs["target"].detach()
        # Tensors without values have no generator.
        generator = (
            None if inputs["latent"].device.type == "meta" else torch.Generator().manual_seed(SEED)
        )
        return loss(decode=up, generator=generator, **{**options, **inputs})

    return call


def error(fake, real, weight=None, kept=None):
    if kept is None:
        kept = torch.ones_like(real, dtype=torch.bool)
    if weight is None:
        weight = torch.ones(len(real))
    errors = ((fake - real) ** 2 * kept).flatten(1).mean(1) * weight
    return errors.mean() / max(kept.double().mean(), 1e-12)


def changed_pair(change, latent, target, sample_weight=None, mask=None):
    """Return the error between what is decoded from a changed latent and the video, changed in the same way."""
    z = change(latent, 1)
    kept = None if mask is None else change(mask.expand_as(target).double(), 2) > 1 - 1e-6
    return error(up(z), change(target, 2), sample_weight, kept)


def turned_and_scaled(x, factor):
    """The transformation that `equivariance` draws from the seed."""
    turn, *sides = torch.rand(
        3, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64
    ).tolist()
    turned = torch.rot90(x, 1 + int(3 * turn), (-2, -1))
    positions = [size // factor for size in turned.shape[-2:]]
    # 1, 2 or 3 of 4 positions, and 1 of 2.
    size = [
        1 + int(3 * side) if count == 4 else 1 for count, side in zip(positions, sides, strict=True)
    ]
    return resized(turned, [factor * count for count in size])


def halved(x, factor):
    return resized(x, [size // 2 for size in x.shape[-2:]])


def masked(latent, target, sample_weight=None, mask=None):
    generator = torch.Generator().manual_seed(SEED)
    ratio = 0.75 * torch.rand(2, 1, 1, 1, 1, generator=generator)
    mean = latent.mean((2, 3, 4), keepdim=True)
    z = torch.where(torch.rand(2, 1, 1, 2, 4, generator=generator) < ratio, mean, latent)
    return error(up(z), target, sample_weight, None if mask is None else mask.expand_as(target))


def noised(latent, target, sample_weight=None, mask=None):
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    std = latent.std((2, 3, 4), correction=0, keepdim=True)
    z = latent + 0.2 * draw(2, 1, 1, 1, 1).abs() * std * draw(2, 1, 1, 2, 4)
    return error(up(z), target, sample_weight, None if mask is None else mask.expand_as(target))


def correlation_of_pairs(latent, sample_weight=None, threshold=0.75):
    """Loop over windows and pairs."""
    axes = (2, 3, 4)
    z = (latent - latent.mean(axes, keepdim=True)) / latent.std(axes, keepdim=True, correction=0)
    total = 0.0
    for index, clip in enumerate(z):
        means = [mean_correlation(clip[:, :1], 1)]
        if clip.shape[1] > 1:
            means.append(mean_correlation(clip[:, 1:], min(2, clip.shape[1] - 1)))
        value = torch.relu(threshold - torch.stack(means).mean())
        total += value * (1 if sample_weight is None else sample_weight[index])
    return total / len(z)


def mean_correlation(clip, num_frames):
    """Return the mean over windows of `num_frames` x 2 x 2 and over the pairs of their positions."""
    correlations = []
    for t in range(0, clip.shape[1] - num_frames + 1, num_frames):
        for h in range(0, clip.shape[2] - 1, 2):
            for w in range(0, clip.shape[3] - 1, 2):
                r = torch.corrcoef(clip[:, t : t + num_frames, h : h + 2, w : w + 2].flatten(1).T)
                correlations.append(r[~torch.eye(len(r), dtype=torch.bool)].mean())
    return torch.stack(correlations).mean()


def correlation_example(seed):
    shape = [(2, 3, 3, 2, 3), (1, 3, 1, 2, 2), (2, 3, 2, 3, 2)][seed % 3]
    inputs = {"latent": random(shape, seed)}
    if seed % 2:
        inputs["sample_weight"] = 1 + random(shape[:1], seed + 200)
    return inputs


class TestRegularisers(LossTester):
    cases = (
        *(
            LossCase(
                name=loss.__name__,
                loss=seeded(loss, **options),
                example=example,
                reference=reference,
                learns=("latent", "sample_weight"),
                num_examples=4,
                half_rel=float("inf") if loss is latent_noise else 2e-2,
                function=loss,
            )
            for loss, options, reference in (
                (
                    equivariance,
                    {},
                    partial(changed_pair, turned_and_scaled),
                ),
                (scale_equivariance, {"factors": (2,)}, partial(changed_pair, halved)),
                (latent_masking, {}, masked),
                (latent_noise, {}, noised),
            )
        ),
        LossCase(
            name="local_correlation",
            loss=local_correlation,
            example=correlation_example,
            reference=correlation_of_pairs,
            learns=("latent", "sample_weight"),
            known=(
                # Channel values (1, -1) and (-1, 1) alternate like a checkerboard: of 6 pairs, 2 are equal, 4 opposite.
                (
                    {
                        "latent": torch.tensor([[[1, -1], [-1, 1]], [[-1, 1], [1, -1]]]).double()[
                            None, :, None
                        ]
                    },
                    0.75 + 2 / 6,
                ),
                (
                    {
                        "latent": torch.tensor([[[1, 1]] * 2, [[-1, -1]] * 2]).double()[
                            None, :, None
                        ]
                    },
                    0.75,
                ),
            ),
            half_rel=5e-2,
            errors=(
                (
                    {"latent": torch.zeros(1, 2, 1, 1, 4)},
                    "`latent` must be at least 2 positions high and wide, but got a torch.float32 tensor of shape "
                    "(1, 2, 1, 1, 4) on cpu. Use larger clips.",
                ),
            ),
        ),
    )


def trip_example(seed):
    inputs = {"latent": random((2, 2, 1, 2, 4), seed)}
    if seed % 2:
        inputs["sample_weight"] = 1 + random((2,), seed + 200)
    return inputs


def pooled(video):
    """Encode patches of 2 x 2 pixels by twice their mean."""
    return 2 * video.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).mean((-1, -3))


def difference_after_a_trip(latent, sample_weight=None):
    """`up` copies the sine of a position to a patch, and `pooled` returns its double."""
    errors = (2 * latent.sin() - latent).abs().flatten(1).mean(1)
    return (errors * (1 if sample_weight is None else sample_weight)).mean()


class TestRoundTrip(LossTester):
    cases = (
        LossCase(
            name="round_trip",
            loss=partial(round_trip, decode=up, encode=pooled, trains="both"),
            example=trip_example,
            reference=difference_after_a_trip,
            learns=("latent", "sample_weight"),
            known=(
                ({"latent": torch.full((1, 1, 1, 1, 1), torch.pi / 2).double()}, 2 - torch.pi / 2),
            ),
            half_rel=2e-2,
            function=round_trip,
        ),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_round_trip_trains_the_decoder_alone_with_the_gradient_of_both(dtype):
    torch.manual_seed(0)
    decoder = torch.nn.ConvTranspose3d(4, 3, (1, 2, 2), (1, 2, 2)).to(dtype)
    encoder = torch.nn.Conv3d(3, 4, (1, 2, 2), (1, 2, 2)).to(dtype)
    latent = random((2, 4, 3, 4, 4), 0).to(dtype).requires_grad_()
    inputs = {"decode": decoder, "encode": encoder, "sample_weight": torch.tensor([0.5, 2.0])}
    value = round_trip(latent=latent, **inputs)
    expected = round_trip(latent=latent.detach(), **inputs, trains="both")
    torch.testing.assert_close(value, expected)
    with torch.no_grad():
        torch.testing.assert_close(round_trip(latent=latent, **inputs), expected)
    (3 * value).backward()
    assert latent.grad is None
    assert all(weight.grad is None for weight in encoder.parameters())
    theirs = torch.autograd.grad(3 * expected, list(decoder.parameters()))
    for weight, gradient in zip(decoder.parameters(), theirs, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_the_first_latent_frame_may_belong_to_the_others():
    """Two frames are one window then, in any order."""
    latent = random((1, 3, 3, 4, 4), 0)
    swapped = latent[:, :, [1, 0, 2]]
    assert local_correlation(latent=swapped) != local_correlation(latent=latent)
    values = [
        local_correlation(latent=video, first_frame_apart=False) for video in (latent, swapped)
    ]
    torch.testing.assert_close(*values)
    assert values[0] != local_correlation(latent=latent)


def double(latent):
    """A decoder that only scales up, so that it is equivariant."""
    frames = latent.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, scale_factor=2, mode="nearest")
    return frames.unflatten(0, (len(latent), -1)).transpose(1, 2)


def seeded_generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def decoded():
    """Return the latents that `decode` got."""
    return []


@pytest.fixture
def decode(decoded):
    def identity(latent):
        decoded.append(latent)
        return latent

    return identity


def test_an_equivariant_decoder_has_no_error_and_another_has_one():
    latent = random((1, 3, 2, 4, 2), 0)
    pair = {"latent": latent, "target": double(latent), "min_scale": 1.0}
    for seed in range(6):
        assert equivariance(**pair, decode=double, generator=seeded_generator(seed)) == 0
        # It adds a gradient from left to right, whatever the orientation of the latent.
        assert equivariance(**pair, decode=lambda z: double(z) + torch.arange(2 * z.shape[-1])) > 1


@pytest.mark.parametrize(("flip", "expected"), [(True, {1, 2, 3, 4, 5, 6, 7}), (False, {1, 2, 3})])
def test_all_other_orientations_are_drawn(flip, expected, decode, decoded):
    latent = torch.arange(12.0).view(1, 1, 1, 3, 4)
    for seed in range(40):
        generator = seeded_generator(seed)
        value = equivariance(
            latent=latent,
            target=latent,
            decode=decode,
            min_scale=1.0,
            generator=generator,
            flip=flip,
        )
        assert value == 0
    orientations = [
        torch.rot90(x, k, (-2, -1)).tolist() for x in (latent, latent.flip(-1)) for k in range(4)
    ]
    assert {orientations.index(z.tolist()) for z in decoded} == expected


@pytest.mark.parametrize(("count", "flip"), [(2, False), (3, False), (4, True), (7, True)])
def test_several_orientations_differ_and_are_averaged(count, flip, decode, decoded):
    latent = random((2, 1, 1, 4, 4), 0)
    value = equivariance(
        latent=latent,
        target=latent,
        decode=lambda z: decode(z) + len(decoded),
        min_scale=1.0,
        flip=flip,
        num_orientations=count,
    )
    assert value.item() == pytest.approx(sum(i**2 for i in range(1, count + 1)) / count)
    assert len({tuple(z.flatten().tolist()) for z in (latent, *decoded)}) == 1 + count


@pytest.mark.parametrize(
    ("loss", "options", "sides"),
    [(scale_equivariance, {}, {1, 2, 4}), (equivariance, {"min_scale": 0.5}, {1, 4, 5, 6, 7, 8})],
)
def test_scales_are_drawn_and_small_latents_become_one_position(
    loss, options, sides, decode, decoded
):
    for _ in range(60):
        loss(
            latent=random((1, 3, 1, 2, 9), 0),
            target=random((1, 3, 1, 4, 18), 1),
            decode=decode,
            **options,
        )
    assert {side for z in decoded for side in z.shape[-2:]} == sides


def test_the_first_of_several_generators_decides_about_the_transformation_and_keeps_its_numbers():
    def value(*seeds):
        generators = [seeded_generator(seed) for seed in seeds]
        states = [generator.get_state() for generator in generators]
        pair = {"latent": random((2, 3, 1, 4, 4), 0), "target": random((2, 3, 1, 8, 8), 1)}
        result = equivariance(**pair, decode=double, generator=generators)
        assert all(
            torch.equal(g.get_state(), state) for g, state in zip(generators, states, strict=True)
        )
        return result.item()

    assert value(1, 2) == value(1, 3)
    assert len({value(seed, 0) for seed in range(8)}) > 4


def test_masking_by_blocks(decode, decoded):
    latent = random((1, 3, 3, 6, 6), 0)
    for _ in range(20):
        latent_masking(latent=latent, target=latent, decode=decode, block=3, max_ratio=0.9)
    masked = torch.stack([(z != latent).any(1)[0] for z in decoded]).double()
    assert 0.2 < masked.mean() < 0.8
    blocks = masked.unflatten(2, (2, 3)).unflatten(4, (2, 3)).mean((1, 3, 5))
    assert set(blocks.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (latent_masking, {"max_ratio": 1.0}, "`max_ratio` must be a number from 0 to below 1"),
        (latent_masking, {"block": 0}, "`block` must be a positive int"),
        (latent_noise, {"scale": 0.0}, "`scale` must be a finite number above 0"),
        (
            equivariance,
            {"min_scale": "0.5"},
            r"`min_scale` must be above 0 and at most 1, but got '0.5' \(str\)",
        ),
        (
            equivariance,
            {"min_scale": 0.0},
            "`min_scale` must be above 0 and at most 1, but got 0.0",
        ),
        (
            equivariance,
            {"num_orientations": 4},
            "must be at most 3, but got 4 .*Set `flip` for more",
        ),
        (
            equivariance,
            {"num_orientations": 8, "flip": True},
            "must be at most 7, but got 8 .*Use fewer",
        ),
        (
            scale_equivariance,
            {"factors": 2},
            r"`factors` must be a list of whole numbers, but got 2 \(int\)",
        ),
        (
            scale_equivariance,
            {"factors": []},
            r"`factors` must be a list of whole numbers, but got \[\]",
        ),
        (scale_equivariance, {"factors": (0,)}, "`factors` must be a positive int"),
        (latent_noise, {"loss": "mes"}, "`loss` must be one of 'mse', 'l1', 'charbonnier'"),
    ],
)
def test_bad_options(loss, options, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        loss(**example(0), decode=up, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [equivariance, scale_equivariance, latent_masking, latent_noise])
def test_a_decoder_in_half_precision_gets_such_a_latent(loss, dtype, decode, decoded):
    latent = random((1, 3, 1, 4, 4), 0).to(dtype)
    assert loss(latent=latent, target=latent, decode=decode).dtype == torch.float32
    assert decoded[0].dtype == dtype


@pytest.mark.parametrize(("loss", "expected"), [("mse", torch.square), ("l1", torch.abs)])
def test_the_pixel_loss_can_be_chosen(loss, expected):
    latent = random((2, 3, 1, 4, 4), 0)
    target = torch.zeros(2, 3, 1, 8, 8).double()
    value = scale_equivariance(latent=latent, target=target, decode=double, factors=(1,), loss=loss)
    torch.testing.assert_close(value, expected(latent).mean())


def test_a_wrong_round_trip_raises(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    latent = random((1, 2, 1, 2, 2), 0)
    with pytest.raises(
        ValueError, match="`trains` must be one of 'decoder', 'both', but got 'all'"
    ):
        round_trip(latent=latent, decode=up, encode=pooled, trains="all")
    with pytest.raises(ValueError, match="the encoded latent must be"):
        round_trip(latent=latent, decode=up, encode=up)
    decoder = torch.nn.Conv3d(2, 2, 1).double()
    with pytest.raises(
        ValueError, match="`encode` must be an encoder through which gradients pass"
    ):
        round_trip(latent=latent, decode=decoder, encode=torch.Tensor.detach)
