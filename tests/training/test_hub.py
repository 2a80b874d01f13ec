"""What is uploaded, and when; the Hub itself is stood in for, as no test may reach it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError
from rich.console import Console

from telecine.autoencoders import CausalVAE
from telecine.training import hub, train


@pytest.fixture
def the_hub(monkeypatch):
    """Stand in for the Hub: return what was created and the files of what was uploaded."""
    created, uploaded = [], []

    def create_repo(name, *, exist_ok):
        assert exist_ok
        created.append(name)
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(*, repo_id, folder_path, commit_message):
        CausalVAE.from_pretrained(folder_path)
        names = sorted(path.name for path in Path(folder_path).iterdir())
        uploaded.append((repo_id, names, commit_message, (folder_path / "README.md").read_text()))

    monkeypatch.setattr(hub, "create_repo", create_repo)
    monkeypatch.setattr(hub, "upload_folder", upload_folder)
    return created, uploaded


def test_the_averaged_weights_are_uploaded_with_a_card(tiny, the_hub):
    created, uploaded = the_hub
    train(tiny(steps=1, push_to_hub=True, hub_model_id="faces"), console=Console(quiet=True))
    assert created == ["faces"]
    ((name, files, message, card),) = uploaded
    assert (name, message) == ("me/faces", "Weights after 1 updates")
    assert files == ["README.md", "config.json", "model.safetensors"]
    assert "library_name: telecine" in card
    assert "| psnr | " in card


def test_the_repository_is_named_after_the_run(tiny, the_hub):
    created, _ = the_hub
    assert hub.create_repository(tiny()) == "me/run"
    assert created == ["run"]


def test_a_missing_token_is_known_before_anything_is_trained(tiny, monkeypatch):
    def refuse(*_, **__):
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(ValueError, match=r"`push_to_hub` must be possible.*hf auth login"):
        train(tiny(push_to_hub=True), console=Console(quiet=True))
    assert not Path(tiny().output_dir).exists()
