"""Settings of `telecine evaluate`, `telecine latents` and `telecine reconstruct`."""

from dataclasses import field, replace
from typing import Any, Literal, TypeAlias

from telecine.base.checks import argument_error, check_count
from telecine.settings.data import MEASURED, TRAINING, ClipConfig, settings_marked
from telecine.settings.group import (
    BitDepth,
    Count,
    DeviceName,
    Integer,
    Number,
    Positive,
    UserPath,
    group,
)

ProtocolName: TypeAlias = Literal[
    "vidtok", "wf_vae_25", "wf_vae_33", "tokenbench", "davis", "ucf101", "kinetics600"
]
Codec: TypeAlias = Literal["h264"]
# The averaged and the raw weights, each in a folder of a checkpoint that `from_pretrained` loads.
SavedWeights: TypeAlias = Literal["ema", "model"]


def check_tiles(tile: int | None, overlap: int) -> None:
    """Check that a tile is larger than its overlap. Errors name the settings `tile` and `tile_overlap`.

    Args:
        tile: Height and width of a tile. None: whole frames.
        overlap: Rows and columns that neighbouring tiles share.

    Raises:
        ValueError: It is not, or whole frames have an overlap.
    """
    if tile is None:
        if overlap:
            raise argument_error(
                "tile_overlap", "left out without `tile`", overlap, "Set `tile`, too."
            )
        return
    check_count("tile", tile, remedy="Leave it out for whole frames.")
    if not 0 <= overlap < tile:
        contract = f"at least 0 and below the tile's {tile} pixels"
        raise argument_error(
            "tile_overlap", contract, overlap, "An eighth to a quarter of a tile is usual."
        )


