"""The files of a run."""

import json
import os
import time
from pathlib import Path

import pytest

from telecine.base.files import partial_path
from telecine.runs import Run
from telecine.runs.lock import RunLock
from telecine.runs.saved_clips import SavedValidation


def validations(folder):
    return [SavedValidation.read(path) for _, path in Run(folder).validation_folders()]


def leave(path):
    """Leave what an interrupted write to a path leaves."""
    partial = partial_path(path)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.touch()
    return partial


def test_residue_is_removed_and_nothing_else(tmp_path):
    """A killed run has left partial files; a report may be being written since this one started."""
    for name in ("curves.png", "side_by_side.mp4", "report_videos/run-0-step-00000000-all.mp4"):
        leave(tmp_path / name)
    os.utime(leave(tmp_path / "report_videos" / "run-0-step-00000000-clip-00.mp4"), (2e9, 2e9))
    partial_path(tmp_path / "best").symlink_to("checkpoints/step-00000001")
    partial_path(tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    partial_path(tmp_path / "validation" / "step-00000002").mkdir(parents=True)
    own = [
        Path(name)
        for name in (".mine.partial", "notes.partial", ".curves.png.1234.partial", "curves.png")
    ]
    own += [leave(tmp_path / "videos" / "mine.mp4").relative_to(tmp_path)]
    for step, name in ((1, "clips.json"), (2, "clip.mp4")):
        (tmp_path / "validation" / f"step-{step:08d}").mkdir()
        (tmp_path / "validation" / f"step-{step:08d}" / name).touch()
    (tmp_path / "validation" / "archery").mkdir()  # of a data set
    own += [
        Path("validation/step-00000001/clips.json"),
        Path("validation/.DS_Store"),
        Path("validation/archery/1.mp4"),
    ]
    for path in own:
        (tmp_path / path).touch()
    time.sleep(0.02)  # the resolution of the file system's clock
    lock = RunLock(tmp_path).acquire()
    time.sleep(0.02)
    own += [
        leave(tmp_path / "report.html").relative_to(tmp_path),
        Path(".lock"),
        Path(".lock.json"),
    ]
    Run(tmp_path).remove_residue(lock.taken_at)
    left = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if not path.is_dir()}
    assert left == set(own)
    lock.release()


CLIP = {
    "video": "clip-00.mp4",
    "source": "a.mp4",
    "start": 0,
    "num_frames": 1,
    "height": 16,
    "width": 16,
    "metrics": {},
    "frame_psnr": [1.0],
}


def write_description(run, **changes):
    """Write the description of a validation with one clip; a value of None is left out. Return its folder."""
    values = {"step": 0, "fps": 5.0, "amplification": 4.0, "clips": [CLIP]} | changes
    folder = run / "validation" / "step-00000000"
    folder.mkdir(parents=True)
    text = json.dumps({name: value for name, value in values.items() if value is not None})
    (folder / "clips.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": 3}, "but got .*Remove"),
        ({"clips": [{"video": "x"}]}, "but got .*Remove"),
        ({"fps": None}, "but got .*Remove"),
        # The report copies the files that it names.
        ("/etc/passwd", "a file of its folder"),
        ("../clip-00.mp4", "a file of its folder"),
        ("sub/clip-00.mp4", "a file of its folder"),
        ("", "a file of its folder"),
    ],
)
def test_a_damaged_description_or_a_file_elsewhere_raises(tmp_path, change, message):
    if isinstance(change, str):
        change = {"clips": [{**CLIP, "video": change}]}
    write_description(tmp_path, **change)
    with pytest.raises(
        ValueError, match=rf"clips.json` must be the description of a validation.*{message}"
    ):
        validations(tmp_path)


def test_a_link_to_a_file_elsewhere_raises(tmp_path):
    folder = write_description(tmp_path)
    assert [validation.step for validation in validations(tmp_path)] == [0]
    (folder / "clip-00.mp4").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"a file of its folder"):
        validations(tmp_path)


def test_a_run_without_clips_has_no_validation(tmp_path):
    assert validations(tmp_path) == []
