"""Each term that the reference lacks, inside the objective: its value, weight and gradient, and its name in the log."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine import DiscriminatorOutput, Ramp, VideoAutoencoderLoss
from telecine.losses import Duel, gradient_penalty, temporal_difference, wavelet_l1
from telecine.perceptual import LPIPS

VIDEO = {"dim": 1, "image_size": 16, "frame_num": 4, "linear_attn_heads": 2}
IMAGE = {"dim": 1, "image_size": 16, "linear_attn_heads": 2}
WEIGHTS = {
    "perceptual_weight": 0.7,
    "terms": {"gram": 0.6, "wavelet": 0.5, "temporal": 0.4},
    "gan": {"feature_matching_loss_weight": 0.3, "lecam_loss_weight": 0.25},
    "adversarial_loss_weight": 0.2,
    "quantizer_aux_loss_weight": 0.1,
    "grad_penalty_loss_weight": 1.5,
}


class Elementwise(nn.Module):
    """A discriminator whose logits and features can be written down: the mean, and the video itself, scaled."""

    sees = "video"

    def __init__(self, scale=2.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.calls = []

    def forward(self, x):
        self.calls.append((x, torch.is_grad_enabled()))
        y = self.scale * x
        return DiscriminatorOutput(y.flatten(1).mean(1), (y, 3 * y))


@pytest.fixture
def pair(clip):
    return clip(), clip(seed=2).requires_grad_()


class TestTheSum:
    def test_the_total_is_the_sum_of_what_is_logged(self, make_loss, pair):
        loss = make_loss(**WEIGHTS, discr_3d_kwargs=VIDEO, discr_kwargs=IMAGE)
        total, log = loss(*pair, 0, 0, aux_losses={"kl_loss": 2.0})
        log = {name.removeprefix("train/"): value for name, value in log.items()}
        assert log["adaptive_weight"] == 1  # there is no last layer
        renamed = {
            "perceptual_loss": "perceptual_weight",
            "gen_loss": "adversarial_loss_weight",
            "aux_losses": "quantizer_aux_loss_weight",
        }
        terms = ["gram_loss", "wavelet_loss", "temporal_loss", "feature_matching_loss", *renamed]
        expected = log["recon_loss"] + sum(WEIGHTS[renamed.get(term, f"{term}_weight")] * log[term] for term in terms)
        assert all(log[term] != 0 for term in terms)
        torch.testing.assert_close(total, expected)

        total, log = loss(*pair, 1, 0)
        expected = log["train/discr_loss"] + 1.5 * log["train/grad_penalty_loss"] + 0.25 * log["train/lecam_loss"]
        torch.testing.assert_close(total, expected)

    def test_every_weight_names_its_log_key(self, make_loss, pair):
        """A weight `x_weight` has the log key `x`; three keep the names of the reference."""
        loss = make_loss(**WEIGHTS, discr_3d_kwargs=VIDEO)
        logged = {name.removeprefix("train/") for index in (0, 1) for name in loss(*pair, index, 0)[1]}
        theirs = {"perceptual_weight", "adversarial_loss_weight", "quantizer_aux_loss_weight"}
        ours = set(loss.weights) - theirs - {"multiscale_adversarial_loss_weight"}
        assert len(ours) == 6
        assert {name.removesuffix("_weight") for name in ours} <= logged
        assert {"perceptual_loss", "gen_loss", "aux_losses"} <= logged

    def test_what_is_off_is_neither_computed_nor_logged(self, make_loss, pair):
        loss = make_loss(disc_start=9, **WEIGHTS | {"terms": {"gram": 0}}, discr_3d_kwargs=(judge := Elementwise()))
        log = loss(*pair, 0, 0)[1]
        assert not judge.calls
        assert not {"train/gram_loss", "train/feature_matching_loss", "train/lecam_loss", "train/logvar"} & set(log)


class TestReconstruction:
    @pytest.mark.parametrize(
        ("name", "by_hand"),
        [
            ("mse", F.mse_loss),
            ("l1", F.l1_loss),
            ("charbonnier", lambda x, y: ((x - y).square() + 1e-6).sqrt().mean()),
        ],
    )
    def test_pixel_losses(self, make_loss, pair, name, by_hand):
        total, log = make_loss(perceptual_weight=0, reconstruction={"loss": name})(*pair, 0, 0)
        assert total.item() == log["train/recon_loss"].item() == pytest.approx(by_hand(*pair).item(), rel=1e-6)

    def test_wavelet_and_temporal(self, make_loss, pair):
        loss = make_loss(perceptual_weight=0, terms={"wavelet": {"weight": 2, "params": {"levels": 2}}, "temporal": 3})
        log = loss(*pair, 0, 0)[1]
        x, y = pair
        assert log["train/wavelet_loss"].item() == wavelet_l1(reconstruction=y, target=x, levels=2).item()
        assert log["train/temporal_loss"].item() == temporal_difference(reconstruction=y, target=x).item()

    def test_the_sum_mode_multiplies_by_the_elements_of_a_clip(self, make_loss, pair):
        weights = {"reconstruction": {"loss": "l1"}, "perceptual": {"num_frames": "all"}}
        mean = make_loss(**weights)(*pair, 0, 0)[0]
        summed = make_loss(**weights, reconstruction={"nll_reduction": "sum"})(*pair, 0, 0)[0]
        torch.testing.assert_close(summed, mean * 3 * 4 * 16 * 16)

    def test_the_learned_variance(self, make_loss, pair):
        loss = make_loss(
            perceptual={"num_frames": "all"},
            reconstruction={"learn_logvar": True, "logvar_init": 0.5},
            terms={"temporal": 1},
        )
        total, log = loss(*pair, 0, 0)
        distance = log["train/recon_loss"] + log["train/perceptual_loss"]
        nll = distance * torch.tensor(-0.5).exp() + 0.5
        torch.testing.assert_close(log["train/nll_loss"], nll)
        torch.testing.assert_close(total, nll + log["train/temporal_loss"])
        total.backward()
        (logvar,) = loss.get_trainable_autoencoder_parameters()
        torch.testing.assert_close(logvar.grad, 1 - distance * torch.tensor(-0.5).exp())
        assert "logvar" in loss.state_dict()

    def test_at_its_optimum_the_variance_is_the_error(self, make_loss, clip):
        loss = make_loss(perceptual_weight=0, reconstruction={"learn_logvar": True})
        optimizer = torch.optim.Adam(loss.get_trainable_autoencoder_parameters(), 0.05)
        for _ in range(300):
            optimizer.zero_grad()
            total, log = loss(clip(), clip(seed=2), 0, 0)
            total.backward()
            optimizer.step()
        assert loss.logvar.exp().item() == pytest.approx(log["train/recon_loss"].item(), rel=1e-2)

    def test_a_constant_variance_is_not_saved_and_moves_along(self, make_loss, pair):
        loss = make_loss(perceptual_weight=0, reconstruction={"logvar_init": -1.0})
        assert loss.get_trainable_autoencoder_parameters() == []
        assert "logvar" not in loss.state_dict()
        total, log = loss(*pair, 0, 0)
        torch.testing.assert_close(total, log["train/recon_loss"] * torch.tensor(1.0).exp() - 1)
        assert loss.to("meta").logvar.device.type == "meta"

    def test_the_discriminators_optimizer_does_not_get_it(self, make_loss):
        loss = make_loss(reconstruction={"learn_logvar": True}, discr_3d_kwargs=VIDEO)
        assert not any(weight is loss.logvar for weight in loss.get_trainable_parameters())


class TestPerceptual:
    def test_alex_and_an_own_lpips(self, make_loss, cached_weights, clip):
        x, y = clip((1, 3, 2, 32, 32)), clip((1, 3, 2, 32, 32), seed=2)
        lpips = LPIPS("alex")
        frames = {"reconstruction": y.transpose(1, 2).flatten(0, 1), "target": x.transpose(1, 2).flatten(0, 1)}
        expected = lpips(**frames).mean()
        for net in ("alex", lpips):
            loss = VideoAutoencoderLoss(0, perceptual={"net": net, "num_frames": "all"})
            log = loss(x, y, 0, 0)[1]
            torch.testing.assert_close(log["train/perceptual_loss"], expected)

    def test_ones_own_distance(self, make_loss, pair):
        def distance(*, reconstruction, target):
            return (reconstruction - target).abs().mean((1, 2, 3))

        loss = VideoAutoencoderLoss(0, perceptual={"net": distance, "num_frames": "all"}, perceptual_weight=2)
        total, log = loss(*pair, 0, 0)
        torch.testing.assert_close(log["train/perceptual_loss"], F.l1_loss(*pair).detach())
        torch.testing.assert_close(total, log["train/recon_loss"] + 2 * log["train/perceptual_loss"])

    def test_a_module_of_ones_own_is_frozen_and_not_saved(self, make_loss, clip):
        net = nn.Conv2d(3, 4, 3)
        module = nn.Module()
        module.net = net
        module.forward = lambda *, reconstruction, target: (net(reconstruction) - net(target)).abs().mean((1, 2, 3))
        loss = VideoAutoencoderLoss(0, perceptual={"net": module})
        loss(clip(), clip(seed=2).requires_grad_(), 0, 0)[0].backward()
        assert net.weight.grad is None
        assert loss.state_dict() == {}
        assert list(loss.parameters()) == []

    def test_gram_of_a_distance_without_features(self, make_loss):
        with pytest.raises(ValueError, match="`gram_loss_weight` must be 0 for a perceptual loss without features"):
            VideoAutoencoderLoss(0, perceptual={"net": lambda *, reconstruction, target: 0}, terms={"gram": 1})

    def test_weights_of_vgg_for_another_network_are_refused(self, vgg):
        for net in ("alex", lambda *, reconstruction, target: 0):
            with pytest.raises(ValueError, match="`vgg_weights` must be left out where `perceptual_net` is not"):
                VideoAutoencoderLoss(0, perceptual={"net": net}, vgg_weights=vgg)

    def test_options_are_checked_where_the_term_is_off_too(self):
        for option in (
            {"perceptual": {"num_frames": -3}},
            {"perceptual": {"stride": 0}},
            {"gan": {"lecam_decay": "x"}},
        ):
            (name,) = option
            with pytest.raises(ValueError, match=f"`{name}` must be"):
                VideoAutoencoderLoss(0, perceptual_weight=0, **option)

    def test_gram_alone_builds_the_network(self, make_loss, pair):
        total, log = make_loss(perceptual_weight=0, terms={"gram": 2})(*pair, 0, 0)
        torch.testing.assert_close(total, log["train/recon_loss"] + 2 * log["train/gram_loss"])
        assert log["train/gram_loss"] > 0

    def test_chunks_and_strides(self, make_loss, pair):
        whole = make_loss(perceptual={"num_frames": "all"}, terms={"gram": 1})(*pair, 0, 0)[0]
        chunks = make_loss(perceptual={"num_frames": "all", "chunk_size": 3}, terms={"gram": 1})(*pair, 0, 0)[0]
        torch.testing.assert_close(chunks, whole)
        (expected,) = torch.autograd.grad(whole, pair[1])
        torch.testing.assert_close(torch.autograd.grad(chunks, pair[1])[0], expected)
        seen = []
        loss = make_loss(perceptual={"num_frames": "all", "stride": 2})
        loss.perceptual_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(len(kwargs["reconstruction"])), with_kwargs=True
        )
        loss(*pair, 0, 0)
        assert sum(seen) == 2 * 2


class TestAdversarial:
    def test_relativistic_pairs(self, make_loss, pair):
        x, y = pair
        judge = Elementwise()
        loss = make_loss(
            perceptual_weight=0, adversarial_loss_weight=1, gan={"loss": "relativistic"}, discr_3d_kwargs=judge
        )
        log = loss(x, y, 0, 0)[1]
        real, fake = (2 * video.flatten(1).mean(1) for video in (x, y))
        torch.testing.assert_close(log["train/gen_loss"], F.softplus(real - fake).mean().detach())
        assert [grad for _, grad in judge.calls] == [True, False]  # no graph for the real clips
        log = loss(x, y, 1, 0)[1]
        torch.testing.assert_close(log["train/discr_loss"], F.softplus(fake - real).mean().detach())

    @pytest.mark.parametrize("gan_loss", ["hinge", "vanilla", "least_squares"])
    def test_real_clips_are_not_judged_where_the_autoencoders_loss_does_not_need_them(self, make_loss, pair, gan_loss):
        judge = Elementwise()
        loss = make_loss(perceptual_weight=0, adversarial_loss_weight=1, gan={"loss": gan_loss}, discr_3d_kwargs=judge)
        loss(*pair, 0, 0)
        assert len(judge.calls) == 1

    def test_a_function_of_ones_own(self, make_loss, pair):
        def wasserstein(*, real, fake):
            return Duel(discriminator=fake.mean() - real.mean(), generator=-fake.mean())

        loss = make_loss(
            perceptual_weight=0, adversarial_loss_weight=1, gan={"loss": wasserstein}, discr_3d_kwargs=Elementwise()
        )
        x, y = pair
        torch.testing.assert_close(loss(x, y, 0, 0)[1]["train/gen_loss"], -2 * y.mean().detach())
        torch.testing.assert_close(loss(x, y, 1, 0)[0], 2 * y.mean().detach() - 2 * x.mean())

    def test_feature_matching(self, make_loss, pair):
        x, y = pair
        judge = Elementwise()
        loss = make_loss(perceptual_weight=0, gan={"feature_matching_loss_weight": 3}, discr_3d_kwargs=judge)
        total, log = loss(x, y, 0, 0)
        expected = (2 * F.l1_loss(x, y) + 6 * F.l1_loss(x, y)) / 2
        torch.testing.assert_close(log["train/feature_matching_loss"], expected.detach())
        torch.testing.assert_close(total, F.mse_loss(x, y) + 3 * expected)
        assert log["train/gen_loss"] == 0
        total.backward()
        assert judge.scale.grad is None

    def test_feature_matching_needs_features(self, make_loss, make_judge, pair):
        loss = make_loss(perceptual_weight=0, gan={"feature_matching_loss_weight": 3}, discr_3d_kwargs=make_judge())
        with pytest.raises(ValueError, match="features"):
            loss(*pair, 0, 0)

    @pytest.mark.parametrize("name", ["feature_matching_loss_weight", "lecam_loss_weight"])
    def test_a_weight_without_a_discriminator(self, make_loss, name):
        with pytest.raises(ValueError, match=f"`{name}` must be 0 where no discriminator is given"):
            make_loss(perceptual_weight=0, **{name: 1})

    def test_a_discriminator_of_frames_at_half_the_size(self, make_loss, pair):
        seen = []

        class Frames(Elementwise):
            sees = "frames"

            def forward(self, x):
                seen.append(x.shape)
                return super().forward(x)

        loss = make_loss(
            perceptual_weight=0, multiscale_adversarial_loss_weight=1, multiscale_discr_kwargs=[Frames(), Frames()]
        )
        for index in (0, 1):
            loss(*pair, index, 0)
        sizes = [(2, 3, 8, 8), (2, 3, 4, 4)]
        assert seen == [*sizes, *sizes, *sizes], "the autoencoder's step; then the real frames, then the others"


class TestPenalty:
    def cubic(self, make_loss, penalty, **options):
        class Cubic(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.tensor(1.0))

            def forward(self, x):
                return (self.weight * x**3).flatten(1).sum(1)

        options |= {"perceptual_weight": 0, "grad_penalty_loss_weight": 2, "penalty": {"kind": penalty}}
        return make_loss(**options, discr_3d_kwargs=Cubic())

    @pytest.mark.parametrize("penalty", ["one_centered", "r1", "r2", "r1_and_r2"])
    def test_the_gradient_of_what_is_known(self, make_loss, pair, penalty):
        x, y = pair
        loss = self.cubic(make_loss, penalty)
        total, log = loss(x, y, 1, 0)
        slopes = [(3 * video.detach() ** 2).flatten(1).square().sum(1) for video in (x, y)]
        expected = {
            "one_centered": (slopes[0].sqrt() - 1).square().mean(),
            "r1": slopes[0].mean() / 2,
            "r2": slopes[1].mean() / 2,
            "r1_and_r2": (slopes[0] + slopes[1]).mean() / 2,
        }[penalty]
        torch.testing.assert_close(log["train/grad_penalty_loss"], expected)
        torch.testing.assert_close(total, log["train/discr_loss"] + 2 * expected)
        total.backward()
        assert loss.discr_3d.weight.grad.isfinite()

    def test_noise_comes_from_the_generator(self, make_loss, pair):
        for penalty in ("wgan_gp", "approximate_r1"):
            loss = self.cubic(make_loss, penalty)
            loss.generator = torch.Generator()
            values = []
            for seed in (0, 0, 1):
                loss.generator.manual_seed(seed)
                values.append(loss(*pair, 1, 0)[1]["train/grad_penalty_loss"].item())
            assert values[0] == values[1] != values[2]

    def test_the_approximation_needs_no_gradient_of_a_gradient(self, make_loss, pair, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("autograd.grad was called")

        approximate, exact = (self.cubic(make_loss, name, eager_gradients=False) for name in ("approximate_r1", "r1"))
        monkeypatch.setattr(torch.autograd, "grad", refuse)
        approximate(*pair, 1, 0)[0].backward()
        with pytest.raises(AssertionError, match=r"autograd.grad was called"):
            exact(*pair, 1, 0)

    def test_a_function_of_ones_own(self, make_loss, pair):
        def zero_centered(*, judge, real, fake, generator):
            return gradient_penalty(real=real.view, logits=real.logits, center=0.0)

        log = self.cubic(make_loss, zero_centered)(*pair, 1, 0)[1]
        expected = (3 * pair[0] ** 2).flatten(1).square().sum(1).mean()
        torch.testing.assert_close(log["train/grad_penalty_loss"], expected)


class TestAdaptiveWeight:
    def weight(self, make_loss, pair, autoencoder, **options):
        loss = make_loss(
            perceptual={"num_frames": "all"}, adversarial_loss_weight=0.5, discr_3d_kwargs=Elementwise(), **options
        )
        real = pair[0]
        fake = autoencoder(real)
        total, log = loss(real, fake, 0, 0, last_layer=autoencoder.last_layer)
        frames = [video.transpose(1, 2).flatten(0, 1) for video in (fake, real)]
        lpips = loss.perceptual_model(reconstruction=frames[0], target=frames[1]).lpips.mean()
        terms = {"lpips": lpips, "recon": F.mse_loss(fake, real), "g": -2 * fake.mean()}
        return terms, fake, total, log["train/adaptive_weight"].item()

    def norm(self, loss, at):
        return torch.autograd.grad(loss, at, retain_graph=True)[0].norm().item()

    def test_against_reconstruction_and_perceptual(self, make_loss, pair, autoencoder):
        terms, _, total, weight = self.weight(
            make_loss, pair, autoencoder, adaptive_weight={"reference": "recon_and_perceptual"}, perceptual_weight=0.3
        )
        layer = autoencoder.last_layer
        both = terms["recon"] + 0.3 * terms["lpips"]
        assert weight == pytest.approx(self.norm(both, layer) / self.norm(terms["g"], layer), rel=1e-4)
        torch.testing.assert_close(total, both + 0.5 * weight * terms["g"])

    def test_at_the_reconstruction(self, make_loss, pair, autoencoder):
        terms, fake, _, weight = self.weight(
            make_loss, pair, autoencoder, adaptive_weight={"at": "reconstruction", "min_norm": 1e-9}
        )
        assert weight == pytest.approx(self.norm(terms["lpips"], fake) / self.norm(terms["g"], fake), rel=1e-4)

    def test_at_the_reconstruction_no_layer_is_needed(self, make_loss, pair):
        loss = make_loss(
            adversarial_loss_weight=1, adaptive_weight={"at": "reconstruction"}, discr_3d_kwargs=Elementwise()
        )
        assert loss(*pair, 0, 0)[1]["train/adaptive_weight"] not in (0, 1)

    def test_none(self, make_loss, pair, autoencoder):
        assert self.weight(make_loss, pair, autoencoder, adaptive_weight={"reference": "none"})[-1] == 1

    def test_without_a_perceptual_weight_it_is_one_though_features_are_compared(self, make_loss, pair, autoencoder):
        for weight in (0, Ramp(1, start=5)):
            options = {"perceptual_weight": weight, "terms": {"gram": 1}}
            assert self.weight(make_loss, pair, autoencoder, **options)[-1] == 1

    def test_a_sum_over_pixels_is_compared_as_a_sum(self, make_loss, pair, autoencoder):
        mean = self.weight(make_loss, pair, autoencoder, adaptive_weight={"max": 1e9})[-1]
        summed = self.weight(
            make_loss, pair, autoencoder, adaptive_weight={"max": 1e9}, reconstruction={"nll_reduction": "sum"}
        )[-1]
        assert summed == pytest.approx(mean * pair[0][0].numel(), rel=1e-4)

    def test_a_step_that_is_not_finite_leaves_the_moving_average_alone(self, make_loss, pair, autoencoder):
        loss = make_loss(adversarial_loss_weight=1, adaptive_weight={"decay": 0.9}, discr_3d_kwargs=Elementwise())

        def step(real):
            torch.manual_seed(0)
            log = loss(real, autoencoder(real), 0, 0, last_layer=autoencoder.last_layer)[1]
            return log["train/adaptive_weight"].item()

        first = step(pair[0])
        assert step(pair[0] * float("nan")) == first
        assert step(pair[0]) == pytest.approx(first)

    def test_small_gradients_of_half_precision_are_compared_in_float32(self, make_loss, clip):
        loss = make_loss(
            perceptual={"num_frames": "all"},
            adversarial_loss_weight=1,
            adaptive_weight={"at": "reconstruction", "min_norm": 1e-12},
            discr_3d_kwargs=Elementwise(1e-4),
        )
        real = clip((1, 3, 4, 64, 64)).half()
        weights = [
            loss(real.to(dtype), (real * 0.99).to(dtype).requires_grad_(), 0, 0)[1]["train/adaptive_weight"].item()
            for dtype in (torch.float16, torch.float32)
        ]
        assert weights[0] == pytest.approx(weights[1], rel=1e-3)

    def test_cap_and_epsilon(self, make_loss, pair, autoencoder):
        assert self.weight(make_loss, pair, autoencoder, adaptive_weight={"max": 1e-3})[-1] == pytest.approx(1e-3)
        terms, _, _, weight = self.weight(make_loss, pair, autoencoder, adaptive_weight={"min_norm": 1e4})
        assert weight == pytest.approx(self.norm(terms["lpips"], autoencoder.last_layer) / 1e4, rel=1e-4)

    def test_the_moving_average_is_saved_and_goes_on(self, make_loss, clip, autoencoder):
        def make():
            return make_loss(adversarial_loss_weight=1, adaptive_weight={"decay": 0.5}, discr_3d_kwargs=Elementwise())

        def step(loss, seed):
            real = clip(seed=seed)
            torch.manual_seed(seed)
            log = loss(real, autoencoder(real), 0, 0, last_layer=autoencoder.last_layer)[1]
            return log["train/adaptive_weight"].item()

        loss, restored = make(), make()
        weights = [step(loss, seed) for seed in range(4)]
        for seed in range(3):
            step(restored, seed)
        other = make()
        other.load_state_dict(restored.state_dict())
        assert step(other, 3) == weights[3]
        assert weights[3] != step(make(), 3)
        other.eval()
        before = other.state_dict()["balance.averages.discr_3d.mean"].clone()
        step(other, 9)
        assert torch.equal(other.state_dict()["balance.averages.discr_3d.mean"], before)


def test_a_distance_of_ones_own_that_returns_something_else(make_loss, pair):
    loss = VideoAutoencoderLoss(
        0, perceptual={"net": lambda *, reconstruction, target: (reconstruction - target).square()}
    )
    with pytest.raises(ValueError, match="`net` must be"):
        loss(*pair, 0, 0)


def test_a_loss_with_everything_on_survives_copies(make_loss, pair, tmp_path):
    options = {
        **WEIGHTS,
        "reconstruction": {"learn_logvar": True},
        "adaptive_weight": {"decay": 0.9},
        "adversarial_loss_weight": Ramp(1, steps=2),
    }
    loss = make_loss(**options, discr_3d_kwargs=VIDEO, multiscale_discr_kwargs=[VIDEO])
    loss(*pair, 1, 0)
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    other = make_loss(seed=7, **options, discr_3d_kwargs=VIDEO, multiscale_discr_kwargs=[VIDEO])
    other.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True), strict=True)
    torch.manual_seed(0)
    expected = loss(*pair, 1, 0)[0]
    torch.manual_seed(0)
    assert other(*pair, 1, 0)[0].item() == expected.item()
    assert isinstance(loss, VideoAutoencoderLoss)
