"""The page as a file: its content, its videos, and invalid arguments."""

import json
import math
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from telecine.report.chart_data import MAX_POINTS, plotly_script
from telecine.report.html import breakable
from telecine.report.page import write_report
from telecine.runs import Run

from .runs import records, write_clips_of, write_run, write_stamped_clip
from .test_summary import CLIPS, SUMMARY

EVIL = "</script><script>alert(1)</script><!--&\u2028'\""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with clips, a warning and different settings."""
    folder = tmp_path_factory.mktemp("runs")
    first = write_run(folder / "first", records(60), "steps: 60\nname: first\n")
    second = write_run(folder / "second", records(60, every=2), "steps: 60\nname: second\n")
    write_clips_of(first)
    shutil.copytree(first / "validation", second / "validation")
    warning = {
        "step": 9,
        "rule": "saturated",
        "message": "The <b>discriminator</b> won.",
        "remedy": "Wait.",
    }
    (first / "health.jsonl").write_text(json.dumps(warning) + "\n")
    (second / "environment.json").write_text('{"torch": "2.13"}')
    return [first, second]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    """The page of both runs."""
    return write_report(runs, tmp_path_factory.mktemp("page") / "new" / "a page.html")


def data_of(page):
    (text,) = re.findall(
        r'id="report-data">(.*?)</script>', page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    return json.loads(text)


def text_of(page):
    """Return the visible text, without tags and scripts."""
    text = re.sub(
        r"<style.*?</style>|<script.*?</script>|<[^>]+>", " ", page.read_text(), flags=re.DOTALL
    )
    return " ".join(text.split())


class Tags(HTMLParser):
    """Checks that elements are closed, and collects their ids and URLs."""

    VOID = frozenset({"meta", "link", "input"})

    def __init__(self):
        super().__init__()
        self.open = []
        self.ids = []
        self.addresses = []
        self.count = 0

    def handle_starttag(self, tag, attrs):
        self.count += 1
        values = dict(attrs)
        if "id" in values:
            self.ids.append(values["id"])
        self.addresses += [values[name] for name in ("href", "src") if name in values]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_videos_are_beside_the_page(page):
    assert sorted(path.name for path in page.parent.iterdir()) == ["a page.html", "a page_videos"]
    urls = [
        clip["url"] for validation in data_of(page)["validations"] for clip in validation["clips"]
    ]
    assert len(urls) == 12
    assert all((page.parent / unquote(url)).is_file() for url in urls)


def test_the_page_is_valid_html_without_external_resources(page):
    html = page.read_text(encoding="utf-8")
    assert html.count(plotly_script()) == 1
    html = html.replace(
        plotly_script(), ""
    )  # it has addresses of maps and licences; a browser test counts requests
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert tags.count > 200
    assert len(tags.ids) == len(set(tags.ids))
    inside = [address[1:] for address in tags.addresses if address.startswith("#")]
    assert len(inside) >= 7
    assert set(inside) <= set(tags.ids)
    assert [address for address in tags.addresses if not address.startswith(("#", "data:,"))] == []
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", html)


def test_runs_are_compared(page):
    text = text_of(page)
    for part in (
        "first · second",
        "Different settings first second name , differs first second",
        "The &lt;b&gt;discriminator&lt;/b&gt; won. Wait. saturated, step 9",
        "Warnings (1) Settings",
        "This run did not record warnings.",
        "torch , differs not set 2.13",
    ):
        assert part in text
    data = data_of(page)
    assert data["runs"] == ["first", "second"]
    assert data["events"] == [
        {"run": 0, "step": 9, "text": "saturated, The <b>discriminator</b> won."}
    ]
    validations = [(validation["run"], validation["step"]) for validation in data["validations"]]
    assert validations == [(0, 0), (0, 60), (1, 0), (1, 60)]
    best, worst = data["validations"][1]["best_and_worst"][:2]
    assert best == {"rank": "best", "metric": "psnr", "index": 0}
    assert worst == {"rank": "worst", "metric": "psnr", "index": 2}


def test_runs_on_other_held_out_clips_are_marked(tmp_path):
    runs = [write_run(tmp_path / name, records(20)) for name in "ab"]
    Run(runs[0]).write_summary(SUMMARY)
    Run(runs[1]).write_summary(replace(SUMMARY, validation=replace(CLIPS, width=96)))
    text = text_of(write_report(runs, tmp_path / "report.html"))
    assert "Not comparable: a and b: width 80 and 96." in text
    assert "wall time 1 min 15 s 1 min 15 s" in text
    Run(runs[1]).write_summary(SUMMARY)
    assert "Not comparable" not in text_of(write_report(runs, tmp_path / "report.html"))


def test_the_page_of_one_run_is_in_its_folder_and_that_of_several_in_the_current_one(
    runs, tmp_path, monkeypatch
):
    page = write_report(runs[:1])
    assert page == runs[0] / "report.html"
    text = text_of(page)
    assert "Different settings" not in text
    assert "All 2 settings" in text
    assert "The run has no environment.json." in text
    monkeypatch.chdir(tmp_path)
    write_report(runs)
    assert (tmp_path / "report.html").is_file()


def test_a_second_report_replaces_the_first(runs, tmp_path):
    page = write_report(runs, tmp_path / "report.html")
    (tmp_path / "report_videos" / "mine.mp4").touch()
    write_report(runs[1:], page)
    names = {path.name for path in (tmp_path / "report_videos").iterdir()}
    assert len(names) == 8
    assert {"mine.mp4", ".telecine-output"} < names, "no data of a run"


def test_metrics_that_are_not_finite_are_left_out(tmp_path):
    run = write_run(tmp_path / "run", records(20))
    metrics = {"psnr": math.nan, "ssim": math.inf, "lpips_alex": 0.5}
    write_stamped_clip(run, metrics)
    (validation,) = data_of(write_report([run]))["validations"]
    assert validation["clips"][0]["metrics"] == {"psnr": None, "ssim": None, "lpips_alex": 0.5}


def test_a_missing_video_does_not_stop_the_page(tmp_path):
    run = write_run(tmp_path / "run", records(20))
    write_clips_of(run, steps=(20,))
    missing, *others = sorted(run.rglob("clip-*.mp4"))
    missing.unlink()
    page = write_report([run])
    copied = sorted(path.name for path in (run / "report_videos").glob("*.mp4"))
    assert copied == [f"run-0-step-00000020-{path.name}" for path in others]
    assert f"run-0-step-00000020-{missing.name}" in page.read_text(encoding="utf-8")


def test_a_run_that_has_just_started_tells_what_is_missing(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").touch()
    page = write_report([run])
    text = text_of(page)
    for message in ("No validation yet.", "No logged values yet.", "The run has no config.yaml."):
        assert message in text
    html = page.read_text()
    assert 'id="player"' not in html
    assert plotly_script() not in html, "there is nothing to draw"
    assert not (run / "report_videos").exists()


def test_names_are_escaped(tmp_path):
    run = write_run(
        tmp_path / "<b>run", [{"step": 1, f"train/{EVIL}": 1.0}], json.dumps({"data": EVIL})
    )
    page = write_report([run])
    text = page.read_text(encoding="utf-8")
    assert "alert(1)</script>" not in text
    assert "<b>run" not in text
    assert data_of(page)["charts"][0]["title"] == EVIL


@pytest.mark.slow
def test_the_data_of_a_long_run_are_small(tmp_path):
    lines = [
        {"step": step, **{f"train/value_{n}": 0.1234567 * step + n for n in range(30)}}
        for step in range(5_000)
    ]
    page = write_report([write_run(tmp_path / "run", lines)])
    assert page.stat().st_size - len(plotly_script()) < 2_000_000


@pytest.mark.parametrize("output", ["page.txt", "page"])
def test_an_output_that_is_no_html_file_raises(runs, tmp_path, output):
    (tmp_path / "page").write_text("a file")
    with pytest.raises(
        ValueError, match=r"`output` must be the name of an \.html file, or a folder"
    ):
        write_report(runs, tmp_path / output)


def test_a_folder_gets_a_page_of_its_own(runs, tmp_path):
    assert write_report(runs, tmp_path / "new") == tmp_path / "new" / "report.html"
    (tmp_path / "runs.v2").mkdir()
    assert write_report(runs, tmp_path / "runs.v2") == tmp_path / "runs.v2" / "report.html"


def test_a_folder_of_other_videos_is_left_alone(runs, tmp_path):
    """Also if its files have the names of copies."""
    mine = tmp_path / "my_videos" / "run-0-step-1.mp4"
    mine.parent.mkdir()
    mine.write_bytes(b"video")
    message = r"`output` must be .*, but got .*my\.html, beside .*my_videos\. Choose another"
    with pytest.raises(ValueError, match=message):
        write_report([runs[0]], tmp_path / "my.html")
    assert [*tmp_path.rglob("*")] == [mine.parent, mine]


def test_the_videos_of_a_page_that_had_none_before(tmp_path):
    run = write_run(tmp_path / "run", records(60))
    write_report([run], is_live=True)
    write_clips_of(run)
    assert len([*write_report([run], is_live=True).with_name("report_videos").glob("*.mp4")]) > 1


def test_no_run_raises():
    with pytest.raises(ValueError, match="`runs` must be at least one run's folder"):
        write_report([])


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    run = write_run(tmp_path / name, records(20))
    write_stamped_clip(run, {"psnr": 30.0}, f"{name}.mp4")
    page = write_report([run], tmp_path / f"{name}.html")
    assert r"caf\udce9" in text_of(page)
    (validation,) = data_of(page)["validations"]
    (clip,) = validation["clips"]
    assert clip["title"] == f"{name}.mp4, frame 0"
    assert clip["url"].startswith("caf%E9_videos/"), "the bytes of the folder's name"


def test_rows_of_the_table_describe_the_curves(tmp_path):
    """Also of a curve in buckets, whose ends and extremes are those of the logged values."""
    num = 3 * MAX_POINTS
    lines = [{"step": step, "train/lr": step / 4} for step in range(num)]
    lines.append({"step": num, "train/lr": math.nan})
    html = write_report([write_run(tmp_path / "run", lines)]).read_text()
    (table,) = re.findall(r'aria-label="Curves as a table">(.*?)</table>', html, flags=re.DOTALL)
    cells = re.findall(r"<t[dh][^>]*>(?:<code>)?([^<]*)", table.rpartition("<tr>")[2])
    last = f"{(num - 1) / 4:.4g}"
    assert cells == ["learning rate", "learning rate", "train/lr", "0", last, "0", last, "1"]


def test_a_metric_without_a_label_has_its_own_name_and_no_arrow(tmp_path):
    run = write_run(tmp_path / "run", [{"step": 3, "val/psnr": 20.0, "val/my_metric": 1.0}])
    assert "Steps PSNR ↑ my_metric 3" in text_of(write_report([run]))


def test_names_of_files_are_escaped_where_they_may_break():
    assert breakable("a/b & <c>.mp4") == "a/<wbr>b &amp; &lt;c&gt;.<wbr>mp4"
