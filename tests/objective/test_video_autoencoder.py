"""Both steps against an implementation with plain loops, and what the loss guarantees to its caller."""

import copy
import io
import math
import pickle
from collections import Counter

import pytest
import torch
from torch import nn
from torch._functorch import config as functorch_config
from torch.nn import functional as F

from telecine import Ramp, VideoAutoencoderLoss

IMAGE = {"dim": 1, "image_size": 16, "linear_attn_heads": 2}
VIDEO = {**IMAGE, "frame_num": 4}
EVERYTHING = {
    "perceptual_weight": 0.7,
    "adversarial_loss_weight": 0.3,
    "multiscale_adversarial_loss_weight": 0.2,
    "grad_penalty_loss_weight": 1.5,
    "quantizer_aux_loss_weight": 0.9,
    "discr_kwargs": IMAGE,
    "discr_3d_kwargs": VIDEO,
    "multiscale_discr_kwargs": [VIDEO],
}
WEIGHTS = {name: value for name, value in EVERYTHING.items() if name.endswith("weight")}
AUTOENCODER_LOG = {
    "total_loss",
    "recon_loss",
    "perceptual_loss",
    "gen_loss",
    "aux_losses",
    "adaptive_weight",
}
DISCRIMINATOR_LOG = {
    "total_disc_loss",
    "discr_loss",
    "grad_penalty_loss",
    "logits_real",
    "logits_fake",
}


@pytest.fixture
def everything(make_discriminator):
    """Return the settings of every term of the reference, with elementwise discriminators."""
    networks = {"discr_kwargs": make_discriminator(1.0), "discr_3d_kwargs": make_discriminator(2.0)}
    return {**WEIGHTS, **networks, "multiscale_discr_kwargs": [make_discriminator(4.0)]}


def still(video):
    """Repeat the first frame: whichever frames are drawn, they are the same."""
    return video[:, :, :1].expand_as(video).contiguous()


def half_size(video):
    rows = (video[..., 0::2, :] + video[..., 1::2, :]) / 2
    return (rows[..., 0::2] + rows[..., 1::2]) / 2


def inputs_by_hand(loss, video):
    """Return (discriminator, its input) for a still video: a frame, the video, the video at half the size."""
    return [
        (loss.discr, video[:, :, 0]),
        (loss.discr_3d, video),
        (loss.multiscale_discrs[0], half_size(video)),
    ]


def autoencoder_step_by_hand(loss, real, fake, aux, last_layer):
    recon = (
        sum((f - r) ** 2 for f, r in zip(fake.flatten(), real.flatten(), strict=True))
        / real.numel()
    )
    perceptual = loss.perceptual.distance(reconstruction=fake[:, :, 0], target=real[:, :, 0]).mean()
    total = recon + 0.7 * perceptual + 0.9 * aux
    adaptive = []
    reference = torch.autograd.grad(perceptual, last_layer, retain_graph=True)[0].float().norm()
    for (discriminator, x), term_weight in zip(
        inputs_by_hand(loss, fake), (0.3, 0.3, 0.2), strict=True
    ):
        g = -sum(discriminator(x[b : b + 1]).logits[0] for b in range(len(x))) / len(x)
        norm = torch.autograd.grad(g, last_layer, retain_graph=True)[0].float().norm()
        adaptive.append(min((reference / max(norm, 1e-3)).item(), 1e3))
        total = total + term_weight * adaptive[-1] * g
    return total, {
        "recon_loss": recon,
        "perceptual_loss": perceptual,
        "adaptive_weight": sum(adaptive) / 3,
    }


def discriminator_step_by_hand(loss, real, fake):
    hinge = 0
    penalty = 0
    for (discriminator, x), (_, x_fake) in zip(
        inputs_by_hand(loss, real), inputs_by_hand(loss, fake), strict=True
    ):
        for b in range(len(real)):
            sample = x[b : b + 1].detach().clone().requires_grad_()
            d_real, d_fake = (
                discriminator(y).logits[0] for y in (sample, x_fake[b : b + 1].detach())
            )
            hinge = hinge + (F.relu(1 - d_real) + F.relu(1 + d_fake)) / len(real)
            (gradient,) = torch.autograd.grad(d_real, sample, create_graph=True)
            norm = sum(torch.dot(row, row) for row in gradient.flatten(0, -2)) ** 0.5
            penalty = penalty + (norm - 1) ** 2 / len(real)
    return hinge + 1.5 * penalty, {"discr_loss": hinge, "grad_penalty_loss": penalty}