@group
class Tiling:
    """How frames are cut into overlapping tiles."""

    size: Integer | None = None
    """Height and width of a tile. None: whole frames."""
    overlap: Integer = 0
    """Rows and columns that neighbouring tiles share."""

    def __post_init__(self) -> None:
        check_tiles(self.size, self.overlap)

    @classmethod
    def of(cls, tile: int | None, overlap: int | None) -> "Tiling":
        """Return tiles of a size, or whole frames, that share pixels, by default a quarter of the size."""
        if tile is None:
            return cls()
        return cls(tile, tile // 4 if overlap is None else overlap)


def check_overlap(num_frames: int, overlap: int) -> None:
    """Check that a chunk is longer than its overlap.

    Raises:
        ValueError: It is not.
    """
    if not 0 <= overlap < num_frames:
        contract = f"at least 0 and below the chunk's {num_frames} frames"
        raise argument_error("overlap_frames", contract, overlap, "2 to 4 frames hide a seam.")


@group
class ModelUse:
    """Which weights of a run are used, where, and how they decode."""

    weights: SavedWeights = "ema"
    """Weights of a checkpoint: the moving average ("ema") or the trained ones ("model")."""
    device: DeviceName = "auto"
    """Device to compute on."""
    decode_steps: Integer | None = None
    """Steps of a decoder that generates (`causal_vae.decoder: flow`), one pass of it each. Default: 1."""
    decode_seed: Integer | None = None
    """Seed of the noise that such a decoder starts from. Default: 0."""
    decode_level: Number | None = None
    """Level of noise that is added to the latent, for a decoder that removes it, as LTX-Video's from 0.9.1 on: the
    `decode_timestep` of diffusers. Default: 0."""
    layout: str | None = None
    """Axes of arrays, see `clips.layout`. Default: as in the training run."""
    range: tuple[Number, ...] = ()
    """Values of arrays that are black and white, see `clips.range`. Default: as in the training run."""

    @property
    def sampling(self) -> dict[str, Any]:
        """The steps, the seed and the level that are given, as fields of a sampler."""
        fields = {"steps": self.decode_steps, "seed": self.decode_seed, "level": self.decode_level}
        return {name: value for name, value in fields.items() if value is not None}

    def with_arrays(self, clips: ClipConfig) -> ClipConfig:
        """Return clips whose arrays have the layout and the range that are set here, if any."""
        return replace(clips, layout=self.layout or clips.layout, range=self.range or clips.range)


@group
class MeasuredClips(ModelUse):
    """Which clips are measured, and with which weights of a run."""

    data: UserPath | None = None
    """The input videos: a folder (searched recursively) or one video, or the address of one. Required to measure."""
    max_clips: Integer | None = None
    """Maximum number of clips to measure, spread evenly over the videos. Default: 100, or that of the protocol."""
    num_frames: Integer | None = None
    """Frames in a clip. Default: as in the training run, or 17 without a run."""
    height: Integer | None = None
    """Height of a clip. Default: as in the training run; that of the videos if reconstructions are videos; else 256."""
    width: Integer | None = None
    """Width of a clip. Its default does not depend on `height`: as in the training run, the videos' width, or 256."""
    stride: Integer | None = None
    """Distance between the frames of a clip. Default: as in the training run, or 1 without a run."""
    fps: Number | None = None
    """Frames per second of the clips, see `clips.fps`. Default: as in the training run, unless `stride` is set."""

    @property
    def input_data(self) -> str:
        """`data`, which has to be set.

        Raises:
            ValueError: It is None.
        """
        if self.data is None:
            remedy = "Add `--data my_videos/`."
            raise argument_error("data", "a file, or a folder of files", "nothing", remedy)
        return self.data

    @property
    def clip_limit(self) -> int:
        """`max_clips`, or its default."""
        return 100 if self.max_clips is None else self.max_clips

    def clip_config(self, base: ClipConfig) -> ClipConfig:
        """Return `base` with the length, size and times that are set here, to read clips at fixed places.

        Clips have one size, are no images among videos, and are neither turned nor zoomed, nor kept in memory. The
        settings of random draws stay, such as `weighting`: `telecine latents --probe` draws its training clips by them.
        """
        values = ClipConfig().values_marked(TRAINING)
        for name in settings_marked(MEASURED):
            value = getattr(self, name)
            if value is not None:
                values[name] = value
        if self.fps is None and self.stride is not None:
            values["fps"] = None
        if self.stride is None and self.fps is not None:
            values["stride"] = 1
        return self.with_arrays(replace(base, **values))


@group
class EvaluateConfig(MeasuredClips):
    """Which clips are measured, and with which metrics."""

    decoder: UserPath | None = None
    """Decode with this model instead, e.g. the teacher of a student with an encoder of its own: a run, a saved
    autoencoder, a name on the Hub, or tiny. All metrics are then those of its reconstructions."""
    features: UserPath | None = None
    """Network of the Frechet distance between all reconstructions and all inputs: the path of an I3D as TorchScript
    (reported as fvd), or "transnetv2" (reported as frechet_transnetv2; needs the extra `frechet`). Needs more clips
    than the network has features. "none": leave it out of a protocol that needs it."""
    protocol: ProtocolName | None = None
    """Measure as published results were: clips, frame rate, resizing, values and metrics are those of the protocol,
    other settings that contradict it are refused."""
    flow: Literal["dis"] | None = None
    """Also measure the warping error, by this optical flow: "dis" is OpenCV's, which needs the extra `protocols`."""
    chunk: Count | None = None
    """Also reconstruct clips in chunks of this many frames, and measure how far they are from whole ones."""
    overlap_frames: Integer = 0
    """Frames that these chunks share and are blended over, for a model that keeps no frames between them."""
    tile: Integer | None = None
    """Also reconstruct clips in tiles of this height and width, and measure how far they are from whole ones."""
    tile_overlap: Integer | None = None
    """Pixels that these tiles share and are blended over. Default: a quarter of the tile."""
    flat: bool = False
    """Also reconstruct clips of one colour, and measure the colour's error, the pattern and the shimmer."""
    speed: bool = False
    """Also measure frames per second, memory and operations of encoding and of decoding, for a clip of this size. With
    --compare: of all models, in turns."""
    round_trips: Count | None = None
    """Also reconstruct each clip, then its reconstruction, and so on, this many times, and measure each pass."""
    through: Codec | None = None
    """Codec through which the reconstruction of each pass goes: "h264" is x264 with crf 18 and 4:2:0."""

    def __post_init__(self) -> None:
        if self.flat and self.protocol is not None:
            raise argument_error(
                "flat", "false with a protocol", self.flat, "Measure it in a call of its own."
            )
        if self.speed and self.protocol is not None:
            remedy = "Measure it in a call of its own, with `num_frames`, `height` and `width`."
            raise argument_error("speed", "false with a protocol", self.speed, remedy)
        if self.round_trips is not None and self.protocol is not None:
            contract = "left out with a protocol"
            remedy = "Measure it in a call of its own."
            raise argument_error("round_trips", contract, self.round_trips, remedy)
        if self.through is not None and self.round_trips is None:
            contract = "left out without `round_trips`"
            raise argument_error("through", contract, self.through, "Set `round_trips`, too.")
        if self.chunk is not None:
            check_overlap(self.chunk, self.overlap_frames)
        if self.overlap_frames and self.chunk is None:
            raise argument_error(
                "overlap_frames",
                "left out without `chunk`",
                self.overlap_frames,
                "Set `chunk`, too.",
            )
        check_tiles(self.tile, self.tile_overlap or 0)

    @property
    def feature_network(self) -> str | None:
        """`features`, or None if it is "none"."""
        return None if self.features == "none" else self.features


@group
class ProbeConfig:
    """A small generator that is trained on the latents by flow matching, and measured on those of unseen videos."""

    val_data: UserPath | None = None
    """The unseen videos. Without it, whole videos of the data are held out: a tenth, of ten videos or more."""
    steps: Count = 3000
    """Updates."""
    size: Literal["tiny", "small", "base"] = "tiny"
    """The transformer: 2 layers of 96 features ("tiny", for a CPU), 12 of 384 or 12 of 768."""
    causal: bool = False
    """Let a latent frame attend to itself and earlier frames alone."""
    batch_size: Count = 16
    """Clips in an update."""
    num_clips: Count = 512
    """Training clips. A folder beside the run keeps their latents, which other settings of the generator share."""
    lr: Positive = 2e-3
    """Learning rate after a warm-up, before half a cosine. Larger sizes need a smaller one."""
    seed: Integer = 0
    """Seed of the weights, the clips and the noise."""
    features: UserPath | None = None
    """Network of the Frechet distances between unseen clips, their reconstructions and as many samples: the path of an
    I3D as TorchScript, or "transnetv2". It needs more clips, see `max_clips`, than it has features (256)."""


@group
class LatentsConfig(MeasuredClips):
    """Which clips are encoded, the model whose latents they are compared with, and a generator of the latents."""

    base: UserPath | None = None
    """Measure the drift from the latents of this run, checkpoint or saved autoencoder, e.g. what was fine-tuned."""
    features: UserPath | None = None
    """Network of the Frechet distances of reconstructions, and of decoded interpolated latents, to the clips: the path
    of an I3D as TorchScript, or "transnetv2" (needs the extra `frechet`). It needs more clips, see `max_clips`, than it
    has features (256)."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """With `--probe`: a small generator that is trained on the latents of `data`, and how well it does."""


@group
class ReconstructConfig(ModelUse):
    """How a video is reconstructed."""

    num_frames: Count = 17
    """Frames that the autoencoder processes at once, rounded to a number that it accepts. Their number changes nothing
    for a model that keeps frames between chunks; others reconstruct each chunk by itself."""
    overlap_frames: Integer = 0
    """Frames that consecutive chunks share and are blended over, for a model that keeps no frames between chunks."""
    tile: Integer | None = None
    """Height and width of the tiles that the autoencoder processes one by one, which bounds memory for large frames.
    Rounded up to a size that it accepts. Default: whole frames."""
    tile_overlap: Integer | None = None
    """Pixels that neighbouring tiles share and are blended over. Rounded up to a multiple of the autoencoder's stride.
    Default: a quarter of the tile."""
    height: Count | None = None
    """Height to resize the video to, in square pixels. Default: the video's height, or from its aspect ratio if `width`
    is given."""
    width: Count | None = None
    """Width to resize the video to. Default: like `height`."""
    bit_depth: BitDepth = 8
    """Bits of a channel that are read and written. 16 needs an MKV as output, as a model of grey or RGBA does."""
    compare: bool = False
    """Write input, reconstruction and difference side by side."""

    def __post_init__(self) -> None:
        check_overlap(self.num_frames, self.overlap_frames)
        check_tiles(self.tile, self.tile_overlap or 0)
