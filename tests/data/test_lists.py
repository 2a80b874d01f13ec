"""Lists of video segments. Errors give the line number."""

import os
import sys
from array import array
from pathlib import Path

import pyarrow.parquet
import pytest

from telecine.data import DataError, Span, VideoInfo
from telecine.data.find import find_segments
from telecine.data.lazy.saved_index import SavedIndex
from telecine.data.lists import Segment, read_list
from telecine.data.source import RemotePath, Skipped
from telecine.settings import ClipConfig

INFO = VideoInfo(
    Path("a.mp4"), 64, 48, 25.0, array("q", range(100, 1100, 10)), array("q", [0]), time_base=0.004
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "list.csv",
            'path,start,end,start_frame,end_frame\na.mp4,,,,\nb/c.mp4,1.5,3,,\n/d.mp4,,,4,\n"e,f.png",,,,9\n',
        ),
        (
            "list.CSV",
            "\ufeffend_frame,path,start,end,start_frame\r\n,a.mp4,,,\r\n,b/c.mp4,1.5,3,\r\n,/d.mp4,,,4\r\n"
            '9,"e,f.png",,,\r\n',
        ),
        (
            "list.JSONL",
            '\ufeff{"path": "a.mp4"}\n\n{"path": "b/c.mp4", "start": 1.5, "end": 3}\n'
            '{"path": "/d.mp4", "start_frame": 4, "end": null}\n{"path": "e,f.png", "end_frame": 9}',
        ),
    ],
)
def test_formats(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_list(tmp_path / name) == [
        Segment(tmp_path / "a.mp4"),
        Segment(tmp_path / "b/c.mp4", start=1.5, end=3.0),
        Segment(Path("/d.mp4"), start_frame=4),
        Segment(tmp_path / "e,f.png", end_frame=9),
    ]


def write_parquet(file, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


def test_parquet_is_a_list(tmp_path, caplog):
    missing = float("nan")  # as pandas writes it
    path = write_parquet(
        tmp_path / "a.parquet",
        path=["b/a.mp4", "s3://bucket/b.mp4", "e.png"],
        start=pyarrow.array([None, 1.5, missing]),
        end=[2, None, None],
        end_frame=[missing, 40.0, missing],
        film=["x", None, "y"],
        caption=["cat", "dog", ""],
    )
    plain = list(read_list(path))
    assert plain == [
        Segment(tmp_path / "b/a.mp4", end=2.0),
        Segment(RemotePath("s3://bucket/b.mp4"), start=1.5, end_frame=40),
        Segment(tmp_path / "e.png"),
    ]
    assert caplog.messages == [f"{path}: left out 2 columns that no clip needs: `film`, `caption`"]
    grouped = list(read_list(path, group_column="film", keep_columns=True))
    assert [segment.group for segment in grouped] == ["x", "", "y"]
    assert grouped[0].columns == {"film": "x", "caption": "cat"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["x", "y"], "start": [1.0, -1.0]}, "row 2: `start` must be a number of seconds"),
        ({"path": ["x", ""]}, "row 2: `path` must name a file, but got ''"),
        ({"path": [b"x"]}, "row 1: `path` must name a file, but got b'x'"),
        ({"path": ["x"], "end_frame": [4.5]}, "row 1: `end_frame` must be a frame index"),
        ({"path": ["x"], "strat": [1]}, "parquet: unknown column `strat`. Did you mean `start`"),
        ({"start": [1]}, "parquet: the column `path` is missing"),
        ({"path": []}, "parquet: the list is empty"),
        (None, "parquet: cannot be read .*must be Parquet, or CSV"),
    ],
    ids=range(8),
)
def test_errors_of_parquet_give_the_row(tmp_path, columns, message):
    path = tmp_path / "a.parquet"
    if columns is None:
        path.write_bytes(b"PAR1" * 10)
    else:
        write_parquet(path, **columns)
    with pytest.raises(DataError, match=rf"a\.{message}" if message[0] == "p" else message):
        list(read_list(path))


def test_parquet_without_its_package_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = r"a\.parquet needs the package pyarrow, .*Run `pip install pyarrow`"
    with pytest.raises(ImportError, match=message):
        list(read_list(tmp_path / "a.parquet"))


