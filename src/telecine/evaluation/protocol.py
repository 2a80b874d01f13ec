"""What was measured and how: the definition of each metric, and the protocol of an evaluation."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from telecine.base.checks import argument_error, check_counts
from telecine.base.files import write_json
from telecine.base.shapes import VALUE_RANGE
from telecine.losses.reconstruction import MAX_PSNR

SSIM_SIGMA = 1.5
SSIM_WINDOW = 11
UNIFORM_WINDOW = 7  # the default of scikit-image's `structural_similarity`
PSNR_EPSILON = 1e-8  # VidTok adds it to the mean squared error of a frame in [0, 1]
MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = 16 * SSIM_WINDOW  # torchmetrics halves frames four times, and the window must fit
GRID_PERIODS = (2, 4, 8, 16)  # spatial strides of common autoencoders
GRID_PATCH = 32
FLAT_FRACTION = 0.25
FLOW_SIDE = 12  # DIS fails for 8 pixels, and finds a shift of one pixel from 12 on


@dataclass(frozen=True)
class _Definition:
    """Definition of one metric."""

    text: str
    """Formula, settings, source and averaging."""
    better: Literal["larger", "smaller", "nearest to 0", "nearest to 1"] = "larger"
    min_side: int = 1
    """Smallest height and width of a frame."""
    min_frames: int = 1

    def __str__(self) -> str:
        return f"{self.text}; {self.better} is better"

    def unavailable_reason(self, num_frames: int, height: int, width: int) -> str | None:
        """Return why the metric is undefined for clips of this size, or None if it is defined."""
        if min(height, width) < self.min_side:
            return f"needs frames of at least {self.min_side} x {self.min_side}, not {height} x {width}"
        if num_frames < self.min_frames:
            return f"needs at least {self.min_frames} frames, not {num_frames}"
        return None


def _grid(period: int) -> _Definition:
    text = (
        f"dB; spectral power of grey rows and columns at a period of {period} pixels over the geometric mean of that "
        "at the frequencies beside it, in the reconstruction, over the same in the input; "
        f"mean over the {FLAT_FRACTION:.0%} flattest patches of {GRID_PATCH} x {GRID_PATCH} of the input's frames "
        "(less their mean and slope), then clips"
    )
    return _Definition(text, "nearest to 0", min_side=GRID_PATCH)


WARPING = (
    "mean squared difference of a frame and the next one, warped to it by the flow between the same frames of the "
    "input, as arXiv 1808.00449; frames in [0, 1]; pixels that leave the frame, or whose forward and backward flow "
    "disagree (arXiv 1604.08610, equation 5), are left out; mean over channels and pixels, frames, then clips"
)
FLAT = "levels of 8 bits; root mean square over clips of grey and of the 8 colours of -0.8 and 0.8 in [-1, 1], of"
DEFINITIONS = {
    "psnr": _Definition(
        f"dB; 10 log10(2^2 / mean squared error over all pixels of a clip in [-1, 1]), at most {MAX_PSNR:g}; "
        "mean over clips"
    ),
    "psnr_alpha": _Definition("dB; as psnr, of the alpha of RGBA alone; mean over clips"),
    "psnr_composite": _Definition("dB; as psnr, of RGBA composited on mid-grey; mean over clips"),
    "ssim": _Definition(
        f"Wang et al. 2004; RGB frames in [0, 1], Gaussian window {SSIM_WINDOW} x {SSIM_WINDOW} with sigma "
        f"{SSIM_SIGMA}, borders reflected and counted, k1 0.01, k2 0.03; mean over channels, pixels, frames, then "
        "clips",
        min_side=SSIM_WINDOW,
    ),
    "ms_ssim": _Definition(
        f"Wang et al. 2003, as in torchmetrics; RGB frames in [0, 1], {len(MS_SSIM_BETAS)} scales with exponents "
        f"{MS_SSIM_BETAS}, window, k1 and k2 as ssim, negative terms counted as 0; mean over frames, then clips",
        min_side=MS_SSIM_SIDE,
    ),
    "lpips_vgg": _Definition("LPIPS v0.1, arXiv 1801.03924, VGG16; mean over frames, then clips", "smaller", 16),
    "lpips_alex": _Definition("LPIPS v0.1, arXiv 1801.03924, AlexNet; mean over frames, then clips", "smaller", 31),
    "flicker": _Definition(
        "mean absolute difference between the frame-to-frame differences of reconstruction and input, in [-1, 1]; "
        "mean over clips",
        "smaller",
        min_frames=2,
    ),
    "sharpness": _Definition(
        "mean squared difference of neighbouring pixels in the reconstruction over that in the input; mean over clips",
        "nearest to 1",
        min_side=2,
    ),
    **{f"grid_{period}": _grid(period) for period in GRID_PERIODS},
    # Definitions of published protocols: see `published.py`.
    "psnr_frames": _Definition(
        f"dB; 10 log10(1 / mean squared error of a frame in [0, 1]), at most {MAX_PSNR:g}; mean over frames, then clips"
    ),
    "psnr_frames_epsilon": _Definition(
        f"dB; -10 log10(mean squared error of a frame in [0, 1] + {PSNR_EPSILON:g}); mean over frames, then clips"
    ),
    "psnr_bytes": _Definition(
        "dB; 20 log10(255 / (root mean squared error of a clip in 8 bits + 1.2e-7)); mean over clips"
    ),
    "psnr_modulo": _Definition(
        "dB; as psnr_bytes, but each squared error modulo 256, because the published code subtracts and squares in 8 "
        "bits; above psnr_bytes where errors exceed 15 levels; mean over clips"
    ),
    "ssim_valid": _Definition(
        f"as ssim, without the border of {SSIM_WINDOW // 2} pixels; mean over channels, pixels, frames, then clips",
        min_side=SSIM_WINDOW,
    ),
    "ssim_uniform": _Definition(
        f"scikit-image's default; 8-bit RGB frames, uniform window {UNIFORM_WINDOW} x {UNIFORM_WINDOW}, sample "
        f"covariance, without the border of {UNIFORM_WINDOW // 2} pixels, k1 0.01, k2 0.03; mean over channels, "
        "pixels, frames, then clips",
        min_side=UNIFORM_WINDOW,
    ),
    "fvd_single": _Definition(
        "Frechet distance between sets of one clip each: the squared distance of the two feature vectors; mean over "
        "clips; not FVD of a set",
        "smaller",
        min_frames=10,
    ),
    # Measured on request.
    "warping_error": _Definition(WARPING, "smaller", FLOW_SIDE, 2),
    "warping_excess": _Definition(f"{WARPING}, less the same of the input", "nearest to 0", FLOW_SIDE, 2),
    "pieces_psnr": _Definition(
        f"dB; PSNR between the reconstruction of the whole clip and that in pieces, both clamped, at most "
        f"{MAX_PSNR:g}; mean over clips"
    ),
    "seam_psnr": _Definition(
        "dB; as pieces_psnr, of the worst frame, over its pixels at a seam: where pieces overlap, or the pixels on "
        "both sides of the edge where they meet; mean over clips"
    ),
    "flat_error": _Definition(f"{FLAT} the error of the mean colour of a clip", "smaller"),
    "flat_grid": _Definition(f"{FLAT} the difference of a pixel from the mean of its frame", "smaller"),
    "flat_shimmer": _Definition(f"{FLAT} the change of a pixel from a frame to the next", "smaller", min_frames=2),
}
METRIC_DEFINITIONS = {name: str(definition) for name, definition in DEFINITIONS.items()}


@dataclass(frozen=True)
class EvaluationProtocol:
    """Everything that a figure depends on besides the model.

    Raises:
        ValueError: A count is not positive, or a metric is neither built in nor described in `definitions`.
    """

    data: str
    """The data set, e.g. its folder."""
    num_clips: int
    """Number of clips that the means are over."""
    num_frames: int | None
    """Frames per clip. None: as many as each video has."""
    height: int | None
    """Height of a frame after resize and crop. None: that of each video."""
    width: int | None
    """Like `height`."""
    resize: str
    """For example "shorter side to 256, bilinear with antialias"."""
    crop: str
    """For example "center"."""
    metrics: tuple[str, ...]
    """The names of the reported metrics."""
    subject: str = ""
    """What was measured: a checkpoint and which of its weights, or the folder of the reconstructions."""
    num_videos: int = 1
    """Number of videos that the clips are from."""
    places: str = ""
    """Which clips of the videos were selected."""
    clips_sha256: str | None = None
    """Hash of the pixels of all input clips in order. Equal hashes mean equal inputs."""
    fps: float | None = None
    """Frame rate of the clips. None: each file's frame rate over `frame_stride`."""
    frame_stride: int = 1
    """Distance between the frames of a clip in the video."""
    backbones: tuple[tuple[str, str], ...] = ()
    """Pairs of a metric and its network with the source or hash of the weights."""
    definitions: tuple[tuple[str, str], ...] = ()
    """Pairs of a metric that is not built in and its definition."""
    absent: tuple[tuple[str, str], ...] = ()
    """Pairs of a metric that is not reported and the reason."""
    reconstruction: str = "clamped to the value range before measuring"
    """Processing of reconstructions before measuring."""
    sampler: tuple[tuple[str, object], ...] = ()
    """Name, steps and seed by which a decoder that generates is sampled, as pairs; empty for others."""
    published: tuple[tuple[str, object], ...] = ()
    """The fields of the published protocol, as pairs."""

    def __post_init__(self) -> None:
        check_counts(num_clips=self.num_clips, num_videos=self.num_videos, frame_stride=self.frame_stride)
        size = {"num_frames": self.num_frames, "height": self.height, "width": self.width}
        check_counts(**{name: value for name, value in size.items() if value is not None})
        if unknown := [name for name in self.metrics if name not in self._definitions()]:
            raise argument_error("metrics", "metrics with a definition", str(unknown), "Add them to `definitions`.")

    def _definitions(self) -> dict[str, str]:
        return METRIC_DEFINITIONS | dict(self.definitions)

    def better(self, name: str) -> str:
        """Return which values of a metric are better, as its definition ends with."""
        return self._definitions()[name].rpartition("; ")[2].removesuffix(" is better")

    def as_dict(self) -> dict[str, object]:
        """Return the content of `protocol.json`: all fields, the metrics' definitions, the value range and versions."""
        values: dict[str, object] = asdict(self)
        del values["definitions"]
        values |= {name: dict(getattr(self, name)) for name in ("backbones", "absent", "sampler", "published")}
        values["value_range"] = list(VALUE_RANGE)
        values["metrics"] = {name: self._definitions()[name] for name in self.metrics}
        versions = {package: version(package) for package in ("telecine", "torch", "torchmetrics", "av")}
        return values | {"versions": {"python": platform.python_version()} | versions}

    def write(self, path: str | Path) -> None:
        """Write `as_dict()` as JSON to `path`, atomically."""
        write_json(Path(path), self.as_dict())
