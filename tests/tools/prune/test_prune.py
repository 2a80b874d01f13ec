"""Pruning: every class of diffusers, exactness where nothing is lost, the command, and the training of what is left."""

import json
from dataclasses import replace
from fractions import Fraction
from io import StringIO
from math import gcd
from pathlib import Path

import diffusers
import pytest
import torch
from rich.console import Console

from telecine.__main__ import main
from telecine.base.files import write_json
from telecine.evaluation.speed import count_needs
from telecine.models import CausalVAE, load_autoencoder
from telecine.models.causal_blocks import ResidualBlock
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.student import StudentAutoencoder
from telecine.runs import Run
from telecine.settings import CausalVAEConfig
from telecine.tools.distill import PrunedFeatures
from telecine.tools.prune import prune
from telecine.tools.prune.channels import find_groups, share_denominators
from telecine.tools.prune.class_widths import NOT_PRUNED, WIDTHS
from telecine.tools.prune.cost import cost_of
from telecine.tools.prune.importance import recorded_squares, score_by_loss
from telecine.tools.prune.least_squares import Activations, fit_depthwise
from telecine.tools.prune.parts import prunable
from telecine.tools.prune.settings import PruneConfig
from telecine.tools.prune.surgery import kept_slices, pruned_weights

from ...models.tiny_models import FAST, STREAMED, TINY_MODELS, tiny_clip, tiny_model

# Enough channels for half of them, and stages of different sizes.
WIDER = {
    "AutoencoderKLKVAE": {"channels": 64},
    "AutoencoderKLKVAEVideo": {"ch": 64},
    "AutoencoderKLMochi": {"decoder_block_out_channels": (64, 64, 128, 128)},
    "AutoencoderKLTemporalDecoder": {"block_out_channels": (64, 64, 64, 64)},
    "AutoencoderKLWan": {"base_dim": 8, "dim_mult": [1, 2, 4, 4]},
}
# Their norms take means, or root mean squares without a gain, over all channels or over a fixed number of groups.
NOT_EXACT = {
    "asymmetric",
    "cosmos",
    "flux2",
    "kvae_image",
    "kvae_video",
    "ltx_video",
    "ltx_video_with_timestep",
    "mochi",
    "temporal_decoder",
    "vidtok",
    "vidtok_fsq",
}
PRUNED = [name for name, model in TINY_MODELS.items() if model.cls in WIDTHS]
SMALL = CausalVAEConfig(2, 4, 3, patch_size=2, base_channels=8, blocks_per_level=1)


def test_every_class_is_pruned_or_refused_with_a_reason():
    classes = {model.cls for model in TINY_MODELS.values()}
    assert classes == set(WIDTHS) | set(NOT_PRUNED)
    assert len(WIDTHS) == 20
    assert len(NOT_PRUNED) == 7


@pytest.mark.parametrize(("name", "part"), [("wan", "decoder"), ("hunyuan_video", "both")])
def test_operations_are_those_of_decoding_with_its_attention(name, part):
    """HunyuanVideo decodes more latent frames than these in chunks that overlap, unless telecine calls it."""
    model = DiffusersAutoencoder(tiny_model(name))
    latent = torch.zeros(1, 4, 6, 2, 2)
    target = prunable(model, "model", part)
    cost = cost_of(target, target.config, latent)
    _, flops = count_needs(lambda: model.decode(latent), [], torch.device("cpu"))
    assert cost.flops == flops


