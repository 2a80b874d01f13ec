"""The arguments of a call: checks of the videos, masks, sample weights, auxiliary losses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from telecine.base.shapes import check_video_pair
from telecine.losses import mse
from telecine.objective.batch import make_batch
from telecine.settings import GANConfig, ObjectiveConfig, ReconstructionConfig

SHAPE = (2, 3, 4, 8, 8)
VIDEO = {"dim": 1, "image_size": 16, "frame_num": 4, "linear_attn_heads": 2}


def zeros(*shape, **options):
    return torch.zeros(shape or SHAPE, **options)


class TestChecks:
    def test_reconstructions_have_the_shape_of_the_inputs_which_are_in_range(self):
        """`tests/base/test_shapes.py` has the checks of one video."""
        message = r"`reconstructions` must be of `inputs`'s shape .*5, 8, 8\).*strides"
        with pytest.raises(ValueError, match=message):
            check_video_pair(zeros(), zeros(2, 3, 5, 8, 8))
        message = r"`inputs` must be in the range \[-1, 1\], but got values from 255 to 255. Map"
        with pytest.raises(ValueError, match=message):
            check_video_pair(zeros() + 255, zeros())
        check_video_pair(zeros() + 1, zeros() + 300)  # an untrained decoder leaves the range

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (
                torch.ones(2, 1, 4, 8, 8),
                r"`mask` must be a bool tensor that broadcasts to \(2, 3, 4, 8, 8\) on cpu",
            ),
            (torch.ones(4, 8, 8, dtype=torch.bool), "`mask` must be .*Keep all five axes"),
            (torch.ones(2, 1, 3, 8, 8, dtype=torch.bool), "`mask` must be .*Keep all five axes"),
            (
                torch.ones(2, 1, 4, 8, 8, dtype=torch.bool, device="meta"),
                "`mask` must be a bool tensor",
            ),
            ([True], "`mask` must be a bool tensor"),
        ],
    )
    def test_bad_masks(self, mask, message):
        with pytest.raises(ValueError, match=message):
            build(mask=mask)

    @pytest.mark.parametrize(
        "weight",
        [
            torch.ones(3),
            torch.ones(2, 1),
            torch.ones(2, dtype=torch.int64),
            torch.ones(2, device="meta"),
            1.0,
        ],
    )
    def test_bad_sample_weights(self, weight):
        with pytest.raises(
            ValueError,
            match=r"`sample_weight` must be a floating-point tensor of shape \(2,\) on cpu",
        ):
            build(sample_weight=weight)

    @pytest.mark.parametrize("value", [-1.0, torch.nan, torch.inf])
    def test_weights_are_finite_and_not_negative(self, value):
        with pytest.raises(ValueError, match="`sample_weight` must be finite and not negative"):
            build(sample_weight=torch.tensor([1.0, value]))

    def test_how_masks_and_weights_of_another_type_are_converted(self):
        with pytest.raises(ValueError, match=r"Convert it with `sample_weight.float\(\)`"):
            build(sample_weight=torch.tensor([1, 0]))
        with pytest.raises(ValueError, match=r"Convert a mask of 0 and 1 with `mask.bool\(\)`"):
            build(mask=torch.ones(2, 1, 4, 1, 1))

    def test_an_unknown_option(self):
        with pytest.raises(TypeError, match="has no argument 'masks'"):
            build(masks=None)

    @pytest.mark.parametrize("step", [0, 1, "update"])
    def test_the_loss_checks_its_arguments(
        self, make_loss, make_discriminator, clip, autoencoder, step
    ):
        loss = make_loss(adversarial_loss_weight=1.0, discr_3d_kwargs=make_discriminator())

        mistakes = {
            "inputs": torch.zeros(2, 3, 4, 16, 16, dtype=torch.uint8),
            "mask": 3,
            "sample_weight": 3,
        }
        if step != 1:  # where they are used
            mistakes["aux_losses"] = "kl"
            mistakes["last_layer"] = autoencoder.decoder.conv_out
        for name, value in mistakes.items():
            arguments = {"inputs": clip(), "reconstructions": clip(), "global_step": 0, name: value}
            with pytest.raises(ValueError, match=f"`{name}` must be a"):
                loss.both_losses(**arguments) if step == "update" else loss(
                    optimizer_idx=step, **arguments
                )

    def test_a_generator_on_another_device(self, make_loss):
        x = zeros(2, 3, 4, 16, 16, device="meta")
        with pytest.raises(ValueError, match=r"`generator` must be on meta.*Create it with"):
            make_loss().to("meta")(x, x, 0, 0, generator=torch.Generator())

    def test_a_last_layer_of_another_model(self, make_loss, make_discriminator, clip, autoencoder):
        loss = make_loss(adversarial_loss_weight=1.0, discr_3d_kwargs=make_discriminator())
        other = torch.nn.Parameter(torch.ones(3, 4, 1, 3, 3))
        with pytest.raises(
            ValueError,
            match=r"`last_layer` must be a parameter that `reconstructions` were computed",
        ):
            loss(clip(), autoencoder(clip()), 0, 0, last_layer=other)


def build(real=None, fake=None, *, config=None, aux_losses=None, last_layer=None, **options):
    real = zeros() if real is None else real
    fake = zeros() if fake is None else fake
    return make_batch(
        ObjectiveConfig(**config or {}), real, fake, aux_losses, last_layer, **options
    )


class TestMakeBatch:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_videos_are_at_least_float32(self, dtype):
        """So that penalties differentiate in float32, and `gan.augment` changes both videos in the same way."""
        wide = torch.promote_types(dtype, torch.float32)
        batch = build(
            zeros(dtype=dtype), zeros(dtype=dtype), config={"gan": GANConfig(augment=("color",))}
        )
        assert batch.target.dtype == batch.real.dtype == batch.reconstruction.dtype == wide
        assert torch.equal(batch.real, batch.fake)

    def test_masks_and_weights_made_in_inference_mode(self, make_loss, make_discriminator, pair):
        with torch.inference_mode():
            mask = torch.ones(2, 1, 4, 1, 1, dtype=torch.bool)
            weight = torch.ones(2)
        loss = make_loss(
            perceptual_weight=0, adversarial_loss_weight=1, discr_3d_kwargs=make_discriminator()
        )
        for options in ({"mask": mask}, {"sample_weight": weight}):
            loss(*pair, 0, 0, **options)[0].backward()
            torch.testing.assert_close(loss(*pair, 0, 0, **options)[0], loss(*pair, 0, 0)[0])


EVERYTHING = {
    "adversarial_loss_weight": 0.5,
    "gan": {"feature_matching_loss_weight": 0.5},
    "terms": {"wavelet": 0.5, "temporal": 0.5, "gram": 0.5},
    "adaptive_weight": {"reference": "none"},
    "perceptual": {"num_frames": "all"},
    "discr_3d_kwargs": VIDEO,
}


def left_half(like):
    mask = torch.zeros(1, 1, 1, *like.shape[-2:], dtype=torch.bool)
    mask[..., : like.shape[-1] // 2] = True
    return mask


class TestMasksAndWeights:
    def test_masked_out_targets_that_are_not_finite_become_0(self):
        real = zeros() + 0.5
        real[..., 3:6] = float("nan")
        batch = build(real, mask=left_half(real))
        assert batch.target[..., 3].isnan().all(), "this one counts"
        assert batch.target[..., 4:6].eq(0).all()
        assert batch.target[..., 6:].eq(0.5).all()

    def test_masked_out_nan_does_not_matter(self, make_loss, clip):
        x = clip()
        y = clip(seed=2)
        x[..., 9:] = float("nan")
        y[..., 8:] = float("nan")
        y.requires_grad_()
        loss = make_loss(**EVERYTHING)
        total, _ = loss(x, y, 0, 0, mask=left_half(x))
        total.backward()
        assert total.isfinite()
        assert y.grad.isfinite().all()
        assert (y.grad[..., 8:] == 0).all()
        assert (y.grad[..., :8] != 0).any()
        assert loss(x, y, 1, 0, mask=left_half(x))[0].isfinite()

    @pytest.mark.parametrize(
        ("name", "error"),
        [
            ("mse", F.mse_loss),
            (mse, F.mse_loss),
            ("l1", F.l1_loss),
            ("charbonnier", lambda a, b: ((a - b).square() + 1e-6).sqrt().mean() - 1e-3),
        ],
    )
    def test_errors_are_means_over_what_counts(self, make_loss, pair, name, error):
        real, fake = pair
        loss = make_loss(perceptual_weight=0, reconstruction={"loss": name})
        some = torch.rand(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.7
        for mask in (some, None):
            counted = torch.ones_like(real) > 0 if mask is None else mask.expand_as(real)
            total, log = loss(real, fake, 0, 0, mask=mask)
            torch.testing.assert_close(
                log["train/recon_loss"], error(real[counted], fake[counted]).detach()
            )
            assert total == log["train/recon_loss"]

    def test_weights_multiply_each_clips_errors(self, make_loss, clip):
        terms = {"wavelet": 0.5, "temporal": 0.5, "gram": 0.5}
        loss = make_loss(terms=terms, perceptual={"num_frames": "all"})
        x = clip()
        y = clip(seed=2)
        first, second = (loss(x[b : b + 1], y[b : b + 1], 0, 0)[0] for b in range(2))
        weighted = loss(x, y, 0, 0, sample_weight=torch.tensor([0.5, 3.0]))[0]
        torch.testing.assert_close(weighted, (0.5 * first + 3 * second) / 2)
        torch.testing.assert_close(
            loss(x, y, 0, 0, sample_weight=torch.ones(2))[0], loss(x, y, 0, 0)[0]
        )

    def test_a_mask_of_everything_changes_nothing(self, make_loss, clip):
        loss = make_loss(**EVERYTHING)
        mask = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
        for index in (0, 1):
            masked, plain = (loss(clip(), clip(seed=2), index, 0, mask=m)[0] for m in (mask, None))
            torch.testing.assert_close(masked, plain)

    def test_a_mask_of_nothing_gives_0(self, make_loss, clip):
        loss = make_loss(terms={"temporal": 1, "wavelet": 1, "gram": 1})
        y = clip(seed=2).requires_grad_()
        total, _ = loss(clip(), y, 0, 0, mask=torch.zeros(1, 1, 1, 1, 1, dtype=torch.bool))
        total.backward()
        assert total.item() == 0
        assert (y.grad == 0).all()

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_masking_frames_is_the_same_as_cutting_them_off(self, make_loss, pair, reduction):
        loss = make_loss(
            perceptual_weight=0, reconstruction={"nll_reduction": reduction}, terms={"temporal": 1}
        )
        mask = (torch.arange(4) < 2).view(1, 1, 4, 1, 1)
        weight = torch.tensor([0.5, 2.0])
        masked = loss(*pair, 0, 0, mask=mask, sample_weight=weight)
        real, fake = (video[:, :, :2] for video in pair)
        torch.testing.assert_close(masked, loss(real, fake, 0, 0, sample_weight=weight))

    def test_the_adaptive_weight_at_a_masked_reconstruction(self, make_loss, clip):
        """Gradients are compared at the whole reconstruction; those of the masked-out part are 0."""
        settings = {
            "adaptive_weight": {"at": "reconstruction"},
            "perceptual": {"num_frames": "all"},
        }
        loss = make_loss(adversarial_loss_weight=1, discr_3d_kwargs=VIDEO, **settings)
        x = clip()
        y = clip(seed=2).requires_grad_()
        weight = loss(x, y, 0, 0, mask=left_half(x))[1]["train/adaptive_weight"]
        composed = torch.where(left_half(x), y.detach(), x).requires_grad_()
        frames = [video.transpose(1, 2).flatten(0, 1) for video in (composed, x)]
        lpips = loss.perceptual.distance(reconstruction=frames[0], target=frames[1])
        g = -loss.discr_3d(composed).logits.mean()
        norms = [torch.autograd.grad(t, composed)[0][..., :8].norm() for t in (2 * lpips.mean(), g)]
        torch.testing.assert_close(
            weight, norms[0] / norms[1].clamp(min=1e-3), rtol=1e-4, atol=1e-6
        )


def aux(value, log=None, reduction="mean"):
    config = {"reconstruction": ReconstructionConfig(nll_reduction=reduction)}
    return build(config=config, aux_losses=value, regularization_log=log).aux


def posterior(shape=(2, 4, 2, 3, 3)):
    """Return a diagonal Gaussian with the attributes of diffusers' class."""
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return SimpleNamespace(mean=mean, logvar=logvar, std=(logvar / 2).exp())