def check_log(log, expected, tolerance):
    for name, value in expected.items():
        assert log[f"train/{name}"].item() == pytest.approx(
            torch.as_tensor(value).item(), rel=tolerance
        ), name


@pytest.mark.slow
class TestAgainstLoops:
    """In float64. The tolerance is 1e-6 because adaptive weights are ratios of float32 norms, and logs are float32."""

    tolerance = 1e-6

    @pytest.fixture
    def setup(self, make_loss, autoencoder, clip):
        loss = make_loss(**EVERYTHING).double()
        autoencoder.double()
        real = still(clip((2, 3, 2, 16, 16), dtype=torch.float64))
        return loss, autoencoder, real

    def test_the_autoencoders_step(self, setup):
        loss, autoencoder, real = setup
        parameters = list(autoencoder.parameters())
        results = []
        for by_hand in (False, True):
            fake = autoencoder(real)
            aux = autoencoder.encoder.weight.square().sum()
            if by_hand:
                total, expected = autoencoder_step_by_hand(
                    loss, real, fake, aux, autoencoder.last_layer
                )
            else:
                total, log = loss(
                    real, fake, 0, 0, aux_losses=aux, last_layer=autoencoder.last_layer
                )
            results.append((total, *torch.autograd.grad(total, parameters)))
        check_log(log, {**expected, "aux_losses": aux, "total_loss": total}, self.tolerance)
        assert not 0.9 < expected["adaptive_weight"] < 1.1
        for ours, theirs in zip(*results, strict=True):
            largest = theirs.abs().max().item()
            torch.testing.assert_close(
                ours, theirs, rtol=self.tolerance, atol=self.tolerance * largest
            )

    def test_the_discriminators_step(self, setup):
        loss, autoencoder, real = setup
        fake = autoencoder(real)
        total, log = loss(real, fake, 1, 0)
        expected_total, expected = discriminator_step_by_hand(loss, real, fake)
        check_log(log, {**expected, "total_disc_loss": expected_total}, self.tolerance)
        assert expected["grad_penalty_loss"] > 1e-3
        torch.testing.assert_close(total, expected_total, rtol=self.tolerance, atol=0)
        parameters = loss.get_trainable_parameters()
        ours, theirs = (
            torch.autograd.grad(t, parameters, allow_unused=True) for t in (total, expected_total)
        )
        largest = max(gradient.abs().max().item() for gradient in theirs if gradient is not None)
        torch.testing.assert_close(ours, theirs, rtol=self.tolerance, atol=self.tolerance * largest)


TERM_WEIGHTS = {
    "perceptual_weight": 0.7,
    "adversarial_loss_weight": 0.2,
    "multiscale_adversarial_loss_weight": 0.8,
    "quantizer_aux_loss_weight": 0.1,
    "grad_penalty_loss_weight": 1.5,
    "gan": {"feature_matching_loss_weight": 0.3, "lecam_loss_weight": 0.25},
    "terms": {"gram": 0.6, "wavelet": 0.5, "temporal": 0.4},
}


