"""The page, the video and the JSON of a data set."""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from telecine.__main__ import main
from telecine.data import index_video
from telecine.tools.data_report.page import (
    MAX_IN_VIDEO,
    lay_out_clips,
    render_data,
    summarize,
    write_data,
)


def test_the_page_shows_clips_and_files_and_needs_no_network(report):
    page = render_data(report)
    assert page.count('<img src="data:image/jpeg;base64,') == 20
    assert page.count('<span class="badge worst">') == sum(
        bool(clip.flaws) for clip in report.clips
    )
    for row in report.files:
        assert f'<th scope="row">{Path(row.path).name}</th>' in page.replace("<wbr>", "")
    assert "Files of other kinds: 1 .txt." in page
    assert "http" not in page
    assert "Not used" not in render_data(replace(report, files=report.files[:1], ignored={}))


def test_names_are_escaped(report):
    row = replace(report.files[0], path="<script>alert(1)</script>.mp4")
    assert "<script>alert" not in render_data(replace(report, files=[row], data="<b>x</b>"))


def test_the_command_writes_a_page_a_video_and_a_json(data, tmp_path, capsys):
    size = ["--clips.num_frames=5", "--clips.height=32", "--clips.width=40"]
    assert main(["data", str(data), "-o", str(tmp_path / "out"), "--num_clips=6", *size]) == 0
    assert "a core reads in a second" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "data.json").read_text())
    assert len(written["clips"]) == 6
    assert written["clips"][0]["shape"] == [5, 32, 40, 3]
    assert len(written["files"]) == 8
    video = index_video(tmp_path / "out" / "clips.mp4")
    assert (video.height, video.width, video.num_frames) == (32, 6 * 40, 100)
    assert (tmp_path / "out" / "data.html").read_text().startswith("<!doctype html>")


def test_names_that_are_not_utf8(report, tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    row, clip = (
        replace(report.files[0], path=f"{odd}/{odd}.mp4"),
        replace(report.clips[0], source=f"{odd}.mp4"),
    )
    page = write_data(replace(report, files=[row], clips=[clip], data=odd), tmp_path / "out")
    assert page.read_text(encoding="utf-8").count("caf\\udce9.mp4") == 2
    assert json.loads((tmp_path / "out" / "data.json").read_text())["files"][0]["path"] == row.path


def test_clips_of_several_sizes_share_a_picture(report):
    small = report.clips[0]
    frames = torch.full((1, 400, 300, 3), 200, dtype=torch.uint8)
    large = replace(report.clips[1], frames=frames, shape=frames.shape)
    sheet = lay_out_clips([large, small])
    assert sheet.shape == (5, 192, 2 * 144, 3)
    assert torch.equal(sheet[4, 80:112, 144 + 52 : 144 + 92], small.frames[4]), "in the middle"
    assert torch.equal(sheet[4, :, :144], sheet[0, :, :144]), "repeated"
    assert "1 x 400 x 300" in render_data(replace(report, clips=[large]))


def test_a_clip_with_two_cuts_counts_once_and_the_video_has_a_limited_height(report, tmp_path):
    twice = replace(report.clips[0], flaws=("cut before frame 2", "cut before frame 4"))
    assert summarize(replace(report, clips=[twice]))["cut among them"] == "1"
    left_out = replace(twice, fps=50.0)
    page = write_data(replace(report, clips=[*[twice] * MAX_IN_VIDEO, left_out]), tmp_path)
    info = index_video(tmp_path / "clips.mp4")
    assert (info.height, info.fps) == (MAX_IN_VIDEO // 6 * twice.frames.shape[1], twice.fps)
    assert f"of the first {MAX_IN_VIDEO}" in page.read_text(encoding="utf-8")
