"""Commands as a user types them."""

import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import av
import jsonschema
import pytest
import torch
import yaml

from telecine import __version__
from telecine.__main__ import main
from telecine.cli.parser import Command
from telecine.cli.program import COMMANDS
from telecine.data import sample_videos
from telecine.evaluation.metrics import default_metrics
from telecine.models import CausalVAE
from telecine.runs import Run
from telecine.settings import CausalVAEConfig, DistillConfig, Ramp, Term, TrainConfig
from telecine.settings.listing import json_schema
from telecine.settings.parse import recipes

NO_PICTURES = runpy.run_path(str(Path(__file__).parents[1] / "training" / "no_pictures.py"))

pytestmark = pytest.mark.usefixtures("cached_weights")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = CausalVAEConfig(
        time_compression=4,
        spatial_compression=4,
        latent_channels=4,
        patch_size=2,
        base_channels=8,
        blocks_per_level=1,
    )
    CausalVAE(config).save_pretrained(folder)
    return folder


def run(line):
    """Run a command as it is typed after `telecine`, and return its exit code."""
    return main(shlex.split(line))


def error_of(capsys, line):
    """Run a command that must fail, and return its one line on standard error."""
    assert run(line) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("telecine: error: ")
    assert captured.err.count("\n") == 1, "one error, one line"
    return captured.err