class TestTheSum:
    def test_of_every_term(self, make_loss, pair):
        networks = {
            "discr_kwargs": IMAGE,
            "discr_3d_kwargs": VIDEO,
            "multiscale_discr_kwargs": [VIDEO],
        }
        loss = make_loss(**TERM_WEIGHTS, **networks)
        total, log = loss(*pair, 0, 0, aux_losses={"kl_loss": 2.0})
        log = {name.removeprefix("train/"): value for name, value in log.items()}
        assert log["adaptive_weight"] == 1, "there is no last layer"
        weights = {
            "recon_loss": 1,
            "perceptual_loss": 0.7,
            "gram_loss": 0.6,
            "wavelet_loss": 0.5,
            "temporal_loss": 0.4,
            "gen_loss_discr": 0.2,
            "gen_loss_discr_3d": 0.2,
            "gen_loss_multiscale_discrs.0": 0.8,
            "feature_matching_loss": 0.3,
            "aux_losses": 0.1,
        }
        assert all(log[term] != 0 for term in weights)
        torch.testing.assert_close(
            total.detach(), sum(weight * log[term] for term, weight in weights.items())
        )

        total, log = loss(*pair, 1, 0)
        expected = (
            log["train/discr_loss"]
            + 1.5 * log["train/grad_penalty_loss"]
            + 0.25 * log["train/lecam_loss"]
        )
        torch.testing.assert_close(total.detach(), expected)

    def test_sums_multiply_by_the_number_of_values_of_a_clip(self, make_loss, pair):
        totals = [
            make_loss(
                reconstruction={"loss": "l1", "nll_reduction": reduction},
                perceptual={"num_frames": "all"},
                terms={"temporal": 1},
            )(*pair, 0, 0)
            for reduction in ("mean", "sum")
        ]
        (mean, log), (summed, _) = totals
        temporal = log["train/temporal_loss"]
        torch.testing.assert_close(summed - temporal, (mean - temporal) * 3 * 4 * 16 * 16)


class TestLearnedVariance:
    def test_value_and_gradient(self, make_loss, pair):
        loss = make_loss(
            perceptual={"num_frames": "all"},
            reconstruction={"learn_logvar": True},
            terms={"temporal": 1},
        )
        with torch.no_grad():
            loss.logvar.fill_(0.5)
        total, log = loss(*pair, 0, 0)
        distance = log["train/recon_loss"] + log["train/perceptual_loss"]
        nll = distance * torch.tensor(-0.5).exp() + 0.5
        torch.testing.assert_close(log["train/nll_loss"], nll)
        assert log["train/logvar"] == 0.5
        torch.testing.assert_close(total.detach(), nll + log["train/temporal_loss"])
        total.backward()
        torch.testing.assert_close(loss.logvar.grad, 1 - distance * torch.tensor(-0.5).exp())

    @pytest.mark.parametrize("eager", [False, True])
    def test_an_update_with_a_frozen_autoencoder(self, make_loss, pair, eager):
        """As while the discriminators warm up."""
        real = pair[0]
        fake = pair[1].detach()
        loss = make_loss(
            perceptual_weight=0,
            adversarial_loss_weight=1,
            reconstruction={"learn_logvar": True},
            discr_3d_kwargs=VIDEO,
            eager_gradients=eager,
        )
        both = loss.both_losses(real, fake, 0)
        both.loss.backward()
        assert loss.logvar.grad is not None
        assert all(parameter.grad is None for parameter in loss.discr_3d.parameters())
        both.disc_loss.backward()
        gradients = [parameter.grad for parameter in loss.discr_3d.parameters()]
        loss.zero_grad()
        loss(real, fake, 1, 0)[0].backward()
        torch.testing.assert_close(
            gradients, [parameter.grad for parameter in loss.discr_3d.parameters()]
        )


def check_log_values(log, names, split="train"):
    assert {f"{split}/{name}" for name in names} <= set(log)
    for value in log.values():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert value.isfinite()


