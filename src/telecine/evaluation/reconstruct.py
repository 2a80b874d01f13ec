"""Reconstruction of whole videos, written as MP4 or as lossless MKV, and of images, written as PNG."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from telecine.base.background import in_background
from telecine.base.checks import argument_error, check_type
from telecine.base.devices import pick_device
from telecine.base.files import atomic_write
from telecine.base.shapes import VALUE_RANGE
from telecine.base.terminal import with_progress
from telecine.data import VideoInfo, bytes_from_video, index_video, iterate_frames, video_from_bytes
from telecine.data.arrays import write_array
from telecine.data.decode import open_video
from telecine.data.outputs import check_output
from telecine.data.source import is_address
from telecine.evaluation.load_model import Model, clips_to_read, load_infos, load_model
from telecine.evaluation.metrics.pixels import psnr
from telecine.evaluation.reconstructors import by_name
from telecine.evaluation.tiling import (
    count_chunks,
    iterate_reconstruction,
    rounded_tiling,
    split_frames,
)
from telecine.models import VideoAutoencoder
from telecine.settings import PixelFormat, ReconstructConfig, Tiling
from telecine.video.frames import depth_range
from telecine.video.panes import side_by_side
from telecine.video.write import write_image, write_video

_VIDEO_SUFFIXES = (".mp4", ".mkv")
_IMAGE_SUFFIXES = (".png",)
_ARRAY_SUFFIXES = (".npy",)


def reconstruct(
    checkpoint: Model,
    video: str | Path,
    output: str | Path,
    config: ReconstructConfig | None = None,
) -> float:
    """Reconstruct a video or an image, or all of a folder, and write the results.

    An MP4 has its frames at the same times. The autoencoder processes at most `num_frames` frames of one tile at once,
    for videos of any length and size. Chunks and tiles are padded to sizes that it accepts by repeating the last frame,
    row and column, and cropped afterwards.

    The sound of a video is copied without decoding it. An MKV can hold nearly every codec. Sound that MP4s rarely
    have, such as PCM, is left out of an MP4, with a warning. Subtitles are not copied.

    With `compare`, a video of depth is read twice: first for its range of values.

    Args:
        checkpoint: Folder of a run (its last checkpoint), of a checkpoint, or of a saved autoencoder; or a module,
            which is moved to the device and to eval mode.
        video: The file, or a folder: its videos or, without videos, its images.
        output: For a video an `.mp4` (H.264), or an `.mkv` (FFV1), which keeps all values, alpha and 16 bits; for an
            image a `.png`; for an array an `.npy` of its layout, range and type; for a folder the folder for these.
        config: The settings.

    Returns:
        The mean over files of the mean PSNR of their frames, in dB.

    Raises:
        ValueError: The checkpoint or a file cannot be read, or the output has another suffix, or is the input, or does
            not keep the model's channels and bits, or is a file for the results of a folder.
    """
    config = ReconstructConfig() if config is None else config
    check_type("config", config, ReconstructConfig, "Use `ReconstructConfig(num_frames=17)`.")
    if not is_address(str(video)) and not Path(video).exists():
        contract = "a file or a folder that exists"
        raise argument_error("video", contract, repr(str(video)), "Check the path.")
    device = pick_device(config.device)
    model = load_model(checkpoint, config, device)
    clips = clips_to_read(checkpoint, model, config)
    check_output("output", video, output)
    files: list[tuple[VideoInfo, Path]] = []
    if Path(video).is_dir():
        _check_is_folder(Path(output), Path(video))
        for name, info in by_name(load_infos(video, clips, name="video"), video).items():
            files.append(
                (info, Path(output, name + _default_suffix(info, model.in_channels, config)))
            )
    else:
        info = index_video(video, clips)
        _check_output(Path(output), Path(video), _possible_suffixes(info, config))
        files.append((info, Path(output)))
    for _, path in files:
        _check_keeps(path, model.in_channels, config)
    pixels = clips.pixel_format._replace(bit_depth=config.bit_depth)
    return mean(
        [_reconstruct_file(model, info, path, config, pixels, device) for info, path in files]
    )


def _reconstruct_file(
    model: VideoAutoencoder,
    info: VideoInfo,
    output: Path,
    config: ReconstructConfig,
    pixels: PixelFormat,
    device: torch.device,
) -> float:
    suffix = output.suffix.lower()
    keeps_size = config.height is None and config.width is None
    if suffix == ".mkv" and keeps_size:  # its pixels are square
        config = replace(config, height=info.height, width=info.width)
        keeps_size = False
    limits = _depth_range(info, config, pixels) if config.compare else None
    pairs = reconstruct_frames(model, info, config, device, pixels)
    chunks = _MeasuredChunks(
        in_background(_written_chunks(pairs, config, limits, is_array=suffix in _ARRAY_SUFFIXES))
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    if suffix in _ARRAY_SUFFIXES:
        atomic_write(output, lambda partial: write_array(partial, info, chunks))
    elif suffix in _IMAGE_SUFFIXES:
        (frame,) = torch.cat(list(chunks))
        write_image(output, frame)
    else:
        first_pts = min(info.pts)
        write_video(
            output,
            (frame for chunk in chunks for frame in chunk),
            info.fps,
            pts=sorted(pts - first_pts for pts in info.pts),
            time_base=info.time_base,
            # Stored pixels need not be square.
            sample_aspect_ratio=info.sample_aspect_ratio if keeps_size else 1.0,
            sound=info.source,
            sound_start=_start_of(info),
            hdr=info.hdr if pixels.hdr == "as_stored" else "",
        )
    return chunks.mean_psnr()


def _start_of(info: VideoInfo) -> float:
    """Return when the first frame of a video is shown in its file, in seconds."""
    if info.seekable:
        return min(info.pts) * info.time_base
    with open_video(info.source) as (_, stream):  # frames are numbered instead
        return float((stream.start_time or 0) * (stream.time_base or 0))


class _MeasuredChunks:
    """Chunks to write, once, and the PSNR of the frames of those that were iterated over.

    Args:
        chunks: Each chunk with the PSNR of its frames, see `_written_chunks`.
    """

    def __init__(self, chunks: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._chunks = chunks
        self._frame_psnr: list[Tensor] = []

    def __iter__(self) -> Iterator[Tensor]:
        for chunk, frame_psnr in self._chunks:
            self._frame_psnr.append(frame_psnr)
            yield chunk

    def mean_psnr(self) -> float:
        """Return the mean over frames in dB, after all chunks were written."""
        return float(torch.cat(self._frame_psnr).mean())


def _written_chunks(
    pairs: Iterable[tuple[Tensor, Tensor]],
    config: ReconstructConfig,
    limits: tuple[int, int] | None,
    *,
    is_array: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what is written of each pair of `reconstruct_frames`, and the PSNR of each of its frames."""
    for target, reconstruction in pairs:
        frame_psnr = psnr(reconstruction=reconstruction, target=target).cpu()
        recon_bytes = bytes_from_video(reconstruction.transpose(0, 1), config.bit_depth).cpu()
        if config.compare:
            target_bytes = bytes_from_video(target.transpose(0, 1), config.bit_depth).cpu()
            both = side_by_side(inputs=[target_bytes], reconstructions=[recon_bytes], limits=limits)
            yield both, frame_psnr
        elif is_array:
            yield reconstruction, frame_psnr
        else:
            yield recon_bytes, frame_psnr


