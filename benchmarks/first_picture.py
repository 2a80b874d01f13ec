r"""The first picture of the README: the model of the package on videos that it was not trained on.

    python benchmarks/videos.py runs/videos --photographs runs/photographs
    cd runs/videos/unseen
    python ../../../benchmarks/first_picture.py vtest.avi Megamind.avi tree.avi cup.mp4 box.mp4 \
        --data ../../photographs -o ../../../docs/images/tiny.jpg

A row of inputs, one of the linear autoencoder with the same latent, fitted to 300 clips of the model's training data,
and one of the model. Of each video, the middle frame of its middle clip of 9 x 256 x 256 is shown; the metrics of these
clips are printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from demo import METRICS, Reconstruct, clip_sets, measure, reconstruct_with
from measure import machine, table
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from telecine.base.shapes import VALUE_RANGE
from telecine.data import Clip, bytes_from_video
from telecine.losses.perceptual import LPIPS
from telecine.models import CausalVAE, load_autoencoder
from telecine.settings.parse import read_config
from telecine.training.baseline import fit_linear
from telecine.training.clips import build_clips

SIZE = 256
GAP = 6
LABEL_HEIGHT = 38


def middle_frame(video: Tensor) -> Image.Image:
    """Return the middle frame of a clip `(1, 3, T, H, W)` in [-1, 1]."""
    frames = bytes_from_video(video[0].clamp(*VALUE_RANGE))
    return Image.fromarray(frames[len(frames) // 2].numpy())


def draw(models: dict[str, Reconstruct], clips: Sequence[Clip], path: Path) -> None:
    """Write the middle frames of clips: a row for each model, below its name."""
    row_height = LABEL_HEIGHT + SIZE + GAP
    picture = Image.new(
        "RGB", (len(clips) * (SIZE + GAP) - GAP, len(models) * row_height - GAP), "white"
    )
    writer = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=26)
    for row, (name, reconstruct) in enumerate(models.items()):
        top = row * row_height
        writer.text((0, top + LABEL_HEIGHT / 2), name, fill="black", font=font, anchor="lm")
        for column, clip in enumerate(clips):
            frame = middle_frame(reconstruct(clip["video"][None]))
            picture.paste(frame, (column * (SIZE + GAP), top + LABEL_HEIGHT))
    picture.save(path, quality=92)


@torch.no_grad()
def main() -> None:
    """Draw the picture and print the metrics."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--data", required=True, help="the model's training data")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture")
    arguments = parser.parse_args()
    model = load_autoencoder("tiny").eval()
    assert isinstance(model, CausalVAE)
    config = replace(read_config("tiny_model"), data=arguments.data)
    linear = fit_linear(model, build_clips(config, model))
    shown = replace(config.clips, height=SIZE, width=SIZE)
    sets = clip_sets(replace(config, clips=shown, val_clips=1), [], arguments.videos)
    del sets["held out"]
    models = {
        "input": lambda video: video,
        "linear autoencoder, the same latent": linear,
        "tiny": reconstruct_with(model),
    }
    draw(models, [clips[0] for clips in sets.values()], arguments.output)
    perceptual: dict[str, nn.Module] = {f"lpips_{net}": LPIPS(net) for net in ("alex", "vgg")}
    rows = []
    for video, clips in sets.items():
        for name in list(models)[1:]:
            rows.append([video, name, *measure(models[name], clips, perceptual)])
    print(f"{machine()}\n")
    print(table(["video", "model", *METRICS.values()], rows))


if __name__ == "__main__":
    main()