class TestLog:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("dtype", "autocast"),
        [(torch.float16, False), (torch.bfloat16, True), (torch.float64, True)],
    )
    def test_float32_values_and_a_loss_of_at_least_float32(
        self, make_loss, clip, autoencoder, dtype, autocast
    ):
        loss = make_loss(**EVERYTHING)
        real = clip((2, 3, 3, 16, 16), dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            fake = autoencoder(real.float()).to(dtype)
            for index, names in ((0, AUTOENCODER_LOG), (1, DISCRIMINATOR_LOG)):
                total, log = loss(
                    real, fake, index, 0, aux_losses=torch.tensor(0.5).to(dtype), split="val"
                )
                check_log_values(log, names, "val")
                assert total.shape == ()
                assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
                assert total.isfinite()
                total.backward()
        assert all(parameter.grad.isfinite().all() for parameter in autoencoder.parameters())

    def test_before_disc_start_and_without_discriminators(self, make_loss, clip, everything):
        for loss in (make_loss(), make_loss(**{**everything, "disc_start": 9})):
            check_log_values(loss(clip(), clip(seed=2), 0, 0)[1], AUTOENCODER_LOG)

    def test_the_split_of_an_update(self, make_loss, pair, everything):
        both = make_loss(**everything).both_losses(*pair, 0, split="val")
        check_log_values(both.log, AUTOENCODER_LOG, "val")
        check_log_values(both.disc_log, DISCRIMINATOR_LOG, "val")
        assert both.loss == both.log["val/total_loss"]
        assert both.disc_loss == both.disc_log["val/total_disc_loss"]

    def test_each_auxiliary_loss_is_logged_and_their_sum_is_weighted(self, make_loss, clip):
        loss = make_loss(perceptual_weight=0, quantizer_aux_loss_weight=10)
        kl = torch.tensor(2.0, requires_grad=True)
        total, log = loss(
            clip(), clip(), 0, 0, aux_losses={"kl_loss": kl, "commit": 0.5}, split="val"
        )
        assert total.item() == pytest.approx(25)
        assert log["val/kl_loss"].item() == 2
        assert log["val/commit"].item() == 0.5
        assert log["val/aux_losses"].item() == 2.5
        total.backward()
        assert kl.grad.item() == 10

    def test_an_auxiliary_loss_of_weight_0_is_logged_and_not_added(self, make_loss, clip):
        total, log = make_loss(perceptual_weight=0)(clip(), clip(), 0, 0, aux_losses=math.inf)
        assert total == 0
        assert log["train/aux_losses"] == math.inf

    def test_several_discriminators_are_logged_one_by_one(self, make_loss, everything, clip):
        loss = make_loss(**everything)
        names = ("discr", "discr_3d", "multiscale_discrs.0")
        x = still(clip())
        _, log = loss(x, x, 0, 0)
        assert log["train/gen_loss"].item() == pytest.approx(-7 * x.mean().item(), rel=1e-4)
        for scale, name in zip((1, 2, 4), names, strict=True):
            assert log[f"train/gen_loss_{name}"].item() == pytest.approx(
                -scale * x.mean().item(), rel=1e-4
            )
            assert log[f"train/adaptive_weight_{name}"] == 1
        _, log = loss(x, x, 1, 0)
        kinds = ("discr_loss", "logits_real", "logits_fake")
        assert {f"train/{kind}_{name}" for name in names for kind in kinds} < set(log)
        assert log["train/logits_real"].item() == pytest.approx(7 / 3 * x.mean().item(), rel=1e-4)


class TestCalls:
    def test_disc_train_start(self, make_loss, pair, everything):
        loss = make_loss(**{**everything, "gan": {"disc_train_start": 3}})
        for step, trains in ((0, False), (2, False), (3, True), (4, True)):
            names_of_update = DISCRIMINATOR_LOG if trains else {"total_disc_loss"}
            calls = [
                (*loss(*pair, 1, step), DISCRIMINATOR_LOG),
                (*loss.both_losses(*pair, step)[2:], names_of_update),
            ]
            for total, log, names in calls:
                assert (total != 0) == trains
                assert {f"train/{name}" for name in names} <= set(log)
                loss.zero_grad()
                total.backward()
                assert (
                    any(parameter.grad is not None for parameter in loss.get_trainable_parameters())
                    == trains
                )

    def test_a_generator_makes_it_reproducible(self, make_loss, clip, everything):
        loss = make_loss(**everything)
        logs = []
        for _ in range(2):
            generator = torch.Generator().manual_seed(3)
            logs.append(
                [loss(clip(), clip(seed=2), index, 0, generator=generator)[1] for index in (0, 1)]
            )
            torch.rand(3)  # the global source does not matter
        assert logs[0] == logs[1]
        values = {
            loss(clip(), clip(seed=2), 0, 0)[1]["train/perceptual_loss"].item() for _ in range(8)
        }
        assert len(values) > 1

    def test_gradient_checkpointing_reaches_every_discriminator(
        self, make_loss, make_discriminator
    ):
        class Checkpointed(make_discriminator):
            is_on = False

            def enable_gradient_checkpointing(self):
                self.is_on = True

        networks = {"discr_kwargs": Checkpointed(), "discr_3d_kwargs": Checkpointed()}
        networks["multiscale_discr_kwargs"] = [Checkpointed()]
        for enabled in (False, True):
            loss = make_loss(**networks, gradient_checkpointing=enabled)
            assert [d.module.is_on for d in loss.discriminators] == 3 * [enabled]


class TestGuarantees:
    def test_inputs_get_no_gradient_and_reconstructions_none_in_the_discriminators_step(
        self, make_loss, pair, everything
    ):
        real, fake = pair
        real.requires_grad_()
        loss = make_loss(**everything)
        loss(real, fake, 0, 0)[0].backward()
        assert fake.grad is not None
        fake.grad = None
        loss(real, fake, 1, 0)[0].backward()
        assert real.grad is None
        assert fake.grad is None

    def test_the_state_dict_of_everything_that_is_saved(self, make_loss, pair):
        options = {
            **EVERYTHING,
            "reconstruction": {"learn_logvar": True},
            "gan": {"lecam_loss_weight": 0.25},
            "adversarial_loss_weight": Ramp(1, steps=2),
        }
        loss = make_loss(**options)
        other = make_loss(seed=7, **options)
        names = {name.split(".")[0] for name in loss.state_dict()}
        assert names == {"logvar", "lecam", "discr", "discr_3d", "multiscale_discrs"}
        loss(*pair, 1, 0)
        file = io.BytesIO()
        torch.save(loss.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True), strict=True)
        first, second = (
            x(*pair, 1, 0, generator=torch.Generator().manual_seed(0))[0] for x in (loss, other)
        )
        assert first == second

    def test_the_frozen_lpips_of_a_checkpoint_of_the_reference_is_skipped(
        self, make_loss, everything
    ):
        loss = make_loss(**everything)
        theirs = {**loss.state_dict(), "perceptual_model.net.slice1.0.weight": torch.zeros(1)}
        loss.load_state_dict(theirs, strict=True)
        engine = nn.ModuleDict({"loss": loss})
        engine.load_state_dict(
            {f"loss.{name}": weight for name, weight in theirs.items()}, strict=True
        )
        assert "perceptual_model.net.slice1.0.weight" in theirs
        with pytest.raises(RuntimeError, match="Unexpected"):
            loss.load_state_dict({**theirs, "another": torch.zeros(1)}, strict=True)

    def test_trainable_parameters(self, make_loss, everything):
        loss = make_loss(**everything, reconstruction={"learn_logvar": True})
        (logvar,) = loss.get_trainable_autoencoder_parameters()
        assert logvar is loss.logvar
        trainable = [logvar, *loss.get_trainable_parameters()]
        assert {id(parameter) for parameter in trainable} == {
            id(parameter) for parameter in loss.parameters()
        }
        assert (
            make_loss().get_trainable_parameters()
            == make_loss().get_trainable_autoencoder_parameters()
            == []
        )

    @pytest.mark.slow
    def test_copies(self, make_loss, clip):
        loss = make_loss(
            **{**EVERYTHING, "perceptual": {"num_frames": "all"}, "terms": {"gram": 0.1}}
        )
        real = clip((1, 3, 2, 16, 16))
        fake = clip((1, 3, 2, 16, 16), seed=2)
        loss(real, fake, 1, 0)[0].backward()
        file = io.BytesIO()
        torch.save(loss, file)
        file.seek(0)
        copies = [
            loss,
            copy.deepcopy(loss),
            pickle.loads(pickle.dumps(loss)),
            torch.load(file, weights_only=False),
        ]
        logs = []
        for copied in copies:
            torch.manual_seed(0)
            logs.append([copied(real, fake, index, 0)[1] for index in (0, 1)])
        assert logs[0] == logs[1] == logs[2] == logs[3]
        assert len({id(p) for copied in copies for p in copied.parameters()}) == 4 * len(
            list(loss.parameters())
        )


