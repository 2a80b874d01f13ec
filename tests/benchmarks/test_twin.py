"""The twin that ours is measured against is a fair one: the same figures and gradients, from the same weights."""

import copy
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import telecine
from telecine import VideoAutoencoderLoss

GOLDEN = runpy.run_path(str(Path(__file__).parents[1] / "discriminators" / "test_golden.py"))
IMAGE = {"dim": 1, "image_size": 16, "linear_attn_heads": 2}
# What judges, by the arguments of our loss, and how many frames a clip has.
JUDGES = {
    "video": ({"discr_3d_kwargs": "Discriminator3D"}, 4),
    "first frame": ({"discr_3d_kwargs": "Discriminator3DWithfirstframe"}, 5),
    "both": ({"discr_kwargs": "Discriminator", "discr_3d_kwargs": "Discriminator3D"}, 4),
    "blurred": ({"discr_kwargs": "Discriminator", "discr_3d_kwargs": "Discriminator3DWithfirstframe"}, 5),
}


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv3d(3, 4, 1)
        self.conv_out = nn.Conv3d(4, 3, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x):
        return self.conv_out(self.conv_in(x).tanh())


class Pair:
    """Both losses in float64 with the same weights, an autoencoder, and a batch of two clips."""

    def __init__(self, twin, judges, perceptual_frames=1, **options):
        names, frames = JUDGES[judges]
        torch.manual_seed(0)
        ours, theirs = {}, {}
        for argument, name in names.items():
            sizes = {**IMAGE, **options, **({} if name == "Discriminator" else {"frame_num": frames})}
            ours[argument] = getattr(telecine, name)(**sizes)
            theirs[argument.removesuffix("_kwargs")] = twin.TWINS[name](**sizes)
        weights = {"adversarial_loss_weight": 0.5, "grad_penalty_loss_weight": 10}
        weights |= {"perceptual_weight": 0.8, "perceptual_frames": perceptual_frames}
        # Ours computes the penalty at step 0 and not at step 1.
        self.ours = VideoAutoencoderLoss(0, **weights, **ours, grad_penalty_every=2).double()
        weights["grad_penalty_loss_weight"] *= 2
        self.twin = twin.TwinLoss(**weights, **theirs)
        self.twin.load_state_dict(self.ours.state_dict(), strict=True)
        self.twin.double()
        self.autoencoder = Autoencoder().double()
        self.real = torch.rand(2, 3, frames, 16, 16, dtype=torch.float64) * 2 - 1

    @property
    def last_layer(self):
        return self.autoencoder.conv_out.weight

    def gradients(self, total, module):
        gradients = torch.autograd.grad(total, list(module.parameters()), allow_unused=True)
        return dict(zip((name for name, _ in module.named_parameters()), gradients, strict=True))


def assert_same(ours, twin):
    assert ours.keys() == twin.keys()
    for name, gradient in ours.items():
        # A shift of all logits changes nothing while the hinge is active on both sides.
        assert gradient.abs().sum() > 0 or name.endswith("to_logits.3.bias")
        # Relative to the largest element: ours takes the norms of the adaptive weight in float32.
        largest = twin[name].abs().max().item()
        torch.testing.assert_close(gradient, twin[name], rtol=1e-6, atol=1e-6 * largest)


def test_every_published_discriminator_has_a_twin(twin):
    assert twin.TWINS.keys() == {case["discriminator"] for case in GOLDEN["CASES"]}
    for name, cls in twin.TWINS.items():
        assert not isinstance(cls(**IMAGE), getattr(telecine, name)), "the twin is code of its own"


@pytest.mark.parametrize("case", GOLDEN["CASES"], ids=lambda case: f"{case['discriminator']}-{len(case['config'])}")
class TestGolden:
    @pytest.fixture
    def judge(self, twin, case):
        module = twin.TWINS[case["discriminator"]](**case["config"]).double()
        GOLDEN["fill_parameters"](module)
        return module

    def test_one_state_dict_fits_both(self, judge, case):
        ours = GOLDEN["build"](case)
        assert {name: list(weight.shape) for name, weight in judge.named_parameters()} == case["parameters"]
        judge.load_state_dict(ours.state_dict(), strict=True)
        ours.load_state_dict(judge.state_dict(), strict=True)

    def test_figures(self, twin, judge, case):
        x = GOLDEN["golden_input"](case["input_shape"]).requires_grad_()
        logits = judge(x)
        assert logits.tolist() == pytest.approx(case["logits"], rel=1e-6)
        (gradient,) = torch.autograd.grad(logits.sum(), x, retain_graph=True)
        assert gradient.abs().sum().item() == pytest.approx(case["input_grad"]["l1"], rel=1e-6)
        assert gradient.norm().item() == pytest.approx(case["input_grad"]["l2"], rel=1e-6)
        penalty = twin.gradient_penalty(x, logits)
        assert penalty.item() == pytest.approx(case["gradient_penalty"], rel=1e-6)
        golden = case["gradient_penalty_grad"]
        (gradient,) = torch.autograd.grad(penalty, judge.get_parameter(golden["parameter"]))
        assert gradient.norm().item() == pytest.approx(golden["l2"], rel=1e-6)


