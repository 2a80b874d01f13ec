"""Every value of every option: eager gradients equal those of a graph, an update equals two calls, bfloat16 trains."""

import inspect
from dataclasses import fields, is_dataclass
from functools import partial
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine import (
    Discriminator3DWithfirstframe,
    PatchDiscriminator,
    PatchDiscriminator3D,
    Ramp,
    VideoAutoencoderLoss,
)
from telecine.discriminators import FeatureDiscriminator
from telecine.losses import (
    GAN_LOSSES,
    GRAD_PENALTIES,
    RECONSTRUCTION_LOSSES,
    GANLosses,
    Penalty,
    approximate_r1,
    mse,
    r1,
)
from telecine.losses.perceptual import LPIPS
from telecine.objective.log import COGVIDEO_LOG
from telecine.objective.term_functions import TERM_FUNCTIONS
from telecine.settings import ObjectiveConfig, Term

IMAGE = {"dim": 1, "image_size": 16, "linear_attn_heads": 2}
VIDEO = {**IMAGE, "frame_num": 4}


def wasserstein(*, real, fake):
    return GANLosses(discriminator=fake.mean() - real.mean(), generator=-fake.mean())


def frame_distance(*, reconstruction, target):
    return F.l1_loss(reconstruction, target)


class CustomDistance(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, *, reconstruction, target):
        return (self.features(reconstruction) - self.features(target)).square().mean((1, 2, 3))


class CustomDiscriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(x).tanh().mean((1, 2, 3, 4))


class SmallDiscriminator(nn.Module):
    """One convolution of frames or videos, with one feature map and one logit per sample."""

    samples_are_independent = True

    def __init__(self, num_dims):
        super().__init__()
        conv = nn.Conv2d if num_dims == 2 else nn.Conv3d
        self.conv = conv(3, 4, 3, padding=1)
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        y = self.conv(x).tanh()
        return self.out(y.flatten(2).mean(2)).squeeze(1), (y,)


class Reparametrised(nn.Module):
    """A discriminator whose weight is a sum, and whose first parameter is added to the input."""

    samples_are_independent = True

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, 3, 1, 16, 16))
        self.base = nn.Parameter(0.2 * torch.randn(6, 3, 1, 3, 3))
        self.delta = nn.Parameter(torch.zeros(6, 3, 1, 3, 3))

    def forward(self, x):
        y = F.conv3d(x + self.positions, self.base + self.delta)
        return y.tanh().mean((1, 2, 3, 4))


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, frames):
        first = self.conv(frames).tanh()
        return [first, F.avg_pool2d(first, 2)]


class SmallFeatureDiscriminator(FeatureDiscriminator):
    def __init__(self):
        super().__init__(base_channels=2, net=SmallNet())


def frame_features(frames):
    return F.avg_pool2d(frames, 4)


