"""Every autoencoder of images and video of the installed diffusers can be trained; models are tiny and random."""

import copy
import inspect
import re
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import torch
from diffusers import ModelMixin
from diffusers.models import autoencoders
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResidualBlock
from safetensors import SafetensorError
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from telecine.losses import posterior_kl
from telecine.models import DeterministicPosterior, DiagonalGaussian, Moments, pretrained
from telecine.models.clip_sizes import ShapeProbe
from telecine.models.diffusers import DiffusersAutoencoder, checkpointed_blocks, loading
from telecine.models.diffusers.families import FAMILIES, REFUSED
from telecine.models.lora import LAYERS, add_low_rank, low_rank_layers, merge_in_place
from telecine.models.pretrained import DECODER
from telecine.settings import AdaptiveWeightConfig
from telecine.training.build import last_layer_probe

from .tiny_models import (
    BEFORE_AND_AFTER_PROBING,
    CLIPS,
    FAST,
    IMAGE_MODELS,
    TINY_MODELS,
    adapter,
    every_kind,
    every_model,
    shared,
    tiny_clip,
    tiny_model,
)

# The numbers of frames that are tried, and which of them a class accepts. Longer ones are those at which one differs.
LENGTHS = (1, 2, 4, 5, 8, 9)
LONGER = {
    "allegro": (16, 20),
    "cogvideox": (16, 17),
    "cosmos": (17,),
    "kandinsky6_sr": (17,),
    "kvae_video": (17, 21),
    "ltx_video": (17,),
    "minimax_h3": (22,),
    "mochi": (7,),
}
FOUR_K_1 = {1, 5, 9, 17}
EIGHT_K_1 = {1, 9, 17}
ANY = set(LENGTHS)
# Accepted numbers of frames, smallest side, step between sides, last layer.
FACTS = {
    "cogvideox": ({1, 8, 9, 16, 17}, 8, 8, "decoder.conv_out.conv.weight"),
    **dict.fromkeys(("wan", "qwen_image", "magvit"), (FOUR_K_1, 8, 8, "decoder.conv_out.weight")),
    "wan_residual": (FOUR_K_1, 16, 16, "decoder.conv_out.weight"),
    "qwen_image21": (ANY, 16, 16, "decoder.conv_out.weight"),
    **dict.fromkeys(
        ("ltx_video", "ltx_video_with_timestep"),
        (EIGHT_K_1, 32, 32, "decoder.conv_out.conv.weight"),
    ),
    "ltx2_video": (EIGHT_K_1, 64, 32, "decoder.conv_out.conv.weight"),
    **dict.fromkeys(
        ("hunyuan_video", "vidtok", "vidtok_fsq"),
        (FOUR_K_1, 8, 8, "decoder.conv_out.conv.weight"),
    ),
    **dict.fromkeys(
        ("hunyuan_video15", "kandinsky6_sr"),
        (FOUR_K_1, 16, 16, "decoder.conv_out.conv.weight"),
    ),
    "hunyuan_image_refiner": (ANY, 16, 16, "decoder.conv_out.conv.weight"),
    "cosmos": (EIGHT_K_1, 8, 8, "decoder.conv_out.conv_t.weight"),
    "mochi": ({1, 7}, 16, 8, "decoder.proj_out.weight"),
    "allegro": ({4, 8, 16, 20}, 8, 8, "decoder.conv_out.weight"),
    "temporal_decoder": (ANY, 16, 8, "decoder.time_conv_out.weight"),
    # Three frames are lost if the last chunk of 16 has only four, as for 21, 37, ...
    "kvae_video": (FOUR_K_1, 16, 8, "decoder.conv_out.conv.weight"),
    "minimax_h3": ({22}, 32, 16, "decoder.proj_out.weight"),
    **dict.fromkeys(
        ("asymmetric", "dc_ae", "flux2", "kl_image", "vq_image"),
        (ANY, 2, 2, "decoder.conv_out.weight"),
    ),
    **dict.fromkeys(("hunyuan_image", "kvae_image"), (ANY, 4, 2, "decoder.conv_out.weight")),
    "rae": (ANY, 32, 32, "decoder.decoder_pred.weight"),
    "tiny_image": (ANY, 2, 2, "decoder.layers.6.weight"),
}
# Those without a KL divergence, and the losses that they have.
WITHOUT_KL = {
    **dict.fromkeys(("cosmos", "dc_ae", "kvae_video", "rae", "tiny_image", "vidtok_fsq"), ())
}
WITHOUT_KL["vq_image"] = ("commit_loss",)
# Weights that clips without a mask do not use, and those that mix frames, which images do not use.
UNUSED = {"asymmetric": "condition_encoder", "qwen_image21": "time_conv"}
# Those of any number of frames that are not of images: they see frames together.
TOGETHER = {"hunyuan_image_refiner", "temporal_decoder"}
CLAMPED = ("wan", "wan_residual", "qwen_image", "qwen_image21")


