"""How evenly the discriminators of videos look at the frames: a Markdown table of each frame's share in the gradient.

    python benchmarks/frame_gradients.py

Shares are those of `telecine.frame_gradients`, averaged over untrained networks and, for each, over a video of noise
and a smooth one. 1 is even. Trained networks differ; give `frame_gradients` yours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telecine import Discriminator3D, Discriminator3DWithfirstframe, PatchDiscriminator3D, frame_gradients

LENGTHS = (9, 17)
# Each is built as `make(dim, image_size, frame_num)`.
Make = Callable[[int, int, int], nn.Module]


def residual(cls: type[nn.Module], dim: int, image_size: int, frame_num: int, **options: str) -> nn.Module:
    """Build a discriminator of residual blocks, for the number of frames that it is shown."""
    return cls(dim=dim, image_size=image_size, frame_num=frame_num, **options)


def patches(dim: int, image_size: int, frame_num: int) -> nn.Module:
    """Build a PatchGAN with as many channels in its first layer as the residual ones have."""
    return PatchDiscriminator3D(dim=4 * dim)


DISCRIMINATORS: dict[str, Make] = {
    "`Discriminator3D`": partial(residual, Discriminator3D),
    "`Discriminator3DWithfirstframe`": partial(residual, Discriminator3DWithfirstframe),
    '`Discriminator3DWithfirstframe`, `time_weighting="frames"`': partial(
        residual, Discriminator3DWithfirstframe, time_weighting="frames"
    ),
    '`Discriminator3DWithfirstframe`, `time_weighting="frames"`, `pad_mode="constant"`': partial(
        residual, Discriminator3DWithfirstframe, time_weighting="frames", pad_mode="constant"
    ),
    "`PatchDiscriminator3D`": patches,
}


def noise(num_frames: int, size: int, generator: torch.Generator) -> Tensor:
    """Return a video `(1, 3, T, size, size)` whose pixels do not know each other."""
    return torch.randn(1, 3, num_frames, size, size, generator=generator).mul(0.5).clamp(-1, 1)


def smooth(num_frames: int, size: int, generator: torch.Generator) -> Tensor:
    """Return a video `(1, 3, T, size, size)` that changes slowly over space and time."""
    coarse = torch.randn(1, 3, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, (num_frames, size, size), mode="trilinear", align_corners=True).clamp(-1, 1)


def mean_shares(make: Make, num_frames: int, *, dim: int, size: int, num_seeds: int) -> Tensor:
    """Return the shares of the frames `(T,)`, averaged over networks and videos."""
    shares = []
    for seed in range(num_seeds):
        torch.manual_seed(seed)
        network = make(dim, size, num_frames)
        generator = torch.Generator().manual_seed(seed)
        shares += [frame_gradients(network, video(num_frames, size, generator)) for video in (noise, smooth)]
    return torch.stack(shares).mean(0)


def row(name: str, shares: Tensor) -> str:
    """Return a line of the table."""
    ratio = shares[0] / shares[1:].mean()
    cells = (name, str(len(shares)), f"{ratio:.2f}", " ".join(f"{share:.2f}" for share in shares.tolist()))
    return f"| {' | '.join(cells)} |"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Print the share of each frame in the discriminators' gradients.")
    parser.add_argument("--dim", type=int, default=8, help="a quarter of the first layer's channels")
    parser.add_argument("--size", type=int, default=64, help="height and width of the videos")
    parser.add_argument("--seeds", type=int, default=6, help="number of networks, each with two videos")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, two of each, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.dim, arguments.size, arguments.seeds = 1, 32, 2
    return arguments


def main() -> None:
    """Print the table, a line as soon as it is there."""
    arguments = parse_arguments()
    print("| discriminator | frames | first / mean of others | share of each frame, first to last |")
    print("|---|---|---|---|")
    for num_frames in LENGTHS:
        for name, make in DISCRIMINATORS.items():
            shares = mean_shares(make, num_frames, dim=arguments.dim, size=arguments.size, num_seeds=arguments.seeds)
            print(row(name, shares), flush=True)


if __name__ == "__main__":
    main()
