"""Check that a decoder can predict dropped frames: on moving waves, beside copying and the best linear prediction.

    python benchmarks/can_predict.py --steps 300 --seeds 0 1 2

Clips of 9 x 16 x 16 show two waves in random directions, each at a constant speed. A small `CausalVAE` is trained with
`predictive.max_dropped: 0.5`, which drops the last of three latent frames in half of the updates. It sees the first
five frames of new clips; rows are the PSNR of the last four.
"""

from __future__ import annotations

import argparse
import math

import measure
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from telecine.base.shapes import VALUE_RANGE, Video
from telecine.evaluation.metrics.pixels import psnr
from telecine.models import CausalVAE
from telecine.settings import (
    CausalVAEConfig,
    ClipConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PredictiveConfig,
    ReconstructionConfig,
    TrainConfig,
)
from telecine.settings.data import Bucket
from telecine.training.build import build_accelerator, build_autoencoder, build_state
from telecine.training.prediction import FilledPosterior, build_prediction
from telecine.training.step import MicroBatch, set_learning_rates, train_step

SIDE = 16
NUM_FRAMES = 9
NUM_KEPT = 5
BATCH = 8
NUM_FITTED = 512
NUM_TESTED = 64


def moving_waves(num: int, generator: torch.Generator) -> Video:
    """Return clips `(num, 3, 9, 16, 16)` of two waves, each with a direction, a speed and a phase for each colour."""
    t, y, x = torch.meshgrid(
        torch.arange(NUM_FRAMES), torch.arange(SIDE), torch.arange(SIDE), indexing="ij"
    )
    video = torch.zeros(num, 3, NUM_FRAMES, SIDE, SIDE)
    for _ in range(2):
        angle = 2 * math.pi * torch.rand(num, 1, 1, 1, 1, generator=generator)
        period = 8 + 8 * torch.rand(num, 1, 1, 1, 1, generator=generator)
        speed = 1.5 * torch.rand(num, 1, 1, 1, 1, generator=generator)
        phase = 2 * math.pi * torch.rand(num, 3, 1, 1, 1, generator=generator)
        along = x * angle.cos() + y * angle.sin() - speed * t
        video += 0.45 * torch.sin(2 * math.pi * along / period + phase)
    return video


def settings_of(time_kernel: int, steps: int, seed: int) -> TrainConfig:
    """Return the settings of a run, which reads no files."""
    return TrainConfig(
        steps=steps,
        seed=seed,
        device="cpu",
        trackers=(),
        batch_size=BATCH,
        clips=ClipConfig(num_frames=NUM_FRAMES, height=32, width=32),
        causal_vae=CausalVAEConfig(
            spatial_compression=4,
            patch_size=4,
            latent_channels=16,
            base_channels=64,
            channel_multipliers=(1,),
            blocks_per_level=2,
            time_kernel=time_kernel,
        ),
        objective=ObjectiveConfig(
            perceptual_weight=0.0,
            quantizer_aux_loss_weight=1e-6,
            reconstruction=ReconstructionConfig(loss="l1"),
        ),
        optimizer=OptimizerConfig(
            lr=2e-3, betas=(0.9, 0.99), warmup_steps=20, schedule="cosine", ema_decay=0.99
        ),
    )


def neighbourhoods(latent: Tensor) -> Tensor:
    """Return the 3 x 3 neighbours of each position in both latent frames, as rows with a 1."""
    rows = nn.functional.unfold(latent.flatten(1, 2), 3, padding=1).transpose(1, 2).flatten(0, 1)
    return torch.cat([rows, torch.ones(len(rows), 1)], 1).double()


@torch.no_grad()
def linear_prediction(model: CausalVAE, fitted: Video, tested: Video) -> Video:
    """Return the last frames by least squares from the latent of the first ones."""
    inputs = neighbourhoods(model.encode(fitted[:, :, :NUM_KEPT]).mode())
    frames = fitted[:, :, NUM_KEPT:].flatten(1, 2)
    targets = nn.functional.unfold(frames, 4, stride=4).transpose(1, 2).flatten(0, 1).double()
    gram = inputs.T @ inputs + 1e-4 * len(inputs) * torch.eye(inputs.shape[1])
    weights = torch.linalg.solve(gram, inputs.T @ targets)
    rows = neighbourhoods(model.encode(tested[:, :, :NUM_KEPT]).mode()) @ weights
    columns = rows.float().unflatten(0, (len(tested), -1)).transpose(1, 2)
    return nn.functional.fold(columns, SIDE, 4, stride=4).unflatten(1, (3, NUM_FRAMES - NUM_KEPT))


def measured(time_kernel: int, steps: int, seed: int) -> dict[str, float]:
    """Train a model, and return the PSNR of its predictions and of trivial ones."""
    config = settings_of(time_kernel, steps, seed)
    set_seed(seed)
    accelerator = build_accelerator(config)
    model = build_autoencoder(config)
    assert isinstance(model, CausalVAE)
    generator = torch.Generator().manual_seed(seed)
    fitted = moving_waves(NUM_FITTED, generator)
    linear = model.linear_autoencoder(NUM_FRAMES, SIDE, SIDE)
    assert linear is not None
    model.copy_linear(linear.fit(fitted[:128].split(1)))
    # The settings of a run ask for clips that LPIPS could read; these are smaller.
    prediction = build_prediction(
        PredictiveConfig(max_dropped=0.5), model, [Bucket(NUM_FRAMES, SIDE, SIDE)]
    )
    assert prediction is not None
    assert prediction.fill is not None
    state = build_state(config, accelerator, model)
    state.prediction = prediction
    state.optimizer.add_param_group({"params": list(prediction.fill.parameters())})
    for step in range(steps):
        set_learning_rates(state, config.optimizer, steps)
        batch = moving_waves(BATCH, generator)
        train_step(state, [MicroBatch(batch, range(BATCH * step, BATCH * (step + 1)))])
    model.eval()
    tested = moving_waves(NUM_TESTED, generator)
    with state.ema.applied(), torch.no_grad():
        posterior = model.encode(tested[:, :, :NUM_KEPT])
        predicted = model.decode(FilledPosterior(posterior, 1, prediction.fill).mode())
        whole = model(tested, sample_posterior=False).video
        by_least_squares = linear_prediction(model, fitted, tested)
    target = tested[:, :, NUM_KEPT:]
    predictions = {
        "prediction": predicted[:, :, NUM_KEPT:],
        "copy of the last frame": tested[:, :, NUM_KEPT - 1 : NUM_KEPT].expand_as(target),
        "best linear prediction": by_least_squares,
        "reconstruction, nothing dropped": whole[:, :, NUM_KEPT:],
    }
    figures = {}
    for name, video in predictions.items():
        values = psnr(reconstruction=video.clamp(*VALUE_RANGE), target=target)
        figures[name] = float(values.mean())
    return figures


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--time_kernels", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    rows = []
    names: list[str] = []
    for time_kernel in options.time_kernels:
        figures = []
        for seed in options.seeds:
            figures.append(measured(time_kernel, options.steps, seed))
            print(time_kernel, seed, figures[-1], flush=True)
        names = list(figures[0])
        cells = [measure.spread([one[name] for one in figures], 2) for name in names]
        rows.append([str(time_kernel), str(len(figures)), *cells])
    print(measure.table(["time_kernel", "seeds", *names], rows))


if __name__ == "__main__":
    main()
