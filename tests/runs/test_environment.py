"""What a run records of its environment."""

import shutil
import subprocess

import pytest
import torch

from telecine.runs import Run
from telecine.runs import environment as module
from telecine.runs.environment import environment, git_revision


class TestEnvironment:
    def test_is_written_and_read(self, tmp_path):
        Run(tmp_path).write_environment(environment(torch.device("cpu")))
        values = Run(tmp_path).environment()
        assert values == environment(torch.device("cpu"))
        assert (
            values["torch"].split("+")[0] == torch.__version__.split("+")[0]
        )  # some builds have "+cu132" in one only
        assert values["device"].endswith("cores (cpu)")
        assert {"python", "telecine", "platform", "threads"} <= set(values)
        assert all(values.values())

    def test_a_run_without_the_file_has_none(self, tmp_path):
        assert Run(tmp_path).environment() == {}

    def test_packages_that_are_not_installed_are_left_out(self, monkeypatch):
        monkeypatch.setattr(module, "_PACKAGES", ("torch", "a-package-that-does-not-exist"))
        values = environment(torch.device("cpu"))
        assert "torch" in values
        assert "a-package-that-does-not-exist" not in values

    def test_other_devices_are_named(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Fast One")
        assert environment(torch.device("cuda"))["device"] == "Fast One (cuda)"
        assert environment(torch.device("mps"))["device"] == "mps"


def git(folder, *arguments):
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_git_revision_tells_changed_files_and_runs_nothing_that_the_repository_names(tmp_path):
    assert git_revision(tmp_path) == ""
    git(tmp_path, "init")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "a")
    revision = git_revision(tmp_path)
    assert len(revision) == 40
    (tmp_path / "file").write_text("b")
    (tmp_path / "monitor").write_text(f"#!/bin/sh\ntouch {tmp_path}/was_run\n")
    (tmp_path / "monitor").chmod(0o755)
    git(tmp_path, "config", "core.fsmonitor", str(tmp_path / "monitor"))
    assert git_revision(tmp_path) == f"{revision} + changes"
    assert not (tmp_path / "was_run").exists()


def test_without_git_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert git_revision(tmp_path) == ""
    assert "git revision" not in environment(torch.device("cpu"))
