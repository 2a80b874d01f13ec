import shutil
import subprocess

import pytest
import torch

from telecine.report import environment as module
from telecine.report.environment import environment, git_revision, read_environment, write_environment


def test_what_was_written_is_read(tmp_path):
    write_environment(tmp_path, torch.device("cpu"))
    stated = read_environment(tmp_path)
    assert stated == environment(torch.device("cpu"))
    assert stated["torch"] == torch.__version__
    assert stated["device"].endswith("cores (cpu)")
    assert {"python", "telecine", "platform", "threads"} <= set(stated)
    assert all(stated.values())


def test_a_run_without_one_has_none(tmp_path):
    assert read_environment(tmp_path) == {}


def git(folder, *arguments):
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_revision_says_whether_files_were_changed(tmp_path):
    assert git_revision(tmp_path) == ""
    git(tmp_path, "init")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "a")
    revision = git_revision(tmp_path)
    assert len(revision) == 40
    (tmp_path / "file").write_text("b")
    assert git_revision(tmp_path) == f"{revision} + changes"


def test_without_git_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert git_revision(tmp_path) == ""
    assert "git revision" not in environment(torch.device("cpu"))


def test_other_devices_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Fast One")
    assert environment(torch.device("cuda"))["device"] == "Fast One (cuda)"
    assert environment(torch.device("mps"))["device"] == "mps"
