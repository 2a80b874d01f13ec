"""YAML from others is read in little time and memory, or refused in one line."""

import math
from itertools import pairwise

import pytest

from telecine.__main__ import main
from telecine.base.yaml_files import MAX_BYTES, line_of, parse_yaml, read_yaml

BOMB = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{last}, *{last}]\n" for last, name in pairwise("abcdefg")
)
BAD = {
    "aliases": (
        BOMB,
        r"settings without aliases \(`\*name`\), but got one in line 2\. Write the value out",
    ),
    "merged alias": ("a: &a {b: 1}\nc:\n  <<: *a\n", "but got one in line 3"),
    "date as a name": (
        "a:\n  !!timestamp 2020-01-01: 3",
        "got other text .a name that is not plain text in line 2",
    ),
    "list as a name": ("? [a]\n: 3", "got other text .a name that is not plain text in line 1"),
    "brackets": (
        "a: 1\nb: " + "[" * 33 + "]" * 33,
        "nested at most 32 deep, but got more in line 2",
    ),
    "many brackets": ("[" * 10_000, "must be .*, but got"),
    "digits": ("steps: " + "9" * 5000, "must be YAML in UTF-8, but got other text .*digits"),
    "size": ("#" * (MAX_BYTES + 1), "at most 1048576 bytes, but got 1048577 bytes"),
    "tag": (
        "a: !!python/object/apply:os.system [true]",
        "must be YAML in UTF-8, but got other text",
    ),
    "list": ("- a\n- b\n", "`key: value` lines, but got a list in line 1"),
    "text": ("\nsettings\n", "`key: value` lines, but got text in line 2"),
    "NUL": ("a: \0", "must be YAML in UTF-8"),
    "twice": (
        "steps: 1\nclips: {}\nsteps: 2\n",
        "other text .*`steps` is given twice, again in line 3",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case, tmp_path):
    text, message = BAD[case]
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 400


def test_an_error_of_the_parser_has_its_line(tmp_path):
    (tmp_path / "settings.yaml").write_text("clips:\n  height: 64\n width: 3\n")
    with pytest.raises(ValueError, match=r"did not find expected key in line 3\)"):
        read_yaml(tmp_path / "settings.yaml")


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_a_file_without_settings_is_read(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    assert read_yaml(path) is None


def test_other_settings_are_read(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("a: {b: [1, 2.5, x, null, true]}\n")
    assert read_yaml(path) == {"a": {"b": [1, 2.5, "x", None, True]}}


def test_the_command_line_checks_its_settings_files(tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    path.write_text(BOMB)
    assert main(["train", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"telecine: error: `{path}` must be settings without aliases")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-3", -3),
        ("0x10", 16),
        ("0xff", 255),
        ("010", 10),
        ("08", 8),
        ("-.inf", -math.inf),
        ("inf", "inf"),
        ("face", "face"),
        ("'5'", "5"),
        ("a: 1\n---\nb: 2", "a: 1\n---\nb: 2"),
        ("1_000", "1_000"),
        (".5", 0.5),
        ("no", "no"),
        ("true", True),
        ("", None),
        ("null", None),
        ("2024-01-31", "2024-01-31"),
        ("12:30", "12:30"),
        ("[1, a]", [1, "a"]),
        ("a: [", "a: ["),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text, value):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def test_the_line_of_a_setting(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "steps: 3\nclips.height: 3\nclips:\n  width: 4\n  buckets:\n  - {num_frames: 5,\n     height: 4}\n"
    )
    lines = {
        "steps": 1,
        "clips.height": 2,
        "clips": 3,
        "clips.width": 4,
        "clips.buckets.0.height": 7,
    }
    lines |= {
        "clips.width.start": 4,
        "clips.buckets.0.width": 6,
        "clips.stride": None,
        "seed": None,
    }
    assert {name: line_of(path, name) for name in lines} == lines
    path.write_text("- [")
    assert line_of(path, "steps") is None