def with_random_weights(model):
    """Return a model in which no channel is like another one, as after training."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def groups_of(what):
    return find_groups(what.build, what.config, what.widths, what.network.state_dict())


def largest_share_up_to_half(groups):
    denominator = gcd(*share_denominators(groups))
    return Fraction(denominator // 2, denominator)


def random_slices(groups, share):
    """Return the slices of each group that random scores keep."""
    generator = torch.Generator().manual_seed(2)
    kept = {}
    for group in groups:
        scores = torch.rand(group.num_slices, generator=generator, dtype=torch.float64)
        kept[group.name] = kept_slices(group, scores, share)
    return kept


def set_removed_to_zero(what, groups, kept):
    weights = what.network.state_dict()
    for group in groups:
        removed = torch.ones(group.num_slices, dtype=torch.bool)
        removed[kept[group.name]] = False
        for axis in group.axes:
            tensor = weights[axis.weight]
            slices = removed.nonzero().flatten()
            entries = axis.indices(tensor.shape[axis.dim], group.num_slices, slices)
            tensor.index_fill_(axis.dim, entries, 0.0)


@torch.no_grad()
def outputs(model, video):
    """Return the latent and the reconstruction; some decoders draw noise inside."""
    torch.manual_seed(0)
    if isinstance(model, DiffusersAutoencoder):
        # Without the search for the sizes that it reproduces, which takes longer than the rest.
        posterior = model.family.encode(model.module, video)
    else:
        posterior = model.encode(video)
    latent = posterior.mode()
    return latent, model.decode_with_losses(latent)[0]


@torch.no_grad()
def check_surgery(model, part, video, *, is_exact):
    """Check that removing channels of 0 changes as much as rounding, or that pruning nothing keeps every bit."""
    what = prunable(model, "teacher", part)
    groups = groups_of(what)
    num_stages = len(share_denominators(groups))
    share = largest_share_up_to_half(groups)
    kept = random_slices(groups, share)
    set_removed_to_zero(what, groups, kept)
    with recorded_squares(what.network) as squares:
        before = outputs(model, video)
    config = what.widths.scaled(what.config, [share] * num_stages)
    half = what.wrap(config, pruned_weights(what.network, groups, kept, squares)).eval()
    after = outputs(half, video)
    assert all(value.isfinite().all() for value in after)
    if is_exact:
        for value, expected in zip(after, before, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5)
        return half
    if part == "decoder":
        torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    everything = random_slices(groups, Fraction(1))
    config = what.widths.scaled(what.config, [Fraction(1)] * num_stages)
    whole = what.wrap(config, pruned_weights(what.network, groups, everything, squares)).eval()
    for same, value in zip(outputs(whole, video), before, strict=True):
        torch.testing.assert_close(same, value, rtol=0, atol=0)
    return half


@torch.no_grad()
def check_chunks(model, num_frames, size):
    """Check that the streams of a model have the result of the whole clip."""
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(1, 3, num_frames, *size, generator=generator, dtype=torch.float64)
    whole = model.encode(video).mode()
    encoder = model.stream_encoder()
    posteriors = [encoder.push(frames) for frames in video.split(3, dim=2)]
    posteriors.append(encoder.flush())
    latent = torch.cat([posterior.mode() for posterior in posteriors if posterior], dim=2)
    assert (latent - whole).abs().max() <= 1e-10
    decoder = model.stream_decoder()
    chunks = [decoder.push(frame) for frame in whole.split(1, dim=2)]
    chunks.append(decoder.flush())
    assert sum(chunk is not None for chunk in chunks) > 1
    decoded = torch.cat([chunk for chunk in chunks if chunk is not None], dim=2)
    assert (decoded - model.decode(whole)).abs().max() <= 1e-10


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in PRUNED],
)
def test_surgery_of_each_class(name, tmp_path):
    cls = TINY_MODELS[name].cls
    changes = {} if name == "ltx_video_with_timestep" else WIDER.get(cls, {})
    module = with_random_weights(tiny_model(name, **changes))
    model = DiffusersAutoencoder(module).eval()
    video = tiny_clip(name)
    if model.in_channels != 3:
        video = video[:, :1].expand(-1, model.in_channels, -1, -1, -1)
    part = WIDTHS[cls].part
    half = check_surgery(model, part, video, is_exact=name not in NOT_EXACT)
    num_weights = sum(tensor.numel() for tensor in half.module.decoder.parameters())
    assert num_weights < sum(tensor.numel() for tensor in module.decoder.parameters())
    if (
        name not in FAST
    ):  # a pruned model is one of its class, and all of these are saved and stream
        return
    half.save_pretrained(tmp_path)
    of_diffusers = getattr(diffusers, cls).from_pretrained(tmp_path)
    torch.testing.assert_close(of_diffusers.state_dict(), half.module.state_dict(), rtol=0, atol=0)
    check_chunks(half.double(), STREAMED[name], TINY_MODELS[name].clip[1:])


def test_surgery_of_an_asymmetric_decoder_with_stages_of_different_sizes():
    """Its encoder of masks has channels of the first stage, doubled up to those of the last one."""
    changes = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "down_block_out_channels": (4, 4, 4),
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "up_block_out_channels": (8, 8, 16),
    }
    module = with_random_weights(tiny_model("asymmetric", **changes))
    model = DiffusersAutoencoder(module).eval()
    half = check_surgery(model, "decoder", tiny_clip("asymmetric"), is_exact=False)
    assert half.module.config.up_block_out_channels == [4, 4, 8]


@pytest.mark.parametrize(
    ("decoder", "part"), [("direct", "decoder"), ("direct", "both"), ("flow", "decoder")]
)
def test_surgery_of_our_models(decoder, part):
    config = CausalVAEConfig(
        2, 4, 3, patch_size=2, base_channels=8, blocks_per_level=1, decoder=decoder
    )
    model = with_random_weights(CausalVAE(config))
    video = 2 * torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    half = check_surgery(model, part, video, is_exact=True)
    assert half.config.base_channels == 4
    assert isinstance(half, StudentAutoencoder if part == "decoder" else CausalVAE)
    latent = model.encode(video).mode()
    with torch.no_grad():
        whole = half.decode(latent)
        half.enable_temporal_chunks(2)
        torch.testing.assert_close(half.decode(latent), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kinds", [("depthwise", "2+1d"), ("3d", "2d"), ("2d", "depthwise")])
def test_surgery_of_a_decoder_with_cheaper_convolutions(kinds):
    config = replace(SMALL, decoder_convolutions=kinds)
    model = with_random_weights(CausalVAE(config))
    video = 2 * torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    half = check_surgery(model, "decoder", video, is_exact=True)
    assert half.config.base_channels == 4
    assert half.config.decoder_convolutions == kinds
    check_surgery(with_random_weights(CausalVAE(config)), "both", video, is_exact=True)


CLIPS = {
    "data": "clip.mp4",
    "num_frames": 5,
    "height": 32,
    "width": 32,
    "max_clips": 2,
    "device": "cpu",
}


def pruned(name, **settings):
    return prune(name, PruneConfig(**CLIPS | settings))


@pytest.fixture
def folder(tmp_path, monkeypatch, small_video):
    """Have a video in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").symlink_to(small_video)


