"""Distillation from a tiny Wan, end to end, and the terms that look at a teacher."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from telecine.__main__ import main
from telecine.models import CausalVAE, Moments, load_autoencoder
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.student import StudentAutoencoder
from telecine.report.page import write_report
from telecine.runs import Run
from telecine.runs.checkpoints import Checkpoints
from telecine.runs.saved_settings import write_settings
from telecine.settings import (
    CausalVAEConfig,
    ClipConfig,
    DistillConfig,
    PredictiveConfig,
    Term,
)
from telecine.settings.distill import ResolvedStudent
from telecine.tools.distill import (
    TeacherDecoding,
    TeacherLatent,
    TeacherReconstruction,
    distill,
    distillation,
)

from ...models.tiny_models import tiny_model
from ...training.helpers import tensors


def run(typed):
    """Run `telecine distill` with the settings of the folder, and return its exit code."""
    return main(["distill", "--config", "distill.yaml", *typed.split()])


@pytest.mark.slow
def test_a_decoder_for_a_tiny_wan(folder, capsys):
    typed = "--teacher wan --output_dir run --latent_cache latents --teacher_weight 0.5"
    assert run(f"{typed} --steps 1") == 0
    assert "teacher: held-out psnr " in capsys.readouterr().out
    assert run(typed) == 0
    assert "resuming from" in capsys.readouterr().out
    assert len(list(Path("latents").glob("*.tar"))) == 2, "a clip was encoded in each run"
    output = Run(folder / "run")
    (means,) = (
        record
        for record in output.history.read()
        if record.get("step") == 2 and "train/lr" in record
    )
    assert {"train/teacher_reconstruction_loss", "train/wavelet_loss", "train/gen_loss"} < set(
        means
    )
    checkpoint = output.checkpoints.all()[-1][1]
    config = json.loads((checkpoint / "ema" / "config.json").read_text())
    wan = DiffusersAutoencoder.from_pretrained("wan")
    teachers = [record["teacher/psnr"] for record in output.history.read() if "val/psnr" in record]
    assert len(set(teachers)) == 1
    assert len(teachers) == 3, "before, at 1 and at 2"
    page = write_report([folder / "run"]).read_text()
    assert "<small>teacher " in page
    assert "teacher/psnr" in page, "a curve"
    assert config["teacher"] == "../../../wan", "the path from there"
    assert config["latents_mean"] == list(wan.module.config.latents_mean)
    of_student = {"decoder"}
    for name in ("ema", "model"):
        assert {
            key.split(".")[0] for key in load_file(checkpoint / name / "model.safetensors")
        } == of_student
    assert not any("teacher" in key for key in load_file(checkpoint / "objective.safetensors"))
    loaded = load_autoencoder(checkpoint / "ema")
    assert isinstance(loaded, StudentAutoencoder)
    latent = wan.encode(torch.zeros(1, 3, 5, 32, 32)).mode()
    assert loaded.decode(latent).shape == (1, 3, 5, 32, 32)
    assert (
        main(["reconstruct", "run", "clip.mp4", "-o", "out.mp4", "--device=cpu", "--height=32"])
        == 0
    )
    typed = "--teacher run --output_dir second --steps 1 --objective.terms.round_trip 0.1"
    assert run(typed) == 0, "a student of a student"
    assert "train/round_trip_loss" in Run(Path("second")).history.path.read_text()
    assert load_autoencoder("second").encode(torch.zeros(1, 3, 5, 32, 32)).mode().isfinite().all()


@pytest.mark.slow
def test_a_teacher_without_a_latent_frame_of_the_first_frame_alone(folder):
    tiny_model("allegro").save_pretrained("allegro")
    typed = "--clips.num_frames 8 --teacher_weight 0.5 --feature_weight 0.1"
    assert run(f"--teacher allegro {typed} --steps 1 --output_dir run") == 0
    output = Run(Path("run"))
    assert "train/teacher_features_loss" in output.history.path.read_text()
    student = load_autoencoder(output.checkpoints.all()[-1][1] / "ema")
    teacher = DiffusersAutoencoder.from_pretrained("allegro").eval()
    video = torch.rand(1, 3, 8, 32, 32) * 2 - 1
    teacher.requires_grad_(
        False
    )  # as the student's: PyTorch multiplies matrices of trained weights in other shapes
    with torch.no_grad():
        latent = teacher.encode(video).mode()
        assert torch.equal(student.encode(video).mode(), latent)
        assert torch.equal(student(video, sample_posterior=False).video, student.decode(latent))


@pytest.mark.slow
def test_a_resumed_run_is_the_same_and_trains_the_projections_of_features(folder):
    typed = "--teacher wan --teacher_weight 0.5 --feature_weight 0.1"
    assert run(f"{typed} --output_dir whole") == 0
    shutil.copytree("whole", "parts")
    shutil.rmtree(Run(Path("parts")).checkpoints.all()[-1][1])
    assert run(f"{typed} --output_dir parts") == 0
    (_, before), (_, whole) = Run(Path("whole")).checkpoints.all()
    parts = Run(Path("parts")).checkpoints.all()[-1][1]
    networks = Run(Path("whole")).summary().networks
    assert [name for name in networks if "teacher_features" in name]
    assert Run(Path("parts")).summary().networks == networks
    ours = tensors(whole)
    theirs = tensors(parts)
    assert len(ours) == 6
    assert all(
        torch.equal(ours[file][key], theirs[file][key]) for file in ours for key in ours[file]
    )
    first, last = (load_file(path / "objective.safetensors") for path in (before, whole))
    projections = [key for key in last if "projections" in key]
    assert len(projections) == 4
    assert not any("teacher." in key for key in last)
    assert any(not torch.equal(first[key], last[key]) for key in projections)


def test_the_term_of_the_latent_is_0_for_the_teachers_and_1_for_its_mean(folder):
    term = TeacherLatent("wan")
    assert list(term.parameters()) == []
    assert term.state_dict() == {}
    target = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    of_teacher = DiffusersAutoencoder.from_pretrained("wan").encode(target).mode().detach()
    mean = (
        of_teacher.mean((0, 2, 3, 4), keepdim=True).expand_as(of_teacher).clone().requires_grad_()
    )
    assert term(latent=of_teacher, target=target) == pytest.approx(0.0, abs=1e-8)
    loss = term(latent=mean, target=target)
    assert loss.item() == pytest.approx(1.0, rel=1e-3)
    half = term(latent=mean, target=target, sample_weight=torch.tensor([0.5, 0.5]))
    assert half.item() == pytest.approx(0.5, rel=1e-3)
    loss.backward()
    assert mean.grad.any()


def test_the_term_of_the_latent_compares_posteriors(folder):
    """Of the teacher's own posterior it is 0, whatever is sampled: it must not train the student's variance to 0."""
    term = TeacherLatent("wan")
    target = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = DiffusersAutoencoder.from_pretrained("wan").encode(target)
    student = Moments(expected.mean.clone(), expected.logvar.clone().requires_grad_())
    value = term(latent=expected.sample(), target=target, posterior=student)
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    narrower = Moments(expected.mean, (expected.logvar - 2).requires_grad_())
    term(latent=expected.sample(), target=target, posterior=narrower).backward()
    assert (narrower.logvar.grad <= 0).all(), "a descent widens it"
    assert narrower.logvar.grad.abs().sum() > 0


def test_the_term_of_the_reconstruction(folder):
    term = TeacherReconstruction("wan")
    wan = DiffusersAutoencoder.from_pretrained("wan")
    latent = torch.randn(2, 4, 2, 4, 4)
    with torch.no_grad():  # as the teacher decodes: with a graph, its norms round differently
        decoded = wan.decode(latent)
    assert term(reconstruction=decoded, latent=latent) == 0
    x = (decoded + 0.25).requires_grad_()
    loss = term(reconstruction=x, latent=latent)
    assert loss.item() == pytest.approx(0.25, rel=1e-5)
    loss.backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / x.numel()))


def test_the_term_of_the_teachers_decoding(folder):
    """It is the error of the teacher's reconstruction, and its gradient reaches the latent alone."""
    target = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    wan = DiffusersAutoencoder.from_pretrained("wan").requires_grad_(False)
    latent = wan.encode(target).mode().requires_grad_()
    error = (wan.decode(latent) - target).abs().mean()
    term = TeacherDecoding("wan")
    value = term(latent=latent, target=target)
    assert value.item() == pytest.approx(error.item(), rel=1e-5)
    value.backward()
    assert latent.grad.any()
    assert list(term.parameters()) == []
    assert not any(weight.requires_grad for weight in term.teacher.in_eval_mode().parameters())
    perceptual = TeacherDecoding("wan", perceptual_weight=0.5)
    arguments = {"latent": latent, "target": target, "generator": torch.Generator().manual_seed(0)}
    assert perceptual(**arguments) > value
    halved = perceptual(**arguments, sample_weight=torch.tensor([0.5, 0.5]))
    assert 0 < halved < value


