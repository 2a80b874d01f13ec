"""Additional terms: how they are given, what their functions are called with, and the terms that are built in."""

import copy

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine import Ramp, VideoAutoencoderLoss
from telecine.losses import (
    temporal_difference,
    wavelet_l1,
)
from telecine.losses.perceptual import gram
from telecine.objective.batch import make_batch
from telecine.objective.terms import build_terms, check_functions, compute_on_batch
from telecine.settings import (
    ClipConfig,
    GANConfig,
    ObjectiveConfig,
    PerceptualConfig,
    Term,
)
from telecine.settings.errors import validate

CLIPS = ClipConfig()
RESERVED = {
    "total",
    "recon",
    "perceptual",
    "nll",
    "gen",
    "adversarial",
    "multiscale_adversarial",
    "feature_matching",
    "quantizer_aux",
    "total_disc",
    "discr",
    "grad_penalty",
    "lecam",
}


def edges(*, reconstruction, target, power=1.0):
    """Compare differences of neighbouring columns."""
    return ((reconstruction.diff(dim=-1) - target.diff(dim=-1)).abs() ** power).mean()


class Half(nn.Module):
    def __init__(self, factor=0.5):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, reconstruction, target):
        return self.factor * (reconstruction - target).abs().mean()


class WithBackbone(Half):
    """A trained factor, and a frozen network."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(1, 1).requires_grad_(False)

    def forward(self, reconstruction, target):
        self.used = self.backbone.weight
        return super().forward(reconstruction, target)


def terms_of(terms):
    config = validate(ObjectiveConfig, {"terms": terms})
    return build_terms(config)


def term_of(value, name="edges"):
    return terms_of({name: value})[name]


@pytest.mark.parametrize(
    ("value", "function", "weight"),
    [
        (0.5, wavelet_l1, 0.5),
        (Ramp(0.5, steps=2), wavelet_l1, Ramp(0.5, steps=2)),
        ({"weight": {"weight": 0.5, "start": 3}}, wavelet_l1, Ramp(0.5, start=3)),
        ({"target": "temporal"}, temporal_difference, 1.0),
        ({"target": "telecine.losses.temporal_difference", "weight": 2}, temporal_difference, 2),
        ({"target": edges}, edges, 1.0),
        (Term(edges, weight=0.1), edges, 0.1),
        (Term("gram"), gram, 1.0),
        (Term(weight=0.5), wavelet_l1, 0.5),
    ],
)
def test_forms_of_a_term(value, function, weight):
    config = validate(ObjectiveConfig, {"terms": {"wavelet": value}})
    assert build_terms(config)["wavelet"].function is function
    assert config.term_settings["wavelet"].weight == weight
    assert config.term_schedules()["wavelet"].setting == "terms.wavelet.weight"


def needs_codes(*, reconstruction, target, codes):
    return 0


def features_and_target(*, reconstruction_features, target):
    return 0


class TestMistakes:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            (
                "edgez",
                0.5,
                r"`terms.edgez.target` must be one of 'wavelet', .*, or the dotted path .*'edgez'.*Use",
            ),
            (
                "wavelets",
                0.5,
                r"must be one of .*but got 'wavelets' \(str\). Did you mean `wavelet`\?",
            ),
            (
                "x",
                {"target": "nowhere.edges"},
                r"`terms.x.target` must be in telecine or .*'nowhere.edges'. If",
            ),
            (
                "x",
                {"target": lambda **kwargs: 0},
                r"`terms.x.target` must be a function of .*one of none",
            ),
            (
                "x",
                {"target": "telecine.losses.edges"},
                r"`terms.x.target` must be .*telecine.losses has no `edges`",
            ),
            (
                "x",
                {"target": edges, "wieght": 1},
                r"`terms.x.wieght` is not a setting. Did you mean `terms.x.weight`",
            ),
            ("wavelet", -1, r"`terms.wavelet` must be at least 0, but got -1"),
            ("x", edges, r"`terms.x` must be a number, but got <function"),
            (
                "x",
                {"target": Ramp},
                r"`terms.x.target` must be a function, a module or a .*Pass an instance, `Ramp\(",
            ),
            (
                "x",
                {"target": Half, "params": {"facto": 2}},
                r"must be arguments of Half, .*Did you mean `factor`",
            ),
            (
                "alignment",
                0.5,
                r"must be all required arguments of Alignment, .* missing .*'latent_channels'",
            ),
            (
                "x",
                {"target": "wavelet", "params": {"level": 2}},
                r"arguments of wavelet_l1, .*Did you mean `levels`",
            ),
            (
                "two words",
                {"target": edges},
                r"`terms` must be named by an identifier .*but got 'two words'. Rename",
            ),
            (
                "x",
                {"target": needs_codes},
                r"function of 'reconstruction', .*but got one that needs 'codes'. Give",
            ),
            ("x", {"target": features_and_target}, r"but got one that needs 'target'. Give"),
        ],
    )
    def test_of_a_term(self, name, value, message):
        with pytest.raises(ValueError, match=message):
            terms_of({name: value})

    def test_names_that_are_in_use(self):
        for name in RESERVED:
            with pytest.raises(
                ValueError, match=rf"`terms` must be named by .* other than .*, but got '{name}'"
            ):
                terms_of({name: Term(edges)})

    def test_every_log_key_and_weight_of_the_objective_is_reserved(
        self, make_loss, make_feature_discriminator, pair
    ):
        loss = make_loss(
            adversarial_loss_weight=Ramp(1.0, steps=1),
            quantizer_aux_loss_weight=Ramp(1.0, steps=1),
            gan={"feature_matching_loss_weight": 1, "lecam_loss_weight": 1},
            reconstruction={"learn_logvar": True},
            discr_3d_kwargs=make_feature_discriminator(),
        )
        logs = [loss(*pair, index, 1)[1] for index in (0, 1)]
        names = [name.removeprefix("train/") for log in logs for name in log]
        names += [term.weight_key for term in loss.schedule.schedules.values()]
        names = [name.removesuffix("_weight") for name in names]
        assert {name.removesuffix("_loss") for name in names if name.endswith("_loss")} == RESERVED

    @pytest.mark.parametrize(
        ("result", "got"), [(torch.ones(2), r"shape \(2,\)"), (1.0, r"1.0 \(float\)")]
    )
    def test_results_that_are_not_scalars(
        self, make_loss, make_discriminator, pair, result, got, monkeypatch
    ):
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

        def edges(*, reconstruction=None, target=None, weight=None, real=None):
            return result

        term = make_loss(perceptual_weight=0, terms={"mine": Term(edges)})
        pixels = make_loss(perceptual_weight=0, reconstruction={"loss": edges})
        options = {"discr_3d_kwargs": make_discriminator(), "grad_penalty_loss_weight": 1.0}
        penalty = make_loss(perceptual_weight=0, penalty={"kind": edges}, **options)
        for loss, index in ((term, 0), (pixels, 0), (penalty, 1)):
            message = rf"the result of edges must be a 0-d tensor, but got .*{got}.*`.mean\(\)`"
            with pytest.raises(ValueError, match=message):
                loss(*pair, index, 0)

    @pytest.mark.parametrize(
        ("setting", "function", "message"),
        [
            (
                "reconstruction.loss",
                lambda *, reconstruction, target: 0,
                "function of 'reconstruction', 'target', 'weight', but got <lambda>: .*unexpected .*'weight'",
            ),
            (
                "reconstruction.loss",
                nn.HuberLoss(),
                "function of 'reconstruction', 'target', 'weight', but got Huber",
            ),
            (
                "penalty.kind",
                lambda x, real: 0,
                "function of 'discriminator', 'real', .*got .*missing .*'x'. Give",
            ),
            (
                "gan.loss",
                lambda real, generated: 0,
                "function of 'real', 'fake', but got <lambda>: ",
            ),
            (
                "reconstruction.loss",
                Half,
                r"function or a module, .*Half.* \(type\). Pass `Half\(...\)` instead",
            ),
        ],
    )
    def test_parameters_of_other_functions(self, make_loss, setting, function, message):
        group, name = setting.split(".")
        with pytest.raises(ValueError, match=f"`{setting}` must be a {message}"):
            make_loss(perceptual_weight=0, **{group: {name: function}})

    def test_modules_whose_weights_nothing_would_train_or_move(self, make_loss):
        class Penalty(Half):
            def forward(self, real_logits):
                return self.factor * real_logits.mean()

        class GAN(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("scale", torch.ones(()))

            def forward(self, real, fake):
                return self.scale * fake

        class Pixels(Half):
            def forward(self, reconstruction, target, weight=None):
                return super().forward(reconstruction, target)

        for setting, module, contract in (
            (
                "reconstruction.loss",
                Pixels(),
                "without weights to train, but got Pixels. Freeze them, or use a term",
            ),
            (
                "penalty.kind",
                Penalty().requires_grad_(False),
                "without parameters and buffers, but got Penalty",
            ),
            ("gan.loss", GAN(), "without parameters and buffers, but got GAN"),
        ):
            group, name = setting.split(".")
            with pytest.raises(ValueError, match=f"`{setting}` must be {contract}"):
                make_loss(perceptual_weight=0, **{group: {name: module}})
        loss = make_loss(
            perceptual_weight=0, reconstruction={"loss": Pixels().requires_grad_(False)}
        )
        assert loss.double().recon_loss.factor.dtype == torch.float64

    def test_a_penalty_may_be_a_module(self, make_loss):
        class Own(nn.Module):
            def forward(self, real, real_logits):
                return real_logits.mean()

        penalty = make_loss(perceptual_weight=0, penalty={"kind": Own()}).penalty
        assert penalty.inputs == ("real", "real_logits")


MASK = torch.arange(4).view(1, 1, 4, 1, 1) < 1
WEIGHT = torch.tensor([1.0, 3.0])


def batch_of(**options):
    """Return a batch of black videos and their white reconstructions."""
    return make_batch(
        ObjectiveConfig(),
        torch.zeros(2, 3, 4, 8, 8),
        torch.ones(2, 3, 4, 8, 8),
        None,
        None,
        **options,
    )


class TestArguments:
    """What a function is called with: the arguments that it has parameters for."""

    def test_those_that_it_takes(self):
        inputs = {}

        def of_videos(*, reconstruction, target, **others):
            inputs.update(reconstruction=reconstruction, target=target, others=others)
            return torch.zeros(())

        batch = batch_of()
        compute_on_batch(term_of(Term(of_videos)), batch)
        assert inputs["reconstruction"] is batch.reconstruction
        assert inputs["target"] is batch.target
        assert inputs["others"] == {}

    @pytest.mark.parametrize("options", [{"mask": MASK}, {"sample_weight": WEIGHT}])
    def test_a_mask_or_weights_need_a_function_with_weights(self, options):
        with pytest.raises(
            ValueError,
            match="must be a function with the parameter `weight` if a call has `mask` or",
        ):
            compute_on_batch(term_of(Term(edges)), batch_of(**options))

    def test_frozen_weights_of_a_module_are_not_copied(self):
        batch = batch_of()
        module = WithBackbone()
        compute_on_batch(term_of(Term(module)), batch).backward()
        assert module.used is module.backbone.weight
        assert module.factor.grad == (batch.reconstruction - batch.target).abs().mean()

    def test_a_weight_accounts_for_the_fraction_of_a_mask_that_the_function_does_not_take(self):
        weights = {}

        def of_videos(*, reconstruction, weight):
            weights["without mask"] = weight
            return torch.zeros(())

        def of_masked_videos(*, reconstruction, sample_weight, mask):
            weights["with mask"] = sample_weight
            assert mask is MASK
            return torch.zeros(())

        def of_latents(
            *, latent, target, sample_weight=None
        ):  # as "alignment", whose error is not 0 where pixels are masked
            weights["without pixels"] = sample_weight
            return torch.zeros(())

        batch = batch_of(mask=MASK, sample_weight=WEIGHT, latent=torch.zeros(2, 4))
        for function in (of_videos, of_masked_videos, of_latents):
            compute_on_batch(term_of(Term(function)), batch)
        weights = {name: weight.tolist() for name, weight in weights.items()}
        assert weights == {"without mask": [4, 12], "with mask": [1, 3], "without pixels": [1, 3]}

    @pytest.mark.parametrize(
        ("function", "wrong", "right"),
        [
            (lambda reconstruction, weight, mask=None: weight, "weight", "sample_weight"),
            (lambda latent, weight: weight, "weight", "sample_weight"),
            (lambda reconstruction, sample_weight=None: 0, "sample_weight", "weight"),
        ],
    )
    def test_the_weight_of_another_scale_is_refused(self, function, wrong, right):
        message = rf"`terms\.edges\.target` must be a function with `weight` if it averages .*`{wrong}` to `{right}`"
        message += ", or set it by `params` if it is an option of yours"
        with pytest.raises(ValueError, match=message):
            term_of(Term(function))

    def test_the_weight_of_another_scale_beside_the_right_one_is_an_option(self):
        def function(latent, sample_weight, weight=2.0):
            return weight * latent.mean()

        remedy = "Remove its parameter `weight`, or set it by `params` if it is an option of yours"
        with pytest.raises(ValueError, match=remedy):
            term_of(Term(function))
        assert term_of(Term(function, params={"weight": 2.0})).arguments == (
            "sample_weight",
            "latent",
        )

    def test_the_weight_of_another_scale_in_a_class(self):
        """Its `params` are arguments of the class, not of its `forward`."""

        class Energy(torch.nn.Module):
            def forward(self, latent, weight=None):
                return latent.mean()

        with pytest.raises(
            ValueError, match=r"Rename its parameter `weight` to `sample_weight`\.$"
        ):
            term_of(Term(Energy))

    def test_features(self):
        def compare(*, reconstruction_features, target_features):
            return torch.zeros(())

        term = term_of(Term(compare))
        assert term.arguments == ("reconstruction_features", "target_features")
        assert term.reads_features
        assert term_of(Term(lambda *, target_features: 0)).reads_features
        assert not term_of(Term(edges)).reads_features


class TestLatent:
    """Terms of the latent are an ordinary part of the graph, up to the encoder."""

    def test_the_gradient_reaches_encoder_and_decoder(self, make_loss, autoencoder, clip):
        def energy(*, latent, decode, generator):
            return latent.square().mean() + decode(2 * latent).mean()

        real = clip()
        latent = autoencoder.encoder(real)
        fake = autoencoder.decoder(latent)
        loss = make_loss(perceptual_weight=0, terms={"energy": Term(energy, weight=0.1)})
        total_loss, log = loss(real, fake, 0, 0, latent=latent, decode=autoencoder.decoder)
        expected = latent.square().mean() + autoencoder.decoder(2 * latent).mean()
        torch.testing.assert_close(log["train/energy_loss"], expected.detach())
        weights = list(autoencoder.parameters())
        ours, theirs = (
            torch.autograd.grad(x, weights, retain_graph=True)
            for x in (total_loss, F.mse_loss(fake, real) + 0.1 * expected)
        )
        torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("missing", ["latent", "decode", "encode"])
    def test_a_call_without_them_is_an_error(self, make_loss, autoencoder, pair, missing):
        options = {
            "latent": pair[0],
            "decode": autoencoder.decoder,
            "encode": autoencoder.encoder,
            missing: None,
        }
        loss = make_loss(perceptual_weight=0, terms={"round_trip": 1.0})
        message = rf"`{missing}` must be given for round_trip, but got None. Pass `{missing}=` of the autoencoder"
        with pytest.raises(ValueError, match=message):
            loss(*pair, 0, 0, **options)

    @pytest.mark.parametrize(
        "latent", [torch.zeros(3, 4), torch.zeros(2, 4, dtype=torch.int64), "z"]
    )
    def test_a_latent_of_other_clips_is_an_error(self, make_loss, pair, latent):
        with pytest.raises(
            ValueError, match=r"`latent` must be a floating-point tensor of 2 clips on cpu, but got"
        ):
            make_loss(perceptual_weight=0)(*pair, 0, 0, latent=latent)

    def test_a_module_is_trained_and_saved(self, make_loss, pair):
        class Scaled(Half):
            def forward(self, reconstruction, target, scale=1.0):
                return scale * super().forward(reconstruction, target)

        built = {"target": Half, "params": {"factor": 2.0}}
        passed = {"target": Scaled(), "params": {"scale": 4.0}}
        for term in (built, passed):
            loss = make_loss(perceptual_weight=0, terms={"half": term})
            (factor,) = loss.get_trainable_autoencoder_parameters()
            assert loss.state_dict()["term_modules.half_loss.factor"] == factor
            total_loss, log = loss(*pair, 0, 0)
            torch.testing.assert_close(log["train/half_loss"], 2 * F.l1_loss(*pair).detach())
            total_loss.backward()
            torch.testing.assert_close(factor.grad, log["train/half_loss"] / factor.detach())

    def test_every_loss_builds_its_own_module(self, make_loss):
        config = make_loss(perceptual_weight=0, terms={"half": {"target": Half}}).config
        first, second = (VideoAutoencoderLoss(**config.arguments()) for _ in range(2))
        assert first.term_modules["half_loss"] is first.loss_terms["half"].function
        assert first.term_modules["half_loss"] is not second.term_modules["half_loss"]
        copied = copy.deepcopy(first)
        assert copied.term_modules["half_loss"] is copied.loss_terms["half"].function


class TestInTheLoss:
    def test_a_function_and_its_weight_are_all_that_a_term_needs(self, make_loss, pair):
        loss = make_loss(
            perceptual_weight=0, terms={"edges": Term(edges, weight=0.1, params={"power": 2.0})}
        )
        total_loss, log = loss(*pair, 0, 0)
        real, fake = pair
        value = edges(reconstruction=fake, target=real, power=2.0)
        torch.testing.assert_close(log["train/edges_loss"], value.detach())
        expected = F.mse_loss(fake, real) + 0.1 * value
        torch.testing.assert_close(total_loss, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(t, fake)[0] for t in (total_loss, expected))
        )

    def test_a_ramp_is_logged_and_a_term_of_weight_0_is_not_computed(self, make_loss, pair):
        calls = []

        def counted(*, reconstruction, target):
            calls.append(1)
            return edges(reconstruction=reconstruction, target=target)

        loss = make_loss(
            perceptual_weight=0,
            terms={"edges": {"target": counted, "weight": Ramp(2.0, 1, steps=2)}},
        )
        for step, weight in enumerate((0.0, 0.0, 1.0, 2.0)):
            calls.clear()
            total_loss, log = loss(*pair, 0, step)
            assert log["train/edges_loss_weight"] == weight
            assert len(calls) == (weight > 0) == ("train/edges_loss" in log)
            term = weight * log["train/edges_loss"] if weight else 0
            torch.testing.assert_close(total_loss.detach(), log["train/recon_loss"] + term)

    def test_features_of_the_sampled_frames(self, make_loss, pair):
        def gram_of(*, reconstruction_features, target_features):
            pairs = zip(reconstruction_features, target_features, strict=True)
            return sum(gram(reconstruction_features=[x], target_features=[y]) for x, y in pairs)

        terms = {"gram": 1.0, "mine": Term(gram_of, weight=2.0)}
        total_loss, log = make_loss(
            perceptual_weight=0, perceptual={"num_frames": "all"}, terms=terms
        )(*pair, 0, 0)
        assert log["train/gram_loss"] > 0
        torch.testing.assert_close(log["train/mine_loss"], log["train/gram_loss"])
        assert log["train/perceptual_loss"] == 0
        torch.testing.assert_close(
            total_loss.detach(), log["train/recon_loss"] + 3 * log["train/gram_loss"]
        )

    def test_the_loss_is_not_changed_by_a_term_of_weight_0_that_is_nan(self, make_loss, pair):
        def nan(*, reconstruction, target):
            return reconstruction.sum() * float("nan")

        total_loss, _ = make_loss(perceptual_weight=0, terms={"nan": Term(nan, weight=0)})(
            *pair, 0, 0
        )
        assert total_loss.isfinite()


def check(config, *, clips=CLIPS, sharding="none", max_dropped=0.0):
    check_functions(config, clips=clips, sharding=sharding, max_dropped=max_dropped)


class TestCheckFunctions:
    """What training checks before it reads any video."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"terms": {"x": Term("telecine.losses.edges")}},
                "`objective.terms.x.target` must be importable",
            ),
            (
                {"terms": {"x": Term(edges, params={"powr": 2})}},
                "`objective.terms.x.params` .*Did you mean `power`",
            ),
            (
                {"gan": GANConfig(loss="telecine.nothing")},
                "`objective.gan.loss` must be importable",
            ),
            (
                {"perceptual": PerceptualConfig("elsewhere.net")},
                "`objective.perceptual.net` must be in telecine or",
            ),
        ],
    )
    def test_settings_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            check(ObjectiveConfig(**options))

    def test_sharded_weights_and_a_term_that_decodes(self):
        config = ObjectiveConfig(terms={"wavelet": 1.0, "noise": Term("latent_noise")})
        check(config)
        message = (
            '`sharding` must be "none" with terms that decode or encode, but got fsdp2 with noise'
        )
        with pytest.raises(ValueError, match=message):
            check(config, sharding="fsdp2")

    def test_a_posterior_of_fewer_frames_than_the_latent(self):
        def likelihood(latent, posterior=None, sample_weight=None):
            return latent.mean()

        config = ObjectiveConfig(terms={"likelihood": Term(likelihood), "wavelet": 1.0})
        check(config)
        message = (
            "`predictive.max_dropped` must be 0 with terms that read the posterior, "
            "but got 0.5 with likelihood"
        )
        with pytest.raises(ValueError, match=message):
            check(config, max_dropped=0.5)

    @pytest.mark.parametrize(
        "term",
        [
            Term("gram"),
            Term("telecine.losses.perceptual.gram"),
            Term("telecine.losses.perceptual.lpips.gram"),
            Term("alignment", params={"latent_channels": 4}),
            Term("telecine.losses.perceptual.Alignment", params={"latent_channels": 4}),
            Term(lambda reconstruction_features, target_features: None),
        ],
    )
    def test_clips_without_colours_and_a_term_that_needs_rgb(self, term):
        config = ObjectiveConfig(terms={"wavelet": 1.0, "textures": term})
        check(config, clips=ClipConfig(channels="grey"))
        message = (
            "`clips.channels` must be grey, rgb or rgba for textures, but got 2 .*"
            "Remove textures from `objective.terms`"
        )
        with pytest.raises(ValueError, match=message):
            check(config, clips=ClipConfig(channels=2))
