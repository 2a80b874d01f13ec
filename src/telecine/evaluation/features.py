"""Networks whose features a Frechet distance between sets of videos compares."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.evaluation.transnet import TransNetFeatures
from telecine.shapes import Video, argument_error

I3D_SIDE = 224


class VideoFeatures(Protocol):
    """Maps videos to vectors."""

    name: str
    """What the distance on these features is called."""
    definition: str
    """What the protocol says about it."""
    source: str
    """Which weights, with their hash."""
    min_frames: int
    """Fewest frames of a clip."""

    def __call__(self, video: Video) -> Tensor:
        """Return a vector for each of the videos `(B, 3, T, H, W)` in [-1, 1], as `(B, D)`, without a graph."""


class I3DFeatures:
    """The features that FVD is defined on: those of an I3D trained on Kinetics-400, as a TorchScript file.

    Videos are resized until their shorter side has 224 pixels (bilinear), cropped to the centre and given in [-1, 1],
    as TATS and later comparisons with StyleGAN-V's file `i3d_torchscript.pt` do; the file's own rescaling and resizing
    stay off. The network sees the whole clip, of 10 frames or more.

    Args:
        path: The TorchScript file; called as `network(video, rescale=False, resize=False, return_features=True)`. It
            holds code, so take it from where you trust.
        device: Where to compute.

    Raises:
        ValueError: the file is missing, or is no TorchScript.
    """

    name = "fvd"
    definition = (
        "Frechet video distance, arXiv 1812.01717, on the features of the I3D named under backbones; whole clips, "
        f"shorter side to {I3D_SIDE} (bilinear), center crop, in [-1, 1]"
    )
    min_frames = 10

    def __init__(self, path: str | Path, device: torch.device) -> None:
        path = Path(path)
        if not path.is_file():
            remedy = 'Give the path of i3d_torchscript.pt, or "transnetv2".'
            raise argument_error("features", "a TorchScript file", f"{path}, which does not exist", remedy)
        try:
            self.network = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            got = f"{path}, which cannot be loaded ({str(error).splitlines()[0]})"
            raise argument_error("features", "a TorchScript file", got, "Download it again.") from error
        self.source = f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"

    @torch.no_grad()
    def __call__(self, video: Video) -> Tensor:
        """Return `(B, D)` for `(B, 3, T, H, W)` in [-1, 1]; D is 400 for the published file."""
        return self.network(center_square(video, I3D_SIDE), rescale=False, resize=False, return_features=True)


def center_square(video: Video, side: int) -> Video:
    """Resize each frame until its shorter side is `side` (bilinear), and keep the square in its centre."""
    height, width = video.shape[-2:]
    scale = side / min(height, width)
    size = (max(side, math.ceil(height * scale - 1e-6)), max(side, math.ceil(width * scale - 1e-6)))
    frames = F.interpolate(video.transpose(1, 2).flatten(0, 1), size, mode="bilinear", align_corners=False)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    square = frames[:, :, top : top + side, left : left + side]
    return square.unflatten(0, (len(video), -1)).transpose(1, 2).contiguous()


def load_features(choice: str, device: torch.device) -> VideoFeatures:
    """Return the network of that choice: "transnetv2", or the path of an I3D as TorchScript.

    Raises:
        ValueError: it cannot be had.
    """
    return TransNetFeatures(device) if choice == "transnetv2" else I3DFeatures(choice, device)