ALIGNMENT = {"weight": 0.5, "params": {"latent_channels": 4, "net": frame_features}}
LATENT_TERMS = [
    name
    for name, term in TERM_FUNCTIONS.items()
    if "latent" in inspect.signature(getattr(term, "forward", term)).parameters
]
# Every term of the reference, so that each option has something to change.
BASE = {
    "disc_start": 0,
    "perceptual_weight": 0.7,
    "adversarial_loss_weight": 0.3,
    "multiscale_adversarial_loss_weight": 0.2,
    "grad_penalty_loss_weight": 1.5,
    "quantizer_aux_loss_weight": 0.9,
    "discr_kwargs": partial(SmallDiscriminator, 2),
    "discr_3d_kwargs": partial(SmallDiscriminator, 3),
    "multiscale_discr_kwargs": (partial(SmallDiscriminator, 3),),
}
WEIGHTS = (0, Ramp(0.5, steps=2), {"weight": 0.0, "initial": 0.5, "start": 1})
# The values of each option that differ from the base; a dot separates a group from its field.
OPTIONS = {
    "disc_start": (2,),
    "perceptual_weight": WEIGHTS,
    "adversarial_loss_weight": WEIGHTS,
    "multiscale_adversarial_loss_weight": WEIGHTS,
    "grad_penalty_loss_weight": WEIGHTS,
    "quantizer_aux_loss_weight": WEIGHTS,
    "discr_kwargs": (IMAGE, partial(PatchDiscriminator, base_channels=2)),
    "discr_3d_kwargs": (
        VIDEO,
        {"target": "telecine.PatchDiscriminator3D", "params": {"base_channels": 2}},
        partial(Discriminator3DWithfirstframe, **VIDEO),
        partial(Discriminator3DWithfirstframe, **VIDEO, time_weighting="frames"),
        partial(PatchDiscriminator3D, base_channels=2, norm="none"),
        partial(PatchDiscriminator3D, base_channels=2, norm="spectral"),
        CustomDiscriminator,
        Reparametrised,
        SmallFeatureDiscriminator,
    ),
    "multiscale_discr_kwargs": (
        (VIDEO, VIDEO),
        (partial(PatchDiscriminator, base_channels=2, num_layers=2),),
    ),
    "reconstruction.loss": ("l1", "charbonnier", mse),
    "reconstruction.nll_reduction": ("sum",),
    "reconstruction.learn_logvar": (True,),
    "perceptual.net": ("vgg", "alex", partial(LPIPS, "alex"), frame_distance, CustomDistance),
    "perceptual.num_frames": (3, "all"),
    "perceptual.chunk_size": (1, 3),
    "gan.loss": ("vanilla", "least_squares", "relativistic", wasserstein),
    "gan.disc_train_start": (1,),
    "gan.window": (2,),
    "gan.augment": (["color", "translation", "cutout"],),
    "gan.feature_matching_loss_weight": (0.5, *WEIGHTS[1:]),
    "gan.lecam_loss_weight": (0.5, *WEIGHTS[1:]),
    "penalty.kind": (
        "r1",
        "r2",
        "r1_and_r2",
        "wgan_gp",
        "approximate_r1",
        r1,
        Penalty(partial(approximate_r1, sigma=0.1), gradient_at="nowhere"),
    ),
    "penalty.every": (2,),
    "adaptive_weight.reference": ("recon_and_perceptual", "none"),
    "adaptive_weight.at": ("reconstruction",),
    "adaptive_weight.min_norm": (1e-8,),
    "adaptive_weight.max": (1.0,),
    "terms": (
        *({name: 0.5} for name in TERM_FUNCTIONS if name not in LATENT_TERMS),
        {name: 0.5 for name in LATENT_TERMS} | {"alignment": ALIGNMENT},
        *({"wavelet": Ramp(0.5, steps=2), "gram": {"weight": weight}} for weight in WEIGHTS[1:]),
        {"wavelet": {"weight": 0.5, "params": {"levels": 3}}},
        {"frames": Term(frame_distance, weight=0.1), "gram": 0.2, "temporal": 0.3, "wavelet": 0.4},
    ),
    "eager_gradients": (False,),
    "gradient_checkpointing": (True,),
}
# Settings that are computed in another way together than each alone.
COMBINATIONS = [
    {"grad_penalty_loss_weight": 0, "gan.loss": "relativistic"},
    {"grad_penalty_loss_weight": 0, "gan.loss": wasserstein},
    {
        "grad_penalty_loss_weight": 0,
        "gan.feature_matching_loss_weight": 0.5,
        "gan.lecam_loss_weight": 0.5,
    },
    {"penalty.kind": "r1", "gan.loss": "relativistic"},
    {"penalty.kind": "r1_and_r2", "gan.loss": "relativistic"},
    {
        "penalty.kind": "approximate_r1",
        "gan.loss": "relativistic",
        "gan.feature_matching_loss_weight": 0.5,
    },
    {
        "penalty.kind": "wgan_gp",
        "gan.lecam_loss_weight": 0.5,
        "gan.feature_matching_loss_weight": 0.5,
    },
    {"penalty.kind": "r2", "penalty.every": 2, "gan.lecam_loss_weight": Ramp(0.5, start=1)},
    {"penalty.kind": "r1", "discr_3d_kwargs": Reparametrised},
    {"adversarial_loss_weight": 0, "gan.feature_matching_loss_weight": 0.5},
    {
        "gan.feature_matching_loss_weight": 0.5,
        "discr_3d_kwargs": partial(PatchDiscriminator3D, base_channels=2, norm="none"),
        "multiscale_discr_kwargs": (partial(PatchDiscriminator, base_channels=2, num_layers=2),),
    },
    {"gan.window": 2, "gan.feature_matching_loss_weight": 0.5},
]
PATCH_DISCRIMINATORS = {
    "discr_kwargs": partial(PatchDiscriminator, base_channels=2, num_layers=2),
    "discr_3d_kwargs": partial(PatchDiscriminator3D, base_channels=2, num_layers=2),
    "multiscale_discr_kwargs": (partial(PatchDiscriminator3D, base_channels=2, num_layers=2),),
}
# Values after which others change nothing, or that need other settings: each has a case of its own.
ALONE = (
    "disc_start",
    "multiscale_discr_kwargs",
    "gan.disc_train_start",
    "perceptual.net",
    "perceptual.chunk_size",
    "adaptive_weight.",
    "eager_gradients",
    "gradient_checkpointing",
)
# What is decided anew in an update, or differs with the step.
OF_AN_UPDATE = (
    "disc",
    "adv",
    "multi",
    "grad_penalty",
    "gan.",
    "penalty.",
    "adaptive_weight.",
    "gradient_checkpointing",
    "eager_gradients",
)
OF_A_STEP = ("disc_start", "gan.disc_train_start", "penalty.every")


