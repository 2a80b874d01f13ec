"""The commands and the code of the pages about training run, on tiny models and for a few steps."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import nbformat
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import telecine
from telecine import training
from telecine.__main__ import main
from telecine.base.files import read_json
from telecine.cli.program import COMMANDS
from telecine.data import index_video, read_clip, sample_videos
from telecine.models import load_autoencoder
from telecine.runs import Run
from telecine.runs.history import History
from telecine.settings import ClipConfig, ObjectiveConfig
from telecine.settings.parse import read_config
from telecine.video.write import write_video

from .models.tiny_models import FEW_LEVELS, tiny_model
from .training.conftest import recorded_once
from .training.no_pictures import leave_pictures_out

__all__ = ["recorded_once"]
ROOT = Path(__file__).parent.parent
NO_PICTURES = ROOT / "tests" / "training" / "no_pictures.py"
HUB_NAME = "zai-org/CogVideoX-2b"
# The size of a test, and nothing that the pages speak of.
SMALL = """
steps: 1
batch_size: 1
gradient_accumulation_steps: 1
mixed_precision: "no"
model_gradient_checkpointing: false
val_clips: 1
device: cpu
trackers: []
clips: {num_frames: 5, height: 32, width: 32, num_workers: 0}
causal_vae: {time_compression: 4, spatial_compression: 4, latent_channels: 4, patch_size: 4, channel_multipliers: [1],
  base_channels: 8, blocks_per_level: 1}
linear_baseline: false
latent_clips: 2
linear_start: false
objective: {perceptual_weight: 0, grad_penalty_loss_weight: 0, adversarial_loss_weight: 0, gan: {lecam_loss_weight: 0}}
discriminator: {video: none}
"""


def blocks(page, kind):
    return re.findall(
        rf"```{kind}\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.DOTALL
    )


def commands(page):
    return [
        shlex.split(line)
        for block in blocks(page, "sh")
        for line in block.replace("\\\n", "").splitlines()
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Have what the pages speak of in the working directory, the Hub's model among it."""
    (tmp_path / "my_videos").mkdir()
    frames = read_clip(index_video(sample_videos()[0]), 0, 30, size=(48, 64))
    write_video(tmp_path / "my_videos" / "face.mp4", frames, fps=25)
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    leave_pictures_out(monkeypatch.setattr)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(before)


def weights(run, kind="ema"):
    """Return the weights of a run's last checkpoint, by name."""
    (path,) = (Run(Path("runs", run)).checkpoints.all()[-1][1] / kind).glob("*.safetensors")
    return load_file(path)


def changed(before, after):
    """Return the first parts of the names of the weights that differ."""
    assert before.keys() == after.keys()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.slow
def test_start(folder, cached_weights):
    first, data, train, reconstruct, evaluate = commands("start.md")
    shutil.copytree("my_videos", "other_videos")
    shutil.copy(Path("my_videos", "face.mp4"), "clip.mp4")
    assert main([*first[1:], "--height=32"]) == 0
    assert Path("first.mp4").is_file()
    assert main([*data[1:], "--config", "small.yaml", "--num_clips=2"]) == 0
    assert Path("my_data", "data.html").is_file()
    assert train[:2] == ["telecine", "train"]
    assert main([*train[1:], "--config", "small.yaml", "--clips.cache=false"]) == 0
    size = ["--num_frames=5", "--height=32", "--width=32", "--max_clips=1"]
    assert main([*evaluate[1:], *size]) == 0
    assert main(reconstruct[1:]) == 0
    assert Path("figures", "protocol.json").is_file()
    assert Path("out.mp4").is_file()


@pytest.mark.slow
def test_the_model_of_the_package(folder, cached_weights):
    shutil.copy(Path("my_videos", "face.mp4"), "clip.mp4")
    Path("small.yaml").write_text(
        re.sub(r"causal_vae: .*?\n(?=linear)", "", SMALL, flags=re.DOTALL)
    )
    small = ["--num_frames=5", "--height=32", "--width=32", "--max_clips=1"]
    options = {"reconstruct": ["--height=32"], "latents": small, "evaluate": small}
    for _, command, *arguments in commands("tiny.md"):
        size = options.get(command, ["--config=small.yaml"])
        assert main([command, *arguments, *size]) == 0
    assert Path("out.mp4").is_file()
    assert Path("figures", "protocol.json").is_file()
    assert weights("tuned").keys() == load_autoencoder("tiny").state_dict().keys()
    assert weights("student").keys() < weights("tuned").keys()


