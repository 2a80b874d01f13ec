"""The folder of a run may be anyone's, or damaged: nothing is followed out of it, and errors name file and line."""

import json
import os
import re
import shutil

import pytest

from telecine.__main__ import main
from telecine.report.page import write_report
from telecine.report.reported_run import read_run

from .runs import records, write_clips_of, write_run


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The folder of a run with all of its files."""
    folder = write_run(tmp_path_factory.mktemp("complete") / "run", records(20))
    write_clips_of(folder, steps=(20,))
    shutil.copy(next(folder.glob("validation/*/*.mp4")), folder / "side_by_side.mp4")
    (folder / "health.jsonl").write_text(
        '{"step": 7, "rule": "a", "message": "b", "remedy": "c"}\n'
    )
    (folder / "environment.json").write_text('{"torch": "2"}')
    sizes = {
        "num_parameters": 9,
        "num_trained": 7,
        "num_disc_parameters": 3,
        "num_videos": 2,
        "num_skipped": 1,
    }
    clips = {"num_clips": 2, "num_frames": 5, "height": 16, "width": 24, "sha256": "a"}
    more = {
        "num_frames": 42,
        "clips_per_update": 4,
        "validation": clips,
        "seconds": 1.5,
        "peak_memory": None,
    }
    (folder / "summary.json").write_text(json.dumps(sizes | more))
    return folder


@pytest.fixture
def run(complete, tmp_path):
    return shutil.copytree(complete, tmp_path / "run")


def everything_in(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


LINKS = (
    "metrics.jsonl",
    "health.jsonl",
    "config.yaml",
    "environment.json",
    "summary.json",
    "tracker.json",
    "side_by_side.mp4",
    ".telecine-output",
    "report_videos",
    "validation",
    "validation/step-00000020",
    "validation/step-00000020/clips.json",
    "validation/step-00000020/clip-00.mp4",
    "checkpoints",
)


@pytest.mark.parametrize("name", LINKS)
def test_no_link_is_followed_out_of_a_run(run, tmp_path, name):
    private = tmp_path / "private"
    private.mkdir()
    if (run / name).exists():
        (run / name).rename(private / "own")
    else:
        (private / "own").mkdir()
        (private / "own" / "run-0-step-00000000-all.mp4").touch()
    (run / name).symlink_to(private / "own")
    before = everything_in(private)
    with pytest.raises(
        ValueError, match=f"{name}` must be in the run's folder itself, but got a symbolic link to"
    ):
        write_report([run])
    assert everything_in(private) == before
    assert not (run / "report.html").exists()


def test_the_marker_in_the_folder_of_videos_is_replaced_and_not_followed(run, tmp_path):
    (tmp_path / "private").write_text("keep")
    (run / "report_videos").mkdir()
    for name in (".telecine-output", "run-0-step-00000020-clip-00.mp4", "version.js"):
        (run / "report_videos" / name).symlink_to(tmp_path / "private")
    write_report([run], is_live=True)
    assert (tmp_path / "private").read_text() == "keep"
    assert not any(path.is_symlink() for path in (run / "report_videos").iterdir())


def test_a_folder_of_videos_of_another_name_is_not_followed_out_of_a_run(run, tmp_path):
    (tmp_path / "private").mkdir()
    (run / "page_videos").symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match="page_videos` must be in the run's folder itself"):
        write_report([run], run / "page.html")


def test_links_of_the_user_are_followed(run, tmp_path):
    for name in ("elsewhere", "videos"):
        (tmp_path / name).mkdir()
    (tmp_path / "run-link").symlink_to(run)
    (tmp_path / "output").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "page_videos").symlink_to(tmp_path / "videos")
    (run / "best").symlink_to("checkpoints/step-00000020")
    write_report([tmp_path / "run-link"], tmp_path / "output" / "page.html")
    assert (tmp_path / "elsewhere" / "page.html").is_file()
    assert len([*(tmp_path / "videos").glob("*.mp4")]) == 3


CLIPS = "validation/step-00000020/clips.json"
HUGE = "9" * 400


def changed(name, **values):
    def change(run):
        (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | values))

    return change


def clip(**values):
    def change(run):
        description = json.loads((run / CLIPS).read_text())
        description["clips"][0] |= values
        (run / CLIPS).write_text(json.dumps(description))

    return change


def text(name, content):
    return lambda run: (run / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def line(content):
    return text(
        "metrics.jsonl",
        b'{"step": 1}\n' + (content if isinstance(content, bytes) else content.encode()) + b"\n",
    )


def of_40_gb(name):
    return lambda run: os.truncate(run / name, 40 * 2**30)


def fifo(name):
    def change(run):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return change


DAMAGE = {
    "record null": (line("null"), "metrics.jsonl, line 2` must be a JSON object, but got None"),
    "record list": (line("[1]"), r"line 2` must be a JSON object, but got \[1\]"),
    "record without step": (
        line('{"a": 1}'),
        "with a whole `step`, but got None .* as 'step'",
    ),
    "step infinity": (line('{"step": Infinity}'), r"line 2` .* but got inf \(float\) as 'step'"),
    "step negative": (line('{"step": -1}'), r"line 2` .* but got -1 \(int\) as 'step'"),
    "step true": (line('{"step": true}'), r"line 2` .* but got True \(bool\) as 'step'"),
    "step huge": (
        line(f'{{"step": {HUGE}}}'),
        "line 2` .* but got an integer of 1329 bits as 'step'",
    ),
    "value huge": (
        line(f'{{"step": 2, "train/lr": {HUGE}}}'),
        "line 2` .*an integer of 1329 bits as 'train/lr'",
    ),
    "value huge digits": (
        line(f'{{"step": 2, "train/lr": {"9" * 5000}}}'),
        "line 2` must be a JSON object",
    ),
    "nested": (line("[" * 100_000), "line 2` must be a JSON object, but got invalid JSON"),
    "not UTF-8": (
        line(b'{"step": 2, "\xff": 3}'),
        "line 2` must be a JSON object, but got invalid JSON",
    ),
    "value text": (
        line('{"step": 2, "val/psnr": "x"}'),
        r"line 2` .* but got 'x' \(str\) as 'val/psnr'",
    ),
    "value null": (
        line('{"step": 2, "val/psnr": null}'),
        "line 2` .* but got None .* as 'val/psnr'",
    ),
    "long line": (
        line(b"x" * 2**21),
        "metrics.jsonl, line 2` must be a JSON object, but got .*(bytes)",
    ),
    "warning list": (text("health.jsonl", "[1]\n"), "health.jsonl, line 1` must be a JSON object"),
    "warning types": (
        text("health.jsonl", '{"step": "x", "rule": "a", "message": "b", "remedy": "c"}\n'),
        "health.jsonl` must be lines with step, rule, message and remedy, but got 'x'",
    ),
    "warning null": (
        text("health.jsonl", '{"step": 1, "rule": null, "message": "b", "remedy": "c"}\n'),
        "health.jsonl` must be lines with step, rule, message and remedy, but got None",
    ),
    "environment list": (text("environment.json", "[]"), "environment.json` must be a JSON object"),
    "environment nested": (
        text("environment.json", "[" * 100_000),
        "environment.json` must be JSON",
    ),
    "settings list": (text("config.yaml", "- 1"), "config.yaml` must be `key: value` lines"),
    "settings date": (
        text("config.yaml", "a:\n- !!timestamp 2020-01-01: 1"),
        "config.yaml` must be YAML.*in line 2",
    ),
    "settings list as a name": (
        text("config.yaml", "? [1]\n: 2"),
        "config.yaml` must be YAML.*in line 1",
    ),
    "summary zeroed": (text("summary.json", bytes(99)), "summary.json` must be JSON"),
    "summary text": (
        changed("summary.json", seconds="x"),
        r"summary.json` .* but got 'x' \(str\) as `seconds`",
    ),
    "summary 0": (
        changed("summary.json", clips_per_update=0),
        r"summary.json` .* got 0 \(int\) as `clips_per_update`",
    ),
    "summary huge": (
        changed("summary.json", num_parameters=10**400),
        "an integer of 1329 bits as `num_parameters`",
    ),
    "summary infinity": (
        changed("summary.json", seconds=float("inf")),
        r"inf \(float\) as `seconds`",
    ),
    "summary null": (
        changed("summary.json", validation=None),
        r"None \(NoneType\) as `validation`",
    ),
    "clips zeroed": (text(CLIPS, bytes(99)), "clips.json` must be JSON"),
    "clips null": (
        changed(CLIPS, clips=None),
        r"clips.json` .* got None \(NoneType\) as `clips`",
    ),
    "rate infinite": (changed(CLIPS, fps=float("inf")), r"inf \(float\) as `fps`"),
    "rate 0": (
        changed(CLIPS, fps=0.0),
        r"0.0 \(float\) as `fps` \(input should be greater than 0\)",
    ),
    "rate text": (changed(CLIPS, fps="25"), r"'25' \(str\) as `fps`"),
    "height negative": (clip(height=-1), r"-1 \(int\) as `clips.0.height`"),
    "start negative": (clip(start=-1), r"-1 \(int\) as `clips.0.start`"),
    "frame NaN": (clip(frame_psnr=[float("nan")]), r"nan \(float\) as `clips.0.frame_psnr.0`"),
    "metric text": (clip(metrics={"psnr": "high"}), r"'high' \(str\) as `clips.0.metrics.psnr`"),
    "source number": (clip(source=3), r"3 \(int\) as `clips.0.source`"),
    "video NUL": (clip(video="a\0.mp4"), "the video .* which is not a file of its folder"),
    "video above": (clip(video=".."), "the video '..', which is not a file of its folder"),
    "video sparse": (
        of_40_gb("validation/step-00000020/clip-01.mp4"),
        "clip-01.mp4` must be a file of at most",
    ),
    "side by side sparse": (
        of_40_gb("side_by_side.mp4"),
        "side_by_side.mp4` must be a file of at most",
    ),
}
for name in ("metrics.jsonl", "health.jsonl", "environment.json", "config.yaml", CLIPS):
    file = name.rpartition("/")[2]
    DAMAGE[f"{file} FIFO"] = (fifo(name), f"{file}` must be a regular file, but got a FIFO")
    DAMAGE[f"{file} sparse"] = (of_40_gb(name), f"{file}` must be a file of at most")


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_marked_beside_the_others(run, tmp_path, name, caplog):
    other = write_run(tmp_path / "other", records(5))
    damage, message = DAMAGE[name]
    damage(run)
    if name.startswith("side by side"):
        shutil.rmtree(run / "validation")
    page = write_report([other, run], tmp_path / "page.html")
    (problem,) = (
        record.getMessage()
        for record in caplog.records
        if record.name == "telecine.report.reported_run"
    )
    assert re.search(message, problem), problem
    assert len(problem) < 1000
    html = page.read_text()
    assert html.count("Not in this report: ") == 1
    assert "other" in html, "the other run is on the page"


def test_a_single_damaged_run_ends_with_one_line(run, capsys):
    line("null")(run)
    assert main(["report", str(run)]) == 2
    assert "metrics.jsonl, line 2` must be a JSON object, but got None" in capsys.readouterr().err


def test_a_damaged_validation_is_left_out(run):
    write_clips_of(run, steps=(0,))
    text(CLIPS, bytes(99))(run)
    read = read_run(run, "x")
    assert [validation.step for validation in read.validations] == [0]
    (problem,) = read.problems
    assert "step-00000020/clips.json` must be JSON" in problem


def test_names_of_logged_values_may_be_any(run):
    names = [
        "train/frame_gradient_x",
        "train/frame_gradient_" + "9" * 50,
        "val/psnr",
        "",
        "\0\n\x1b[31m<b>",
        "\ud800",
    ]
    line(json.dumps({"step": 2, **dict.fromkeys(names, 1.0)}))(run)
    write_report([run])
