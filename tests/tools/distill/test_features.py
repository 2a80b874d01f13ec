"""The term that compares features inside the decoders of student and teacher."""

from dataclasses import replace

import pytest
import torch

from telecine.base.randomness import randn
from telecine.models import CausalVAE
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.load import load_autoencoder
from telecine.models.student import StudentAutoencoder
from telecine.models.student_config import student_config
from telecine.settings import CausalVAEConfig
from telecine.tools.distill.features import TeacherFeatures, average_frames, decoder_features

from ...models.tiny_models import tiny_model

CONFIG = CausalVAEConfig(
    spatial_compression=4, latent_channels=4, patch_size=2, base_channels=8, blocks_per_level=1
)


@pytest.fixture
def vae(folder):
    """Have a telecine model with random weights in the working directory, beside the tiny Wan."""
    torch.manual_seed(0)
    model = CausalVAE(CONFIG)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained("vae")


def features_of_teacher(term, latent, noise=None):
    """Return the teacher's features that are compared, by layer."""
    layers = [pair.layer for pair in term.pairs]
    return decoder_features(term.teacher.in_eval_mode(), latent, layers, noise)


def standardise(term, features):
    """Let the projections standardise features, as those of the teacher are."""
    for x, projection in zip(features.values(), term.projections, strict=True):
        std, mean = torch.std_mean(x, (0, 2, 3, 4), correction=0)
        projection.weight.copy_((1 / std).diag()[:, :, None, None, None])
        projection.bias.copy_(-mean / std)


def test_it_is_0_for_the_teacher_itself_and_1_without_knowledge(vae):
    """A student like the teacher, with projections that standardise its features; and with projections to 0."""
    term = TeacherFeatures("vae", CONFIG.channels)
    student = load_autoencoder("vae")
    assert [(pair.level, pair.layer) for pair in term.pairs] == [(0, "network.1"), (1, "network.3")]
    assert [tuple(p.weight.shape[:2]) for p in term.projections] == [(16, 16), (8, 8)]
    latent = torch.randn(2, 4, 3, 4, 4)
    with torch.no_grad():
        standardise(term, features_of_teacher(term, latent))
        assert term(latent=latent, model=student) == pytest.approx(0.0, abs=1e-9)
        for weight in term.projections.parameters():
            weight.zero_()
        error = term(latent=latent, model=student)
        assert error == pytest.approx(1.0, rel=1e-4)
        halved = term(latent=latent, model=student, sample_weight=torch.tensor([0.5, 0.5]))
        assert halved == pytest.approx(float(error) / 2, rel=1e-4)


def test_a_teacher_and_a_student_that_generate_start_from_one_noise(folder):
    torch.manual_seed(0)
    student = CausalVAE(replace(CONFIG, decoder="flow"))
    for weight in student.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    student.save_pretrained("generates")
    term = TeacherFeatures("generates", CONFIG.channels)
    latent = torch.randn(2, 4, 3, 4, 4)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        noise = randn(student.decoded_shape(latent), generator=generator, device=latent.device)
        standardise(term, features_of_teacher(term, latent, noise))
        errors = []
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            errors.append(float(term(latent=latent, model=student.eval(), generator=generator)))
    assert errors[0] == pytest.approx(0.0, abs=1e-9)
    assert errors[1] > 1e-3, "the projections standardise features of another noise"


def test_layers_of_a_wan_are_chosen_by_resolution(folder):
    """The student has the latent's resolution and twice that. Wan makes 5 frames of 2 latent frames."""
    wan = load_autoencoder("wan")
    config = student_config("tiny", wan, (5, 32, 32))
    student = StudentAutoencoder.of(wan, "wan", load_autoencoder, config)
    term = TeacherFeatures("wan", config.channels)
    assert [pair.level for pair in term.pairs] == [0, 1]
    assert [pair.first_frame_apart for pair in term.pairs] == [True, True]
    assert term.state_dict().keys() == {
        f"projections.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")
    }
    features = features_of_teacher(term, torch.zeros(2, 4, 2, 4, 4))
    assert [x.shape[3:] for x in features.values()] == [(4, 4), (8, 8)]
    term(latent=torch.randn(2, 4, 2, 4, 4), model=student).backward()
    assert student.decoder.network[0].conv.weight.grad.any()
    assert all(projection.weight.grad.any() for projection in term.projections)


