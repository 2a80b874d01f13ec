"""Checkpoints appear whole, damage of them is found, and old ones are removed."""

import errno
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from telecine.base import files
from telecine.runs import DamagedError, Run, find_checkpoint
from telecine.runs.checkpoints import Checkpoints
from telecine.runs.manifest import check_manifest, write_manifest


def write_checkpoint(run, step, *, keep=4, best=None, fail=False):
    """Write a checkpoint of a run with its three files, and return its folder."""
    checkpoints = Run(run).checkpoints
    temporary = checkpoints.begin(step)
    checkpoints.write_state(temporary, {"step": step})
    for name in ("ema", "model"):
        (temporary / name).mkdir()
        (temporary / name / "model.safetensors").write_text(f"the weights of {name}")
    if fail:
        raise OSError("disk full")
    checkpoints.finish(step, temporary, keep=keep, best=best)
    return checkpoints.path(step)


def steps(run):
    return [step for step, _ in Run(run).checkpoints.all()]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path, 7)


class TestDamage:
    def test_an_intact_checkpoint_has_none(self, checkpoint):
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        assert (manifest["format"], manifest["step"]) == (1, 7)
        assert list(manifest["files"]) == [
            "ema/model.safetensors",
            "model/model.safetensors",
            "state.json",
        ]
        assert Checkpoints.damage_of(checkpoint) is None
        link = checkpoint.with_name("best")
        link.symlink_to(checkpoint)
        assert Checkpoints.damage_of(link) is None, "it has the name that the link points to"
        renamed = checkpoint.rename(checkpoint.with_name("step-00000008"))
        assert "named step-00000007, as written, but got another name" in str(
            Checkpoints.damage_of(renamed)
        )

    def test_digests_that_are_passed_are_used(self, tmp_path):
        (tmp_path / "state.json").touch()
        write_manifest(tmp_path, 7, {tmp_path / "state.json": "0" * 64})
        with pytest.raises(DamagedError, match=r"state.json` must be as it was written"):
            check_manifest(tmp_path)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("state.json", '{\n  "step": 8\n}', "state.json` must be as it was written"),
            ("state.json", "{}", "state.json` must be a file of 15 bytes, but got one of 2"),
            ("state.json", None, "state.json` must be a file of 15 bytes, but got a missing one"),
            (
                "ema/model.safetensors",
                "the weights of model",
                "ema/model.safetensors` must be a file of 18 bytes",
            ),
            ("manifest.json", None, "must be a checkpoint with manifest.json, but got one without"),
            ("manifest.json", "{", "manifest.json` must be JSON"),
            ("manifest.json", '{"format": 2}', "must be a manifest of format 1, but got format 2"),
        ],
    )
    def test_is_named(self, checkpoint, name, text, message):
        if text is None:
            (checkpoint / name).unlink()
        else:
            (checkpoint / name).write_text(text)
        assert message in str(Checkpoints.damage_of(checkpoint))

    def test_a_model_of_a_copy_is_checked_alone(self, checkpoint):
        copied = checkpoint.with_name("favourite")
        shutil.copytree(checkpoint, copied)
        (copied / "model" / "model.safetensors").write_text("other")
        Checkpoints.check_model(copied / "ema")
        with pytest.raises(DamagedError, match=r"model/model.safetensors` must be a file of"):
            Checkpoints.check_model(copied / "model")

    def test_every_bit_of_a_manifest_counts(self, tmp_path):
        (tmp_path / "a").touch()
        write_manifest(tmp_path, 7)
        path = tmp_path / "manifest.json"
        written = path.read_bytes()
        descriptor = os.open(path, os.O_WRONLY)
        for index, byte in enumerate(written):
            for bit in range(8):
                os.pwrite(descriptor, bytes([byte ^ 1 << bit]), index)
                with pytest.raises(DamagedError, match=r"manifest.json` must be "):
                    check_manifest(tmp_path)
            os.pwrite(descriptor, bytes([byte]), index)
        os.close(descriptor)
        assert len(written) > 240
        assert check_manifest(tmp_path) == 7

    @pytest.mark.parametrize(
        "change",
        [
            {"step": "7"},
            {"files": []},
            {"files": {"state.json": 3}},
            {"files": {"state.json": {"sizd": 15, "sha256": "0"}}},
            {"files": {"state.json": {"size": "15", "sha256": "0"}}},
            {"files": {"/etc/passwd": {"size": 15, "sha256": "0"}}},
            {"files": {"../step-00000007/state.json": {"size": 15, "sha256": "0"}}},
            {"files": {"state.json\0": {"size": 15, "sha256": "0"}}},
        ],
    )
    def test_a_manifest_of_an_older_version_has_no_digest_of_itself(self, checkpoint, change):
        path = checkpoint / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["digest"]
        path.write_text(json.dumps(manifest))
        assert Checkpoints.damage_of(checkpoint) is None
        path.write_text(json.dumps(manifest | change))
        message = "manifest.json` must be as it was written, but got other values"
        assert message in str(Checkpoints.damage_of(checkpoint))

    @pytest.mark.parametrize("name", ["manifest.json", "ema/model.safetensors"])
    def test_a_file_that_cannot_be_read_is_damage(self, checkpoint, monkeypatch, name):
        class Failing(io.BytesIO):
            def read(self, _=-1):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            def fileno(self):
                return descriptor

        descriptor = os.open(checkpoint / name, os.O_RDONLY)
        opened = files.open_regular

        def open_failing(path, **options):
            return Failing() if path == checkpoint / name else opened(path, **options)

        monkeypatch.setattr(files, "open_regular", open_failing)
        error = str(Checkpoints.damage_of(checkpoint))
        os.close(descriptor)
        assert "Input/output error" in error
        assert str(checkpoint / name) in error

    @pytest.mark.parametrize("name", ["state.json", "ema", "manifest.json"])
    def test_a_link_is_not_followed_out_of_the_checkpoint(self, checkpoint, tmp_path, name):
        (checkpoint / name).rename(tmp_path / "elsewhere")
        (checkpoint / name).symlink_to(tmp_path / "elsewhere")
        expected = (
            "with manifest.json, but got one without"
            if name == "manifest.json"
            else "a symbolic link"
        )
        assert expected in str(Checkpoints.damage_of(checkpoint))