def reconstruct_frames(
    model: VideoAutoencoder,
    info: VideoInfo,
    config: ReconstructConfig,
    device: torch.device,
    pixels: PixelFormat,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a video's frames and their reconstructions, both `(T, C, H, W)` in [-1, 1], while a thread reads ahead.

    Args:
        model: The autoencoder, on the device.
        info: The video.
        config: The chunks, tiles and size.
        device: Where frames are reconstructed.
        pixels: What is read of a pixel.
    """
    tiles = rounded_tiling(Tiling.of(config.tile, config.tile_overlap), model)
    num_frames, _, _ = model.covering_clip(config.num_frames, *output_size(info, config))
    overlap = config.overlap_frames
    chunks = split_frames(_input_frames(info, config, pixels), num_frames, overlap)
    total = count_chunks(info.num_frames, num_frames, overlap)

    def videos() -> Iterator[Tensor]:
        for frames in with_progress(in_background(chunks), "reconstructing", total=total):
            video = video_from_bytes(frames).to(device)
            yield video.transpose(0, 1)

    for video, recon in iterate_reconstruction(model, videos(), num_frames, overlap, tiles):
        yield video, recon.clamp_(*VALUE_RANGE)


def _input_frames(
    info: VideoInfo, config: ReconstructConfig, pixels: PixelFormat
) -> Iterator[Tensor]:
    return iterate_frames(info, output_size(info, config), pixels)


def _depth_range(
    info: VideoInfo, config: ReconstructConfig, pixels: PixelFormat
) -> tuple[int, int] | None:
    """Read a video of depth, and return its least and largest value; None for others, which are not read."""
    if (pixels.channels, pixels.bit_depth) != ("grey", 16):
        return None
    lows = []
    highs = []
    for frame in _input_frames(info, config, pixels):
        limits = depth_range(bytes_from_video(video_from_bytes(frame[None]), 16))
        assert limits is not None
        lows.append(limits[0])
        highs.append(limits[1])
    return min(lows), max(highs)


def _possible_suffixes(info: VideoInfo, config: ReconstructConfig) -> Sequence[str]:
    if info.is_array and not config.compare:
        return _ARRAY_SUFFIXES
    if info.is_image:
        return _IMAGE_SUFFIXES
    return _VIDEO_SUFFIXES


def _default_suffix(info: VideoInfo, in_channels: int, config: ReconstructConfig) -> str:
    """Return the suffix of a file in a folder: of several, the last one keeps all values."""
    suffixes = _possible_suffixes(info, config)
    if config.compare or (in_channels, config.bit_depth) == (3, 8):
        return suffixes[0]
    return suffixes[-1]


def _check_keeps(output: Path, in_channels: int, config: ReconstructConfig) -> None:
    """Raise a `ValueError` if the output has other channels or bits than the reconstruction."""
    name = f"{in_channels} channels of {config.bit_depth} bits"
    suffix = output.suffix.lower()
    if suffix == ".png" and config.bit_depth != 8:
        raise argument_error("output", f"a video for {name}", str(output), "Set `bit_depth` to 8.")
    if suffix == ".mp4" and (in_channels, config.bit_depth) != (3, 8) and not config.compare:
        raise argument_error(
            "output", f"an MKV for {name}", str(output), f"Use {output.with_suffix('.mkv')}."
        )


def _check_is_folder(output: Path, folder: Path) -> None:
    """Raise a `ValueError` if the output is a file, or has the name of one."""
    if output.is_dir():
        return
    suffixes = (*_VIDEO_SUFFIXES, *_IMAGE_SUFFIXES, *_ARRAY_SUFFIXES)
    if output.exists() or output.suffix.lower() in suffixes:
        contract = f"a folder for the reconstructions of {folder}"
        remedy = f"Use {output.with_suffix('')}, or reconstruct one file."
        raise argument_error("output", contract, f"the file {output}", remedy)


def _check_output(output: Path, video: Path, suffixes: Sequence[str]) -> None:
    kind = "an MP4 or MKV" if suffixes == _VIDEO_SUFFIXES else f"a {suffixes[0][1:].upper()}"
    contract = f"the name of {kind}"
    if output.is_dir():
        raise argument_error("output", contract, f"the folder {output}", "Add a file name.")
    if output.suffix.lower() not in suffixes:
        contract = f"{contract}, which ends in {' or '.join(suffixes)}"
        raise argument_error(
            "output", contract, str(output), f"Use {output.with_suffix(suffixes[0])}."
        )
    if output.resolve() == video.resolve():
        raise argument_error(
            "output", "another file than the input", f"{output} for both", "Choose another name."
        )


def output_size(info: VideoInfo, config: ReconstructConfig) -> tuple[int, int]:
    """Return the height and width of a reconstruction.

    A side that `config` leaves out follows from the video's aspect ratio; without both, the stored size is kept.
    """
    if config.height is not None:
        return config.height, config.width or round(info.width * config.height / info.height)
    if config.width is not None:
        return round(info.height * config.width / info.width), config.width
    return info.stored_size