@pytest.mark.slow
def test_fine_tuning(folder, cached_weights, probe_each_configuration_once):
    torch.manual_seed(0)
    model = tiny_model("cogvideox", **FEW_LEVELS["cogvideox"])
    model.save_pretrained(HUB_NAME)  # a folder of the same name is taken for it
    shutil.copy(Path(HUB_NAME, "config.json"), "my_config.json")
    lines = [line for line in commands("fine-tuning.md") if "my_videos/" in line]
    assert len(lines) == 6
    for line in lines:
        assert line[:2] == ["telecine", "train"]
        steps = (
            ["--steps=2"] if "runs/cogvideox" in line else []
        )  # the code loads its second checkpoint
        assert main([*line[1:], "--config", "small.yaml", *steps]) == 0
    assert list(Path("latents").glob("latents-*.tar"))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert changed(before, weights("cogvideox")) == {"encoder", "decoder"}
    assert changed(before, weights("decoder")) == {"decoder"}
    assert changed(weights("decoder"), weights("cached")) == set()
    moved = {
        name for name, weight in weights("last").items() if not torch.equal(weight, before[name])
    }
    assert moved
    assert all(name.startswith(("decoder.conv_out.", "decoder.norm_out.")) for name in moved)
    assert changed(before, weights("lora")) == {"decoder"}
    assert changed(before, weights("scratch")) == {"encoder", "decoder"}
    names = {}
    (code,) = blocks("fine-tuning.md", "python")
    exec(compile(code, "fine-tuning.md", "exec"), names)
    assert type(names["vae"]) is type(model)


@pytest.mark.slow
def test_images(folder, cached_weights, probe_each_configuration_once):
    """The commands about images, with a tiny model."""
    torch.manual_seed(0)
    model = tiny_model("kl_image")
    model.save_pretrained("stabilityai/sd-vae-ft-mse")
    Path("my_images").mkdir()
    for index, frame in enumerate(
        read_clip(index_video("my_videos/face.mp4"), 0, 4, size=(32, 32))
    ):
        Image.fromarray(frame.numpy()).save(f"my_images/{index}.png")
    lines = [line for line in commands("fine-tuning.md") if "my_images/" in line]
    assert [line[1] for line in lines] == ["train", "evaluate", "latents", "reconstruct", "distill"]
    for name, *line in (line[1:] for line in lines):
        size = ["--height=24", "--width=24"] if name != "reconstruct" else []  # too small for LPIPS
        training = ["--config", "small.yaml", "--clips.num_frames=1"]
        assert main([name, *line, *(training if name in ("train", "distill") else size)]) == 0
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert changed(before, weights("images")) == {"decoder"}
    assert {name.split(".")[0] for name in weights("small_decoder")} == {"decoder"}
    assert json.loads(Path("measured/protocol.json").read_text())["num_frames"] == 1
    assert len(list(Path("reconstructed").glob("*.png"))) == 4
    assert Path("latent_space/latents.html").is_file()


@pytest.mark.slow
def test_distillation(folder, cached_weights, probe_each_configuration_once):
    teacher = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1
    ).save_pretrained(teacher)
    *lines, measuring = commands("distillation.md")
    assert [line[:4] for line in lines] == 2 * [["telecine", "distill", "--teacher", teacher]]
    for line in lines:
        assert (
            main([*line[1:], "--config", "small.yaml", "--steps=2"]) == 0
        )  # the code loads the second checkpoint
    assert main([*measuring[1:], "--max_clips", "1", "--device", "cpu"]) == 0
    assert {name.split(".")[0] for name in weights("student")} == {"decoder"}
    assert {name.split(".")[0] for name in weights("both")} == {"encoder", "decoder"}
    assert any(
        "train/teacher_latent_loss" in record
        for record in History(Path("runs/both/metrics.jsonl")).read()
    )
    names = {}
    codes = blocks("distillation.md", "python")
    assert len(codes) == 2
    for code in codes:
        exec(compile(code, "distillation.md", "exec"), names)
    assert names["video"].shape == (1, 3, 5, 64, 64)


@pytest.mark.slow
def test_decoders_that_generate(folder, cached_weights, monkeypatch):
    lines = commands("autoencoder.md")
    assert [line[1] for line in lines] == ["train", "evaluate", "distill", "reconstruct"]
    monkeypatch.setattr(
        "telecine.training.clips.sample_videos", lambda: [folder / "my_videos" / "face.mp4"]
    )
    small = ["--config", "small.yaml", "--clips.cache=false"]
    for line in lines:
        size = {"evaluate": ["--max_clips=1"], "reconstruct": ["--num_frames=29"]}
        assert main([*line[1:], *size.get(line[1], small)]) == 0
    assert read_json(Path("figures/flow/protocol.json"))["sampler"] == {
        "name": "euler",
        "steps": 4,
        "seed": 0,
    }
    assert weights("flow").keys() > weights("one_step").keys()
    assert Path("out.mp4").is_file()


