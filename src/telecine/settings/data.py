"""Settings of the clips: their sizes (buckets), and how they are read and varied."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from telecine.base.checks import check_count, check_positive
from telecine.settings.group import Count, Settings

# 8192 x 8192: twice a frame of 8K video. Decoding an image takes up to 16 bytes a pixel.
MAX_PIXELS = 67_108_864
_PILLOW_MAX_PIXELS = 178_956_970
_ChannelNames: TypeAlias = Literal["grey", "rgb", "rgba"]
CHANNELS: dict[_ChannelNames | int, int] = {"grey": 1, "rgb": 3, "rgba": 4}
# Seconds.
TIMEOUT = 180.0
_Timeout: TypeAlias = Annotated[float, partial(check_positive, remedy="Use the seconds that a slow batch may take.")]
# Marks the settings that do not change what a clip is: latents that are kept stay valid.
_SAME_CLIPS = {"same_clips": True}


def channels_named(number: int | _ChannelNames) -> _ChannelNames | int:
    """Return the name of a number of channels, or the number if it has none."""
    return next((name for name, each in CHANNELS.items() if number in (name, each)), number)


class PixelFormat(NamedTuple):
    """What a decoded pixel holds."""

    channels: _ChannelNames | int = "rgb"
    bit_depth: Literal[8, 16] = 8


RGB = PixelFormat()


@dataclass(frozen=True)
class Bucket(Settings):
    """One clip size, and how often it is trained on."""

    num_frames: Count
    """Frames per clip."""
    height: Count
    """Height of a clip in pixels."""
    width: Count
    """Width of a clip in pixels."""
    weight: Annotated[float, partial(check_positive, remedy="Remove buckets that are not used.")] = 1.0
    """How often steps use this size, relative to the weights of the other buckets."""

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        return self.num_frames, self.height, self.width

    def as_image(self) -> "Bucket":
        """Return the same height and width with a single frame."""
        return replace(self, num_frames=1)

    def decode_size(self, height: int, width: int, max_zoom: float) -> tuple[int, int]:
        """Return the smallest height and width of a video of this size that cover the crop, times `max_zoom`."""
        scale = max_zoom * max(self.height / height, self.width / width)
        return max(self.height, round(height * scale)), max(self.width, round(width * scale))


@dataclass(frozen=True)
class ClipConfig(Settings):
    """Which clips are drawn from the videos, and how they are read."""

    num_frames: Count = 17
    """Frames per clip. Most causal autoencoders need a multiple of 4 or 8, plus 1."""
    height: Count = 256
    """Height of a clip in pixels. Videos are resized to cover the clip, then cropped."""
    width: Count = 256
    """Width of a clip in pixels."""
    buckets: tuple[Bucket, ...] = ()
    """Several clip sizes to train on, e.g. `[{num_frames: 17, height: 256, width: 256, weight: 3}, ...]`. All clips of
    a step have the same size. One bucket must have the size given by the three settings above, used in validation."""
    image_ratio: float = 0.0
    """Fraction of the steps that train on images instead of clips, if the data has both. Images are one-frame clips."""
    channels: _ChannelNames | Count = "rgb"
    """Channels of a pixel: luma, colours, or colours and opacity, or of arrays any number. The model has to have as
    many `in_channels`."""
    bit_depth: Literal[8, 16] = 8
    """Bits of a channel when frames are decoded. 16 keeps all of sources with more than 8, in twice the memory."""
    layout: str | None = None
    """Axes of arrays (`.npy`, `.npz`): time, height, width and channels. An array without T is an image. By default
    `T H W C`, or `T H W` for arrays of three axes."""
    range: tuple[float, ...] = ()
    """Values of arrays that are black and white, e.g. `[0.0, 1.0]`; others are refused. By default, of whole numbers
    those that their type has; floats need it."""
    stride: Count = 1
    """Distance between the frames of a clip: 1 takes every frame of the video, 2 every second one."""
    random_flip: bool = True
    """Flip training clips left to right with probability 1/2."""
    random_orientation: bool = False
    """Turn training clips to one of the eight orientations of a square: rows and columns are also exchanged, and rows
    reversed, each with probability 1/2. It varies a small data set. Clips must be square."""
    scale_jitter: float = 1.0
    """Zoom into training clips by a random factor from 1 (the whole picture) to this value. 1 turns zooming off."""
    weighting: Literal["frames", "files"] = "frames"
    """Draw training clips from all frames equally often, so that long videos count more, or from all files."""
    num_clips: Count | None = field(default=None, metadata=_SAME_CLIPS)
    """Train on this many clips over and over: each keeps its place, crop and flip. By default each draw is another."""
    num_workers: Annotated[int, partial(check_count, at_least=0)] = field(default=2, metadata=_SAME_CLIPS)
    """Processes that read clips. 0 reads them in the training process."""
    timeout: _Timeout = field(default=TIMEOUT, metadata=_SAME_CLIPS)
    """Seconds that training waits for a batch before it replaces these processes, and that a file may take to index.
    Slow disks may need more."""
    cache: bool = field(default=False, metadata=_SAME_CLIPS)
    """Decode all training frames once before training, and keep them in memory at training resolution. Each process of
    a run keeps all of them."""
    max_pixels: Count = field(default=MAX_PIXELS, metadata=_SAME_CLIPS)
    """Largest height times width of an image or of a video's frames, by default that of 8192 x 8192. Larger files are
    skipped before they are decoded."""
    val_fraction: float = field(default=0.1, metadata=_SAME_CLIPS)
    """Fraction of the data held out for validation: whole videos, or the end of each video if there are few."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "channels", channels_named(self.channels))
        axes = (self.layout or "H W").split()
        are_known = {"H", "W"} <= {*axes} <= {*"THWC"} and len({*axes}) == len(axes)
        self.refuse("layout", not are_known, got=repr(self.layout))
        is_range = len(self.range) == 2 and -math.inf < self.range[0] < self.range[1] < math.inf
        self.refuse("range", self.range and not is_range, got=str([*self.range]))
        self.refuse("max_pixels", self.max_pixels > _PILLOW_MAX_PIXELS, most=_PILLOW_MAX_PIXELS)
        self.refuse("image_ratio", not 0.0 <= self.image_ratio <= 1.0)
        self.refuse("scale_jitter", not 1.0 <= self.scale_jitter <= 8.0)
        self.refuse("val_fraction", not 0.0 < self.val_fraction <= 0.5)
        are_square = all(bucket.height == bucket.width for bucket in self.train_buckets)
        self.refuse("random_orientation", self.random_orientation and not are_square)
        is_trained = not self.buckets or self.val_bucket.shape in {bucket.shape for bucket in self.buckets}
        self.refuse("buckets", not is_trained, got=", ".join(map(str, self.buckets)))

    @property
    def num_channels(self) -> int:
        """Number of channels of a pixel."""
        return self.channels if isinstance(self.channels, int) else CHANNELS[self.channels]

    @property
    def has_colours(self) -> bool:
        """Whether networks that know RGB see clips: grey, RGB or RGBA."""
        return self.channels in CHANNELS

    @property
    def pixel_format(self) -> PixelFormat:
        """What a decoded pixel holds."""
        return PixelFormat(self.channels, self.bit_depth)

    @property
    def val_bucket(self) -> "Bucket":
        """The clip size to validate on."""
        return Bucket(self.num_frames, self.height, self.width)

    @property
    def train_buckets(self) -> tuple[Bucket, ...]:
        """All clip sizes to train on."""
        return self.buckets or (self.val_bucket,)

    @property
    def augments(self) -> bool:
        """Whether the pixels of training clips are varied."""
        return self.random_flip or self.random_orientation or self.scale_jitter > 1

    def identity(self) -> dict[str, Any]:
        """Return the settings that change what a clip is, by name, as plain values."""
        values = asdict(self)
        if self.pixel_format == RGB:  # telecine 0.2 had no other
            del values["channels"], values["bit_depth"]
        if not (self.layout or self.range):
            del values["layout"], values["range"]
        names = [item.name for item in fields(self) if item.metadata != _SAME_CLIPS]
        return {name: values[name] for name in names if name in values}

    @property
    def clip_span(self) -> int:
        """Number of video frames from the first to the last frame of a validation clip, inclusive."""
        return self.span_of(self.val_bucket)

    def span_of(self, bucket: Bucket) -> int:
        """Return the number of video frames from the first to the last frame of a clip, inclusive."""
        return (bucket.num_frames - 1) * self.stride + 1
