"""Every value of every option: eager gradients equal those of a graph, an update equals two calls, bfloat16 trains."""

import inspect
from dataclasses import fields
from functools import partial
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine import Discriminator3DWithfirstframe, PatchDiscriminator, PatchDiscriminator3D, Ramp, VideoAutoencoderLoss
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
from telecine.objective.terms import TERMS
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
        self.conv, self.out = conv(3, 4, 3, padding=1), nn.Linear(4, 1)

    def forward(self, x):
        y = self.conv(x).tanh()
        return self.out(y.flatten(2).mean(2)).squeeze(1), (y,)


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, frames):
        first = self.conv(frames).tanh()
        return [first, F.avg_pool2d(first, 2)]


class SmallFeatureDiscriminator(FeatureDiscriminator):
    def __init__(self):
        super().__init__(dim=2, net=SmallNet())


def frame_features(frames):
    return F.avg_pool2d(frames, 4)


ALIGNMENT = {"weight": 0.5, "params": {"latent_channels": 4, "net": frame_features}}
PARAMETERS = {name: inspect.signature(getattr(term, "forward", term)).parameters for name, term in TERMS.items()}
LATENT_TERMS = [name for name, parameters in PARAMETERS.items() if "latent" in parameters]
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
    "discr_kwargs": (IMAGE, partial(PatchDiscriminator, dim=2)),
    "discr_3d_kwargs": (
        VIDEO,
        {"target": "telecine.PatchDiscriminator3D", "params": {"dim": 2}},
        partial(Discriminator3DWithfirstframe, **VIDEO),
        partial(Discriminator3DWithfirstframe, **VIDEO, time_weighting="frames"),
        partial(PatchDiscriminator3D, dim=2, norm="none"),
        partial(PatchDiscriminator3D, dim=2, norm="spectral"),
        CustomDiscriminator,
        SmallFeatureDiscriminator,
    ),
    "multiscale_discr_kwargs": ((VIDEO, VIDEO), (partial(PatchDiscriminator, dim=2, num_layers=2),)),
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
        *("r1", "r2", "r1_and_r2", "wgan_gp", "approximate_r1"),
        r1,
        Penalty(
            partial(approximate_r1, sigma=0.1),
            differentiates_real=False,
            differentiates_fake=False,
            double_backward=False,
            uses_fake=False,
        ),
    ),
    "penalty.every": (2,),
    "adaptive_weight.reference": ("recon_and_perceptual", "none"),
    "adaptive_weight.at": ("reconstruction",),
    "adaptive_weight.min_norm": (1e-8,),
    "adaptive_weight.max": (1.0,),
    "terms": (
        *({name: 0.5} for name in TERMS if name not in LATENT_TERMS),
        {name: 0.5 for name in LATENT_TERMS} | {"alignment": ALIGNMENT},
        *({"wavelet": Ramp(0.5, steps=2), "gram": {"weight": weight}} for weight in WEIGHTS[1:]),
        {"wavelet": {"weight": 0.5, "params": {"levels": 3}}},
        {"frames": Term(frame_distance, weight=0.1), "gram": 0.2, "temporal": 0.3, "wavelet": 0.4},
    ),
    "eager_gradients": (False,),
    "gradient_checkpointing": (True,),
}
# What an option needs that the base does not have.
NEEDS = {
    "perceptual.chunk_size": {"num_frames": "all"},
}
NEEDS_NETWORKS = {
    "gradient_checkpointing": {
        "discr_kwargs": partial(PatchDiscriminator, dim=2, num_layers=2),
        "discr_3d_kwargs": partial(PatchDiscriminator3D, dim=2, num_layers=2),
        "multiscale_discr_kwargs": (partial(PatchDiscriminator3D, dim=2, num_layers=2),),
    },
}
# Values after which others change nothing, or that need other settings: each has a case of its own.
ALONE = ("disc_start", "multiscale_discr_kwargs", "gan.disc_train_start", "perceptual.net", "perceptual.chunk_size")
ALONE += ("adaptive_weight.", "eager_gradients", "gradient_checkpointing")
# What is decided anew in an update, or differs with the step.
OF_AN_UPDATE = ("disc", "adv", "multi", "grad_penalty", "gan.", "penalty.", "adaptive_weight.", "gradient_")
OF_A_STEP = ("disc_start", "gan.disc_train_start", "penalty.every")


