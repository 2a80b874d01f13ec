"""What a call accepts, and that each mistake is named together with its remedy."""

import re

import pytest
import torch

from telecine.objective.arguments import (
    check_frames,
    check_interval,
    check_last_layer,
    check_pair,
    check_step,
    check_weight,
    named_aux_losses,
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


@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf"), True, False, "1", None, [1.0]])
def test_bad_weights(value):
    with pytest.raises(ValueError, match=r"`perceptual_weight` must be a finite number >= 0, but got .*Use 0 to turn"):
        check_weight("perceptual_weight", value)


def test_good_weights():
    assert check_weight("w", 3) == 3.0
    assert check_weight("w", 0) == 0.0


@pytest.mark.parametrize("value", [-1, 0.5, float("nan"), float("inf"), True, "1", None])
def test_bad_steps(value):
    with pytest.raises(ValueError, match=r"`disc_start` must be a whole number of steps >= 0, but got .*Use 0"):
        check_step("disc_start", value)


def test_good_steps():
    assert (check_step("s", 0), check_step("s", 5e3)) == (0, 5000)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2", None])
def test_bad_intervals_and_frames(value):
    with pytest.raises(ValueError, match=r"`every` must be a positive int, but got .*Use 1"):
        check_interval("every", value)
    with pytest.raises(ValueError, match=r"`perceptual_frames` must be a positive int"):
        check_frames(value)


def test_good_intervals_and_frames():
    assert (check_interval("every", 16), check_frames(3), check_frames("all")) == (16, 3, "all")


@pytest.mark.parametrize("value", [torch.nn.Linear(1, 1), "decoder.conv_out", 3])
def test_bad_last_layers(value):
    with pytest.raises(ValueError, match=r"`last_layer` must be a tensor or None, but got a .*conv_out.weight"):
        check_last_layer(value)


class TestAuxLosses:
    def named(self, aux, log=None):
        return named_aux_losses(aux, log, torch.device("cpu"))

    @pytest.mark.parametrize("value", [2, 2.0, torch.tensor(2.0), torch.tensor([[2.0]]), torch.tensor(2.0).bfloat16()])
    def test_one(self, value):
        (loss,) = self.named(value).values()
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert loss.item() == 2

    def test_none(self):
        assert self.named(None) == {}
        assert self.named(None, {}) == {}

    def test_several_keep_their_names_and_graphs(self):
        kl = torch.ones((), dtype=torch.float64, requires_grad=True)
        losses = self.named({"kl": kl, "commit": 0.5})
        assert list(losses) == ["kl", "commit"]
        assert losses["kl"].dtype == torch.float64
        assert losses["kl"].requires_grad

    def test_what_an_engine_logs_of_its_regulariser_stands_in(self):
        log = {"kl_loss": torch.tensor(1.0), "loss/vq": 2.0, "perplexity": torch.ones(9), "indices": "none"}
        assert list(self.named(None, log)) == ["kl_loss", "loss/vq"]
        assert list(self.named(3.0, log)) == [""]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (
                torch.zeros(3),
                r"`aux_losses` must be a number or a floating-point tensor of one element.*\(3,\).*mean\(\)",
            ),
            (torch.zeros(0), r"`aux_losses` must be .*\(0,\)"),
            ("kl", r"`aux_losses` must be a number .*'kl' \(str\).*dict"),
            (True, r"`aux_losses` must be a number .*True"),
            (torch.tensor(1), r"`aux_losses` must be .*torch.int64"),
            ([torch.tensor(1.0)], r"`aux_losses` must be .*list"),
            ({"kl": torch.zeros(2)}, r"`aux_losses\['kl'\]` must be .*\(2,\).*mean\(\)"),
            ({"kl": None}, r"`aux_losses\['kl'\]` must be .*None"),
        ],
    )
    def test_mistakes(self, value, message):
        with pytest.raises(ValueError, match=message):
            self.named(value)


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
        with pytest.raises(ValueError, match=r"`aux_losses.*` must be a number or"):
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
        with pytest.raises(ValueError, match=r"`generator` must be on meta.*Make it with"):
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
        with pytest.raises(ValueError, match=rf"`{name}` has no argument 'imagesize'.*Did you mean `image_size`"):
            make_loss(**{name: {"imagesize": 16}})
    with pytest.raises(ValueError, match=r"`multiscale_discr_kwargs\[0\]` has no argument 'imagesize'"):
        make_loss(multiscale_discr_kwargs=[{"imagesize": 16}])
