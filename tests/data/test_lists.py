"""Lists name videos and the parts of them to use; what is wrong in one is said with its line."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from telecine.data import DataError, Stretch, VideoInfo, read_list

INFO = VideoInfo(Path("a.mp4"), 64, 48, 25.0, array("q", range(100, 1100, 10)), array("q", [0]), time_base=0.004)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", 'path,start,end,start_frame,end_frame\na.mp4,,,,\nb/c.mp4,1.5,3,,\n/d.mp4,,,4,\n"e,f.png",,,,9\n'),
        (
            "list.csv",
            '\ufeffend_frame,path,start,end,start_frame\r\n,a.mp4,,,\r\n,b/c.mp4,1.5,3,\r\n,/d.mp4,,,4\r\n9,"e,f.png",,,\r\n',
        ),
        (
            "list.JSONL",
            '{"path": "a.mp4"}\n\n{"path": "b/c.mp4", "start": 1.5, "end": 3}\n'
            '{"path": "/d.mp4", "start_frame": 4, "end": null}\n{"path": "e,f.png", "end_frame": 9}',
        ),
    ],
)
def test_a_list(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_list(tmp_path / name) == [
        Stretch(tmp_path / "a.mp4"),
        Stretch(tmp_path / "b/c.mp4", start=1.5, end=3.0),
        Stretch(Path("/d.mp4"), start_frame=4),
        Stretch(tmp_path / "e,f.png", end_frame=9),
    ]


BAD_LISTS = {
    "unknown column": (
        "a.csv",
        "path,strat\nx,1\n",
        r"a\.csv, line 1: there is no column `strat`\. Did you mean `start`",
    ),
    "no such column": ("a.csv", "path,qqqqq\nx,1\n", "there is no column `qqqqq`. Known are path, start, end"),
    "no path": ("a.csv", "start,end\n1,2\n", "line 1: the column `path` is missing"),
    "empty": ("a.csv", "", "line 1: the column `path` is missing"),
    "only a header": ("a.csv", "path\n", "the list is empty"),
    "blank path": ("a.csv", "path,start\nx,1\n,1\n", "line 3: `path` must name a file, but got ''"),
    "many columns": ("a.csv", "path,start\nx,1,2\n", "line 2: 2 columns above and another number here"),
    "few columns": ("a.csv", "path,start\nx\n", "line 2: 2 columns above and another number here"),
    "no number": ("a.csv", "path,start\nx,1\ny,1:30\n", "line 3: `start` must be a number of seconds.*got '1:30'"),
    "negative": (
        "a.csv",
        "path,start\nx,-1\n",
        "line 2: `start` must be a number of seconds, at least 0, but got '-1'",
    ),
    "not finite": ("a.csv", "path,end\nx,nan\n", "line 2: `end` must be a number of seconds"),
    "half a frame": ("a.csv", "path,end_frame\nx,1.5\n", "line 2: `end_frame` must be a whole number"),
    "ends before": ("a.csv", "path,start,end\nx,3,2\n", r"line 2: `end` must be after its start \(3.0\), but got 2.0"),
    "ends at 0": ("a.csv", "path,end_frame\nx,0\n", r"line 2: `end_frame` must be after its start \(0\), but got 0"),
    "both": ("a.csv", "path,start,start_frame\nx,3,2\n", "line 2: has both `start` and `start_frame`"),
    "not utf-8": ("a.csv", b"path\n\xff\xfe\n", "cannot be read .*UTF-8"),
    "json column": ("a.jsonl", '{"path": "x"}\n{"path": "x", "ends": 3}', "line 2: there is no column `ends`.*`end`"),
    "json without path": ("a.jsonl", '{"start": 3}', "line 1: the column `path` is missing"),
    "json path": ("a.jsonl", '{"path": 3}', "line 1: `path` must name a file, but got 3"),
    "json number": ("a.jsonl", '{"path": "x", "start": true}', "line 1: `start` must be a number of seconds.*True"),
    "no json": ("a.jsonl", '{"path": "x"}\n\npath: x', "line 3: is no JSON"),
    "json list": ("a.jsonl", '["x"]', "line 1: is list, no object"),
    "no lines": ("a.jsonl", "\n", "the list is empty"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_bad_lists_say_where_and_why(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_LISTS[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        read_list(tmp_path / name)


@pytest.mark.parametrize(
    ("stretch", "frames"),
    [
        ({}, (0, 99)),
        ({"start": 0.0, "end": 0.04}, (0, 0)),
        ({"start": 1.0, "end": 2.0}, (25, 49)),
        ({"start": 1.01}, (26, 99)),
        ({"end": 1.01}, (0, 25)),
        ({"end": 1000.0}, (0, 99)),
        ({"start_frame": 3, "end_frame": 4}, (3, 3)),
        ({"start_frame": 99, "end_frame": 400}, (99, 99)),
        ({"start": 1.0, "end_frame": 30}, (25, 29)),
        ({"start_frame": 100}, None),
        ({"start": 4.0}, None),
        ({"start": 2.0, "end_frame": 30}, None),
    ],
)
def test_seconds_and_frames(stretch: dict, frames: tuple[int, int] | None) -> None:
    span = Stretch(INFO.path, **stretch).span_in(INFO)
    assert (span and (span.first_frame, span.last_frame)) == frames
