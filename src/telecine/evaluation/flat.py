"""Reconstructions of clips of one colour, in which any pattern and any motion comes from the autoencoder."""

from itertools import product

import torch

from telecine.autoencoders import VideoAutoencoder
from telecine.base.shapes import VALUE_RANGE

# Grey, and the corners of a cube inside the colours, which a ringing reconstruction can leave on both sides.
COLOURS = (((0.0, 0.0, 0.0)), *product((-0.8, 0.8), repeat=3))
LEVELS = 127.5  # a difference of 1 in [-1, 1], in levels of 8 bits


@torch.no_grad()
def flat_colours(model: VideoAutoencoder, num_frames: int, height: int, width: int) -> dict[str, float]:
    """Return `flat_error`, `flat_grid` and, for several frames, `flat_shimmer`: root mean squares over `COLOURS`.

    In levels of 8 bits: of the error of the mean colour, of each frame's pixels about that frame's mean, and of the
    changes of a pixel from frame to frame. A model without faults has 0 three times.
    """
    device = model.last_layer.device
    colours = torch.tensor(COLOURS, device=device)[:, :, None, None, None]
    clips = [colour.expand(1, -1, num_frames, height, width) for colour in colours]
    found = [LEVELS * (model(clip, sample_posterior=False).video.float().clamp(*VALUE_RANGE) - clip) for clip in clips]
    errors = torch.cat(found)
    values = {
        "flat_error": errors.mean((2, 3, 4)),
        "flat_grid": errors - errors.mean((3, 4), keepdim=True),
        "flat_shimmer": errors.diff(dim=2),
    }
    return {name: float(value.square().mean().sqrt()) for name, value in values.items() if value.numel() > 0}
