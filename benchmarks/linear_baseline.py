"""How well a matrix compresses the validation clips of a training run: the bar for an autoencoder with the same latent.

    python benchmarks/linear_baseline.py                                     # the clips of the demo
    python benchmarks/linear_baseline.py --config gpu --data DIR --latents 4x8x8x16 4x16x16x48

Fits a principal component analysis of patches to training clips for each latent (time x height x width x channels),
and prints its metrics on the held-out clips: those that `telecine train` with the same settings validates on.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from torch import nn

from telecine.autoencoders import CausalVAE
from telecine.autoencoders.linear import LinearAutoencoder
from telecine.perceptual import LPIPS
from telecine.settings.parse import read_config
from telecine.training.baseline import NUM_CLIPS, _measure_linear, _training_clips
from telecine.training.clips import Clips, build_clips

LATENTS = ("4x4x4x16", "4x4x4x4", "4x8x8x16")
METRICS = {"psnr": "PSNR", "ssim": "SSIM", "lpips_alex": "LPIPS-Alex", "lpips_vgg": "LPIPS-VGG"}


def measure(
    latent: str, clips: Clips, num_clips: int, perceptual: dict[str, nn.Module]
) -> tuple[dict[str, float], float]:
    """Return the mean metrics of a latent on the held-out clips, and the seconds that fitting took."""
    compression, height, width, channels = map(int, latent.split("x"))
    if height != width:
        raise SystemExit(f"a latent must be time x size x size x channels, but got {latent}")
    start = time.perf_counter()
    model = LinearAutoencoder(compression, height, channels).fit(_training_clips(clips, num_clips))
    seconds = time.perf_counter() - start
    return _measure_linear(model, clips.val, perceptual, torch.device("cpu")), seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="demo", help="A recipe or a YAML file of settings.")
    parser.add_argument("--data", help="Training data, as in `telecine train`.")
    parser.add_argument("--val_data", help="Validation data, as in `telecine train`.")
    parser.add_argument("--num_clips", type=int, default=NUM_CLIPS, help="Training clips to fit to.")
    parser.add_argument("--latents", nargs="+", default=LATENTS, metavar="TxHxWxC", help="The sizes of the latents.")
    arguments = parser.parse_args()
    config = read_config(arguments.config)
    config = replace(config, data=arguments.data or config.data, val_data=arguments.val_data or config.val_data)
    clips = build_clips(config, CausalVAE(config.causal_vae))
    perceptual: dict[str, nn.Module] = {f"lpips_{net}": LPIPS(net) for net in ("alex", "vgg")}
    print(f"| latent | {' | '.join(METRICS.values())} | seconds to fit |")
    print("|---" * (len(METRICS) + 2) + "|")
    for latent in arguments.latents:
        means, seconds = measure(latent, clips, arguments.num_clips, perceptual)
        values = " | ".join(f"{means[name]:.2f}" if name == "psnr" else f"{means[name]:.3f}" for name in METRICS)
        print(f"| {latent} | {values} | {seconds:.0f} |", flush=True)
    print(f"\n{len(clips.val)} held-out clips, fitted to {arguments.num_clips} training clips")


if __name__ == "__main__":
    main()
