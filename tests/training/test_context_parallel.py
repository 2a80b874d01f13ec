"""Clips that are split over processes: values equal one process in float64; what cannot be split is refused.

`benchmarks/context_parallel.py values` compares all cases with 2 and 4 processes.
"""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from telecine.models import CausalVAE
from telecine.models.context_parallel import most_processes, split_over_processes
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.ops.pass_options import ContextGroup, using_pass_options
from telecine.ops.rows import rows_of_ranks
from telecine.settings import (
    CausalVAEConfig,
    ClipConfig,
    DiscriminatorConfig,
    ObjectiveConfig,
    TrainConfig,
)
from telecine.training.build import build_accelerator
from telecine.training.memory import plan_update
from telecine.training.update_memory import AUTOENCODER

from ..models.tiny_models import adapter, tiny_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "context_parallel.py"
# The number of updates of each case: one has all terms, a second one starts from their states.
NUM_UPDATES = {"short_every_term": 2, "short_flow": 1, "wan": 1, "short_ltx": 1, "cogvideox": 1}
TINY = CausalVAEConfig(
    time_compression=4,
    spatial_compression=4,
    latent_channels=4,
    patch_size=2,
    channel_multipliers=(1, 2),
    base_channels=8,
    blocks_per_level=1,
)


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield runpy.run_path(str(SCRIPT))
    sys.modules.pop("same_bits_cases", None)


@pytest.mark.slow
def test_updates_equal_those_of_one_process(benchmark, cached_weights, forks, tmp_path):
    """Of telecine's own model, and of each declared class of diffusers."""
    words = ["work", "--folder", str(tmp_path), "--processes", "2", "--context", "2"]
    words += ["--cases", *[f"{name}={number}" for name, number in NUM_UPDATES.items()]]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", str(SCRIPT)]
    done = forks.run(*launcher, *words)
    assert done.returncode == 0, done.stderr[-4000:]
    for name, number in NUM_UPDATES.items():
        case = benchmark["ALL_CASES"][name]
        ours = benchmark["train"](case, 1, 1, torch.float64, number)
        theirs = torch.load(tmp_path / f"{name}-2-2.pt")
        assert len(ours["gradients"]) > 50
        assert any("adaptive_weight" in key for key in ours["log"])
        for difference in benchmark["differences"](ours, theirs, is_divided=False):
            # Logs are float32.
            assert difference.relative < (2e-6 if difference.kind == "log" else 1e-10), difference


def test_rows_of_a_latent_are_divided_as_evenly_as_they_can_be():
    assert rows_of_ranks(10, 4, 4) == [12, 12, 8, 8]
    assert rows_of_ranks(8, 1, 2) == [4, 4]


def test_a_process_of_a_group_computes_its_rows_alone_and_returns_whole_videos():
    """Without communication, the rows of other processes are 0."""
    torch.manual_seed(0)
    model = CausalVAE(TINY)
    video = torch.rand(1, 3, 5, 32, 16)
    expected = model(video, sample_posterior=False).video
    split_over_processes(model, 2, [32])
    assert torch.equal(model(video, sample_posterior=False).video, expected), "there is no group"
    with using_pass_options(context_group=ContextGroup(size=2)):
        output = model(video, sample_posterior=False)
    assert output.video.shape == video.shape
    assert output.video[..., :16, :].count_nonzero() > 0
    assert output.video[..., 16:, :].count_nonzero() == 0
    output.video.sum().backward()
    assert all(weight.grad is not None for weight in model.decoder.parameters())


def test_a_quarter_of_the_rows_needs_a_third_of_the_activations():
    config = TrainConfig(
        causal_vae=replace(TINY, base_channels=32),
        clips=ClipConfig(num_frames=5, height=128, width=128),
        batch_size=1,
        objective=ObjectiveConfig(perceptual_weight=0.0),
        discriminator=DiscriminatorConfig("none"),
    )
    sizes = []
    for context_parallel in (1, 4):
        plan = plan_update(replace(config, context_parallel=context_parallel), device_type="cuda")
        sizes.append(plan.largest_by_part[AUTOENCODER])
    assert sizes[1] < 0.35 * sizes[0]


class Sharpen(torch.nn.Module):
    """A layer that nobody has declared."""

    def forward(self, video):
        return 2 * video - video.mean(dim=3, keepdim=True)


def with_undeclared_layer():
    model = CausalVAE(TINY)
    model.decoder.network.insert(1, Sharpen())
    return model


class Upsample(Sharpen):
    """A layer that nobody has declared, of the name of one of telecine's."""


def with_trilinear_layer():
    model = CausalVAE(TINY)
    model.decoder.network.insert(1, torch.nn.Upsample(scale_factor=1, mode="trilinear"))
    return model


