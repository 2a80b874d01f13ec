"""Time, memory and bytes until the first update of a run whose clips are in tar shards on an S3 server on loopback.

    python benchmarks/cold_start.py make DATA --clips 1000000
    python benchmarks/cold_start.py sidecars DATA
    python benchmarks/cold_start.py start DATA --index ahead
    python benchmarks/cold_start.py start DATA --index lazy
    python benchmarks/cold_start.py clips DATA --index lazy
    python benchmarks/cold_start.py reads DATA

`make` writes shards of 10 000 clips of 3 kB: three encoded videos, each copy with a number of its own behind it.
`sidecars` writes the index of each shard as `telecine data index` would, but from the indices of these three videos.
`start` begins a run three times, each time until its first update: without an index, with that of the time before, and
with an empty cache of files, too. `clips` compares clips of one process with those of four, and with those of a process
that begins in the middle. `reads` reads clips of a video of 200 MB and of members of tar files of 1 GB. To measure an
earlier checkout, set `PYTHONPATH` to its `src`, and leave out `--index`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import psutil
import torch
from s3_folder import Server

import telecine
from telecine.data import ClipDataset, clips_sha256, index_video, load_spans, read_clip, tar_members
from telecine.data.errors import Deadline
from telecine.data.remote import look_up
from telecine.data.source import RemotePath, TarMember
from telecine.data.tar_files import scan_tar
from telecine.losses.perceptual.weights import cache_path
from telecine.settings import ClipConfig

CLIPS_PER_SHARD = 10_000
NUM_ITEMS = 64  # clips that `clips` compares
CLIP = {"num_frames": 5, "height": 64, "width": 64, "num_workers": 1}
POLL_SECONDS = 0.25
MEGABYTE = 1e6


def write_video(path: Path, num_bytes: float, size: int, options: dict[str, str]) -> None:
    """Write noise as H.264 with a keyframe every 8 frames, up to a number of bytes.

    Args:
        path: The file.
        num_bytes: Bytes of all packets.
        size: Height and width.
        options: Options of the container.
    """
    generator = np.random.default_rng(len(path.name))
    noise = generator.integers(0, 64, (size, size, 3), dtype=np.uint8)
    written = 0
    number = 0
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(
            "libx264", rate=25, options={"crf": "28", "preset": "ultrafast", "g": "8"}
        )
        stream.width = size
        stream.height = size
        stream.pix_fmt = "yuv420p"
        while written < num_bytes or number < 16:
            rolled = np.roll(noise, 3 * number, 1) + np.uint8(number % 32)
            frame = av.VideoFrame.from_ndarray(rolled, format="rgb24")
            frame.pts = number
            number += 1
            for packet in stream.encode(frame):
                written += packet.size
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def add_member(output: io.BufferedWriter, name: str, content: bytes) -> None:
    """Write a member of a tar file."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    output.write(info.tobuf(tarfile.USTAR_FORMAT))
    output.write(content)
    output.write(bytes(-len(content) % tarfile.BLOCKSIZE))


