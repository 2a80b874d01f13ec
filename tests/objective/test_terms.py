"""Additional terms: how they are given, what their functions are called with, and the terms that are built in."""

import copy

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine import Ramp, VideoAutoencoderLoss
from telecine.losses import (
    equivariance,
    latent_masking,
    latent_noise,
    local_correlation,
    scale_equivariance,
    temporal_difference,
    wavelet_l1,
)
from telecine.losses.perceptual import Alignment, gram
from telecine.objective.batch import make_batch
from telecine.objective.terms import TERMS, build_terms, check_functions, compute_on_batch
from telecine.objective.weights import Weights
from telecine.settings import GANConfig, ObjectiveConfig, PenaltyConfig, PerceptualConfig, ReconstructionConfig, Term
from telecine.settings.validate import validate

RESERVED = (
    *("total", "recon", "perceptual", "nll", "gen", "adversarial", "multiscale_adversarial", "feature_matching"),
    *("quantizer_aux", "total_disc", "discr", "grad_penalty", "lecam"),
)


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


class TestForms:
    @pytest.mark.parametrize(
        ("value", "function", "weight"),
        [
            (0.5, wavelet_l1, 0.5),
            (2, wavelet_l1, 2),
            (Ramp(0.5, steps=2), wavelet_l1, Ramp(0.5, steps=2)),
            ({"weight": 0.5}, wavelet_l1, 0.5),
            ({"weight": {"weight": 0.5, "start": 3}}, wavelet_l1, Ramp(0.5, start=3)),
            ({"target": "temporal"}, temporal_difference, 1.0),
            ({"target": "telecine.losses.temporal_difference", "weight": 2}, temporal_difference, 2),
            ({"target": edges}, edges, 1.0),
            (Term(edges, weight=0.1), edges, 0.1),
            (Term("gram"), gram, 1.0),
            (Term(weight=0.5), wavelet_l1, 0.5),
        ],
    )
    def test_each(self, value, function, weight):
        config = validate(ObjectiveConfig, {"terms": {"wavelet": value}})
        assert build_terms(config)["wavelet"].function is function
        assert config.named_terms["wavelet"].weight == weight
        assert config.term_schedules()["wavelet"].setting == "terms.wavelet.weight"

    def test_parameters(self):
        term = term_of({"target": edges, "params": {"power": 2.0}})
        assert term.function is edges
        assert term.params == {"power": 2.0}
        assert term.arguments == ("reconstruction", "target")
        assert term_of(Term("wavelet", params={"levels": 2})).params == {"levels": 2}

    def test_the_built_in_ones(self):
        assert {
            "wavelet": wavelet_l1,
            "temporal": temporal_difference,
            "gram": gram,
            "equivariance": equivariance,
            "scale_equivariance": scale_equivariance,
            "local_correlation": local_correlation,
            "latent_masking": latent_masking,
            "latent_noise": latent_noise,
            "alignment": Alignment,
        } == TERMS
        functions = {name: function for name, function in TERMS.items() if not isinstance(function, type)}
        assert len(functions) == 8
        assert {name: term.function for name, term in terms_of(dict.fromkeys(functions, 1.0)).items()} == functions


