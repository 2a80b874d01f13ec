"""Clips per second that one core reads, by codec, size and keyframe interval, beside torchcodec and decord.

    python benchmarks/reading.py

Clips are 17 frames at random places of a sample video, which is encoded with each codec at each size, with a keyframe
every 12 frames, and with one at the start only. Every reader uses one thread and opens the file anew for each clip, as
a loader of many files does. The second group of columns resizes so that the shorter side has 256 pixels: telecine by
the scaler that also converts to RGB, torchcodec's frames by `interpolate(antialias=True)`, decord by its own filter.
telecine reads an index that it made before; torchcodec's `seek_mode="approximate"` needs none.

Figures are medians over rounds, interleaved, of the process's CPU time. The last columns compare the frames at the
video's size: the largest mean difference of a frame from telecine's, in levels of 255. Readers convert to RGB with
different rounding, by about a level; another frame differs by more. Readers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import av
import torch
from measure import NOT_AVAILABLE, Step, interleaved, machine, table_row
from torch import Tensor
from torch.nn import functional as F

from telecine.data import VideoInfo, index_video, iterate_frames, read_clip, sample_videos

CODECS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "h264": ("libx264", {"preset": "medium", "crf": "20"}),
    "hevc": ("libx265", {"preset": "fast", "crf": "22", "x265-params": "log-level=none:pools=2"}),
    "vp9": ("libvpx-vp9", {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "8", "row-mt": "1"}),
    "av1": ("libsvtav1", {"preset": "10", "crf": "32"}),
}
HEIGHTS = (360, 720, 1080)
GOPS = (12, 120)
FRAMES, SIDE = 17, 256
Size = tuple[int, int]
Reader = Callable[[VideoInfo, list[int], Size | None], Tensor]
"""From a video, the numbers of its frames and the size of the result (None: the video's) to uint8 `(T, H, W, 3)`."""


def read_telecine(info: VideoInfo, frames: list[int], size: Size | None) -> Tensor:
    """Read with telecine."""
    return read_clip(info, frames[0], len(frames), size=size)


def read_torchcodec(info: VideoInfo, frames: list[int], size: Size | None) -> Tensor:
    """Read with torchcodec."""
    decoders = import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(str(info.path), num_ffmpeg_threads=1, seek_mode="approximate")
    clip: Tensor = decoder.get_frames_in_range(frames[0], frames[-1] + 1).data
    if size is not None:
        clip = F.interpolate(clip, size, mode="bicubic", antialias=True)
    return clip.movedim(1, -1)


def read_decord(info: VideoInfo, frames: list[int], size: Size | None) -> Tensor:
    """Read with decord."""
    decord = import_module("decord")
    height, width = size or (-1, -1)
    clip = decord.VideoReader(str(info.path), num_threads=1, width=width, height=height).get_batch(frames)
    return torch.from_numpy(clip.asnumpy())


UNREADABLE = {("decord", "av1")}  # decord 0.6 finds no video in it
READERS: Mapping[str, Reader] = {"telecine": read_telecine, "torchcodec": read_torchcodec, "decord": read_decord}


def installed_readers() -> dict[str, Reader]:
    """Return the readers whose packages are installed."""
    return {name: reader for name, reader in READERS.items() if find_spec(name)}


def encode(path: Path, codec: str, height: int, gop: int, num_frames: int) -> VideoInfo:
    """Write the largest sample video, from its start again when it ends, and return its index."""
    source = max(map(index_video, sample_videos()), key=lambda info: info.width * info.height)
    width = round(height * source.width / source.height / 2) * 2
    encoder, options = CODECS[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=Fraction(source.fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {**options, "g": str(gop), "keyint_min": str(gop)}
        for number, pixels in enumerate(_repeated(source, (height, width), num_frames)):
            frame = av.VideoFrame.from_ndarray(pixels.numpy(), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return index_video(path)


def _repeated(source: VideoInfo, size: Size, num_frames: int) -> list[Tensor]:
    frames: list[Tensor] = []
    while len(frames) < num_frames:
        frames += [pixels for pixels in iterate_frames(source.path, size)]
    return frames[:num_frames]


def reader_step(reader: Reader, info: VideoInfo, size: Size | None, num_clips: int) -> Step:
    """Return a step that reads clips at random places, the same for every reader."""
    places = random.Random(0)

    def read() -> None:
        for _ in range(num_clips):
            start = places.randrange(info.num_frames - FRAMES + 1)
            reader(info, list(range(start, start + FRAMES)), size)

    return read


def largest_difference(reader: Reader, info: VideoInfo) -> float:
    """Return the largest mean difference of a frame from telecine's, in levels, over clips of the whole video."""
    worst = 0.0
    for start in range(0, info.num_frames - FRAMES + 1, FRAMES):
        frames = list(range(start, start + FRAMES))
        difference = reader(info, frames, None).float() - read_telecine(info, frames, None).float()
        worst = max(worst, float(difference.abs().mean((1, 2, 3)).max()))
    return worst


def row(info: VideoInfo, codec: str, all_readers: Mapping[str, Reader], clips: int, rounds: int) -> list[str]:
    """Return the cells of one video."""
    readers = {name: reader for name, reader in all_readers.items() if (name, codec) not in UNREADABLE}
    scale = SIDE / min(info.height, info.width)
    cells = [f"{codec}, {info.height}p, a keyframe every {info.num_frames / len(info.keyframes):.0f}"]
    for size in (None, (round(info.height * scale), round(info.width * scale))):
        steps = {name: reader_step(reader, info, size, clips) for name, reader in readers.items()}
        seconds = interleaved(steps, rounds=rounds, clock=time.process_time)
        speeds = {name: f"{clips / statistics.median(seconds[name]):.1f}" for name in readers}
        cells += [speeds.get(name, NOT_AVAILABLE) for name in all_readers]
    levels = {name: f"{largest_difference(reader, info):.2f}" for name, reader in readers.items()}
    return cells + [levels.get(name, NOT_AVAILABLE) for name in all_readers if name != "telecine"]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Print the clips per second that one core reads, by codec and reader.")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), choices=list(CODECS))
    parser.add_argument("--heights", nargs="+", type=int, default=list(HEIGHTS))
    parser.add_argument("--gops", nargs="+", type=int, default=list(GOPS), help="frames between keyframes")
    parser.add_argument("--frames", type=int, default=120, help="length of the videos")
    parser.add_argument("--clips", type=int, default=4, help="number of clips of each reader in a round")
    parser.add_argument("--rounds", type=int, default=5, help="number of measured rounds")
    return parser.parse_args()


def main() -> None:
    """Measure every video and print the table."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    readers = installed_readers()
    others = [name for name in readers if name != "telecine"]
    print(f"{machine()}; clips of {FRAMES} frames per second of one core\n")
    header = ["video", *readers, *(f"{name}, {SIDE}" for name in readers), *(f"{name}, levels" for name in others)]
    print(f"{table_row(header)}\n{table_row(['---', *['---:'] * (len(header) - 1)])}")
    with tempfile.TemporaryDirectory() as folder:
        for codec, height, gop in product(arguments.codecs, arguments.heights, arguments.gops):
            info = encode(Path(folder) / f"{codec}-{height}-{gop}.mp4", codec, height, gop, arguments.frames)
            print(table_row(row(info, codec, readers, arguments.clips, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