@pytest.mark.slow
def test_every_class_of_diffusers_is_tested_or_refused_for_a_reason():
    classes = {
        name
        for name, cls in inspect.getmembers(autoencoders, inspect.isclass)
        if issubclass(cls, ModelMixin)
    }
    tested = {model.cls for model in TINY_MODELS.values() if hasattr(autoencoders, model.cls)}
    assert not tested & set(REFUSED)
    assert classes == tested | set(REFUSED) | {
        "LTX2VideoDiffusionDecoderModel"
    }  # see test_diffusion_decoder.py
    assert set(FACTS) == set(TINY_MODELS)
    assert set(IMAGE_MODELS) == {name for name in TINY_MODELS if FACTS[name][0] == ANY} - TOGETHER


@pytest.mark.parametrize("name", ["AutoencoderOobleck", "ConsistencyDecoderVAE"])
def test_a_refused_class_is_named_with_the_reason(name):
    message = f"must be an autoencoder of images or video that reconstructs, but got {name}, {REFUSED[name]}. Use"
    with pytest.raises(ValueError, match=re.escape(message)):
        DiffusersAutoencoder.from_config({"_class_name": name})
    mine = type(name, (torch.nn.Module,), {})
    with pytest.raises(ValueError, match="`module` must be an autoencoder of images or video"):
        DiffusersAutoencoder(mine())