class Saved:
    """A tensor saved for the backward, which counts itself as freed when its graph frees it."""

    def __init__(self, tensor, alive):
        self.tensor = tensor
        self.alive = alive

    def __del__(self):
        self.alive[self.tensor.untyped_storage().data_ptr()] -= 1


def saved_bytes(loss, *arguments, **options):
    """Return the peak size in bytes of all tensors that a step saves for the backward, without the weights."""
    weights = [*loss.parameters(), *loss.perceptual.distance.weights.values()]
    ignored = {weight.untyped_storage().data_ptr() for weight in weights}
    alive = Counter()
    sizes = {}
    totals = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in ignored:
            return tensor
        alive[address] += 1
        sizes[address] = storage.nbytes()
        totals.append(sum(sizes[address] for address, count in alive.items() if count > 0))
        return Saved(tensor, alive)

    with torch.autograd.graph.saved_tensors_hooks(
        pack, lambda saved: getattr(saved, "tensor", saved)
    ):
        loss(*arguments, **options)[0].backward()
    return max(totals)


class TestMemory:
    @pytest.mark.slow
    def test_it_does_not_grow_with_the_number_of_frames(self, make_loss, clip):
        real = clip((1, 3, 16, 32, 32))
        fake = clip((1, 3, 16, 32, 32), seed=2).requires_grad_()

        def peak(*, eager, frames):
            return saved_bytes(
                make_loss(perceptual={"num_frames": frames}, eager_gradients=eager),
                real,
                fake,
                0,
                0,
            )

        assert peak(eager=True, frames=16) <= peak(eager=True, frames=1) + 3 * 4 * fake.numel()
        assert peak(eager=False, frames=16) > 4 * peak(eager=True, frames=16)

    def test_it_is_that_of_the_largest_term(self, make_loss, autoencoder, clip):
        real = clip((1, 3, 4, 32, 32))

        def peak(*, eager):
            network = {**VIDEO, "dim": 2, "image_size": 32}
            loss = make_loss(
                adversarial_loss_weight=1, discr_3d_kwargs=network, eager_gradients=eager
            )
            return saved_bytes(
                loss, real, autoencoder(real), 0, 0, last_layer=autoencoder.last_layer
            )

        assert peak(eager=True) < 0.7 * peak(eager=False)


