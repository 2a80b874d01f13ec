"""Faults of what a run is given: mutated videos and images, broken lists and settings."""

from __future__ import annotations

import io
import os
import random
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import av
import torch
from faults_row import USER_ERROR, Row

from telecine import __main__ as cli
from telecine.data import ClipDataset, DataError, index_videos, read_clip, whole_video
from telecine.settings import ClipConfig

# What a process may take to read one broken file: processor seconds, seconds if it waits on a busy machine, and peak
# memory in KiB above that before it.
CPU_SECONDS, WALL_SECONDS, KIBIBYTES = 30, 120, 512 * 1024
CONTAINERS = {".mp4": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".webm": "libvpx"}
IMAGES = (".png", ".jpg", ".webp")


def samples(folder: Path) -> list[Path]:
    """Write a small video in each container, and an image in each format."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 255, (12, 6, 8, 3), generator=generator, dtype=torch.uint8)
    frames = frames.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    for suffix, codec in CONTAINERS.items():
        with av.open(str(folder / f"video{suffix}"), "w") as container:
            stream = container.add_stream(codec, rate=12, width=64, height=48, pix_fmt="yuv420p")
            for frame in frames:
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24"))
                )
            container.mux(stream.encode())
    for suffix in IMAGES:
        av.VideoFrame.from_ndarray(frames[0].numpy(), format="rgb24").to_image().save(
            folder / f"image{suffix}"
        )
    return sorted(folder.iterdir())


def flip(content: bytearray, chance: random.Random) -> None:
    """Change some bytes."""
    for _ in range(chance.choice((1, 4, 16, 64))):
        content[chance.randrange(len(content))] = chance.randrange(256)


def clear(content: bytearray, chance: random.Random) -> None:
    """Replace a part by zeros."""
    first = chance.randrange(len(content))
    last = min(len(content), first + chance.randrange(1, len(content)))
    content[first:last] = bytes(last - first)


def cut(content: bytearray, chance: random.Random) -> None:
    """Remove the end."""
    del content[chance.randrange(len(content)) :]


def repeat(content: bytearray, chance: random.Random) -> None:
    """Insert a part a second time."""
    first = chance.randrange(len(content))
    content[first:first] = content[first : first + chance.randrange(1, 512)]


def extreme(content: bytearray, chance: random.Random) -> None:
    """Overwrite four bytes of the headers by an extreme number, as of a size or a count."""
    first = chance.randrange(min(len(content), 1024))
    content[first : first + 4] = struct.pack(
        ">I", chance.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
    )


WAYS = (flip, clear, cut, repeat, extreme)


def media(folder: Path, number: int) -> Row:
    """Mutate videos and images: each must be read as clips, or be skipped or refused by name."""
    row = Row("a mutated video or image is read, or refused by name, in bounded time and memory")
    chance = random.Random(0)
    files = samples(folder / "media")
    for index in range(number):
        original, way = files[index % len(files)], chance.choice(WAYS)
        content = bytearray(original.read_bytes())
        way(content, chance)
        path = folder / f"mutated-{index}{original.suffix}"
        path.write_bytes(content)
        held, why = in_a_fork(lambda path=path: read(path))
        row.add(held=held, what=f"number {index}, {original.name}, {way.__name__}: {why}")
        path.unlink()
    return row


def read(path: Path) -> bool:
    """Read a file as a run does, and return whether the promise held."""
    try:
        infos, _ = index_videos([path])
        dataset = ClipDataset(
            [whole_video(infos[0])], ClipConfig(num_frames=1, height=32, width=32, num_workers=0)
        )
        clips = [dataset[index]["video"] for index in range(3)]
        read_clip(infos[0], 0, min(infos[0].num_frames, 4))
    except DataError as error:
        return is_one_line(str(error)) and (
            str(path) in str(error) or "files named in the log" in str(error)
        )
    return all(
        clip.shape == (3, 1, 32, 32) and bool(torch.isfinite(clip).all()) and clip.abs().max() <= 1
        for clip in clips
    )


def is_one_line(text: str) -> bool:
    """Return whether an error is one line of printable characters."""
    return text.isprintable() and len(text) < 2000


def in_a_fork(check: Callable[[], bool]) -> tuple[bool, str]:
    """Call a check in a process of its own, with limits, and return whether it held, and how the process ended."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    output_end, input_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(output_end)
        os.dup2(input_end, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        signal.alarm(WALL_SECONDS)  # ends the process: nothing handles it
        try:
            held = check()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            raise
        finally:
            os._exit(0 if "held" in locals() and held else 1)
    os.close(input_end)
    with os.fdopen(output_end, encoding="utf-8", errors="replace") as pipe:
        printed = pipe.read()
    _, status, usage = os.wait4(pid, 0)
    code, more = os.waitstatus_to_exitcode(status), usage.ru_maxrss - before
    how = f"code {code}, {time.perf_counter() - start:.1f} s, {more / 1024:.0f} MiB more; {printed[-500:]}"
    return code == 0 and more < KIBIBYTES, how


def lists(folder: Path, number: int) -> Row:
    """Break lists and settings files: the command must refuse each with one line that names the file."""
    row = Row(
        "a broken list or settings file is refused with one line that names it, in bounded time and memory"
    )
    video = samples(folder / "listed")[3]
    for index, (suffix, content, name) in enumerate(list(broken(video.name))[:number]):
        path = video.with_name(f"broken-{index}{suffix}")
        path.write_bytes(
            content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        )
        option = "--config" if suffix == ".yaml" else "--data"
        words = ["train", f"{option}={path}", f"--output_dir={folder / 'broken'}", "--device=cpu"]
        held, why = in_a_fork(lambda words=words, names=(path.name, name): is_refused(words, names))
        row.add(held=held, what=f"number {index}, {suffix} {content[:60]!r}: {why}")
    return row


def is_refused(words: list[str], names: Sequence[str]) -> bool:
    """Return whether a command ends with one error that has one of these names."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as errors:
        code = cli.main(words)
    lines = [line for line in errors.getvalue().splitlines() if "error: " in line]
    is_named = any(name in line for line in lines for name in names if name)
    if code == USER_ERROR and len(lines) == 1 and is_one_line(lines[0]) and is_named:
        return True
    print(code, errors.getvalue(), file=sys.stderr)
    return False


def broken(video: str) -> Iterator[tuple[str, str | bytes, str]]:
    """Yield broken lists and settings files: suffix, contents, and what an error may name instead of the file."""
    for value in ("1e308x", "-1", "nan", "inf", "1" * 5000, "one", "\0", "0x10", "--1"):
        yield ".csv", f"path,start\n{video},{value}\n", ""
        yield ".jsonl", f'{{"path": "{video}", "start_frame": "{value}"}}\n', ""
    header = "path,start,end\n"
    for content in (
        *(
            "",
            "\n\n",
            header,
            "start,end\n1,2\n",
            f"{header}{video},5,1\n",
            f"{header}{video}\n",
        ),
        *(f'{header}"{video},0,1\n', f"{header},0,1\n", f"path,start,start_frame\n{video},1,1\n"),
        *(b"path\n\xff\xfe\xfa\n", b"\x89PNG\r\n\x1a\n" + bytes(64)),
    ):
        yield ".csv", content, ""
    yield ".csv", f"{header}nothing.mp4,0,1\n", "nothing.mp4"
    # Another column is left out with a warning, and the error is about the video.
    yield ".csv", "path,begin\nnothing.mp4,1\n", "nothing.mp4"
    for content in (
        *(
            "{",
            "[]",
            "null",
            "1",
            '{"path": 1}',
            '{"path": "\\ud800.mp4"}',
            "[" * 10_000,
            '{"a": ' * 10_000,
        ),
        *(
            f'{{"path": "{video}", "end": [1]}}',
            f'{{"path": "{video}", "start": 5, "start_frame": 1}}',
            b"\xff\xfe\x00",
        ),
    ):
        yield ".jsonl", content, ""
    for content, name in {
        "steps: many": "steps",
        "steps: 1e999": "steps",
        "unknown: 1": "unknown",
        "clips: {num_frames: -1}": "num_frames",
        "clips: 5": "clips",
        "steps: [": "",
        "- a\n- b": "",
        "[" * 3000: "",
    }.items():
        yield ".yaml", content, name
    yield ".yaml", b"\xff\xfe\xfa", ""
