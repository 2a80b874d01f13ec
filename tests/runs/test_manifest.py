import json
import shutil

import pytest

from telecine.runs.manifest import DamagedError, check_manifest, damage_of, write_manifest
from telecine.runs.layout import MANIFEST_FILE


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
    manifest = json.loads((checkpoint / MANIFEST_FILE).read_text())
    assert (manifest["format"], manifest["step"]) == (1, 7)
    assert list(manifest["files"]) == ["ema/model.safetensors", "model/model.safetensors", "state.json"]
    assert damage_of(checkpoint) is None


def test_digests_that_others_have_computed_are_used(checkpoint):
    (checkpoint / MANIFEST_FILE).unlink()
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
        (lambda f: (f / MANIFEST_FILE).unlink(), "must be a checkpoint with manifest.json, but got one without"),
        (lambda f: (f / MANIFEST_FILE).write_text("{"), "manifest.json` must be JSON"),
        (lambda f: (f / MANIFEST_FILE).write_text('{"format": 2}'), "must be a manifest of format 1, but got format 2"),
    ],
)
def test_damage_is_named(checkpoint, damage, message):
    damage(checkpoint)
    with pytest.raises(DamagedError, match=message):
        check_manifest(checkpoint)


def test_a_checkpoint_with_the_name_of_another_step(checkpoint):
    renamed = checkpoint.rename(checkpoint.with_name("step-00000008"))
    assert "named step-00000007, as written, but got another name" in str(damage_of(renamed))


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
