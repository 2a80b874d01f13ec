"""The clips of validations in a run's folder."""

import math
from dataclasses import replace

import av
import pytest
import torch

from telecine.data import index_video, pixels_sha256, read_clip
from telecine.losses.reconstruction import MAX_PSNR
from telecine.report.clips import ReconstructedClip, at_one_rate, write_clips
from telecine.report.page_videos import VideoFolder, copy_videos
from telecine.report.reported_run import ReportedRun
from telecine.runs import Run
from telecine.runs.saved_clips import SavedValidation

from .runs import FPS, real_clip, validation_clips


def validations(folder):
    return [SavedValidation.read(validation) for _, validation in Run(folder).validation_folders()]


def test_clips_are_written_and_read(tmp_path):
    clips = validation_clips(noise=5.0)
    folder = write_clips(Run(tmp_path), 20, clips, fps=FPS)
    assert sorted(path.name for path in folder.iterdir()) == [
        "clip-00.mp4",
        "clip-01.mp4",
        "clip-02.mp4",
        "clips.json",
    ]
    (saved,) = validations(tmp_path)
    assert (saved.step, saved.fps, saved.amplification, saved.folder) == (20, FPS, 4.0, folder)
    assert [clip.source for clip in saved.clips] == [clip.source for clip in clips]
    assert [clip.start for clip in saved.clips] == [0, 10, 20]
    assert [clip.metrics for clip in saved.clips] == [pytest.approx(clip.metrics) for clip in clips]
    assert [clip.num_frames for clip in saved.clips] == [12, 9, 9]
    assert [(clip.height, clip.width) for clip in saved.clips] == [(48, 64), (64, 64), (64, 64)]


def test_the_video_has_three_panes_of_the_clip(tmp_path):
    clip = validation_clips(noise=8.0)[1]
    folder = write_clips(Run(tmp_path), 0, [clip], fps=FPS)
    back = read_clip(index_video(folder / "clip-00.mp4"), 0, 9)
    assert back.shape == (9, 128, 3 * 128, 3)  # enlarged by 2
    panes = [pane[:, ::2, ::2].float() for pane in back.split(128, dim=2)]
    difference = ((clip.target.float() - clip.reconstruction.float()).abs() * 4).clamp(max=255)
    for pane, expected in zip(panes, (clip.target, clip.reconstruction, difference), strict=True):
        assert (pane - expected.float()).abs().mean() < 7
        assert (pane - expected.float()).mean().abs() < 0.3


def test_keyframes_are_frequent_and_no_frame_depends_on_a_later_one(tmp_path):
    frames = real_clip(num_frames=33)
    clip = replace(validation_clips(1.0)[1], target=frames, reconstruction=frames)
    folder = write_clips(Run(tmp_path), 0, [clip], fps=FPS)
    with av.open(str(folder / "clip-00.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert len(packets) == 33
    keys = [index for index, packet in enumerate(packets) if packet.is_keyframe]
    assert max(after - before for before, after in zip(keys, [*keys[1:], 33], strict=True)) <= 8
    assert [packet.pts for packet in packets] == sorted(packet.pts for packet in packets)
    assert packets[0].pts == 0


def test_psnr_of_each_frame(tmp_path):
    target = torch.full((3, 8, 8, 3), 100, dtype=torch.uint8)
    reconstruction = target.clone()
    reconstruction[1] += 5
    reconstruction[2, 0, 0, 0] -= 100
    write_clips(
        Run(tmp_path), 0, [ReconstructedClip(target, reconstruction, {}, "a.mp4", 0, FPS)], fps=FPS
    )
    expected = [
        MAX_PSNR,
        20 * math.log10(255 / 5),
        20 * math.log10(255 / 100) + 10 * math.log10(192),
    ]
    assert validations(tmp_path)[0].clips[0].frame_psnr == pytest.approx(expected, abs=5e-4)


def test_every_validation_is_kept(tmp_path):
    clips = validation_clips(1.0)[:1]
    for step in (0, 10, 20, 10):  # the last one after resuming
        write_clips(Run(tmp_path), step, clips, fps=FPS)
    saved = validations(tmp_path)
    assert [validation.step for validation in saved] == [0, 10, 20]
    assert {validation.clips[0].sha256 for validation in saved} == {pixels_sha256(clips[0].target)}
    other = clips[0].target.clone()
    other[0, 0, 0, 0] += 1
    assert pixels_sha256(other) != pixels_sha256(clips[0].target)


def test_a_failure_keeps_the_previous_clips(tmp_path):
    clips = validation_clips(1.0)
    write_clips(Run(tmp_path), 0, clips[:1], fps=FPS)
    empty = clips[1].target[:0]
    with pytest.raises(ValueError, match="`frames` must be at least one frame"):
        write_clips(
            Run(tmp_path),
            0,
            [clips[0], replace(clips[1], target=empty, reconstruction=empty)],
            fps=FPS,
        )
    with pytest.raises(ValueError, match="`clips` must be at least one clip, but got none"):
        write_clips(Run(tmp_path), 5, [], fps=FPS)
    assert [path.name for path in (tmp_path / "validation").iterdir()] == ["step-00000000"]
    assert len(validations(tmp_path)[0].clips) == 1


def test_every_clip_has_its_own_frame_rate(tmp_path):
    fast, slow = (
        replace(clip, fps=fps)
        for clip, fps in zip(validation_clips(1.0)[1:], (60.0, 24.0), strict=True)
    )
    folder = write_clips(Run(tmp_path), 0, [fast, slow], fps=60.0)
    assert [index_video(folder / f"clip-0{index}.mp4").fps for index in (0, 1)] == [60.0, 24.0]
    (saved,) = validations(tmp_path)
    assert [clip.fps for clip in saved.clips] == [60.0, 24.0]
    old = replace(saved.clips[1], fps=None)  # of an older version, which wrote all at one rate
    saved = replace(saved, clips=[*saved.clips, old])
    run = ReportedRun("run", [], {}, {}, None, [saved])
    (shown,) = copy_videos([run], VideoFolder(tmp_path / "report.html"))
    assert [clip["fps"] for clip in shown["clips"]] == [60.0, 24.0, 60.0]


def test_clips_of_several_rates_play_at_their_own_speed_in_one_picture():
    clips = [torch.arange(length).view(-1, 1, 1, 1).expand(-1, 2, 2, 3) for length in (6, 5, 6)]
    shown = [clip[:, 0, 0, 0].tolist() for clip in at_one_rate(clips, [60.0, 24.0, 30.0])]
    assert shown[0] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0]
    assert shown[1] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4]
    assert shown[2] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0]
    assert all(
        torch.equal(*pair)
        for pair in zip(at_one_rate(clips[::2], [25.0, 25.0]), clips[::2], strict=True)
    )
    assert len(at_one_rate(clips, [60.0, 60.0, 1.0])[0]) == 6 * 8


def test_depth_says_what_its_colours_are(tmp_path):
    depth = torch.arange(1000, 1000 + 2 * 16 * 16).reshape(2, 16, 16, 1).to(torch.uint16)
    write_clips(
        Run(tmp_path), 0, [ReconstructedClip(depth, depth, {}, "depth.npy", 0, FPS)], fps=FPS
    )
    (saved,) = validations(tmp_path)
    assert saved.clips[0].colours == "1000 to 1511 of 65535"
    run = ReportedRun("run", [], {}, {}, None, [saved])
    (shown,) = copy_videos([run], VideoFolder(tmp_path / "report.html"))
    assert shown["clips"][0]["title"] == "depth.npy, frame 0, colours: 1000 to 1511 of 65535"