class TestMistakes:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            (
                "edgez",
                0.5,
                r"`terms.edgez.target` must be one of 'wavelet', 'temporal', .*, or the dotted path .*'edgez'.*Use",
            ),
            ("wavelets", 0.5, r"must be one of .*but got 'wavelets' \(str\). Did you mean `wavelet`\?"),
            (
                "x",
                {"target": "nowhere.edges"},
                r"`terms.x.target` must be in telecine or .*'nowhere.edges'. If",
            ),
            (
                "x",
                {"target": "telecine.x.edges"},
                r"'telecine.x.edges'. No module named 'telecine.x'. Check",
            ),
            (
                "x",
                {"target": lambda **kwargs: 0},
                r"`terms.x.target` must be a function of .*one of none",
            ),
            ("x", {"target": "telecine.losses.edges"}, r"`terms.x.target` must be .*telecine.losses has no `edges`"),
            (
                "x",
                {"target": "telecine.losses"},
                r"`terms.x.target` must be one of .*, or the dotted path of a function, but got <module .*\(module\)",
            ),
            ("x", {"target": edges, "wieght": 1}, r"`terms.x.wieght` is not a setting. Did you mean `terms.x.weight`"),
            ("x", {"target": edges, "weight": -1}, r"`terms.x.weight` must be at least 0, but got -1"),
            ("wavelet", -1, r"`terms.wavelet` must be at least 0, but got -1"),
            ("wavelet", "much", r"`terms.wavelet` must be a number, but got 'much'"),
            ("x", edges, r"`terms.x` must be a number, but got <function"),
            ("x", {"target": Ramp}, r"`terms.x.target` must be a function, a module or a .*Pass an instance, `Ramp\("),
            (
                "x",
                {"target": Half, "params": {"facto": 2}},
                r"`terms.x.params` must be arguments of Half, but got 'facto'. Did you mean `factor`",
            ),
            (
                "alignment",
                0.5,
                r"`terms.alignment.params` must be all required arguments of Alignment, .* missing .*'latent_channels'",
            ),
            (
                "x",
                {"target": "wavelet", "params": {"level": 2}},
                r"`terms.x.params` must be arguments of wavelet_l1, but got 'level'. Did you mean `levels`",
            ),
            ("two words", {"target": edges}, r"`terms` must be named by an identifier .*but got 'two words'. Rename"),
        ],
    )
    def test_each(self, name, value, message):
        with pytest.raises(ValueError, match=message):
            terms_of({name: value})

    @pytest.mark.parametrize("name", RESERVED)
    def test_names_that_are_in_use(self, name):
        with pytest.raises(ValueError, match=rf"`terms` must be named by .* other than .*, but got '{name}'"):
            terms_of({name: Term(edges)})

    def test_every_log_key_and_weight_of_the_objective_is_reserved(self, make_loss, make_feature_discriminator, pair):
        loss = make_loss(
            adversarial_loss_weight=Ramp(1.0, steps=1),
            quantizer_aux_loss_weight=Ramp(1.0, steps=1),
            gan={"feature_matching_loss_weight": 1, "lecam_loss_weight": 1},
            reconstruction={"learn_logvar": True},
            discr_3d_kwargs=make_feature_discriminator(),
        )
        logs = [loss(*pair, index, 1)[1] for index in (0, 1)]
        names = [name.removeprefix("train/") for log in logs for name in log]
        names += [term.weight_key for term in loss.schedule.terms.values()]
        names = [name.removesuffix("_weight") for name in names]
        assert {name.removesuffix("_loss") for name in names if name.endswith("_loss")} == set(RESERVED)

    @pytest.mark.parametrize(
        ("function", "needed"),
        [
            (lambda *, reconstruction, target, codes: 0, "'codes'"),
            (lambda x, y: 0, "'x', 'y'"),
            (lambda *, reconstruction_features, target: 0, "'target'"),
        ],
    )
    def test_functions_that_need_other_arguments(self, function, needed):
        contract = "`terms.edges.target` must be a function of 'reconstruction', 'target', "
        message = rf"{contract}.*but got one that needs {needed}. Give"
        with pytest.raises(ValueError, match=message):
            term_of(Term(function))

    @pytest.mark.parametrize(("result", "got"), [(torch.ones(2), r"shape \(2,\)"), (1.0, r"1.0 \(float\)")])
    def test_results_that_are_not_scalars(self, make_loss, pair, result, got):
        def edges(*, reconstruction, target):
            return result

        loss = make_loss(perceptual_weight=0, terms={"mine": Term(edges)})
        message = rf"`the result of edges` must be a 0-d tensor, but got .*{got}.*`.mean\(\)`"
        with pytest.raises(ValueError, match=message):
            loss(*pair, 0, 0)

    @pytest.mark.parametrize("result", [torch.ones(2), 1.0])
    def test_results_of_a_pixel_loss_and_a_penalty(self, make_loss, pair, result, monkeypatch):
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

        def mine(**arguments):
            return result

        of_pixels = make_loss(perceptual_weight=0, reconstruction={"loss": mine})
        options = {"discr_kwargs": nn.Flatten(), "adversarial_loss_weight": 1.0, "grad_penalty_loss_weight": 1.0}
        of_gradients = make_loss(perceptual_weight=0, penalty={"kind": mine}, **options)
        for loss, index in ((of_pixels, 0), (of_gradients, 1)):
            with pytest.raises(ValueError, match="`the result of mine` must be a 0-d tensor, but got "):
                loss(*pair, index, 0)

    @pytest.mark.parametrize(
        ("setting", "function", "message"),
        [
            (
                "reconstruction.loss",
                lambda *, reconstruction, target: 0,
                "function of 'reconstruction', 'target', 'weight', but got <lambda>: .*unexpected .*'weight'",
            ),
            ("reconstruction.loss", nn.HuberLoss(), "function of 'reconstruction', 'target', 'weight', but got Huber"),
            ("penalty.kind", lambda x, real: 0, "function of 'discriminator', 'real', .*got .*missing .*'x'. Give"),
            ("gan.loss", lambda real, generated: 0, "function of 'real', 'fake', but got <lambda>: "),
            *(
                (setting, Half, r"function or a module, but got .*Half.* \(type\). Pass `Half\(...\)` instead")
                for setting in ("reconstruction.loss", "gan.loss", "penalty.kind")
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
            ("reconstruction.loss", Pixels(), "without weights to train, but got Pixels. Freeze them, or use a term"),
            ("penalty.kind", Penalty().requires_grad_(False), "without parameters and buffers, but got Penalty"),
            ("gan.loss", GAN(), "without parameters and buffers, but got GAN"),
        ):
            group, name = setting.split(".")
            with pytest.raises(ValueError, match=f"`{setting}` must be {contract}"):
                make_loss(perceptual_weight=0, **{group: {name: module}})
        loss = make_loss(perceptual_weight=0, reconstruction={"loss": Pixels().requires_grad_(False)})
        assert loss.double().recon_loss.factor.dtype == torch.float64

    def test_a_penalty_may_be_a_module(self, make_loss):
        class Own(nn.Module):
            def forward(self, real, real_logits):
                return real_logits.mean()

        penalty = make_loss(perceptual_weight=0, penalty={"kind": Own()}).penalty
        assert penalty.inputs == ("real", "real_logits")


OPTIONS = {"mask": torch.arange(4).view(1, 1, 4, 1, 1) < 1, "sample_weight": torch.tensor([1.0, 3.0])}


class TestArguments:
    """What a function is called with: the arguments that it has parameters for."""

    def call(self, function, **options):
        given = {}
        real, fake = torch.zeros(2, 3, 4, 8, 8), torch.ones(2, 3, 4, 8, 8)
        batch = make_batch(ObjectiveConfig(), real, fake, None, None, **options)
        compute_on_batch(term_of(Term(function(given))), batch)
        return given, batch

    def test_both_videos(self):
        def function(given):
            return lambda *, reconstruction, target: given.update(r=reconstruction, t=target) or torch.zeros(())

        given, batch = self.call(function)
        assert given["r"] is batch.fake
        assert given["t"] is batch.real

    @pytest.mark.parametrize("option", OPTIONS)
    def test_a_mask_or_weights_need_a_function_with_weights(self, option):
        def function(given):
            return lambda *, reconstruction, target, mask=None: torch.zeros(())

        with pytest.raises(ValueError, match="must be a function with the parameter `weight` if a call has `mask` or"):
            self.call(function, **{option: OPTIONS[option]})

    def test_a_module(self):
        _, batch = self.call(lambda given: lambda reconstruction: torch.zeros(()))
        for term in map(term_of, (Term(Half()), Term(Half, params={"factor": 0.5}))):
            assert compute_on_batch(term, batch) == 0.5 * (batch.fake - batch.real).abs().mean()

    def test_frozen_weights_of_a_module_are_not_copied(self):
        _, batch = self.call(lambda given: lambda reconstruction: torch.zeros(()))
        module = WithBackbone()
        compute_on_batch(term_of(Term(module)), batch).backward()
        assert module.used is module.backbone.weight
        assert module.factor.grad == (batch.fake - batch.real).abs().mean()

    def test_without_the_mask_a_weight_accounts_for_its_fraction(self):
        def function(given):
            return lambda reconstruction, target, weight: given.update(w=weight) or torch.zeros(())

        assert self.call(function, **OPTIONS)[0]["w"].tolist() == [4, 12]
        assert self.call(function)[0]["w"] is None

    def test_with_the_mask_a_weight_does_not(self):
        def function(given):
            return lambda target, *, weight, mask, other=3: given.update(w=weight, m=mask) or torch.zeros(())

        given, _ = self.call(function, **OPTIONS)
        assert given["w"].tolist() == [1, 3]
        assert given["m"] is OPTIONS["mask"]

    def test_variadic_parameters_get_nothing(self):
        def function(given):
            return lambda *args, target, **kwargs: given.update(a=args, k=kwargs) or torch.zeros(())

        assert self.call(function)[0] == {"a": (), "k": {}}

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

    @pytest.mark.parametrize("missing", ["latent", "decode"])
    def test_a_call_without_them_is_an_error(self, make_loss, autoencoder, pair, missing):
        given = {"latent": pair[0], "decode": autoencoder.decoder, missing: None}
        loss = make_loss(perceptual_weight=0, terms={"latent_noise": 1.0})
        message = rf"`{missing}` must be given for latent_noise, but got None. Pass `{missing}=` of the autoencoder"
        with pytest.raises(ValueError, match=message):
            loss(*pair, 0, 0, **given)

    @pytest.mark.parametrize("latent", [torch.zeros(3, 4), torch.zeros(2, 4, dtype=torch.int64), "z"])
    def test_a_latent_of_other_clips_is_an_error(self, make_loss, pair, latent):
        with pytest.raises(ValueError, match=r"`latent` must be a floating-point tensor of 2 clips on cpu, but got"):
            make_loss(perceptual_weight=0)(*pair, 0, 0, latent=latent)

    def test_sample_weights_without_the_mask_for_what_does_not_look_at_pixels(self):
        seen = {}

        def energy(*, latent, target, weight=None):  # as "alignment", whose error is not 0 where pixels are masked out
            seen["weight"] = weight
            return latent.mean()

        real, fake, latent = torch.zeros(2, 3, 4, 8, 8), torch.ones(2, 3, 4, 8, 8), torch.zeros(2, 4)
        batch = make_batch(ObjectiveConfig(), real, fake, None, None, latent=latent, **OPTIONS)
        compute_on_batch(term_of(Term(energy)), batch)
        assert seen["weight"].tolist() == [1, 3]

    def test_the_weights_of_a_module_are_trained_and_saved(self, make_loss, pair):
        loss = make_loss(perceptual_weight=0, terms={"half": {"target": Half, "params": {"factor": 2.0}}})
        (factor,) = loss.get_trainable_autoencoder_parameters()
        assert loss.state_dict()["term_modules.half_loss.factor"] == 2
        total_loss, log = loss(*pair, 0, 0)
        total_loss.backward()
        torch.testing.assert_close(factor.grad, log["train/half_loss"] / 2)
        assert loss._ddp_params_and_buffers_to_ignore == [
            "term_modules.half_loss.factor",
            ".term_modules.half_loss.factor",
        ]

    def test_a_module_gets_its_params_and_is_trained(self, make_loss, pair):
        class Scaled(Half):
            def forward(self, reconstruction, target, scale=1.0):
                return scale * super().forward(reconstruction, target)

        loss = make_loss(perceptual_weight=0, terms={"half": {"target": Scaled(), "params": {"scale": 4.0}}})
        (factor,) = loss.get_trainable_autoencoder_parameters()
        total_loss, log = loss(*pair, 0, 0)
        total_loss.backward()
        torch.testing.assert_close(factor.grad, log["train/half_loss"] / 0.5)
        torch.testing.assert_close(log["train/half_loss"], 2 * F.l1_loss(*pair))

    def test_every_loss_builds_its_own_module(self, make_loss):
        config = make_loss(perceptual_weight=0, terms={"half": {"target": Half}}).config
        first, second = (VideoAutoencoderLoss(**config.arguments()) for _ in range(2))
        assert first.term_modules["half_loss"] is first.terms["half"].function
        assert first.term_modules["half_loss"] is not second.term_modules["half_loss"]
        copied = copy.deepcopy(first)
        assert copied.term_modules["half_loss"] is copied.terms["half"].function


class TestInTheLoss:
    def test_a_function_and_its_weight_are_all_that_a_term_needs(self, make_loss, pair):
        loss = make_loss(perceptual_weight=0, terms={"edges": Term(edges, weight=0.1, params={"power": 2.0})})
        total_loss, log = loss(*pair, 0, 0)
        real, fake = pair
        expected = edges(reconstruction=fake, target=real, power=2.0)
        torch.testing.assert_close(log["train/edges_loss"], expected.detach())
        torch.testing.assert_close(total_loss, F.mse_loss(fake, real) + 0.1 * expected)
        gradients = [torch.autograd.grad(t, fake)[0] for t in (total_loss, F.mse_loss(fake, real) + 0.1 * expected)]
        torch.testing.assert_close(*gradients)

    def test_a_ramp_is_logged_and_a_term_of_weight_0_is_not_computed(self, make_loss, pair):
        calls = []

        def counted(*, reconstruction, target):
            calls.append(1)
            return edges(reconstruction=reconstruction, target=target)

        loss = make_loss(perceptual_weight=0, terms={"edges": {"target": counted, "weight": Ramp(2.0, 1, steps=2)}})
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
        total_loss, log = make_loss(perceptual_weight=0, perceptual={"num_frames": "all"}, terms=terms)(*pair, 0, 0)
        assert log["train/gram_loss"] > 0
        torch.testing.assert_close(log["train/mine_loss"], log["train/gram_loss"])
        assert log["train/perceptual_loss"] == 0
        torch.testing.assert_close(total_loss.detach(), log["train/recon_loss"] + 3 * log["train/gram_loss"])

    def test_the_loss_is_not_changed_by_a_term_of_weight_0_that_is_nan(self, make_loss, pair):
        def nan(*, reconstruction, target):
            return reconstruction.sum() * float("nan")

        total_loss, _ = make_loss(perceptual_weight=0, terms={"nan": Term(nan, weight=0)})(*pair, 0, 0)
        assert total_loss.isfinite()


def test_weighted():
    nan = torch.tensor(float("nan"))
    weights = Weights({"first": 2.0, "off": 0.0, "last": 0.5}, ramps={}, discriminators_train=True)
    assert weights.sum({"first": torch.tensor(3.0), "off": nan, "last": torch.tensor(4.0)}).item() == 8
    assert weights.sum({}) == 0


def test_terms_are_a_dict():
    with pytest.raises(ValueError, match="`terms` must be a group"):
        validate(ObjectiveConfig, {"terms": [Term(edges)]})


class TestCheckFunctions:
    """What training checks before it reads any video."""

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (
                ObjectiveConfig(terms={"x": Term("telecine.losses.edges")}),
                r"`objective.terms.x.target` must be importable",
            ),
            (
                ObjectiveConfig(terms={"x": Term(edges, params={"powr": 2})}),
                r"`objective.terms.x.params` must be arguments of edges, but got 'powr'. Did you mean `power`",
            ),
            (ObjectiveConfig(gan=GANConfig(loss="telecine.nothing")), "`objective.gan.loss` must be importable"),
            (ObjectiveConfig(penalty=PenaltyConfig("telecine.nothing")), "`objective.penalty.kind` must be importable"),
            (
                ObjectiveConfig(reconstruction=ReconstructionConfig("telecine.nothing")),
                "`objective.reconstruction.loss` must be importable",
            ),
            (
                ObjectiveConfig(perceptual=PerceptualConfig("elsewhere.net")),
                "`objective.perceptual.net` must be in telecine or in a package that you allow",
            ),
        ],
    )
    def test_each_setting_is_named(self, config, message):
        with pytest.raises(ValueError, match=message):
            check_functions(config, sharding="none")

    def test_sharded_weights_and_a_term_that_decodes(self):
        config = ObjectiveConfig(terms={"wavelet": 1.0, "noise": Term("latent_noise")})
        check_functions(config, sharding="none")
        message = '`sharding` must be "none" with terms that decode, but got fsdp2 with noise. Leave the term out'
        with pytest.raises(ValueError, match=message):
            check_functions(config, sharding="fsdp2")
