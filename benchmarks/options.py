"""What each option of the objective costs in time, relative to the defaults: a Markdown table.

    python benchmarks/options.py

Forward and backward of both steps, on a reconstruction that requires a gradient, as an autoencoder would hand over. The
reference is LPIPS on one frame, a video discriminator with hinge losses, the penalty at every step, and the adaptive
weight. Where an option needs another to be on, that one is part of its row. Each round runs the reference and all
options once; figures are medians over rounds of the ratio to the reference of the same round.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from timing import Step, interleaved, machine, median_ratio
from torch import Tensor, nn

from telecine import LPIPS, Discriminator3DWithfirstframe, PatchDiscriminator3D, VideoAutoencoderLoss

REFERENCE: dict[str, Any] = {
    "disc_start": 0,
    "adversarial_loss_weight": 0.5,
    "grad_penalty_loss_weight": 10,
}
OPTIONS: dict[str, dict[str, Any]] = {
    '`recon_loss="l1"`': {"recon_loss": "l1"},
    '`recon_loss="charbonnier"`': {"recon_loss": "charbonnier"},
    "`learn_logvar`": {"learn_logvar": True},
    "`wavelet_loss_weight`": {"wavelet_loss_weight": 0.1},
    "`wavelet_loss_weight`, `wavelet_levels=3`": {"wavelet_loss_weight": 0.1, "wavelet_levels": 3},
    "`temporal_loss_weight`": {"temporal_loss_weight": 0.1},
    '`perceptual_net="alex"`': {"perceptual_net": "alex"},
    '`perceptual_frames="all"`': {"perceptual_frames": "all"},
    '`perceptual_frames="all"`, `perceptual_stride=4`': {"perceptual_frames": "all", "perceptual_stride": 4},
    '`perceptual_frames="all"`, `perceptual_chunk_size=4`': {"perceptual_frames": "all", "perceptual_chunk_size": 4},
    "`gram_loss_weight`": {"gram_loss_weight": 0.1},
    '`gan_loss="vanilla"`': {"gan_loss": "vanilla"},
    '`gan_loss="least_squares"`': {"gan_loss": "least_squares"},
    '`gan_loss="relativistic"`': {"gan_loss": "relativistic"},
    "`feature_matching_loss_weight`": {"feature_matching_loss_weight": 1.0},
    "`lecam_loss_weight`": {"lecam_loss_weight": 0.001},
    "no penalty (15 of 16 steps with `grad_penalty_every=16`)": {"grad_penalty_loss_weight": 0},
    '`grad_penalty="r1"`': {"grad_penalty": "r1"},
    '`grad_penalty="r2"`': {"grad_penalty": "r2"},
    '`grad_penalty="r1_and_r2"`': {"grad_penalty": "r1_and_r2"},
    '`grad_penalty="wgan_gp"`': {"grad_penalty": "wgan_gp"},
    '`grad_penalty="approximate_r1"`': {"grad_penalty": "approximate_r1"},
    '`adaptive_weight_reference="recon_and_perceptual"`': {"adaptive_weight_reference": "recon_and_perceptual"},
    '`adaptive_weight_reference="none"`': {"adaptive_weight_reference": "none"},
    '`adaptive_weight_at="reconstruction"`': {"adaptive_weight_at": "reconstruction"},
    "`adaptive_weight_decay`": {"adaptive_weight_decay": 0.9},
    "`discr_kwargs` as well": {"discr_kwargs": "image"},
    "`multiscale_discr_kwargs`, one scale, as well": {
        "multiscale_adversarial_loss_weight": 0.5,
        "multiscale_discr_kwargs": "half",
    },
    "`Discriminator3DWithfirstframe`": {"discr_3d_kwargs": Discriminator3DWithfirstframe},
    "`PatchDiscriminator3D`": {"discr_3d_kwargs": PatchDiscriminator3D},
    "no discriminator": {"adversarial_loss_weight": 0, "discr_3d_kwargs": None},
}


class LastLayer(nn.Module):
    """Stands for a decoder: a convolution that makes the reconstruction, so that the adaptive weight has its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 1)

    def forward(self, video: Tensor) -> Tensor:
        """Map a video to a reconstruction of its shape."""
        return self.conv(video)


