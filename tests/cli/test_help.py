"""The help of commands is read from the source, and says what their parsers say."""

import re
import subprocess
import sys

import pytest
from telecine.cli.argument_errors import setting_names
from telecine.cli.help import arguments_of, help_of
from telecine.cli.settings_source import as_typed, read_settings
from telecine.cli.start import WITHOUT_PYTORCH, check_names

from telecine.cli.commands import COMMANDS
from telecine.cli.main import command_parser, main, settings_class

NAMES = ("train", "evaluate", "reconstruct", "latents", "distill")


def words(text):
    return " ".join(text.split())


def letters(text):
    """Return a text without spaces: a help is also broken at hyphens."""
    return "".join(text.split())


def shown(text):
    """Return the settings that a help explains."""
    return re.findall(r"^  --([\w.]+)(?: |$)", text, flags=re.MULTILINE)


def test_every_class_of_settings_is_tested():
    assert {COMMANDS[name].settings for name in NAMES} == {command.settings for command in COMMANDS.values()} - {None}


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_those_of_the_parser(name):
    parser = command_parser(name, with_texts=True)
    explained, defaults = letters(parser.format_help()), parser.get_defaults()
    settings = list(read_settings(COMMANDS[name].settings))
    assert [item.name for item in settings] == list(setting_names(settings_class(name)))
    for item in settings:
        if not item.is_group:
            assert letters(item.text) in explained, item.name
            value = defaults[item.name]
            assert item.default == as_typed(list(value) if isinstance(value, tuple) else value), item.name
    assert set(shown(help_of(name, "all"))) >= {item.name for item in settings if not item.is_group}


def test_types_and_choices_are_those_of_the_annotations():
    settings = {item.name: item for item in read_settings(COMMANDS["train"].settings)}
    assert settings["steps"].types == ("int",)
    assert (settings["batch_size"].types, settings["batch_size"].choices) == (("int", "auto"), ("auto",))
    assert settings["device"].choices == ("auto", "cpu", "cuda", "mps")
    assert settings["best_metric"].types == ("psnr", "ssim", "lpips_alex", "null")
    assert settings["clips.cache"].choices == ("true", "false")
    assert settings["objective.perceptual_weight"].types == ("float", "Ramp")
    assert settings["objective.gan.loss"].types[-1] == "function"
    assert settings["optimizer.betas"].types == ("tuple[float, float]",)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["train", "--stepss", "3"], "`--stepss` is not an argument of this command. Did you mean `--steps`?"),
        (["distill", "--techer=x"], "`--techer` is not an argument of this command. Did you mean `--teacher`?"),
        (["plan", "--objective.gan.losss", "hinge"], "Did you mean `--objective.gan.loss`?"),
        (["evaluate", "x", "--dta", "y"], "Did you mean `--data`?"),
        (["report", "x", "--wacth"], "`--wacth` is not an argument of this command. Did you mean `--watch`?"),
    ],
)
def test_an_unknown_argument_is_refused_without_pytorch(typed, said):
    code = "import sys; sys.modules['torch'] = None; from telecine.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, *typed], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("telecine: error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_argument_of_the_parsers_is_known_without_pytorch():
    num_checked = 0
    for name in COMMANDS.keys() - WITHOUT_PYTORCH.keys():
        for action in command_parser(name)._actions:
            for option in action.option_strings:
                check_names(name, [option, f"{option}=3"])
                num_checked += 1
    assert num_checked > 500
    check_names("train", ["--objective.perceptual_weight.start", "3", "--objective.terms.wavelet.weight=-1"])
    check_names("report", ["--output=a.html", "--", "/x", "--not-an-option"])


def test_the_help_begins_with_what_most_need(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    first, *others = [argument.names[0].removeprefix("--") for argument in arguments_of("train")]
    assert shown(text) == [first, *COMMANDS["train"].most_used, *others]
    count = sum(not item.is_group for item in read_settings(COMMANDS["train"].settings))
    assert f"--help=all` explains all {count} settings" in text
    for group in ("clips", "causal_vae", "trainable", "objective", "discriminator", "optimizer"):
        assert re.search(rf"^  {group} +\w", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("topic", "some"),
    [("objective", "objective.gan.loss"), ("objective.gan", "objective.gan.loss"), ("seed", "seed"), ("all", "seed")],
)
def test_the_help_of_a_group(topic, some, capsys):
    assert main(["plan", f"--help={topic}"]) == 0
    names = shown(capsys.readouterr().out)
    assert some in names
    assert topic == "all" or all(f"{name}.".startswith(f"{topic}.") for name in names)


def test_the_help_of_nothing_known(capsys):
    assert main(["train", "--help=objectve"]) == 2
    assert "Did you mean `objective`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "steps"), [([], 2400), (["--data", "x"], 100000), (["--config", "demo_long"], 12000)]
)
def test_help_shows_the_values_that_are_used(typed, steps):
    text = words(help_of("plan", typed=typed))
    assert f"Total number of updates of the autoencoder. (type: int, default: {steps})" in text


def test_later_files_override_earlier_ones_in_the_help(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("optimizer: {betas: [0.1, 0.2]}\nclips:\nobjective: {perceptual_weight: {weight: 1.0, steps: 5}}\n")
    text = words(help_of("train", "all", ["--config", "demo", "--config", str(path)]))
    assert "default: [0.1, 0.2])" in text
    assert 'default: {"weight": 1.0, "steps": 5})' in text
    assert "a multiple of 4 or 8, plus 1. (type: int, default: 9)" in text
