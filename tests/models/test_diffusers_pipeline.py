"""A student in a pipeline: a step of denoising and decoding as WanPipeline's, which itself needs a text encoder."""

import diffusers
import pytest
import torch
from diffusers.video_processor import VideoProcessor

from telecine.models import load_autoencoder
from telecine.models.diffusers import DiffusersAutoencoder, PipelineVAE
from telecine.models.student import StudentAutoencoder
from telecine.models.student_config import student_config

from .tiny_models import CLIPS, tiny_model

pytestmark = pytest.mark.usefixtures("probe_each_configuration_once")


def student_of(name, module=None):
    """Return a student of a tiny model, with random weights, which cannot load its teacher."""

    def load(name):
        raise AssertionError("the teacher is not needed")

    teacher = DiffusersAutoencoder(module or tiny_model(name))
    torch.manual_seed(0)
    return StudentAutoencoder.of(
        teacher, name, load, student_config("tiny", teacher, CLIPS[name])
    ).eval()


class Pipeline(diffusers.DiffusionPipeline):
    """One step from noise to video, with what WanPipeline reads of its autoencoder."""

    model_cpu_offload_seq = "transformer->vae"

    def __init__(self, vae, transformer, scheduler):
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer, scheduler=scheduler)
        self.time = self.vae.config.scale_factor_temporal
        self.processor = VideoProcessor(vae_scale_factor=self.vae.config.scale_factor_spatial)

    @torch.no_grad()
    def __call__(self, num_frames, height, width):
        space = self.processor.config.vae_scale_factor
        size = (
            self.vae.config.z_dim,
            (num_frames - 1) // self.time + 1,
            height // space,
            width // space,
        )
        latents = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
        self.scheduler.set_timesteps(1)
        (step,) = self.scheduler.timesteps
        noise = self.transformer(latents, step[None], torch.zeros(1, 3, 8), return_dict=False)[0]
        latents = self.scheduler.step(noise, step, latents, return_dict=False)[0].to(self.vae.dtype)
        mean, std = (
            torch.tensor(values)
            .view(1, self.vae.config.z_dim, 1, 1, 1)
            .to(self.vae.device, latents.dtype)
            for values in (self.vae.config.latents_mean, self.vae.config.latents_std)
        )
        video = self.vae.decode(latents * std + mean, return_dict=False)[0]
        return self.processor.postprocess_video(video, output_type="pt")


@pytest.fixture
def pipe():
    wan = tiny_model("wan")
    wan.register_to_config(latents_mean=[0.5, 0, 0, 0], latents_std=[2.0, 1, 1, 1])
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=8, ffn_dim=8,
        num_layers=1,
    )  # fmt: skip
    return Pipeline(wan, transformer, diffusers.FlowMatchEulerDiscreteScheduler())


def test_a_student_decodes_in_the_place_of_its_teacher(pipe):
    before = pipe(5, 16, 16)
    student = student_of("wan", pipe.vae)
    pipe.vae = PipelineVAE(student)
    for pipeline in (pipe, Pipeline(PipelineVAE(student), pipe.transformer, pipe.scheduler)):
        after = pipeline(5, 16, 16)
        assert after.shape == before.shape == (1, 5, 3, 16, 16)
        assert not torch.equal(after, before)
    assert pipe.to(torch.float64).vae.dtype == torch.float64
    assert (pipe.vae.config.z_dim, pipe.vae.config.latents_mean[0]) == (4, 0.5)