@functorch_config.patch(donated_buffer=True)
def test_a_loss_leaves_the_settings_of_pytorch_as_they_are():
    VideoAutoencoderLoss(disc_start=0, perceptual_weight=0)
    assert functorch_config.donated_buffer


@pytest.mark.slow
@functorch_config.patch(donated_buffer=False)
def test_a_compiled_model_whose_graph_is_used_by_more_terms_later():
    """With the setting of PyTorch that docs/compilation.md names.

    Without it, compiled code reuses buffers once its first backward needs the graph no longer.
    """
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.SiLU(), nn.Conv3d(4, 3, 1))
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    loss = VideoAutoencoderLoss(
        disc_start=1,
        perceptual_weight=0,
        adversarial_loss_weight=0.5,
        adaptive_weight={"reference": "recon_and_perceptual"},
        discr_3d_kwargs={**VIDEO, "frame_num": 2},
    )
    video = torch.rand(1, 3, 2, 16, 16) * 2 - 1
    gradients = []
    for network in (model, compiled):
        *_, last_layer, _ = network.parameters()
        for step in range(2):
            torch.manual_seed(0)
            network.zero_grad()
            loss.both_losses(video, network(video), step, last_layer=last_layer).loss.backward()
        gradients.append([weight.grad for weight in network.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_an_update_with_reconstructions_without_gradients_is_refused():
    layer = nn.Conv3d(3, 3, 1)
    discriminator = {"dim": 4, "image_size": 16, "frame_num": 4}
    loss = VideoAutoencoderLoss(0, perceptual_weight=0, discr_3d_kwargs=discriminator)
    video = torch.rand(1, 3, 4, 16, 16) - 0.5
    with torch.no_grad():
        reconstruction = layer(video)
    loss(video, reconstruction, 0, 0, last_layer=layer.weight)  # as in a validation
    with pytest.raises(
        ValueError, match=r"^`reconstructions` must be .* Remove `torch.no_grad` and"
    ):
        loss.both_losses(video, reconstruction, 0, last_layer=layer.weight)
