"""Optical flow, and the warping error: how far the frames of a clip are from their neighbours moved by the flow."""

import importlib.util
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.files import digest_of
from telecine.base.imports import how_to_install
from telecine.base.shapes import Frames, Video
from telecine.data import bytes_from_video
from telecine.evaluation.protocol import FLOW_SIDE
from telecine.perceptual import as_rgb

RAFT_STRIDE, RAFT_SIDE = 8, 128  # torchvision's RAFT needs sides that are multiples of 8 and at least 128
RAFT_CHANNELS = {64: "raft_large", 32: "raft_small"}  # by the channels of the first convolution
# arXiv 1604.08610, equation 5: a pixel is occluded if |w + w'|^2 exceeds 0.01 (|w|^2 + |w'|^2) + 0.5.
CONSISTENCY_FACTOR, CONSISTENCY_OFFSET = 0.01, 0.5


def load_flow(choice: str, device: torch.device) -> "_DISFlow | _RAFTFlow":
    """Return DIS of OpenCV for "dis", else torchvision's RAFT with the weights in the file of that path.

    It maps frames `(N, 3, H, W)` in [-1, 1] and the following ones to the flow between them, `(N, 2, H, W)` in pixels:
    channel 0 is the motion to the right, channel 1 downwards. `source` names the method and the hash of its weights.
    """
    return _DISFlow() if choice == "dis" else _RAFTFlow(choice, device)


class _DISFlow:
    """Flow by dense inverse search (arXiv 1603.03590) of OpenCV, on grey frames, on the CPU. It has no weights."""

    def __init__(self) -> None:
        if importlib.util.find_spec("cv2") is None:
            got = '"dis" without the package opencv-python-headless'
            remedy = f"{how_to_install('protocols')} Or pass the path of weights of RAFT."
            raise argument_error("flow", "a method that is installed", got, remedy)
        import cv2

        self._cv2 = cv2
        self._dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.source = f"DIS (arXiv 1603.03590), preset medium, OpenCV {cv2.__version__}"

    def __call__(self, first: Frames, second: Frames) -> Tensor:
        images = (bytes_from_video(frames.transpose(0, 1)).numpy(force=True) for frames in (first, second))
        grey = ([self._cv2.cvtColor(image, self._cv2.COLOR_RGB2GRAY) for image in each] for each in images)
        flows = [torch.from_numpy(self._dis.calc(a, b, None)) for a, b in zip(*grey, strict=True)]
        return torch.stack(flows).permute(0, 3, 1, 2).to(first)


class _RAFTFlow:
    """Flow of torchvision's RAFT (arXiv 2003.12039), large or small, from a `.pth` file of its weights."""

    def __init__(self, path: str | Path, device: torch.device) -> None:
        from torchvision.models import optical_flow  # takes a second to import, which `telecine --help` must not spend

        path = Path(path)
        if not path.is_file():
            remedy = 'Pass the path of weights of RAFT, or "dis".'
            raise argument_error("flow", "a file of weights", f"{path}, which does not exist", remedy)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            name = RAFT_CHANNELS[len(state["feature_encoder.convnormrelu.0.weight"])]
            self._network = getattr(optical_flow, name)()
            self._network.load_state_dict(state)
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            got = f"{path}, which has others ({type(error).__name__})"
            remedy = "Download raft_large or raft_small from torchvision."
            raise argument_error("flow", "weights of torchvision's RAFT", got, remedy) from error
        self._network.to(device).eval()
        self.source = f"{name} (arXiv 2003.12039), torchvision, {path.name}, sha256 {digest_of(path)}"

    @torch.no_grad()
    def __call__(self, first: Frames, second: Frames) -> Tensor:
        """Return the flow `(N, 2, H, W)`. Frames are padded at the end to a size that RAFT accepts."""
        height, width = first.shape[2:]
        right, below = (max(RAFT_SIDE - side, -side % RAFT_STRIDE) for side in (width, height))
        padded = (F.pad(frames, (0, right, 0, below), mode="replicate").split(1) for frames in (first, second))
        flows = [self._network(*pair)[-1] for pair in zip(*padded, strict=True)]
        return torch.cat(flows)[..., :height, :width]


@dataclass(frozen=True)
class WarpingError:
    """Measures the warping error of a clip (arXiv 1808.00449), with the flow of the input; see `DEFINITIONS`.

    It responds to flicker, and to motion that differs from the input's. Blur lowers it. `warping_excess` is 0 for the
    input itself, negative for a blurred one, positive for a flickering, frozen or warped one.
    """

    flow: _DISFlow | _RAFTFlow

    def __call__(self, *, reconstruction: Video, target: Video) -> dict[str, float]:
        """Return both values of a clip `(1, C, T, H, W)` in [-1, 1]; raise a `ValueError` if it is short or small."""
        if target.shape[2] < 2 or min(target.shape[3:]) < FLOW_SIDE:
            contract = f"left out for clips of 1 frame or smaller than {FLOW_SIDE} x {FLOW_SIDE}"
            raise argument_error("flow", contract, target, "Measure longer or larger clips.")
        recon_frames, frames = (as_rgb(video)[0].transpose(0, 1) for video in (reconstruction, target))
        forward, backward = self.flow(frames[:-1], frames[1:]), self.flow(frames[1:], frames[:-1])
        visible = _visible_pixels(forward, backward)
        error, of_input = (_warping_error(video, forward, visible) for video in (recon_frames, frames))
        return {"warping_error": float(error), "warping_excess": float(error - of_input)}


def _warping_error(frames: Frames, flow: Tensor, visible: Tensor) -> Tensor:
    """Return the error, a scalar, of the `visible` pixels `(T - 1, H, W)` of each frame but the last, or of all."""
    error = 0.25 * (_warp(frames[1:], flow) - frames[:-1]).square().mean(1)
    visible = torch.where(visible.any(dim=(1, 2), keepdim=True), visible, True)
    return ((error * visible).sum((1, 2)) / visible.sum((1, 2))).mean()


def _warp(frames: Frames, flow: Tensor) -> Frames:
    """Sample frames `(N, C, H, W)` at the target of each pixel's flow (bilinear); borders repeat."""
    height, width = frames.shape[2:]
    size = torch.tensor([width - 1, height - 1], device=flow.device)
    grid = 2 * _positions(flow).permute(0, 2, 3, 1) / size - 1
    return F.grid_sample(frames, grid.to(frames), mode="bilinear", padding_mode="border", align_corners=True)


def _visible_pixels(forward: Tensor, backward: Tensor) -> Tensor:
    """Return a mask `(N, H, W)` of pixels that stay in the frame and return by the backward flow, of `(N, 2, H, W)`."""
    height, width = forward.shape[2:]
    x, y = _positions(forward).unbind(1)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    back = _warp(backward, forward)
    length = forward.square().sum(1) + back.square().sum(1)
    return inside & ((forward + back).square().sum(1) <= CONSISTENCY_FACTOR * length + CONSISTENCY_OFFSET)


def _positions(flow: Tensor) -> Tensor:
    """Return the target of each pixel's flow, `(N, 2, H, W)`, x before y."""
    height, width = flow.shape[2:]
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype)
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype)
    return flow + torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
