"""Two sets of videos, matched by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from telecine.data import VideoInfo, find_videos, index_videos
from telecine.data.find import files_below
from telecine.data.source import VIDEO_SUFFIXES
from telecine.shapes import argument_error

NUM_NAMED = 3
# The name of a file that is given alone.
SINGLE = "(a single file)"
# A folder with one of these is a run, a checkpoint or a model, whatever videos lie beside.
MODEL_FILES = ("config.yaml", "config.json", "state.json", "model_index.json")


def holds_videos(path: Path) -> bool:
    """Say whether `path` is a video, or a folder of videos rather than of a model."""
    if path.is_file():
        return path.suffix.lower() in VIDEO_SUFFIXES
    if not path.is_dir() or any((path / name).is_file() for name in MODEL_FILES):
        return False
    return any(file.suffix.lower() in VIDEO_SUFFIXES for file in files_below(path))


def match_videos(infos: Sequence[VideoInfo], *, data: Path, reconstructions: Path) -> dict[str, VideoInfo]:
    """Return the reconstruction of each video of `data`, by the video's path.

    Those in a folder match by their path in it, without the suffix; two single files match whatever their names.

    Raises:
        ValueError: a video has no match, or one of another length or size.
    """
    inputs = _by_name(infos, data)
    others = _by_name(index_videos(find_videos(reconstructions, name="checkpoint"))[0], reconstructions)
    _check_names(inputs, others, data=data, reconstructions=reconstructions)
    for name, info in inputs.items():
        _check_alike(info, others[name])
    return {str(info.path): others[name] for name, info in inputs.items()}


def _by_name(infos: Iterable[VideoInfo], root: Path) -> dict[str, VideoInfo]:
    if root.is_file():
        (info,) = infos
        return {SINGLE: info}
    named: dict[str, VideoInfo] = {}
    for info in infos:
        name = Path(str(info.path)).relative_to(root).with_suffix("").as_posix()
        if name in named:
            got = f"{named[name].path} and {info.path}"
            raise argument_error("data", "videos of different names", got, "Suffixes do not count: rename one.")
        named[name] = info
    return named


def _check_names(
    inputs: Mapping[str, VideoInfo], others: Mapping[str, VideoInfo], *, data: Path, reconstructions: Path
) -> None:
    missing, unknown = sorted(inputs.keys() - others.keys()), sorted(others.keys() - inputs.keys())
    if not missing and not unknown:
        return
    parts = [(missing, f"{reconstructions} lacks"), (unknown, f"{data} lacks")]
    got = "; ".join(f"{words} {_listed(names)}" for names, words in parts if names)
    contract = "videos of the same names as `data` (suffixes do not count)"
    raise argument_error("checkpoint", contract, got, "Rename or remove files until both hold the same names.")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NUM_NAMED])
    num_more = len(names) - NUM_NAMED
    return f"{shown} and {num_more} more" if num_more > 0 else shown


def _check_alike(info: VideoInfo, other: VideoInfo) -> None:
    ours, theirs = ((video.num_frames, video.height, video.width) for video in (info, other))
    if ours != theirs:
        frames, height, width = ours
        contract = f"of {frames} frames of {height} x {width}, as {info.path}"
        got = f"{theirs[0]} frames of {theirs[1]} x {theirs[2]} in {other.path}"
        raise argument_error("checkpoint", contract, got, "Write the reconstructions at the length and size of `data`.")
