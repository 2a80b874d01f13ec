"""High dynamic range: which videos have it, and tone mapping to the colours of BT.709."""

import logging
from collections.abc import Iterable

import torch
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorTrc
from torch import Tensor

from telecine.base.checks import first_few
from telecine.data.source import VideoInfo
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

PQ = "PQ"
HLG = "HLG"
BT2020 = "BT.2020"

_REFERENCE_WHITE = 203.0  # cd/m2, of diffuse white in HDR (ITU-R BT.2408)
_PEAK = 1000.0  # cd/m2; brighter light becomes white
# Constants of PQ and of HLG (ITU-R BT.2100).
_M1 = 2610 / 16384
_M2 = 2523 / 4096 * 128
_C1 = 3424 / 4096
_C2 = 2413 / 4096 * 32
_C3 = 2392 / 4096 * 32
_A = 0.17883277
_B = 1 - 4 * _A
_C = 0.55991073
_HLG_GAMMA = 1.2  # of a display of 1000 cd/m2
_LUMINANCE = torch.tensor([0.2627, 0.6780, 0.0593], dtype=torch.float64)  # of linear BT.2020
# From linear BT.2020 to linear BT.709 (ITU-R BT.2087).
_TO_BT709 = torch.tensor(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    dtype=torch.float64,
)


def hdr_of(frame: VideoFrame) -> str:
    """Return "PQ", "HLG" or "BT.2020" (a standard range in wide colours), as a frame says; else an empty text."""
    if frame.color_trc == ColorTrc.SMPTE2084:
        return PQ
    if frame.color_trc == ColorTrc.ARIB_STD_B67:
        return HLG
    if frame.color_primaries == ColorPrimaries.BT2020:
        return BT2020
    return ""


def tone_map(colours: Tensor, hdr: str) -> Tensor:
    """Convert colours of BT.2020 to those of BT.709 in standard range.

    Light is scaled so that diffuse white stays bright, compressed in its largest component with the curve of Reinhard
    up to 1000 cd/m2, and clipped to the colours of BT.709.

    Args:
        colours: Encoded `(..., 3)` in [0, 1].
        hdr: What `hdr_of` returns for the video, not empty.

    Returns:
        Encoded colours `(..., 3)` in [0, 1], float64.
    """
    encoded = colours.double()
    if hdr == BT2020:
        linear = _bt709_to_linear(encoded)
    else:
        light = _light_of_pq(encoded) if hdr == PQ else _light_of_hlg(encoded)
        relative = light / _REFERENCE_WHITE
        white = _PEAK / _REFERENCE_WHITE
        largest = relative.amax(dim=-1, keepdim=True).clamp(min=1e-9)
        compressed = largest * (1 + largest / white**2) / (1 + largest)
        linear = relative * (compressed / largest)
    return _linear_to_bt709((linear @ _TO_BT709.T).clamp(0, 1))


def _light_of_pq(encoded: Tensor) -> Tensor:
    """Return light in cd/m2."""
    root = encoded.clamp(0, 1) ** (1 / _M2)
    return 10_000 * ((root - _C1).clamp(min=0) / (_C2 - _C3 * root)) ** (1 / _M1)


def _light_of_hlg(encoded: Tensor) -> Tensor:
    """Return light in cd/m2 on a display of 1000 cd/m2."""
    dark = encoded**2 / 3
    bright = (((encoded - _C) / _A).exp() + _B) / 12
    scene = torch.where(encoded <= 0.5, dark, bright)
    luminance = (scene @ _LUMINANCE).clamp(min=1e-9)[..., None]
    return _PEAK * luminance ** (_HLG_GAMMA - 1) * scene


def _bt709_to_linear(encoded: Tensor) -> Tensor:
    return torch.where(encoded < 0.081, encoded / 4.5, ((encoded + 0.099) / 1.099) ** (1 / 0.45))


def _linear_to_bt709(linear: Tensor) -> Tensor:
    return torch.where(linear < 0.018, 4.5 * linear, 1.099 * linear**0.45 - 0.099)


def log_hdr(infos: Iterable[VideoInfo], config: ClipConfig) -> None:
    """Log the videos with a high dynamic range or wide colours, unless they are converted."""
    videos = [info for info in infos if not info.is_image]
    wide = [f"{info.source} ({info.hdr})" for info in videos if info.hdr]
    if wide and config.hdr == "as_stored":
        text = "%d of %d videos have a high dynamic range or wide colours, which look grey as ordinary video: %s; "
        text += "`--clips.hdr tone_map` converts them"
        logger.warning(text, len(wide), len(videos), first_few(wide))