@every_model
def test_latents_do_not_depend_on_the_decoder_and_the_video_on_nothing_else(name):
    """Training only `decoder` and `post_quant_conv` keeps the latents of every class, and what the posterior adds.

    In half precision, in which latents and losses stay in float32.
    """
    model = shared(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = model.encode(tiny_clip(name, batch=2))
        latent = posterior.mode()
        video, losses = model.decode_with_losses(latent.detach())
    assert latent.dtype == torch.float32
    assert video.isfinite().all()
    assert video.shape == (2, 3, *CLIPS[name])
    parts = {id(weight): key.split(".")[0] for key, weight in model.module.named_parameters()}
    parts_of_latent = {parts[id(leaf)] for leaf in leaves_of(latent)}
    parts_of_video = {parts[id(leaf)] for leaf in leaves_of(video)}
    assert bool(parts_of_latent) == latent.requires_grad  # not of a frozen encoder
    assert parts_of_latent.isdisjoint(DECODER)
    assert parts_of_video
    assert parts_of_video <= set(DECODER)
    assert_losses(name, posterior, {**posterior.aux(), **losses})


def assert_losses(name, posterior, losses):
    """Compare with the KL divergence of mean and logvar, or the names of other losses."""
    for loss in map(divergence_or_loss, losses.values()):
        assert (loss.dtype, loss.ndim) == (torch.float32, 0)
    if name in WITHOUT_KL:
        assert tuple(losses) == WITHOUT_KL[name]
        assert isinstance(posterior, DeterministicPosterior)
        assert torch.equal(posterior.sample(), posterior.mode())
        return
    assert isinstance(posterior, DiagonalGaussian)
    mean = posterior.mean
    logvar = posterior.logvar
    expected = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum() / mean.numel()
    (moments,) = losses.values()
    torch.testing.assert_close(posterior_kl(moments), expected)
    assert not torch.equal(posterior.sample(), posterior.sample())


def leaves_of(output):
    """Return the leaves in the graph of an output, without a backward."""
    nodes = [output.grad_fn]
    seen = {None}
    leaves = []
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        nodes += [function for function, _ in node.next_functions]
    return leaves


@cache
def reconstruction(name):
    """Return what the model makes of its tiny clip, in evaluation mode."""
    with torch.no_grad():
        return adapter(name).eval()(tiny_clip(name), sample_posterior=False).video


# Their layers are of all types that have adapters.
LOW_RANK = (
    "cogvideox",
    "cosmos",
    "kandinsky6_sr",
    "kvae_video",
    "magvit",
    "minimax_h3",
    "qwen_image",
    "qwen_image21",
    "vidtok",
    "wan",
)


def types_of_layers(names):
    layers = chain.from_iterable(shared(name).modules() for name in names)
    return {type(layer) for layer in layers if isinstance(layer, LAYERS)}


@pytest.mark.slow
def test_layers_of_every_type_have_low_rank_updates():
    types = types_of_layers(LOW_RANK)
    assert types == types_of_layers(TINY_MODELS)
    assert len(types) == 13


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in LOW_RANK],
)
def test_low_rank_updates_compute_the_same_after_merging(name):
    model = adapter(name).eval()
    layers = {
        key: layer for key, layer in model.module.named_modules() if isinstance(layer, LAYERS)
    }
    add_low_rank(model.module, layers, rank=2, alpha=1.0)
    assert set(low_rank_layers(model)) == set(layers.values())
    assert not any(
        weight.requires_grad
        for key, weight in model.named_parameters()
        if ".parametrizations." not in key
    )
    torch.manual_seed(0)
    for key, weight in model.named_parameters():
        if key.endswith(".up"):
            weight.normal_(std=0.1)
    updated = model(tiny_clip(name), sample_posterior=False).video
    assert (updated - reconstruction(name)).abs().max() > 1e-3
    merge_in_place(model)  # as `merge_low_rank` does with a copy
    assert set(model.state_dict()) == set(shared(name).state_dict())
    torch.testing.assert_close(
        model(tiny_clip(name), sample_posterior=False).video, updated, rtol=1e-3, atol=1e-4
    )


