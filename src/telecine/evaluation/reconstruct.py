"""Reconstruction of whole videos, written as MP4 or as lossless MKV, and of images, written as PNG."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import mean

import torch
from PIL import Image
from torch import Tensor

from telecine.base.checks import argument_error, check_type
from telecine.base.devices import pick_device
from telecine.base.files import atomic_write
from telecine.base.shapes import VALUE_RANGE
from telecine.base.terminal import with_progress
from telecine.data import VideoInfo, bytes_from_video, index_video, iterate_frames, video_from_bytes
from telecine.data.arrays import write_array
from telecine.data.find import check_output
from telecine.evaluation import tiling
from telecine.evaluation.pixel_metrics import psnr
from telecine.evaluation.source import Model, by_name, clips_of, index_data, load_model
from telecine.models import VideoAutoencoder
from telecine.report.clips import side_by_side
from telecine.report.video import depth_range, write_video
from telecine.settings import ClipConfig, PixelFormat, ReconstructConfig, Tiling, channels_named

_VIDEOS, _PNG, _NPY = (".mp4", ".mkv"), ".png", ".npy"


def reconstruct(
    checkpoint: Model, video: str | Path, output: str | Path, config: ReconstructConfig | None = None
) -> float:
    """Reconstruct a video or an image, or all of a folder, and write the results; return the mean PSNR in dB.

    An MP4 has its frames at the same times. The autoencoder processes at most `num_frames` frames of one tile at once,
    for videos of any length and size. Chunks and tiles are padded to sizes that it accepts by repeating the last frame,
    row and column, and cropped afterwards.

    Args:
        checkpoint: Folder of a run (its last checkpoint), of a checkpoint, or of a saved autoencoder; or a module,
            which is moved to the device and to eval mode.
        video: The file, or a folder: its videos or, without videos, its images.
        output: For a video an `.mp4` (H.264), or an `.mkv` (FFV1), which keeps all values, alpha and 16 bits; for an
            image a `.png`; for an array an `.npy` of its layout, range and type; for a folder the folder for these.
        config: The settings.

    Raises:
        ValueError: The checkpoint or a file cannot be read, or the output has another suffix, or is the input, or does
            not keep the model's channels and bits.
    """
    config = ReconstructConfig() if config is None else config
    check_type("config", config, ReconstructConfig, "Use `ReconstructConfig(num_frames=17)`.")
    device = pick_device(config.device)
    model = load_model(checkpoint, config, device)
    of_run = clips_of(checkpoint, model)
    arrays = {"layout": config.layout or of_run.layout, "range": config.range or of_run.range}
    clips = ClipConfig(channels=model.in_channels, **arrays)  # type: ignore[arg-type]
    check_output("output", video, output)
    if Path(video).is_dir():
        infos = by_name(index_data(video, clips, name="video"), video)
    else:
        infos = {"": index_video(video, clips)}
        _check_output(Path(output), Path(video), _suffixes(infos[""], config))
    is_exact = not config.compare and (model.in_channels, config.bit_depth) != (3, 8)
    suffixes = {name: _suffixes(info, config)[-1 if is_exact else 0] for name, info in infos.items()}
    files = [(info, Path(output, name + suffixes[name]) if name else Path(output)) for name, info in infos.items()]
    for _, path in files:
        _check_keeps(path, model.in_channels, config)
    return mean(_reconstruct_file(model, info, path, config, device) for info, path in files)


def _reconstruct_file(
    model: VideoAutoencoder, info: VideoInfo, output: Path, config: ReconstructConfig, device: torch.device
) -> float:
    frame_psnr: list[Tensor] = []
    if (suffix := output.suffix.lower()) == ".mkv" and config.height is config.width is None:  # its pixels are square
        config = replace(config, height=info.height, width=info.width)
    limits = _depth_range(model, info, config) if config.compare else None

    def chunks() -> Iterator[Tensor]:
        for frames, reconstruction in _reconstruct_frames(model, info, config, device):
            target = video_from_bytes(frames).to(device).transpose(0, 1)
            frame_psnr.append(psnr(reconstruction=reconstruction, target=target).cpu())
            pair = target.transpose(0, 1), reconstruction.transpose(0, 1)
            shown = [bytes_from_video(each, config.bit_depth).cpu() for each in pair]
            if config.compare:
                yield side_by_side(inputs=shown[:1], reconstructions=shown[1:], limits=limits)
            else:
                yield reconstruction if suffix == _NPY else shown[1]

    output.parent.mkdir(parents=True, exist_ok=True)
    if suffix == _NPY:
        atomic_write(output, lambda partial: write_array(partial, info, chunks()))
    elif suffix == _PNG:
        image = Image.fromarray(next(chunks())[0].squeeze(-1).numpy())
        atomic_write(output, lambda partial: image.save(partial, format="PNG"))
    else:
        start = min(info.pts)
        pts = sorted(each - start for each in info.pts)
        # Stored pixels need not be square.
        aspect = info.sample_aspect_ratio if config.height is config.width is None else 1.0
        frames = chain.from_iterable(chunks())
        write_video(output, frames, info.fps, pts=pts, time_base=info.time_base, sample_aspect_ratio=aspect)
    return float(torch.cat(frame_psnr).mean())


def _reconstruct_frames(
    model: VideoAutoencoder, info: VideoInfo, config: ReconstructConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a video's frames `(T, H, W, C)`, and their reconstructions, `(T, C, H, W)` in [-1, 1]."""
    tiles = tiling.rounded_tiling(Tiling.of(config.tile, config.tile_overlap), model)
    num_frames, overlap = model.covering_clip(config.num_frames, *_output_size(info, config))[0], config.overlap_frames

    def reconstruct_chunk(frames: Tensor) -> Tensor:
        reconstruction = tiling.reconstruct_tiled(model, video_from_bytes(frames).to(device), tiles)
        return reconstruction.clamp_(*VALUE_RANGE).transpose(0, 1)

    chunks = tiling.overlapping_chunks(_frames(model, info, config), num_frames, overlap)
    total = tiling.count_chunks(info.num_frames, num_frames, overlap)
    return tiling.blended_chunks(
        model, with_progress(chunks, "reconstructing", total=total), overlap, reconstruct_chunk
    )


