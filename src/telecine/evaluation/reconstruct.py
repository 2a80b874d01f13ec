"""Send a whole video through an autoencoder and write what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from telecine.autoencoders import VideoAutoencoder
from telecine.data import VideoInfo, bytes_from_video, index_video, iterate_frames, video_from_bytes, with_progress
from telecine.devices import DeviceName, pick_device
from telecine.evaluation.chunks import blended_chunks, check_overlap, count_chunks, overlapping
from telecine.evaluation.model import load_model
from telecine.evaluation.pixels import psnr
from telecine.evaluation.tiles import Tiling, reconstruct_tiled
from telecine.report.video import Mp4Writer, side_by_side
from telecine.runs import Weights
from telecine.shapes import VALUE_RANGE, argument_error


@dataclass(frozen=True)
class ReconstructConfig:
    """How a video is reconstructed."""

    num_frames: int = 17
    """Frames that go through the autoencoder at once, rounded up to what it accepts."""
    overlap_frames: int = 0
    """Frames that each such chunk shares with the one before, which fades into it; 0: chunks do not see each other."""
    tile: int | None = None
    """Height and width of the tiles that go through the autoencoder one by one, which bounds memory for large frames;
    rounded up to what it accepts. Whole frames by default."""
    tile_overlap: int | None = None
    """Pixels that neighbouring tiles share and are blended over, rounded up to the autoencoder's stride; a quarter of
    the tile by default."""
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
        check_overlap(self.num_frames, self.overlap_frames)
        self.tiling()

    def tiling(self) -> Tiling:
        """Return how frames are cut.

        Raises:
            ValueError: the tile and its overlap do not go together.
        """
        if self.tile is None:
            return Tiling()
        return Tiling(self.tile, self.tile // 4 if self.tile_overlap is None else self.tile_overlap)


def reconstruct(
    checkpoint: str | Path, video: str | Path, output: str | Path, config: ReconstructConfig | None = None
) -> float:
    """Reconstruct `video` chunk by chunk and tile by tile, and write an MP4.

    The autoencoder never sees more than `num_frames` frames of one tile, however long and large the video is. Frames
    and sizes that do not fit its strides are extended by repeating the last frame, row and column, and cut again.

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
    model = load_model(checkpoint, config.weights, device)
    info = index_video(video)
    values: list[Tensor] = []
    with Mp4Writer(output, info.fps) as writer:
        for frames, reconstruction in reconstructed(model, info, config, device):
            target = video_from_bytes(frames).to(device).transpose(0, 1)
            values.append(psnr(reconstruction=reconstruction, target=target).cpu())
            out = bytes_from_video(reconstruction.transpose(0, 1)).cpu()
            writer.add(side_by_side(inputs=[frames], reconstructions=[out]) if config.compare else out)
    return float(torch.cat(values).mean())


def reconstructed(
    model: VideoAutoencoder, info: VideoInfo, config: ReconstructConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a video's frames, uint8 `(T, H, W, 3)`, and their reconstructions, `(T, 3, H, W)` in [-1, 1]."""
    size = output_size(info, config)
    tiling = config.tiling().fitted_to(model)
    num_frames, _, _ = model.covering_clip(config.num_frames, *size)
    overlap = config.overlap_frames
    assert isinstance(info.path, Path)
    path = info.path

    def pass_through(frames: Tensor) -> Tensor:
        whole = reconstruct_tiled(model, video_from_bytes(frames).to(device), tiling)
        return whole.clamp_(*VALUE_RANGE).transpose(0, 1)

    chunks = overlapping(iterate_frames(path, size), num_frames, overlap)
    total = count_chunks(info.num_frames, num_frames, overlap)
    return blended_chunks(with_progress(chunks, "reconstructing", total=total), overlap, pass_through)


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