class TestNewestIntact:
    def test_damaged_ones_are_kept_aside(self, tmp_path):
        folders = [write_checkpoint(tmp_path, step) for step in (1, 2, 3)]
        assert Run(tmp_path).checkpoints.newest_intact() == (folders[2], [])
        (folders[1] / "state.json").unlink()
        for name in ("manifest.json", "state.json"):
            (folders[2] / name).unlink()
        assert steps(tmp_path) == [1, 2, 3], "it has weights"
        checkpoint, notes = Run(tmp_path).checkpoints.newest_intact()
        assert checkpoint == folders[0]
        messages = (
            f"{folders[2]}` must be a checkpoint with",
            f"{folders[1]}/state.json` must be a file of 15 bytes",
        )
        for folder, message, note in zip(folders[:0:-1], messages, notes, strict=True):
            aside = folder.with_name(f"damaged-{folder.name}")
            assert message in note
            assert note.endswith(f"It is now {aside}.")
            assert (aside / "ema").is_dir()
        assert Run(tmp_path).checkpoints.newest_intact() == (folders[0], [])

    def test_a_second_damaged_one_of_a_step_gets_another_name(self, tmp_path):
        write_checkpoint(tmp_path, 1)
        for _ in range(2):
            (write_checkpoint(tmp_path, 2) / "state.json").unlink()
            Run(tmp_path).checkpoints.newest_intact()
        assert names(tmp_path / "checkpoints") == [
            "damaged-step-00000002",
            "damaged-step-00000002-1",
            "step-00000001",
        ]

    def test_if_all_are_damaged_nothing_is_moved(self, checkpoint, tmp_path):
        (checkpoint / "state.json").unlink()
        with pytest.raises(
            DamagedError, match=rf"No checkpoint of {tmp_path} is intact.*state.json.*missing one.*"
        ):
            Run(tmp_path).checkpoints.newest_intact()
        assert checkpoint.is_dir()

    def test_what_only_has_the_name_of_a_checkpoint_is_named_and_stays(self, checkpoint, tmp_path):
        folder = checkpoint.with_name("step-00000009")
        file = checkpoint.with_name("step-00000008")
        folder.mkdir()
        (folder / "mine.mp4").touch()
        file.touch()
        assert steps(tmp_path) == [7]
        newest, notes = Run(tmp_path).checkpoints.newest_intact()
        assert newest == checkpoint
        assert notes == [
            f"{path} is no checkpoint, as it has no file of one. It stays as it is."
            for path in (file, folder)
        ]
        assert file.exists()
        write_checkpoint(tmp_path, 9)
        assert (folder.with_name("damaged-step-00000009") / "mine.mp4").exists()
        assert steps(tmp_path) == [7, 9]

    def test_a_kill_between_two_names_of_a_checkpoint_keeps_it(self, checkpoint, tmp_path):
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.replaced"))
        assert Run(tmp_path).checkpoints.newest_intact() == (checkpoint, [])
        assert names(checkpoint.parent) == [checkpoint.name]


