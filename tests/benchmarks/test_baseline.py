"""The baseline is a fair comparison: from the same weights it computes the same values and gradients as telecine."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import telecine
from telecine import VideoAutoencoderLoss

GOLDEN = runpy.run_path(str(Path(__file__).parents[1] / "discriminators" / "test_golden.py"))
IMAGE = {"dim": 1, "image_size": 16, "linear_attn_heads": 2}
# Discriminator classes by argument of telecine's loss, the number of frames of a clip, and further options.
DISCRIMINATORS = {
    "video": ({"discr_3d_kwargs": "Discriminator3D"}, 4, {}),
    "first frame": ({"discr_3d_kwargs": "Discriminator3DWithfirstframe"}, 5, {}),
    "both": ({"discr_kwargs": "Discriminator", "discr_3d_kwargs": "Discriminator3D"}, 4, {}),
    "both, blurred": (
        {"discr_kwargs": "Discriminator", "discr_3d_kwargs": "Discriminator3DWithfirstframe"},
        5,
        {"antialiased_downsample": True},
    ),
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

    def __init__(
        self, import_module, discriminators, num_perceptual_frames=1, perceptual_weight=0.8
    ):
        baseline_classes = import_module("baseline_discriminators").BASELINE_DISCRIMINATORS
        names, num_frames, options = DISCRIMINATORS[discriminators]
        torch.manual_seed(0)
        networks = {}
        baseline_networks = {}
        for argument, name in names.items():
            sizes = {
                **IMAGE,
                **options,
                **({} if name == "Discriminator" else {"frame_num": num_frames}),
            }
            networks[argument] = getattr(telecine, name)(**sizes)
            baseline_networks[argument.removesuffix("_kwargs")] = baseline_classes[name](**sizes)
        weights = {"perceptual_weight": perceptual_weight, "adversarial_loss_weight": 0.5}
        # Telecine computes the penalty at step 0 with twice its weight, and not at step 1.
        self.telecine = VideoAutoencoderLoss(
            0,
            **weights,
            **networks,
            grad_penalty_loss_weight=10,
            perceptual={"num_frames": num_perceptual_frames},
            penalty={"every": 2},
        ).double()
        self.baseline = import_module("baseline").BaselineLoss(
            **weights,
            **baseline_networks,
            grad_penalty_loss_weight=20,
            num_perceptual_frames=num_perceptual_frames,
        )
        self.baseline.load_state_dict(self.telecine.state_dict(), strict=True)
        self.baseline.double()
        self.autoencoder = Autoencoder().double()
        self.real = torch.rand(2, 3, num_frames, 16, 16, dtype=torch.float64) * 2 - 1

    @property
    def last_layer(self):
        return self.autoencoder.conv_out.weight


def gradients(loss, module):
    values = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    return dict(zip((name for name, _ in module.named_parameters()), values, strict=True))


def assert_same_gradients(telecine_gradients, baseline_gradients):
    assert telecine_gradients.keys() == baseline_gradients.keys()
    for name, gradient in telecine_gradients.items():
        # The gradient of the last bias is 0 while the hinge is active for both real and fake logits.
        assert gradient.abs().sum() > 0 or name.endswith("to_logits.3.bias")
        # Relative to the largest element: telecine takes the norms of the adaptive weight in float32.
        largest = baseline_gradients[name].abs().max().item()
        torch.testing.assert_close(
            gradient, baseline_gradients[name], rtol=1e-6, atol=1e-6 * largest
        )


def test_every_published_discriminator_has_a_baseline(benchmark_module):
    classes = benchmark_module("baseline_discriminators").BASELINE_DISCRIMINATORS
    assert classes.keys() == {case["discriminator"] for case in GOLDEN["CASES"]}
    for name, cls in classes.items():
        assert not isinstance(cls(**IMAGE), getattr(telecine, name)), (
            "the baseline shares no code with telecine"
        )


@pytest.mark.parametrize(
    "case", GOLDEN["CASES"], ids=lambda case: f"{case['discriminator']}-{len(case['config'])}"
)
class TestGolden:
    @pytest.fixture
    def discriminator(self, benchmark_module, case):
        classes = benchmark_module("baseline_discriminators").BASELINE_DISCRIMINATORS
        module = classes[case["discriminator"]](**case["config"]).double()
        GOLDEN["fill_parameters"](module)
        return module

    def test_state_dicts_are_interchangeable(self, discriminator, case):
        other = GOLDEN["build"](case)
        assert {
            name: list(weight.shape) for name, weight in discriminator.named_parameters()
        } == case["parameters"]
        discriminator.load_state_dict(other.state_dict(), strict=True)
        other.load_state_dict(discriminator.state_dict(), strict=True)

    def test_figures(self, benchmark_module, discriminator, case):
        x = GOLDEN["golden_input"](case["input_shape"]).requires_grad_()
        logits = discriminator(x)
        assert logits.tolist() == pytest.approx(case["logits"], rel=1e-6)
        (gradient,) = torch.autograd.grad(logits.sum(), x, retain_graph=True)
        assert gradient.abs().sum().item() == pytest.approx(case["input_grad"]["l1"], rel=1e-6)
        assert gradient.norm().item() == pytest.approx(case["input_grad"]["l2"], rel=1e-6)
        penalty = benchmark_module("baseline").gradient_penalty(x, logits)
        assert penalty.item() == pytest.approx(case["gradient_penalty"], rel=1e-6)
        golden = case["gradient_penalty_grad"]
        (gradient,) = torch.autograd.grad(penalty, discriminator.get_parameter(golden["parameter"]))
        assert gradient.norm().item() == pytest.approx(golden["l2"], rel=1e-6)


# The number of frames that LPIPS compares does not depend on the discriminators.
@pytest.mark.parametrize(
    ("discriminators", "num_perceptual_frames"),
    [("video", 8), ("first frame", 1), ("both, blurred", 3)],
)
@pytest.mark.slow
@pytest.mark.benchmarks
def test_autoencoder_step(benchmark_module, cached_weights, discriminators, num_perceptual_frames):
    pair = Pair(benchmark_module, discriminators, num_perceptual_frames)
    torch.manual_seed(5)
    fake = pair.autoencoder(pair.real)
    loss, log = pair.telecine(pair.real, fake, 0, 1, last_layer=pair.last_layer)
    telecine_gradients = gradients(loss, pair.autoencoder)
    torch.manual_seed(5)
    fake = pair.autoencoder(pair.real)
    baseline_loss, terms, weights = pair.baseline.autoencoder_step(pair.real, fake, pair.last_layer)
    assert loss.item() == pytest.approx(baseline_loss.item(), rel=1e-6)
    terms["gen_loss"] = sum(term for name, term in terms.items() if name.startswith("gen_loss_"))
    terms["adaptive_weight"] = sum(weights.values()) / len(weights)
    terms |= {f"adaptive_weight_{name}": weight for name, weight in weights.items()}
    logged = {name: term.item() for name, term in terms.items() if f"train/{name}" in log}
    # The log names discriminators only if there are several.
    assert len(logged) == (8 if len(weights) == 2 else 4)
    assert logged == pytest.approx({name: log[f"train/{name}"].item() for name in logged}, rel=1e-6)
    for weight in weights.values():
        assert 1e-3 < weight < 999
        assert abs(weight - 1) > 1e-3
    assert_same_gradients(telecine_gradients, gradients(baseline_loss, pair.autoencoder))


@pytest.mark.parametrize(
    ("discriminators", "penalty"), [("video", True), ("both, blurred", True), ("both", False)]
)
@pytest.mark.slow
@pytest.mark.benchmarks
def test_discriminator_step(benchmark_module, discriminators, penalty):
    pair = Pair(benchmark_module, discriminators, perceptual_weight=0)
    fake = pair.autoencoder(pair.real).detach()
    torch.manual_seed(5)
    loss, log = pair.telecine(pair.real, fake, 1, 0 if penalty else 1)
    telecine_gradients = gradients(loss, pair.telecine)
    torch.manual_seed(5)
    baseline_loss, terms = pair.baseline.discriminator_step(pair.real, fake, penalty=penalty)
    assert loss.item() == pytest.approx(baseline_loss.item(), rel=1e-6)
    for log_name in ("discr_loss", "grad_penalty_loss"):
        total = sum(term.item() for name, term in terms.items() if name.startswith(log_name))
        assert log[f"train/{log_name}"].item() == pytest.approx(total, rel=1e-6)
        assert (total > 0) == (penalty or log_name == "discr_loss")
    assert_same_gradients(telecine_gradients, gradients(baseline_loss, pair.baseline))
