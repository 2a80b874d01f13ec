"""LTX-2.5's diffusion decoder with a frozen encoder."""

import copy
import json

import diffusers
import pytest
import torch

from telecine.base.randomness import clip_generators, randn
from telecine.models import load_autoencoder
from telecine.models.diffusers import DiffusersAutoencoder, DiffusionDecoder
from telecine.models.diffusers.diffusion_decoder import WindowAttention
from telecine.models.flow import EulerSampler, random_levels
from telecine.models.load import teacher_of
from telecine.ops.pass_options import ClipPosition
from telecine.settings import CausalVAEConfig
from telecine.settings.autoencoder import FlowConfig

from .tiny_models import tiny_model

pytestmark = pytest.mark.usefixtures("probe_each_configuration_once")
CPU = torch.device("cpu")


@pytest.fixture
def pipeline(tmp_path):
    """Return a pipeline's folder: a tiny autoencoder with statistics, and a decoder for its latents."""
    vae = tiny_model("ltx2_video")
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2.0)
    vae.save_pretrained(tmp_path / "vae")
    tiny_model("ltx2_diffusion_decoder").save_pretrained(tmp_path / "diffusion_decoder")
    return tmp_path


def decoder(**changes):
    return DiffusionDecoder(
        tiny_model("ltx2_diffusion_decoder", **changes), "vae", load_autoencoder, digest=""
    )


def test_attention_to_the_window_around_each_position():
    """Compare with all scores at once; windows are moved inward at the borders."""
    module = pytest.importorskip("diffusers.models.autoencoders.ltx2_diffusion_decoder")
    torch.manual_seed(0)
    size = (5, 17, 9)
    window = (3, 5, 4)
    attention = module.LTX2VideoVaeNeighborhoodAttention(16, window, head_dim=8).double()
    attention.set_processor(WindowAttention())
    x = torch.randn(2, *size, 16, dtype=torch.float64)
    query, key, value = (y.flatten(1, 3) for y in attention.project_qkv(x))
    places = torch.cartesian_prod(*map(torch.arange, size))
    first = torch.stack(
        [
            (axis - k // 2).clamp(0, n - k)
            for axis, n, k in zip(places.T, size, window, strict=True)
        ],
        dim=1,
    )
    seen = ((places >= first[:, None]) & (places < first[:, None] + torch.tensor(window))).all(-1)
    assert (seen.sum(1) == 3 * 5 * 4).all()
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key).masked_fill(~seen, -torch.inf)
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
    torch.testing.assert_close(attention(x), attention.to_out[0](expected.flatten(2)).view_as(x))


@pytest.mark.slow
def test_it_takes_the_statistics_of_its_teacher_and_is_saved_for_diffusers(pipeline, tmp_path):
    model = load_autoencoder(pipeline / "diffusion_decoder")
    vae = DiffusersAutoencoder.from_pretrained(pipeline / "vae")
    assert isinstance(model, DiffusionDecoder)
    assert model.latent_normalisation() == vae.latent_normalisation()
    assert {name.split(".")[0] for name in model.state_dict()} == {"module"}
    x = torch.rand(2, 3, 9, 64, 64) * 2 - 1
    assert torch.equal(model.encode(x).mode(), vae.encode(x).mode())
    copy.deepcopy(model).save_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["_teacher"] == "vae", "not where it is on this machine"
    saved = diffusers.LTX2VideoDiffusionDecoderModel.from_pretrained(tmp_path / "out")
    assert saved.latents_std.tolist() == pytest.approx(vae.latent_normalisation()["latents_std"])
    again = load_autoencoder(tmp_path / "out")
    latent = torch.randn(1, 8, 2, 2, 2)
    moved = (pipeline / "vae").rename(pipeline / "moved")
    assert torch.equal(again.eval().decode(latent), model.eval().decode(latent)), (
        "decoding needs no teacher"
    )
    moved.rename(pipeline / "vae")
    assert torch.equal(again.encode(x).mode(), vae.encode(x).mode())
    planned = load_autoencoder(str(tmp_path / "out"), with_weights=False)
    assert [w.shape for w in planned.parameters()] == [w.shape for w in model.parameters()]


def test_another_teacher_is_refused(pipeline, tmp_path):
    load_autoencoder(pipeline / "diffusion_decoder").save_pretrained(tmp_path / "out")
    other = tiny_model("ltx2_video")
    for weight in other.encoder.parameters():
        torch.nn.init.normal_(weight)
    other.save_pretrained(pipeline / "vae")
    with pytest.raises(
        ValueError, match=r"`teacher` must be the teacher that the student was trained with"
    ):
        load_autoencoder(tmp_path / "out").encode(torch.zeros(1, 3, 9, 64, 64))
    with pytest.raises(
        ValueError, match=r"`teacher` must be the teacher of .*out, but got .*Set `_teacher`"
    ):
        load_autoencoder(pipeline / "diffusion_decoder").load_weights(tmp_path / "out")
    tiny_model("wan").save_pretrained(pipeline / "vae")
    with pytest.raises(
        ValueError, match="`teacher` must be an autoencoder with `latents_mean` of 8 channels"
    ):
        load_autoencoder(pipeline / "diffusion_decoder")