@every_kind
def test_values_outside_the_range_have_gradients_which_follow_from_the_activations_of_the_last_layer(
    name,
):
    """Activations replace the gradient of a sharded weight. Wan runs its last layer once for each chunk of frames."""
    model = adapter(name)
    with torch.no_grad():
        model.last_layer.mul_(1000)
    activations = last_layer_probe(model, AdaptiveWeightConfig(), None, is_sharded=True)
    video = model(tiny_clip(name), sample_posterior=False).video
    outside = video.detach().abs() > 1
    assert outside.any()
    loss = video[outside].sin().sum()
    (expected,) = torch.autograd.grad(loss, model.last_layer, retain_graph=True)
    assert expected.any()
    torch.testing.assert_close(activations.gradients([loss])[0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@every_model
def test_accepted_sizes_and_last_layer(name):
    model = shared(name)
    sizes = model.sizes
    lengths, side, multiple, last_layer = FACTS[name]
    tried = {*LENGTHS, *LONGER.get(name, ())} if name not in IMAGE_MODELS else {1, 2, 5}
    assert {length for length in tried if sizes.reproduces_length(length)} == lengths & tried
    assert (sizes.smallest[1], sizes.multiple) == (side, multiple)
    time, rows, columns = sizes.smallest
    if name == "rae":  # has positional embeddings of one size
        with pytest.raises(
            ValueError, match=r"`width` must be 32 for this model, but got 64\. Use 32,"
        ):
            model.check_clip(time, rows, columns + multiple)
        with pytest.raises(
            ValueError, match=r"`height` must be 32 for this model, but got 33\. Use 32,"
        ):
            model.covering_clip(time, 33, columns)
        assert model.covering_clip(3, 1, 32) == (3, 32, 32)
        multiple = 0
    assert model(torch.zeros(1, 3, time, rows, columns + multiple)).video.isfinite().all()
    assert model.last_layer is dict(model.module.named_parameters())[last_layer]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "wan",
            (16, 16, 16),
            r"`num_frames` must be 4k\+1 for this model, but got 16\. Use 17, the nearest",
        ),
        ("wan", (3, 16, 16), r"but got 3\. Use 5, the nearest accepted value\."),
        ("wan", (2, 16, 16), r"but got 2\. Use 5, the nearest accepted value above 1\."),
        (
            "wan",
            (5, 20, 16),
            "`height` must be a multiple of 8 for this model, but got 20. Use 24,",
        ),
        ("wan", (5, 16, 3), "`width` must be a multiple of 8 for this model, but got 3. Use 8,"),
        ("cogvideox", (5, 16, 16), r"must be 1, 8 or 9 for this model, but got 5\. Use 8,"),
        pytest.param("mochi", (7, 8, 16), "`height` .* got 8. Use 16,", marks=pytest.mark.slow),
        pytest.param(
            "allegro", (5, 16, 16), "a multiple of 4 .* got 5. Use 4,", marks=pytest.mark.slow
        ),
        pytest.param(
            "qwen_image21",
            (0, 32, 32),
            "`num_frames` must be .* got 0. Use 1,",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_error_for_an_unsupported_size_contains_the_nearest(name, size, message):
    with pytest.raises(ValueError, match=message):
        shared(name).check_clip(*size)


@pytest.mark.parametrize(
    ("name", "size", "covering"),
    [
        ("cogvideox", (5, 9, 16), (8, 16, 16)),
        ("wan", (16, 17, 30), (17, 24, 32)),
        pytest.param("minimax_h3", (6, 32, 33), (22, 32, 48), marks=pytest.mark.slow),
        pytest.param("qwen_image21", (1, 60, 90), (1, 64, 96), marks=pytest.mark.slow),
    ],
)
def test_the_smallest_size_that_covers(name, size, covering):
    assert shared(name).covering_clip(*size) == covering


@pytest.mark.parametrize(
    ("name", "frames", "sizes"),
    [
        ("wan", 9, (4, 8, 4)),
        ("wan", 1, (1, 8, 4)),
        ("cogvideox", 8, (7, 8, 4)),  # two latent frames, as for the first frame and seven others
        pytest.param("mochi", 7, (6, 8, 4), marks=pytest.mark.slow),
        pytest.param("allegro", 8, (4, 8, 4), marks=pytest.mark.slow),
    ],
)
def test_the_linear_autoencoder_has_as_many_latent_values(name, frames, sizes):
    model = shared(name)
    linear = model.linear_autoencoder(frames, 32, 32)
    assert (linear.encoder.time, linear.encoder.space, linear.encoder.rest.out_features) == sizes
    assert (linear.encoder.first is None) == (name == "allegro")
    video = torch.zeros(1, 3, frames, *model.covering_clip(frames, 16, 16)[1:])
    with torch.no_grad():
        assert linear.encode(video).shape == model.encode(video).mode().shape


@pytest.mark.slow
def test_there_is_no_linear_autoencoder_if_latent_frames_do_not_divide_the_others():
    assert shared("minimax_h3").linear_autoencoder(39, 32, 32) is None


@every_kind
def test_the_meta_device_computes_the_same_shapes(name):
    sizes = shared(name).sizes
    assert not sizes.probe.on_meta
    on_meta = ShapeProbe(sizes.reconstruct, 3, on_meta=True)
    assert on_meta.output_shape(CLIPS[name]) == (1, 3, *CLIPS[name])
    assert all(weight.device.type == "cpu" for weight in shared(name).parameters())


def test_sizes_of_a_model_without_values_are_found_with_real_clips():
    with FakeTensorMode():
        model = DiffusersAutoencoder(tiny_model("wan"))
        types = set()
        model.module.encoder.register_forward_pre_hook(lambda _, args: types.add(type(args[0])))
        found = model.sizes.smallest, model.sizes.multiple
        assert types == {torch.Tensor}
        assert isinstance(model(torch.empty(1, 3, 5, 16, 16)).video, FakeTensor), "it is as before"
    assert found == (shared("wan").sizes.smallest, shared("wan").sizes.multiple)
    assert not model.sizes.probe.on_meta


def clips_of(frames, batch):
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def reconstruct_frames(module, name, frames):
    """Reconstruct images with the class's own methods, from the mode of the posterior."""
    if name == "qwen_image21":  # clips of one frame
        return module(
            torch.cat([frames, torch.ones_like(frames[:, :1])], dim=1)[:, :, None]
        ).sample[:, :3, 0]
    if name == "tiny_image":  # `forward` also stores the latent in bytes
        return module.decode(module.encode(frames).latents).sample
    return 2 * module((frames + 1) / 2).sample - 1 if name == "rae" else module(frames).sample


def by_diffusers(module, name, video):
    """Reconstruct with the class's own `forward`, from the mode of the posterior."""
    if name in IMAGE_MODELS:
        return clips_of(
            reconstruct_frames(module, name, video.transpose(1, 2).flatten(0, 1)), len(video)
        )
    if name == "temporal_decoder":
        frames = video.transpose(1, 2).flatten(0, 1)
        return (
            module(frames, num_frames=video.shape[2])
            .sample.unflatten(0, (len(video), -1))
            .transpose(1, 2)
        )
    if name == "minimax_h3":
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)
        return (module(((video + 1) / 2 - mean) / std).sample * std + mean) * 2 - 1
    if name == "allegro":  # one tile of the clip's size
        module.use_tiling = True
        module.kernel = tuple(video.shape[2:])
        module.stride = tuple(video.shape[2:])
        return module(video).sample.transpose(1, 2)
    if name == "ltx_video_with_timestep":
        return module(video, temb=torch.zeros(len(video))).sample
    return module(video, sample_posterior=False).sample


@torch.no_grad()
@every_model
def test_saved_models_are_those_of_diffusers_and_compute_the_same(name, tmp_path):
    model = shared(name)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    loaded = loading.load_module(str(tmp_path)).eval()
    expected = reconstruction(name)
    if name in CLAMPED:
        expected = expected.clamp(-1, 1)
    torch.testing.assert_close(
        by_diffusers(loaded, name, tiny_clip(name)), expected, rtol=1e-4, atol=1e-5
    )
    again = DiffusersAutoencoder(loaded)
    assert all(module.training for module in again.modules())
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_weights_are_counted_before_they_are_in_memory(tmp_path, monkeypatch):
    model = shared("kl_image")
    model.save_pretrained(tmp_path)
    num_weights = sum(weight.numel() for weight in model.parameters())
    monkeypatch.setattr(pretrained, "machine_memory", lambda: 4 * num_weights - 1)  # bytes
    with pytest.raises(ValueError, match=f"but got one with {num_weights} weights"):
        loading.load_module(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) for name in ("magvit", "qwen_image", "vidtok")]
    + ["wan"],
)
def test_a_model_that_caches_frames_can_be_copied_during_and_after_a_step(name):
    model = adapter(name)
    output = model(tiny_clip(name), sample_posterior=False)
    during = copy.deepcopy(model)
    output.video.mean().backward()
    after = copy.deepcopy(model)
    for copied in (during, after):
        assert copied.last_layer is not model.last_layer
        assert copied.sizes.reconstruct.module is copied.module
        torch.testing.assert_close(copied.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert torch.equal(after(tiny_clip(name), sample_posterior=False).video, output.video)


@every_model
def test_every_weight_has_a_gradient_and_checkpointing_computes_the_same(name):
    model = adapter(name)
    video = tiny_clip(name)
    assert model.training
    plain = gradients(model, video)
    assert plain["output"].shape == video.shape
    unused = [
        key for key, weight in model.named_parameters() if key not in plain and weight.requires_grad
    ]
    assert all(UNUSED[name] in key for key in unused)
    assert bool(unused) == (name in UNUSED)
    assert model.leaves_weights_unused == (name in (*UNUSED, "vq_image")), (
        "or whose only loss may have no weight"
    )
    assert all(gradient.isfinite().all() for gradient in plain.values())
    for side in ("encoder.", "decoder.") if name != "rae" else ("decoder.",):
        assert any(gradient.any() for key, gradient in plain.items() if side in key)
    assert plain[last_layer_name(model)].any()
    checkpointed_blocks.enable(model.module, model.family.checkpointed_blocks)
    assert relative_error(gradients(model, video), plain) < 1e-6
    if model.family.checkpointed_blocks:
        copy.deepcopy(model)


@pytest.mark.parametrize("name", ["wan", pytest.param("mochi", marks=pytest.mark.slow)])
def test_enabling_gradient_checkpointing_compares_gradients_and_changes_no_state(name):
    model = adapter(name)
    state = torch.get_rng_state()
    model.enable_gradient_checkpointing()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())


