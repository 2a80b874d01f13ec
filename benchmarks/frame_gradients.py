"""Gradient of the video discriminators' logits at each frame, relative to the mean over frames: a Markdown table.

    python benchmarks/frame_gradients.py

The figures are those of `telecine.frame_gradients`, averaged over untrained networks and, for each, over a video of
noise and a smooth video. 1 in all frames means that the discriminator weights them equally. Trained networks differ:
call `frame_gradients` with yours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from measure import table_row
from torch import Tensor, nn
from torch.nn import functional as F

from telecine import Discriminator3D, Discriminator3DWithfirstframe, PatchDiscriminator3D, frame_gradients

LENGTHS = (9, 17)
# Called as `build(dim, image_size, frame_num)`.
Build = Callable[[int, int, int], nn.Module]


def residual(cls: type[nn.Module], dim: int, image_size: int, frame_num: int, **options: str) -> nn.Module:
    """Return a discriminator of residual blocks."""
    return cls(dim=dim, image_size=image_size, frame_num=frame_num, **options)


def patch(dim: int, image_size: int, frame_num: int) -> nn.Module:
    """Return a PatchGAN discriminator with as many channels in its first layer as the others."""
    return PatchDiscriminator3D(dim=4 * dim)


DISCRIMINATORS: dict[str, Build] = {
    "`Discriminator3D`": partial(residual, Discriminator3D),
    "`Discriminator3DWithfirstframe`": partial(residual, Discriminator3DWithfirstframe),
    '`Discriminator3DWithfirstframe`, `time_weighting="frames"`': partial(
        residual, Discriminator3DWithfirstframe, time_weighting="frames"
    ),
    '`Discriminator3DWithfirstframe`, `time_weighting="frames"`, `pad_mode="constant"`': partial(
        residual, Discriminator3DWithfirstframe, time_weighting="frames", pad_mode="constant"
    ),
    "`PatchDiscriminator3D`": patch,
}


def noise(num_frames: int, size: int, generator: torch.Generator) -> Tensor:
    """Return a video `(1, 3, T, size, size)` of independent pixels."""
    return torch.randn(1, 3, num_frames, size, size, generator=generator).mul(0.5).clamp(-1, 1)


def smooth(num_frames: int, size: int, generator: torch.Generator) -> Tensor:
    """Return a video `(1, 3, T, size, size)` that changes slowly in space and time."""
    coarse = torch.randn(1, 3, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, (num_frames, size, size), mode="trilinear", align_corners=True).clamp(-1, 1)


def mean_gradients(build: Build, num_frames: int, *, dim: int, size: int, num_seeds: int) -> Tensor:
    """Return the relative gradients of the frames `(T,)`, averaged over networks and videos."""
    gradients = []
    for seed in range(num_seeds):
        torch.manual_seed(seed)
        network = build(dim, size, num_frames)
        generator = torch.Generator().manual_seed(seed)
        gradients += [frame_gradients(network, video(num_frames, size, generator)) for video in (noise, smooth)]
    return torch.stack(gradients).mean(0)


def row(name: str, gradients: Tensor) -> list[str]:
    """Return a row of the table."""
    ratio = gradients[0] / gradients[1:].mean()
    return [name, str(len(gradients)), f"{ratio:.2f}", " ".join(f"{value:.2f}" for value in gradients.tolist())]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Print the discriminators' gradients at each frame.")
    parser.add_argument("--dim", type=int, default=8, help="a quarter of the channels of the first layer")
    parser.add_argument("--size", type=int, default=64, help="height and width of the videos")
    parser.add_argument("--seeds", type=int, default=6, help="number of networks, each with two videos")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, two of each, to test the command")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.dim, arguments.size, arguments.seeds = 1, 32, 2
    return arguments


def main() -> None:
    """Print the table, each row when it is complete."""
    arguments = parse_arguments()
    print(table_row(["discriminator", "frames", "first / mean of others", "gradient at each frame, first to last"]))
    print(table_row(["---"] * 4))
    for num_frames in LENGTHS:
        for name, build in DISCRIMINATORS.items():
            gradients = mean_gradients(
                build, num_frames, dim=arguments.dim, size=arguments.size, num_seeds=arguments.seeds
            )
            print(table_row(row(name, gradients)), flush=True)


if __name__ == "__main__":
    main()