def test_a_run_whose_teacher_has_changed_does_not_resume(folder, capsys):
    """It would be trained on two teachers."""
    typed = "--teacher wan --train_encoder true --output_dir run"
    assert run(f"{typed} --steps 1") == 0
    assert [name for name in Run(Path("run")).summary().networks if "teacher_latent" in name]
    tiny_model("wan", seed=1).save_pretrained("wan")
    assert run(f"{typed} --steps 2") == 2
    assert "the frozen networks must be those that the run in" in capsys.readouterr().err


@pytest.fixture
def generating(folder):
    """Have a telecine model whose decoder generates in the working directory."""
    small = {"latent_channels": 4, "patch_size": 2, "base_channels": 8, "blocks_per_level": 1}
    CausalVAE(CausalVAEConfig(spatial_compression=4, decoder="flow", **small)).save_pretrained(
        "generates"
    )


@torch.no_grad()
def test_the_reconstruction_of_a_teacher_that_generates(generating):
    torch.manual_seed(0)
    latent = torch.randn(2, 4, 2, 8, 8)
    shape = (2, 3, 5, 32, 32)
    teacher = load_autoencoder("generates")
    for weight in teacher.parameters():
        torch.nn.init.normal_(weight, std=0.2)  # a new decoder makes the same of each noise
    teacher.save_pretrained("generates")
    teacher.set_decoding(steps=2)
    expected = teacher.decode(
        latent, torch.randn(shape, generator=torch.Generator().manual_seed(1))
    )
    term = TeacherReconstruction("generates", decode_steps=2)
    arguments = {"reconstruction": expected, "latent": latent}
    assert term(**arguments, generator=torch.Generator().manual_seed(1)) == 0
    assert term(**arguments, generator=torch.Generator().manual_seed(2)) > 0


