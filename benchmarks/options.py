"""Time of each option of the objective relative to the defaults: a Markdown table.

    python benchmarks/options.py

The measured steps are forward and backward, on a reconstruction that requires a gradient, as an autoencoder's does. The
reference is LPIPS on one frame, a video discriminator with hinge losses, the penalty on every step, and the adaptive
weight. Each round runs the reference and all options once; figures are medians over rounds of the ratio to the
reference of the same round. Terms of the latent are measured in a step of a small autoencoder and the objective without
a discriminator, relative to that step: what most of them cost is a pass of its decoder.
"""

from __future__ import annotations

import argparse
import statistics
from functools import cache
from typing import Any

import torch
from cases import nested
from measure import Step, interleaved, machine, median_ratio, ratio, table_row
from torch import nn

from telecine import LPIPS, VideoAutoencoderLoss
from telecine.models import CausalVAE
from telecine.settings import CausalVAEConfig

REFERENCE: dict[str, Any] = {
    "disc_start": 0,
    "adversarial_loss_weight": 0.5,
    "grad_penalty_loss_weight": 10,
}
# Settings that differ from the reference, by the title of the row. Dotted names are those of groups.
OPTIONS: dict[str, dict[str, Any]] = {
    '`reconstruction.loss="l1"`': {"reconstruction.loss": "l1"},
    '`reconstruction.loss="charbonnier"`': {"reconstruction.loss": "charbonnier"},
    "`reconstruction.learn_logvar`": {"reconstruction.learn_logvar": True},
    "`terms.wavelet`": {"terms.wavelet": 0.1},
    "`terms.wavelet`, 3 levels": {"terms.wavelet": {"weight": 0.1, "params": {"levels": 3}}},
    "`terms.temporal`": {"terms.temporal": 0.1},
    '`perceptual.net="alex"`': {"perceptual.net": "alex"},
    '`perceptual.num_frames="all"`': {"perceptual.num_frames": "all"},
    '`perceptual.num_frames="all"`, `chunk_size=4`': {
        "perceptual.num_frames": "all",
        "perceptual.chunk_size": 4,
    },
    "`terms.gram`": {"terms.gram": 0.1},
    '`gan.loss="vanilla"`': {"gan.loss": "vanilla"},
    '`gan.loss="least_squares"`': {"gan.loss": "least_squares"},
    '`gan.loss="relativistic"`': {"gan.loss": "relativistic"},
    "`gan.window=2`": {"gan.window": 2},
    "`gan.augment`, all three": {"gan.augment": ("color", "translation", "cutout")},
    "`gan.feature_matching_loss_weight`": {"gan.feature_matching_loss_weight": 1.0},
    "`gan.lecam_loss_weight`": {"gan.lecam_loss_weight": 0.001},
    "no penalty (15 of 16 steps with `penalty.every=16`)": {"grad_penalty_loss_weight": 0},
    '`penalty.kind="r1"`': {"penalty.kind": "r1"},
    '`penalty.kind="r2"`': {"penalty.kind": "r2"},
    '`penalty.kind="r1_and_r2"`': {"penalty.kind": "r1_and_r2"},
    '`penalty.kind="wgan_gp"`': {"penalty.kind": "wgan_gp"},
    '`penalty.kind="approximate_r1"`': {"penalty.kind": "approximate_r1"},
    '`adaptive_weight.reference="recon_and_perceptual"`': {
        "adaptive_weight.reference": "recon_and_perceptual"
    },
    '`adaptive_weight.reference="none"`': {"adaptive_weight.reference": "none"},
    '`adaptive_weight.at="reconstruction"`': {"adaptive_weight.at": "reconstruction"},
}

# Measured with `autoencoder_step_of`.
LATENT_TERMS: dict[str, dict[str, Any]] = {
    "`terms.equivariance`": {"terms.equivariance": 0.25},
    "`terms.scale_equivariance`": {"terms.scale_equivariance": 0.25},
    "`terms.local_correlation`": {"terms.local_correlation": 0.1},
    "`terms.latent_masking`": {"terms.latent_masking": 0.25},
    "`terms.latent_noise`": {"terms.latent_noise": 0.25},
    "`terms.round_trip`": {"terms.round_trip": 0.1},
    "`terms.alignment`, AlexNet": {
        "terms.alignment": {"weight": 0.1, "params": {"latent_channels": 16}}
    },
}


@cache
def lpips(net: str) -> LPIPS:
    """Return LPIPS. All rows share it, because it does not change."""
    return LPIPS(net)


