"""Effect of each regulariser of the latent on held-out clips of the demo: Markdown tables and a picture.

    python benchmarks/latents.py --runs runs/latents --picture latents.png
    python benchmarks/latents.py --runs runs/latents_4 --terms equivariance --batch_size 4 --seeds 0 1 2

Every run is the demo (`telecine train` without arguments) without a GAN and with fewer updates. Runs differ only in
one term and their seed. "Linear start" is the autoencoder before its first update. "Equivariance error" is the mean
squared error of decoded transformed latents against transformed videos, a mean over a scale of 1/2, two flips and
three quarter turns. Its floor is the error of the reconstruction of the transformed videos, which a perfectly
equivariant latent would have. "Alignment" is the cosine of AlexNet's features of held-out clips with a linear map of
the latent, the best one for training clips. Differences are to the run of the same seed without a term. The time of an
update is processor time, a median over rounds of the ratio to the update without a term. Finished runs are stored in
`--runs`, and not repeated.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from latents_picture import draw
from measure import interleaved, machine, median_ratio, ratio, spread, table
from outcome_runs import plain_values
from rich.console import Console
from telecine.training.config_file import read_config
from torch import Tensor

from telecine.autoencoders import CausalVAE
from telecine.base.checks import argument_error
from telecine.base.files import read_json, write_json
from telecine.base.shapes import Video
from telecine.evaluation.latents import TRANSFORMS, decode, describe, measure_space
from telecine.evaluation.source import ModelSource
from telecine.losses import mse
from telecine.perceptual import LPIPS
from telecine.runs.layout import CONFIG_FILE, find_checkpoint
from telecine.settings import ClipConfig, TrainConfig
from telecine.training import baseline, train
from telecine.training.baseline import fit_linear
from telecine.training.build import Clips, build_accelerator, build_autoencoder, build_clips, build_state
from telecine.training.state import TrainState
from telecine.training.step import MicroBatch, train_step
from training import SMOKE, demo_config

PLAIN = "none"
START = "linear start"
FLOOR = "its floor, MSE"
# The weight of each term, by the name of the row.
TERMS: dict[str, dict[str, Any]] = {
    START: {},
    PLAIN: {},
    "equivariance": {
        "equivariance": {"weight": 0.12, "params": {"min_scale": 1.0, "flip": True, "num_orientations": 7}}
    },
    "scale_equivariance": {"scale_equivariance": 1.0},
    "local_correlation": {"local_correlation": 0.02},
    "latent_masking": {"latent_masking": 0.5},
    "latent_noise": {"latent_noise": 1.0},
    "alignment": {"alignment": {"weight": 1.0, "params": {"latent_channels": 16}}},
}
COLUMNS = {
    "PSNR, dB": 2,
    "equivariance error, MSE": 4,
    FLOOR: 4,
    "high frequencies": 3,
    "effective rank": 2,
    "PSNR with noise 0.2, dB": 2,
    "correlation of neighbours": 3,
    "alignment, cosine": 3,
}
SIDE = 64  # of the frames that AlexNet sees
NUM_FITTED = 100  # training clips that the linear map to features is fitted to
# Of that map: more than 1/100 of the latents' variance.
RIDGE = 1e-2


def settings_of(term: str, seed: int, steps: int, folder: Path, changes: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a run."""
    config = demo_config(changes)
    weights = TERMS[term]
    if term == "alignment":
        params = {"latent_channels": config.causal_vae.latent_channels}
        weights = {term: {**weights[term], "params": params}}
    config = replace(config, objective=replace(config.objective, terms=weights))
    return without_gan(config, seed, steps, folder / f"{term}-{seed}")


def without_gan(config: TrainConfig, seed: int, steps: int, folder: Path) -> TrainConfig:
    """Return the settings of a run without a GAN that is measured at its end."""
    return replace(
        config,
        objective=replace(config.objective, adversarial_loss_weight=0.0),
        seed=seed,
        steps=steps,
        val_every=steps,
        save_every=steps,
        output_dir=str(folder),
        trackers=(),
    )


