"""Students: a small decoder for the latents of a teacher."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from telecine.base.frozen import Frozen
from telecine.base.randomness import clip_generators, randn
from telecine.models import CausalVAE, load_autoencoder
from telecine.models.causal_networks import build_decoder
from telecine.models.flow import random_levels
from telecine.models.latent import LatentGrid
from telecine.models.linear import LatentFit, PatchDecoder
from telecine.models.student import StudentAutoencoder
from telecine.models.student_config import DECODER_SIZES, student_config
from telecine.runs.checkpoints import Checkpoints
from telecine.settings import CausalVAEConfig

from .helpers import edit_config
from .tiny_models import CLIPS, adapter, tiny_clip

SETTINGS = "base_channels: 8\nblocks_per_level: 1\npatch_size: 2\n"
CLIP = (5, 32, 32)


def teacher(seed=0, **settings):
    torch.manual_seed(seed)
    small = {"latent_channels": 4, "patch_size": 2, "base_channels": 8, "blocks_per_level": 1}
    return CausalVAE(CausalVAEConfig(spatial_compression=4, **small, **settings))


@pytest.fixture
def saved(tmp_path):
    """Return the folder of a saved teacher."""
    teacher().save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def student_of(folder, size="tiny"):
    loaded = load_autoencoder(str(folder))
    return StudentAutoencoder.of(
        loaded, str(folder), load_autoencoder, student_config(size, loaded, CLIP)
    )


def video(num_clips=2):
    return torch.rand(num_clips, 3, *CLIP) * 2 - 1


def fit_decoder(decoder, pairs):
    fit = LatentFit(decoder)
    for latent, clip in pairs:
        fit.add(latent, clip)
    fit.solve()


def test_the_best_linear_decoder_of_given_latents():
    """It recovers the maps that have made the videos, and has the smallest error where there are none."""
    truth = PatchDecoder(2, 4, 3, 3)
    decoder = PatchDecoder(2, 4, 3, 3)
    latents = torch.randn(4, 3, 3, 5, 5)
    with torch.no_grad():
        fit_decoder(decoder, [(z[None], truth(z[None])) for z in latents])
        torch.testing.assert_close(decoder(latents), truth(latents), rtol=1e-4, atol=1e-4)
        noisy = truth(latents) + torch.randn_like(truth(latents))
        fit_decoder(decoder, [(latents, noisy)])
        best = (decoder(latents) - noisy).square().mean()
        for weight in decoder.parameters():
            for change in (1e-2, -1e-2):
                weight += change
                assert (decoder(latents) - noisy).square().mean() > best
                weight -= change


def test_a_clip_of_one_frame_sets_the_first_map_alone():
    decoder = PatchDecoder(2, 4, 3, 3)
    before = decoder.rest.weight.clone()
    fit_decoder(decoder, [(torch.randn(1, 3, 1, 5, 5), torch.ones(1, 3, 1, 20, 20))])
    assert torch.equal(decoder.rest.weight, before)
    torch.testing.assert_close(decoder(torch.randn(1, 3, 1, 5, 5)), torch.ones(1, 3, 1, 20, 20))


def test_a_new_autoencoder_starts_with_the_linear_map_to_the_latents_of_its_teacher():
    """It recovers the encoder of a teacher that is linear, as before its first update."""
    linear_teacher = teacher().eval()
    student = teacher(seed=1).eval()
    clips = list(video(num_clips=24).split(4))
    assert not torch.allclose(
        student.encode(clips[0]).mode(), linear_teacher.encode(clips[0]).mode()
    )
    student.fit_linear_to_teacher(linear_teacher, clips)
    unseen = video()
    expected = linear_teacher.encode(unseen).mode()
    torch.testing.assert_close(student.encode(unseen).mode(), expected, rtol=0.02, atol=0.02)


def test_a_student_has_the_encoder_of_its_teacher_and_a_decoder(saved):
    student = student_of(saved)
    reference = teacher()
    x = video()
    assert torch.equal(student.encode(x).mean, reference.encode(x).mean)
    assert {name.split(".")[0] for name in student.state_dict()} == {"decoder"}
    output = student(x, sample_posterior=False)
    assert output.video.shape == x.shape
    assert output.aux == {}
    assert torch.equal(output.latent, reference.encode(x).mode())
    output.video.sum().backward()
    assert student.last_layer.grad is not None
    assert not any(weight.requires_grad for weight in student.encoder_model.parameters())
    assert not student.train().encoder_model.training
    sampled = student(x, generator=torch.Generator().manual_seed(1))
    with_posterior = student(
        x, generator=torch.Generator().manual_seed(1), posterior=student.encode(x)
    )
    torch.testing.assert_close(with_posterior.video, sampled.video)
    assert student.double().encoder_model.last_layer.dtype == torch.float64
    assert student.covering_clip(4, 30, 30) == (5, 32, 32)
    student.enable_gradient_checkpointing()
    whole = student.decode(output.latent.double())
    student.enable_temporal_chunks(student.smallest_temporal_chunk)
    torch.testing.assert_close(student.decode(output.latent.double()), whole)


def test_it_starts_as_the_best_linear_map_of_the_latents(saved):
    student = student_of(saved)
    clips = [video(1) for _ in range(4)]
    generator = torch.Generator().manual_seed(0)
    latent = torch.cat([student.encode(clip).sample(generator) for clip in clips])
    student.fit_linear_to_latents(clips)
    linear = PatchDecoder(4, 4, 4, 3)
    fit_decoder(linear, [(latent, torch.cat(clips))])
    torch.testing.assert_close(student.decode(latent), linear(latent), rtol=1e-4, atol=1e-4)
    first = student.decoder.network[0](latent)
    normalised = (latent - latent.mean((0, 2, 3, 4), True)) / latent.std((0, 2, 3, 4), keepdim=True)
    fresh = student_of(saved).decoder.network[0]
    assert first.shape == fresh(normalised).shape
    assert 0.2 < first.std() < 1.2


@torch.no_grad()
def test_a_channel_that_is_only_noise_has_a_small_weight_at_the_start(saved):
    student = student_of(saved)
    encoder = student.encoder_model.encoder
    for weight in encoder.linear.parameters():
        weight[3] *= 1e-2
    encoder.network[-1].conv.bias[4 + 3] = 0.0  # the logarithm of the variance
    clips = [video(1) for _ in range(4)]
    student.fit_linear_to_latents(clips)
    for clip in clips:
        posterior = student.encode(clip)
        modes = student.decode(posterior.mode())
        samples = student.decode(posterior.sample())
        assert (samples - clip).square().mean() < 2 * (modes - clip).square().mean()


def test_saved_and_loaded_without_the_teacher(saved, tmp_path):
    student = student_of(saved)
    torch.nn.init.normal_(student.last_layer)
    x = video()
    expected = student(x, sample_posterior=False)
    folder = tmp_path / "student"
    copied = copy.deepcopy(student)
    assert not any(isinstance(module, Frozen) for module in copied.modules()), (
        "a checkpoint has no teacher"
    )
    copied.save_pretrained(folder)
    assert set(load_file(folder / "model.safetensors")) == set(student.state_dict())
    loaded = load_autoencoder(folder)
    assert json.loads((folder / "config.json").read_text())["teacher"] == "teacher"
    moved = saved.rename(tmp_path / "moved")
    assert torch.equal(loaded.decode(expected.latent), expected.video)
    for model in (loaded, load_autoencoder(folder)):
        with pytest.raises(
            FileNotFoundError, match=r"`teacher` must be a folder or a Hub name, .*beside the stud"
        ):
            model(x)
    moved.rename(saved)
    assert torch.equal(loaded(x, sample_posterior=False).video, expected.video)
    assert loaded.latent_normalisation() == student.latent_normalisation()
    assert json.loads(loaded.to_json_string()) == json.loads(student.to_json_string())
    loaded.load_weights(folder)
    teacher(seed=1).save_pretrained(saved)
    with pytest.raises(
        ValueError,
        match=r"`teacher` must be the teacher that the student was trained with, .* diff",
    ):
        load_autoencoder(folder).encode(x)


@pytest.mark.parametrize(
    ("removed", "changes", "message"),
    [
        (["teacher"], {}, r"`teacher in .*config.json` must be a text, but got none"),
        ([], {"teacher": 3}, r"`teacher in .*config\.json` must be a text, but got 3 \(int\)"),
        (
            [],
            {"teacher_encoder_sha256": None},
            r"`teacher_encoder_sha256 in .* must be a text, but got None",
        ),
        (
            [],
            {"decoder": [1]},
            r"`decoder in .*config\.json` must be a group of settings, but got \[1\]",
        ),
        (
            [],
            {"decoder": {"base_channels": "many"}},
            r"`decoder\.base_channels` must be a whole number",
        ),
        (
            [],
            {"decoder": {"base_channels": 4096}},
            "must be a configuration that its weights belong to",
        ),
    ],
)
def test_a_damaged_configuration(saved, tmp_path, removed, changes, message):
    student_of(saved).save_pretrained(tmp_path)
    edit_config(tmp_path, *removed, **changes)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(tmp_path)


def test_the_settings_of_a_checkpoint_say_where_the_teacher_is(saved, tmp_path):
    folder = tmp_path / "elsewhere" / "ema"
    student_of(saved).save_pretrained(folder)
    settings = folder.parent / "config.yaml"
    settings.write_text(f"resolved: {{encoder: {saved}}}\n")
    assert load_autoencoder(folder).teacher == str(saved)
    moved = saved.rename(folder.parent / "teacher")  # both are moved
    assert load_autoencoder(folder).teacher == str(moved)
    moved.rename(saved)
    settings.write_text("resolved: {encoder: /another}\n")
    assert load_autoencoder(folder).teacher == str(saved)
    model = teacher()
    hub = StudentAutoencoder.of(
        model, "owner/name", load_autoencoder, student_config("tiny", model, CLIP)
    )
    hub.save_pretrained(folder)
    assert load_autoencoder(folder).teacher == "owner/name"


def test_a_run_that_is_moved_finds_its_teacher_by_its_settings(saved, tmp_path):
    run = tmp_path / "run"
    (tmp_path / "other").mkdir()
    student_of(saved).save_pretrained(run / "ema")
    (run / "config.yaml").write_text(f"resolved: {{encoder: {saved}}}\n")
    folder = run.rename(tmp_path / "other" / "run") / "ema"
    assert load_autoencoder(folder).teacher == str(saved)
    edit_config(folder, teacher="../another")
    assert load_autoencoder(folder).teacher == "../another"


def test_the_settings_of_another_run_do_not_change_the_teacher(saved, tmp_path):
    other = tmp_path / "other" / saved.name
    teacher().save_pretrained(other)
    folder = tmp_path / "run" / "student"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"resolved: {{encoder: {other}}}\n")
    student_of(saved).save_pretrained(folder)
    assert load_autoencoder(folder).teacher == str(saved)
    edit_config(folder, teacher=f"owner/{saved.name}")
    assert load_autoencoder(folder).teacher == f"owner/{saved.name}"


@pytest.mark.parametrize(
    ("folder", "teacher"),
    [
        ("student", "teacher"),
        ("runs/student", "../teacher"),
        ("other/runs/student", "../../teacher"),
    ],
)
def test_a_student_in_any_folder_finds_its_teacher(saved, tmp_path, folder, teacher):
    student = student_of(saved)
    student.save_pretrained(tmp_path / folder)
    config = json.loads((tmp_path / folder / "config.json").read_text())
    assert config["teacher"] == teacher
    x = video()
    loaded = load_autoencoder(tmp_path / folder)
    assert torch.equal(loaded.encode(x).mode(), student.encode(x).mode())


def test_a_path_below_the_students_is_not_taken_for_a_name_on_the_hub(saved, tmp_path):
    (tmp_path / "teachers").mkdir()
    moved = saved.rename(tmp_path / "teachers" / "wide")
    student_of(moved).save_pretrained(tmp_path / "student")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["teacher"] == "./teachers/wide"
    beside = moved.rename(tmp_path / "wide")
    assert load_autoencoder(tmp_path / "student").teacher == str(beside)


def test_a_teacher_whose_folder_is_named_like_one_of_a_checkpoint(saved, tmp_path):
    named = saved.rename(tmp_path / "model")
    temporary = Checkpoints(tmp_path / "run").begin(1)
    for name in ("model", "ema"):
        student_of(named).save_pretrained(temporary / name)
    (temporary / "config.yaml").write_text(f"resolved: {{encoder: {named}}}\n")
    for name in ("model", "ema"):
        assert load_autoencoder(temporary / name).teacher == str(named)
    Checkpoints(tmp_path / "run").finish(1, temporary, keep=1)
    checkpoint = Checkpoints(tmp_path / "run").path(1)
    named.rename(tmp_path / "elsewhere")
    assert load_autoencoder(checkpoint / "ema").teacher == str(named), "not the student itself"


def test_a_student_of_a_student_has_the_same_teacher(saved, tmp_path):
    folder = tmp_path / "student"
    student_of(saved).save_pretrained(folder)
    again = student_of(folder)
    assert again.teacher == str(saved)
    again.save_pretrained(tmp_path / "again")
    assert load_autoencoder(tmp_path / "again")(video()).video.shape == video().shape
    edit_config(folder, teacher=str(folder))
    with pytest.raises(ValueError, match="must be the teacher that the student was trained with"):
        load_autoencoder(folder).encode(video())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "time", "apart"),
    [
        ("ltx_video", 8, True),
        ("temporal_decoder", 1, True),
        ("mochi", 6, True),
        ("allegro", 4, False),
    ],
)
def test_the_compression_of_published_classes(name, time, apart):
    model = adapter(name)
    config = student_config("tiny", model, CLIPS[name])
    assert (config.time_compression, config.first_frame_apart) == (time, apart)
    student = StudentAutoencoder.of(model, name, load_autoencoder, config)
    assert student.latent_normalisation() == model.latent_normalisation()
    frames, height, width = CLIPS[name]
    for num_frames in (frames, model.covering_clip(frames + 1, height, width)[0]):
        x = torch.rand(1, 3, num_frames, height, width) * 2 - 1
        output = student(x)
        assert output.video.shape == x.shape
        linear = student.linear_autoencoder(num_frames, height, width)
        assert linear.encode(x).shape == output.latent.shape


def student_settings(tmp_path, text):
    path = tmp_path / "student.yaml"
    path.write_text(text)
    return str(path)


def test_the_settings_of_a_student(tmp_path):
    small = student_config("small", teacher(), CLIP)
    assert (small.time_compression, small.spatial_compression, small.latent_channels) == (4, 4, 4)
    assert (small.patch_size, small.channel_multipliers, small.base_channels) == (4, (1,), 128)
    custom = student_config(student_settings(tmp_path, SETTINGS), teacher(), CLIP)
    assert (custom.patch_size, custom.channel_multipliers, custom.base_channels) == (2, (1, 2), 8)
    with pytest.raises(FileNotFoundError, match="`student` must be one of tiny, small, or a YAML"):
        student_config("large", teacher(), CLIP)
    with pytest.raises(ValueError, match="num_frames"):
        student_config("tiny", teacher(), (4, 32, 32))


@pytest.mark.parametrize(
    ("grid", "settings", "message"),
    [
        (None, "patch_size: 16", r"`patch_size` must be"),
        (
            None,
            "latent_channels: 8",
            r"`latent_channels of .*` must be 4, the teacher's, but got 8",
        ),
        (None, "base_channel: 8", "base_channels"),
        (
            lambda *_: None,
            "",
            "`teacher` must be an autoencoder whose compression in time is the same",
        ),
        (
            lambda *_: LatentGrid(4, 12, 12, True),
            "",
            r"but got 4 x 12 x 12\. `telecine train --trainable.weights decoder`",
        ),
        (
            lambda num_frames, *_: LatentGrid(num_frames - 1, 8, 12, True),  # two latent frames
            "",
            r"for clips of all lengths, .* but got 4 x 8 x 8, then 8 x 8 x 8\.",
        ),
        (
            lambda *_: LatentGrid(6, 8, 12, False),
            "first_frame_apart: true",
            r"`first_frame_apart of .*` must be False, the teacher's, but got True",
        ),
    ],
)
def test_settings_and_teachers_that_a_student_cannot_have(tmp_path, grid, settings, message):
    model = teacher()
    if grid is not None:
        model.latent_grid = grid
    with pytest.raises(ValueError, match=message):
        student_config(student_settings(tmp_path, settings) if settings else "tiny", model, CLIP)


@pytest.mark.parametrize(("name", "time"), [("wan", 4), ("kl_image", 1)])
def test_a_student_that_is_trained_on_images_has_the_compression_of_its_teacher(name, time):
    config = student_config("tiny", adapter(name), (1, 32, 32))
    assert (config.time_compression, config.first_frame_apart) == (time, True)


def test_the_numbers_of_weights_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "distillation.md").read_text(encoding="utf-8")
    model = teacher()
    model.check_clip = lambda *_: None
    for size in DECODER_SIZES:
        cells = []
        for compression in ((4, 8, 16), (4, 16, 48), (8, 32, 128)):
            with torch.device("meta"):
                model.latent_grid = lambda *_, c=compression: LatentGrid(*c, True)
                decoder = build_decoder(student_config(size, model, CLIP))
            cells.append(f"{sum(weight.numel() for weight in decoder.parameters()) / 1e6:.2f}")
        assert f"| {size} | {' | '.join(cells)} |" in page


def imitating(size="teacher"):
    """Return a teacher that generates in 3 steps, and a student that is to make the same in one."""
    loaded = teacher(decoder="flow")
    loaded.set_decoding(steps=3)
    config = student_config(size, loaded, CLIP)
    config = replace(config, decoder="flow", flow=replace(config.flow, one_step=True))
    student = StudentAutoencoder.of(loaded, "name", load_autoencoder, config)
    return loaded, student, student.imitate(loaded)


def test_one_step_of_a_linear_teacher_is_exact_at_the_start():
    """Samples of a linear decoder are the same in any number of steps, and so is the start of its student."""
    loaded, student, is_same = imitating()
    assert is_same
    x = video()
    output = student(x, generator=clip_generators(0, [0, 1], torch.device("cpu")))
    torch.testing.assert_close(output.video.clamp(-1, 1), output.target)
    torch.testing.assert_close(output.video, loaded.decoder.linear(output.latent))
    assert not output.target.requires_grad
    assert output.video.requires_grad


def test_a_student_is_trained_on_the_samples_of_its_teacher_from_the_same_noise():
    loaded, student, _ = imitating()
    torch.nn.init.normal_(loaded.decoder.network[-1].conv.weight, std=0.1)
    assert student.imitate(loaded)
    x = video()
    output = student(x, generator=clip_generators(0, [0, 1], torch.device("cpu")))
    generators = clip_generators(0, [0, 1], torch.device("cpu"))
    latent = loaded.encode(x).sample(generators)
    random_levels(student.config.flow, x, generators)
    noise = randn(x.shape, generator=generators, device=x.device)
    torch.testing.assert_close(output.latent, latent)
    torch.testing.assert_close(output.target, loaded.decode(latent, noise).clamp(-1, 1))
    torch.testing.assert_close(output.video, student.decoder(latent, noise, torch.ones(2)))
    assert (output.target - output.video).abs().max() > 1e-3, "three steps are not one"
    with torch.no_grad():
        assert student(x, sample_posterior=False).target is None
    copied = copy.deepcopy(student)
    assert {name.split(".")[0] for name in copied.state_dict()} == {"decoder"}
    assert copied(x, posterior=loaded.encode(x)).target is None


def test_another_decoder_starts_by_itself(tmp_path):
    _, student, is_same = imitating(student_settings(tmp_path, SETTINGS.replace("8", "16")))
    assert not is_same
    assert student(video()).target is not None
    with pytest.raises(
        ValueError, match=r'`student` must be "teacher" for a decoder of telecine, but got that of'
    ):
        student_config("teacher", adapter("wan"), CLIPS["wan"])


def test_a_student_of_another_model_generates(tmp_path):
    """Its teacher does not: it is trained on the videos, at random levels."""
    loaded = adapter("wan")
    config = student_config(
        student_settings(tmp_path, SETTINGS + "decoder: flow\n"), loaded, CLIPS["wan"]
    )
    student = StudentAutoencoder.of(loaded, "name", load_autoencoder, config)
    x = tiny_clip("wan")
    student.fit_linear_to_latents([x])
    output = student(x, generator=clip_generators(0, [0], torch.device("cpu")))
    assert output.video.shape == x.shape
    assert (output.target, output.aux) == (None, {})
    with torch.no_grad():
        assert student(x, sample_posterior=False).video.shape == x.shape
    student.save_pretrained(tmp_path)
    assert load_autoencoder(tmp_path).describe_decoding() == {
        "name": "euler",
        "steps": 1,
        "seed": 0,
    }