def cases_of(options):
    """Parametrize with the settings of each case: the base, one value, or one value of each option that has more."""
    alone, together = [{}], {True: {}, False: {}}
    for name, values in options.items():
        for value in values:
            if name.startswith(ALONE) or value == 0:
                alone.append({name: value})
            else:
                together[changes(name, value)].setdefault(name, []).append(value)
    several = [
        {name: values[index] for name, values in by_name.items() if index < len(values)}
        for by_name in together.values()
        for index in range(max(map(len, by_name.values())))
    ]
    covered = [(name, str(value)) for case in alone + several for name, value in case.items()]
    assert sorted(covered) == sorted((name, str(value)) for name, values in options.items() for value in values)
    ids = [*("".join(case) or "base" for case in alone), *(f"several-{index}" for index in range(len(several)))]
    return pytest.mark.parametrize("case", alone + several, ids=ids)


def made(value):
    """Return the value of a case; classes and partial functions are called, so that each test has its own object."""
    if isinstance(value, tuple):
        return [made(one) for one in value]
    is_class = isinstance(value, type) or (isinstance(value, partial) and isinstance(value.func, type))
    return value() if is_class else value


def changes(name, value):
    """Return whether a value depends on the step."""
    ramps = (name.endswith("_weight") and value != 0) or "gram" in (value if name == "terms" else ())
    return ramps or name in OF_A_STEP


def steps_of(case):
    """Return the steps to run: at 0, ramps are at their start; at 3, at their end."""
    return (0, 3) if any(changes(*item) for item in case.items()) else (0,)


@pytest.fixture
def build(vgg, narrow_lpips, cached_weights):
    """Return a function that builds the loss of a case: LPIPS is narrow unless the case is about the network."""

    def make(case, **more):
        torch.manual_seed(0)
        needed = {key: spec for name in case for key, spec in NEEDS_NETWORKS.get(name, {}).items()}
        settings = {**{key: made(spec) for key, spec in {**BASE, **needed}.items()}, **more}
        settings["perceptual"] = {"net": narrow_lpips}
        for name, value in case.items():
            group, _, field = name.partition(".")
            if field:
                settings[group] = {**settings.get(group, {}), **NEEDS.get(name, {}), field: made(value)}
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
    if get_origin(hint) is Union or "UnionType" in type(hint).__name__:
        return set().union(*(literals(part) for part in get_args(hint)))
    return set()


def test_every_option_has_all_of_its_values_here():
    groups = {"reconstruction", "perceptual", "gan", "penalty", "adaptive_weight"}
    options, values = {"discr_kwargs", "discr_3d_kwargs", "multiscale_discr_kwargs"}, {}
    defaults = ObjectiveConfig()
    for item in fields(ObjectiveConfig):
        if item.name not in groups:
            options.add(item.name)
            continue
        cls = type(getattr(defaults, item.name))
        for name, hint in ((each.name, get_type_hints(cls)[each.name]) for each in fields(cls)):
            options.add(f"{item.name}.{name}")
            values[f"{item.name}.{name}"] = (literals(hint), getattr(defaults, item.name).__getattribute__(name))
    assert options == set(OPTIONS)
    for name, (words, default) in values.items():
        assert words <= {default} | {value for value in OPTIONS[name] if isinstance(value, str)}, name
    assert set(RECONSTRUCTION_LOSSES) == values["reconstruction.loss"][0]
    assert set(GAN_LOSSES) == values["gan.loss"][0]
    assert set(GRAD_PENALTIES) == values["penalty.kind"][0]
    assert sum(len(words) for words, _ in values.values()) == 23


def aux_of(autoencoder):
    return {"kl_loss": autoencoder.encoder.weight.square().mean(), "codebook_loss": 0.1}


def gradients_of_backward(totals_and_logs, parameters):
    results = []
    for total, log in totals_and_logs:
        for parameter in parameters:
            parameter.grad = None
        total.backward()
        results.append((total.detach(), log, [parameter.grad for parameter in parameters]))
    return results


def two_calls(loss, autoencoder, real, step):
    """Return totals, logs and gradients of both steps."""
    torch.manual_seed(step)
    parameters = [*autoencoder.parameters(), *loss.parameters()]
    calls = (call(loss, autoencoder, real, i, step) for i in (0, 1))
    return gradients_of_backward(calls, parameters)


def call(loss, autoencoder, real, index, step):
    latent = autoencoder.encoder(real)
    options = {"latent": latent, "decode": autoencoder.decoder}
    fake = autoencoder.decoder(latent)
    return loss(real, fake, index, step, aux_of(autoencoder), autoencoder.last_layer, **options)