def test_a_checkpoint_appears_under_its_step_and_replaces_that_of_the_same_step(
    checkpoint, tmp_path
):
    (checkpoint / "old").touch()
    write_checkpoint(tmp_path, 7)
    assert Run(tmp_path).checkpoints.all() == [(7, checkpoint)]
    assert names(checkpoint.parent) == ["step-00000007"]
    assert not (checkpoint / "old").exists()
    assert find_checkpoint(tmp_path) == find_checkpoint(checkpoint) == checkpoint
    assert find_checkpoint(tmp_path / "elsewhere") is None


def test_the_plain_values_are_read(checkpoint):
    assert Checkpoints.read_state(checkpoint, {"step"}) == {"step": 7}
    with pytest.raises(
        ValueError, match=r"state.json` must be that of .* this version, but got one without scaler"
    ):
        Checkpoints.read_state(checkpoint, {"step", "scaler"})


@pytest.mark.parametrize("step", [7, 8])
def test_a_checkpoint_that_fails_half_way_never_appears_and_keeps_the_old_one(
    checkpoint, tmp_path, step
):
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, step, keep=1, fail=True)
    assert Run(tmp_path).checkpoints.all() == [(7, checkpoint)]
    write_checkpoint(tmp_path, 9)
    assert names(tmp_path / "checkpoints") == ["step-00000007", "step-00000009"]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 10, 3):
        write_checkpoint(tmp_path, step, keep=2)
    assert steps(tmp_path) == [3, 10]


def test_the_best_checkpoint_is_kept_and_linked(tmp_path):
    for step, best in (
        (1, 1),
        (2, 1),
        (3, None),
    ):  # the run trains on without the metric that has found it
        write_checkpoint(tmp_path, step, keep=1, best=best)
        assert (tmp_path / "best").resolve() == Run(tmp_path).checkpoints.path(1).resolve()
    assert steps(tmp_path) == [1, 3]
    assert find_checkpoint(tmp_path / "best") == tmp_path / "best"
    write_checkpoint(tmp_path, 4, keep=1, best=4)
    assert steps(tmp_path) == [4]
    shutil.rmtree(Run(tmp_path).checkpoints.path(4))
    write_checkpoint(tmp_path, 5, keep=1)
    assert not (tmp_path / "best").is_symlink(), "it pointed to nothing"


def test_a_folder_in_place_of_the_link_to_the_best_is_replaced(tmp_path):
    write_checkpoint(tmp_path / "run", 1, best=1)
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "run", copied)
    assert not (copied / "best").is_symlink()
    (copied / ".best.deleted").mkdir()  # left by an interrupted deletion
    (copied / "checkpoints" / ".step-00000001.deleted" / "ema").mkdir(parents=True)
    write_checkpoint(copied, 2, keep=1, best=2)
    assert (copied / "best").resolve() == Run(copied).checkpoints.path(2).resolve()
    assert names(copied) == ["best", "checkpoints"]
    assert names(copied / "checkpoints") == ["step-00000002"]


def test_every_file_is_flushed_and_closed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)

    def lowest_free_descriptor():
        descriptor = os.open(tmp_path, os.O_RDONLY)
        os.close(descriptor)
        return descriptor

    before = lowest_free_descriptor()
    write_checkpoint(tmp_path, 1)
    assert len(flushed) == 7 + 2, (
        "four files, two folders, that of the checkpoint; then those in which it was renamed"
    )
    assert lowest_free_descriptor() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("state.json", lambda folder: Checkpoints.write_state(folder, {"step": 1})),
        ("manifest.json", lambda folder: write_manifest(folder, 1)),
    ],
)
def test_an_error_of_the_disk_names_the_file_of_a_checkpoint(tmp_path, name, write):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '.*{name}'"):
        write(tmp_path)
