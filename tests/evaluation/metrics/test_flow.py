"""Optical flow and the warping error of motions that are known."""

import importlib.util

import pytest
import torch
from torch.nn import functional as F

from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.metrics.flow import (
    DISFlow,
    WarpingError,
    visible_pixels,
    warp,
    warping_error,
)
from telecine.settings import EvaluateConfig

CPU = torch.device("cpu")
NUM_FRAMES = 5
HEIGHT = 64
WIDTH = 96
# Motion of the picture from frame to frame, in pixels to the right and down.
MOTION = (-3, -2)


def moving_clip():
    """Return a smooth random picture, of which each frame shows a part 3 pixels further right and 2 further down."""
    noise = torch.rand(1, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    picture = (
        F.interpolate(noise, (120, 160), mode="bicubic", align_corners=False)[0].clamp(0, 1) * 2 - 1
    )
    frames = [picture[:, 20 + 2 * t :, 20 + 3 * t :][:, :HEIGHT, :WIDTH] for t in range(NUM_FRAMES)]
    return torch.stack(frames, 1)[None]


class KnownFlow:
    """The flow of `moving_clip`."""

    source = "known"

    def __call__(self, first, second):
        forward = torch.equal(first[0], moving_clip()[0, :, 0])
        motion = torch.tensor(MOTION, dtype=first.dtype) * (1 if forward else -1)
        return motion.view(1, 2, 1, 1).expand(len(first), 2, *first.shape[2:])


@pytest.fixture(scope="module")
def dis():
    return DISFlow()


def measured(flow, reconstruction):
    return WarpingError(flow)(reconstruction=reconstruction, target=moving_clip()).values


def test_dis_finds_a_constant_translation(dis):
    frames = moving_clip()[0].transpose(0, 1)
    flow = dis(frames[:-1], frames[1:])
    assert flow.shape == (NUM_FRAMES - 1, 2, HEIGHT, WIDTH)
    inner = flow[..., 8:-8, 8:-8]
    torch.testing.assert_close(
        inner.mean((0, 2, 3)), torch.tensor(MOTION, dtype=torch.float32), atol=0.02, rtol=0
    )
    assert inner.std((0, 2, 3)).max() < 0.05
    assert dis.method.startswith("DIS (arXiv 1603.03590), preset medium, OpenCV ")


def test_a_frozen_clip_has_the_error_of_a_picture_and_itself_moved():
    clip = moving_clip()
    shown = clip[0, :, 0] / 2
    expected = (shown[:, 2:, 3:] - shown[:, :-2, :-3]).square().mean()
    assert measured(KnownFlow(), clip[:, :, :1].expand_as(clip))["warping_error"] == pytest.approx(
        float(expected), rel=1e-4
    )
    assert measured(KnownFlow(), clip) == {
        "warping_error": pytest.approx(0, abs=1e-10),
        "warping_excess": 0,
    }


def test_the_flow_of_dis_tells_them_apart(dis):
    """Every second frame is brighter by 0.2 in [-1, 1], which is 0.1 in [0, 1], or moved."""
    flickering = moving_clip()
    flickering[:, :, 1::2] += 0.2
    wobbling = moving_clip()
    wobbling[:, :, 1::2] = torch.roll(wobbling[:, :, 1::2], 2, -1)
    frozen = moving_clip()[:, :, :1].expand_as(wobbling)
    same = measured(dis, moving_clip())
    assert same["warping_error"] < 1e-4
    assert same["warping_excess"] == 0
    assert measured(dis, flickering)["warping_error"] == pytest.approx(0.01, rel=0.01)
    assert measured(dis, frozen)["warping_error"] > 0.05
    assert measured(dis, wobbling)["warping_error"] > 0.02


def test_pixels_that_leave_the_frame_or_are_occluded_are_left_out():
    forward = torch.zeros(1, 2, 4, 6)
    forward[:, 0] = 2.0
    elsewhere = -forward.clone()
    elsewhere[..., 1, 3] = 5.0  # the flow back from where the pixel in column 1 leads to
    expected = torch.ones(4, 6, dtype=torch.bool)
    expected[:, 4:] = False
    assert torch.equal(visible_pixels(forward, -forward)[0], expected)
    expected[1, 1] = False
    assert torch.equal(visible_pixels(forward, elsewhere)[0], expected)


def test_the_error_is_the_mean_of_visible_pixels():
    frames = torch.zeros(2, 3, 2, 2)
    frames[1, :, 0, 0] = 1.0
    visible = torch.tensor([[[True, False], [False, True]]])
    flow = torch.zeros(1, 2, 2, 2)
    assert warping_error(frames, flow, visible) == pytest.approx(0.25 / 2)
    assert warping_error(frames, flow, torch.zeros(1, 2, 2, dtype=torch.bool)) == pytest.approx(
        0.25 / 4
    )


def test_warping_takes_the_value_where_the_flow_leads():
    frames = torch.arange(12.0).view(1, 1, 3, 4)
    flow = torch.zeros(1, 2, 3, 4)
    flow[:, 0] = 0.5
    flow[:, 1] = 1.0
    assert warp(frames, flow)[0, 0].tolist() == [
        [4.5, 5.5, 6.5, 7],
        [8.5, 9.5, 10.5, 11],
        [8.5, 9.5, 10.5, 11],
    ]


def test_dis_without_opencv_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"Run `pip install 'opencv-python-headless>=.*`"):
        DISFlow()


@pytest.mark.parametrize("size", [(1, 48, 48), (4, 8, 48)])
def test_small_clips_raise(dis, size):
    clip = torch.zeros(1, 3, *size)
    with pytest.raises(
        ValueError, match="`flow` must be left out for clips of 1 frame or smaller than 12 x 12"
    ):
        WarpingError(dis)(reconstruction=clip, target=clip)


def test_an_evaluation_names_the_flow(fake_lpips, videos, reconstructions):
    settings = {
        "data": str(videos),
        "num_frames": 3,
        "max_clips": 1,
        "device": "cpu",
        "flow": "dis",
    }
    little, much = (
        evaluate(reconstructions[name], EvaluateConfig(**settings)) for name in ("little", "much")
    )
    assert 0 < little.metrics["warping_error"] < much.metrics["warping_error"] < 0.1
    assert little.metrics["warping_excess"] > 0
    assert all("warping_excess" in clip for clip in little.per_clip)
    assert little.protocol.backbones["warping_error"].startswith("DIS (arXiv 1603.03590)")
    assert "arXiv 1808.00449" in little.protocol.metrics["warping_error"]