def one_update(loss, autoencoder, real, step):
    torch.manual_seed(step)
    parameters = [*autoencoder.parameters(), *loss.parameters()]
    latent = autoencoder.encoder(real)
    options = {"latent": latent, "decode": autoencoder.decoder}
    fake = autoencoder.decoder(latent)
    both = loss.update(real, fake, step, aux_of(autoencoder), autoencoder.last_layer, **options)
    return gradients_of_backward((both[:2], both[2:]), parameters)


def assert_same(ours, theirs, rtol=1e-5, atol=1e-8):
    for (total, log, gradients), (total_2, log_2, gradients_2) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(total, total_2, rtol=rtol, atol=atol)
        torch.testing.assert_close(log, log_2, rtol=max(rtol, 1e-6), atol=max(atol, 1e-6))  # logs are float32
        assert [gradient is None for gradient in gradients] == [gradient is None for gradient in gradients_2]
        for gradient, gradient_2 in zip(gradients, gradients_2, strict=True):
            if gradient is not None:
                torch.testing.assert_close(gradient, gradient_2, rtol=rtol, atol=atol)


@pytest.mark.slow
@cases_of({**OPTIONS, "eager_gradients": (), "perceptual.net": (frame_distance, CustomDistance)})
def test_eager_gradients_are_those_of_a_graph(case, build, autoencoder, clip):
    """In float64; adaptive weights are ratios of float32 norms."""
    autoencoder.double()
    results = []
    for eager in (True, False):
        loss = build(case, eager_gradients=eager).double()
        results.append([two_calls(loss, autoencoder, clip_of(case, clip), step) for step in steps_of(case)])
    for ours, theirs in zip(*results, strict=True):
        assert_same(ours, theirs)


@pytest.mark.slow
@cases_of({name: values for name, values in OPTIONS.items() if name.startswith(OF_AN_UPDATE) and name != "gan.augment"})
def test_an_update_is_two_calls(case, build, autoencoder, clip):
    """With one frame per clip, since discriminators of frames would see others; spectral norms change in each pass.

    Of augmentations, `test_gan.py` tests it: two calls draw two.
    """
    autoencoder.double()
    results = []
    for run in (two_calls, one_update):
        loss = build(case).double().eval()
        real = clip_of(case, clip, frames=1)
        results.append([run(loss, autoencoder, real, step) for step in steps_of(case)])
    for ours, theirs in zip(*results, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_eager_gradients_under_autocast(autocast, build, autoencoder, clip):
    """In float16 the autoencoder's graph is an ordinary one, for the caller's loss scale."""
    real = clip_of({}, clip, dtype=torch.float32)
    results = []
    for eager in (True, False):
        loss = build({"penalty.every": 2}, eager_gradients=eager)
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            torch.manual_seed(0)
            steps = [loss(real, autoencoder(real), i, 1, aux_of(autoencoder), autoencoder.last_layer) for i in (0, 1)]
        scaled = [(2.0**12 * total, log) for total, log in steps]
        results.append(gradients_of_backward(scaled, [*autoencoder.parameters(), *loss.parameters()]))
    results = [
        [(total / 2**12, log, [g if g is None else g / 2**12 for g in gradients]) for total, log, gradients in result]
        for result in results
    ]
    assert_same(*results, rtol=2e-2 if autocast else 1e-4, atol=1e-2 if autocast else 1e-5)


@pytest.mark.slow
@cases_of({name: values for name, values in OPTIONS.items() if not name.endswith("_weight")})
def test_bfloat16_autocast_trains_both_networks(case, build, autoencoder, clip):
    loss = build(case)
    real = clip_of(case, clip, dtype=torch.float32)
    for step in steps_of(case):
        with torch.autocast("cpu", torch.bfloat16):
            latent = autoencoder.encoder(real)
            fake, options = autoencoder.decoder(latent), {"latent": latent, "decode": autoencoder.decoder}
            total, log = loss(real, fake, 0, step, aux_of(autoencoder), autoencoder.last_layer, **options)
        check_finite(total, log)
        optimizer_step(total, [*autoencoder.parameters(), *loss.get_trainable_autoencoder_parameters()])
        assert all(parameter.grad is None for parameter in loss.get_trainable_parameters())
        with torch.autocast("cpu", torch.bfloat16):
            total, log = loss(real, fake.detach(), 1, step)
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
    assert parameters
    for parameter in parameters:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert any((parameter.grad != 0).any() for parameter in parameters)
    with torch.no_grad():
        for parameter in parameters:
            parameter -= 1e-3 * parameter.grad
            parameter.grad = None
