"""Reconstruction of a whole video with an autoencoder, written as an MP4 or a lossless MKV."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from telecine.autoencoders import VideoAutoencoder
from telecine.autoencoders.interface import sampling
from telecine.base.checks import argument_error
from telecine.base.devices import pick_device
from telecine.base.shapes import VALUE_RANGE
from telecine.base.terminal import with_progress
from telecine.data import VideoInfo, bytes_from_video, index_video, iterate_frames, video_from_bytes
from telecine.evaluation.pixel_metrics import psnr
from telecine.evaluation.source import Model, load_model
from telecine.evaluation.tiling import (
    blended_chunks,
    count_chunks,
    overlapping_chunks,
    reconstruct_tiled,
    rounded_tiling,
)
from telecine.report.clips import side_by_side
from telecine.report.video import VideoWriter
from telecine.settings import PixelFormat, ReconstructConfig, channels_named


def reconstruct(
    checkpoint: Model, video: str | Path, output: str | Path, config: ReconstructConfig | None = None
) -> float:
    """Reconstruct a video by chunks and tiles, write it with frames at the same times; return the mean PSNR in dB.

    The autoencoder processes at most `num_frames` frames of one tile at once, for videos of any length and size. Chunks
    and tiles are padded to sizes that it accepts by repeating the last frame, row and column, and cropped afterwards.

    Args:
        checkpoint: Folder of a run (its last checkpoint), of a checkpoint, or of a saved autoencoder; or a module,
            which is moved to the device and to eval mode.
        video: The file.
        output: The file to write: an `.mp4` (H.264), or an `.mkv` (FFV1), which keeps all values, alpha and 16 bits.
        config: The settings.

    Raises:
        ValueError: The checkpoint or the video cannot be read, or the output is neither, a folder, the video, or an MP4
            of other values than RGB of 8 bits.
    """
    config = config or ReconstructConfig()
    _check_output(Path(output), Path(video))
    device = pick_device(config.device)
    model = load_model(checkpoint, config.weights, device, config)
    is_mp4 = Path(output).suffix.lower() == ".mp4"
    if is_mp4 and (model.in_channels, config.bit_depth) != (3, 8) and not config.compare:
        contract = f"an MKV for {model.in_channels} channels of {config.bit_depth} bits"
        raise argument_error("output", contract, str(output), f"Use {Path(output).with_suffix('.mkv')}.")
    info = index_video(video)
    start = min(info.pts)
    pts = sorted(each - start for each in info.pts)
    # Stored pixels need not be square.
    aspect = info.sample_aspect_ratio if config.height is None and config.width is None else 1.0
    frame_psnr: list[Tensor] = []
    with VideoWriter(output, info.fps, pts=pts, time_base=info.time_base, sample_aspect_ratio=aspect) as writer:
        for frames, reconstruction in _reconstruct_frames(model, info, config, device):
            target = video_from_bytes(frames).to(device).transpose(0, 1)
            frame_psnr.append(psnr(reconstruction=reconstruction, target=target).cpu())
            recon_frames = bytes_from_video(reconstruction.transpose(0, 1), config.bit_depth).cpu()
            if config.compare:
                recon_frames = side_by_side(inputs=[frames], reconstructions=[recon_frames])
            writer.add(recon_frames)
    return float(torch.cat(frame_psnr).mean())


def _reconstruct_frames(
    model: VideoAutoencoder, info: VideoInfo, config: ReconstructConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a video's frames `(T, H, W, C)`, and their reconstructions, `(T, C, H, W)` in [-1, 1]."""
    size, pixels = _output_size(info, config), PixelFormat(channels_named(model.in_channels), config.bit_depth)
    tiling = rounded_tiling(config.tiling(), model)
    num_frames, overlap = model.covering_clip(config.num_frames, *size)[0], config.overlap_frames

    starts = count(0, num_frames - overlap)

    def reconstruct_chunk(frames: Tensor) -> Tensor:
        with sampling(model, first_frame=next(starts)):
            reconstruction = reconstruct_tiled(model, video_from_bytes(frames).to(device), tiling)
        return reconstruction.clamp_(*VALUE_RANGE).transpose(0, 1)

    chunks = overlapping_chunks(iterate_frames(info.path, size, pixels), num_frames, overlap)
    total = count_chunks(info.num_frames, num_frames, overlap)
    return blended_chunks(with_progress(chunks, "reconstructing", total=total), overlap, reconstruct_chunk)


def _check_output(output: Path, video: Path) -> None:
    """Raise a `ValueError` if the output cannot be written or would replace the video."""
    if output.is_dir():
        raise argument_error("output", "the name of an MP4 or MKV", f"the folder {output}", "Add a file name.")
    if output.suffix.lower() not in (".mp4", ".mkv"):
        contract = "the name of an MP4 or MKV, which ends in .mp4 or .mkv"
        raise argument_error("output", contract, str(output), f"Use {output.with_suffix('.mp4')}.")
    if output.resolve() == video.resolve():
        raise argument_error("output", "another file than the video", f"{output} for both", "Choose another name.")


def _output_size(info: VideoInfo, config: ReconstructConfig) -> tuple[int, int]:
    """Return the height and width at which a video is reconstructed."""
    if config.height is not None:
        return config.height, config.width or round(info.width * config.height / info.height)
    if config.width is not None:
        return round(info.height * config.width / info.width), config.width
    return info.stored_size
