"""Training, evaluation and distillation of an autoencoder whose decoder generates."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from telecine.__main__ import main
from telecine.base.randomness import clip_generators, randn
from telecine.evaluation.load_model import load_infos, load_with_clips
from telecine.evaluation.protocols.configured import ConfiguredClips
from telecine.evaluation.reconstruct import reconstruct
from telecine.evaluation.reconstructors import ModelReconstructor
from telecine.models import load_autoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.flow import level_weights, random_levels
from telecine.models.interface import decoding_options
from telecine.runs import Run
from telecine.runs.saved_settings import read_saved_settings
from telecine.settings import DistillConfig, EvaluateConfig, LatentsConfig, ReconstructConfig, Term
from telecine.settings.autoencoder import FlowConfig
from telecine.tools.distill import TeacherReconstruction, distill
from telecine.tools.latents.measures import measure_latent_spaces
from telecine.training import train
from telecine.training.build import build_autoencoder
from telecine.training.step import MicroBatch, train_step
from telecine.training.validation import validate_model

from ..models.tiny_models import FEW_LEVELS, tiny_model
from .helpers import LIGHT, assert_equal_runs, last_checkpoint, new_state, resumed_copy, run_to


@pytest.fixture
def tiny_flow(tiny):
    """Return a function that creates the settings of a tiny run with a decoder that generates."""

    def make(**changes):
        config = tiny(**changes)
        flow = FlowConfig(weighting="velocity")
        return replace(config, causal_vae=replace(config.causal_vae, decoder="flow", flow=flow))

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("flow")


@pytest.fixture
def run(tiny_flow, folder):
    """Return the folder of a finished run, one for all tests."""
    config = tiny_flow(output_dir=str(folder / "run"), steps=4, val_every=2, save_every=2)
    if not Path(config.output_dir).exists():
        train(config)
    return config


def evaluated(model, config, folder, options=""):
    """Evaluate one clip with the command line, and return the metrics and the sampler of the protocol."""
    command = f"evaluate {model} --data {config.data} -o {folder} --device cpu --max_clips 1"
    assert main(f"{command} {options}".split()) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics, json.loads((folder / "protocol.json").read_text())["sampler"]


def check_refused(capsys, model, config, option, message):
    """Check that a command refuses an option of decoding."""
    assert main(f"evaluate {model} --data {config.data} --device cpu {option} 4".split()) == 2
    error = capsys.readouterr().err
    assert f"`{option}` must be left out" in error
    assert message in error


def check_resumed_equals_whole(config, tmp_path, **options):
    assert assert_equal_runs(config, resumed_copy(config, tmp_path / "resumed"), **options) > 50


@pytest.mark.slow
def test_a_run_resumes_to_the_bit_and_logs_one_step_and_four(run, tmp_path):
    check_resumed_equals_whole(run, tmp_path)
    last = Run(run.output_dir).history.validations()[-1]
    assert {"val/psnr", "val/psnr_4_steps", "val/lpips_alex_4_steps"} < set(last)
    assert last["val/psnr"] != last["val/psnr_4_steps"]


@pytest.mark.slow
def test_a_run_without_clips_of_noise_alone_resumes(tiny_flow):
    """As all runs of a version without `noise_fraction`: its weights are saved without that setting."""
    config = tiny_flow(steps=2, save_every=1, val_every=2, **LIGHT)
    flow = replace(config.causal_vae.flow, shift=1.0, noise_fraction=0.0)
    config = replace(config, causal_vae=replace(config.causal_vae, flow=flow))
    run_to(config, 1)
    train(config)
    assert Run(config.output_dir).history.validations()[-1]["step"] == 2


@pytest.mark.slow
def test_it_is_evaluated_in_one_step_and_in_four(run, tmp_path):
    one, sampler = evaluated(run.output_dir, run, tmp_path)
    assert sampler == {"name": "euler", "steps": 1, "seed": 0}
    four, sampler = evaluated(run.output_dir, run, tmp_path, "--decode_steps 4 --decode_seed 3")
    assert sampler == {"name": "euler", "steps": 4, "seed": 3}
    assert one["psnr"] != four["psnr"]


@pytest.mark.slow
def test_the_same_video_has_the_same_bits(run, tmp_path):
    """Also in another order; another seed, other steps and the frames after it have other noise."""
    protocol = ConfiguredClips(run.clips, 2)
    first, second = protocol.select(load_infos(run.data))
    settings = EvaluateConfig(data=str(run.data), device="cpu", decode_steps=2)
    model = load_with_clips(run.output_dir, settings, torch.device("cpu")).model
    reconstructor = ModelReconstructor(model, protocol, "flow")

    def reconstructed(*spans, **changes):
        with torch.no_grad(), decoding_options(reconstructor.model, **changes):
            return [
                reconstructor.reconstruct(span, protocol.read(span)["video"][None])
                for span in spans
            ]

    whole, other = reconstructed(first, second)
    assert all(map(torch.equal, reconstructed(second, first), (other, whole)))
    for changes in ({"seed": 1}, {"steps": 3}):
        assert not torch.equal(reconstructed(first, **changes)[0], whole)
    target = protocol.read(first)["video"][None]
    assert not torch.equal(
        reconstructor.reconstruct(second, target), reconstructor.reconstruct(first, target)
    )

    def psnr(steps):
        config = ReconstructConfig(num_frames=29, tile=32, device="cpu", decode_steps=steps)
        return reconstruct(run.output_dir, run.data, tmp_path / "out.mp4", config)

    assert psnr(2) == psnr(2) != psnr(1)


@pytest.mark.slow
def test_latents_are_decoded_in_steps(run):
    settings = LatentsConfig(data=str(run.data), device="cpu", max_clips=1)
    report, other = (
        measure_latent_spaces([run.output_dir], replace(settings, decode_steps=n)) for n in (1, 2)
    )
    assert other.protocol["samplers"] == [{"name": "euler", "steps": 2, "seed": 0}]
    assert report.models[0].equivariance != other.models[0].equivariance


@pytest.mark.slow
@pytest.mark.usefixtures("probe_each_configuration_once")
def test_ltx_with_levels_is_trained_resumed_and_evaluated(tiny, tmp_path, capsys):
    """LTX-Video with timesteps and noise inside; the level of decoding is in the protocol."""
    noisy = {"timestep_conditioning": True, "decoder_inject_noise": (True,) * 3}
    model = tiny_model("ltx_video", **FEW_LEVELS["ltx_video"] | noisy)
    model.save_pretrained(tmp_path / "ltx")
    changes = {
        **LIGHT,
        "steps": 2,
        "save_every": 1,
        "latent_clips": 1,
        "clips": replace(tiny().clips, num_frames=9),
    }
    run = tiny(model=str(tmp_path / "ltx"), output_dir=str(tmp_path / "run"), **changes)
    train(run)
    check_resumed_equals_whole(run, tmp_path, num_files=5)
    trained = type(model).from_pretrained(last_checkpoint(run) / "model")
    embedding = "decoder.time_embedder.timestep_embedder.linear_1.weight"
    assert not torch.equal(trained.get_parameter(embedding), model.get_parameter(embedding))
    first, _ = evaluated(run.output_dir, run, tmp_path)
    again, _ = evaluated(run.output_dir, run, tmp_path)
    other, sampler = evaluated(run.output_dir, run, tmp_path, "--decode_level 0.5")
    assert first["psnr"] == again["psnr"] != other["psnr"]
    assert sampler == {"name": "noise of the latent", "level": 0.5, "seed": 0}
    check_refused(
        capsys, run.output_dir, run, "--decode_steps", " without a decoder that generates"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("probe_each_configuration_once")
def test_a_decoder_of_ltx25_is_trained_resumed_and_evaluated(tiny, tmp_path, monkeypatch, capsys):
    """From random weights, for a frozen autoencoder; the levels are those of `causal_vae.flow`."""
    monkeypatch.chdir(tmp_path)
    tiny_model("ltx2_video").save_pretrained("vae")
    config = json.loads(tiny_model("ltx2_diffusion_decoder").to_json_string())
    Path("decoder.json").write_text(json.dumps({**config, "_teacher": "vae"}))
    clips = replace(tiny().clips, num_frames=9, height=64, width=64)
    run = tiny(
        output_dir="run",
        model="decoder.json",
        **{**LIGHT, "steps": 2, "save_every": 1, "clips": clips},
    )
    run = replace(run, causal_vae=replace(run.causal_vae, flow=FlowConfig(level_mean=1.5)))
    assert build_autoencoder(run).flow.level_mean == 1.5
    train(run)
    check_resumed_equals_whole(run, tmp_path, num_files=5)
    assert {"val/psnr", "val/psnr_4_steps"} < set(Run("run").history.validations()[-1])
    trained = type(tiny_model("ltx2_diffusion_decoder")).from_pretrained(
        last_checkpoint(run) / "ema"
    )
    assert trained.config["_teacher"] == "../../../vae", "from the checkpoint"
    _, sampler = evaluated("run", run, tmp_path, "--decode_steps 2")
    assert sampler == {"name": "euler", "steps": 2, "seed": 0}
    check_refused(capsys, "run", run, "--decode_level", " without")
    with pytest.raises(ValueError, match="`random_weights` must be false for a student"):
        build_autoencoder(replace(run, random_weights=True))


def test_a_model_that_does_not_generate_has_no_steps(tiny, tmp_path, capsys):
    config = tiny()
    build_autoencoder(config).save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    check_refused(capsys, model, config, "--decode_steps", " without a decoder that generates")
    check_refused(capsys, config.data, config, "--decode_seed", "")
    check_refused(capsys, model, config, "--decode_level", "")


def test_an_update_has_the_errors_of_the_levels(tiny_flow):
    """The loss of pixels is the mean error of the denoised clips, each with the weight of its level."""
    config = tiny_flow(batch_size=2)
    model = build_autoencoder(config)
    video = torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    generators = clip_generators(config.seed, range(2), torch.device("cpu"))
    with torch.no_grad():
        latent = model.encode(video).sample(generators)
        level = random_levels(config.causal_vae.flow, video, generators)
        t = level.view(-1, 1, 1, 1, 1)
        noise = randn(video.shape, generator=generators, device=video.device)
        denoised = model.decoder(latent, (1 - t) * video + t * noise, level)
        errors = (denoised - video).square().mean((1, 2, 3, 4))
    state = new_state(config, model)
    log = train_step(state, [MicroBatch(video, range(2))])
    weights = level_weights(config.causal_vae.flow, level)
    assert log["train/recon_loss"] == pytest.approx((weights * errors).mean().item(), rel=1e-4)
    assert log["train/mse"] == pytest.approx(errors.mean().item(), rel=1e-4)
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


def spread_of_clips(*, latent, decode, sample_weight):
    """Return how far the videos that are decoded of one latent differ."""
    return decode(latent[:1].expand_as(latent)).std(0).mean()


def test_terms_that_decode_see_the_noise_of_the_run(tiny_flow):
    config = tiny_flow(batch_size=2)
    config = replace(
        config, objective=replace(config.objective, terms={"spread": Term(spread_of_clips, 0.1)})
    )
    model = build_autoencoder(config)
    torch.nn.init.normal_(model.last_layer, std=0.1)
    state = new_state(config, model)
    video = torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert train_step(state, [MicroBatch(video, range(2))])["train/spread_loss"] > 1e-3


@pytest.mark.parametrize(
    ("one_step", "more"), [(False, {"psnr_4_steps", "ssim_4_steps"}), (True, set())]
)
def test_a_validation_has_names_for_both(tiny_flow, one_step, more):
    config = tiny_flow()
    flow = replace(config.causal_vae.flow, one_step=one_step)
    model = build_autoencoder(replace(config, causal_vae=replace(config.causal_vae, flow=flow)))
    clip = {"video": torch.rand(3, 5, 32, 32) * 2 - 1, "source": "a", "start": 0, "fps": 25.0}
    torch.nn.init.normal_(model.last_layer, std=0.1)
    metrics = validate_model(model, [clip], {}).metrics
    assert set(metrics) == {"psnr", "ssim"} | more
    assert metrics["psnr"] != metrics.get("psnr_4_steps")
    assert model.describe_decoding()["steps"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("adversarial", [0.0, 0.5])
def test_one_step_from_many(run, folder, tmp_path, adversarial):
    objective = replace(run.objective, adversarial_loss_weight=adversarial)
    if not adversarial:
        objective = replace(objective, grad_penalty_loss_weight=0.0)
    shared = {
        name: getattr(run, name)
        for name in ("data", "device", "clips", "linear_baseline", "optimizer")
    }
    config = DistillConfig(
        teacher=run.output_dir,
        student="teacher",
        teacher_decode_steps=2,
        objective=objective,
        discriminator=run.discriminator,
        output_dir=str(tmp_path / "student"),
        **shared,
        **{"steps": 2, "batch_size": 1, "val_clips": 1, "save_every": 1, "trackers": ()},
    )
    result = distill(config)
    assert read_saved_settings(result.checkpoint)["causal_vae"]["flow"]["one_step"]
    teacher = load_autoencoder(last_checkpoint(run) / "ema")
    student = load_autoencoder(result.checkpoint / "ema")
    assert isinstance(student, CausalAutoencoder)
    assert student.config.flow.one_step
    assert student.describe_decoding()["steps"] == 1
    weights = student.decoder.state_dict()
    change = max(
        (weights[name] - other).abs().max().item()
        for name, other in teacher.decoder.state_dict().items()
    )
    assert 0 < change < 0.05, "it started from the teacher's weights"
    means = next(
        record for record in Run(result.run).history.read() if "train/recon_loss" in record
    )
    assert means["train/recon_loss"] < means["train/mse"], (
        "of the teacher's sample, and of the video"
    )


@pytest.mark.slow
def test_the_term_of_the_reconstruction_of_a_teacher_that_generates(run):
    term = TeacherReconstruction(run.output_dir, decode_steps=2)
    teacher = term.teacher.in_eval_mode()
    latent = torch.randn(2, 4, 2, 8, 8)
    shape = (2, 3, 5, 32, 32)
    generators = [clip_generators(0, [3, 4], torch.device("cpu")) for _ in range(2)]
    sample = teacher.decode(
        latent, randn(shape, generator=generators[0], device=latent.device)
    ).detach()
    assert term(reconstruction=sample, latent=latent, generator=generators[1]) == 0