def networks(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the settings of the rows with other discriminators, by title."""
    image = {"dim": arguments.dim, "image_size": arguments.size}
    video = {**image, "frame_num": arguments.frames}
    first_frame = {"target": "telecine.Discriminator3DWithfirstframe", "params": video}
    patch = {
        "target": "telecine.PatchDiscriminator3D",
        "params": {"base_channels": 4 * arguments.dim},
    }
    features = {
        "target": "telecine.discriminators.FeatureDiscriminator",
        "params": {"base_channels": 4 * arguments.dim},
    }
    return {
        "`discr_kwargs` as well": {"discr_kwargs": image},
        "`multiscale_discr_kwargs`, one scale, as well": {
            "multiscale_adversarial_loss_weight": 0.5,
            "multiscale_discr_kwargs": [{**video, "image_size": arguments.size // 2}],
        },
        "`Discriminator3DWithfirstframe`": {"discr_3d_kwargs": first_frame},
        "`PatchDiscriminator3D`": {"discr_3d_kwargs": patch},
        "`FeatureDiscriminator`, no penalty": {
            "discr_3d_kwargs": features,
            "grad_penalty_loss_weight": 0,
        },
        "no discriminator": {"adversarial_loss_weight": 0, "discr_3d_kwargs": None},
    }


def build(options: dict[str, Any], arguments: argparse.Namespace) -> VideoAutoencoderLoss:
    """Return the loss of a row."""
    video = {"dim": arguments.dim, "image_size": arguments.size, "frame_num": arguments.frames}
    net = lpips(options.get("perceptual.net", "vgg"))
    torch.manual_seed(0)
    return VideoAutoencoderLoss(
        **nested({**REFERENCE, "discr_3d_kwargs": video, **options, "perceptual.net": net})
    )


def steps_of(loss: VideoAutoencoderLoss, arguments: argparse.Namespace) -> tuple[Step, Step]:
    """Return forward and backward of the autoencoder step and of the discriminator step, on one batch."""
    real = torch.rand(arguments.batch, 3, arguments.frames, arguments.size, arguments.size) * 2 - 1
    decoder = nn.Conv3d(3, 3, 1)

    def autoencoder_step() -> None:
        loss(real, decoder(real), 0, 0, last_layer=decoder.weight)[0].backward()

    def discriminator_step() -> None:
        if loss.get_trainable_parameters():
            loss(real, decoder(real).detach(), 1, 0)[0].backward()

    return autoencoder_step, discriminator_step


def autoencoder_step_of(options: dict[str, Any], arguments: argparse.Namespace) -> Step:
    """Return forward and backward of a small autoencoder and of its step, without a discriminator."""
    torch.manual_seed(0)
    autoencoder = CausalVAE(CausalVAEConfig(base_channels=arguments.dim * 4, blocks_per_level=1))
    loss = VideoAutoencoderLoss(
        **nested({"disc_start": 0, "perceptual.net": lpips("vgg"), **options})
    )
    size = max(arguments.size, 64)  # AlexNet and four positions of the latent
    real = torch.rand(arguments.batch, 3, 1 + arguments.frames // 4 * 4, size, size) * 2 - 1

    def step() -> None:
        output = autoencoder(real)
        total_loss, _ = loss(
            real,
            output.video,
            0,
            0,
            output.aux,
            latent=output.latent,
            decode=autoencoder.decode,
            encode=lambda video: autoencoder.encode(video).mode(),
        )
        total_loss.backward()
        autoencoder.zero_grad()

    return step


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Print the time of each option relative to the defaults."
    )
    parser.add_argument(
        "--dim",
        type=int,
        default=16,
        help="a quarter of the channels of the discriminator's 1st block",
    )
    parser.add_argument("--size", type=int, default=64, help="height and width of the clips")
    parser.add_argument("--frames", type=int, default=8, help="number of frames of a clip")
    parser.add_argument("--batch", type=int, default=2, help="number of clips in a batch")
    parser.add_argument("--rounds", type=int, default=7, help="number of measured rounds")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny networks and one round, to test the command"
    )
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.dim, arguments.size, arguments.frames, arguments.batch, arguments.rounds = (
            1,
            32,
            4,
            1,
            1,
        )
    arguments.warmup = 0 if arguments.smoke else 1
    return arguments


def main() -> None:
    """Measure all rows and print the table."""
    arguments = parse_arguments()
    rows = {"reference": {}, **OPTIONS, **networks(arguments)}
    losses = {title: build(options, arguments) for title, options in rows.items()}
    steps = {title: steps_of(loss, arguments) for title, loss in losses.items()}
    seconds = [
        interleaved(
            {title: pair[index] for title, pair in steps.items()},
            rounds=arguments.rounds,
            warmup=arguments.warmup,
        )
        for index in (0, 1)
    ]
    print(
        f"dim {arguments.dim}, {arguments.size} px, {arguments.frames} frames, batch {arguments.batch}; {machine()}\n"
    )
    print(table_row(["option", "autoencoder step", "discriminator step"]))
    print(table_row(["---", "---", "---"]))
    print(
        table_row(
            [
                "reference",
                *(f"{statistics.median(by_title['reference']):.3f} s" for by_title in seconds),
            ]
        )
    )
    for title in list(rows)[1:]:
        cells = [
            ratio(median_ratio(by_title[title], by_title["reference"])) for by_title in seconds
        ]
        trains = bool(losses[title].get_trainable_parameters())
        print(table_row([title, *(cells if trains else [cells[0], "-"])]))
    latent = {"no term": {}, **LATENT_TERMS}
    step_of = {title: autoencoder_step_of(options, arguments) for title, options in latent.items()}
    by_title = interleaved(step_of, rounds=arguments.rounds, warmup=arguments.warmup)
    print("\n" + table_row(["term of the latent", "step of the autoencoder and the objective"]))
    print(table_row(["---", "---"]))
    print(table_row(["no term", f"{statistics.median(by_title['no term']):.3f} s"]))
    for title in LATENT_TERMS:
        print(table_row([title, ratio(median_ratio(by_title[title], by_title["no term"]))]))


if __name__ == "__main__":
    main()
