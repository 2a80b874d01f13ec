"""A tiny autoencoder, and a list of videos and an image with captions."""

import json

import pytest
import torch
from PIL import Image

from telecine.models import CausalVAE
from telecine.video.write import write_video

from ...evaluation.conftest import TINY
from ...evaluation.videos import waves
from ...models.helpers import add_noise_to_weights


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return add_noise_to_weights(CausalVAE(TINY).eval(), 0.02)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with videos of several lengths and sizes, an image, a broken file, and `list.jsonl` with captions."""
    folder = tmp_path_factory.mktemp("data")
    sizes = {"a": (26, 24, 32), "b": (9, 30, 22), "c": (5, 24, 32), "d": (13, 16, 16)}
    lines = []
    for number, (name, (num_frames, height, width)) in enumerate(sizes.items()):
        frames = waves(num_frames, height, width, number)
        write_video(folder / "videos" / f"{name}.mkv", frames, 25)
        lines.append({"path": f"videos/{name}.mkv", "caption": f"wave {name}", "rating": number})
    Image.fromarray(waves(1, 20, 24)[0].numpy()).save(folder / "videos" / "image.png")
    lines.append({"path": "videos/image.png"})
    lines.append({"path": "videos/a.mkv", "start_frame": 10, "end_frame": 17, "caption": "part"})
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