class TestAuxLosses:
    @pytest.mark.parametrize(
        "value",
        [2, np.float32(2), torch.tensor([[2.0]]), torch.tensor(2.0).bfloat16()],
    )
    def test_one(self, value):
        (loss,) = aux(value).values()
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert loss.item() == 2

    def test_several_keep_their_names_and_graphs(self):
        kl = torch.ones((), dtype=torch.float64, requires_grad=True)
        losses = aux({"kl": kl, "commit": 0.5})
        assert list(losses) == ["kl", "commit"]
        assert losses["kl"].dtype == torch.float64
        assert losses["kl"].requires_grad

    def test_the_log_of_an_engines_regulariser(self):
        log = {
            "kl_loss": torch.tensor(1.0),
            "loss/vq": 2.0,
            "perplexity": torch.ones(9),
            "indices": "none",
        }
        assert list(aux(None, log)) == ["kl_loss", "loss/vq"]
        assert list(aux(3.0, log)) == [""]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (
                torch.zeros(3),
                r"`aux_losses` must be a number, a floating-point tensor of one element.*\(3,\).*mean",
            ),
            ("kl", r"`aux_losses` must be a number, .*'kl' \(str\).*dict"),
            (True, r"`aux_losses` must be a number, .*True"),
            (torch.tensor(1), r"`aux_losses` must be .*torch.int64"),
            ({"kl": torch.zeros(2)}, r"`aux_losses\['kl'\]` must be .*\(2,\).*mean\(\)"),
            ({"kl": None}, r"`aux_losses\['kl'\]` must be .*None"),
        ],
    )
    def test_bad_ones(self, value, message):
        with pytest.raises(ValueError, match=message):
            aux(value)

    def test_the_divergence_of_a_posterior(self):
        gaussian = posterior()
        normal = torch.distributions.Normal(gaussian.mean, gaussian.std)
        expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
        torch.testing.assert_close(aux(gaussian), {"kl_loss": expected.mean()})
        torch.testing.assert_close(aux(gaussian, reduction="sum"), {"kl_loss": expected.sum() / 2})
        assert list(aux({"kl": gaussian, "commit": 1.0})) == ["kl", "commit"]

    @pytest.mark.slow  # the import
    def test_the_posterior_of_diffusers(self):
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        gaussian = posterior()
        theirs = DiagonalGaussianDistribution(torch.cat([gaussian.mean, gaussian.logvar], dim=1))
        torch.testing.assert_close(aux(theirs), aux(gaussian))

    def test_sums_over_pixels_go_with_a_sum_over_the_latent(self, make_loss, clip):
        loss = make_loss(
            perceptual_weight=0,
            quantizer_aux_loss_weight=1,
            reconstruction={"nll_reduction": "sum"},
        )
        total, log = loss(clip(), clip(seed=2), 0, 0, posterior())
        squares = (clip() - clip(seed=2)).double().square().sum() / 2
        divergence = aux(posterior(), reduction="sum")["kl_loss"]
        assert log["train/kl_loss"].item() == pytest.approx(divergence.item(), rel=1e-5)
        assert total.item() == pytest.approx((squares + divergence).item(), rel=1e-5)
        assert log["train/recon_loss"].item() == pytest.approx(
            squares.item() / clip()[0].numel(), rel=1e-5
        )

    def test_a_distribution_without_variance(self):
        with pytest.raises(ValueError, match="logvar"):
            aux(SimpleNamespace(mean=torch.zeros(1)))