def test_blocks_of_subclasses_are_checkpointed_too():
    model = adapter("wan")
    calls = []

    class OwnBlock(WanResidualBlock):
        def forward(self, *inputs, **keywords):
            calls.append(self)
            return super().forward(*inputs, **keywords)

    blocks = [block for block in model.module.modules() if type(block) is WanResidualBlock]
    for block in blocks:
        block.__class__ = OwnBlock
    model.enable_gradient_checkpointing()
    clip = torch.zeros(1, 3, 1, 16, 16)
    model(clip)  # the first pass also finds the sizes that the model reproduces
    calls.clear()
    video = model(clip, sample_posterior=False).video
    assert len(calls) == len(blocks) > 0
    video.sum().backward()
    assert len(calls) == 2 * len(blocks)


def test_a_model_without_the_blocks_of_its_class_is_not_checkpointed():
    model = adapter("wan")
    model.family = replace(model.family, checkpointed_blocks=("Missing",))
    message = "got one without the blocks of its class, Missing. Train it without"
    with pytest.raises(ValueError, match=message):
        model.enable_gradient_checkpointing()


def test_gradient_checkpointing_of_a_frozen_model_is_compared_too():
    """LoRA then trains beside its weights."""
    model = adapter("wan").requires_grad_(False)
    model.enable_gradient_checkpointing()
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wan", "does not support"),
        pytest.param("magvit", "backward pass fails", marks=pytest.mark.slow),
        pytest.param("kvae_video", "gradients change by", marks=pytest.mark.slow),
    ],
)
def test_gradient_checkpointing_that_is_not_exact_is_an_error(name, message, monkeypatch):
    """What diffusers itself does with these classes, whose blocks telecine checkpoints instead."""
    monkeypatch.setattr(checkpointed_blocks, "checkpoint_call", None)
    model = adapter(name)
    model.family = replace(model.family, checkpointed_blocks=())
    video = tiny_clip(name)
    plain = gradients(model, video)
    with pytest.raises(ValueError, match=f"{message}.*Train it without"):
        model.enable_gradient_checkpointing()
    assert not model.module.is_gradient_checkpointing
    assert relative_error(gradients(model, video), plain) < 1e-5