@pytest.mark.slow
def test_many_gpus(folder, cached_weights, forks):
    lines = commands("many-gpus.md")
    assert [line[0] for line in lines] == [
        "torchrun",
        "accelerate",
        "accelerate",
        "torchrun",
        "telecine",
        "telecine",
    ]
    small = ["--config", "small.yaml"]
    (text,) = blocks("many-gpus.md", "yaml")
    Path("accelerate.yaml").write_text(text)
    # Each with a free port.
    launchers = {
        "torchrun --nproc-per-node": ["torch.distributed.run", "--standalone", "--nproc-per-node"],
        "accelerate launch": ["accelerate.commands.launch", "--main_process_port", "0"],
    }
    for *launcher, line in [(*line[:2], line[2:]) for line in lines[:4]]:
        start = line.index("-m")
        assert line[start : start + 3] == ["-m", "telecine", "train"]
        command = [
            *launchers[" ".join(launcher)],
            *line[:start],
            str(NO_PICTURES),
            *line[start + 2 :],
            *small,
        ]
        done = forks.run("-m", *command)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (
            done.stdout.count("in each of 2 processes")
            == done.stdout.count("training finished")
            == 1
        )
    for line in lines[4:]:
        assert main([*line[1:], *small]) == 0
    assert read_config("runs/configured/config.yaml").mixed_precision == "bf16"
    assert read_config("runs/sharded/config.yaml").mixed_precision == "no"
    steps = {
        run: Run(Path("runs", run)).checkpoints.all()[-1][0]
        for run in ("two", "sharded", "shared", "resumed")
    }
    assert steps == {"two": 1, "sharded": 1, "shared": 1, "resumed": 4}
    two, sharded = weights("two"), weights("sharded")
    assert max((two[name] - sharded[name]).abs().max().item() for name in two) < 1e-5


@pytest.fixture
def small_training(monkeypatch):
    """Let `telecine.train` make two updates with small clips."""

    def small(config, **options):
        clips = ClipConfig(num_frames=5, height=32, width=32, num_workers=0)
        objective = ObjectiveConfig(perceptual_weight=0.0)
        return train(
            replace(config, steps=2, val_clips=1, device="cpu", clips=clips, objective=objective),
            **options,
        )

    train = training.train
    for package in (telecine, training):  # the first imports it when it is first used, and keeps it
        monkeypatch.setattr(package, "train", small)


@pytest.mark.slow
@pytest.mark.usefixtures("folder", "cached_weights", "small_training")
def test_own_model():
    code = blocks("own-model.md", "python")
    assert len(code) == 3
    torch.manual_seed(0)
    names = {"__name__": "__main__"}
    for block in code[:2]:
        exec(compile(block, "own-model.md", "exec"), names)
    assert names["result"].last["psnr"] > 0
    assert changed(names["Compressor"]().state_dict(), weights("mine")) == {"encoder", "decoder"}
    exec(compile(code[2], "own-model.md", "exec"), names)
    assert names["both"].disc_loss.isfinite()
    assert names["model"].decoder.weight.grad.abs().max() > 0


@pytest.mark.slow
@pytest.mark.usefixtures("cached_weights", "small_training")
def test_the_notebook(folder, monkeypatch):
    write_video(
        folder / "small.mp4",
        read_clip(index_video(sample_videos()[0]), 0, 90, size=(64, 64)),
        fps=25,
    )
    monkeypatch.setattr("telecine.data.sample_videos", lambda: 3 * [folder / "small.mp4"])
    monkeypatch.setattr("telecine.training.baseline.NUM_CLIPS", 12)
    notebook = nbformat.read(ROOT / "docs" / "own-module.ipynb", as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    names = {"__name__": "__main__"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs or "parameters" in cell.metadata.get("tags", []), (
                "run it before it is committed"
            )
            exec(compile(cell.source, "own-module.ipynb", "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names["data"] = "my_videos"
    assert names["output_dir"] == "runs/own-module"
    assert names["result"].last["psnr"] > 0
    assert not torch.equal(
        names["model"].linear.encoder.rest.weight,
        weights("own-module")["linear.encoder.rest.weight"],
    )
    assert names["both"].disc_loss.isfinite()


def test_trackers(tmp_path):
    """The commands are read, not run: two of the trackers need not be installed."""
    lines = commands("trackers.md")
    assert [line[:2] for line in lines] == 3 * [["telecine", "train"]]
    settings = [COMMANDS[line[1]].parse(line[2:])[0]["settings"] for line in lines]
    assert [config.trackers for config in settings] == [
        ("wandb",),
        ("tensorboard", "wandb", "trackio"),
        ("wandb",),
    ]
    assert (settings[1].tracker_project, settings[2].tracker_options) == (
        "my_project",
        {"wandb": {"group": "my_study"}},
    )
    (text,) = blocks("trackers.md", "yaml")
    (tmp_path / "config.yaml").write_text(text)
    assert read_config(tmp_path / "config.yaml").tracker_options["wandb"]["tags"] == ["baseline"]


@pytest.mark.slow
def test_hardware(folder, capsys):
    (command,) = commands("hardware.md")
    assert command[:2] == ["telecine", "plan"]
    few_rows = ["--dynamo_backend=inductor"]  # it refuses most switches
    assert main([*command[1:], "--config", "small.yaml", *few_rows]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "fits 80.00 GiB, of which 90% are used",
        "optimizer states",
        "copy for checkpoints",
        "TFLOP an update",
        "The largest part of an update, by its plan",
        "as configured",
    ):
        assert words in text
