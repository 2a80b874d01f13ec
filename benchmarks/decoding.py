"""Training clips per second that one core reads: a Markdown table.

    python benchmarks/decoding.py

The command reads random clips of 17 frames of 256 x 256 pixels on one thread, from H.264 to float tensors. The videos
are the sample clips, unchanged and encoded again with a keyframe every 30 frames. Each is read from a file, from a
member of a tar file, and from decoded frames in memory. Each round reads new clips from every source, the sources one
after the other. Figures are medians over rounds of the process's CPU time, so other processes have little effect.
"""

from __future__ import annotations

import argparse
import statistics
import tarfile
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import torch
from measure import Step, interleaved

from telecine.data import ClipDataset, VideoInfo, index_video, iterate_frames, sample_videos, tar_members, whole_video
from telecine.settings import ClipConfig

SHORT_GOP = 30
SOURCES = ("file", "tar file", "memory")


def reencode(info: VideoInfo, path: Path) -> Path:
    """Encode a video as H.264 with a keyframe every 30 frames. Its sides are rounded down to even numbers."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(info.fps).limit_denominator(1001))
        width, height = info.width // 2 * 2, info.height // 2 * 2
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "16", "g": str(SHORT_GOP)}
        for pixels in iterate_frames(info.path):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels[:height, :width].numpy(), format="rgb24")))
        container.mux(stream.encode())
    return path


def pack(path: Path) -> Path:
    """Return a new tar file beside a file, which contains it."""
    archive = path.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(path, arcname=path.name)
    return archive


def datasets_of(path: Path, folder: Path, config: ClipConfig) -> dict[str, ClipDataset]:
    """Return datasets of the same clips by source."""
    copy = folder / path.name
    if copy != path:
        copy.write_bytes(path.read_bytes())
    (member,) = tar_members(pack(copy))
    infos = {"file": index_video(copy), "tar file": index_video(member), "memory": index_video(copy)}
    return {
        source: ClipDataset([whole_video(info)], replace(config, cache=source == "memory"))
        for source, info in infos.items()
    }


def reader(dataset: ClipDataset, num_clips: int) -> Step:
    """Return a step that reads the next clips."""
    indices = iter(range(10**9))

    def read() -> None:
        for _ in range(num_clips):
            dataset[next(indices)]

    return read


def describe(info: VideoInfo) -> str:
    """Return the name and size of a video, and the mean interval of its keyframes."""
    gop = info.num_frames / len(info.keyframes)
    return f"{info.path.name}, {info.width}x{info.height}, a keyframe every {gop:.0f} frames"


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Print the clips per second that one core reads.")
    parser.add_argument("--frames", type=int, default=17, help="number of frames of a clip")
    parser.add_argument("--size", type=int, default=256, help="height and width of the clips")
    parser.add_argument("--clips", type=int, default=20, help="number of clips from each source in a round")
    parser.add_argument("--rounds", type=int, default=5, help="number of measured rounds")
    parser.add_argument("--videos", type=int, default=3, help="number of sample clips, the smallest first")
    parser.add_argument("--smoke", action="store_true", help="one small clip of one video, to test the command")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.frames, arguments.size, arguments.clips, arguments.rounds, arguments.videos = 2, 16, 1, 1, 1
    return arguments


def main() -> None:
    """Measure all videos and print the table."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    config = ClipConfig(num_frames=arguments.frames, height=arguments.size, width=arguments.size, num_workers=0)
    size = f"{arguments.frames} frames of {arguments.size} px"
    print(f"{size}, one thread, PyAV {av.__version__}; clips per second of one core\n")
    print(f"| video | {' | '.join(SOURCES)} |\n|---|---|---|---|")
    for sample in sample_videos()[: arguments.videos]:
        with tempfile.TemporaryDirectory() as folder:
            short = reencode(index_video(sample), Path(folder) / f"{sample.stem}-short.mp4")
            for path in (sample, short):
                datasets = datasets_of(path, Path(folder), config)
                steps = {source: reader(dataset, arguments.clips) for source, dataset in datasets.items()}
                seconds = interleaved(steps, rounds=arguments.rounds, clock=time.process_time)
                speeds = [arguments.clips / statistics.median(seconds[source]) for source in SOURCES]
                columns = " | ".join(f"{speed:.1f}" for speed in speeds)
                print(f"| {describe(datasets['file'].spans[0].info)} | {columns} |")


if __name__ == "__main__":
    main()
