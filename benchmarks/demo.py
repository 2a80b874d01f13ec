"""The demo, with several seeds, and linear autoencoders of its latent and of others: a Markdown table.

    python benchmarks/demo.py                                            # three seeds, a few minutes each
    python benchmarks/demo.py --unseen vtest.avi tree.avi -o figures/    # also on clips of other videos
    python benchmarks/demo.py --config long.yaml --seeds 0               # other settings of the same kind
    python benchmarks/demo.py --seeds --data DIR --latents 4x16x16x48    # time x height x width x channels; no training

Trains telecine's own autoencoder on the settings of a recipe or a YAML file, once for each seed, and prints the
metrics of the averaged weights and of linear autoencoders, fitted to training clips, on the held-out clips and on clips
of each other video. Draws the middle frames of clips for the first seed: a row of inputs, one of the linear baseline,
one of the autoencoder.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from measure import machine, table
from rich.console import Console
from torch import Tensor, nn
from torchvision.utils import save_image

from telecine.data import Clip, index_videos, read_validation_clips, whole_video
from telecine.evaluation import ReconstructionMetrics
from telecine.evaluation.metrics import mean_over_clips
from telecine.losses.perceptual import LPIPS
from telecine.models import CausalVAE, LinearAutoencoder, load_autoencoder
from telecine.settings import TrainConfig
from telecine.settings.parse import read_config
from telecine.training import train
from telecine.training.baseline import fit_linear, training_clips
from telecine.training.clips import build_clips

METRICS = {"psnr": "PSNR", "ssim": "SSIM", "lpips_alex": "LPIPS-Alex", "lpips_vgg": "LPIPS-VGG"}
# Clips of a picture, the size of their pixels, and the gap around them.
NUM_SHOWN = 5
SCALE = 3
GAP = 4

Reconstruct = Callable[[Tensor], Tensor]


@torch.no_grad()
def measure(
    reconstruct: Reconstruct, clips: Sequence[Clip], perceptual: dict[str, nn.Module]
) -> list[str]:
    """Return the mean metrics on clips as cells of a table."""
    metrics = ReconstructionMetrics(perceptual)
    for clip in clips:
        target = clip["video"][None]
        metrics.update(reconstruction=reconstruct(target), target=target)
    means = mean_over_clips(metrics.per_clip())
    return [f"{means[name]:.2f}" if name == "psnr" else f"{means[name]:.3f}" for name in METRICS]


@torch.no_grad()
def draw(
    models: Sequence[Reconstruct], clips: Sequence[Clip], path: Path, scale: int = SCALE
) -> None:
    """Write the middle frames of a few clips, a row for each model; a pixel becomes `scale` x `scale`."""
    count = min(NUM_SHOWN, len(clips))
    shown = [clips[index * len(clips) // count]["video"][None] for index in range(count)]
    frames = [model(video)[0, :, video.shape[2] // 2] for model in models for video in shown]
    large = torch.stack(frames).clamp(-1, 1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    save_image((large + 1) / 2, path, nrow=len(shown), padding=GAP, pad_value=1)


def reconstruct_with(model: CausalVAE) -> Reconstruct:
    """Return the reconstruction from the mode of the posterior."""
    return lambda video: model(video, sample_posterior=False).video


def clip_sets(
    config: TrainConfig, held_out: list[Clip], unseen: Sequence[Path]
) -> dict[str, list[Clip]]:
    """Return the held-out clips, and as many of each other video, cut in the same way."""
    found = {"held out": held_out}
    infos, skipped = index_videos(unseen) if unseen else ([], [])
    if skipped:
        raise SystemExit(f"cannot read {skipped}")
    for info in infos:
        clips = read_validation_clips(
            [whole_video(info)], replace(config.clips, scale_jitter=1.0), config.val_clips
        )
        found[Path(str(info.source)).name] = clips
    return found


def parse_latent(text: str) -> tuple[str, LinearAutoencoder]:
    """Return the title and the linear autoencoder of a latent, time x height x width x channels."""
    sizes = re.fullmatch(r"(\d+)x(\d+)x\2x(\d+)", text)
    if sizes is None:
        raise argparse.ArgumentTypeError(
            f"must be time x size x size x channels as in 4x8x8x16, but got {text}"
        )
    return f"linear, {text}", LinearAutoencoder(*map(int, sizes.groups()))


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="demo", help="A recipe or a YAML file of settings.")
    parser.add_argument("--data", help="Training data, as in `telecine train`.")
    parser.add_argument(
        "--seeds", nargs="*", type=int, default=[0, 1, 2], help="No training without a number."
    )
    parser.add_argument(
        "--latents",
        nargs="+",
        type=parse_latent,
        default=[],
        metavar="TxHxWxC",
        help="Other latents.",
    )
    parser.add_argument(
        "--unseen", nargs="+", type=Path, default=[], help="Other videos to measure on."
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("runs/demo_seeds"),
        help="Folder of runs and pictures.",
    )
    arguments = parser.parse_args()
    config = read_config(arguments.config)
    config = replace(config, data=arguments.data or config.data)
    untrained = CausalVAE(config.causal_vae)
    clips_of_run = build_clips(config, untrained)
    sets = clip_sets(config, clips_of_run.val, arguments.unseen)
    perceptual: dict[str, nn.Module] = {f"lpips_{net}": LPIPS(net) for net in ("alex", "vgg")}
    linear = fit_linear(untrained, clips_of_run)
    baselines = {"linear baseline": linear}
    for title, latent in arguments.latents:
        baselines[title] = latent.fit(training_clips(clips_of_run))
    rows = [
        [title, name, *measure(model, clips, perceptual)]
        for title, model in baselines.items()
        for name, clips in sets.items()
    ]
    for seed in arguments.seeds:
        run = arguments.output / f"seed-{seed}"
        result = train(replace(config, seed=seed, output_dir=str(run)), console=Console(quiet=True))
        model = load_autoencoder(result.checkpoint / "ema").eval()
        assert isinstance(model, CausalVAE)
        ours = reconstruct_with(model)
        for name, clips in sets.items():
            rows.append([f"seed {seed}", name, *measure(ours, clips, perceptual)])
            print("  ".join(rows[-1]), flush=True)
            if seed == arguments.seeds[0]:
                draw(
                    [lambda video: video, linear, ours],
                    clips,
                    arguments.output / f"{name.replace(' ', '_')}.png",
                )
    print(f"\n{machine()}; {config.steps} updates\n")
    print(table(["model", "clips", *METRICS.values()], rows))


if __name__ == "__main__":
    main()