def divergence_or_loss(aux):
    return posterior_kl(aux) if isinstance(aux, Moments) else aux


def gradients(model, video):
    """Return the gradients of the weights by their names, and the reconstruction as "output"."""
    torch.manual_seed(0)  # Allegro has dropout
    output = model(video, sample_posterior=False)
    loss = output.video.square().mean() + sum(
        divergence_or_loss(aux) for aux in output.aux.values()
    )
    weights = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    by_name = {
        key: gradient
        for key, gradient in zip(weights, gradients, strict=True)
        if gradient is not None
    }
    return {"output": output.video.detach(), **by_name}


def relative_error(actual, expected):
    assert actual.keys() == expected.keys()
    difference = torch.cat([(actual[key] - expected[key]).flatten() for key in expected])
    return float(
        difference.norm() / torch.cat([value.flatten() for value in expected.values()]).norm()
    )


def last_layer_name(model):
    return next(key for key, weight in model.named_parameters() if weight is model.last_layer)


# A model, the frames of a chunk, and those of a clip of several chunks, the last of which is shorter where it may be.
CHUNKED = [
    ("wan", 4, 9),
    ("wan_residual", 8, 13),
    ("qwen_image", 4, 9),
    ("magvit", 4, 9),
    ("cogvideox", 8, 17),
    ("kandinsky6_sr", 16, 21),
    ("kvae_video", 16, 25),
]


