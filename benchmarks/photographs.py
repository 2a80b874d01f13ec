"""Short clips with a moving camera, of photographs that packages of Debian have, and cuts of the demo's videos.

`videos.py` writes them:

    python benchmarks/videos.py runs/videos --photographs runs/photographs
    telecine train --config tiny_model --data runs/photographs

Short videos have few scenes, photographs are easy to find: `photographs.yaml` has 42, a few of them paintings, with
SHA-256, licence and author. Eight clips of each show a window that moves, turns and grows between two places, of any
size from the whole picture to twice the pixels of the clip; cuts of the videos stand still. All are small.
Nothing is installed. The same version of FFmpeg writes the same files.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import torch
import torch.nn.functional as F
import yaml
from debian import check_digest, unpack_package
from PIL import Image
from rich.progress import track
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from telecine.data import sample_videos
from telecine.video.write import write_video

LIST = Path(__file__).with_suffix(".yaml")
HEIGHT, WIDTH, NUM_FRAMES, FPS = 96, 128, 33, 24
CLIPS_OF_EACH = 8
LARGEST = 2560  # pixels of the longer side of a photograph
# A clip has at most half the pixels of a photograph along each axis, which are noisy, and all those of a video.
FINEST_PHOTOGRAPH, FINEST_VIDEO = 2.0, 1.0


@dataclass(frozen=True)
class _View:
    """A window of a picture: its centre, from 0 to 1, its size relative to the first window's, its angle in radians."""

    x: float
    y: float
    size: float = 1.0
    angle: float = 0.0

    def towards(self, other: "_View", share: float) -> "_View":
        """Return the view at a share of the way."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _View(*(start + share * (end - start) for start, end in pairs))


def _resized(frames: Tensor, finest: float, rng: random.Random) -> Tensor:
    """Resize frames `(T, 3, H, W)`, so that a clip shows the whole picture, or a random smaller part of it."""
    whole = min(frames.shape[2] / HEIGHT, frames.shape[3] / WIDTH)
    scale = math.exp(rng.uniform(math.log(min(finest, whole)), math.log(whole)))
    size = [round(side / scale) for side in frames.shape[2:]]
    return F.interpolate(frames.float(), size, mode="bicubic", antialias=True)


def _place(size: Sequence[int], rng: random.Random) -> tuple[float, float]:
    """Return the random centre of a window inside a picture of this height and width."""
    free = (1 - WIDTH / size[1], 1 - HEIGHT / size[0])
    x, y = (0.5 + rng.uniform(-0.5, 0.5) * max(each, 0.0) for each in free)
    return x, y


def _shown(picture: Tensor, view: _View) -> Tensor:
    """Return what a window of a picture `(3, H, W)` shows, uint8 `(HEIGHT, WIDTH, 3)`."""
    height, width = picture.shape[1:]
    cos, sin = math.cos(view.angle) * view.size, math.sin(view.angle) * view.size
    # From the window to the picture, both from -1 to 1 along each axis.
    across = [cos * WIDTH / width, -sin * HEIGHT / width, 2 * view.x - 1]
    down = [sin * WIDTH / height, cos * HEIGHT / height, 2 * view.y - 1]
    grid = F.affine_grid(torch.tensor([[across, down]]), [1, 3, HEIGHT, WIDTH], align_corners=False)
    shown = F.grid_sample(
        picture[None], grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return shown[0].movedim(0, -1).round().clamp(0, 255).byte()


def clip_of_photograph(photograph: Tensor, rng: random.Random) -> Tensor:
    """Return uint8 frames `(T, H, W, 3)` of a camera that moves over a photograph `(3, H, W)` in [0, 255]."""
    picture = _resized(photograph[None], FINEST_PHOTOGRAPH, rng)[0]
    x, y = _place(picture.shape[1:], rng)
    pixels = rng.choice([2, 10, 40])  # in all frames together
    moved_x, moved_y = (
        rng.uniform(-pixels, pixels) / side for side in (picture.shape[2], picture.shape[1])
    )
    first = _View(x, y, 1.0, rng.uniform(-0.1, 0.1))
    last = _View(
        x + moved_x, y + moved_y, rng.uniform(0.85, 1.15), first.angle + rng.uniform(-0.1, 0.1)
    )
    return torch.stack(
        [_shown(picture, first.towards(last, i / (NUM_FRAMES - 1))) for i in range(NUM_FRAMES)]
    )


def cut_of_video(frames: Tensor, rng: random.Random) -> Tensor:
    """Return uint8 frames `(T, H, W, 3)` of a part of a video, uint8 `(T, H, W, 3)`."""
    pictures = _resized(frames.movedim(-1, 1), FINEST_VIDEO, rng)
    view = _View(*_place(pictures.shape[2:], rng))
    return torch.stack([_shown(picture, view) for picture in pictures])


def _write(path: Path, clip: Tensor) -> None:
    write_video(path, clip, FPS, crf=6, keyframe_every=8)


def write_clips(folder: Path) -> None:
    """Download the photographs, and write all clips into `folder`."""
    packages = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    with TemporaryDirectory() as temporary:
        for package in track(packages, "downloading"):
            unpack_package(package, Path(temporary))
        rows = [row for photographs in packages.values() for row in photographs]
        for index, row in enumerate(track(rows, "photographs")):
            content = (Path(temporary) / row["path"]).read_bytes()
            check_digest(content, row["path"], row["sha256"])
            picture = Image.open(BytesIO(content)).convert("RGB")
            picture.thumbnail((LARGEST, LARGEST))
            for number in range(CLIPS_OF_EACH):
                rng = random.Random(CLIPS_OF_EACH * index + number)
                clip = clip_of_photograph(pil_to_tensor(picture), rng)
                _write(folder / f"photograph_{index:02}_{number}.mp4", clip)
    for video in track(sample_videos(), "videos"):
        with av.open(video) as container:
            frames = [
                torch.from_numpy(each.to_ndarray(format="rgb24"))
                for each in container.decode(video=0)
            ]
        for number in range(CLIPS_OF_EACH):
            _write(
                folder / f"{video.stem}_{number}.mp4",
                cut_of_video(torch.stack(frames), random.Random(number)),
            )