def make(data: Path, num_clips: int) -> None:
    """Write the shards and the files of `reads`."""
    folder = data / "bucket" / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    videos = []
    for number in range(3):
        path = data / f"{'small'[: number + 3]}.mp4"
        write_video(path, 0, 32, {})
        videos.append(path.read_bytes())
    for shard in range(num_clips // CLIPS_PER_SHARD):
        with (folder / f"{shard:06d}.tar").open("wb") as output:
            for number in range(shard * CLIPS_PER_SHARD, (shard + 1) * CLIPS_PER_SHARD):
                # A box of free space, which players skip, makes each file another one.
                content = videos[number % 3] + b"\0\0\0\x10free" + number.to_bytes(8, "big")
                add_member(output, f"{number:08d}.mp4", content)
            output.write(bytes(2 * tarfile.BLOCKSIZE))
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{num_clips} clips, {size / MEGABYTE:.0f} MB")


def add_sidecars(data: Path) -> None:
    """Write the indices of all shards."""
    # An earlier checkout does not have these modules.
    from telecine.data.lazy.file_table import FileTable
    from telecine.data.lazy.header import HEADER, Header
    from telecine.data.lazy.sidecar import Sidecar, write_sidecar

    infos = [
        index_video(path) for path in sorted(data.glob("s*.mp4"), key=lambda path: len(path.name))
    ]
    headers = [Header.of(info) for info in infos]
    num_members = 0
    for archive in sorted((data / "bucket" / "shards").glob("*.tar")):
        members = list(tar_members(archive))
        rows = np.zeros(len(members), HEADER)
        exact = {}
        for row, member in enumerate(members):
            kind = (num_members + row) % len(infos)
            # The digest only tells members apart here.
            digest = hashlib.sha256(member.name.encode()).digest()
            rows[row] = headers[kind]._replace(digest=1 + num_members + row)
            exact[member.offset] = replace(infos[kind], source=member, digest=digest.hex())
        num_members += len(members)
        table = FileTable.of(members, rows)
        write_sidecar(archive, Sidecar(table, [], has_all_indices=True), exact)
    print(f"indices of {num_members} clips")


def report(name: str, seconds: float, server: Server, extra: str = "") -> None:
    """Print a row of a table: time, bytes and requests since the last one."""
    counts = server.counts()
    megabytes = counts["bytes"] / MEGABYTE
    print(f"| {name} | {seconds:.1f} | {megabytes:.1f} | {counts['requests']} |{extra}", flush=True)


def start(data: Path, server: Server, index: str | None, num_starts: int) -> None:
    """Measure the time until the first update, up to three times."""
    cache = data / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    print("| | s | MB fetched | requests | CPU s | peak MB |\n|---|---|---|---|---|---|")
    for name in ("without an index", "index and cache", "index, empty cache")[:num_starts]:
        if name == "index, empty cache":
            shutil.rmtree(cache / "telecine" / "remote", ignore_errors=True)
        run = data / "run"
        shutil.rmtree(run, ignore_errors=True)
        command = [sys.executable, "-m", "telecine", "train", "--config", "demo"]
        command += ["--data", "s3://bucket/shards", "--output_dir", str(run), "--batch_size", "2"]
        command += ["--objective.perceptual_weight", "0", "--discriminator.video", "none"]
        command += ["--objective.adversarial_loss_weight", "0", "--log_every", "1"]
        command += ["--val_clips", "2", "--latent_clips", "0", "--clips.cache", "false"]
        for key, value in CLIP.items():
            command += [f"--clips.{key}", str(value)]
        if index is not None:
            command += ["--clips.index", index]
        environment = {
            **os.environ,
            **server.environment(),
            "XDG_CACHE_HOME": str(cache),
            "TELECINE_WEIGHTS_DIR": str(cache_path("alex").parent),
        }
        server.counts()
        begin = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        peak = 0
        cpu_seconds = 0.0
        while not has_update(run):
            if process.poll() is not None:
                raise SystemExit(f"the run ended with {process.returncode}")
            num_bytes, cpu_seconds = usage(process.pid)
            peak = max(peak, num_bytes)
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - begin
        report(name, seconds, server, f" {cpu_seconds:.1f} | {peak / MEGABYTE:.0f} |")
        process.terminate()
        process.wait()


def has_update(run: Path) -> bool:
    """Return whether a run has logged an update. It logs the validation before the first one earlier."""
    return any('"train/' in path.read_text() for path in run.glob("metrics*.jsonl"))


def usage(pid: int) -> tuple[int, float]:
    """Return the bytes of memory and the seconds of CPU time of a process and of those that it started.

    Memory that these processes share counts once: of pages of files, those of the process with the most. The
    proportional set size would divide those of libraries by the number of all programs that use PyTorch.
    """
    num_bytes = 0
    file_bytes = 0
    seconds = 0.0
    with suppress(psutil.Error, OSError):  # a process has ended
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            for line in Path(f"/proc/{member.pid}/smaps_rollup").read_text().splitlines():
                name, number = line.split()[:2]
                if name == "Pss_Anon:":
                    num_bytes += int(number) * 1024
            file_bytes = max(file_bytes, member.memory_info().shared)
            times = member.cpu_times()
            seconds += times.user + times.system
            seconds += times.children_user + times.children_system  # that have ended
    return num_bytes + file_bytes, seconds


def hash_clips(index: str | None, items: list[int]) -> list[str]:
    """Return the hashes of clips with these numbers, read by a process that finds the data by itself."""
    options = {} if index is None else {"index": index}
    # Without processes: those of `compare_clips` may start none.
    config = ClipConfig(**{**CLIP, "num_workers": 0}, **options)
    if index == "lazy":
        from telecine.data.lazy.load_table import load_table

        table = load_table("s3://bucket/shards", config)
        dataset = ClipDataset(table.spans, config, seed=0, saved_index=table.saved_index)
    else:
        dataset = ClipDataset(load_spans("s3://bucket/shards", config)[0], config, seed=0)
    hashes = []
    for item in items:
        clip = dataset[item // 2, item]
        hashes.append(clips_sha256([f"{clip['source']} {clip['start']}", str(clip["video"].sum())]))
    return hashes


def compare_clips(data: Path, server: Server, index: str | None) -> None:
    """Compare clips of one process with those of four, and of one that begins in the middle."""
    os.environ.update(server.environment())
    os.environ["XDG_CACHE_HOME"] = str(data / "cache")
    items = list(range(NUM_ITEMS))
    with multiprocessing.get_context("spawn").Pool(4, maxtasksperchild=1) as pool:
        one = pool.apply(hash_clips, (index, items))
        middle = pool.apply(hash_clips, (index, items[NUM_ITEMS // 2 :]))
        parts = pool.starmap(hash_clips, [(index, items[rank::4]) for rank in range(4)])
    four = [parts[item % 4][item // 4] for item in items]
    print(f"{NUM_ITEMS} clips, {len(set(one))} different")
    print("four processes read the same:", four == one)
    print("a process that begins in the middle reads the same:", middle == one[NUM_ITEMS // 2 :])


def reads(data: Path, server: Server) -> None:
    """Measure clips of a large video and of members of large tar files."""
    bucket = data / "bucket"
    for name, options in (("end.mp4", {}), ("front.mp4", {"movflags": "faststart"})):
        if not (bucket / name).exists():
            write_video(bucket / name, 2e8, 720, options)
    for name, num_members, num_bytes in (("large.tar", 200, 5e6), ("small.tar", 9000, 1e5)):
        if not (bucket / name).exists():
            write_video(data / "member.mp4", num_bytes, 512 if num_bytes > 1e6 else 128, {})
            content = (data / "member.mp4").read_bytes()
            with (bucket / name).open("wb") as output:
                for number in range(num_members):
                    add_member(output, f"{number:06d}.mp4", content)
                output.write(bytes(2 * tarfile.BLOCKSIZE))
    os.environ.update(server.environment())
    os.environ["XDG_CACHE_HOME"] = str(data / "cache")
    print("| | s | MB fetched | requests |\n|---|---|---|---|")
    shutil.rmtree(data / "cache", ignore_errors=True)
    look_up(RemotePath("s3://bucket/end.mp4"))  # imports s3fs
    server.counts()
    for name in ("end.mp4", "front.mp4"):
        local = index_video(bucket / name)
        info = replace(local, source=RemotePath(f"s3://bucket/{name}"))
        size = (bucket / name).stat().st_size / MEGABYTE
        middle = local.num_frames // 2
        begin = time.monotonic()
        clip = read_clip(info, middle, 17, size=(64, 64))
        report(f"a clip of {name}, {size:.0f} MB", time.monotonic() - begin, server)
        assert torch.equal(clip, read_clip(local, middle, 17, size=(64, 64)))
    for name in ("large.tar", "small.tar"):
        members = list(tar_members(bucket / name))
        local = index_video(members[100])
        archive = RemotePath(f"s3://bucket/{name}")
        member = TarMember(archive, members[100].name, members[100].offset, members[100].size)
        size = (bucket / name).stat().st_size / MEGABYTE
        title = f"{name}, {len(members)} members, {size:.0f} MB"
        begin = time.monotonic()
        read_clip(replace(local, source=member), 3, 9, size=(64, 64))
        report(f"a clip of a member of {title}", time.monotonic() - begin, server)
        shutil.rmtree(data / "cache", ignore_errors=True)
        begin = time.monotonic()
        names, _ = scan_tar(look_up(archive), Deadline(archive), lambda member, _: member.name)
        assert len(names) == len(members)
        report(f"the names of all members of {title}", time.monotonic() - begin, server)
        shutil.rmtree(data / "cache", ignore_errors=True)


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("make", "sidecars", "start", "clips", "reads"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--index", help="`clips.index` of the run")
    parser.add_argument("--starts", type=int, default=3, help="how many of the three of `start`")
    parser.add_argument("--milliseconds", type=float, default=0, help="pause before each answer")
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.data, arguments.clips)
        return
    if arguments.command == "sidecars":
        add_sidecars(arguments.data)
        return
    print(f"telecine of {Path(telecine.__file__).parents[2]}")
    server = Server(arguments.data, arguments.milliseconds)
    try:
        if arguments.command == "start":
            start(arguments.data, server, arguments.index, arguments.starts)
        elif arguments.command == "clips":
            compare_clips(arguments.data, server, arguments.index)
        else:
            reads(arguments.data, server)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
