"""Settings of the clips: their sizes (buckets), and how they are read and varied."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from enum import Enum, auto
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import Field

from telecine.base.checks import argument_error
from telecine.settings.group import BitDepth, Count, CountOrZero, Number, Positive, Unlisted, group
from telecine.settings.upgrade import DEFAULTS_OF_OLD_RUNS

# 8192 x 8192: twice a frame of 8K video. Decoding an image takes up to 16 bytes a pixel.
MAX_PIXELS = 67_108_864
# The limit of Pillow.
PILLOW_MAX_PIXELS = 178_956_970
_ChannelNames: TypeAlias = Literal["grey", "rgb", "rgba"]
CHANNELS: dict[_ChannelNames | int, int] = {"grey": 1, "rgb": 3, "rgba": 4}
# Seconds.
TIMEOUT = 180.0
_HOLDOUTS = ("auto", "folder", "file", "earlier")
_COLUMN = "column:"


def channels_named(number: int | _ChannelNames) -> _ChannelNames | int:
    """Return the name of a number of channels, or the number if it has none."""
    for name, num_channels in CHANNELS.items():
        if number in (name, num_channels):
            return name
    return number


class PixelFormat(NamedTuple):
    """What a decoded pixel holds."""

    channels: _ChannelNames | int = "rgb"
    bit_depth: Literal[8, 16] = 8
    matrix: Literal["auto", "bt601"] = "auto"
    """Of files that do not say theirs, see `ClipConfig.colour_matrix`."""
    hdr: Literal["as_stored", "tone_map"] = "as_stored"
    """Of videos with a high dynamic range or wide colours, see `ClipConfig.hdr`."""


RGB = PixelFormat()


@group
class Bucket:
    """One clip size, and how often it is trained on."""

    num_frames: Count
    """Frames per clip."""
    height: Count
    """Height of a clip in pixels."""
    width: Count
    """Width of a clip in pixels."""
    weight: Positive = 1.0
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

    def decode_size(self, height: int, width: int, zoom: float) -> tuple[int, int]:
        """Return the height and width to which a video is resized so that it covers the clip, zoomed by a factor.

        Args:
            height: The height of the video in pixels.
            width: The width of the video in pixels.
            zoom: A factor of at least 1; 1 gives the smallest size.
        """
        scale = zoom * max(self.height / height, self.width / width)
        return max(self.height, round(height * scale)), max(self.width, round(width * scale))


class Mark(Enum):
    """What a setting of the clips decides. Each field of `ClipConfig` has the first or the second mark."""

    CONTENT = auto()
    """Changes the frames or pixels of a clip: cached latents are valid for one value of it."""
    READING = auto()
    """Changes how clips are read, or which and how many: cached latents stay valid."""
    HELD_OUT = auto()
    """Which clips are held out. If they change when a run resumes, and no such setting did, the run ends with an error:
    its metrics would no longer compare."""
    FILES = auto()
    """Only data in files has it, no data set from Python."""
    DECODING = auto()
    """How a file is decoded: `encode` and `reconstruct`, which read whole files, read them as the run did."""
    MEASURED = auto()
    """Length, size and times of clips: `MeasuredClips` has settings of the same names, which replace those of a run."""
    TRAINING = auto()
    """Clips that are measured have the default, whatever the run had."""


CONTENT = Mark.CONTENT
READING = Mark.READING
HELD_OUT = Mark.HELD_OUT
FILES = Mark.FILES
DECODING = Mark.DECODING
MEASURED = Mark.MEASURED
TRAINING = Mark.TRAINING


@group
class ClipConfig:
    """Which clips are drawn from the videos, and how they are read."""

    num_frames: Annotated[Count, CONTENT, HELD_OUT, MEASURED] = 17
    """Frames per clip. Most causal autoencoders need a multiple of 4 or 8, plus 1."""
    height: Annotated[Count, CONTENT, HELD_OUT, MEASURED] = 256
    """Height of a clip in pixels. Videos are resized to cover the clip, then cropped."""
    width: Annotated[Count, CONTENT, HELD_OUT, MEASURED] = 256
    """Width of a clip in pixels."""
    buckets: Annotated[tuple[Bucket, ...], CONTENT, FILES, TRAINING] = ()
    """Several clip sizes to train on, e.g. `[{num_frames: 17, height: 256, width: 256, weight: 3}, ...]`. All clips of
    a step have the same size. One bucket must have the size given by the three settings above, used in validation."""
    image_ratio: Annotated[Number, Field(ge=0, le=1), CONTENT, HELD_OUT, FILES, TRAINING] = 0.0
    """Fraction of the steps that train on images instead of clips, if the data has both. Images are one-frame clips."""
    channels: Annotated[_ChannelNames | Count, CONTENT, DECODING] = "rgb"
    """Channels of a pixel: luma, colours, or colours and opacity, or of arrays any number. The model has to have as
    many `in_channels`."""
    bit_depth: Annotated[BitDepth, CONTENT, HELD_OUT, DECODING] = 8
    """Bits of a channel when frames are decoded. 16 keeps all of sources with more than 8, in twice the memory."""
    colour_matrix: Annotated[Literal["auto", "bt601"], CONTENT, HELD_OUT, DECODING] = "auto"
    """How videos that do not say it encode colours: as players guess, by BT.709 if they have 720 lines or more and by
    BT.601 otherwise ("auto"), or always by BT.601, as in runs of earlier versions."""
    hdr: Annotated[Literal["as_stored", "tone_map"], CONTENT, HELD_OUT, DECODING] = "as_stored"
    """Videos with a high dynamic range (PQ, HLG) or the wide colours of BT.2020, as phones record them: use their
    values as they are, which look grey as ordinary video ("as_stored"), or convert them to BT.709 ("tone_map")."""
    layout: Annotated[str | None, CONTENT, HELD_OUT, DECODING] = None
    """Axes of arrays (`.npy`, `.npz`): time, height, width and channels. An array without T is an image. By default
    `T H W C`, or `T H W` for arrays of three axes."""
    range: Annotated[tuple[Number, ...], CONTENT, HELD_OUT, DECODING] = ()
    """Values of arrays that are black and white, e.g. `[0.0, 1.0]`; others are refused. By default, of whole numbers
    those that their type has; floats need it."""
    stride: Annotated[Count, CONTENT, HELD_OUT, MEASURED] = 1
    """Distance between the frames of a clip: 1 takes every frame of the video, 2 every second one."""
    fps: Annotated[Positive | None, CONTENT, HELD_OUT, MEASURED] = None
    """Frames per second of all clips, whatever the videos have: each frame of a clip is the one whose timestamp is
    nearest to its time. Videos with fewer frames a second are not used, because clips would repeat frames. Arrays
    count as 25 frames a second. Left out, `stride` chooses the frames."""
    random_flip: Annotated[bool, CONTENT] = True
    """Flip training clips left to right with probability 1/2."""
    random_orientation: Annotated[bool, CONTENT, TRAINING] = False
    """Turn training clips to one of the eight orientations of a square: rows and columns are also exchanged, and rows
    reversed, each with probability 1/2. It varies a small data set. Clips must be square."""
    scale_jitter: Annotated[Number, Field(ge=1, le=8), CONTENT, TRAINING] = 1.0
    """Zoom into training clips by a random factor from 1 (the whole picture) to this value. 1 turns zooming off. With
    `cache`, frames are then kept at the size of their files."""
    weighting: Annotated[Literal["frames", "files"], CONTENT] = "frames"
    """Draw training clips from all frames equally often, so that long videos count more, or from all files."""
    order: Annotated[Literal["epochs", "independent"], CONTENT] = "epochs"
    """Draw as many clips as there are files, or segments of a list, without repetition before the next round of them
    ("epochs"), or each clip independently of the others, as runs of earlier versions did."""
    num_clips: Annotated[Count | None, READING] = None
    """Train on this many clips over and over: each keeps its place, crop and flip. By default each draw is another."""
    num_workers: Annotated[CountOrZero, READING] = 2
    """Processes that read clips. 0 reads them in the training process."""
    timeout: Annotated[Positive, READING, DECODING] = TIMEOUT
    """Seconds that training waits for a batch before it replaces these processes, and that a file may take to index.
    Slow disks may need more."""
    cache: Annotated[bool, READING, FILES, TRAINING] = False
    """Decode all training frames once before training, and keep them in memory at training resolution. Each process of
    a run keeps all of them."""
    max_pixels: Annotated[Count, Field(le=PILLOW_MAX_PIXELS), READING, HELD_OUT, DECODING] = (
        MAX_PIXELS
    )
    """Largest height times width of an image or of a video's frames, by default that of 8192 x 8192. Larger files are
    skipped before they are decoded."""
    val_fraction: Annotated[Number, Field(gt=0, le=0.5), READING, HELD_OUT] = 0.1
    """Fraction of the frames held out for validation: whole groups of videos, or the end of each if there are few."""
    holdout: Annotated[str, READING, HELD_OUT] = "auto"
    """What is held out together, so that validation sees nothing similar in training: files whose names begin alike, or
    have one value in the column `group` of a list ("auto"); those with one value in another column ("column:NAME"); all
    files of a folder ("folder"); or each file by itself ("file"). "earlier" splits as runs of earlier versions did."""
    file_identity: Annotated[Unlisted[Literal["content", "path"]], READING, HELD_OUT] = "content"
    """Runs of earlier versions that index ahead keep "path" when they resume: `holdout` sees the names of the files
    that links lead to, instead of those of the links, and copies of files of `val_data` are trained on."""
    # `CONTENT`: with "lazy", the clip of a number may start at another frame if a header is not exact.
    index: Annotated[Literal["ahead", "lazy"], CONTENT, HELD_OUT, FILES] = "ahead"
    """Index all videos before training ("ahead"), or read their headers only, and index a video when a clip is first
    drawn from it ("lazy"). Of many files, training then starts sooner. If the end of each video is held out, as of
    fewer than ten videos, all are indexed before training with "lazy", too."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", channels_named(self.channels))
        if self.layout is not None:
            self._check_layout(self.layout.split())
        if self.range and (len(self.range) != 2 or self.range[0] >= self.range[1]):
            contract = "two numbers, the smaller one first"
            raise argument_error(
                "range",
                contract,
                list(self.range),
                "Write the values of black and white: `[0.0, 1.0]`.",
            )
        if self.holdout not in _HOLDOUTS and not self.holdout.partition(_COLUMN)[2]:
            contract = f"one of {', '.join(_HOLDOUTS)}, or {_COLUMN}NAME"
            raise argument_error(
                "holdout", contract, repr(self.holdout), "Write for example `column:subject`."
            )
        if self.random_orientation:
            for bucket in self.train_buckets:
                if bucket.height != bucket.width:
                    contract = "false for clips that are not square"
                    remedy = f"Set it to false, or make {bucket} square."
                    raise argument_error("random_orientation", contract, True, remedy)
        if self.index == "lazy":
            self._check_lazy()
        if self.fps is not None and self.stride > 1:
            remedy = (
                "Set one of them: `fps` chooses frames by their time, `stride` by their number."
            )
            raise argument_error("fps", "left out with a `stride` above 1", self.fps, remedy)
        sizes = [bucket.shape for bucket in self.train_buckets]
        if self.val_bucket.shape not in sizes:
            contract = f"clip sizes that include {self.val_bucket}"
            buckets = ", ".join(str(bucket) for bucket in self.buckets)
            remedy = "Set num_frames, height and width to the bucket to validate on."
            raise argument_error("buckets", contract, buckets, remedy)

    def _check_layout(self, axes: list[str]) -> None:
        has_frame = "H" in axes and "W" in axes
        are_axes = set(axes) <= set("THWC")
        are_unique = len(set(axes)) == len(axes)
        if not (has_frame and are_axes and are_unique):
            contract = "H and W, and at most T and C besides, each once, in any order"
            raise argument_error(
                "layout", contract, repr(self.layout), "Write for example `C T H W`."
            )

    def _check_lazy(self) -> None:
        if self.cache:
            contract = "ahead with `cache`, which decodes all videos before training"
            remedy = "Set `index` to `ahead`, or turn `cache` off."
            raise argument_error("index", contract, repr(self.index), remedy)
        if self.holdout == "earlier":
            remedy = "Set `index` to `ahead`, or `holdout` to `auto`."
            raise argument_error(
                "index", "ahead with `holdout` of earlier", repr(self.index), remedy
            )

    @property
    def num_channels(self) -> int:
        """Number of channels of a pixel."""
        return self.channels if isinstance(self.channels, int) else CHANNELS[self.channels]

    @property
    def has_colours(self) -> bool:
        """Whether clips can be shown to RGB networks: grey, RGB or RGBA."""
        return self.channels in CHANNELS

    @property
    def group_column(self) -> str | None:
        """The column of lists with the groups that `holdout` means; None if no column counts."""
        if self.holdout == "auto":
            return "group"
        if self.holdout.startswith(_COLUMN):
            return self.holdout.removeprefix(_COLUMN)
        return None

    @property
    def pixel_format(self) -> PixelFormat:
        """What a decoded pixel holds."""
        return PixelFormat(self.channels, self.bit_depth, self.colour_matrix, self.hdr)

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

    def values_marked(self, mark: Mark) -> dict[str, Any]:
        """Return the values of the settings with a mark, by name."""
        return {name: getattr(self, name) for name in settings_marked(mark)}

    def identity(self) -> dict[str, Any]:
        """Return the settings that change what a clip is, by name, as plain values.

        Those of `_LEFT_OUT` are left out, so that latents that older versions have kept stay valid.
        """
        all_values = asdict(self)
        values = {name: all_values[name] for name in settings_marked(CONTENT)}
        for earlier in _LEFT_OUT:
            if all(all_values[name] == value for name, value in earlier.items()):
                for name in earlier:
                    values.pop(name, None)
        if self.scale_jitter > 1:  # earlier versions resized these clips twice
            values["zoomed_from"] = "cached files" if self.cache else "file"
        return values


# What older versions did, which did not have these settings. A line is left out of the identity of clips if all of its
# settings have these values.
_LEFT_OUT: tuple[Mapping[str, object], ...] = (
    *({name: value} for name, value in DEFAULTS_OF_OLD_RUNS.items()),
    {"channels": RGB.channels, "bit_depth": RGB.bit_depth},
    {"fps": None},
    {"hdr": "as_stored"},
    {"index": "ahead"},
    {"layout": None, "range": ()},
)


def settings_marked(mark: Mark) -> list[str]:
    """Return the names of the settings of `ClipConfig` with a mark."""
    names = []
    for name, info in ClipConfig.__pydantic_fields__.items():  # type: ignore[attr-defined]
        if mark in info.metadata:
            names.append(name)
    return names