def cases_of(options, combinations=()):
    """Parametrize with the settings of each case: the base, one value, or one value of each option that has more."""
    cases = [{}]
    constant = []
    with_steps = []
    for name, values in options.items():
        for value in values:
            if name.startswith(ALONE) or value == 0:
                cases.append({name: value})
                continue
            together = with_steps if changes(name, value) else constant
            case = next((case for case in together if name not in case), None)
            if case is None:
                case = {}
                together.append(case)
            case[name] = value
    cases += constant + with_steps
    covered = [(name, str(value)) for case in cases for name, value in case.items()]
    assert sorted(covered) == sorted(
        (name, str(value)) for name, values in options.items() for value in values
    )
    cases += combinations
    return pytest.mark.parametrize(
        "case", cases, ids=[f"{index}-{'-'.join(case)[:60]}" for index, case in enumerate(cases)]
    )


def made(value):
    """Return the value of a case; classes and partial functions are called, so that each test has its own object."""
    if isinstance(value, tuple):
        return [made(item) for item in value]
    is_class = isinstance(value, type) or (
        isinstance(value, partial) and isinstance(value.func, type)
    )
    return value() if is_class else value


def changes(name, value):
    """Return whether a value depends on the step."""
    if name == "terms":
        return "gram" in value
    return (name.endswith("_weight") and value != 0) or name in OF_A_STEP


def steps_of(case):
    """Return the steps to run: at 0, ramps are at their start; at 3, at their end."""
    return (0, 3) if any(changes(name, value) for name, value in case.items()) else (0,)


@pytest.fixture
def build(vgg, narrow_lpips, cached_weights):
    """Return a function that builds the loss of a case: LPIPS is narrow unless the case is about the network."""

    def make(case, **more):
        torch.default_generator.manual_seed(0)
        settings = {**BASE, **more}
        if "gradient_checkpointing" in case:
            settings |= PATCH_DISCRIMINATORS
        settings = {name: made(value) for name, value in settings.items()}
        settings["perceptual"] = {"net": narrow_lpips}
        if "perceptual.chunk_size" in case:
            settings["perceptual"]["num_frames"] = "all"
        for name, value in case.items():
            group, _, field = name.partition(".")
            if field:
                settings.setdefault(group, {})[field] = made(value)
            else:
                settings[name] = made(value)
        if case.get("perceptual.net") == "vgg":
            settings["vgg_weights"] = vgg
        return VideoAutoencoderLoss(**settings)

    return make


def clip_of(case, clip, frames=3, dtype=torch.float64):
    size = 32 if "perceptual.net" in case else 16  # the smallest of AlexNet is 31
    return clip((2, 3, frames, size, size), dtype=dtype)


def literals(hint):
    """Return all values that a type hint lists."""
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return set().union(*(literals(part) for part in get_args(hint)))
    return set()


def test_every_option_has_all_of_its_values_here():
    options = {"discr_kwargs", "discr_3d_kwargs", "multiscale_discr_kwargs"}
    words = {}
    for setting in fields(ObjectiveConfig):
        group = getattr(ObjectiveConfig(), setting.name)
        if not is_dataclass(group):
            options.add(setting.name)
            continue
        hints = get_type_hints(type(group))
        for field in fields(group):
            name = f"{setting.name}.{field.name}"
            options.add(name)
            words[name] = literals(hints[field.name])
            assert words[name] <= {
                getattr(group, field.name),
                *(v for v in OPTIONS[name] if isinstance(v, str)),
            }, name
    assert options == set(OPTIONS)
    assert set(RECONSTRUCTION_LOSSES) == words["reconstruction.loss"]
    assert set(GAN_LOSSES) == words["gan.loss"]
    assert set(GRAD_PENALTIES) == words["penalty.kind"]
    assert sum(len(values) for values in words.values()) == 23


def call(run, autoencoder, real, *arguments):
    """Call a loss, or its update, with all that it can use."""
    latent = autoencoder.encoder(real)
    aux = {"kl_loss": autoencoder.encoder.weight.square().mean(), "codebook_loss": 0.1}
    options = {
        "last_layer": autoencoder.last_layer,
        "latent": latent,
        "decode": autoencoder.decoder,
        "encode": autoencoder.encoder,
    }
    return run(real, autoencoder.decoder(latent), *arguments, aux, **options)


