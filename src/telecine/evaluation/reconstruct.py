"""Send a whole video through an autoencoder and write what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.autoencoders import CausalVAE
from telecine.data import VideoInfo, bytes_from_video, index_video, iterate_clips, video_from_bytes, with_progress
from telecine.devices import DeviceName, pick_device
from telecine.evaluation.metrics import psnr
from telecine.report.video import Mp4Writer, side_by_side
from telecine.runs import Weights, find_model
from telecine.shapes import argument_error


@dataclass(frozen=True)
class ReconstructConfig:
    """How a video is reconstructed."""

    num_frames: int = 17
    """Frames that go through the autoencoder at once; chunks do not see each other. Rounded up to what it accepts."""
    height: int | None = None
    """Height to resize the video to; its own by default, or by its aspect if `width` is given."""
    width: int | None = None
    """Width to resize the video to; as `height`."""
    compare: bool = False
    """Write input, reconstruction and difference side by side."""
    weights: Weights = "ema"
    """The averaged weights, or the raw ones ("model")."""
    device: DeviceName = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        for name in ("num_frames", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise argument_error(name, "at least 1", value, "Leave it out for the default.")


def reconstruct(
    checkpoint: str | Path, video: str | Path, output: str | Path, config: ReconstructConfig | None = None
) -> float:
    """Reconstruct `video` chunk by chunk, in memory that does not depend on its length, and write an MP4.

    Frames and sizes that do not fit the autoencoder's strides are extended by repeating the last frame, row and
    column, and cut again.

    Args:
        checkpoint: A run's folder (its last checkpoint), a checkpoint's, or that of a saved autoencoder.
        video: The file.
        output: The MP4 to write.
        config: How.

    Returns:
        The mean over all frames of the PSNR in dB.

    Raises:
        ValueError: If the checkpoint or the video cannot be read.
    """
    config = config or ReconstructConfig()
    check_output(Path(output), Path(video))
    device = pick_device(config.device)
    model = CausalVAE.from_pretrained(find_model(checkpoint, config.weights)).to(device).eval()
    info = index_video(video)
    size = output_size(info, config)
    num_frames, _, _ = model.covering_clip(config.num_frames, *size)
    values: list[Tensor] = []
    with Mp4Writer(output, info.fps) as writer:
        chunks = iterate_clips(video, num_frames, size)
        for frames in with_progress(chunks, "reconstructing", total=-(-info.num_frames // num_frames)):
            target = video_from_bytes(frames).to(device)
            reconstruction = pass_through(model, target).clamp(-1, 1)
            values.append(psnr(reconstruction=reconstruction.transpose(0, 1), target=target.transpose(0, 1)).cpu())
            out = bytes_from_video(reconstruction).cpu()
            writer.add(side_by_side(inputs=[frames], reconstructions=[out]) if config.compare else out)
    return float(torch.cat(values).mean())


@torch.no_grad()
def pass_through(model: CausalVAE, video: Tensor) -> Tensor:
    """Return the reconstruction of one clip `(3, T, H, W)` of any size, from the mode of its posterior."""
    shape = video.shape[1:]
    covering = model.covering_clip(*shape)
    padding = [
        amount for old, new in zip(reversed(shape), reversed(covering), strict=True) for amount in (0, new - old)
    ]
    padded = F.pad(video[None], padding, mode="replicate")
    time, height, width = shape
    return model(padded, sample_posterior=False).video[0, :, :time, :height, :width]


def check_output(output: Path, video: Path) -> None:
    """Raise a `ValueError` before any work is done if the result cannot be written or would replace the video."""
    if output.is_dir():
        raise argument_error("output", "the name of an MP4", f"the folder {output}", "Add a file name.")
    if output.resolve() == video.resolve():
        raise argument_error("output", "another file than the video", f"{output} for both", "Choose another name.")


def output_size(info: VideoInfo, config: ReconstructConfig) -> tuple[int, int]:
    """Return the height and width at which a video is reconstructed."""
    if config.height and config.width:
        return config.height, config.width
    if config.height:
        return config.height, round(info.width * config.height / info.height)
    if config.width:
        return round(info.height * config.width / info.width), config.width
    return info.height, info.width
