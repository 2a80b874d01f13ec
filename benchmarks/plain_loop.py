"""Telecine beside the training loop that a user of diffusers would write: a Markdown table for each model.

    python benchmarks/plain_loop.py

Needs the extras `train` and `dev`. Models are narrow and have random weights. The plain loop has diffusers' model,
LPIPS of its authors' package on all frames, a PatchGAN with hinge losses and the adaptive weight of VQGAN
(arXiv:2012.09841), AdamW twice, and an average of the weights (EMA). Telecine starts from the same weights and trains
on the same clips and the same noise, so the losses of all updates have to be equal within rounding. Training amplifies
rounding: the last column is the difference of a second plain loop, whose weights start one rounding off.

Each round runs one update of each loop. The ratio of times is the median over rounds, with the lowest and the highest.
Memory is the peak of an update above the memory before it, in a new process for each loop.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
from baseline import adaptive_weight
from einops import rearrange
from image_distances import published_lpips
from measure import Step, device, extra_peak, interleaved, machine, megabytes, ratio, table, table_row
from published_models import SMALL_COG, SMALL_WAN, with_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from telecine.base.randomness import clip_generators
from telecine.settings import (
    AdaptiveWeightConfig,
    ClipConfig,
    DiscriminatorConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PerceptualConfig,
    TrainConfig,
)
from telecine.training.build import build_accelerator, build_autoencoder, build_state
from telecine.training.step import MicroBatch, train_step

TELECINE, PLAIN, ROUNDED = "telecine", "plain loop", "plain loop, one rounding off"
MODELS: Mapping[str, Mapping[str, Any]] = {"Wan 2.1": SMALL_WAN, "CogVideoX": SMALL_COG}
LAST_LAYERS = {"AutoencoderKLWan": "decoder.conv_out.weight", "AutoencoderKLCogVideoX": "decoder.conv_out.conv.weight"}
SIZES = ("1,9,64", "2,9,64", "1,9,128")
HEADER = (
    "batch x frames x height x width",
    f"{TELECINE}, s",
    f"{PLAIN}, s",
    f"{PLAIN} / {TELECINE}",
    f"{TELECINE}, MB",
    f"{PLAIN}, MB",
    f"{TELECINE} / {PLAIN}",
    "largest difference of the losses",
    f"of a {PLAIN} one rounding off",
)
# By loop, those of each update.
Losses = dict[str, list[dict[str, float]]]
# By telecine's names in the log.
LOSSES = ("total_loss", "recon_loss", "perceptual_loss", "kl_loss", "gen_loss", "adaptive_weight", "total_disc_loss")

PERCEPTUAL_WEIGHT, ADVERSARIAL_WEIGHT, KL_WEIGHT = 1.0, 0.5, 1e-6
LR, BETAS, GRAD_CLIP, EMA_DECAY = 1e-5, (0.5, 0.9), 1.0, 0.999
DISC_CHANNELS = 32
# diffusers' Wan clamps its output to [-1, 1], telecine does not. No output of a scaled layer gets there.
LAST_LAYER_SCALE = 0.4
SEED = 0


class PatchGAN(nn.Module):
    """The layers and the parameters' names of `telecine.PatchDiscriminator3D`; maps videos to logits of patches."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths, strides = [3, dim, 2 * dim, 4 * dim, 8 * dim], [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 1, 1)]
        self.blocks = nn.Sequential()
        for (width_in, width_out), stride in zip(pairwise(widths), strides, strict=True):
            kernel = (3, 4, 4) if stride[-1] == 2 else 3
            layers: list[nn.Module] = [nn.Conv3d(width_in, width_out, kernel, stride, padding=1)]
            if width_in > 3:
                layers.append(nn.GroupNorm(width_out // 16, width_out))
            self.blocks.append(nn.Sequential(*layers, nn.LeakyReLU(0.2, inplace=True)))
        self.to_logits = nn.Conv3d(widths[-1], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, 3, T, H, W)` to `(B, 1, t, h, w)`."""
        return self.to_logits(self.blocks(x))


class Loop(Protocol):
    """A training loop."""

    def update(self, video: Tensor, clips: Sequence[int]) -> dict[str, float]:
        """Update both networks with clips `(B, 3, T, H, W)` and their numbers in the run, and return the losses."""


class PlainLoop:
    """The loop of a user of diffusers. The discriminator passes over the reconstruction once for each network."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.model = getattr(diffusers, values["_class_name"]).from_config(values).train().to(device())
        self.last_layer = self.model.get_parameter(LAST_LAYERS[values["_class_name"]])
        self.discriminator = PatchGAN(DISC_CHANNELS).to(device())
        self.lpips = published_lpips("vgg").to(device())
        self.optimizer = AdamW(self.model.parameters(), LR, betas=BETAS, weight_decay=0.0)
        self.disc_optimizer = AdamW(self.discriminator.parameters(), LR, betas=BETAS, weight_decay=0.0)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))

    def update(self, video: Tensor, clips: Sequence[int]) -> dict[str, float]:
        """Run the autoencoder's step, then the discriminator's."""
        posterior = self.model.encode(video).latent_dist
        fake = self.model.decode(posterior.sample(clip_generators(SEED, clips, video.device))).sample
        recon = F.mse_loss(fake, video)
        perceptual = self.lpips(frames_of(fake), frames_of(video)).mean()
        nll = recon + PERCEPTUAL_WEIGHT * perceptual
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        self.discriminator.requires_grad_(False)
        g = -self.discriminator(fake).mean()
        weight = adaptive_weight(nll, g, self.last_layer)
        loss = nll + ADVERSARIAL_WEIGHT * weight * g + KL_WEIGHT * kl
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update_parameters(self.model)

        self.discriminator.requires_grad_(True)
        d_real, d_fake = self.discriminator(video), self.discriminator(fake.detach())
        disc_loss = F.relu(1 + d_fake).mean() + F.relu(1 - d_real).mean()
        disc_loss.backward()
        nn.utils.clip_grad_norm_(self.discriminator.parameters(), GRAD_CLIP)
        self.disc_optimizer.step()
        self.disc_optimizer.zero_grad(set_to_none=True)
        losses = torch.stack([loss, recon, perceptual, kl, g, weight, disc_loss])
        return dict(zip(LOSSES, losses.tolist(), strict=True))


class Telecine:
    """`train_step` with the same terms and weights."""

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(SEED)
        self.state = build_state(config, build_accelerator(config), build_autoencoder(config))
        with torch.no_grad():
            self.state.autoencoder.last_layer.mul_(LAST_LAYER_SCALE)

    def update(self, video: Tensor, clips: Sequence[int]) -> dict[str, float]:
        """Run an update."""
        log = train_step(self.state, [MicroBatch(video, clips)])
        return {name: log[f"train/{name}"] for name in LOSSES}

    def copy_weights(self, plain: PlainLoop) -> None:
        """Let the plain loop start from this one's weights."""
        discriminator = self.state.objective.discr_3d
        assert discriminator is not None
        plain.model.load_state_dict(self.state.autoencoder.module.state_dict())
        plain.discriminator.load_state_dict(discriminator.state_dict())


def frames_of(video: Tensor) -> Tensor:
    """Return all frames of `(B, C, T, H, W)` as `(B*T, C, H, W)`."""
    return rearrange(video, "b c t h w -> (b t) c h w")


def config_of(values: Mapping[str, Any], size: tuple[int, int, int], folder: Path) -> TrainConfig:
    """Return telecine's settings for the model with these values, and for batch, frames, height and width."""
    batch_size, num_frames, side = size
    config = TrainConfig(
        device=device().type,
        trackers=(),
        seed=SEED,
        batch_size=batch_size,
        clips=ClipConfig(num_frames=num_frames, height=side, width=side),
        objective=ObjectiveConfig(
            perceptual_weight=PERCEPTUAL_WEIGHT,
            adversarial_loss_weight=ADVERSARIAL_WEIGHT,
            quantizer_aux_loss_weight=KL_WEIGHT,
            perceptual=PerceptualConfig(num_frames="all"),
            adaptive_weight=AdaptiveWeightConfig(reference="recon_and_perceptual"),
        ),
        discriminator=DiscriminatorConfig(video="patch", dim=DISC_CHANNELS // 4),
        optimizer=OptimizerConfig(
            lr=LR, disc_lr=LR, betas=BETAS, disc_betas=BETAS, grad_clip=GRAD_CLIP, ema_decay=EMA_DECAY
        ),
    )
    return with_model(config, values, folder)


def step_of(loop: Loop, config: TrainConfig, losses: list[dict[str, float]]) -> Step:
    """Return a step that trains on other clips each time, and adds its losses to the list."""
    clips, batch_size, numbers = config.clips, config.clips_per_pass, count()

    def step() -> None:
        number = next(numbers)
        shape = (batch_size, 3, clips.num_frames, clips.height, clips.width)
        video = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(number)) - 1
        losses.append(loop.update(video.to(device()), range(number * batch_size, (number + 1) * batch_size)))

    return step


def make_step(name: str, values: Mapping[str, Any], config: TrainConfig) -> Step:
    """Return a step of one loop, for a process of its own."""
    return step_of(Telecine(config) if name == TELECINE else PlainLoop(values), config, [])


def largest_difference(losses: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]]) -> float:
    """Return the largest difference of a loss in any update, relative to the largest value of that loss."""
    pairs = list(zip(losses, others, strict=True))
    return max(max(abs(a[name] - b[name]) for a, b in pairs) / max(abs(b[name]) for _, b in pairs) for name in LOSSES)


@torch.no_grad()
def move_by_one_rounding(weights: Iterable[Tensor]) -> None:
    """Replace each weight by the next larger number."""
    for weight in weights:
        weight.copy_(torch.nextafter(weight, torch.full_like(weight, torch.inf)))


def train(values: Mapping[str, Any], config: TrainConfig, repeats: int) -> tuple[dict[str, list[float]], Losses]:
    """Return the seconds of `repeats` updates after one that is not timed, and the losses of all, of each loop."""
    telecine, plain, rounded = Telecine(config), PlainLoop(values), PlainLoop(values)
    telecine.copy_weights(plain)
    telecine.copy_weights(rounded)
    move_by_one_rounding(rounded.model.parameters())
    losses: Losses = {TELECINE: [], PLAIN: [], ROUNDED: []}
    loops: dict[str, Loop] = {TELECINE: telecine, PLAIN: plain, ROUNDED: rounded}
    steps = {name: step_of(loop, config, losses[name]) for name, loop in loops.items()}
    seconds = interleaved({name: steps[name] for name in (TELECINE, PLAIN)}, rounds=repeats)
    for _ in losses[PLAIN]:
        steps[ROUNDED]()
    return seconds, losses


def row(values: Mapping[str, Any], config: TrainConfig, repeats: int) -> list[str]:
    """Return the cells of a size."""
    seconds, losses = train(values, config, repeats)
    ratios = [a / b for a, b in zip(seconds[PLAIN], seconds[TELECINE], strict=True)]
    peaks = {name: extra_peak(make_step, name, values, config) for name in seconds}
    return [
        f"{config.batch_size} x {config.clips.num_frames} x {config.clips.height} x {config.clips.width}",
        *(f"{statistics.median(seconds[name]):#.3g}" for name in seconds),
        f"{ratio(statistics.median(ratios))} ({min(ratios):.2f} to {max(ratios):.2f})",
        *(megabytes(peaks[name]) for name in peaks),
        ratio(peaks[TELECINE] / peaks[PLAIN]),
        *(f"{largest_difference(losses[name], losses[PLAIN]):.1e}" for name in (TELECINE, ROUNDED)),
    ]


def parse_size(text: str) -> tuple[int, int, int]:
    """Parse `batch,frames,side`."""
    try:
        batch_size, num_frames, side = (int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be batch,frames,side, but got {text!r}") from None
    return batch_size, num_frames, side


def rows(values: Mapping[str, Any], sizes: Sequence[tuple[int, int, int]], repeats: int) -> Iterator[list[str]]:
    """Yield the row of each size."""
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            yield row(values, config_of(values, size, Path(folder)), repeats)


def main() -> None:
    """Print the table of each model, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description="Print time and memory of an update beside those of a plain loop.")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), help="the models")
    parser.add_argument(
        "--sizes", nargs="+", type=parse_size, metavar="BATCH,FRAMES,SIDE", default=[parse_size(x) for x in SIZES]
    )
    parser.add_argument("--repeats", type=int, default=9, help="number of timed updates, after one that is not timed")
    arguments = parser.parse_args()
    print(machine())
    for name in arguments.only:
        print(f"\n## {name}, {arguments.repeats + 1} updates\n\n{table(HEADER, [])}", flush=True)
        for cells in rows(MODELS[name], arguments.sizes, arguments.repeats):
            print(table_row(cells), flush=True)


if __name__ == "__main__":
    main()