def results_of(loss, autoencoder, real, step, *, in_update=False, autocast=None, scale=1.0):
    """Return total, log and gradients of each step, from one update or two calls."""
    torch.default_generator.manual_seed(step)
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        if in_update:
            both = call(loss.both_losses, autoencoder, real, step)
            calls = [(both.loss, both.log), (both.disc_loss, both.disc_log)]
            for index, (_, log) in enumerate(calls):
                for name in COGVIDEO_LOG[index]:  # an update leaves out what it does not compute
                    log.setdefault(f"train/{name}", torch.zeros(()))
        else:
            calls = [call(loss, autoencoder, real, index, step) for index in (0, 1)]
    results = []
    for total, log in calls:
        autoencoder.zero_grad()
        loss.zero_grad()
        (scale * total).backward()
        parameters = [*autoencoder.parameters(), *loss.parameters()]
        gradients = [
            None if parameter.grad is None else parameter.grad / scale for parameter in parameters
        ]
        results.append((total.detach(), log, gradients))
    return results


def assert_same(ours, theirs, rtol=1e-5, atol=1e-8):
    for (total, log, gradients), (total_2, log_2, gradients_2) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(total, total_2, rtol=rtol, atol=atol)
        torch.testing.assert_close(
            log, log_2, rtol=max(rtol, 1e-6), atol=max(atol, 1e-6)
        )  # logs are float32
        torch.testing.assert_close(gradients, gradients_2, rtol=rtol, atol=atol)


@pytest.mark.slow
@pytest.mark.usefixtures("no_shape_checks")  # tests of each function have them
@cases_of(
    {**OPTIONS, "eager_gradients": (), "perceptual.net": (frame_distance, CustomDistance)},
    COMBINATIONS,
)
def test_eager_gradients_are_those_of_a_graph(case, build, autoencoder, clip):
    """In float64; adaptive weights are ratios of float32 norms."""
    autoencoder.double()
    real = clip_of(case, clip)
    eager = build(case).double()
    graph = build(case, eager_gradients=False).double()
    for step in steps_of(case):
        assert_same(
            results_of(eager, autoencoder, real, step), results_of(graph, autoencoder, real, step)
        )


@pytest.mark.slow
@pytest.mark.usefixtures("no_shape_checks")
@cases_of(
    {
        name: values
        for name, values in OPTIONS.items()
        if name.startswith(OF_AN_UPDATE) and name != "gan.augment"
    },
    [case for case in COMBINATIONS if "gan.window" not in case],
)
def test_an_update_is_two_calls(case, build, autoencoder, clip):
    """With one frame per clip, since discriminators of frames would see others; spectral norms change in each pass.

    Of augmentations, `test_gan.py` tests it: two calls draw two.
    """
    autoencoder.double()
    real = clip_of(case, clip, frames=1)
    first = build(case).double().eval()
    second = build(case).double().eval()
    for step in steps_of(case):
        update = results_of(first, autoencoder, real, step, in_update=True)
        assert_same(update, results_of(second, autoencoder, real, step))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_eager_gradients_under_autocast(autocast, build, autoencoder, clip):
    """In float16 the autoencoder's graph is an ordinary one, for the caller's loss scale."""
    real = clip_of({}, clip, dtype=torch.float32)
    results = []
    for eager in (True, False):
        loss = build({"penalty.every": 2}, eager_gradients=eager)
        results.append(results_of(loss, autoencoder, real, 1, autocast=autocast, scale=2.0**12))
    assert_same(*results, rtol=2e-2 if autocast else 1e-4, atol=1e-2 if autocast else 1e-5)


@pytest.mark.slow
@cases_of({name: values for name, values in OPTIONS.items() if not name.endswith("_weight")})
def test_bfloat16_autocast_trains_both_networks(case, build, autoencoder, clip):
    loss = build(case)
    real = clip_of(case, clip, dtype=torch.float32)
    for step in steps_of(case):
        with torch.autocast("cpu", torch.bfloat16):
            total, log = call(loss, autoencoder, real, 0, step)
        check_finite(total, log)
        optimizer_step(
            total, [*autoencoder.parameters(), *loss.get_trainable_autoencoder_parameters()]
        )
        assert all(parameter.grad is None for parameter in loss.get_trainable_parameters())
        with torch.autocast("cpu", torch.bfloat16):
            total, log = loss(real, autoencoder(real).detach(), 1, step)
        check_finite(total, log)
        if loss.schedule.at(step).discriminators_train:
            optimizer_step(total, loss.get_trainable_parameters())


def check_finite(total, log):
    assert total.dtype == torch.float32
    assert total.isfinite()
    assert log
    for name, value in log.items():
        assert value.isfinite(), name
        assert value.dtype == torch.float32, name


def optimizer_step(total, parameters):
    """Check every gradient and subtract a multiple of it."""
    total.backward()
    assert any((parameter.grad != 0).any() for parameter in parameters)
    assert all(parameter.grad.isfinite().all() for parameter in parameters)
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    optimizer.step()
    optimizer.zero_grad()