def test_every_class_that_supports_chunks_is_tested():
    tested = {type(shared(name).module).__name__ for name, *_ in CHUNKED}
    assert tested == {name for name, family in FAMILIES.items() if family.stream is not None}


@pytest.mark.parametrize(
    ("name", "chunk", "num_frames"),
    [pytest.param(*case, marks=() if case[0] in FAST else pytest.mark.slow) for case in CHUNKED],
)
def test_temporal_chunks_are_exact(name, chunk, num_frames):
    model = adapter(name)
    _, height, width = model.sizes.smallest
    video = 2 * torch.rand(1, 3, num_frames, height, width) - 1
    plain = gradients(model, video)
    model.enable_temporal_chunks(chunk)
    if name in FAST:  # the gradients of others with the next
        assert relative_error(gradients(model, video), plain) < 2e-5
    checkpointed_blocks.enable(model.module, model.family.checkpointed_blocks)
    chunked = gradients(model, video)
    torch.testing.assert_close(chunked["output"], plain["output"], rtol=1e-4, atol=1e-5)
    assert relative_error(chunked, plain) < 2e-5
    copy.deepcopy(model)


@pytest.mark.parametrize(
    ("name", "chunk", "message"),
    [
        ("wan", 6, "`temporal_chunk` must be a multiple of 4 for this model, but got 6. Use 8"),
        ("cogvideox", 4, "`temporal_chunk` must be 8 for this model, but got 4. Use 8"),
        ("wan", 0, "`temporal_chunk` must be a positive int"),
        (
            "ltx_video",
            8,
            "`temporal_chunk` must be left out .* a number for AutoencoderKLLTXVideo.*checkpointing",
        ),
    ],
)
def test_a_chunk_that_does_not_work_is_an_error(name, chunk, message):
    with pytest.raises(ValueError, match=message):
        adapter(name).enable_temporal_chunks(chunk)


def test_the_page_says_what_each_class_supports():
    page = (Path(__file__).parents[2] / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
    rows = [
        f"| {cls} | {'telecine' if FAMILIES[cls].checkpointed_blocks else 'diffusers'} | {chunks_of(cls)} |"
        for cls in sorted({type(shared(name).module).__name__ for name in TINY_MODELS})
    ]
    classes = ("| Autoencoder", "| AsymmetricAutoencoder", "| Kandinsky", "| VQModel")
    lines = [line for line in page.splitlines() if line.startswith(classes)]
    assert lines == rows, "put these rows in the page:\n" + "\n".join(rows)


def chunks_of(cls):
    stream = FAMILIES[cls].stream
    if stream is None:
        return "-"
    return f"a multiple of {stream.chunk}" if stream.accepts_multiples else f"{stream.chunk}"


@every_model
def test_probing_changes_no_state(name):
    shared(name)
    before, after = BEFORE_AND_AFTER_PROBING[name]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(after["training"])


def test_a_full_disk_is_an_oserror(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="cannot write weights to"):
        DiffusersAutoencoder(tiny_model("wan")).save_pretrained(tmp_path)


def test_the_path_of_the_origin_is_not_saved(tmp_path):
    adapter("kl_image").save_pretrained(tmp_path / "private" / "vae")
    DiffusersAutoencoder.from_pretrained(tmp_path / "private" / "vae").save_pretrained(
        tmp_path / "out"
    )
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()
