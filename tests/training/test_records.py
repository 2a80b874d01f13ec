"""Which records of an interrupted run are kept, and what is said about missing ones."""

import json

from telecine.report.run import read_lines
from telecine.runs.layout import CLIPS_FILE, HEALTH_FILE, METRICS_FILE, validation_folder, validation_folders
from telecine.training.records import keep_records, missing_records


def test_records_up_to_the_checkpoint_are_kept(tmp_path):
    for name in (METRICS_FILE, HEALTH_FILE):
        lines = [json.dumps({"step": step}) for step in (0, 10, 20, 30)]
        (tmp_path / name).write_text("\n".join(lines) + '\n{"step": 30, "val')
    for step in (0, 20, 30):
        folder = validation_folder(tmp_path, step)
        folder.mkdir(parents=True)
        (folder / CLIPS_FILE).touch()
    assert keep_records(tmp_path, 20) == (3, [])
    assert [step for step, _ in validation_folders(tmp_path)] == [0, 20]
    for name in (METRICS_FILE, HEALTH_FILE):
        assert [line["step"] for line in read_lines(tmp_path / name)] == [0, 10, 20]


def test_lines_that_a_power_failure_has_damaged_are_dropped_and_counted(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_bytes(b'{"step": 0}\n\0\0\0\0\xff": 1}\n{"step": 10}\n[1]\n{"loss": 2}\n{"step": 20}\n\0\0')
    num_kept, notes = keep_records(tmp_path, 20)
    assert notes == [f"{path}: 3 lines could not be read and are dropped"]
    assert [line["step"] for line in read_lines(path)] == [0, 10, 20]
    assert missing_records(tmp_path, expected=num_kept, found=num_kept) == []
    (note,) = missing_records(tmp_path, expected=6, found=num_kept)
    assert note == f"{path}: 3 records up to the checkpoint instead of 6; the curves have a gap"


def test_a_new_run_begins_with_empty_files(tmp_path):
    assert keep_records(tmp_path, -1) == (0, [])
    assert (tmp_path / METRICS_FILE).read_text() == (tmp_path / HEALTH_FILE).read_text() == ""