@pytest.fixture
def model(folder):
    """Return a small model with random weights."""
    return with_random_weights(CausalVAE(SMALL))


@pytest.fixture
def teacher(model):
    """Return the name of a saved model whose first channels are 0."""
    what = prunable(model, "teacher", "decoder")
    groups = groups_of(what)
    last = {
        group.name: kept_slices(group, torch.arange(group.num_slices).double(), Fraction(1, 2))
        for group in groups
    }
    set_removed_to_zero(what, groups, last)
    model.save_pretrained("teacher")
    return "teacher"


@pytest.mark.parametrize("importance", ["gradient", "greedy", "weight", "first"])
def test_channels_that_matter_are_kept(teacher, importance):
    result = pruned(teacher, max_clips=1, keep=0.4, importance=importance)
    assert result.shares == [0.5]
    assert result.groups["all stages"] == (8, 4)
    assert result.channels_after == [4, 8]
    assert result.cost_after.flops <= 0.4 * result.cost_before.flops
    lost = result.psnr_before - result.psnr_after
    if importance == "first":
        assert abs(lost) > 0.1, "the first channels are 0"
    elif importance == "greedy":
        assert lost < 1e-3, "random channels may do harm"
    else:
        assert abs(lost) < 1e-3, "only channels of 0 are removed"


def kernels_of(kind, like):
    """Return kernels that a cheaper convolution can have."""
    num_outputs, num_inputs, time, height, width = like.shape
    if kind == "depthwise":
        return torch.randn(num_outputs, num_inputs, 1, 1, 1) * torch.randn(like.shape[1:])
    if kind == "2+1d" and time > 1:
        temporal = torch.randn(num_outputs, time, num_outputs)
        spatial = torch.randn(num_outputs, num_inputs, height, width)
        return torch.einsum("otm,mihw->oithw", temporal, spatial)
    kernels = torch.randn(like.shape)
    if kind == "2d":
        kernels[:, :, :-1] = 0
    return kernels