def test_an_autoencoder_whose_folder_is_named_like_one_of_a_checkpoint(tmp_path):
    pipeline = tmp_path / "pipeline"
    checkpoint = tmp_path / "step"
    for folder in (
        pipeline / "model",
        pipeline / "decoder",
        checkpoint / "model",
        checkpoint / "ema",
    ):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"_teacher": "model"}')
    (checkpoint / "config.yaml").write_text(f"model: {pipeline / 'decoder'}\n")
    assert teacher_of(checkpoint / "ema") == str(pipeline / "model")
    pipeline.rename(tmp_path / "moved")
    assert teacher_of(checkpoint / "ema") == str(checkpoint / "model"), "moved, too"


def test_sizes_below_a_window_of_attention_are_refused(pipeline):
    """Of the published kernels: 224 pixels, 7 positions of 32 pixels; 17 frames, as 9 are fewer than 11."""
    model = decoder()
    assert model.smallest_clip == (9, 64, 64)
    published = {"decoder_stage_kernels": ((3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5))}
    assert decoder(**published, decoder_stage5_kernel=(11, 11, 11)).smallest_clip == (17, 224, 224)
    model = load_autoencoder(pipeline / "diffusion_decoder")
    model.check_clip(9, 64, 64)
    with pytest.raises(
        ValueError, match="`num_frames` must be at least 9 for this model, but got 1"
    ):
        model.check_clip(1, 64, 64)
    assert model.covering_clip(1, 8, 70) == (9, 64, 96)


@pytest.mark.parametrize("kind", ["x0", "v"])
def test_it_is_sampled_in_steps_as_diffusers_does(kind):
    model = decoder(decoder_model_output_type=kind).double()
    latent = torch.randn(2, 8, 2, 1, 1, dtype=torch.float64)
    context = model.module.decoder.forward_stage_4(
        model.module.decoder.forward_stages_1_to_3(latent)
    )
    for steps in (1, 3):
        model.set_decoding(steps=steps)
        noise = EulerSampler().noise((2, 3, 9, 32, 32), ClipPosition(), CPU).double()
        expected = model.module.decoder.denoise(context, noise, steps)
        torch.testing.assert_close(model.decode(latent, noise), expected, rtol=1e-4, atol=1e-5)


def test_an_update_predicts_the_video_at_random_levels():
    torch.manual_seed(0)
    model = decoder(decoder_model_output_type="x0")
    model.use_training_settings(
        CausalVAEConfig(flow=FlowConfig(level_mean=1.0, weighting="velocity"))
    )
    latent = torch.randn(2, 8, 2, 1, 1)
    video = torch.rand(2, 3, 9, 32, 32) * 2 - 1
    output = model.training_output(latent, video, clip_generators(3, range(2), CPU))
    generators = clip_generators(3, range(2), CPU)
    level = random_levels(model.flow, video, generators)
    t = level.view(-1, 1, 1, 1, 1)
    noisy = (1 - t) * video + t * randn(video.shape, generator=generators, device=CPU)
    layers = model.module.decoder
    context = layers.forward_stage_4(layers.forward_stages_1_to_3(latent))
    torch.testing.assert_close(output.video, layers.forward_diffusion_step(context, noisy, level))
    torch.testing.assert_close(output.weight, level.clamp(min=0.1) ** -2)
    (plain,) = torch.autograd.grad(output.video.square().mean(), model.last_layer)
    model.enable_gradient_checkpointing()
    recomputed = model.training_output(latent, video, clip_generators(3, range(2), CPU))
    torch.testing.assert_close(
        torch.autograd.grad(recomputed.video.square().mean(), model.last_layer)[0], plain
    )


@pytest.mark.slow
def test_diffusers_own_attention_and_pipeline_have_its_video(pipeline, tmp_path):
    """The pipeline draws other noise for the same seed; here both get the same."""
    pytest.importorskip("transformers", reason="the pipeline needs it")
    model = load_autoencoder(pipeline / "diffusion_decoder")
    model.save_pretrained(tmp_path / "out")
    saved = diffusers.LTX2VideoDiffusionDecoderModel.from_pretrained(tmp_path / "out")
    runs = diffusers.LTX2VideoDiffusionDecodePipeline(
        saved, scheduler=diffusers.FlowMatchEulerDiscreteScheduler()
    )
    latent = torch.randn(1, 8, 2, 2, 2)
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in model.latent_normalisation().values()
    )
    frames = runs(latent, generator=torch.Generator().manual_seed(5), output_type="pt").frames
    noise = torch.randn(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ours = model.decode(latent * std + mean, noise).clamp(-1, 1)
    torch.testing.assert_close(frames, (ours.transpose(1, 2) + 1) / 2, rtol=1e-4, atol=1e-4)
