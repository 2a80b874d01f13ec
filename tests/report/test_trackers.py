import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from telecine.report.trackers import PREVIEW, SHOWN_BY, log_preview

FRAMES = torch.randint(0, 255, (4, 16, 16, 3), dtype=torch.uint8)


class Video:
    """Stands for `wandb.Video`, with the arguments that it takes."""

    def __init__(self, data_or_path, caption=None, fps=None, format=None):
        self.content, self.format = data_or_path.read(), format


class WandbTracker:
    """Stands for Accelerate's tracker of Weights & Biases, which is not installed."""

    name = "wandb"

    def __init__(self):
        self.logged = []

    def log(self, values, step=None, **kwargs):
        self.logged.append((values, step))


@pytest.fixture
def wandb(monkeypatch):
    module = ModuleType("wandb")
    module.Video = Video
    monkeypatch.setitem(sys.modules, "wandb", module)
    return WandbTracker()


def tensorboard(folder):
    from torch.utils.tensorboard import SummaryWriter

    return SimpleNamespace(name="tensorboard", writer=SummaryWriter(str(folder)))


def test_each_tracker_that_can_show_one_gets_the_picture(tmp_path, wandb):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = tensorboard(tmp_path)
    assert set(SHOWN_BY) == {board.name, wandb.name}
    log_preview([SimpleNamespace(name="other"), wandb, board], 3, FRAMES, 25.0)
    board.writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (image,) = events.Images(PREVIEW)
    assert image.encoded_image_string.startswith(b"GIF8")
    assert (image.step, image.width, image.height) == (3, 16, 16)
    ((values, step),) = wandb.logged
    assert (list(values), step) == ([PREVIEW], 3)
    assert values[PREVIEW].format == "mp4"
    assert values[PREVIEW].content[4:8] == b"ftyp"


def test_the_tag_can_be_chosen(wandb):
    log_preview([wandb], 0, FRAMES, 25.0, tag="test/clip")
    assert list(wandb.logged[0][0]) == ["test/clip"]
