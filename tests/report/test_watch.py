"""The report of runs that train."""

import json
import re

import pytest

from telecine.report import page as module
from telecine.report.page import is_unfinished, watch_runs
from telecine.runs import Run

from .runs import write_run


def live(page):
    (text,) = re.findall(r'"live":(null|\{.*?\})', page.read_text(encoding="utf-8"))
    return json.loads(text)


def append(run, **record):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", [{"step": 0, "val/psnr": 11.0}], "steps: 2\n")


@pytest.fixture
def meanwhile(monkeypatch):
    """Functions that are called in turn instead of waiting."""
    events = []
    monkeypatch.setattr(module.time, "sleep", lambda seconds: events.pop(0)())
    return events


def test_a_damaged_run_is_not_waited_for(run, tmp_path, meanwhile):
    damaged = write_run(tmp_path / "damaged", [])
    (damaged / "metrics.jsonl").write_text("[]\n")
    meanwhile.append(lambda: append(run, step=2, **{"val/psnr": 12.0}))
    pages = []
    watch_runs([run, damaged], tmp_path / "page.html", lambda page: pages.append(page.read_text()))
    assert len(pages) == 2
    assert all("metrics.jsonl, line 1` must be a JSON object" in page for page in pages)


def test_the_page_is_written_until_the_run_is_finished(run, meanwhile):
    meanwhile.append(lambda: None)  # no new values
    meanwhile.append(lambda: append(run, step=1, **{"train/lr": 0.1}))
    meanwhile.append(lambda: append(run, step=2, **{"val/psnr": 12.0}))
    versions = []
    watch_runs([run], None, lambda page: versions.append(live(page)))
    assert len(versions) == 3
    assert versions[0]["version"] != versions[1]["version"]
    assert versions[2] is None, "the last page does not load itself again"
    assert (run / "report_videos" / "version.js").read_text() == 'pageVersion("finished");\n'


def test_files_that_disappear_meanwhile_are_read_again(run, meanwhile):
    append(run, step=2, **{"val/psnr": 12.0})
    meanwhile.append(lambda: None)
    pages = []

    def written(page):
        pages.append(page)
        if len(pages) == 1:
            raise FileNotFoundError("clips.json")

    watch_runs([run], None, written)
    assert pages == [run / "report.html"] * 2


def test_a_run_trains_until_its_last_validation(run):
    append(run, step=2, **{"train/lr": 0.1})
    assert is_unfinished(Run(run))
    append(run, step=2, **{"val/psnr": 12.0})
    assert not is_unfinished(Run(run))
    (run / "config.yaml").unlink()
    assert is_unfinished(Run(run))