@pytest.mark.parametrize(
    ("kinds", "num_replaced"),
    [(("depthwise", "2+1d"), 3), (("3d", "2d"), 1), (("3d", "depthwise"), 2)],
)
def test_convolutions_that_cheaper_ones_can_compute_are_met(model, kinds, num_replaced):
    for block in model.decoder.modules():
        if isinstance(block, ResidualBlock):
            level = SMALL.channels.index(len(block.branch[0].scale))
            for index in (2, 5):
                weight = block.branch[index].conv.weight
                weight.data = 0.1 * kernels_of(kinds[level], weight)
    model.save_pretrained("model")
    result = pruned("model", keep=1, decoder_convolutions=kinds)
    assert result.model.config.decoder_convolutions == kinds
    assert len(result.convolutions) == num_replaced
    for fit in result.convolutions:
        assert fit.operations < 1
        assert fit.error < 1e-6 < fit.error_random
        assert (fit.error_trivial > 1e-3) == (fit.kind != "2d"), "sums over earlier frames of 0"
    assert abs(result.psnr_after - result.psnr_before) < 1e-3
    assert result.cost_after.flops < result.cost_before.flops
    result.model.save_pretrained("cheaper")
    write_json(Path("prune.json"), result.report())
    layer = f"{result.convolutions[0].layer}.conv"
    with pytest.raises(ValueError, match="`feature_layers` must be layers that the teacher's"):
        PrunedFeatures("model", "prune.json", [layer])
    message = r"`decoder_convolutions` must be \[.*\], those of the model, with others in place of"
    with pytest.raises(ValueError, match=message):
        pruned("cheaper", keep=1, decoder_convolutions=("3d", "3d"))


def test_a_decoder_with_cheaper_convolutions_is_pruned_again(folder):
    """Those that it has stay, with fewer channels, and others become cheaper."""
    config = replace(SMALL, decoder_convolutions=("3d", "2+1d"))
    CausalVAE(config).save_pretrained("model")
    narrower = pruned("model", keep=0.5)
    assert narrower.convolutions == []
    assert narrower.model.config.decoder_convolutions == ("3d", "2+1d")
    assert narrower.cost_after.flops <= 0.5 * narrower.cost_before.flops
    write_json(Path("prune.json"), narrower.report())
    features = PrunedFeatures("model", "prune.json")
    assert features(latent=torch.randn(1, 3, 2, 8, 8), model=narrower.model).isfinite()
    result = pruned("model", keep=1, decoder_convolutions=("depthwise", "2+1d"))
    assert {fit.kind for fit in result.convolutions} == {"depthwise"}
    weights = load_autoencoder("model").decoder.state_dict()
    for name, weight in result.model.decoder.state_dict().items():
        if ".branch.2.1." in name and name in weights:
            torch.testing.assert_close(weight, weights[name], rtol=0, atol=0)


def test_a_fit_to_some_positions_is_one_to_all_columns():
    """With twice as many positions as a fit takes, and outputs three times as large on odd columns."""
    padded = torch.randn(1, 1, 5, 128, 64, generator=torch.Generator().manual_seed(0))
    output = padded.clone()
    output[..., 1::2] *= 3
    (kernel, channels), _ = fit_depthwise(torch.ones(1, 1, 1, 1, 1), Activations(padded, output))
    assert (kernel * channels).item() == pytest.approx(2, abs=0.05)


def test_a_fit_to_fewer_positions_than_unknowns_is_refused_and_one_clip_has_no_error(model):
    model.save_pretrained("model")
    settings = {"max_clips": 1, "num_frames": 1, "keep": 1, "importance": "first"}
    result = pruned("model", **settings, decoder_convolutions=("2d", "2d"))
    assert {fit.error for fit in result.convolutions} == {None}
    console = Console(file=StringIO(), width=120)
    result.print_to(console)
    assert "n/a" in console.file.getvalue()
    few = {"height": 8, "width": 8, "decoder_convolutions": ("depthwise", "2+1d")}
    message = (
        r"^`data` must be clips with at least \d+ positions .*, but got \d+\. Raise `max_clips`"
    )
    with pytest.raises(ValueError, match=message):
        pruned("model", **settings, **few)


def test_greedy_importance_measures_nothing_where_nothing_is_removed():
    what = prunable(CausalVAE(SMALL), "model", "decoder")
    groups = groups_of(what)
    scores = score_by_loss(what.network, groups, [Fraction(1)], {}, lambda: pytest.fail("decoded"))
    assert {group.name for group in groups} == set(scores)


def test_a_norm_of_an_input_of_0_stays_finite(model):
    for name, parameter in model.decoder.named_parameters():
        if ".branch.2." in name:
            torch.nn.init.zeros_(parameter)
    model.save_pretrained("model")
    result = pruned("model", max_clips=1, keep_stages=[0.5])
    assert all(parameter.isfinite().all() for parameter in result.model.decoder.parameters())


