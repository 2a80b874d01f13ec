"""Protocols of published figures, by name: which clips, how they are read and measured, and where each is stated."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

from telecine.base.checks import argument_error
from telecine.settings import ProtocolName

CLIP_CHOICES = {
    "all": "consecutive clips of each video from its first frame on; the last one repeats the video's last frame",
    "first": "the first frames of each video; videos that are too short are left out",
    "whole": "each video whole",
}
VALUES = {
    "float": "float32, reconstructions clamped to [-1, 1]",
    "rounded": "inputs and reconstructions clamped and rounded to 8 bits",
    "truncated": "inputs and reconstructions clamped, and cut to 8 bits without rounding",
}


@dataclass(frozen=True)
class PublishedProtocol:
    """How published figures were measured. Every field is an item: figures of other items do not compare.

    Raises:
        ValueError: Items contradict each other.
    """

    name: ProtocolName
    """The name, for `--protocol`."""
    data: str
    """The videos that the figures are of. They are passed by path."""
    num_videos: int | None
    """Number of these videos. None: not stated, or not checked."""
    clips: Literal["all", "first", "whole"]
    """Which clips of a video are measured, a key of `CLIP_CHOICES`."""
    num_frames: int | None
    """Frames in a clip. None: as many as the video has."""
    sample_fps: float | None
    """Every n-th frame is used, with n the file's frame rate over this one, rounded. None: every frame."""
    max_length: tuple[int, float] | None
    """Frames and seconds; a video is cut after the longer of the two. None: not cut."""
    short_side: int | None
    """Length to which the shorter side of a frame is resized. None: frames keep their size."""
    interpolation: Literal["bilinear", "lanczos"]
    """How frames are resized, with antialiasing: by torchvision ("bilinear") or by Pillow ("lanczos")."""
    enlarge: bool
    """Whether frames with a shorter side below `short_side` are resized, too."""
    crop: int | None
    """Side of the square at the centre to which frames are cropped. None: not cropped."""
    posterior: Literal["sample", "mode"]
    """What is decoded."""
    chunk: int | None
    """Frames that the autoencoder gets at once; consecutive chunks share none. None: the clip."""
    values: Literal["float", "rounded", "truncated"]
    """The values that are measured, a key of `VALUES`."""
    metrics: tuple[str, ...]
    """The metrics, by the names of their definitions."""
    sources: tuple[str, ...]
    """Where the items are stated: the paper, and files of the published code."""
    not_stated: tuple[str, ...]
    """What the sources do not state, with what is done here."""
    deviations: tuple[str, ...]
    """What the published code does otherwise, with what is done here."""

    def __post_init__(self) -> None:
        if (self.clips == "whole") != (self.num_frames is None):
            remedy = "Leave `num_frames` out for whole videos only."
            raise argument_error("clips", "whole, or of a number of frames", self.clips, remedy)
        if self.chunk is not None and self.posterior != "mode":
            raise argument_error("posterior", "the mode in chunks", self.posterior, "Leave `chunk` out.")

    def as_items(self) -> dict[str, object]:
        """Return every item but the name, as JSON has it."""
        items = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in items.items() if key != "name"}

    def stride(self, fps: float) -> int:
        """Return the distance between the frames of a clip, in a video of this frame rate; 0 if it is too low."""
        return 1 if self.sample_fps is None else round(fps / self.sample_fps)

    def length(self, num_frames: int, fps: float) -> int:
        """Return how many of a video's frames are used."""
        if self.max_length is None:
            return num_frames
        frames, seconds = self.max_length
        return min(num_frames, max(frames, math.ceil(seconds * fps)))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of a frame of this size after resizing, before the crop."""
        short = min(height, width)
        if self.short_side is None or short == self.short_side or (short < self.short_side and not self.enlarge):
            return height, width
        # torchvision cuts the longer side to a whole number, the script of TokenBench rounds it.
        rounding = 0.5 if self.interpolation == "lanczos" else 0.0
        longer = int(self.short_side * max(height, width) / short + rounding)
        return (self.short_side, longer) if height <= width else (longer, self.short_side)

    def describe_resize(self) -> str:
        """Return how frames are resized, in words."""
        if self.short_side is None:
            return "not resized"
        kind = "bilinear by torchvision" if self.interpolation == "bilinear" else "Lanczos by Pillow"
        smaller = "" if self.enlarge else ", smaller videos not"
        return f"shorter side to {self.short_side}, {kind}, antialiased{smaller}"


DECODER = "frames are decoded by decord; here by PyAV, whose conversion to RGB differs slightly"
BFLOAT16 = "the model computes in bfloat16; here in the precision in which it was saved"
VIDTOK = PublishedProtocol(
    name="vidtok",
    data="MCL-JCV, 30 videos",
    num_videos=30,
    clips="all",
    num_frames=17,
    sample_fps=30,
    max_length=None,
    short_side=256,
    interpolation="bilinear",
    enlarge=True,
    crop=256,
    posterior="sample",
    chunk=None,
    values="float",
    metrics=("psnr_frames_epsilon", "ssim_valid", "lpips_vgg", "fvd"),
    sources=(
        "arXiv 2412.13061, table 1: 17 x 256 x 256, MCL-JCV, 30 frames a second",
        "github.com/microsoft/VidTok, README.md, section Performance: 30 videos",
        "github.com/microsoft/VidTok, vidtok/data/vidtok.py, VidTokValDataset: clips, frame rate, resize, crop",
        "github.com/microsoft/VidTok, scripts/inference_evaluate.py: posterior, range, means over frames and clips",
        "github.com/microsoft/VidTok, vidtok/modules/util.py, compute_psnr, compute_ssim; modules/lpips.py: VGG16",
    ),
    not_stated=("FVD: network, clips and their number; here of the I3D in `features`, over all clips",),
    deviations=(DECODER,),
)


def wf_vae(name: ProtocolName, num_frames: int, not_stated: tuple[str, ...]) -> PublishedProtocol:
    """Return the protocol of WF-VAE for clips of this length."""
    return PublishedProtocol(
        name=name,
        data="WebVid-10M or Panda-70M",
        num_videos=None,
        clips="first",
        num_frames=num_frames,
        sample_fps=None,
        max_length=None,
        short_side=256,
        interpolation="bilinear",
        enlarge=True,
        crop=256,
        posterior="sample",
        chunk=None,
        values="truncated",
        metrics=("psnr_frames", "ssim_valid", "lpips_alex", "fvd_single"),
        sources=(
            "arXiv 2411.17459, table 1: the data; figure 1 and table 5: 33 x 256 x 256",
            "github.com/PKU-YuanGroup/WF-VAE, examples/gen_video.sh, eval.sh: frames, size, batches of one clip",
            "github.com/PKU-YuanGroup/WF-VAE, causalvideovae/dataset/video_dataset.py: clips, resize, crop",
            "github.com/PKU-YuanGroup/WF-VAE, scripts/recon_video.py: posterior; utils/video_utils.py: 8 bits",
            "github.com/PKU-YuanGroup/WF-VAE, causalvideovae/eval/cal_psnr.py, cal_ssim.py, cal_lpips.py, cal_fvd.py",
        ),
        not_stated=(
            "which videos, and how many (issue 21 of the repository asks); here those in `data`",
            "antialiasing: the default of torchvision, whose version is not pinned; here on, the default since 0.17",
            *not_stated,
        ),
        deviations=(
            DECODER,
            BFLOAT16,
            "inputs and reconstructions are written as MPEG-4 and read again before they are measured; here not",
            "LPIPS resizes its maps to the frame before their mean; here not, which changes the fifth digit",
            "a video that is too short is replaced by the first one; here it is left out",
            "identical clips have a PSNR of 100, others no limit; here each frame has at most 100",
        ),
    )


WF_VAE_33 = wf_vae("wf_vae_33", 33, ())
WF_VAE_25 = wf_vae(
    "wf_vae_25",
    25,
    ("figures of 25 frames: that is the length of training clips (examples/train_ddp.sh); all else as for 33",),
)


def cosmos(
    name: ProtocolName,
    data: str,
    *,
    max_length: tuple[int, float] | None,
    short_side: int | None,
    sources: tuple[str, ...],
    not_stated: str,
) -> PublishedProtocol:
    """Return the protocol of Cosmos for one of its sets of videos."""
    return PublishedProtocol(
        name=name,
        data=data,
        num_videos=None,
        clips="whole",
        num_frames=None,
        sample_fps=None,
        max_length=max_length,
        short_side=short_side,
        interpolation="lanczos",
        enlarge=False,
        crop=None,
        posterior="mode",
        chunk=17,
        values="rounded",
        metrics=("psnr_bytes", "psnr_modulo", "ssim_uniform", "lpips_vgg", "fvd"),
        sources=(
            *sources,
            "github.com/NVIDIA/Cosmos-Tokenizer, cosmos_tokenizer/video_lib.py, video_cli.py: chunks of 17 frames",
            "github.com/NVlabs/TokenBench, token_bench/metrics_cli.py, token_bench/fvd.py: metrics over 8-bit videos",
        ),
        not_stated=(
            not_stated,
            "what the text of arXiv 2501.03575 adds; these items are those of the published code",
            "`--temporal_window` of the published figures; here its default, 17",
            "the decoded latent: Cosmos has no posterior; here its mode",
        ),
        deviations=(
            BFLOAT16,
            "frames are decoded by ffmpeg through mediapy, or read as images; here decoded by PyAV",
            "inputs and reconstructions are written as MP4 and read again before they are measured; here not",
            "chunks are padded on both sides, frames with 0; here at the end, by repeating frames, rows and columns",
            "psnr_modulo is what the published code computes, psnr_bytes what it documents",
            "at most 300 frames of a video count in FVD; here all that are measured",
        ),
    )


TOKENBENCH = cosmos(
    "tokenbench",
    "TokenBench: videos of BDD100K, EgoExo-4D, BridgeData V2 and Panda-70M, as list.txt names them",
    max_length=(300, 10.0),
    short_side=1080,
    sources=(
        "github.com/NVlabs/TokenBench, README.md: the sets of videos; PSNR, SSIM and rFVD",
        "github.com/NVlabs/TokenBench, token_bench/video/list.txt, preprocessing_script.py: videos, length, size",
    ),
    not_stated="whether the figures are of all videos of list.txt; here of those in `data`",
)
DAVIS = cosmos(
    "davis",
    "DAVIS (Perazzi et al. 2016)",
    max_length=None,
    short_side=None,
    sources=("github.com/NVIDIA/NeMo, nemo/collections/physicalai/Cosmos/cosmos1/models/tokenizer/README.md: DAVIS",),
    not_stated="which sequences, at which size; here those in `data`, whole, at their size, as videos without loss",
)
PROTOCOLS = {protocol.name: protocol for protocol in (VIDTOK, WF_VAE_25, WF_VAE_33, TOKENBENCH, DAVIS)}
