import pytest

from telecine.report.settings import ABSENT, read_settings, side_by_side_settings


def test_settings_have_the_names_of_the_command_line(tmp_path):
    (tmp_path / "config.yaml").write_text("data: null\nclips:\n  height: 64\n  cache: true\nmodel:\n  levels: [1, 2]\n")
    expected = {"data": "null", "clips.height": "64", "clips.cache": "true", "model.levels": "[1, 2]"}
    assert read_settings(tmp_path) == expected


def test_what_differs_is_told():
    rows = side_by_side_settings([{"a": "1", "b": "2"}, {"b": "3", "a": "1", "c": "4"}])
    assert [(row.name, row.values, row.differs) for row in rows] == [
        ("a", ["1", "1"], False),
        ("b", ["2", "3"], True),
        ("c", [ABSENT, "4"], True),
    ]


def test_a_run_without_settings_has_none(tmp_path):
    assert read_settings(tmp_path) == {}


@pytest.mark.parametrize(("text", "contract"), [("a: [", "YAML"), ("- 1", "a YAML mapping")])
def test_a_damaged_file_is_named(tmp_path, text, contract):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"config.yaml` must be {contract}, but got"):
        read_settings(tmp_path)


def test_a_value_that_json_has_no_type_for_is_shown_as_it_is(tmp_path):
    (tmp_path / "config.yaml").write_text("name: 2024-01-31\n")
    assert read_settings(tmp_path) == {"name": '"2024-01-31"'}
