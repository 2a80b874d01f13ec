"""What is uploaded, and when. No test reaches the Hub: a server in this process answers in its place."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi

from telecine.models import CausalVAE
from telecine.training import hub, train

from .helpers import LIGHT, assert_equal


class Hub(BaseHTTPRequestHandler):
    """Answers the requests of an upload as the Hub does, and records them on its server."""

    status = 200

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        self.server.requests.append((path, self.headers["Authorization"], body))
        text = json.dumps(self.answer(path, body)).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def answer(self, path, body):
        url = f"{self.server.url}/me/faces"
        if path == "/api/repos/create":
            return {"url": f"{self.server.url}/me/{json.loads(body)['name']}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            return {
                "files": [{"path": file["path"], **regular} for file in json.loads(body)["files"]]
            }
        assert path.endswith("/commit/main"), path
        return {"success": True, "commitOid": "0" * 40, "commitUrl": f"{url}/commit/{'0' * 40}"}

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """Start a server in this process, to which huggingface_hub connects."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.requests = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(hub.create_repo.__self__, "endpoint", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server
        server.shutdown()


def uploads(server, folder):
    """Write the files of the last upload into a folder; return the repository and the message of each upload.

    `huggingface_hub` sends a model of a few kilobytes inside the commit.
    """
    folder.mkdir()
    commits = []
    for path, _, body in server.requests:
        if not path.endswith("/commit/main"):
            continue
        header, *files = [json.loads(line)["value"] for line in body.splitlines()]
        commits.append(
            (path.removeprefix("/api/models/").removesuffix("/commit/main"), header["summary"])
        )
        for file in files:
            (folder / file["path"]).write_bytes(base64.b64decode(file["content"]))
    return commits


@pytest.mark.slow
def test_the_averaged_weights_are_uploaded_with_a_card(tiny, server, tmp_path):
    result = train(tiny(steps=1, push_to_hub=True, hub_model_id="faces"))
    assert {token for _, token, _ in server.requests} == {"Bearer hf_secret"}
    path, _, body = server.requests[0]
    assert (path, json.loads(body)["name"]) == ("/api/repos/create", "faces")
    assert uploads(server, tmp_path / "sent") == [("me/faces", "Weights after 1 updates")]
    files = {file.name for file in (tmp_path / "sent").iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors"}
    card = (tmp_path / "sent" / "README.md").read_text()
    assert "library_name: telecine" in card
    assert f"| psnr | {result.last['psnr']:.4f} |" in card
    sent = CausalVAE.from_pretrained(tmp_path / "sent").state_dict()
    assert_equal(sent, CausalVAE.from_pretrained(result.checkpoint / "ema").state_dict())


@pytest.mark.slow
def test_a_finished_run_repeats_an_upload_that_failed(tiny, server, tmp_path, monkeypatch):
    """The repository is named after the folder of the run."""
    config = tiny(steps=1, push_to_hub=True, **LIGHT)

    def fail(**_):
        raise OSError("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(hub, "upload_folder", fail)
        with pytest.raises(
            ValueError, match=r"the network is down.*The run is complete.*same command again"
        ):
            train(config)
    train(config)
    assert uploads(server, tmp_path / "sent") == [("me/run", "Weights after 1 updates")]


def test_a_hub_that_refuses_or_cannot_be_reached_is_reported_before_training(tiny, monkeypatch):
    api = HfApi(endpoint="http://127.0.0.1:1", token="hf_x")
    monkeypatch.setattr(hub, "create_repo", api.create_repo)
    with pytest.raises(
        ValueError,
        match=r"`push_to_hub` must be false without .*, but got ConnectError: .*refused.* Check the connection to ",
    ):
        train(tiny(push_to_hub=True))
    assert not Path(tiny().output_dir).exists()
    with pytest.raises(
        ValueError, match=r"`push_to_hub` must be false without .*'my run'.* Check `hub_model_id`"
    ):
        hub.create_repository("my run")


def test_a_hub_that_refuses_asks_for_a_login(server, monkeypatch):
    monkeypatch.setattr(Hub, "status", 401)
    with pytest.raises(ValueError, match=r"(?s)but got .*401.* Log in with `hf auth login`"):
        hub.create_repository("me/faces")


@pytest.mark.parametrize(
    ("model", "base", "written", "library"),
    [
        (None, "telecine.", {"_class_name": "CausalVAE"}, "telecine"),
        (
            "Wan-AI/Wan2.1",
            "telecine from Wan-AI/Wan2.1.",
            {"_diffusers_version": "0.35.0"},
            "diffusers",
        ),
        ("local/folder", "telecine.", None, "telecine"),
    ],
)
def test_the_card_names_the_library_and_no_local_path(
    tmp_path, monkeypatch, server, model, base, written, library
):
    monkeypatch.chdir(tmp_path)
    Path("checkpoint/ema").mkdir(parents=True)
    Path("local/folder").mkdir(parents=True)
    if written is not None:
        Path("checkpoint/ema/config.json").write_text(json.dumps(written))
    hub.upload("me/faces", Path("checkpoint"), model, {"psnr": 30.0}, steps=7)
    uploads(server, Path("sent"))
    text = Path("sent/README.md").read_text()
    assert f"library_name: {library}\n" in text
    assert f"trained with {base}\n" in text
    assert "config.yaml" not in text, "it is not uploaded"
