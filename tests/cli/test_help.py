"""The help of commands: settings as their dataclasses define them, without PyTorch."""

import json
import re
import subprocess
import sys
from dataclasses import asdict

import pytest

from telecine.__main__ import main
from telecine.cli.commands import COMMANDS
from telecine.settings import TrainConfig
from telecine.settings.validate import settings_of

NAMES = ("train", "evaluate", "reconstruct", "latents", "distill")
# Runs command lines, and prints what each has ended with and printed.
WITHOUT_PYTORCH = """
import contextlib, io, json, sys
sys.modules["torch"] = None
from telecine.__main__ import main

found = []
for typed in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main(typed)
        except SystemExit as stop:
            code = stop.code
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""
# Mistakes, and what is said of them.
MISTAKES = [
    (["train", "--stepss", "3"], "`--stepss` is not an argument of this command. Did you mean `--steps`?"),
    (["train", "--steps", "forty"], "`--steps` must be a whole number, but got 'forty' (str)."),
    (["distill", "--techer=x"], "`--techer` is not an argument of this command. Did you mean `--teacher`?"),
    (["plan", "--objective.gan.losss", "hinge"], "Did you mean `--objective.gan.loss`?"),
    (["evaluate", "x", "--dta", "y"], "Did you mean `--data`?"),
    (["report", "x", "--wacth"], "`--wacth` is not an argument of this command. Did you mean `--watch`?"),
]
HELP = [["--help"], ["--version"], ["train", "--help=all"], ["recipes", "list"]]


def words(text):
    return " ".join(text.split())


def letters(text):
    """Return a text without spaces: a help is also broken at hyphens."""
    return "".join(text.split())


def shown(text):
    """Return the settings that a help explains."""
    return re.findall(r"^  --([\w.]+)(?: |$)", text, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def without_pytorch():
    """Return exit code, output and errors of the mistakes and of help, from a process that cannot import PyTorch."""
    typed = json.dumps([typed for typed, _ in MISTAKES] + HELP)
    done = subprocess.run([sys.executable, "-c", WITHOUT_PYTORCH, typed], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_every_class_of_settings_is_tested():
    assert {COMMANDS[name].settings for name in NAMES} == {command.settings for command in COMMANDS.values()} - {None}


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_explained(name):
    text = COMMANDS[name].help("all", [])
    settings = [item for item in settings_of(COMMANDS[name].settings) if not item.is_group]
    assert {item.name for item in settings} <= set(shown(text))
    for item in settings:
        assert item.text, item.name
        assert letters(item.text) in letters(text), item.name
    assert len(settings) > 5


def test_every_command_and_argument_is_explained():
    for name, command in COMMANDS.items():
        assert command.summary.endswith("."), name
        text = letters(COMMANDS[name].help("", []))
        for parameter, _, explained in command.arguments:
            assert letters(explained) in text, parameter.name


def test_a_mistake_is_refused_without_pytorch(without_pytorch):
    for (typed, said), (code, out, error) in zip(MISTAKES, without_pytorch[: len(MISTAKES)], strict=True):
        assert (code, out) == (2, ""), typed
        assert error.startswith("telecine: error: ")
        assert said in error
        assert error.count("\n") == 1


def test_help_needs_no_pytorch(without_pytorch):
    for typed, (code, out, error) in zip(HELP, without_pytorch[len(MISTAKES) :], strict=True):
        assert (code, error) == (0, ""), typed
        assert out


def test_what_is_inside_a_setting_may_be_typed():
    typed = ["--objective.perceptual_weight.start", "3", "--objective.perceptual_weight.weight=1"]
    typed += ["--objective.terms.wavelet.weight=0.5", "--objective.terms.wavelet.params.levels", "2", "--data=x"]
    objective = COMMANDS["train"].parse(typed)[0]["settings"].objective
    assert objective.perceptual_weight.start == 3
    assert asdict(objective.terms["wavelet"]) == {"target": "wavelet", "weight": 0.5, "params": {"levels": 2}}


def test_all_after_two_dashes_is_positional():
    assert COMMANDS["report"].parse(["--output=a.html", "--", "/x", "--not-an-option"])[0] == {
        "runs": ["/x", "--not-an-option"],
        "output": "a.html",
        "watch": False,
    }


def test_the_help_begins_with_what_most_need(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    others = [parameter.name for parameter, *_ in COMMANDS["train"].arguments]
    assert shown(text) == ["config", *COMMANDS["train"].most_used, *others, "allow_code"]
    count = sum(not item.is_group for item in settings_of(TrainConfig))
    assert f"--help=all` explains all {count} settings" in text
    groups = [item.name for item in settings_of(TrainConfig) if item.is_group and "." not in item.name]
    assert len(groups) == 6
    for group in groups:
        assert re.search(rf"^  {group} +\w", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("topic", "some"),
    [
        ("objective", "objective.gan.loss"),
        ("objective.gan", "objective.gan.loss"),
        ("objective.perceptual_weight.start", "objective.perceptual_weight.start"),
        ("seed", "seed"),
        ("all", "seed"),
    ],
)
def test_the_help_of_a_group(topic, some, capsys):
    assert main(["plan", f"--help={topic}"]) == 0
    names = shown(capsys.readouterr().out)
    assert some in names
    assert topic == "all" or all(f"{name}.".startswith(f"{topic}.") for name in names)


def test_the_help_of_nothing_known(capsys):
    assert main(["train", "--help=objectve"]) == 2
    assert "Did you mean `objective`?" in capsys.readouterr().err
    assert main(["train", "--help=nonsense"]) == 2
    assert "Use one of: all, clips, causal_vae, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "steps"), [([], 2400), (["--data", "x"], 100000), (["--config", "demo_long"], 12000)]
)
def test_help_shows_the_values_that_are_used(typed, steps):
    text = words(COMMANDS["plan"].help("", typed))
    assert f"Total number of updates of the autoencoder. (a whole number; default: {steps})" in text


def test_later_files_override_earlier_ones_in_the_help(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("optimizer: {betas: [0.1, 0.2]}\nobjective: {perceptual_weight: {weight: 1.0, steps: 5}}\n")
    text = words(COMMANDS["train"].help("all", ["--config", "demo", "--config", str(path)]))
    assert "default: [0.1, 0.2])" in text
    assert 'default: {"weight": 1.0, "steps": 5})' in text
    assert "a multiple of 4 or 8, plus 1. (a whole number; default: 9)" in text


def test_what_a_setting_may_be():
    text = words(COMMANDS["train"].help("all", ["--data", "x"]))
    assert "(a whole number or one of 'auto'; default: 4)" in text
    assert "(one of 'psnr', 'ssim', 'lpips_alex' or null; default: null)" in text
    assert "'relativistic' or the dotted path of a function; default: hinge)" in text
    assert "(a list of 2 values, each a number; default: [0.5, 0.9])" in text
