"""Video previews in experiment trackers."""

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image

from telecine.report.clips import PREVIEW, log_preview

FRAMES = (
    torch.arange(4 * 16 * 16)
    .view(4, 16, 16, 1)
    .div(4, rounding_mode="floor")
    .repeat(1, 1, 1, 3)
    .to(torch.uint8)
)


class FakeVideo:
    """Has the signature of `wandb.Video` and, but for the name of the first argument, of `trackio.Video`."""

    def __init__(self, data_or_path, caption=None, fps=None, format=None):
        self.content = Path(data_or_path).read_bytes()
        self.format = format


class FakeTracker:
    """Has the interface of Accelerate's trackers for Weights & Biases and trackio, which need not be installed."""

    def __init__(self, name):
        self.name = name
        self.logged = []

    def log(self, values, step=None, **kwargs):
        self.logged.append((values, step))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_previews_are_logged_to_tensorboard_and_others_with_videos(tmp_path, monkeypatch, name):
    module = ModuleType(name)
    module.Video = FakeVideo
    monkeypatch.setitem(sys.modules, name, module)
    other = FakeTracker(name)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    tensorboard = SimpleNamespace(name="tensorboard", writer=SummaryWriter(str(tmp_path)))
    log_preview([SimpleNamespace(name="other"), other, tensorboard], 3, FRAMES, 25.0)
    tensorboard.writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (image,) = events.Images(PREVIEW)
    assert image.encoded_image_string.startswith(b"GIF8")
    assert (image.step, image.width, image.height) == (3, 16, 16)
    with Image.open(io.BytesIO(image.encoded_image_string)) as gif:
        gif.seek(3)
        shown = torch.frombuffer(
            bytearray(gif.convert("RGB").tobytes()), dtype=torch.uint8
        ).reshape(16, 16, 3)
    assert (shown.float() - FRAMES[3].float()).abs().mean() < 8
    ((values, step),) = other.logged
    assert (list(values), step) == ([PREVIEW], 3)
    assert values[PREVIEW].format == "mp4"
    assert values[PREVIEW].content[4:8] == b"ftyp"


def test_tensorboard_gets_a_small_preview(tmp_path):
    logged = []
    writer = SimpleNamespace(
        file_writer=SimpleNamespace(add_summary=lambda *arguments: logged.append(arguments)),
        flush=int,
    )
    frames = torch.randint(0, 255, (20, 806, 584, 3), dtype=torch.uint8)
    log_preview([SimpleNamespace(name="tensorboard", writer=writer)], 3, frames, 30.0)
    ((summary, _),) = logged
    with Image.open(io.BytesIO(summary.value[0].image.encoded_image_string)) as image:
        assert (image.format, image.size, image.n_frames) == ("GIF", (185, 256), 7)
        assert (image.info["loop"], image.info["duration"]) == (0, 100)
    assert summary.ByteSize() < 400_000, "noise is the worst case"
