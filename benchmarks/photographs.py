"""Make clips with a moving camera out of photographs that packages of Debian have, and fetch the demo's videos.

    python benchmarks/photographs.py runs/photographs
    telecine train --config tiny_model --data runs/photographs

Nine short videos are few scenes, photographs are easy to find: `photographs.yaml` has 42, each with its SHA-256, licence and
author. Two clips of each show a window of the picture that moves, turns and grows between two random places. Nothing is installed. The same version of FFmpeg writes the same files.
"""

import argparse
import math
import random
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from rich.progress import track
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from videos import check_digest, fetch_seen, unpack_package

from telecine.report.video import write_mp4

LIST = Path(__file__).with_suffix(".yaml")
HEIGHT, WIDTH, NUM_FRAMES, FPS = 384, 512, 33, 24
CLIPS_OF_EACH = 2


@dataclass(frozen=True)
class _View:
    """A window of a picture: its centre, from 0 to 1, the pixels of the picture in one of its own, and its angle in radians."""

    x: float
    y: float
    scale: float
    angle: float

    def towards(self, other: "_View", share: float) -> "_View":
        """Return the view at a share of the way."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _View(*(start + share * (end - start) for start, end in pairs))


def _random_view(rng: random.Random, near: _View | None = None) -> _View:
    if near is None:
        return _View(rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.7, 1.2), rng.uniform(-0.1, 0.1))
    reach = rng.choice([0.02, 0.1, 0.25])
    moved = (rng.uniform(-reach, reach) for _ in range(2))
    return _View(near.x + next(moved), near.y + next(moved), near.scale * rng.uniform(0.8, 1.25), rng.uniform(-0.1, 0.1))


def clip_of(picture: Tensor, rng: random.Random) -> Tensor:
    """Return uint8 frames `(T, H, W, 3)` of a camera that moves over a picture `(3, H, W)` in [0, 255]."""
    scale = 2 * max(HEIGHT / picture.shape[1], WIDTH / picture.shape[2])
    size = [math.ceil(side * scale) for side in picture.shape[1:]]
    picture = F.interpolate(picture[None].float(), size, mode="bicubic", antialias=True)
    first = _random_view(rng)
    last = _random_view(rng, first)
    frames = []
    for index in range(NUM_FRAMES):
        view = first.towards(last, index / (NUM_FRAMES - 1))
        cos, sin = math.cos(view.angle) * view.scale, math.sin(view.angle) * view.scale
        # From places in the window, in pixels from its centre, to those in the picture; from -1 to 1 along each axis.
        across, down = WIDTH / size[1], HEIGHT / size[0]
        row_x = [cos * across, -sin * HEIGHT / size[1], 2 * view.x - 1]
        row_y = [sin * WIDTH / size[0], cos * down, 2 * view.y - 1]
        grid = F.affine_grid(torch.tensor([[row_x, row_y]]), [1, 3, HEIGHT, WIDTH], align_corners=False)
        frame = F.grid_sample(picture, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        frames.append(frame[0].movedim(0, -1).round().clamp(0, 255).byte())
    return torch.stack(frames)


def main() -> None:
    """Fetch the photographs, and write their clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to put the clips and the videos")
    folder = parser.parse_args().folder
    fetch_seen(folder)
    packages = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    with TemporaryDirectory() as temporary:
        for package in track(packages, "downloading"):
            unpack_package(package, Path(temporary))
        rows = [row for photographs in packages.values() for row in photographs]
        for index, row in enumerate(track(rows, "writing clips")):
            content = (Path(temporary) / row["path"]).read_bytes()
            check_digest(content, row["path"], row["sha256"])
            picture = pil_to_tensor(Image.open(BytesIO(content)).convert("RGB"))
            for number in range(CLIPS_OF_EACH):
                rng = random.Random(CLIPS_OF_EACH * index + number)
                path = folder / "photographs" / f"{index:02}_{number}.mp4"
                write_mp4(path, clip_of(picture, rng), FPS, crf=10, keyframe_every=8)


if __name__ == "__main__":
    main()