def _frames(model: VideoAutoencoder, info: VideoInfo, config: ReconstructConfig) -> Iterator[Tensor]:
    pixels = PixelFormat(channels_named(model.in_channels), config.bit_depth)
    return iterate_frames(info, _output_size(info, config), pixels)


def _depth_range(model: VideoAutoencoder, info: VideoInfo, config: ReconstructConfig) -> tuple[int, int] | None:
    """Return the least and the largest value of a video of depth, None for others."""
    if (model.in_channels, config.bit_depth) != (1, 16):
        return None
    shown = (bytes_from_video(video_from_bytes(frame[None]), 16) for frame in _frames(model, info, config))
    lows, highs = zip(*filter(None, map(depth_range, shown)), strict=True)
    return min(lows), max(highs)


def _suffixes(info: VideoInfo, config: ReconstructConfig) -> Sequence[str]:
    return (_NPY,) if info.layout and not config.compare else (_PNG,) if info.is_image else _VIDEOS


def _check_keeps(output: Path, in_channels: int, config: ReconstructConfig) -> None:
    """Raise a `ValueError` if the output has other channels or bits than the reconstruction."""
    name = f"{in_channels} channels of {config.bit_depth} bits"
    if output.suffix.lower() == _PNG and config.bit_depth != 8:
        raise argument_error("output", f"a video for {name}", str(output), "Set `bit_depth` to 8.")
    if output.suffix.lower() == _VIDEOS[0] and (in_channels, config.bit_depth) != (3, 8) and not config.compare:
        raise argument_error("output", f"an MKV for {name}", str(output), f"Use {output.with_suffix('.mkv')}.")


def _check_output(output: Path, video: Path, suffixes: Sequence[str]) -> None:
    contract = f"the name of {'an MP4 or MKV' if suffixes == _VIDEOS else f'a {suffixes[0][1:].upper()}'}"
    if output.is_dir():
        raise argument_error("output", contract, f"the folder {output}", "Add a file name.")
    if output.suffix.lower() not in suffixes:
        contract = f"{contract}, which ends in {' or '.join(suffixes)}"
        raise argument_error("output", contract, str(output), f"Use {output.with_suffix(suffixes[0])}.")
    if output.resolve() == video.resolve():
        raise argument_error("output", "another file than the input", f"{output} for both", "Choose another name.")


def _output_size(info: VideoInfo, config: ReconstructConfig) -> tuple[int, int]:
    if config.height is not None:
        return config.height, config.width or round(info.width * config.height / info.height)
    if config.width is not None:
        return round(info.height * config.width / info.width), config.width
    return info.stored_size
