"""Streams: any division has the result of the whole, and streams of one model do not disturb each other."""

import random
import re
from pathlib import Path

import pytest
import torch

from telecine.models import CausalVAE, StudentAutoencoder
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.diffusers.families import FAMILIES
from telecine.ops.pass_options import clip_position
from telecine.settings import CausalVAEConfig

from .helpers import add_noise_to_weights
from .tiny_models import FAST, STREAMED, adapter, shared, tiny_model

SMALL = {
    "time_compression": 4,
    "spatial_compression": 4,
    "latent_channels": 4,
    "patch_size": 2,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "blocks_per_level": 1,
}
# Convolutions choose their order of sums by the number of frames.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}
CAUSAL = {
    "gaussian": {},
    "three_frames_back": {"time_kernel": 3, "nested_channels": (2,)},
    "one_frame": {"time_kernel": 1},
    "fsq": {"bottleneck": "fsq", "fsq_levels": (8, 5, 5, 5)},
    "no_first_frame": {"first_frame_apart": False},
    "flow": {"decoder": "flow"},
    "space_and_time_apart": {"time_kernel": 3, "decoder_convolutions": ("3d", "2+1d")},
    "flow_of_each_channel": {"decoder": "flow", "decoder_convolutions": ("depthwise", "depthwise")},
}


def causal(**settings):
    torch.manual_seed(0)
    return add_noise_to_weights(CausalVAE(CausalVAEConfig(**{**SMALL, **settings}))).eval()


def video_of(frames, size=(16, 24), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(1, 3, frames, *size, generator=generator) - 1


def random_chunks(frames, seed):
    rng = random.Random(seed)
    sizes = []
    while sum(sizes) < frames.shape[2]:
        sizes.append(min(rng.randint(1, 7), frames.shape[2] - sum(sizes)))
    return frames.split(sizes, dim=2)


def finished(outputs):
    return [output for output in outputs if output is not None]


def encoded(stream, chunks):
    posteriors = finished([*map(stream.push, chunks), stream.flush()])
    return torch.cat([posterior.mode() for posterior in posteriors], dim=2)


def decoded(stream, chunks):
    return torch.cat(finished([*map(stream.push, chunks), stream.flush()]), dim=2)


@torch.no_grad()
@pytest.mark.parametrize("settings", CAUSAL.values(), ids=CAUSAL)
def test_random_divisions_have_the_same_bits_and_the_result_of_the_whole(settings):
    model = causal(**settings)
    if model.generates:
        model.set_decoding(steps=2, seed=3)
    video = video_of(21 if model.first_frame_apart else 20)
    latent = encoded(model.stream_encoder(), [video])
    torch.testing.assert_close(latent, model.encode(video).mode(), **ROUNDING)
    with clip_position(first_frame=5):
        whole = decoded(model.stream_decoder(), [latent])
        torch.testing.assert_close(whole, model.decode(latent), **ROUNDING)
        for seed in range(2):
            chunks = random_chunks(video, seed)
            assert torch.equal(encoded(model.stream_encoder(), chunks), latent)
            chunks = random_chunks(latent, seed)
            assert torch.equal(decoded(model.stream_decoder(), chunks), whole)
        for num_frames in (3, 9, 100):
            larger = encoded(model.stream_encoder(num_frames), random_chunks(video, 0))
            torch.testing.assert_close(larger, latent, **ROUNDING)
            larger = decoded(model.stream_decoder(num_frames), random_chunks(latent, 0))
            torch.testing.assert_close(larger, whole, **ROUNDING)
        model.enable_temporal_chunks(model.smallest_temporal_chunk)
        assert torch.equal(model.encode(video).mode(), latent)
        assert torch.equal(model.decode(latent), whole)


def test_a_posterior_of_several_chunks_has_mean_and_variance():
    model = causal()
    video = video_of(9)
    posterior = model.stream_encoder().push(video)
    whole = model.encode(video)
    torch.testing.assert_close(posterior.mean, whole.mean, **ROUNDING)
    torch.testing.assert_close(posterior.logvar, whole.logvar, **ROUNDING)
    assert not posterior.mean.requires_grad


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in STREAMED],
)
def test_every_class_that_caches_has_the_result_of_the_whole(name):
    model = adapter(name).double()
    _, height, width = model.sizes.smallest
    video = video_of(STREAMED[name], (height, width)).double()
    latent = model.encode(video).mode()
    whole = model.decode(latent)
    streams = model.stream_encoder(), model.stream_encoder(8)
    model.stream_encoder().push(-video[:, :, :3])  # and no more
    chunks = video.split(3, dim=2)
    posteriors = ([], [])
    # The second stream is one chunk behind the first.
    for ahead, behind in zip((*chunks, None), (None, *chunks), strict=True):
        for stream, chunk, outputs in zip(streams, (ahead, behind), posteriors, strict=True):
            if chunk is not None:
                outputs.append(stream.push(chunk))
    for stream, outputs in zip(streams, posteriors, strict=True):
        outputs.append(stream.flush())
        result = torch.cat([posterior.mode() for posterior in finished(outputs)], dim=2)
        assert (result - latent).abs().max() <= 1e-10
    result = decoded(model.stream_decoder(), random_chunks(latent, seed=0))
    assert (result - whole).abs().max() <= 1e-10


