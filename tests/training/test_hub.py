"""What is uploaded, and when. No test reaches the Hub: a fake replaces it."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from rich.console import Console

from telecine.models import CausalVAE
from telecine.training import hub, train


@pytest.fixture
def fake_hub(monkeypatch):
    """Replace the Hub; return the created repositories and the uploaded files."""
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


@pytest.mark.slow
def test_the_averaged_weights_are_uploaded_with_a_card(tiny, fake_hub):
    created, uploaded = fake_hub
    train(tiny(steps=1, push_to_hub=True, hub_model_id="faces"), console=Console(quiet=True))
    assert created == ["faces"]
    ((name, files, message, card),) = uploaded
    assert (name, message) == ("me/faces", "Weights after 1 updates")
    assert files == ["README.md", "config.json", "model.safetensors"]
    assert "library_name: telecine" in card
    assert "| psnr | " in card


def test_a_hub_that_cannot_be_reached_is_one_error(monkeypatch):
    monkeypatch.setattr(hub, "create_repo", HfApi(endpoint="http://127.0.0.1:1", token="hf_x").create_repo)
    with pytest.raises(ValueError, match=r"`push_to_hub` must be false without .*, but got ConnectError: .*refused"):
        hub.create_repository("run")


def test_a_name_that_the_hub_does_not_accept_is_one_error():
    with pytest.raises(ValueError, match=r"`push_to_hub` must be false without .*'my run'.* check `hub_model_id`"):
        hub.create_repository("my run")


@pytest.mark.slow
def test_a_finished_run_repeats_an_upload_that_failed(tiny, fake_hub, monkeypatch):
    _, uploaded = fake_hub
    config = tiny(steps=1, push_to_hub=True)
    upload_folder = hub.upload_folder

    def fail(**_):
        raise OSError("the network is down")

    monkeypatch.setattr(hub, "upload_folder", fail)
    with pytest.raises(ValueError, match=r"the network is down.*The run is complete.*same command again"):
        train(config, console=Console(quiet=True))
    monkeypatch.setattr(hub, "upload_folder", upload_folder)
    train(config, console=Console(quiet=True))
    assert [(name, message) for name, _, message, _ in uploaded] == [("me/run", "Weights after 1 updates")]


@pytest.mark.parametrize(
    ("model", "base"), [(None, "telecine."), ("Wan-AI/Wan2.1", "telecine from Wan-AI/Wan2.1."), ("here", "telecine.")]
)
@pytest.mark.parametrize(
    ("written", "library"),
    [({"_class_name": "CausalVAE"}, "telecine"), ({"_diffusers_version": "0.35.0"}, "diffusers"), (None, "telecine")],
)
def test_the_card_names_the_library_and_no_local_path(tiny, tmp_path, monkeypatch, written, library, model, base):
    cards = []
    monkeypatch.setattr(hub, "upload_folder", lambda folder_path, **_: cards.append(folder_path / "README.md"))
    (tmp_path / "ema").mkdir()
    if written is not None:
        (tmp_path / "ema" / "config.json").write_text(json.dumps(written))
    (tmp_path / "local" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = tiny(model="local/folder" if model == "here" else model)
    hub.upload("me/faces", tmp_path, config.model, {"psnr": 30.0}, steps=7)
    text = cards[0].read_text()
    assert f"library_name: {library}\n" in text
    assert f"trained with {base}\n" in text
    assert "config.yaml" not in text, "it is not uploaded"


def test_the_repository_is_named_after_the_run(tiny, fake_hub):
    created, _ = fake_hub
    assert hub.create_repository("run") == "me/run"
    assert created == ["run"]


def test_a_missing_token_is_reported_before_training(tiny, monkeypatch):
    def refuse(*_, **__):
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(ValueError, match=r"`push_to_hub` must be false without access to the Hub.*hf auth login"):
        train(tiny(push_to_hub=True), console=Console(quiet=True))
    assert not Path(tiny().output_dir).exists()


class Hub(BaseHTTPRequestHandler):
    """Answers the requests of an upload as the Hub does, and records them on its server."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        self.server.requests.append((path, self.headers["Authorization"], body))
        text = json.dumps(self.answer(path, body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def answer(self, path, body):
        url = f"{self.server.url}/me/faces"
        if path == "/api/repos/create":
            return {"url": url, "name": "me/faces"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": file["path"], **regular} for file in json.loads(body)["files"]]}
        assert path.endswith("/commit/main"), path
        return {"success": True, "commitOid": "0" * 40, "commitUrl": f"{url}/commit/{'0' * 40}"}

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """Start a server in this process, to which huggingface_hub connects."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.url, server.requests = f"http://127.0.0.1:{server.server_port}", []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(hub.create_repo.__self__, "endpoint", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server
        server.shutdown()


def test_the_requests_of_an_upload(tiny, server, tmp_path):
    """`huggingface_hub` sends a model of a few kilobytes inside the commit."""
    config = tiny(hub_model_id="faces")
    CausalVAE(config.causal_vae).save_pretrained(tmp_path / "ema")
    repository = hub.create_repository(config.hub_model_id)
    hub.upload(repository, tmp_path, config.model, {"psnr": 30.0}, steps=7)
    assert repository == "me/faces"
    paths, tokens, bodies = zip(*server.requests, strict=True)
    assert set(tokens) == {"Bearer hf_secret"}
    assert json.loads(bodies[0])["name"] == "faces"
    assert paths[0] == "/api/repos/create"
    assert paths[-1] == "/api/models/me/faces/commit/main"
    header, *files = [json.loads(line) for line in bodies[-1].splitlines()]
    assert header["value"]["summary"] == "Weights after 7 updates"
    for file in files:
        name, content = file["value"]["path"], base64.b64decode(file["value"]["content"])
        (tmp_path / "back").mkdir(exist_ok=True)
        (tmp_path / "back" / name).write_bytes(content)
    assert "| psnr | 30.0000 |" in (tmp_path / "back" / "README.md").read_text()
    sent, kept = (CausalVAE.from_pretrained(tmp_path / folder).state_dict() for folder in ("back", "ema"))
    assert all(torch.equal(sent[name], tensor) for name, tensor in kept.items())