SECONDS = "`start` must be a number of seconds, at least 0 and at most 1000000000, but got"
LONG_LINE = "must have at most 1048576 characters. Check"
BAD_CSV = {
    "path,strat\nx,1\n": r"a\.csv, line 1: unknown column `strat`\. Did you mean `start`",
    "path\n" + "x" * (2**20 + 1): f"line 2: {LONG_LINE}",
    "start,end\n1,2\n": "line 1: the column `path` is missing",
    "": "line 1: the column `path` is missing",
    "path\n": "the list is empty",
    "path,start\nx,1\n,1\n": "line 3: `path` must name a file, but got ''",
    "path,start\nx,1,2\n": "line 2: must have 2 values, as line 1 does",
    "path,start\nx\n": "line 2: must have 2 values, as line 1 does",
    "path,path\nx,\n": "line 1: has a column twice",
    "path,start\nx,1\ny,1:30\n": f"line 3: {SECONDS} '1:30'",
    "path,start\nx,-1\n": f"line 2: {SECONDS} '-1'",
    "path,start\nx,1e308\n": f"line 2: {SECONDS} '1e308'",
    f"path,start\nx,{'9' * 5000}\n": f"line 2: {SECONDS} '9{{76}}... .str.[.]$",
    "path,end\nx,nan\n": "line 2: `end` must be a number of seconds",
    "path,end\nx,inf\n": "line 2: `end` must be a number of seconds",
    "path,end_frame\nx,1.5\n": "line 2: `end_frame` must be a frame index",
    "path,end_frame\nx,1000000001\n": "line 2: `end_frame` must be a frame index",
    "path,start,end\nx,3,2\n": r"line 2: `end` must be greater than the start \(3.0\), but got 2.0",
    "path,start_frame,end_frame\nx,3,3\n": r"`end_frame` must be greater than the start \(3\), but got 3",
    "path,end_frame\nx,0\n": r"line 2: `end_frame` must be greater than the start \(0\), but got 0",
    "path,start,start_frame\nx,3,2\n": "line 2: has both `start` and `start_frame`",
    "path,end,end_frame\nx,3,2\n": "line 2: has both `end` and `end_frame`",
    "path\n\udcff\udcfe\n": "cannot be read .*UTF-8",
    f"path\nx\n{'a' * 200_000}\n": r"a\.csv, after line 2: cannot be read .*field limit",
}
BAD_JSONL = {
    " " * (2**20 + 1): f"line 1: {LONG_LINE}",
    '{"path": " "}': "line 1: `path` must name a file, but got ' '",
    '{"path": "x"}\n{"path": "x", "ends": 3}': "line 2: unknown column `ends`.*`end`",
    '{"start": 3}': "line 1: the column `path` is missing",
    '{"path": 3}': "line 1: `path` must name a file, but got 3",
    '{"path": "x"}\n{"path": "a\\u0000"}': r"line 2: `path` must name a file, but got 'a\\x00'",
    '{"path": "\\ud800"}': r"line 1: `path` must name a file, but got '\\ud800'",
    f'{{"path": "{"a" * 5000}"}}': "line 1: `path` must name a file, but got 'a{76}[.]{3} ",
    '{"path": "x", "start": true}': f"line 1: {SECONDS} True",
    '{"path": "x", "start": 1e308}': f"line 1: {SECONDS} 1e.308",
    f'{{"path": "x", "start": {"9" * 4000}}}': "line 1: .* an integer of 13288 bits",
    f'{{"path": "x", "start": {"9" * 5000}}}': "line 1: not valid JSON",
    '{"path": "x"}\n\npath: x': "line 3: not valid JSON",
    '{"path": "x"}\n' + "[" * 100_000: "line 2: not valid JSON .*recursion",
    '["x"]': "line 1: must be a JSON object, but got list",
    "\n": "the list is empty",
}
MISTAKES = [("a.csv", *mistake) for mistake in BAD_CSV.items()] + [
    ("a.jsonl", *mistake) for mistake in BAD_JSONL.items()
]


