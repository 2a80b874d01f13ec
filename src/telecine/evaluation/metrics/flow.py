"""Optical flow, and the warping error: how far the frames of a clip are from their neighbours moved by the flow."""

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.imports import how_to_install
from telecine.base.shapes import Frames, Video
from telecine.data import bytes_from_video
from telecine.evaluation.metrics.measure import ClipValues
from telecine.evaluation.metrics.metric import Metric, register
from telecine.losses.perceptual import as_rgb

# arXiv 1604.08610, equation 5: a pixel is occluded if |w + w'|^2 exceeds 0.01 (|w|^2 + |w'|^2) + 0.5.
_CONSISTENCY_FACTOR = 0.01
_CONSISTENCY_OFFSET = 0.5
_MIN_SIDE = 12  # DIS fails for 8 pixels, and finds a shift of one pixel from 12 on
_DEFINITION = (
    "mean squared difference of a frame and the next one, warped to it by the flow between the same frames of the "
    "input, as arXiv 1808.00449; frames in [0, 1]; pixels that leave the frame, or whose forward and backward flow "
    "disagree (arXiv 1604.08610, equation 5), are left out"
)

WARPING_ERROR = register(
    Metric(
        name="warping_error",
        definition=_DEFINITION,
        averaging="mean over channels and pixels, frames, then clips",
        better="smaller",
        min_side=_MIN_SIDE,
        min_frames=2,
    )
)
WARPING_EXCESS = register(
    Metric(
        name="warping_excess",
        definition=_DEFINITION,
        averaging="mean over channels and pixels, frames, then clips, less the same of the input",
        better="nearest to 0",
        min_side=_MIN_SIDE,
        min_frames=2,
    )
)


class DISFlow:
    """Flow by dense inverse search (arXiv 1603.03590) of OpenCV, on grey frames, on the CPU. It has no weights.

    It maps frames `(N, 3, H, W)` in [-1, 1] and the following ones to the flow between them, `(N, 2, H, W)` in pixels:
    channel 0 is the motion to the right, channel 1 downwards. `method` names it, for the protocol.

    Raises:
        ValueError: OpenCV is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("cv2") is None:
            got = '"dis" without the package opencv-python-headless'
            raise argument_error(
                "flow", "a method that is installed", got, how_to_install("protocols")
            )
        import cv2

        self._cv2 = cv2
        self._dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.method = f"DIS (arXiv 1603.03590), preset medium, OpenCV {cv2.__version__}"

    def __call__(self, first: Frames, second: Frames) -> Tensor:
        """Return the flow from each of the first frames to its second one."""
        flows = []
        for first_grey, second_grey in zip(self._grey(first), self._grey(second), strict=True):
            flows.append(torch.from_numpy(self._dis.calc(first_grey, second_grey, None)))
        return torch.stack(flows).permute(0, 3, 1, 2).to(first)

    def _grey(self, frames: Frames) -> list[Any]:
        images = bytes_from_video(frames.transpose(0, 1)).numpy(force=True)
        return [self._cv2.cvtColor(image, self._cv2.COLOR_RGB2GRAY) for image in images]


@dataclass(frozen=True)
class WarpingError:
    """Measures the warping error of a clip (arXiv 1808.00449), with the flow of the input.

    It responds to flicker, and to motion that differs from the input's. Blur lowers it. `warping_excess` is 0 for the
    input itself, negative for a blurred one, positive for a flickering, frozen or warped one.
    """

    flow: DISFlow
    metrics = (WARPING_ERROR, WARPING_EXCESS)

    @property
    def method(self) -> str:
        """The method of the flow, for `protocol.json`."""
        return self.flow.method

    def __call__(self, *, reconstruction: Video, target: Video) -> ClipValues:
        """Return both values of a clip.

        Args:
            reconstruction: `(1, C, T, H, W)` in [-1, 1].
            target: Of the same shape. Its flow is used for both.

        Raises:
            ValueError: The clip has one frame, or its frames are too small for the flow.
        """
        if WARPING_ERROR.unavailable_reason(*target.shape[2:]) is not None:
            contract = f"left out for clips of 1 frame or smaller than {_MIN_SIDE} x {_MIN_SIDE}"
            raise argument_error("flow", contract, target, "Measure longer or larger clips.")
        recon_frames = as_rgb(reconstruction)[0].transpose(0, 1)
        frames = as_rgb(target)[0].transpose(0, 1)
        forward = self.flow(frames[:-1], frames[1:])
        backward = self.flow(frames[1:], frames[:-1])
        visible = visible_pixels(forward, backward)
        error = warping_error(recon_frames, forward, visible)
        input_error = warping_error(frames, forward, visible)
        return ClipValues(
            {WARPING_ERROR.name: float(error), WARPING_EXCESS.name: float(error - input_error)}
        )


def warping_error(frames: Frames, flow: Tensor, visible: Tensor) -> Tensor:
    """Return the mean squared error between each frame and the next one, warped to it: a scalar in [0, 1].

    Args:
        frames: `(T, C, H, W)` in [-1, 1].
        flow: From each frame to the next one, `(T - 1, 2, H, W)` in pixels.
        visible: Mask `(T - 1, H, W)` of the pixels that count. A frame without such a pixel counts whole.
    """
    error = 0.25 * (warp(frames[1:], flow) - frames[:-1]).square().mean(1)
    visible = torch.where(visible.any(dim=(1, 2), keepdim=True), visible, True)
    return ((error * visible).sum((1, 2)) / visible.sum((1, 2))).mean()


def warp(frames: Frames, flow: Tensor) -> Frames:
    """Sample frames `(N, C, H, W)` at the target of each pixel's flow `(N, 2, H, W)`, bilinear; borders repeat."""
    height, width = frames.shape[2:]
    size = torch.tensor([width - 1, height - 1], device=flow.device)
    grid = 2 * _positions(flow).permute(0, 2, 3, 1) / size - 1
    return F.grid_sample(
        frames, grid.to(frames), mode="bilinear", padding_mode="border", align_corners=True
    )


def visible_pixels(forward: Tensor, backward: Tensor) -> Tensor:
    """Return a mask `(N, H, W)` of pixels that stay in the frame and return by the backward flow, of `(N, 2, H, W)`."""
    height, width = forward.shape[2:]
    x, y = _positions(forward).unbind(1)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    back = warp(backward, forward)
    length = forward.square().sum(1) + back.square().sum(1)
    return inside & (
        (forward + back).square().sum(1) <= _CONSISTENCY_FACTOR * length + _CONSISTENCY_OFFSET
    )


def _positions(flow: Tensor) -> Tensor:
    """Return the target of each pixel's flow, `(N, 2, H, W)`, x before y."""
    height, width = flow.shape[2:]
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype)
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype)
    return flow + torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