def trained(config: TrainConfig) -> CausalVAE:
    """Return the averaged weights of a run, which is trained if that has not been done.

    Raises:
        ValueError: The folder has a run with other settings.
    """
    folder = Path(config.output_dir)
    if find_checkpoint(folder) is None:
        train(config, console=Console(quiet=True))
    elif read_config(folder / CONFIG_FILE) != config:
        raise argument_error("--runs", "a folder of runs with these settings", str(folder), "Use another folder.")
    checkpoint = find_checkpoint(folder)
    assert checkpoint is not None
    return CausalVAE.from_pretrained(checkpoint / "ema")


def measured(config: TrainConfig, term: str) -> dict[str, float]:
    """Return the measures of a run on its held-out clips; it is trained if that has not been done.

    Raises:
        ValueError: The folder has a run with other settings.
    """
    settings = plain_values(config)
    file = Path(config.output_dir) / "latents.json"
    if not file.is_file():
        clips = build_clips(config, build_autoencoder(config))
        model = linear_start(config, clips) if term == START else trained(config)
        file.parent.mkdir(parents=True, exist_ok=True)
        training = [clips.train[index]["video"][None] for index in range(NUM_FITTED)]
        measures = measure(model.eval(), [clip["video"][None] for clip in clips.val], training)
        write_json(file, {"settings": settings, "measures": measures})
    found = read_json(file)
    if found["settings"] != settings:
        raise argument_error("--runs", "a folder of runs with these settings", str(file), "Use another folder.")
    return dict(found["measures"])


def linear_start(config: TrainConfig, clips: Clips) -> CausalVAE:
    """Return the autoencoder of a run before its first update."""
    model = CausalVAE(config.causal_vae)
    linear = fit_linear(model, clips, baseline.NUM_CLIPS)
    assert linear is not None
    model.start_from(linear)
    return model


def measure(model: CausalVAE, videos: Sequence[Video], training: Sequence[Video]) -> dict[str, float]:
    """Return the measures of a model on clips `(1, 3, T, H, W)`; the map to features is fitted to training clips."""
    space = measure_space(ModelSource(model, ClipConfig(), "model"), videos, None)
    neighbours = space.autocorrelation["space"][:1]
    found = describe(space) | {
        FLOOR: floor(model, videos),
        "correlation of neighbours": neighbours[0] if neighbours else float("nan"),
        "alignment, cosine": alignment(model, videos, training),
    }
    by_transformation = {name: space.equivariance[name]["mse"] for name in TRANSFORMS}
    return {name: found[name] for name in COLUMNS} | by_transformation


@torch.no_grad()
def floor(model: CausalVAE, videos: Sequence[Video]) -> float:
    """Return the mean squared error of the reconstructions of the transformed videos."""
    errors = []
    for transform in TRANSFORMS.values():
        for video in videos:
            target = transform(video)
            errors.append(mse(reconstruction=decode(model, model.encode(target).mode()), target=target).item())
    return fmean(errors)


@torch.no_grad()
def alignment(model: CausalVAE, videos: Sequence[Video], training: Sequence[Video]) -> float:
    """Return the mean cosine of features with the linear map of the latents that is the best one for training clips."""
    z, f = latents_and_features(model, training)
    mean, std = z.mean(0), z.std(0).clamp(min=1e-6)

    def normalised(latents: Tensor) -> Tensor:
        return F.pad((latents - mean) / std, (0, 1), value=1.0)

    rows = normalised(z)
    weights = torch.linalg.solve(rows.T @ rows + RIDGE * len(z) * torch.eye(rows.shape[1]).double(), rows.T @ f)
    z, f = latents_and_features(model, videos)
    return F.cosine_similarity(normalised(z) @ weights, f).mean().item()