@torch.no_grad()
def test_a_model_whose_latent_frames_have_another_number_of_frames():
    model = DiffusersAutoencoder(tiny_model("kvae_video", temporal_compress_times=2))
    latent = torch.randn(1, 4, 9, 2, 2)
    result = decoded(model.stream_decoder(), [latent])
    torch.testing.assert_close(result, model.decode(latent), **ROUNDING)


def test_every_class_that_supports_chunks_streams():
    tested = {type(shared(name).module).__name__ for name in STREAMED}
    assert tested == {name for name, family in FAMILIES.items() if family.stream is not None}


@torch.no_grad()
def test_two_streams_alternate_and_one_breaks():
    model = causal()
    videos = [video_of(13, seed=seed) for seed in (0, 1)]
    latents = [encoded(model.stream_encoder(), [video]) for video in videos]
    streams = [model.stream_encoder(), model.stream_encoder()]
    broken = model.stream_encoder()
    parts = ([], [])
    for chunks in zip(*[video.split(2, dim=2) for video in videos], strict=True):
        for stream, chunk, outputs in zip(streams, chunks, parts, strict=True):
            outputs.append(stream.push(chunk))
        with pytest.raises(ValueError, match="`video` must be RGB"):
            broken.push(chunks[0][:, :1])
    for outputs, latent in zip(parts, latents, strict=True):
        result = torch.cat([posterior.mode() for posterior in finished(outputs)], dim=2)
        assert torch.equal(result, latent)


def test_a_student_streams_the_encoder_of_its_teacher(tmp_path):
    teacher = causal()
    teacher.save_pretrained(tmp_path)
    student = StudentAutoencoder.of(
        teacher, str(tmp_path), CausalVAE.from_pretrained, CausalVAEConfig(**SMALL)
    ).eval()
    video = video_of(9)
    latent = student.encode(video).mode()
    assert student.streams
    result = encoded(student.stream_encoder(), video.split(2, dim=2))
    torch.testing.assert_close(result, latent, **ROUNDING)
    with torch.no_grad():
        whole = student.decode(latent)
    result = decoded(student.stream_decoder(), latent.split(2, dim=2))
    torch.testing.assert_close(result, whole, **ROUNDING)


def test_the_first_frame_is_there_at_once_and_nothing_is_lost():
    model = causal()
    encoder = model.stream_encoder()
    first = encoder.push(video_of(1))
    assert first.mode().shape[2] == 1
    assert encoder.push(video_of(3)) is None
    assert encoder.num_missing == 1
    with pytest.raises(ValueError, match=r"1 \+ 4 k frames before `flush`, but got 4. Push 1 more"):
        encoder.flush()
    assert encoder.push(video_of(1)).mode().shape[2] == 1
    assert encoder.flush() is None
    with pytest.raises(ValueError, match="`video` must be pushed before `flush`"):
        encoder.push(video_of(1))


def test_a_chunk_of_another_size_raises():
    encoder = causal().stream_encoder()
    encoder.push(video_of(2))
    message = r"`video` must be of the shape of the frames before, \(1, 3, T, 16, 24\), but got"
    with pytest.raises(ValueError, match=message):
        encoder.push(video_of(2, size=(24, 16)))


def test_frames_that_a_class_would_crop_are_refused():
    model = adapter("wan")
    with pytest.raises(ValueError, match="`height` must be a multiple of 8 for this model"):
        model.stream_encoder().push(video_of(1, size=(37, 53)))
    assert model.stream_encoder().push(video_of(2, size=(40, 56))) is not None


@pytest.mark.slow
@pytest.mark.parametrize("door", ["stream_encoder", "stream_decoder"])
def test_a_class_that_keeps_no_frames_is_refused_by_name(door):
    with pytest.raises(ValueError, match=f"`{door}` must be .* got a AutoencoderKLLTXVideo"):
        getattr(shared("ltx_video"), door)()


@pytest.mark.parametrize("name", ["causal", "kandinsky6_sr"])
def test_the_code_of_the_page_runs(name, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "latents-on-disk.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "stream_encoder" in block]
    model = causal() if name == "causal" else adapter(name).eval()
    monkeypatch.setattr("telecine.models.load_autoencoder", lambda folder: model)
    names: dict[str, object] = {}
    exec(code, names)
    video = video_of(21, (32, 32))
    parts = finished(names["reconstruct"](video.split(5, dim=2)))
    with torch.no_grad():
        whole = model.decode(model.encode(video).mode())
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, **ROUNDING)
