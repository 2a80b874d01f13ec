import json

import pytest

from telecine.report.records import read_lines, read_records, validations


def test_lines_are_read_in_order_and_an_unfinished_one_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n\n" + json.dumps({"step": 2, "val/psnr": 3.0}) + '\n{"step": 3, "lo')
    records = read_records(path)
    assert records == [{"step": 1}, {"step": 2, "val/psnr": 3.0}]
    assert validations(records) == records[1:]


def test_no_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("line", ["{broken", "3", "[1]"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2` must be a JSON object, but got .*Remove the line"):
        read_records(path)
