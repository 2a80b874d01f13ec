"""Metrics of clips of one colour: any pattern and any motion in their reconstructions comes from the autoencoder."""

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.shapes import VALUE_RANGE
from telecine.evaluation.metrics.metric import Metric, register
from telecine.models import VideoAutoencoder

# Grey, and the corners of a cube inside the colours, which a ringing reconstruction can leave on both sides.
_FLAT_COLOURS = [(0.0, 0.0, 0.0), *product((-0.8, 0.8), repeat=3)]
_LEVELS = 127.5  # a difference of 1 in [-1, 1], in levels of 8 bits
_UNIT = "levels of 8 bits"
_SUBJECT = (
    "root mean square over clips of grey and of the 8 colours of -0.8 and 0.8 in [-1, 1], of the"
)

FLAT_ERROR = register(
    Metric(
        name="flat_error",
        unit=_UNIT,
        definition=f"{_SUBJECT} error of the mean colour of a clip",
        averaging="",
        better="smaller",
        is_per_clip=False,
    )
)
FLAT_GRID = register(
    Metric(
        name="flat_grid",
        unit=_UNIT,
        definition=f"{_SUBJECT} difference of a pixel from the mean of its frame",
        averaging="",
        better="smaller",
        is_per_clip=False,
    )
)
FLAT_SHIMMER = register(
    Metric(
        name="flat_shimmer",
        unit=_UNIT,
        definition=f"{_SUBJECT} change of a pixel from a frame to the next",
        averaging="",
        better="smaller",
        min_frames=2,
        is_per_clip=False,
    )
)


@torch.no_grad()
def measure_flat_colours(
    model: VideoAutoencoder, num_frames: int, height: int, width: int
) -> dict[str, float]:
    """Return `flat_error`, `flat_grid` and, for several frames, `flat_shimmer` of clips of grey and of 8 colours.

    Models of grey get the means of the colours, models of RGBA opaque colours.

    Args:
        model: The autoencoder. It reconstructs the mode of each clip's posterior.
        num_frames: Frames of a clip.
        height: Height of a frame in pixels.
        width: Width of a frame in pixels.
    """
    colours = torch.tensor(_FLAT_COLOURS, device=model.last_layer.device)
    if model.in_channels == 1:
        colours = colours.mean(1, keepdim=True)
    else:
        colours = F.pad(colours, (0, model.in_channels - 3), value=1.0)  # an alpha
    errors = []
    for colour in colours:
        clip = colour.view(1, -1, 1, 1, 1).expand(-1, -1, num_frames, height, width)
        reconstruction = model(clip, sample_posterior=False).video.float().clamp(*VALUE_RANGE)
        errors.append(_LEVELS * (reconstruction - clip))
    error = torch.cat(errors)
    values = {
        FLAT_ERROR.name: _root_mean_square(error.mean((2, 3, 4))),
        FLAT_GRID.name: _root_mean_square(error - error.mean((3, 4), keepdim=True)),
    }
    if num_frames >= FLAT_SHIMMER.min_frames:
        values[FLAT_SHIMMER.name] = _root_mean_square(error.diff(dim=2))
    return values


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