def latents_and_features(model: CausalVAE, videos: Sequence[Video]) -> tuple[Tensor, Tensor]:
    """Return latents and AlexNet's features of the last frame that each was encoded from, `(position, channel)`."""
    time_compression = model.config.time_compression
    frames = torch.cat([video[0].transpose(0, 1)[::time_compression] for video in videos])
    frames = F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    latents = torch.cat([model.encode(video).mode()[0].transpose(0, 1) for video in videos])
    features = F.interpolate(LPIPS("alex").features(frames)[-1], size=latents.shape[-2:], mode="bilinear")
    z, f = (x.transpose(0, 1).flatten(1).T.double() for x in (latents, features))
    return z, f


def update_times(configs: Mapping[str, TrainConfig], rounds: int) -> dict[str, float]:
    """Return the time of an update of each run, relative to that of the run without a term."""
    steps = {}
    for name, config in configs.items():
        model = build_autoencoder(config)
        state = build_state(config, build_accelerator(config), model)
        indices = list(range(config.clips_per_pass))
        clips = build_clips(config, model).train
        batch = MicroBatch(torch.stack([clips[index]["video"] for index in indices]), indices)
        steps[name] = partial(update, state, batch)
    seconds = interleaved(steps, rounds=rounds, clock=time.process_time)
    return {name: median_ratio(seconds[name], seconds[PLAIN]) for name in configs}


def update(state: TrainState, batch: MicroBatch) -> None:
    """Do one update."""
    train_step(state, [batch])


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/latents"), help="folder of the runs")
    parser.add_argument("--terms", nargs="+", choices=list(TERMS)[2:], help="default: all")
    parser.add_argument("--steps", type=int, default=600, help="updates of a run")
    parser.add_argument("--batch_size", type=int, default=demo_config({}).batch_size, help="clips of an update")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs")
    parser.add_argument("--rounds", type=int, default=15, help="updates whose time is measured")
    parser.add_argument("--picture", help="where to draw the effect of each term against its cost")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and two updates, to test the command")
    return parser.parse_args()


def main() -> None:
    """Train, measure and print."""
    arguments = parse_arguments()
    changes = {**(SMOKE if arguments.smoke else {}), "batch_size": arguments.batch_size}
    steps, rounds = (2, 1) if arguments.smoke else (arguments.steps, arguments.rounds)
    names = [PLAIN, *(arguments.terms or list(TERMS)[2:])]
    seeds = {START: arguments.seeds[:1], **dict.fromkeys(names, arguments.seeds)}
    configs = {
        (name, seed): settings_of(name, seed, steps, arguments.runs, changes) for name in seeds for seed in seeds[name]
    }
    found = {(name, seed): measured(config, name) for (name, seed), config in configs.items()}
    times = update_times({name: configs[name, arguments.seeds[0]] for name in names}, rounds)
    print(f"{steps} updates, seeds {arguments.seeds}; {machine()}\n")

    def row(name: str, columns: Mapping[str, int]) -> list[str]:
        cells = (spread([found[name, seed][column] for seed in seeds[name]], columns[column]) for column in columns)
        return [name, *cells]

    print(table(["term", *COLUMNS], [row(name, COLUMNS) for name in seeds]))
    rows = []
    for name in names[1:]:
        pairs = [(found[name, seed], found[PLAIN, seed]) for seed in arguments.seeds]
        differences = {column: [run[column] - plain[column] for run, plain in pairs] for column in COLUMNS}
        cells = [spread(differences[column], digits, "+") for column, digits in COLUMNS.items()]
        rows.append([name, *cells, ratio(times[name])])
    print("\n" + table([f"difference to {PLAIN}", *COLUMNS, "time of an update"], rows))
    by_transformation = dict.fromkeys(TRANSFORMS, 4)
    rows = [row(name, by_transformation) for name in seeds]
    print("\n" + table(["equivariance error, MSE", *TRANSFORMS], rows))
    if arguments.picture is not None:
        draw(found, arguments.picture, base=PLAIN, terms=names[1:])


if __name__ == "__main__":
    main()