@pytest.mark.parametrize(("name", "text", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_errors_give_line_and_reason(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        read_list(tmp_path / name)


@pytest.mark.parametrize(
    ("fields", "frames"),
    [
        ({}, (0, 99)),
        ({"start": 0.0, "end": 0.5}, (0, 12)),
        ({"start": 0.0, "end": 0.04}, (0, 0)),
        ({"start": 1.0, "end": 2.0}, (25, 49)),
        ({"start": 1.01}, (26, 99)),
        ({"end": 1.01}, (0, 25)),
        ({"end": 1000.0}, (0, 99)),
        ({"start_frame": 3, "end_frame": 4}, (3, 3)),
        ({"start_frame": 99, "end_frame": 400}, (99, 99)),
        ({"start": 1.0, "end_frame": 30}, (25, 29)),
    ],
)
def test_frames_of_a_segment(fields, frames):
    assert Segment(INFO.source, **fields).as_span(INFO) == Span(INFO, *frames)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"start_frame": 100}, "starts at frame 100, after its last frame"),
        ({"start": 4.0}, "starts at 4.0 s, after its last frame"),
        ({"start": 0.01, "end": 0.02}, "no frame from 0.01 s to 0.02 s"),
        ({"start": 2.0, "end_frame": 30}, "no frame from 2.0 s to frame 30"),
        ({"start_frame": 30, "end": 0.4}, "no frame from frame 30 to 0.4 s"),
        ({"end": 0.0}, "no frame from frame 0 to 0.0 s"),
    ],
)
def test_segments_without_frames(fields, reason):
    assert Segment(INFO.source, **fields).as_span(INFO) == Skipped(INFO.source, reason)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_an_unknown_column_is_left_out_and_named(tmp_path, caplog, name):
    csv = 'path,caption,end_frame,num_frames\nx,"a, cat",4,9\ny,,,\n'
    jsonl = '{"path": "x", "caption": "a cat", "end_frame": 4, "num_frames": 9}\n{"path": "y", "tags": ["a"]}\n'
    (tmp_path / name).write_text(csv if name == "a.csv" else jsonl)
    assert read_list(tmp_path / name) == [
        Segment(tmp_path / "x", end_frame=4),
        Segment(tmp_path / "y"),
    ]
    names = "`caption`, `num_frames`" if name == "a.csv" else "`caption`, `num_frames`, `tags`"
    assert caplog.messages == [
        f"{tmp_path / name}: left out {2 + (name != 'a.csv')} columns that no clip needs: {names}"
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_column_of_groups_is_read(tmp_path, caplog, name):
    csv = "path,subject,group\nx,1,a\ny,,b\n"
    jsonl = (
        '{"path": "x", "subject": 1, "group": "a"}\n{"path": "y", "subject": null, "group": "b"}\n'
    )
    (tmp_path / name).write_text(csv if name == "a.csv" else jsonl)

    def groups(holdout):
        path = str(tmp_path / name)
        segments = find_segments(path, SavedIndex(path, ClipConfig(holdout=holdout)))
        return [segment.group for segment in segments]

    assert groups("auto") == ["a", "b"]
    assert groups("column:subject") == ["1", ""]
    assert groups("file") == groups("folder") == ["", ""]
    left_out = [message.partition("needs: ")[2] for message in caplog.messages]
    assert left_out == ["`subject`", "`group`", "`subject`, `group`", "`subject`, `group`"]


def test_a_column_beside_the_one_that_it_resembles_is_no_mistake(tmp_path):
    (tmp_path / "a.csv").write_text("path,paths,end_frame\nx,y,4\n")
    assert read_list(tmp_path / "a.csv") == [Segment(tmp_path / "x", end_frame=4)]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_what_is_no_list_is_refused_at_once(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(DataError, match="must be a regular file, but got a FIFO"):
        read_list(path)
    path.unlink()
    path.touch()
    os.truncate(path, 40 * 2**30)  # sparse
    with pytest.raises(DataError, match="line 1: must have at most 1048576 characters"):
        read_list(path)


def test_a_list_is_read_in_the_time_that_it_may_take(tmp_path):
    (tmp_path / "a.csv").write_text("path\nx\n")
    with pytest.raises(DataError, match=r"a\.csv: not read within 1e-09 seconds"):
        read_list(tmp_path / "a.csv", timeout=1e-9)
