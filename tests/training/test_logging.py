"""Means over updates, progress on the console, and shares of the gradient."""

import io
import json
import math
import sys
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
    check_names_in_training,
)
from telecine.training.step import finite_values


def test_means_are_over_the_updates_that_have_the_value_and_continue_after_an_interruption():
    means = IntervalMeans()
    for value in (1.0, 2.0):
        means.add({"loss": value})
    means.add({"rare": 5.0})
    saved = json.loads(json.dumps(means.sums))
    means.add({"loss": 100.0})  # after the checkpoint
    resumed = IntervalMeans(saved)
    resumed.add({"loss": 6.0})
    assert resumed.pop() == {"loss": 3.0, "rare": 5.0}
    resumed.add({"loss": 10.0})
    assert resumed.pop() == {"loss": 10.0}


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock of the progress by one that a test sets."""
    clock = SimpleNamespace(now=100.0)
    clocks = {"perf_counter": lambda: clock.now, "monotonic": lambda: clock.now}
    monkeypatch.setattr(logging, "time", SimpleNamespace(**clocks))
    return clock


FULL = "\u2588"
EMPTY = "\u2591"
VALUES = {"train/total_loss": 0.5, "train/mse": 0.04, "train/adaptive_weight": 0.0}


def progress(clock, seconds, steps, num_steps, *, start=0, **options):
    """Show the progress of updates, by their values, and return what was printed."""
    console = Console(record=True, file=io.StringIO(), get_time=lambda: clock.now, **options)
    with Monitor(console, num_steps=num_steps, start=start, batch_size=4) as monitor:
        for step, values in steps.items():
            clock.now += seconds
            monitor.show(step, VALUES | values)
    return console.export_text()


def test_progress_without_a_terminal_is_a_line_every_half_minute(clock):
    text = progress(
        clock, 16.0, {1: {}, 2: {}, 3: {}, 4: {"train/adaptive_weight": 2.0}}, 100, width=1000
    )
    assert text.splitlines() == [
        "step 2/100  loss 0.500  psnr 20.0 dB  0.2 clips/s  26 min 8 s left",
        "step 4/100  loss 0.500  psnr 20.0 dB  w 2.00  0.2 clips/s  25 min 36 s left",
    ]


def test_progress_on_a_terminal_is_a_bar(clock):
    text = progress(clock, 60.0, {5: {}}, 9, start=3, width=200, force_terminal=True)
    assert "3/9" in text, "a resumed run starts there"
    assert "5/9 loss 0.500  psnr 20.0 dB  0.1 clips/s" in text
    assert "step 5/9" not in text, "no line"
    large = {"train/total_loss": 12345.678, "train/adaptive_weight": 3.0}
    text = progress(
        clock, 10.0, {1: large, 2: large, 3: large}, 100_000, width=80, force_terminal=True
    )
    assert "3/100000 loss 12345.678  psnr 20.0 dB 11 days 13 h left" in text, (
        "what is important fits 80 columns"
    )


def test_progress_in_a_notebook_is_a_bar(clock, monkeypatch):
    lines = []
    handle = SimpleNamespace(update=lambda data, raw: lines.append(data["text/plain"]))
    display = SimpleNamespace(display=lambda data, raw, display_id: handle)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    progress(clock, 60.0, {5: {}}, 9, start=3, force_jupyter=True)
    assert lines == [
        f"{16 * FULL}{14 * EMPTY} 5/9  loss 0.500  psnr 20.0 dB  0.1 clips/s  4 min left"
    ]


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


@pytest.mark.parametrize("weights", [[0.0, 1.0, 1.0, 2.0], [1.0, 1.0], [5.0]])
def test_the_last_gradient_of_each_frame_is_relative_to_the_mean(weights):
    """A single frame has no share."""
    video = torch.rand(2, 3, len(weights), 8, 8, requires_grad=True) * 1.0
    loss = (video * torch.tensor(weights)[:, None, None]).sum()
    log = ReconstructionGradient().measure(video, [loss], torch.Tensor.backward)
    expected = {f"train/frame_gradient_{frame:03d}": weight for frame, weight in enumerate(weights)}
    if len(weights) == 1:
        expected = {}
    assert {name: value.item() for name, value in log.items()} == pytest.approx(expected)


def test_the_share_of_the_discriminators():
    video = torch.rand(2, 3, 4, 8, 8, requires_grad=True) * 1.0
    gradient = ReconstructionGradient()
    discriminated = video.view_as(video)
    discriminated.register_hook(gradient.keep_adversarial)
    loss = (3 * discriminated + video).sum()
    log = gradient.measure(video, [loss], torch.Tensor.backward)
    assert log[ADVERSARIAL_SHARE].item() == pytest.approx(0.75)


def test_a_gradient_of_zero_has_shares_that_are_not_finite():
    video = torch.rand(2, 3, 4, 8, 8, requires_grad=True) * 1.0
    loss = (0 * video).sum()
    log = ReconstructionGradient().measure(video, [loss], torch.Tensor.backward)
    assert all(value.isnan() for value in log.values())
    log |= {ADVERSARIAL_SHARE: torch.tensor(math.nan), "train/mse": torch.tensor(0.5)}
    assert finite_values(log, 3) == {"train/mse": 0.5}


@pytest.mark.parametrize("name", ["psnr", "lpips_vgg"])
def test_auxiliary_losses_are_named_unlike_the_curves_that_a_report_computes(name):
    with pytest.raises(ValueError, match=rf"`aux_losses` must be named unlike .*'{name}'"):
        check_names_in_training([name])