def with_namesake():
    model = CausalVAE(TINY)
    model.decoder.network.insert(1, Upsample())
    return model


def with_namesake_of_diffusers():
    model = DiffusersAutoencoder(tiny_model("wan"))
    namesake = type("WanRMS_norm", (Sharpen,), {})
    model.module.decoder.norm_out = namesake()
    return model


def with_own_convolution():
    model = DiffusersAutoencoder(tiny_model("wan"))
    convolution = model.module.decoder.conv_out
    convolution.__class__ = type("OwnConv3d", (type(convolution),), {})
    return model


def with_bilinear_upsampling():
    model = DiffusersAutoencoder(tiny_model("wan"))
    for layer in model.module.decoder.modules():
        if isinstance(layer, torch.nn.Upsample):
            layer.mode = "bilinear"
    return model


def with_tiling():
    model = DiffusersAutoencoder(tiny_model("wan"))
    model.module.enable_tiling()
    return model


@pytest.mark.parametrize(
    ("make", "heights", "error"),
    [
        (
            lambda: adapter("qwen_image"),
            [32],
            "must be 1 for this class of models, but got 2 for AutoencoderKLQwenImage. Use --temporal",
        ),
        (
            with_tiling,
            [32],
            r"must be 1 for a model with tiling, but got AutoencoderKLWan. Call its `disable_tiling",
        ),
        (
            lambda: DiffusersAutoencoder(tiny_model("wan", dropout=0.1)),
            [32],
            "must be 1 for a model with dropout, but got AutoencoderKLWan. Set `dropout` to 0",
        ),
        (
            lambda: DiffusersAutoencoder(tiny_model("ltx_video", decoder_inject_noise=(True,) * 5)),
            [64],
            "must be 1 for a model with `decoder_inject_noise`.*, but got AutoencoderKLLTXVideo",
        ),
        (
            with_undeclared_layer,
            [32],
            r"`context_parallel` must be 1 for a model with a layer that cannot be split, but got decoder.network.1, a "
            "Sharpen",
        ),
        (with_trilinear_layer, [32], r"cannot be split, but got decoder.network.1, a Upsample"),
        (with_namesake, [32], r"cannot be split, but got decoder.network.1, a Upsample"),
        (with_namesake_of_diffusers, [32], r"cannot be split, but got decoder.norm_out, a WanRMS"),
        (with_own_convolution, [32], r"cannot be split, but got decoder.conv_out, a OwnConv3d"),
        (
            with_bilinear_upsampling,
            [32],
            r"neighbouring rows, but got decoder\..*resample.0, a WanUpsample with `mode` 'bilinear'. Set its `mode`",
        ),
        (
            lambda: CausalVAE(TINY),
            [32, 4],
            "`context_parallel` must be at most 1, the rows of the latent, but got 2",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_by_its_name(make, heights, error):
    with pytest.raises(ValueError, match=error):
        split_over_processes(make(), 2, heights)


def test_a_model_with_a_layer_that_is_refused_is_planned_for_one_process():
    assert most_processes(CausalVAE(TINY), 32) == 8
    assert most_processes(with_undeclared_layer(), 32) == 1
    assert most_processes(with_own_convolution(), 32) == 1


def test_a_model_that_is_split_already_stays_as_it_is():
    """As for two calls of `train` with one model."""
    torch.manual_seed(0)
    model = CausalVAE(TINY)
    video = torch.rand(1, 3, 5, 32, 16)

    def outputs():
        whole = model(video, sample_posterior=False).video
        with using_pass_options(context_group=ContextGroup(size=2)):
            rows = model(video, sample_posterior=False).video
        return whole, rows

    split_over_processes(model, 2, [32])
    whole, rows = outputs()
    split_over_processes(model, 4, [32])
    whole_again, rows_again = outputs()
    assert torch.equal(whole_again, whole)
    assert torch.equal(rows_again, rows)
    with pytest.raises(ValueError, match=r"at most 1, the rows of the latent"):
        split_over_processes(model, 2, [4])


def test_a_model_that_is_refused_stays_as_it_is():
    """The layer that is refused is in the decoder, behind others that could be split."""
    torch.manual_seed(0)
    model = with_undeclared_layer()
    video = torch.rand(1, 3, 5, 32, 16)
    expected = model(video, sample_posterior=False).video
    with pytest.raises(ValueError, match="Sharpen"):
        split_over_processes(model, 2, [32])
    with using_pass_options(context_group=ContextGroup(size=2)):
        assert torch.equal(model(video, sample_posterior=False).video, expected)


def test_a_group_divides_the_processes():
    with pytest.raises(
        ValueError, match=r"`context_parallel` must be a divisor of the number of processes \(1\)"
    ):
        build_accelerator(TrainConfig(context_parallel=2, device="cpu", trackers=()))
