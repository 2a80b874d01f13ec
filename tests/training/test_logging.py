import io
import json
import math
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from telecine.training import logging
from telecine.training.logging import (
    ADVERSARIAL_SHARE,
    IntervalMeans,
    Monitor,
    ReconstructionGradient,
)
from telecine.training.step import finite_values


def test_means_are_over_the_updates_that_have_the_value():
    means = IntervalMeans()
    for value in (1.0, 2.0, 6.0):
        means.add({"loss": value})
    means.add({"rare": 5.0})
    assert means.pop() == {"loss": 3.0, "rare": 5.0}
    means.add({"loss": 10.0})
    assert means.pop() == {"loss": 10.0}


def test_an_interrupted_interval_continues():
    means = IntervalMeans()
    means.add({"loss": 1.0})
    means.add({"loss": 2.0, "rare": 3.0})
    saved = json.loads(json.dumps(means.sums))
    means.add({"loss": 100.0})  # after the checkpoint
    resumed = IntervalMeans(saved)
    resumed.add({"loss": 6.0})
    assert resumed.pop() == {"loss": 3.0, "rare": 3.0}


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock of the progress by one that a test sets."""
    clock = SimpleNamespace(now=100.0)
    clocks = {"perf_counter": lambda: clock.now, "monotonic": lambda: clock.now}
    monkeypatch.setattr(logging, "time", SimpleNamespace(**clocks))
    return clock


VALUES = {"train/total_loss": 0.5, "train/mse": 0.04, "train/adaptive_weight": 0.0}


def test_progress_without_a_terminal_is_a_line_every_half_minute(clock):
    console = Console(record=True, width=1000, file=io.StringIO())
    with Monitor(console, num_steps=100, start=0, batch_size=4) as monitor:
        for step in range(1, 5):
            clock.now += 16.0
            monitor.show(step, VALUES | {"train/adaptive_weight": 2.0 * (step == 4)})
    assert console.export_text().splitlines() == [
        "step 2/100  loss 0.500  psnr 20.0 dB  0.2 clips/s  26.1 min left",
        "step 4/100  loss 0.500  psnr 20.0 dB  w 2.00  0.2 clips/s  25.6 min left",
    ]


def test_progress_on_a_terminal_is_a_bar(clock):
    console = Console(record=True, width=200, force_terminal=True, file=io.StringIO())
    with Monitor(console, num_steps=9, start=3, batch_size=4) as monitor:
        clock.now += 60.0
        monitor.show(5, VALUES)
    text = console.export_text()
    assert "3/9" in text, "a resumed run starts there"
    assert "5/9 loss 0.500  psnr 20.0 dB  0.1 clips/s" in text
    assert "min left" not in text


def test_step_loss_psnr_and_time_left_are_whole_in_80_columns(clock):
    console = Console(record=True, width=80, force_terminal=True, file=io.StringIO())
    with Monitor(console, num_steps=100_000, start=0, batch_size=4) as monitor:
        for step in (1, 2, 3):
            clock.now += 10.0
            monitor._progress.get_time = lambda: clock.now
            monitor.show(step, VALUES | {"train/total_loss": 12345.678, "train/adaptive_weight": 3.0})
    text = console.export_text()
    assert "3/100000 loss 12345.678  psnr 20.0 dB 277:46:10 left ━" in text


def test_the_speed_is_averaged_and_excludes_validation(clock):
    monitor = Monitor(Console(quiet=True), num_steps=9, start=0, batch_size=4)
    clock.now += 2.0
    monitor.show(1, VALUES)
    assert monitor.clips_per_second == pytest.approx(4 / 2)
    clock.now += 50.0
    monitor.restart_clock()
    clock.now += 4.0
    monitor.show(2, VALUES)
    assert monitor.clips_per_second == pytest.approx(4 / (0.95 * 2 + 0.05 * 4))


def video(num_frames=4):
    return torch.rand(2, 3, num_frames, 8, 8, requires_grad=True) * 1.0


def test_the_gradient_of_each_frame_is_relative_to_the_mean():
    x = video()
    gradient = ReconstructionGradient(x)
    (x * torch.tensor([0.0, 1.0, 1.0, 2.0])[:, None, None]).sum().backward()
    assert list(gradient.log) == [f"train/frame_gradient_{frame:03d}" for frame in range(4)]
    assert [value.item() for value in gradient.log.values()] == pytest.approx([0.0, 1.0, 1.0, 2.0])


def test_the_log_is_of_the_last_backward():
    x = video()
    gradient = ReconstructionGradient(x)
    torch.autograd.grad(x[:, :, 0].sum(), x, retain_graph=True)
    x.sum().backward()
    assert [value.item() for value in gradient.log.values()] == pytest.approx([1.0] * 4)


def test_two_frames_have_shares():
    x = video(num_frames=2)
    gradient = ReconstructionGradient(x)
    x.sum().backward()
    assert [value.item() for value in gradient.log.values()] == pytest.approx([1.0, 1.0])


def test_a_single_frame_has_no_share():
    x = video(num_frames=1)
    gradient = ReconstructionGradient(x)
    x.sum().backward()
    assert gradient.log == {}


def test_the_share_of_the_discriminators():
    x = video()
    gradient = ReconstructionGradient(x)
    discriminated = x.view_as(x)
    discriminated.register_hook(gradient.adversarial_hook)
    (3 * discriminated + x).sum().backward(retain_graph=True)
    assert gradient.log[ADVERSARIAL_SHARE].item() == pytest.approx(0.75)
    x.sum().backward()
    assert ADVERSARIAL_SHARE not in gradient.log, "it belongs to one backward"


def test_a_gradient_of_zero_has_shares_that_are_not_finite():
    x = video()
    gradient = ReconstructionGradient(x)
    (0 * x).sum().backward()
    assert all(math.isnan(value) for value in gradient.log.values())
    log = gradient.log | {ADVERSARIAL_SHARE: torch.tensor(math.nan), "train/mse": torch.tensor(0.5)}
    assert finite_values(log, 3) == {"train/mse": 0.5}
