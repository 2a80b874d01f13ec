"""The help of commands: their arguments, and settings as their dataclasses define them, without PyTorch."""

import json
import re
import subprocess
import sys

import pytest

from telecine.__main__ import main
from telecine.cli.program import COMMANDS
from telecine.settings import DistillConfig
from telecine.settings.listing import json_schema, settings_of

WITH_SETTINGS = {
    "train",
    "distill",
    "plan",
    "data",
    "data index",
    "evaluate",
    "reconstruct",
    "encode",
    "decode",
    "latents",
    "prune",
}
# Settings that no user types: what runs save.
UNLISTED = {"resolved", "clips.file_identity"}
# Runs command lines, and prints what each has ended with and printed.
WITHOUT_PYTORCH = """
import contextlib, io, json, sys
sys.modules["torch"] = None
from telecine.__main__ import main

results = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""
MISTAKES = [
    (
        ["train", "--stepss", "3"],
        "`--stepss` is not an argument of this command. Did you mean `--steps`?",
    ),
    (["train", "--steps", "forty"], "`--steps` must be a whole number, but got 'forty' (str)."),
    (["distill", "--techer=x"], "Did you mean `--teacher`?"),
    (["report", "x", "--wacth"], "Did you mean `--watch`?"),
]
HELP = [["--help"], ["--version"], ["train", "--help"], ["recipes", "list"]]


def letters(text):
    """Return a text without spaces: a help is also broken at hyphens."""
    return "".join(text.split())


@pytest.fixture(scope="module")
def without_pytorch():
    """Return exit code, output and errors of the mistakes and of help, from a process that cannot import PyTorch."""
    words = json.dumps([words for words, _ in MISTAKES] + HELP)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTORCH, words], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_commands_with_settings():
    assert {
        name for name, command in COMMANDS.items() if command.settings is not None
    } == WITH_SETTINGS


@pytest.mark.parametrize("name", sorted(WITH_SETTINGS))
def test_each_setting_is_explained(name):
    text = COMMANDS[name].help()
    settings = [
        setting
        for setting in settings_of(COMMANDS[name].settings)
        if not setting.is_group and setting.name not in UNLISTED
    ]
    assert {setting.name for setting in settings} <= set(re.findall(r"--([\w.]+)", text))
    for setting in settings:
        assert setting.text, setting.name
        assert letters(setting.text) in letters(text), setting.name
    assert len(settings) > 5


def test_what_only_runs_set_is_in_the_schema_alone():
    text = COMMANDS["distill"].help()
    schema = json_schema(DistillConfig)
    for name in UNLISTED:
        assert f'"{name.rpartition(".")[2]}"' in schema
        assert f"--{name}" not in text
    assert "undefined" not in text


def test_each_command_is_explained(capsys):
    for name, command in COMMANDS.items():
        assert command.summary.endswith("."), name
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert letters(command.summary) in letters(text)
        assert "--allow_code" in text


def test_a_mistake_is_refused_without_pytorch(without_pytorch):
    for (words, said), (code, out, error) in zip(
        MISTAKES, without_pytorch[: len(MISTAKES)], strict=True
    ):
        assert (code, out) == (2, ""), words
        assert error.startswith("telecine: error: ")
        assert said in error
        assert error.count("\n") == 1


def test_help_needs_no_pytorch(without_pytorch):
    for words, (code, out, error) in zip(HELP, without_pytorch[len(MISTAKES) :], strict=True):
        assert (code, error) == (0, ""), words
        assert out


def test_all_after_two_dashes_is_positional():
    assert COMMANDS["report"].parse(["--output=a.html", "--", "/x", "--not-an-option"])[0] == {
        "runs": ["/x", "--not-an-option"],
        "output": "a.html",
        "watch": False,
    }


def test_a_default_that_the_text_explains_is_no_null():
    text = " ".join(COMMANDS["evaluate"].help().split())
    assert "Seed of the noise that such a decoder starts from. Default: 0. " in text
    assert "Default: 0. (default: null)" not in text