def test_blocks_are_removed_by_measured_error(folder):
    """Of two blocks of each stage, the second one is 0: what is removed is that, or a random block that does harm."""
    torch.manual_seed(0)  # a random block may even lower the error of untrained weights
    model = with_random_weights(CausalVAE(replace(SMALL, blocks_per_level=2)))
    for name in ("2", "5"):
        block = model.decoder.network.get_submodule(name)
        torch.nn.init.zeros_(block.branch[-1].conv.weight)
        torch.nn.init.zeros_(block.branch[-1].conv.bias)
    model.save_pretrained("model")
    result = pruned("model", keep=1, blocks=1)
    (first, second) = result.removed_blocks["network"]
    assert first in (1, 2)
    assert second in (4, 5)
    assert result.model.config.blocks_per_level == 1
    assert result.psnr_after > result.psnr_before - 0.1, "by the error, which is not squared"


def test_stages_of_a_class_of_diffusers(folder):
    tiny_model("mochi", decoder_block_out_channels=(32, 32, 64, 64)).save_pretrained("mochi")
    size = {"max_clips": 1, "num_frames": 1, "height": 16, "width": 16}
    result = pruned("mochi", **size, keep_stages=(1, 0.6), importance="first")
    assert result.channels_after == [32, 32, 32, 32]
    assert result.shares == [1, 0.5]


def test_all_blocks_of_one_shape_are_removed(folder):
    """The first block of a stage changes the number of channels, so the second one is the only one of its shapes."""
    module = tiny_model("kl_image", block_out_channels=(32, 64), layers_per_block=2)
    DiffusersAutoencoder(with_random_weights(module)).save_pretrained("model")
    size = {"num_frames": 1, "height": 8, "width": 8, "max_clips": 1}
    result = pruned("model", **size, part="both", keep=1, blocks=1)
    assert result.removed_blocks["encoder.down_blocks.1.resnets"] == [1]
    assert result.model.module.config.layers_per_block == 1
    whole = module.state_dict()
    for name, tensor in result.model.module.state_dict().items():
        if name.startswith("encoder.down_blocks.1."):
            torch.testing.assert_close(tensor, whole[name], rtol=0, atol=0)


