"""Settings of `telecine encode`."""

from typing import Literal

from telecine.base.checks import argument_error
from telecine.settings.evaluate import ModelUse
from telecine.settings.group import Count, Positive, UserPath, group


@group
class EncodeConfig(ModelUse):
    """What is encoded, and what is written."""

    data: UserPath | None = None
    """The data, as `--data` of `telecine train`: videos, images or arrays; a file, a folder, a list (its other columns,
    such as captions, are kept), a tar file, or an address. Required."""
    num_frames: Count | None = None
    """Frames in a clip: each video is cut into clips without overlap, and what is left at its end is left out. Default:
    whole videos, for models that stream."""
    height: Count | None = None
    """Height to resize to, and to crop at the centre as training does; needs `width`. Default: that of each video."""
    width: Count | None = None
    """Width to resize to; needs `height`."""
    stride: Count = 1
    """Distance between the frames of a clip."""
    fps: Positive | None = None
    """Frames per second: those nearest in time, as `clips.fps` of training chooses them. A video of fewer than 0.95
    times as many is left out, and named. Not with `stride`."""
    latent: Literal["moments", "mode"] = "moments"
    """Write mean and log-variance of the posterior, or its mode alone."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the written numbers."""
    normalise: bool = False
    """Write latents normalised by the statistics that the model carries, by which a generator would normalise them."""
    clips_per_shard: Count = 256
    """Clips in a file. A process that is killed loses at most one file of them."""
    chunk_frames: Count = 17
    """Largest number of frames that the encoder computes at once, as far as the model has a choice."""

    def __post_init__(self) -> None:
        if (self.height is None) != (self.width is None):
            raise argument_error(
                "height", "set together with `width`", self.height, "Set both, or neither."
            )
        if self.fps is not None and self.stride > 1:
            remedy = "`fps` chooses frames by their time, `stride` by their number."
            raise argument_error("fps", "left out with a `stride` above 1", self.fps, remedy)