@pytest.fixture
def make(twin, judges, cached_weights):
    options = {"antialiased_downsample": True} if judges == "blurred" else {}
    return lambda **arguments: Pair(twin, judges, **arguments, **options)


# How many frames LPIPS sees has nothing to do with who judges.
NUM_FRAMES = [*((judges, 1) for judges in JUDGES), ("video", 3), ("video", 8)]


@pytest.mark.parametrize(("judges", "perceptual_frames"), NUM_FRAMES)
def test_the_autoencoders_step(make, perceptual_frames):
    pair = make(perceptual_frames=perceptual_frames)
    torch.manual_seed(5)
    fake = pair.autoencoder(pair.real)
    total, log = pair.ours(pair.real, fake, 0, 1, last_layer=pair.last_layer)
    ours = pair.gradients(total, pair.autoencoder)
    torch.manual_seed(5)
    fake = pair.autoencoder(pair.real)
    twin_total, terms, weights = pair.twin.autoencoder_step(pair.real, fake, pair.last_layer)
    assert total.item() == pytest.approx(twin_total.item(), rel=1e-6)
    terms["gen_loss"] = sum(term for name, term in terms.items() if name.startswith("gen_loss_"))
    terms["adaptive_weight"] = sum(weights.values()) / len(weights)
    terms |= {f"adaptive_weight_{name}": weight for name, weight in weights.items()}
    logged = {name: term.item() for name, term in terms.items() if f"train/{name}" in log}
    # A single discriminator is not named in the log.
    assert len(logged) == (8 if len(weights) == 2 else 4)
    assert logged == pytest.approx({name: log[f"train/{name}"].item() for name in logged}, rel=1e-6)
    for weight in weights.values():
        assert 1e-3 < weight < 999
        assert abs(weight - 1) > 1e-3
    assert_same(ours, pair.gradients(twin_total, pair.autoencoder))


@pytest.mark.parametrize("judges", JUDGES)
@pytest.mark.parametrize("penalty", [True, False])
def test_the_discriminators_step(make, penalty):
    pair = make()
    fake = pair.autoencoder(pair.real).detach()
    torch.manual_seed(5)
    total, log = pair.ours(pair.real, fake, 1, 0 if penalty else 1)
    ours = pair.gradients(total, pair.ours)
    torch.manual_seed(5)
    twin_total, terms = pair.twin.discriminator_step(pair.real, fake, penalty=penalty)
    assert total.item() == pytest.approx(twin_total.item(), rel=1e-6)
    for log_name in ("discr_loss", "grad_penalty_loss"):
        twin_sum = sum(term.item() for name, term in terms.items() if name.startswith(log_name))
        assert log[f"train/{log_name}"].item() == pytest.approx(twin_sum, rel=1e-6)
        assert (twin_sum > 0) == (penalty or log_name == "discr_loss")
    assert_same(ours, pair.gradients(twin_total, pair.twin))


@pytest.mark.parametrize("judges", ["video", "first frame"])
@pytest.mark.parametrize("penalty", [True, False])
def test_an_update(twin, cached_weights, judges, penalty):
    """Ours takes both steps in one call; a frame is drawn for LPIPS alone."""
    pair = Pair(twin, judges)
    torch.manual_seed(5)
    both = pair.ours.update(pair.real, pair.autoencoder(pair.real), 0 if penalty else 1, last_layer=pair.last_layer)
    ours = [pair.gradients(both.loss, pair.autoencoder), pair.gradients(both.disc_loss, pair.ours)]
    torch.manual_seed(5)
    fake = pair.autoencoder(pair.real)
    total, *_ = pair.twin.autoencoder_step(pair.real, fake, pair.last_layer)
    disc_total, _ = pair.twin.discriminator_step(pair.real, fake, penalty=penalty)
    assert both.loss.item() == pytest.approx(total.item(), rel=1e-6)
    assert both.disc_loss.item() == pytest.approx(disc_total.item(), rel=1e-6)
    assert_same(ours[0], pair.gradients(total, pair.autoencoder))
    assert_same(ours[1], pair.gradients(disc_total, pair.twin))


def test_the_twin_takes_no_short_cut(twin, cached_weights):
    """What makes it the plain one: an unfrozen discriminator, and three forwards of it in an update."""
    pair = Pair(twin, "video")
    calls = []
    pair.twin.discr_3d.register_forward_hook(lambda *_: calls.append(1))
    fake = pair.autoencoder(pair.real)
    total, *_ = pair.twin.autoencoder_step(pair.real, fake, pair.last_layer)
    assert all(weight is not None for weight in pair.gradients(total, pair.twin).values())
    pair.twin.discriminator_step(pair.real, fake, penalty=True)
    assert len(calls) == 3


def test_ours_and_the_twin_differ_where_weights_do(twin, cached_weights):
    """The comparison above would see a difference."""
    pair = Pair(twin, "video")
    changed = copy.deepcopy(pair.twin)
    with torch.no_grad():
        next(iter(changed.parameters())).add_(0.1)
    fake = pair.autoencoder(pair.real).detach()
    totals = [loss.discriminator_step(pair.real, fake, penalty=False)[0].item() for loss in (pair.twin, changed)]
    assert totals[0] != pytest.approx(totals[1], rel=1e-6)
