"""What a call accepts, and that each mistake is named together with its remedy."""

import re
from functools import partial

import pytest
import torch

from telecine.losses import GRAD_PENALTIES, Penalty, approximate_r1, r1
from telecine.objective.arguments import (
    as_penalty,
    check_choice,
    check_finite,
    check_fraction,
    check_frames,
    check_interval,
    check_last_layer,
    check_pair,
    check_positive,
    choose,
    without_inference_mode,
)

SHAPE = (2, 3, 4, 8, 8)


def zeros(*shape, **options):
    return torch.zeros(shape or SHAPE, **options)


@pytest.mark.parametrize(
    ("inputs", "reconstructions", "message"),
    [
        (zeros(3, 4, 8, 8), zeros(), r"`inputs` must be .*\(B, C, T, H, W\), but got .*\(3, 4, 8, 8\).*\[None\]"),
        (zeros(), zeros(3, 4, 8, 8), r"`reconstructions` must be .*\(B, C, T, H, W\), but got .*\[None\]"),
        (zeros(dtype=torch.uint8), zeros(), r"`inputs` must be a floating-point.*torch.uint8.*float\(\) / 127.5 - 1"),
        (zeros(), zeros(dtype=torch.int64), r"`reconstructions` must be a floating-point.*torch.int64.*127.5"),
        (
            zeros(),
            zeros(2, 3, 5, 8, 8),
            r"`reconstructions` must be .*same shape as `inputs`.*\(2, 3, 5, 8, 8\).*strides",
        ),
        (zeros(), zeros(1, 3, 4, 8, 8), r"`reconstructions` must be of the same shape"),
        (zeros(device="meta"), zeros(), r"`reconstructions` must be on the same device as `inputs`, meta.*cpu.*\.to\("),
        (zeros(), zeros(device="meta"), r"`reconstructions` must be on the same device as `inputs`, cpu.*meta.*\.to\("),
        (zeros() + 255, zeros(), r"`inputs` must be in the range \[-1, 1\], but got values from 255 to 255. Map"),
        (zeros() - 1.2, zeros(), r"`inputs` must be in the range \[-1, 1\], but got values from -1.2"),
        (torch.zeros(0, 3, 4, 8, 8), torch.zeros(0, 3, 4, 8, 8), r"`inputs` must be .*without empty axes.*Drop empty"),
        (None, zeros(), r"`inputs` must be .*but got None.*as_tensor"),
        (zeros(), [[0.0]], r"`reconstructions` must be .*but got \[\[0.0\]\].*as_tensor"),
    ],
)
def test_pairs(inputs, reconstructions, message):
    with pytest.raises(ValueError, match=message):
        check_pair(inputs, reconstructions)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_good_pairs(dtype):
    assert check_pair(zeros(dtype=dtype), zeros()) is None
    assert check_pair(zeros() + 1, zeros() + 300) is None  # an untrained decoder leaves the range


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2", None])
def test_bad_intervals_and_frames(value):
    with pytest.raises(ValueError, match=r"`every` must be a positive int, but got .*The least is 1"):
        check_interval("every", value)
    with pytest.raises(ValueError, match=r"`perceptual_frames` must be a positive int"):
        check_frames(value)


def test_good_intervals_and_frames():
    assert (check_interval("every", 16), check_frames(3), check_frames("all")) == (16, 3, "all")


@pytest.mark.parametrize("value", [torch.nn.Linear(1, 1), "decoder.conv_out", 3])
def test_bad_last_layers(value):
    with pytest.raises(ValueError, match=r"`last_layer` must be a tensor or None, but got a .*conv_out.weight"):
        check_last_layer(value)


@pytest.mark.parametrize(
    ("check", "bad", "contract"),
    [
        (check_fraction, (-0.1, 1, 1.0, float("nan"), True, "0"), "a number from 0 to below 1"),
        (check_positive, (0, -1.0, float("inf"), float("nan"), True, None), "a finite number above 0"),
        (check_finite, (float("inf"), float("nan"), True, None, "1"), "a finite number"),
    ],
)
def test_numbers(check, bad, contract):
    for value in bad:
        with pytest.raises(ValueError, match=f"`some_option` must be {contract}, but got"):
            check("some_option", value)
    assert check("some_option", 0.5) == 0.5


def test_choices():
    def own():
        return 1

    table = {"mse": 1, "l1": 2}
    assert choose("recon_loss", "l1", table) == 2
    assert choose("recon_loss", own, table) is own
    with pytest.raises(
        ValueError, match=r"`recon_loss` must be one of 'mse', 'l1', or a function, but got 'mes'.*`mse`"
    ):
        choose("recon_loss", "mes", table)
    with pytest.raises(ValueError, match=r"`recon_loss` must be one of .*but got 3"):
        choose("recon_loss", 3, table)
    assert check_choice("nll_reduction", "sum", ("mean", "sum")) == "sum"
    with pytest.raises(ValueError, match=r"`nll_reduction` must be one of 'mean', 'sum', but got 'sums'.*`sum`"):
        check_choice("nll_reduction", "sums", ("mean", "sum"))
    with pytest.raises(ValueError, match="`nll_reduction` must be one of 'mean', 'sum', but got None"):
        check_choice("nll_reduction", None, ("mean", "sum"))