@cache
def lpips(net: str) -> LPIPS:
    """Return LPIPS, one for all rows: it holds nothing but what never changes."""
    return LPIPS(net)


def build(options: dict[str, Any], arguments: argparse.Namespace) -> VideoAutoencoderLoss:
    """Build the loss of a row, its discriminators of the size that the command line asks for."""
    image = {"dim": arguments.dim, "image_size": arguments.size}
    video = {**image, "frame_num": arguments.frames}
    given = {"discr_3d_kwargs": video, **options}
    if given.get("discr_kwargs") == "image":
        given["discr_kwargs"] = image
    if given.get("multiscale_discr_kwargs") == "half":
        given["multiscale_discr_kwargs"] = [{**video, "image_size": arguments.size // 2}]
    if given["discr_3d_kwargs"] is PatchDiscriminator3D:
        given["discr_3d_kwargs"] = PatchDiscriminator3D(dim=4 * arguments.dim)
    if given["discr_3d_kwargs"] is Discriminator3DWithfirstframe:
        given["discr_3d_kwargs"] = Discriminator3DWithfirstframe(**video)
    torch.manual_seed(0)
    return VideoAutoencoderLoss(**{**REFERENCE, **given, "perceptual_net": lpips(given.get("perceptual_net", "vgg"))})


def steps_of(loss: VideoAutoencoderLoss, arguments: argparse.Namespace) -> tuple[Step, Step]:
    """Return both steps, forward and backward, on one batch."""
    real = torch.rand(arguments.batch, 3, arguments.frames, arguments.size, arguments.size) * 2 - 1
    decoder = LastLayer()

    def autoencoder_step() -> None:
        total, _ = loss(real, decoder(real), 0, 0, last_layer=decoder.conv.weight)
        total.backward()

    def discriminator_step() -> None:
        if loss.get_trainable_parameters():
            loss(real, decoder(real).detach(), 1, 0)[0].backward()

    return autoencoder_step, discriminator_step


def row(name: str, columns: list[str]) -> str:
    """Return a line of the table."""
    return f"| {' | '.join([name, *columns])} |"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Print what each option costs relative to the defaults.")
    parser.add_argument("--dim", type=int, default=16, help="a quarter of the discriminator's first block's channels")
    parser.add_argument("--size", type=int, default=64, help="height and width of the clips")
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip")
    parser.add_argument("--batch", type=int, default=2, help="clips in a batch")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and one round, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.dim, arguments.size, arguments.frames, arguments.batch, arguments.rounds = 1, 32, 4, 1, 1
    arguments.warmup = 0 if arguments.smoke else 1
    return arguments


def main() -> None:
    """Measure all rows and print the table."""
    arguments = parse_arguments()
    timed: dict[str, dict[str, list[float]]] = {}
    losses = {name: build(options, arguments) for name, options in {"reference": {}, **OPTIONS}.items()}
    for index, step in enumerate(("autoencoder", "discriminators")):
        steps: dict[str, Callable[[], None]] = {name: steps_of(loss, arguments)[index] for name, loss in losses.items()}
        timed[step] = interleaved(steps, rounds=arguments.rounds, warmup=arguments.warmup)
    print(
        f"dim {arguments.dim}, {arguments.size} px, {arguments.frames} frames, batch {arguments.batch}; {machine()}\n"
    )
    print(row("option", ["autoencoder's step", "discriminators' step"]))
    print(row("---", ["---", "---"]))
    print(row("reference", [f"{statistics.median(times['reference']):.3f} s" for times in timed.values()]))
    for name in OPTIONS:
        columns = [f"{median_ratio(times[name], times['reference']):.2f} x" for times in timed.values()]
        trains = bool(losses[name].get_trainable_parameters())
        print(row(name, columns if trains else [columns[0], "-"]))


if __name__ == "__main__":
    main()