def test_a_pipeline_with_a_student_is_saved_and_loaded(pipe, tmp_path):
    student = student_of("wan", pipe.vae)
    pipe.vae = PipelineVAE(student)
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = Pipeline.from_pretrained(tmp_path / "pipe")
    assert isinstance(loaded.vae, PipelineVAE)
    torch.testing.assert_close(loaded(5, 16, 16), pipe(5, 16, 16))
    half = PipelineVAE.from_pretrained(tmp_path / "pipe" / "vae", torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    pipe.vae.save_config(tmp_path / "config")
    written = [tmp_path / name / "config.json" for name in ("config", "pipe/vae")]
    assert written[0].read_text() == written[1].read_text()
    for folder in (tmp_path / "pipe" / "vae", tmp_path / "pipe"):
        assert isinstance(load_autoencoder(folder), StudentAutoencoder)


def test_slices_and_tiles_of_a_pipeline():
    vae = PipelineVAE(student_of("wan"))
    latent = torch.randn(2, 4, 2, 12, 8, generator=torch.Generator().manual_seed(0))
    sizes = []
    vae.student.decoder.register_forward_hook(lambda *call: sizes.append(tuple(call[2].shape)))
    whole = vae.decode(latent).sample
    vae.enable_slicing()
    torch.testing.assert_close(vae.decode(latent).sample, whole)
    vae.disable_slicing()
    vae.enable_tiling(64, 64, 32, 32)
    tiled = vae.decode(latent).sample
    assert tiled.shape == whole.shape
    assert sizes == [(2, 3, 5, 96, 64), *[(1, 3, 5, 96, 64)] * 2, *[(2, 3, 5, 64, 64)] * 2]
    inner = (..., slice(0, 24), slice(None))  # far from the seam
    torch.testing.assert_close(tiled[inner], whole[inner], atol=0.1, rtol=0)
    vae.disable_tiling()
    assert torch.equal(vae.decode(latent).sample, whole)
    with pytest.raises(ValueError, match="must be at least 1 and at most the 64 pixels of a tile"):
        vae.enable_tiling(64, 64, 65, 65)


@pytest.mark.parametrize(
    "name",
    [
        "wan",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("cogvideox", "ltx_video", "cosmos")
        ),
    ],
)
def test_what_pipelines_read_has_the_values_of_the_teacher(name):
    teacher = tiny_model(name)
    vae = PipelineVAE(student_of(name))
    settings = ("z_dim", "latent_channels", "scaling_factor", "shift_factor", "scale_factor_temporal",
                "scale_factor_spatial", "timestep_conditioning")  # fmt: skip
    expected = {key: teacher.config[key] for key in settings if teacher.config.get(key) is not None}
    assert expected.items() <= dict(vae.config).items()
    ratios = ("temporal_compression_ratio", "spatial_compression_ratio")
    attributes = {
        key: value
        for key, value in vars(teacher).items()
        if key in ratios and isinstance(value, int)
    }
    buffers = {
        key: buffer
        for key, buffer in teacher.named_buffers()
        if key in ("latents_mean", "latents_std")
    }
    for key, value in attributes.items():
        assert getattr(vae, key) == vae.config[key] == value
    for key, buffer in buffers.items():
        assert torch.equal(getattr(vae, key), buffer)
    assert len(expected) + len(attributes) + len(buffers) >= 2
    if name == "wan":
        assert vae.temperal_downsample == teacher.temperal_downsample
        assert 2 ** len(vae.temperal_downsample) == 8
    if name == "cogvideox":
        assert len(vae.config.block_out_channels) == len(teacher.config.block_out_channels)
    latent = torch.zeros(1, vae.config.z_dim, 2, 4, 4)
    assert torch.equal(vae.decode(latent).sample, vae.decode(latent, None, return_dict=False)[0])


def test_pipelines_of_flux_2_read_a_batch_norm():
    teacher = tiny_model("flux2")
    teacher.bn.running_mean.normal_()
    teacher.bn.running_var.uniform_(0.5, 2)
    vae = PipelineVAE(student_of("flux2", teacher))
    assert torch.equal(vae.bn.running_mean, teacher.bn.running_mean)
    torch.testing.assert_close(
        vae.bn.running_var + vae.config.batch_norm_eps,
        teacher.bn.running_var + teacher.config.batch_norm_eps,
    )


def test_a_student_in_a_pipeline_of_images():
    vae = PipelineVAE(student_of("kl_image"))
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=4, num_layers=1, sample_size=4,
        patch_size=2,
    )  # fmt: skip
    images = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler())(
        [1, 2], num_inference_steps=1
    ).images
    assert [image.size for image in images] == [(8, 8), (8, 8)]
    latent = torch.randn(2, 4, 4, 4)
    image = vae.decode(latent, return_dict=False, generator=None)[
        0
    ]  # as StableDiffusionPipeline calls it
    assert torch.equal(image, vae.decode(latent[:, :, None]).sample[:, :, 0])
    assert 2 ** (len(vae.config.encoder_block_out_channels) - 1) == 2, "as SanaPipeline reads it"
    assert vae.config.force_upcast is False


def test_videos_are_encoded_by_the_teacher():
    vae = PipelineVAE(student_of("wan"))
    video = torch.zeros(1, 3, *CLIPS["wan"])
    assert vae.encode(video).latent_dist.mode().shape == (1, 4, 2, 2, 2)
    assert vae.encode(video, return_dict=False)[0].mode().shape == (1, 4, 2, 2, 2)
    assert vae.to(torch.bfloat16).encode(video.bfloat16()).latent_dist.mode().isfinite().all()