def test_penalties():
    def centred(*, judge, real, fake, generator):
        return 0

    assert as_penalty("grad_penalty", "r1") is GRAD_PENALTIES["r1"]
    own = Penalty(r1, of_fake=False)
    assert as_penalty("grad_penalty", own) is own
    assert as_penalty("grad_penalty", centred) == Penalty(centred)
    wider = as_penalty("grad_penalty", partial(approximate_r1, sigma=0.1))
    assert (wider.of_real, wider.double_backward) == (False, False)
    with pytest.raises(ValueError, match=r"`grad_penalty` must be one of .*Did you mean `r1`\?"):
        as_penalty("grad_penalty", "R1")


def test_only_inference_tensors_are_copied():
    x = torch.zeros(2)
    assert without_inference_mode(x) is x
    with torch.inference_mode():
        y = torch.ones(2)
        assert without_inference_mode(y) is y
    assert not without_inference_mode(y).is_inference()
    assert torch.equal(without_inference_mode(y), y)


@pytest.fixture
def loss(make_loss, make_judge):
    return make_loss(adversarial_loss_weight=1.0, discr_3d_kwargs=make_judge())


class TestCalls:
    """The same through the loss itself."""

    @pytest.mark.parametrize("value", [2, -1, "0", None, 0.5])
    def test_optimizer_idx(self, loss, clip, value):
        with pytest.raises(ValueError, match=rf"`optimizer_idx` must be 0 .* or 1 .*but got {value!r}.*Call once with"):
            loss(clip(), clip(), value, 0)

    def test_a_video_of_bytes(self, loss, clip):
        with pytest.raises(ValueError, match=r"`inputs` must be a floating-point"):
            loss(torch.zeros(2, 3, 4, 16, 16, dtype=torch.uint8), clip(), 0, 0)

    @pytest.mark.parametrize("aux", [torch.zeros(2), "kl", {"kl": torch.zeros(2)}])
    def test_aux_losses(self, loss, clip, aux):
        with pytest.raises(ValueError, match=r"`aux_losses.*` must be a number, "):
            loss(clip(), clip(), 0, 0, aux_losses=aux)

    @pytest.mark.parametrize("name", ["recon_loss", "total_loss", "aux_losses", "adaptive_weight"])
    def test_aux_losses_that_would_hide_a_term(self, loss, clip, name):
        with pytest.raises(ValueError, match=rf"`aux_losses` must be named unlike .*'{name}'. Rename it"):
            loss(clip(), clip(), 0, 0, aux_losses={name: 1.0})

    def test_a_last_layer_that_is_not_the_decoders(self, loss, clip, autoencoder):
        stranger = torch.nn.Parameter(torch.ones(3, 4, 1, 3, 3))
        with pytest.raises(
            ValueError, match=r"`last_layer` must be a parameter that `reconstructions` were computed with"
        ):
            loss(clip(), autoencoder(clip()), 0, 0, last_layer=stranger)
        with pytest.raises(ValueError, match=r"`last_layer` must be a tensor or None"):
            loss(clip(), autoencoder(clip()), 0, 0, last_layer=autoencoder.decoder.conv_out)

    def test_discriminators_step_without_discriminators(self, make_loss, clip):
        with pytest.raises(
            ValueError, match=r"`optimizer_idx` must be 0 for a loss without discriminators.*discr_3d_kwargs"
        ):
            make_loss(perceptual_weight=0)(clip(), clip(), 1, 0)

    def test_a_generator_of_another_device(self, make_loss, clip):
        loss = make_loss(generator=torch.Generator())
        clip = torch.zeros(2, 3, 4, 16, 16, device="meta")
        with pytest.raises(ValueError, match=r"`generator` must be on meta.*Create it with"):
            loss.to("meta")(clip, clip, 0, 0)


WEIGHTS = (
    "perceptual_weight",
    "adversarial_loss_weight",
    "multiscale_adversarial_loss_weight",
    "grad_penalty_loss_weight",
    "quantizer_aux_loss_weight",
)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("value", [-1.0, True, "1", float("nan")])
def test_bad_weights_of_the_loss(make_loss, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number >= 0, but got {re.escape(repr(value))}"):
        make_loss(**{name: value})


@pytest.mark.parametrize("name", ["disc_start", "disc_train_start"])
def test_bad_steps_of_the_loss(make_loss, name):
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of steps >= 0, but got -1"):
        make_loss(**{name: -1})


@pytest.mark.parametrize(
    ("name", "value"), [("grad_penalty_every", 0), ("perceptual_frames", 0), ("perceptual_frames", "one")]
)
def test_bad_counts_of_the_loss(make_loss, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive int.*, but got {value!r}"):
        make_loss(**{name: value})


@pytest.mark.parametrize(
    ("weight", "remedy"),
    [
        ("adversarial_loss_weight", "`discr_3d_kwargs` or `discr_kwargs`"),
        ("multiscale_adversarial_loss_weight", "`multiscale_discr_kwargs`"),
    ],
)
def test_an_adversarial_weight_without_a_discriminator(make_loss, weight, remedy):
    with pytest.raises(
        ValueError, match=f"`{weight}` must be 0 where no discriminator is given.*Give one with {remedy}"
    ):
        make_loss(**{weight: 0.5})


def test_each_discriminators_argument_is_named(make_loss):
    for name in ("discr_kwargs", "discr_3d_kwargs"):
        with pytest.raises(
            ValueError, match=rf"`{name}` must be arguments of .*'imagesize'.*Did you mean `image_size`"
        ):
            make_loss(**{name: {"imagesize": 16}})
    with pytest.raises(ValueError, match=r"`multiscale_discr_kwargs\[0\]` must be arguments of .*'imagesize'"):
        make_loss(multiscale_discr_kwargs=[{"imagesize": 16}])