def test_features_of_a_pruned_decoder_are_those_that_stayed(folder):
    """Of a model of diffusers, whose decoder adds noise inside. The term is 0 if nothing was removed."""
    layers = {"decoder_layers_per_block": (3, 2, 1, 1, 1), "decoder_inject_noise": (True,) * 5}
    module = tiny_model("ltx_video_with_timestep", **layers)
    DiffusersAutoencoder(with_random_weights(module)).save_pretrained("ltx")
    latent = torch.randn(1, 8, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    half = {"keep_stages": [0.5], "blocks": 2}
    for options, is_whole in (({"keep_stages": [1]}, True), (half, False)):
        result = pruned("ltx", num_frames=1, max_clips=1, importance="first", **options)
        write_json(Path("prune.json"), result.report())
        term = PrunedFeatures("ltx", "prune.json")
        assert list(term.parameters()) == []
        assert len(term.layers) >= 2
        error = term(latent=latent, model=result.model.train())
        assert (error < 1e-9) == is_whole
    error.backward()
    assert result.model.module.decoder.conv_in.conv.weight.grad.any()
    assert tuple(result.model.module.config.decoder_layers_per_block) == (2, 2, 1, 1, 1)
    result.model.save_pretrained("fewer")
    diffusers.AutoencoderKLLTXVideo.from_pretrained("fewer")


def test_features_are_compared_with_the_pruned_model_only(teacher):
    """The channels of a model that is pruned twice are counted in the model between."""
    settings = {"importance": "first", "keep_stages": [0.5]}
    pruned(teacher, **settings).model.save_pretrained("once")
    report = pruned("once", **settings).report()
    write_json(Path("prune.json"), report)
    assert PrunedFeatures("once", "prune.json").layers
    message = (
        "`teacher` must be the model that `telecine prune` got for prune.json, but got teacher"
    )
    with pytest.raises(ValueError, match=message):
        PrunedFeatures(teacher, "prune.json")
    del report["decoder_sha256"]
    write_json(Path("prune.json"), report)
    with pytest.raises(ValueError, match="`pruned` must be a file of this version of `telecine pr"):
        PrunedFeatures("once", "prune.json")


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_three_phases_of_distillation(teacher, cached_weights, capsys):
    """Each recipe trains what the one before it made; features are compared in all, and a GAN is last."""
    options = [f"--{name}={value}" for name, value in CLIPS.items()]
    options += ["--keep", "0.5", "--decoder_convolutions", "depthwise,2+1d"]
    assert main(["prune", teacher, *options, "-o", "pruned"]) == 0
    assert "channels of the stages" in capsys.readouterr().out
    report = json.loads(Path("pruned/prune.json").read_text())
    assert report["channels_before"] == [8, 16]
    Path("few.yaml").write_text(
        "{steps: 1, batch_size: 1, save_every: 1, val_clips: 1, device: cpu, trackers: [], latent_clips: 1,"
        " clips: {num_frames: 5, height: 32, width: 32, num_workers: 0, num_clips: 2}, data: clip.mp4,"
        " objective: {disc_start: 0, perceptual: {net: alex}}, optimizer: {warmup_steps: 0}, linear_baseline: false}"
    )
    for recipe in ("prune_align", "prune_match", "prune_gan"):
        command = ["distill", "--config", recipe, "--config", "few.yaml", "--teacher", teacher]
        if recipe == "prune_align":
            command += ["--init", "pruned", "--optimizer.lr", "1e-12"]
        assert main(command) == 0
        logged = set().union(*Run(Path("runs") / recipe).history.read())
        assert "train/teacher_features_loss" in logged
        assert ("train/disc_grad_norm" in logged) == (recipe == "prune_gan")
        if recipe == "prune_align":
            assert main([*command, "--steps", "2"]) == 0
            assert "resuming from" in capsys.readouterr().out
            trained = load_autoencoder(f"runs/{recipe}").decoder.state_dict()
            inherited = load_autoencoder("pruned").decoder.state_dict()
            for name, tensor in inherited.items():
                torch.testing.assert_close(trained[name], tensor)
    CausalVAE(SMALL).save_pretrained("other")
    of_other = ["--teacher", "other", "--init", "pruned", "--output_dir", "of_other"]
    assert main(["distill", "--config", "prune_align", "--config", "few.yaml", *of_other]) == 2
    assert "`--init` must be a model with the encoder of `teacher`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("flux2", {"part": "both"}, "`part` must be decoder for AutoencoderKLFlux2, but got both"),
        ("kl_image", {}, "`part` must be both for AutoencoderKL, whose configuration has the same"),
        (
            "flux2",
            {"decoder_convolutions": ("2d",)},
            "`decoder_convolutions` must be left out for AutoencoderKLFlux2, whose configuration",
        ),
        ("tiny_image", {"keep": 0.001}, "`keep` must be at least 0.095"),
        (
            "mochi",
            {"keep_stages": (0.5, 0.5)},
            r"`keep_stages` must be a share for each of: stage 0, 1, 2, 3 \(32 channels in 1 parts\), but",
        ),
        (
            "mochi",
            {"keep": 0.5},
            "`keep` must be 1 or more, as the groups of the norms leave no channels to remove, but got",
        ),
        ("kl_image", {"part": "both", "blocks": 2}, "`blocks` must be below 1, the largest number"),
        (
            "flux2",
            {"blocks": 1},
            "`blocks` must be left out for this class, whose configuration has",
        ),
        (
            "ltx2_video",
            {},
            "AutoencoderKLLTX2Video, whose shortcuts between stages mix channels. `telecine distill`",
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused(folder, name, options, message):
    tiny_model(name).save_pretrained(name)
    frames, height, width = TINY_MODELS[name].clip
    size = {"num_frames": frames, "height": height, "width": width, "max_clips": 1}
    with pytest.raises(ValueError, match=message):
        pruned(name, **size, **options)


@pytest.mark.parametrize("options", [{"keep": 0.5}, {"keep_stages": (0.5,)}])
def test_a_decoder_whose_norms_leave_no_channels_to_remove_names_other_ways(folder, options):
    changes = {"up_block_out_channels": (8, 8), "norm_num_groups": 8}
    changes |= {"up_block_types": ("UpDecoderBlock2D",) * 2}
    changes |= {"down_block_out_channels": (8, 8)}
    changes |= {"down_block_types": ("DownEncoderBlock2D",) * 2}
    tiny_model("asymmetric", **changes).save_pretrained("model")
    remedy = "with `--blocks` and `--keep 1`, or distil a smaller model with `telecine distill`."
    with pytest.raises(ValueError, match=f"leave no channels to remove, but got 0.5 .*{remedy}"):
        pruned("model", num_frames=1, height=16, width=16, max_clips=1, **options)