@pytest.fixture
def trained(monkeypatch):
    """Return a list of the settings that `train` would get from `distill`."""
    configs = []

    def train(config, **_):
        configs.append(config)
        return SimpleNamespace(print_to=lambda console: None)

    monkeypatch.setattr(distillation, "train", train)
    return configs


def test_settings_that_a_run_has_saved_hold_none_of_its_terms(folder, trained):
    assert run("--teacher wan --teacher_weight 0.5") == 0
    write_settings(folder, trained[0])
    for weight in ("0.5", "0"):
        assert main(["distill", "--config", "config.yaml", "--teacher_weight", weight]) == 0
    assert trained[1] == trained[0]
    assert [[*config.objective.terms] for config in trained[1:]] == [
        ["wavelet", "teacher_reconstruction"],
        ["wavelet"],
    ]


def test_a_run_saves_what_was_typed_and_beside_it_what_it_leads_to(generating, trained):
    """Its settings start it again, and a run of it has the encoder of its teacher and the features of its start."""
    shutil.copytree("generates", "pruned")
    Path("pruned/prune.json").write_text("{}")
    typed = "--teacher generates --student tiny --feature_weight 1"
    assert run(f"{typed} --init pruned --output_dir run") == 0
    teacher = str(Path("generates").resolve())
    pruned = str(Path("pruned").resolve())
    assert (trained[0].teacher, trained[0].student, trained[0].model) == (teacher, "tiny", pruned)
    assert trained[0].resolved == ResolvedStudent(encoder=teacher, pruned_model=pruned)
    Path("run").mkdir()
    write_settings(Path("run"), trained[0])
    assert main(["distill", "--config", "run/config.yaml"]) == 0
    assert trained[1] == trained[0]
    shutil.copytree("generates", "again")
    write_settings(Path("again"), trained[0])
    assert run("--teacher generates --init again --feature_weight 1") == 0
    params = trained[2].objective.terms["teacher_features"].params
    assert params["pruned"] == str(Path("pruned/prune.json").resolve())


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_size_that_a_pruned_model_overrides_is_named(generating, trained, capsys, is_saved):
    """Typed beside the model, or over the settings of its run."""
    typed = "--teacher generates --init generates"
    if is_saved:
        assert run(typed) == 0
        assert "changes nothing" not in capsys.readouterr().out
        write_settings(Path(), trained[0])
        typed = "--config config.yaml"
    assert run(f"{typed} --student tiny") == 0
    assert "warning: --student changes nothing: the student starts as" in capsys.readouterr().out