def test_layers_of_frames_have_those_of_all_chunks(folder):
    """Without gradients Wan is decoded frame by frame, and its upsampling sees frames as images."""
    wan = load_autoencoder("wan")
    layer = "up_blocks.0.upsamplers.0.resample"
    latent = torch.randn(2, 4, 3, 4, 4)
    whole = decoder_features(wan, latent, [layer])[layer]
    with torch.no_grad():
        chunked = decoder_features(wan, latent, [layer])[layer]
    torch.testing.assert_close(chunked, whole)


@pytest.mark.slow
def test_a_teacher_that_decodes_clips_one_by_one_has_features_of_all(folder):
    teacher = DiffusersAutoencoder(tiny_model("hunyuan_video15"))
    latent = torch.randn(2, 4, 2, 1, 1)
    features = decoder_features(teacher, latent, ["up_blocks.0", "conv_out"])
    for name, x in features.items():
        alone = [decoder_features(teacher, clip, [name])[name] for clip in latent.split(1)]
        torch.testing.assert_close(x, torch.cat(alone))
    assert features["conv_out"].shape == (2, 3, 5, 16, 16)


@pytest.mark.parametrize("name", ["kl_image", "qwen_image21"])
def test_of_frames(folder, name):
    """An autoencoder of images decodes frames, or clips of one frame; chunks of a student are put together."""
    tiny_model(name).save_pretrained(name)
    teacher = load_autoencoder(name)
    config = student_config("tiny", teacher, (3, 32, 32))
    student = StudentAutoencoder.of(teacher, name, load_autoencoder, config)
    term = TeacherFeatures(name, config.channels)
    latent = torch.randn(2, config.latent_channels, 3, 4, 4)
    whole = term(latent=latent, model=student)
    student.enable_temporal_chunks(1)
    torch.testing.assert_close(term(latent=latent, model=student), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "frames"), [("mochi", 3), ("allegro", 2)])
def test_frames_of_a_teacher_are_averaged_over_those_of_a_latent_frame(folder, name, frames):
    """Inside Mochi and Allegro, the first latent frame has as many frames as each other one."""
    tiny_model(name).save_pretrained(name)
    teacher = load_autoencoder(name)
    config = student_config("tiny", teacher, teacher.covering_clip(8, 32, 32))
    term = TeacherFeatures(name, config.channels)
    features = features_of_teacher(term, torch.zeros(1, 4, 1, 4, 4))
    assert [x.shape[2:] for x in features.values()] == [(1, 4, 4), (frames, 8, 8)], (
        "not those with channels last"
    )
    assert [pair.level for pair in term.pairs] == [0, 1]
    assert [pair.first_frame_apart for pair in term.pairs] == [True, False]


@pytest.mark.parametrize(
    ("num_frames", "size", "first_frame_apart", "means"),
    [(12, 3, False, [1.5, 5.5, 9.5]), (9, 3, True, [0, 2.5, 6.5]), (4, 1, True, [0])],
)
def test_a_mean_over_frames(num_frames, size, first_frame_apart, means):
    video = torch.arange(float(num_frames)).view(1, 1, -1, 1, 1)
    assert (
        average_frames(video, (size, 1, 1), first_frame_apart=first_frame_apart).flatten().tolist()
        == means
    )


@pytest.mark.parametrize(
    ("channels", "layers", "message"),
    [
        (
            CONFIG.channels,
            ["network.9"],
            r"`feature_layers` must be layers that .* got 'network\.9'\. Did you",
        ),
        (CONFIG.channels, ["zzz"], r"got 'zzz'\. Its last ones are network\."),
        ((), [], r"got \"none of the student's sizes\""),
    ],
)
def test_layers_that_the_teacher_does_not_have(vae, channels, layers, message):
    with pytest.raises(ValueError, match=message):
        TeacherFeatures("vae", channels, layers)


def test_a_student_of_another_library_is_refused(vae):
    term = TeacherFeatures("vae", CONFIG.channels)
    with pytest.raises(ValueError, match="`model` must be one with a decoder of telecine"):
        term(latent=torch.zeros(1, 4, 1, 2, 2), model=load_autoencoder("wan"))