def test_a_command_lets_threads_wait_without_a_core_before_pytorch_is_loaded():
    code = """
import os, subprocess, sys
import telecine, telecine.settings
from telecine.__main__ import main

for chosen in (None, "ACTIVE"):
    before = os.environ.pop("OMP_WAIT_POLICY", None)
    if chosen is not None:
        os.environ["OMP_WAIT_POLICY"] = chosen
    try:
        main(["--version"])
    except SystemExit:
        pass
    assert "torch" not in sys.modules
    worker = subprocess.run(["printenv", "OMP_WAIT_POLICY"], capture_output=True, text=True, check=True)
    print(before, os.environ["OMP_WAIT_POLICY"], worker.stdout)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    words = [word for word in done.stdout.split() if word != __version__]
    assert words == [*("None", "PASSIVE", "PASSIVE"), *("PASSIVE", "ACTIVE", "ACTIVE")], done.stderr


@pytest.mark.slow
def test_runs_as_a_module(forks):
    done = forks.run("-m", "telecine", "train", "--help")
    assert done.returncode == 0
    assert "--optimizer.lr" in done.stdout


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("train --data x --stepz 3", "Did you mean `--steps`?"),
        (
            "train --data x --objective.disc_strat 3",
            "Did you mean `--objective.disc_start`?",
        ),
        (
            "train --data x --steps many",
            "`--steps` must be a whole number, but got 'many' (str).",
        ),
        (
            "train --data x --steps 0",
            "`--steps` must be at least 1, but got '0' (str).",
        ),
        ("train --data x --device tpu", "tpu"),
        (
            "train --clips.num_frames 17frames",
            "`--clips.num_frames` must be a whole number, but got '17",
        ),
        ("train --mixed_precision fp8", "Use bf16: fp8 is for large matrix products"),
        (
            "train --clips.cache maybe",
            "`--clips.cache` must be true or false, but got 'maybe'",
        ),
        ("train --clips.heigth 3", "Did you mean `--clips.height`?"),
        (
            "train --objective.terms.wavelet.weigth 3",
            "Did you mean `objective.terms.wavelet.weight`?",
        ),
        (
            "train --clips.buckets '[{num_frames: 9, heigth: 3}]'",
            "`--clips.buckets.0.heigth` is not a setting",
        ),
        ("train --model_arguments 3", "model_arguments"),
        ("train --steps", "`--steps` must have a value. Type it after the name."),
        ("reconstruct tiny no.mp4 -o x.mp4", "`video` must be a file or a folder that exists"),
        ("encode tiny --num_frames 0 -o x", "`--num_frames` must be at least 1"),
        ("config show", "`action` must be one of validate, schema, but got 'show'."),
        ("train --config no/such/file.yaml", "no/such/file.yaml, which does not exist"),
        ("train --config dmeo", "Did you mean `demo`?"),
        ("train --config /", "but got /, a folder. Name the file in it."),
        ("train /", "`/` is not an argument of this command. Did you mean `--data /`?"),
        ("data x /", "`/` is not an argument of this command. Write a list"),
        (
            "decode --latents x -o y",
            "`--latents` is not an argument of this command. Write its value without a name.",
        ),
        ("train --config x", "a recipe (24gb, "),
        (
            "train --data x --clips 3",
            "`--clips` must be a group of settings, but got 3",
        ),
        (
            "train --optimizer.betas 0.3",
            "`--optimizer.betas` must be a list of at least 2 values, but got [",
        ),
        (
            "train --trackers wandb tensorboard",
            "`tensorboard` is not an argument of this command. Write a list with commas",
        ),
        (
            "train --data x --optimizer.lr 3e38",
            "`--optimizer.lr` must be at most 10, but got '3e38'",
        ),
        (
            "train --batch_size huge",
            "must be a whole number or 'auto', but got 'huge' (str).",
        ),
        (
            "train --output_dir /proc/x",
            "`--output_dir` must be a folder that can be made, but got /proc/x (No such",
        ),
        ("train --dat x", "--dat"),
        (
            "train --data x --objective.perceptual.num_frames every",
            "objective.perceptual.num_frames",
        ),
        (
            "train --data x --objective.gan.loss hing",
            "Did you mean `hinge`?",
        ),
        (
            "train --data x --objective.reconstruction.loss l2",
            "'mse', 'l1' or 'charbonnier'",
        ),
        ("train --data x --objective.penalty.kind r3", "'r1_and_r2'"),
        ("train --data x --discriminator.video patches", "Did you mean `patch`?"),
        (
            "train --data x --objective.quantizer_aux_loss_weight -1",
            "`--objective.quantizer_aux_loss_weight` must be at least 0",
        ),
        (
            "train --data x --objective.quantizer_aux_loss_weight much",
            "must be a number, but got 'much' (str)",
        ),
        (
            "train --data x --objective.quantizer_aux_loss_weight.stat 3",
            "Did you mean `--objective.quantizer_aux_loss_weight.start`?",
        ),
        (
            "train --data x --objective.quantizer_aux_loss_weight.start 3",
            "must be a group with `weight`",
        ),
        (
            "train --data x --val_data y",
            "a list or tar files, but got x, which does not exist",
        ),
        (
            "reconstruct x y -o z.mp4 --num_frames=-5",
            "`--num_frames` must be at least 1, but got '-5'",
        ),
        ("evaluate nowhere --data x", "which does not exist. Check the spelling"),
        (
            "report nowhere",
            "`runs` must be folders of runs, with metrics.jsonl, but got 'nowhere'",
        ),
        ("report", "missing: runs. `telecine report --help`"),
        ("evaluate nowhere", "`data` must be a file, or a folder of files, but got nothing"),
        ("evaluate --data x", "`checkpoint` must be given"),
        ("evaluate --compare x", "--compare"),
        ("evaluate --compare x y", "protocol.json"),
        (
            "evaluate tiny --compare x y",
            "`checkpoint` must be left out with --compare, but got tiny. Add its evaluation",
        ),
        (
            "evaluate --compare x y --data z",
            "`--data` must be left out with --compare, but got z. It reads evaluations",
        ),
        (
            "evaluate --compare x y --speed true --data z",
            "`--data` must be left out with --compare, but got z.",
        ),
        ("recipes list demo", '`name` must be left out with "list", but got demo.'),
        ("recipes show", "`name` must be given, but got nothing. `telecine recipes list`"),
        ("recipes show decodr", "Did you mean `decoder`?"),
        ("recipes shwo cpu", "`action` must be one of list, show, but got 'shwo'. Did you mean"),
        ("recipes", "missing: action. `telecine recipes --help` explains all arguments."),
        (
            "config schema x.yaml",
            '`files` must be left out with "schema", but got x.yaml. Use `config validate x.yaml`',
        ),
        (
            "reconstruct x y -o z.mp4 --tile=8 --tile_overlap=8",
            "`--tile_overlap` must be at least",
        ),
        ("weights verify resnet", "resnet"),
        ("plan --memory 80", "Use 80GiB."),
        ("fly", "`fly` is not a command. Use one of: train, distill"),
        ("tarin", "Did you mean `telecine train`?"),
        ("", "a command is missing"),
    ],
)
def test_mistakes_get_one_clear_line(capsys, typed, message):
    assert message in error_of(capsys, typed)


def settings_of(options):
    """Return the settings that `telecine train` would run with."""
    return COMMANDS["train"].parse(shlex.split(options)).arguments["settings"]


# A run that is as small as the demo allows.
SMALL_RUN = (
    "--clips.height 32 --clips.width 32 --clips.cache false --clips.num_workers 0 --discriminator.dim 1 "
    "--causal_vae.base_channels 8 --batch_size 1 --device cpu --val_clips 1 --latent_clips 2 "
    "--linear_baseline false --linear_start false"
)


@pytest.mark.parametrize("what", ["missing", "empty", "no video", "broken video"])
def test_data_that_cannot_be_trained_on(capsys, tmp_path, what):
    folder = tmp_path / "data"
    if what != "missing":
        folder.mkdir()
    if what == "no video":
        (folder / "notes.txt").write_text("hello")
    if what == "broken video":
        (folder / "broken.mp4").write_bytes(b"not a video at all")
    error = error_of(
        capsys,
        f"train --config demo --data {folder} --output_dir {tmp_path / 'run'}",
    )
    assert str(folder) in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_truncated_file_among_good_ones_is_skipped_named_and_counted(
    tmp_path, capsys, caplog, monkeypatch
):
    NO_PICTURES["leave_pictures_out"](monkeypatch.setattr)
    folder = tmp_path / "data"
    folder.mkdir()
    whole = sample_videos()[0].read_bytes()
    (folder / "good.mp4").write_bytes(whole)
    (folder / "short.mp4").write_bytes(whole[: len(whole) // 3])
    data = f"--data {folder} --output_dir {tmp_path}/run"
    assert run(f"train --config demo {data} --steps 1 {SMALL_RUN}") == 0
    out = capsys.readouterr().out
    assert "1 video, 1 skipped" in out
    assert "short.mp4" in caplog.text
    assert "before" in out
    assert "side by side" in out
    for name in ("metrics.jsonl", "config.yaml"):
        assert (tmp_path / "run" / name).is_file()


@pytest.mark.parametrize(
    ("typed", "files"),
    [
        ("train", ["demo"]),
        ("plan --output_dir x", ["demo"]),
        ("train --data x", ["gpu"]),
        ("train --data=x", ["gpu"]),
        ("train --data x --model y", ["whole"]),
        ("train --model=y --random_weights true", ["gpu"]),
        ("train --model=y --random_weights=True", ["gpu"]),
        ("train --model=y --random_weights yes", ["gpu"]),
        ("train --model=y --random_weights false", ["whole"]),
        ("train --data=x --model null", ["gpu"]),
        ("train --model null", ["demo"]),
        ("train --output_dir 'a --model b'", ["demo"]),
        ("train --data=x --model=y.json", ["gpu"]),
        ("train --data=x --model=my_package.Tiny", ["gpu"]),
        ("train --data x --config=demo", ["demo"]),
        ("train --config gpu --output_dir x --config demo", ["gpu", "demo"]),
        ("data x", ["gpu"]),
        ("evaluate x", []),
        ("weights verify", []),
    ],
)
def test_the_recipes_of_a_command(typed, files):
    name, *words = shlex.split(typed)
    assert COMMANDS[name].parse(words).files == files


def test_the_recipe_of_data_or_a_model_in_the_environment(monkeypatch):
    monkeypatch.setenv("TELECINE__DATA", "x")
    assert COMMANDS["train"].parse([]).files == ["gpu"]
    monkeypatch.setenv("TELECINE__MODEL", "y")
    assert COMMANDS["train"].parse([]).files == ["whole"]
    monkeypatch.setenv("TELECINE__RANDOM_WEIGHTS", "True")
    assert COMMANDS["train"].parse([]).files == ["gpu"]


def test_a_setting_overrides_its_group():
    for options in (
        "--clips '{height: 256, width: 256}' --clips.height 128",
        "--clips.height=128 --clips={}",
    ):
        assert settings_of(f"--data x {options}").clips.height == 128


def test_a_part_of_a_group_beside_a_value_in_place_of_the_group_is_a_mistake(capsys):
    weight = "objective.perceptual_weight"
    message = f"`--{weight}` must be a group with `weight`, but got {{'start': 7}} (dict)"
    assert message in error_of(capsys, f"train --{weight} 0.5 --{weight}.start 7")
    ramp = settings_of(f"--{weight}.start 7 --{weight} '{{weight: 0.5}}'").objective
    assert (ramp.perceptual_weight.weight, ramp.perceptual_weight.start) == (0.5, 7)


def test_names_of_several_options_add_up():
    typed = "--model_arguments '{a: 1, b: 2}' --model_arguments '{b: 3}' --model_arguments.c 4"
    assert settings_of(typed).model_arguments == {"a": 1, "b": 3, "c": 4}


def test_groups_that_are_typed_several_times_are_merged():
    typed = "--clips '{height: 32, width: 32}' --clips '{num_frames: 5}' --objective '{gan: {loss: vanilla}}'"
    settings = settings_of(f"{typed} --objective '{{gan: {{disc_train_start: 3}}}}'")
    assert (settings.clips.height, settings.clips.num_frames) == (32, 5)
    assert (settings.objective.gan.loss, settings.objective.gan.disc_train_start) == ("vanilla", 3)


def test_values_inside_a_mapping_are_yaml():
    term = "objective.terms.wavelet"
    typed = f"--{term} '{{weight: 0.1}}' --{term}.params.levels 2"
    assert settings_of(typed).objective.terms == {
        "wavelet": Term("wavelet", weight=0.1, params={"levels": 2})
    }
    typed = f"--{term}.weight '{{weight: 0.1, start: 5}}' --{term}.params '{{levels: 2}}'"
    assert settings_of(typed).objective.terms == {
        "wavelet": Term("wavelet", weight=Ramp(0.1, start=5), params={"levels": 2})
    }


def test_numbers_in_a_list_of_texts_are_names():
    assert settings_of("--data '[2023, 2024]'").data == ("2023", "2024")
    assert settings_of(
        "--data x --discriminator.features.layers [2,5]"
    ).discriminator.features.layers == ("2", "5")


def test_a_choice_of_numbers_is_typed():
    assert settings_of("--data x --clips.bit_depth 16").clips.bit_depth == 16
    typed = ["run", "a.mkv", "--output", "b.mkv", "--bit_depth", "16"]
    assert COMMANDS["reconstruct"].parse(typed).arguments["settings"].bit_depth == 16


def test_two_dashes_are_no_value(capsys):
    for name in ("steps", "trackers"):
        message = f"`--{name}` must have a value. Type it after the name."
        assert message in error_of(capsys, f"train --{name}=--")


def test_a_text_keeps_its_braces():
    assert settings_of("--output_dir '{a}' --steps 3").output_dir == "{a}"


def test_an_empty_variable_of_the_shell_is_a_mistake(monkeypatch, capsys):
    text = "must be a value, but got an empty text. Check the variable of the shell, or type null for none."
    for name, option in (
        ("--data", "--data ''"),
        ("--output_dir", "--output_dir="),
        ("--clips.num_clips", "--clips.num_clips ' '"),
    ):
        assert f"`{name}` {text}" in error_of(capsys, f"train {option}")
    assert settings_of("--data x --val_data null").val_data is None
    monkeypatch.setenv("TELECINE__OUTPUT_DIR", "")
    assert f"`output_dir` {text}" in error_of(capsys, "train --data x")


@pytest.mark.parametrize(
    ("typed", "name"), [("report run -o ''", "output"), ("report run ''", "runs")]
)
def test_an_empty_argument_is_a_mistake(capsys, typed, name):
    message = f"`{name}` must be a value, but got an empty text. Check the variable of the shell."
    assert message in error_of(capsys, typed)


def test_settings_of_telecines_own_model_beside_another_one_are_named(capsys):
    def output_of(options):
        assert run(f"train --data x --output_dir /proc/x {options}") == 2
        return capsys.readouterr().out

    text = "warning: --causal_vae.size changes nothing: the model that `--model` names"
    flow = "--model tiny --causal_vae.flow.level_std=2"
    assert text in output_of(f"{flow} --causal_vae.size base")
    assert "changes nothing" not in output_of(f"{flow} --config demo")
    assert "changes nothing" not in output_of("--causal_vae.size base")


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (
            "TELECINE__DEVICE",
            "`device` must be 'auto', 'cpu', 'cuda' or 'mps', but got '64' (str). Without a recipe, it is 'auto'.",
        ),
        (
            "TELECINE__CLIPS__HEIGTH",
            "`TELECINE__CLIPS__HEIGTH` is not a setting. Did you mean `TELECINE__CLIPS__HEIGHT`?",
        ),
        ("TELECINE__STEPZ", "`TELECINE__STEPZ` is not a setting. Did you mean `TELECINE__STEPS`?"),
    ],
)
def test_a_mistake_in_the_environment(monkeypatch, capsys, variable, message):
    monkeypatch.setenv(variable, "64")
    assert message in error_of(capsys, "train")


def test_the_environment_is_named_before_what_it_breaks(monkeypatch, capsys):
    monkeypatch.setenv("TELECINE__CLIPS__HEIGHT", "72")
    monkeypatch.setenv("TELECINE__SEED", "5")
    assert run("train --config demo") == 2
    printed = capsys.readouterr()
    assert "`clips.random_orientation` must be false" in printed.err
    assert (
        "settings of the environment: TELECINE__CLIPS__HEIGHT=72, TELECINE__SEED=5" in printed.out
    )


def test_the_demo_is_announced(capsys):
    for options, announced in (
        ("", True),
        ("--steps 3", True),
        ("--data x", False),
        ("--config demo", False),
    ):
        assert run(f"train --output_dir /proc/x {options}") == 2
        assert ("without --data and --config: the demo" in capsys.readouterr().out) == announced


def test_a_package_that_is_missing_is_one_clear_line(capsys, monkeypatch):
    def train(settings: TrainConfig) -> None:
        raise ImportError(
            "This model needs diffusers. Run `pip install diffusers`.", name="diffusers"
        )

    monkeypatch.setitem(COMMANDS, "train", Command(train))
    assert "Run `pip install diffusers`" in error_of(capsys, "train --data x")


@pytest.mark.parametrize(
    ("typed", "printed"), [("--version", __version__), ("--help", "reconstruct")]
)
def test_without_a_command(capsys, typed, printed):
    with pytest.raises(SystemExit) as stop:
        main([typed])
    assert stop.value.code == 0
    assert printed in capsys.readouterr().out


def test_reconstruct_keeps_length_size_and_rate(model_folder, tmp_path, capsys):
    out = tmp_path / "out [/b] [final].mp4"
    video = sample_videos()[0]
    size = "--num_frames 18 --height 50"
    assert run(f"reconstruct {model_folder} {video} -o '{out}' {size} --device cpu") == 0
    assert "out [/b] [final].mp4, PSNR" in capsys.readouterr().out
    with av.open(str(out)) as made, av.open(str(video)) as source:
        ours = made.streams.video[0]
        theirs = source.streams.video[0]
        assert (ours.height, ours.width) == (
            50,
            68,
        )  # 67 by the aspect of 193 x 144; odd sizes grow by one
        assert ours.average_rate == theirs.average_rate
        assert sum(1 for _ in made.decode(video=0)) == sum(1 for _ in source.decode(video=0))


def test_reconstruct_never_replaces_its_input_or_a_folder(model_folder, tmp_path, capsys):
    video = tmp_path / "clip.mp4"
    video.write_bytes(sample_videos()[0].read_bytes())
    before = video.read_bytes()
    assert "another file" in error_of(capsys, f"reconstruct {model_folder} {video} -o {video}")
    assert video.read_bytes() == before
    assert "the folder" in error_of(capsys, f"reconstruct {model_folder} {video} -o {tmp_path}")


@pytest.mark.slow
def test_evaluate_writes_figures_and_protocol_and_compares(
    model_folder, tmp_path, capsys, monkeypatch
):
    for plot in ("result.plot_frames", "compare.plot_frames", "compare.plot_differences"):
        monkeypatch.setattr(f"telecine.evaluation.{plot}", lambda *arguments: arguments[-1].touch())
    output = tmp_path / "figures"
    size = "--num_frames 5 --height 32 --width 48 --max_clips 3 --device cpu"
    assert run(f"evaluate {model_folder} --data {sample_videos()[0]} -o {output} {size}") == 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert set(metrics) == {*default_metrics(), "lpips_alex", "lpips_vgg"} - {"ms_ssim"}
    clips = json.loads((output / "clips.json").read_text())
    assert len(clips) == 3
    assert metrics["psnr"] == pytest.approx(sum(clip["psnr"] for clip in clips) / 3)
    protocol = json.loads((output / "protocol.json").read_text())
    assert (protocol["num_frames"], protocol["height"], protocol["width"]) == (5, 32, 48)
    assert set(protocol["metrics"]) == set(metrics)
    out = capsys.readouterr().out
    assert "lpips_alex" in out
    assert "no ms_ssim: needs frames of at least 176 x 176" in out
    shutil.copytree(output, tmp_path / "second")
    difference = tmp_path / "difference"
    assert run(f"evaluate --compare {output} {tmp_path}/second -o {difference}") == 0
    out = capsys.readouterr().out
    assert "3 clips of 1 video, 95% intervals over videos" in out
    assert out.count("undecided") == 11, "of each metric, and the reason"
    assert (difference / "comparison.png").is_file()


@pytest.mark.parametrize(
    "typed",
    [
        "evaluate model",
        "report run",
        "latents model",
        "prune model",
        "reconstruct model a.mp4",
        "data a",
    ],
)
def test_every_output_is_a_path_on_this_machine_outside_the_data(
    typed, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    error = error_of(capsys, f"{typed} --output s3://bucket/out.mp4")
    assert (
        "`--output` must be a path on this machine, but got 's3://bucket/out.mp4'. Mount it"
        in error
    )
    if typed.split()[0] in ("evaluate", "latents", "prune"):
        error = error_of(capsys, f"{typed} --data {tmp_path} -o .")
        assert "`--output` must be another folder than the data" in error
    assert not [*tmp_path.iterdir()]


def test_a_tilde_of_an_output_is_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/out.txt" in error_of(capsys, "report run '--output=~/out.txt'")


def test_report_writes_a_page(tmp_path, capsys):
    runs = [tmp_path / "a [b]", tmp_path / "c"]
    for folder in runs:
        folder.mkdir()
        (folder / "metrics.jsonl").write_text('{"step": 0, "val/psnr": 11.0}\n')
    assert run(f"report '{runs[0]}'") == 0
    assert f"written to {runs[0] / 'report.html'}" in capsys.readouterr().out
    (runs[1] / "config.yaml").write_text("steps: 0\n")
    assert run(f"report {runs[1]} --watch") == 0, "it ends, since the run is finished"
    assert f"written to {runs[1] / 'report.html'}" in capsys.readouterr().out
    assert run(f"report '{runs[0]}' {runs[1]} -o {tmp_path}/both.html") == 0
    assert "a [b] · c" in (tmp_path / "both.html").read_text(encoding="utf-8")


def test_a_page_that_is_written_again_is_named_once(monkeypatch, capsys):
    def watch(runs, output, written):
        for _ in range(3):
            written(Path("report.html"))

    monkeypatch.setattr("telecine.report.page.watch_runs", watch)
    assert run("report run --watch") == 0
    assert capsys.readouterr().out == "written to report.html; open it in a browser\n"


def test_weights_are_verified(capsys):
    assert run("weights verify alex") == 0
    assert "alexnet-features" in capsys.readouterr().out


def test_checkpoints_are_verified(tmp_path, capsys):
    for step in (1, 2):
        folder = Run(tmp_path).checkpoints.begin(step)
        (folder / "state.json").write_text("{}")
        Run(tmp_path).checkpoints.finish(step, folder, keep=2)
    assert run(f"checkpoint verify {tmp_path}") == 0
    first, second = (folder for _, folder in Run(tmp_path).checkpoints.all())
    assert capsys.readouterr().out == f"{first}: intact\n{second}: intact\n"
    (second / "state.json").write_text("[]")
    message = error_of(capsys, f"checkpoint verify {tmp_path}")
    assert f"`{second / 'state.json'}` must be as it was written" in message
    assert run(f"checkpoint verify {first}") == 0
    assert "must be the folder of a run" in error_of(capsys, f"checkpoint verify {tmp_path / 'no'}")


def test_ctrl_c_while_the_command_line_starts_prints_no_traceback(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("telecine.cli.parser.Command.parse", interrupt)
    assert run("train") == 130


def test_the_exit_code_of_an_interruption_does_not_depend_on_who_reads_the_output():
    """As below `| tee log`, which Ctrl-C ends as well."""
    script = (
        "import sys, telecine.cli.program as program; from telecine import __main__; "
        "from telecine.base.checks import Interrupted\n"
        "def run(typed): raise Interrupted(None)\n"
        "program.run = run; sys.exit(__main__.main([]))"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (130, "")


def test_settings_files_are_validated(tmp_path, capsys, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text("clips: {height: 64}\n")
    assert run(f"config validate wan2.1 decoder {path}") == 0
    assert capsys.readouterr().out == f"valid: wan2.1 decoder {path}\n"
    path.write_text("steps: many\n")
    assert "`files` must be settings files or recipes, but got nothing" in error_of(
        capsys, "config validate"
    )
    monkeypatch.setenv("TELECINE__STEPS", "3")
    assert f"See line 1 of {path}." in error_of(capsys, f"config validate {path}"), (
        "files alone are checked"
    )
    path.write_text("teacher: tiny\nstudent: tiny\n")
    assert run(f"config validate demo {path}") == 0
    path.write_text("teacher: tiny\nfeature_weight: -1\n")
    error = error_of(capsys, f"config validate demo {path}")
    assert error.startswith(
        "telecine: error: `feature_weight` must be at least 0, but got -1 (int)."
    )
    assert error.rstrip().endswith(f"See line 2 of {path}.")


def test_every_mistake_of_settings_files_is_named_with_its_line(tmp_path, capsys):
    first = tmp_path / "first.yaml"
    second = tmp_path / "second.yaml"
    first.write_text("steps: many\nbatch_size: 3\n")
    second.write_text(
        "batch_size: x\nclips:\n  heigth: 64\n  width: 0\nobjective.perceptual_weight: -1\n"
        "objective:\n  terms: {wavelet: {weigth: 1}}\n"
    )
    said = [
        f"`steps` must be a whole number, but got 'many' (str). Without a recipe, it is 100000. See line 1 of {first}.",
        "`batch_size` must be a whole number or 'auto', but got 'x' (str). Without a recipe, it is 4. "
        f"See line 1 of {second}.",
        f"`clips.heigth` is not a setting. Did you mean `clips.height`? See line 3 of {second}.",
        f"`clips.width` must be at least 1, but got 0 (int). Without a recipe, it is 256. See line 4 of {second}.",
        "`objective.perceptual_weight` must be at least 0, but got -1 (int). Without a recipe, it is 1.0. "
        f"See line 5 of {second}.",
        "`objective.terms.wavelet.weigth` is not a setting. Did you mean `objective.terms.wavelet.weight`? "
        f"See line 7 of {second}.",
    ]
    assert run(f"config validate {first} {second}") == 2
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == sorted(f"telecine: error: {sentence}" for sentence in said)
    assert run(f"train --batch_size=many --steps 3 --config {second}") == 2
    lines = capsys.readouterr().err.splitlines()
    assert "`--batch_size` must be a whole number or 'auto', but got 'many' (str)." in lines[0]
    assert sorted(lines[1:]) == sorted(f"telecine: error: {sentence}" for sentence in said[2:])


def test_the_schema_accepts_every_recipe_and_finds_mistakes(capsys):
    assert run("config schema") == 0
    schema = json.loads(capsys.readouterr().out)
    validator = jsonschema.validators.validator_for(schema)(schema)
    distillation = jsonschema.validators.validator_for(schema)(
        json.loads(json_schema(DistillConfig))
    )
    checked = 0
    for path in recipes().values():
        validator_of_recipe = distillation if path.parent.name == "distillation" else validator
        mistakes = list(validator_of_recipe.iter_errors(yaml.safe_load(path.read_text())))
        assert mistakes == [], path
        checked += 1
    assert checked > 12
    wrong = [
        {"stepz": 3},
        {"steps": "many"},
        {"clips": {"heigth": 3}},
        {"objective": {"gan": {"loss": 3}}},
    ]
    assert [bool(list(validator.iter_errors(values))) for values in wrong] == [True] * 4
    assert "Total number of updates" in schema["properties"]["steps"]["description"]


@pytest.mark.parametrize(
    ("typed", "data"),
    [
        ("{a,b}/*.mp4", "{a,b}/*.mp4"),
        ("a,b", "a,b"),
        ("12", "12"),
        ("'[a, b]'", ("a", "b")),
        ("null", None),
    ],
)
def test_data_is_a_path_or_a_list_of_paths(typed, data):
    assert settings_of(f"--data {typed}").data == data


def test_a_list_can_be_typed_in_several_options():
    assert settings_of("--data a --data b").data == ("a", "b")


def test_an_error_is_printed_by_the_first_of_several_processes(monkeypatch, capsys):
    """The launcher ends the others while they wait. Which process ends first is chance under a real one."""

    def end(seconds):
        raise SystemExit(1)

    monkeypatch.setattr(time, "sleep", end)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        main(["train", "--steps", "many"])
    assert "error:" not in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert main(["train", "--steps", "many"]) == 2
    assert capsys.readouterr().err.count("error:") == 1