def test_a_student_of_a_student_has_the_encoder_of_its_teacher(generating, trained):
    teacher = load_autoencoder("generates")
    config = replace(teacher.config, bottleneck="gaussian")
    StudentAutoencoder.of(teacher, "generates", load_autoencoder, config).save_pretrained("first")
    Path("student.yaml").write_text("base_channels: 8\nblocks_per_level: 1\npatch_size: 2\n")
    assert run("--teacher first") == 0
    (config,) = trained
    assert config.teacher == config.model == str(Path("first").resolve())
    assert config.resolved == ResolvedStudent(encoder=str(Path("generates").resolve()))


def test_a_student_with_an_encoder_of_its_own_learns_from_the_latent(folder, trained):
    typed = "--latent_weight 2 --feature_weight 0.1 --decoding_weight 3"
    assert run(f"--teacher wan --train_encoder true {typed}") == 0
    (config,) = trained
    assert (config.model, config.teacher, config.resolved) == (None, str(folder / "wan"), None)
    weights = {name: term.weight for name, term in config.objective.terms.items()}
    assert weights == {
        "wavelet": 0.1,
        "teacher_latent": 2,
        "teacher_decoding": 3,
        "teacher_features": 0.1,
    }


@pytest.mark.parametrize("is_loop", [False, True])
def test_the_channels_of_another_folder_are_not_compared(generating, trained, is_loop):
    """A start that is a recipe's name or leads back to itself has no file of `telecine prune`."""
    Path("small").mkdir()
    Path("small/prune.json").write_text("{}")
    shutil.copytree("generates", "first")
    shutil.copytree("generates", "second")
    pruned_models = {"first": None, "second": None}
    if is_loop:
        pruned_models = {
            "first": str(Path("second").resolve()),
            "second": str(Path("first").resolve()),
        }
    for folder, pruned_model in pruned_models.items():
        settings = {"student": "small", "resolved": {"encoder": "x", "pruned_model": pruned_model}}
        Path(folder, "config.yaml").write_text(yaml.safe_dump(settings))
    assert run("--teacher generates --init first --feature_weight 1") == 0
    (config,) = trained
    target = config.objective.terms["teacher_features"].target
    assert target == "telecine.tools.distill.TeacherFeatures"


