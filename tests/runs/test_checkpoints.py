"""Checkpoints appear whole, are checked by their manifest, and are removed when they are old."""

import errno
import io
import json
import os
import shutil

import pytest

from telecine.__main__ import main
from telecine.base import files
from telecine.runs import DamagedError, Run, find_checkpoint
from telecine.runs.checkpoints import Checkpoints
from telecine.runs.manifest import check_manifest, write_manifest


@pytest.fixture
def checkpoint(tmp_path):
    """Return the folder of a checkpoint at step 7, with two folders of weights."""
    folder = tmp_path / "step-00000007"
    for name in ("ema/model.safetensors", "model/model.safetensors", "state.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"the contents of {name}")
    write_manifest(folder, 7)
    return folder


def test_the_manifest_lists_every_file(checkpoint):
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"]) == (1, 7)
    assert list(manifest["files"]) == ["ema/model.safetensors", "model/model.safetensors", "state.json"]
    assert Checkpoints.damage_of(checkpoint) is None


def test_digests_that_others_have_computed_are_used(checkpoint):
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, 7, {checkpoint / "state.json": "0" * 64})
    with pytest.raises(DamagedError, match=r"state.json` must be as it was written"):
        check_manifest(checkpoint)


def swap(folder):
    for old, new in (("ema", "other"), ("model", "ema"), ("other", "model")):
        (folder / old).rename(folder / new)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "state.json").write_text("the contents of state.jsom"),
            "state.json` must be as it was written",
        ),
        (lambda f: (f / "state.json").write_text("the"), "state.json` must be a file of 26 bytes, but got one of 3"),
        (lambda f: (f / "state.json").unlink(), "state.json` must be a file of 26 bytes, but got a missing one"),
        (swap, "ema/model.safetensors` must be a file of"),
        (lambda f: (f / "manifest.json").unlink(), "must be a checkpoint with manifest.json, but got one without"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json` must be JSON"),
        (
            lambda f: (f / "manifest.json").write_text('{"format": 2}'),
            "must be a manifest of format 1, but got format 2",
        ),
    ],
)
def test_damage_is_named(checkpoint, damage, message):
    damage(checkpoint)
    with pytest.raises(DamagedError, match=message):
        check_manifest(checkpoint)


def test_a_checkpoint_with_the_name_of_another_step(checkpoint):
    renamed = checkpoint.rename(checkpoint.with_name("step-00000008"))
    assert "named step-00000007, as written, but got another name" in str(Checkpoints.damage_of(renamed))


def test_a_part_of_a_copy_with_another_name(checkpoint):
    copied = checkpoint.with_name("favourite")
    shutil.copytree(checkpoint, copied)
    (copied / "model" / "model.safetensors").write_text("other")
    check_manifest(copied, part="ema")
    with pytest.raises(DamagedError, match=r"model/model.safetensors` must be a file of"):
        check_manifest(copied, part="model")


def test_a_link_to_a_checkpoint_has_the_name_that_it_points_to(checkpoint):
    link = checkpoint.with_name("best")
    link.symlink_to(checkpoint)
    check_manifest(link)


def write_checkpoint(run, step, write, **options):
    checkpoints = Run(run).checkpoints
    folder = checkpoints.begin(step)
    write(folder)
    checkpoints.finish(step, folder, **options)
    return checkpoints.path(step)


def write_state(folder):
    (folder / "state.json").write_text("{}")
    (folder / "ema").mkdir()


def test_a_checkpoint_appears_under_its_step(tmp_path):
    folder = write_checkpoint(tmp_path, 7, write_state, keep=2)
    assert Run(tmp_path).checkpoints.all() == [(7, folder)]
    assert find_checkpoint(tmp_path) == folder
    assert find_checkpoint(folder) == folder


def test_a_checkpoint_that_fails_half_way_never_appears_and_keeps_the_old_one(tmp_path):
    old = write_checkpoint(tmp_path, 1, write_state, keep=2)

    def fail(folder):
        write_state(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, 2, fail, keep=2)
    assert Run(tmp_path).checkpoints.all() == [(1, old)]
    assert write_checkpoint(tmp_path, 3, write_state, keep=2).is_dir()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000001", "step-00000003"]


def test_all_single_bit_flips_of_a_manifest_are_damage(tmp_path):
    folder = tmp_path / "step-00000007"
    folder.mkdir()
    (folder / "a").touch()
    write_manifest(folder, 7)
    path = folder / "manifest.json"
    written, num_flips = path.read_bytes(), 0
    descriptor = os.open(path, os.O_WRONLY)
    for index, byte in enumerate(written):
        for bit in range(8):
            os.pwrite(descriptor, bytes([byte ^ 1 << bit]), index)
            with pytest.raises(DamagedError, match=r"manifest.json` must be "):
                check_manifest(folder)
            num_flips += 1
        os.pwrite(descriptor, bytes([byte]), index)
    os.close(descriptor)
    assert num_flips == 8 * len(written) > 1900
    assert Checkpoints.damage_of(folder) is None


def test_a_manifest_of_an_older_version_has_no_digest_of_itself(checkpoint):
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    assert len(manifest.pop("digest")) == 64
    path.write_text(json.dumps(manifest))
    assert Checkpoints.damage_of(checkpoint) is None
    entry = manifest["files"].pop("state.json")
    for name, other in (
        ("state.json", {"sizd": 26, "sha256": entry["sha256"]}),
        ("state.json", 3),
        ("state.json", entry | {"size": "26"}),
        ("/etc/passwd", entry),
        ("../step-00000007/state.json", entry),
        ("state.json\0", entry),
    ):
        path.write_text(json.dumps(manifest | {"files": manifest["files"] | {name: other}}))
        with pytest.raises(DamagedError, match=r"manifest.json` must be as it was written, but got other values"):
            check_manifest(checkpoint)
    for key, other in (("step", "7"), ("files", [])):
        path.write_text(json.dumps(manifest | {key: other}))
        with pytest.raises(DamagedError, match=r"manifest.json` must be as it was written"):
            check_manifest(checkpoint)


def test_a_flipped_bit_of_a_manifest_leads_back_to_the_checkpoint_before(tmp_path, capsys):
    first, second = (write_checkpoint(tmp_path, step, write_tensors, keep=2) for step in (1, 2))
    path = second / "manifest.json"
    path.write_text(path.read_text().replace('"size"', '"sizd"', 1))
    assert main(["checkpoint", "verify", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert f"{first}: intact\n{second}: damaged" in printed.out
    assert "manifest.json` must be as it was written" in printed.err
    found, (note,) = Run(tmp_path).checkpoints.newest_intact()
    assert found == first
    assert "damaged-step-00000002" in note


@pytest.mark.parametrize("name", ["manifest.json", "optimizer.safetensors"])
def test_a_file_that_cannot_be_read_is_damage(tmp_path, monkeypatch, name):
    folder = write_checkpoint(tmp_path, 1, write_tensors, keep=2)

    class Failing(io.BytesIO):
        def read(self, _=-1):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def fileno(self):
            return descriptor

    descriptor = os.open(folder / name, os.O_RDONLY)
    opened = files.open_regular
    fail = lambda path, **options: Failing() if path == folder / name else opened(path, **options)  # noqa: E731
    monkeypatch.setattr(files, "open_regular", fail)
    error = str(Checkpoints.damage_of(folder))
    os.close(descriptor)
    assert "Input/output error" in error
    assert str(folder / name) in error


@pytest.mark.parametrize("name", ["optimizer.safetensors", "ema", "manifest.json"])
def test_a_link_in_a_checkpoint_is_not_followed_out_of_it(tmp_path, name):
    folder = write_checkpoint(tmp_path, 1, lambda each: (write_tensors(each), (each / "ema" / "x").touch()), keep=2)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    expected = "a checkpoint with manifest.json, but got one without" if name == "manifest.json" else "a symbolic link"
    assert expected in str(Checkpoints.damage_of(folder))


def lose_both(folder):
    for name in ("manifest.json", "state.json"):
        (folder / name).unlink()


def test_a_checkpoint_that_lost_its_manifest_and_its_state_is_damaged(tmp_path):
    first, second = (write_checkpoint(tmp_path, step, write_tensors, keep=2) for step in (1, 2))
    lose_both(second)
    assert [step for step, _ in Run(tmp_path).checkpoints.all()] == [1, 2]
    found, (note,) = Run(tmp_path).checkpoints.newest_intact()
    assert found == first
    aside = second.with_name("damaged-step-00000002")
    assert f"{second}` must be a checkpoint with manifest.json" in note
    assert note.endswith(f"It is now {aside}.")
    lose_both(first)
    with pytest.raises(DamagedError, match=rf"No checkpoint of {tmp_path} is intact.*step-00000001` must be a checkp"):
        Run(tmp_path).checkpoints.newest_intact()
    assert (first / "optimizer.safetensors").is_file()


def test_what_only_has_the_name_of_a_checkpoint_is_named_and_stays(tmp_path):
    first = write_checkpoint(tmp_path, 1, write_tensors, keep=2)
    folder, file = first.with_name("step-00000003"), first.with_name("step-00000002")
    folder.mkdir()
    (folder / "mine.mp4").touch()
    file.touch()
    found, notes = Run(tmp_path).checkpoints.newest_intact()
    assert found == first
    assert notes == [
        f"{path} is no checkpoint, as it has no file of one. It stays as it is." for path in (file, folder)
    ]
    assert file.exists()
    write_checkpoint(tmp_path, 3, write_tensors, keep=2)
    assert (folder.with_name("damaged-step-00000003") / "mine.mp4").exists()
    assert [step for step, _ in Run(tmp_path).checkpoints.all()] == [1, 3]


def test_a_folder_without_its_state_file_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "step-00000009").mkdir(parents=True)
    assert Run(tmp_path).checkpoints.all() == []


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 10, 3):
        write_checkpoint(tmp_path, step, write_state, keep=2)
    assert [step for step, _ in Run(tmp_path).checkpoints.all()] == [3, 10]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    write_checkpoint(tmp_path, 1, write_state, keep=2)

    def write_more(folder):
        write_state(folder)
        (folder / "new").touch()

    assert (write_checkpoint(tmp_path, 1, write_more, keep=2) / "new").exists()
    assert len(Run(tmp_path).checkpoints.all()) == 1


def test_a_replacement_that_fails_keeps_the_old_checkpoint(tmp_path):
    old = write_checkpoint(tmp_path, 1, write_state, keep=1)
    (old / "old").touch()

    def fail(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 1, fail, keep=1)
    assert (old / "old").exists()
    assert Run(tmp_path).checkpoints.all() == [(1, old)]


def test_the_best_checkpoint_is_kept_and_linked(tmp_path):
    write_checkpoint(tmp_path, 1, write_state, keep=1, best=1)
    for step in (2, 3):
        write_checkpoint(tmp_path, step, write_state, keep=1, best=1)
    assert [step for step, _ in Run(tmp_path).checkpoints.all()] == [1, 3]
    assert (tmp_path / "best").resolve() == Run(tmp_path).checkpoints.all()[0][1].resolve()
    assert find_checkpoint(tmp_path / "best") == tmp_path / "best"
    write_checkpoint(tmp_path, 4, write_state, keep=1, best=4)
    assert [step for step, _ in Run(tmp_path).checkpoints.all()] == [4]
    assert (tmp_path / "best").resolve() == Run(tmp_path).checkpoints.all()[0][1].resolve()


def test_without_a_best_step_the_checkpoint_of_the_link_is_kept(tmp_path):
    """The run is trained on without the metric that has found it."""
    write_checkpoint(tmp_path, 1, write_state, keep=1, best=1)
    for step in (2, 3):
        write_checkpoint(tmp_path, step, write_state, keep=1)
    assert [step for step, _ in Run(tmp_path).checkpoints.all()] == [1, 3]
    assert (tmp_path / "best").resolve() == Run(tmp_path).checkpoints.path(1).resolve()


def test_a_link_to_no_checkpoint_is_removed(tmp_path):
    shutil.rmtree(write_checkpoint(tmp_path, 1, write_state, keep=1, best=1))
    write_checkpoint(tmp_path, 2, write_state, keep=1)
    assert not (tmp_path / "best").is_symlink()


def test_a_folder_in_place_of_the_link_to_the_best_is_replaced(tmp_path):
    write_checkpoint(tmp_path / "run", 1, write_state, keep=1, best=1)
    shutil.copytree(tmp_path / "run", tmp_path / "copied")
    copied = tmp_path / "copied"
    assert not (copied / "best").is_symlink()
    write_checkpoint(copied, 2, write_state, keep=1, best=2)
    assert (copied / "best").resolve() == Run(copied).checkpoints.all()[0][1].resolve()
    assert sorted(path.name for path in copied.iterdir()) == ["best", "checkpoints"]


def test_what_an_interrupted_deletion_left_is_removed(tmp_path):
    write_checkpoint(tmp_path, 1, write_state, keep=1)
    (tmp_path / "checkpoints" / ".step-00000001.deleted" / "ema").mkdir(parents=True)
    (tmp_path / ".best.deleted").mkdir()
    (tmp_path / "best").mkdir()
    write_checkpoint(tmp_path, 2, write_state, keep=1, best=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoints"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def flip_a_bit(path):
    """Change one bit in the middle of a file, which keeps its size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_tensors(folder):
    write_state(folder)
    (folder / "optimizer.safetensors").write_bytes(bytes(64))


def test_the_newest_intact_checkpoint_is_used_and_damaged_ones_are_kept_aside(tmp_path):
    folders = [write_checkpoint(tmp_path, step, write_tensors, keep=4) for step in (1, 2, 3)]
    assert Run(tmp_path).checkpoints.newest_intact() == (folders[2], [])
    for folder in folders[1:]:
        flip_a_bit(folder / "optimizer.safetensors")
    found, notes = Run(tmp_path).checkpoints.newest_intact()
    assert found == folders[0]
    assert len(notes) == 2
    for folder, note in zip(folders[:0:-1], notes, strict=True):
        aside = folder.with_name(f"damaged-{folder.name}")
        assert f"{folder}/optimizer.safetensors` must be as it was written" in note
        assert note.endswith(f"It is now {aside}.")
        assert (aside / "optimizer.safetensors").is_file()
    assert Run(tmp_path).checkpoints.newest_intact() == (folders[0], [])


def test_without_an_intact_checkpoint_nothing_is_moved(tmp_path):
    folder = write_checkpoint(tmp_path, 1, write_tensors, keep=4)
    (folder / "state.json").unlink()
    with pytest.raises(ValueError, match=rf"No checkpoint of {tmp_path} is intact.*state.json.*a missing one.*move"):
        Run(tmp_path).checkpoints.newest_intact()
    assert folder.is_dir()


def test_a_second_damaged_checkpoint_of_a_step_gets_another_name(tmp_path):
    for number in (0, 1):
        write_checkpoint(tmp_path, 1, write_tensors, keep=4)
        flip_a_bit(write_checkpoint(tmp_path, 2, write_tensors, keep=4) / "optimizer.safetensors")
        Run(tmp_path).checkpoints.newest_intact()
        aside = [path.name for path in (tmp_path / "checkpoints").glob("damaged-*")]
        assert sorted(aside) == ["damaged-step-00000002", "damaged-step-00000002-1"][: number + 1]


def test_every_file_is_flushed_and_closed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)

    def lowest_free_descriptor():
        descriptor = os.open(tmp_path, os.O_RDONLY)
        os.close(descriptor)
        return descriptor

    before = lowest_free_descriptor()
    write_checkpoint(tmp_path, 1, write_state, keep=1)
    assert len(flushed) == 4 + 2, "two files, a folder, that of the checkpoint; then those in which it was renamed"
    assert lowest_free_descriptor() == before


def test_a_kill_between_two_names_of_a_checkpoint_keeps_it(tmp_path):
    path, checkpoints = write_checkpoint(tmp_path, 4, write_tensors, keep=1), Checkpoints(tmp_path)
    path.rename(path.with_name(f".{path.name}.replaced"))
    assert checkpoints.newest_intact() == (path, [])
    assert [each.name for each in checkpoints.folder.iterdir()] == [path.name]
