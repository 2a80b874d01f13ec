"""The commands of docs/command-line.md exist, and their recipes and settings are valid."""

import re
import shlex
from pathlib import Path

import pytest

from telecine.__main__ import main
from telecine.cli.program import COMMANDS
from telecine.settings.parse import RECIPES

PAGE = (Path(__file__).parent.parent / "docs" / "command-line.md").read_text(encoding="utf-8")
TYPED = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parsed, outputs = [], []
    for program, name, *words in TYPED:
        assert program == "telecine"
        if COMMANDS[name].settings is None:
            *words, _, target = words if ">" in words else (*words, "", None)
            capsys.readouterr()
            assert main([name, *words]) == 0
            printed = capsys.readouterr().out
            if target is not None:
                Path(target).write_text(printed)
            outputs.append(printed)
        else:
            parsed.append((name, COMMANDS[name].parse(words)[0]["settings"]))
    assert [name for name, _ in parsed] == ["train", "train", "data", "plan", "train"]
    assert "valid: wan2.1 my_decoder.yaml 24gb\n" in outputs
    assert all(config.trainable.weights == "decoder" for name, config in parsed if name != "data")


@pytest.mark.parametrize("group", ["models", "stages", "hardware"])
def test_the_table_names_every_recipe(group):
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| cogvideox")]
    names = {path.stem for path in (RECIPES / group).glob("*.yaml")}
    assert names <= set(re.findall(r"[\w.]+", row))