def test_a_resumed_run_of_a_pruned_model_keeps_its_term_of_features(generating, trained):
    """A run of an older version has trained projections to the features of the teacher."""
    shutil.copytree("generates", "pruned")
    Path("pruned/prune.json").write_text("{}")
    typed = "--teacher generates --init pruned --feature_weight 1 --output_dir run"
    assert run(typed) == 0
    new = trained[0].objective.terms["teacher_features"]
    assert new.target == "telecine.tools.distill.PrunedFeatures"
    old = Term("telecine.tools.distill.TeacherFeatures", 1, {"teacher": "generates"})
    objective = replace(trained[0].objective, terms={"teacher_features": old})
    checkpoint = Path("run/checkpoints/step-00000001")
    checkpoint.mkdir(parents=True)
    Checkpoints.write_state(checkpoint, {})
    write_settings(checkpoint, replace(trained[0], objective=objective))
    assert run(typed) == 0
    assert trained[1].objective.terms["teacher_features"].target == old.target


@pytest.mark.parametrize(("student", "linear_start"), [("teacher", False), ("flow.yaml", True)])
def test_a_student_of_a_teacher_that_generates_imitates_it_in_one_step(
    generating, trained, student, linear_start
):
    """It starts as the teacher if their decoders are alike, otherwise as a linear map."""
    Path("flow.yaml").write_text("decoder: flow\nbase_channels: 16\nblocks_per_level: 1\n")
    typed = f"--teacher generates --student {student}"
    assert run(f"{typed} --teacher_weight 0.5 --teacher_decode_steps 3") == 0
    (config,) = trained
    assert config.causal_vae.flow.one_step
    assert config.linear_start == linear_start
    params = config.objective.terms["teacher_reconstruction"].params
    assert params == {"teacher": str(Path("generates").resolve()), "decode_steps": 3}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "--model wan",
            "`--model` must be left out, but got a value. A student is new, and learns",
        ),
        ("--random_weights true", "`--random_weights` must be left out, but got a value"),
        ("--resolved.encoder wan", "`--resolved.encoder` must be left out, but got a value"),
        (
            "--trainable.weights lora",
            "`--trainable.weights` must be all or decoder for a student, but got lora.",
        ),
    ],
)
def test_what_a_student_does_not_start_from_is_refused(folder, trained, capsys, typed, message):
    Path("of_model.yaml").write_text("model: wan\nrandom_weights: true\n")
    assert run(f"--config of_model.yaml --config distill.yaml --teacher wan {typed}") == 2
    assert message in capsys.readouterr().err
    assert trained == []
    assert DistillConfig(init="run", train_encoder=True).init == "run", "which starts both parts"


def test_errors(folder):
    Path("nested.yaml").write_text("base_channels: 8\nnested_channels: [2]\n")
    with pytest.raises(
        ValueError, match=r"`teacher` must be a model or a run, but got nothing\. Add `--teacher"
    ):
        distill(DistillConfig())
    for settings, message in (
        ({"teacher_weight": -1.0}, "`teacher_weight` must be at least 0"),
        (
            {"train_encoder": True, "latent_weight": 0.0},
            "`latent_weight` must be larger than 0 without `decoding_weight`, but got 0",
        ),
        ({"decoding_weight": 1.0}, "`decoding_weight` must be 0 without `train_encoder`"),
        (
            {"decoding_perceptual_weight": 1.0},
            "`decoding_perceptual_weight` must be 0 without `decoding_weight`",
        ),
        (
            {"train_encoder": True, "predictive": PredictiveConfig(max_dropped=1.0)},
            "`predictive.max_dropped` must be 0 with `train_encoder`, but got 1",
        ),
        (
            {"student": "nested.yaml", "teacher_weight": 1.0},
            r"`nested_channels` must be those of the teacher, \[\], but got \[2\]\. Use a",
        ),
    ):
        clips = ClipConfig(num_frames=5, height=32, width=32)
        with pytest.raises(ValueError, match=message):
            distill(DistillConfig(teacher="wan", clips=clips, **settings))
