"""Two small studies of latents: round trips and predictive reconstruction; predictive reconstruction at equal PSNR.

    python benchmarks/videos.py runs/videos
    python benchmarks/latent_study.py round_trips --videos runs/videos -o runs/latent_study
    python benchmarks/latent_study.py equal_psnr --videos runs/videos -o runs/equal_psnr --probe_steps 400 --steps 300

Each arm but "GAN" is the model of the demo, trained without a GAN on clips of 9 x 32 x 32 of the demo's videos, and
measured on clips of five other videos. The update is that of `telecine train`; there is no validation and no
checkpoint. The arm "predictive" trains two thirds of the updates with dropped frames, then the decoder alone with all
frames. In the second study all arms start at random, and the others stop when they have the PSNR of the predictive
one. The probe is the smallest of `telecine latents --probe`. Figures are written to a JSON file for each arm and
seed, in a folder of the study; a second call computes what is missing, and prints the tables. Figures of other
numbers of updates are refused.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import measure
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional import spearman_corrcoef

from telecine.base.files import write_json
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.data import ClipDataset
from telecine.data.find import load_spans
from telecine.evaluation.latent_statistics import (
    autocorrelation,
    covariance_eigenvalues,
    effective_rank,
    high_frequency_share,
)
from telecine.evaluation.metrics import ReconstructionMetrics
from telecine.evaluation.metrics.pixels import psnr
from telecine.evaluation.metrics.round_trips import RoundTrips
from telecine.evaluation.round_trips import round_trips, through_h264
from telecine.losses import mse
from telecine.losses.perceptual import LPIPS
from telecine.models import CausalVAE, DeterministicPosterior
from telecine.models.diffusers.denoiser import LatentDenoiser
from telecine.settings import PredictiveConfig, TrainableConfig, TrainConfig
from telecine.settings.parse import read_config
from telecine.tools.latents.denoising import LEVELS, velocity_losses
from telecine.tools.latents.generator_quality import velocity_irreducible_variance
from telecine.tools.latents.wiener import WienerFilter
from telecine.training.build import build_accelerator, build_autoencoder, build_state
from telecine.training.prediction import FilledPosterior
from telecine.training.state import TrainState
from telecine.training.step import MicroBatch, set_learning_rates, train_step

SHAPE = (9, 32, 32)
NUM_TRAINING = 256
NUM_UNSEEN = 120
NUM_MEASURED = 24
NUM_PASSES = 10
NUM_ROUND_TRIPS = 6
PROBE_BATCH = 16
STEPS_BETWEEN_PSNR = 5
NO_LPIPS = {"perceptual_weight": 0.0}
PREDICTS = PredictiveConfig(max_dropped=1.0)
TEMPORAL = {"terms": {"temporal": 1.0}}


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    objective: dict[str, Any] = field(default_factory=dict)
    predictive: PredictiveConfig = field(default_factory=PredictiveConfig)
    is_trained: bool = True
    linear_start: bool = True
    until_equal: bool = False
    """Whether to stop at the PSNR of the arm "predictive"."""
    trainable: str = "all"
    gan: bool = False
    """Whether the demo's discriminator trains from the first update on."""
    round_trips: bool = False
    probe: bool = True


LOCAL_CORRELATION = {"terms": {"local_correlation": 0.02}}
STUDIES = {
    "round_trips": {
        "nothing": Arm(round_trips=True),
        "round_trip": Arm({"terms": {"round_trip": 1.0}}, round_trips=True, probe=False),
        "GAN": Arm(gan=True, round_trips=True, probe=False),
        "no LPIPS": Arm(NO_LPIPS, round_trips=True, probe=False),
        "no LPIPS, round_trip": Arm(
            {**NO_LPIPS, "terms": {"round_trip": 1.0}}, round_trips=True, probe=False
        ),
        "predictive": Arm(TEMPORAL, PREDICTS),
        "local_correlation": Arm(LOCAL_CORRELATION),
        "linear": Arm(is_trained=False, round_trips=True, probe=False),
    },
    "equal_psnr": {
        "predictive": Arm(TEMPORAL, PREDICTS, linear_start=False),
        "nothing": Arm(linear_start=False, until_equal=True),
        "local_correlation": Arm(LOCAL_CORRELATION, linear_start=False, until_equal=True),
        "decoder alone": Arm(linear_start=False, until_equal=True, trainable="decoder"),
    },
}


@dataclass(frozen=True)
class Data:
    """Clips as tensors."""

    train: list[Video]
    """Each `(1, C, T, H, W)`."""
    unseen: list[Video]


def read_unseen(videos: Path, shape: tuple[int, int, int], num_clips: int) -> list[Video]:
    """Return clips of the videos that no run sees, each `(1, C, T, H, W)`."""
    num_frames, height, width = shape
    config = replace(
        read_config("demo").clips,
        num_frames=num_frames,
        height=height,
        width=width,
        cache=False,
        scale_jitter=1.0,
        random_orientation=False,
        random_flip=False,
        num_clips=num_clips,
    )
    spans, _ = load_spans(str(videos / "unseen"), config)
    clips = ClipDataset(spans, config, seed=1)
    return [clips[0, number]["video"][None] for number in range(num_clips)]


def read_data(videos: Path, shape: tuple[int, int, int], num_unseen: int) -> Data:
    """Read the clips."""
    num_frames, height, width = shape
    demo = replace(
        read_config("demo").clips,
        num_frames=num_frames,
        height=height,
        width=width,
        cache=False,
        num_clips=NUM_TRAINING,
    )
    spans, _ = load_spans(str(videos / "seen"), demo)
    clips = ClipDataset(spans, demo)
    train = [clips[0, number]["video"][None] for number in range(NUM_TRAINING)]
    return Data(train, read_unseen(videos, shape, num_unseen))


def settings_of(arm: Arm, steps: int, seed: int) -> TrainConfig:
    """Return the settings of an arm."""
    config = read_config("demo")
    num_frames, height, width = SHAPE
    clips = replace(config.clips, num_frames=num_frames, height=height, width=width)
    discriminator = config.discriminator
    if arm.gan:
        gan = replace(config.objective.gan, disc_train_start=0)
        objective = replace(config.objective, disc_start=0, gan=gan, **arm.objective)
    else:
        objective = replace(config.objective, adversarial_loss_weight=0.0, **arm.objective)
        discriminator = replace(discriminator, video="none")
    return replace(
        config,
        steps=steps,
        seed=seed,
        device="cpu",
        trackers=(),
        clips=clips,
        objective=objective,
        discriminator=discriminator,
        predictive=arm.predictive,
        trainable=TrainableConfig(weights=arm.trainable),
    )


def train(
    config: TrainConfig,
    model: CausalVAE,
    data: Data,
    accelerator: Accelerator,
    first: int,
    num_steps: int,
    *,
    until_psnr: float | None = None,
) -> TrainState:
    """Train a model on clips in an order that the seed decides, and return the state, whose averages are the result.

    With `until_psnr`, it stops when unseen clips have it.
    """
    state = build_state(config, accelerator, model)
    order = torch.Generator().manual_seed(config.seed)
    numbers = torch.randint(len(data.train), (config.steps, config.clips_per_pass), generator=order)
    for step in range(first, first + num_steps):
        state.step = step - first
        set_learning_rates(state, config.optimizer, num_steps)
        inputs = torch.cat([data.train[number] for number in numbers[step].tolist()])
        clips = range(2 * step, 2 * step + len(inputs))
        train_step(state, [MicroBatch(inputs, clips)])
        if until_psnr is not None and state.step % STEPS_BETWEEN_PSNR == 0:
            with state.ema.applied():
                reached = psnr_of(model, data)
            if reached >= until_psnr:
                break
    return state


@torch.no_grad()
def encoded(model: CausalVAE, videos: list[Video]) -> Tensor:
    """Return the latents of clips."""
    return torch.cat([model.encode(video).mode() for video in videos])


@torch.no_grad()
def psnr_of(model: CausalVAE, data: Data) -> float:
    """Return the PSNR on unseen clips."""
    values = []
    for video in data.unseen[:NUM_MEASURED]:
        reconstruction = model(video, sample_posterior=False).video.clamp(*VALUE_RANGE)
        values.append(float(psnr(reconstruction=reconstruction, target=video)))
    return sum(values) / len(values)


@torch.no_grad()
def quality_of(model: CausalVAE, data: Data) -> dict[str, float]:
    """Return PSNR and LPIPS on unseen clips."""
    metrics = ReconstructionMetrics({"lpips": LPIPS("alex")}, metrics=("psnr",))
    for video in data.unseen[:NUM_MEASURED]:
        metrics.update(reconstruction=model(video, sample_posterior=False).video, target=video)
    return metrics.compute()


@torch.no_grad()
def figures_of(model: CausalVAE, data: Data) -> dict[str, float]:
    """Return the figures of a model on unseen clips."""
    figures = {}
    means = quality_of(model, data)
    figures["PSNR"] = means["psnr"]
    figures["LPIPS"] = means["lpips"]
    latents = encoded(model, data.unseen)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    noisy = latents + 0.2 * latents.std((0, 2, 3, 4), keepdim=True) * noise
    errors = []
    for video, latent in zip(data.unseen[:NUM_MEASURED], noisy.split(1), strict=False):
        decoded = model.decode(latent).clamp(*VALUE_RANGE)
        errors.append(float(psnr(reconstruction=decoded, target=video)))
    figures["PSNR, noise 0.2"] = sum(errors) / len(errors)
    figures["neighbours, space"] = autocorrelation(latents, (3, 4), 1)[0]
    figures["neighbours, time"] = autocorrelation(latents, (2,), 1)[0]
    figures["high frequencies"] = high_frequency_share(latents)
    figures["effective rank"] = effective_rank(covariance_eigenvalues(latents))
    viv = velocity_irreducible_variance(latents)
    assert viv is not None
    figures["VIV"] = viv
    return figures


def round_trip_figures(model: CausalVAE | None, data: Data) -> dict[str, float]:
    """Return the mean figures after the first and the last pass; of the codec alone without a model."""
    figures: dict[str, list[float]] = {}
    for video in data.unseen[:NUM_ROUND_TRIPS]:
        if model is None:
            passed = video
            for _ in range(NUM_PASSES):
                passed = through_h264(passed)
            figures.setdefault("PSNR 10 h264", []).append(
                float(psnr(reconstruction=passed, target=video))
            )
            continue
        for suffix, codec in (("", None), (" h264", "h264")):
            round_trips = RoundTrips(model, NUM_PASSES, codec)  # type: ignore[arg-type]
            curves = round_trips.curves(video)
            for name, label in (
                ("round_trip_psnr", "PSNR"),
                ("round_trip_colour", "colour"),
                ("round_trip_sharpness", "sharpness"),
                ("round_trip_latent", "latent"),
            ):
                for number in (1, NUM_PASSES):
                    key = f"{label} {number}{suffix}"
                    figures.setdefault(key, []).append(curves[name][number - 1])
    return {name: sum(values) / len(values) for name, values in figures.items()}


def probe_figures(model: CausalVAE, data: Data, seed: int, num_steps: int) -> dict[str, float]:
    """Train the probe on the latents of the training clips, and return its figures on unseen ones."""
    latents = encoded(model, data.train)
    set_seed(seed)
    denoiser = LatentDenoiser(copy.deepcopy(model), latents)
    linear = WienerFilter.fit(denoiser.normalised(latents))
    optimizer = torch.optim.AdamW(
        denoiser.transformer.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0
    )
    order = torch.Generator().manual_seed(seed)
    denoiser.train()
    for step in range(num_steps):
        warmup = min(1.0, (step + 1) / (num_steps // 10))
        cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        optimizer.param_groups[0]["lr"] = 2e-3 * warmup * (0.05 + 0.95 * cosine)
        numbers = torch.randint(len(latents), (PROBE_BATCH,), generator=order)
        posterior = DeterministicPosterior(latents[numbers])
        output = denoiser(data.train[0], posterior=posterior)
        loss = mse(reconstruction=output.video, target=output.target, weight=output.weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    denoiser.eval()
    unseen = denoiser.normalised(encoded(model, data.unseen[:NUM_UNSEEN])).split(20)
    losses = velocity_losses(torch.no_grad()(denoiser.velocity), unseen, seed=seed)
    linear_losses = velocity_losses(linear.velocity, unseen, seed=seed)
    level = LEVELS.index(0.8)
    return {
        "velocity loss": sum(losses) / len(losses),
        "share": sum(losses) / sum(linear_losses),
        "share at 0.8": losses[level] / linear_losses[level],
    }


def neighbourhoods(latents: Tensor) -> Tensor:
    """Return the 3 x 3 neighbours of each position in the last two latent frames, as rows with a 1."""
    last = latents[:, :, -2:].flatten(1, 2)
    rows = nn.functional.unfold(last, 3, padding=1).transpose(1, 2).flatten(0, 1)
    return torch.cat([rows, torch.ones(len(rows), 1)], 1).double()


def patches(video: Video) -> Tensor:
    """Return the last four frames of each 8 x 8 pixels, as rows."""
    frames = video[:, :, -4:].flatten(1, 2)
    return nn.functional.unfold(frames, 8, stride=8).transpose(1, 2).flatten(0, 1).double()


@torch.no_grad()
def prediction_figures(model: CausalVAE, data: Data, state: TrainState) -> dict[str, float]:
    """Return the PSNR of the last four frames, which were dropped, beside those of trivial predictions."""
    assert state.prediction is not None
    kept = [video[:, :, :5] for video in data.train]
    inputs = neighbourhoods(encoded(model, kept))
    targets = patches(torch.cat(data.train))
    gram = inputs.T @ inputs + 1e-3 * len(inputs) * torch.eye(inputs.shape[1])
    weights = torch.linalg.solve(gram, inputs.T @ targets)
    errors: dict[str, list[float]] = {}
    for video in data.unseen[:NUM_MEASURED]:
        posterior = model.encode(video[:, :, :5])
        filled = FilledPosterior(posterior, 1, state.prediction.fill).mode()
        linear = (neighbourhoods(posterior.mode()) @ weights).float()
        folded = nn.functional.fold(linear.T[None], SHAPE[1:], 8, stride=8)
        predictions = {
            "prediction": model.decode(filled)[:, :, -4:],
            "copy of the last frame": video[:, :, 4:5].expand(-1, -1, 4, -1, -1),
            "copy of its reconstruction": model.decode(posterior.mode())[:, :, -1:].expand(
                -1, -1, 4, -1, -1
            ),
            "linear prediction": folded.unflatten(1, (3, 4)),
        }
        for name, predicted in predictions.items():
            value = psnr(reconstruction=predicted.clamp(*VALUE_RANGE), target=video[:, :, -4:])
            errors.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in errors.items()}


def start_from_linear(model: CausalVAE, data: Data) -> None:
    """Start a model from the best linear autoencoder of the training clips."""
    linear = model.linear_autoencoder(*SHAPE)
    model.copy_linear(linear.fit(data.train))


def write_picture(path: Path, data: Data, steps: int) -> None:
    """Write a frame of unseen clips, and below it that frame after ten passes of "nothing" and of "round_trip"."""
    videos = data.unseen[: 8 * 10 : 10]
    rows = [torch.cat([video[0, :, 4] for video in videos], 2)]
    for name in ("nothing", "round_trip"):
        config = settings_of(STUDIES["round_trips"][name], steps, 0)
        set_seed(0)
        model = build_autoencoder(config)
        assert isinstance(model, CausalVAE)
        start_from_linear(model, data)
        state = train(config, model, data, build_accelerator(config), 0, steps)
        with state.ema.applied():
            model.eval()
            frames = []
            for video in videos:
                *_, last = round_trips(model, video, NUM_PASSES)
                frames.append(last.video[0, :, 4])
        rows.append(torch.cat(frames, 2))
    picture = ((torch.cat(rows, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    size = (4 * picture.shape[1], 4 * picture.shape[0])
    Image.fromarray(picture.numpy()).resize(size, Image.Resampling.NEAREST).save(path)


def measured(
    arm: Arm, seed: int, steps: int, probe_steps: int, data: Data, until_psnr: float | None
) -> dict[str, float]:
    """Train and measure an arm."""
    start = time.process_time()
    config = settings_of(arm, steps, seed)
    set_seed(seed)
    accelerator = build_accelerator(config)
    model = build_autoencoder(config)
    assert isinstance(model, CausalVAE)
    if arm.linear_start:
        start_from_linear(model, data)
    figures = {}
    if arm.is_trained:
        is_predictive = arm.predictive.max_dropped > 0
        num_first = steps * 2 // 3 if is_predictive else steps
        state = train(config, model, data, accelerator, 0, num_first, until_psnr=until_psnr)
        figures["updates"] = state.step
        with state.ema.applied():
            model = copy.deepcopy(model)
        if is_predictive:
            figures |= prediction_figures(model.eval(), data, state)
            figures["PSNR before the decoder's updates"] = psnr_of(model, data)
            second = replace(
                config,
                predictive=PredictiveConfig(),
                trainable=TrainableConfig(weights="decoder"),
            )
            trained = build_autoencoder(second)
            trained.load_state_dict(model.state_dict())
            assert isinstance(trained, CausalVAE)
            state = train(second, trained, data, accelerator, num_first, steps - num_first)
            with state.ema.applied():
                model = copy.deepcopy(trained)
    figures["seconds"] = time.process_time() - start
    model = model.requires_grad_(False).eval()
    figures |= figures_of(model, data)
    if arm.round_trips:
        figures |= round_trip_figures(model, data)
    if arm.probe:
        figures |= probe_figures(model, data, seed, probe_steps)
    figures["all seconds"] = time.process_time() - start
    return figures


def table_of(names: list[str], rows: dict[str, list[dict[str, float]]], title: str) -> str:
    """Return a table of the means and deviations over seeds, of the arms that have these figures."""
    lines = []
    for arm, figures in rows.items():
        if figures and all(name in figures[0] for name in names):
            cells = [measure.spread([values[name] for values in figures], 3) for name in names]
            lines.append([arm, str(len(figures)), *cells])
    return measure.table([title, "seeds", *names], lines)


def correlations(rows: dict[str, list[dict[str, float]]], arms: list[str]) -> str:
    """Return the rank correlations of the figures of arms with those of the probe, for each seed and their mean."""
    names = [
        "iFD",
        "rFD",
        "VIV",
        "neighbours, space",
        "neighbours, time",
        "high frequencies",
        "effective rank",
        "PSNR, noise 0.2",
        "PSNR",
        "LPIPS",
    ]
    probed = ["share at 0.8", "share", "velocity loss"]
    num_seeds = min(len(rows[arm]) for arm in arms)
    lines = []
    for name in names:
        if not all(name in rows[arm][0] for arm in arms):
            continue
        cells = []
        for target in probed:
            values = []
            for seed in range(num_seeds):
                x = torch.tensor([rows[arm][seed][name] for arm in arms])
                y = torch.tensor([rows[arm][seed][target] for arm in arms])
                values.append(float(spearman_corrcoef(x, y)))
            mean = sum(values) / num_seeds
            cells.append(", ".join(f"{value:+.2f}" for value in values) + f" ({mean:+.2f})")
        lines.append([name, *cells])
    return measure.table([f"rank correlation over {len(arms)} arms with", *probed], lines)


def print_tables(rows: dict[str, list[dict[str, float]]]) -> None:
    """Print the tables of the figures that are there."""
    quality = ["PSNR", "LPIPS", "seconds"]
    passes = ["PSNR", "colour", "sharpness", "latent"]
    for suffix in ("", " h264"):
        names = [f"{name} {number}{suffix}" for name in passes for number in (1, NUM_PASSES)]
        print(table_of([*quality, *names], rows, "round trips"), "\n")
    latent = ["neighbours, space", "neighbours, time", "high frequencies", "effective rank"]
    shares = ["VIV", "velocity loss", "share", "share at 0.8"]
    print(table_of(["PSNR", "LPIPS", *latent], rows, "latent"), "\n")
    print(table_of(["PSNR", *shares], rows, "probe"), "\n")
    print(table_of(["PSNR", "updates", "PSNR, noise 0.2"], rows, "quality"), "\n")
    predicted = [
        "PSNR before the decoder's updates",
        "prediction",
        "copy of the last frame",
        "copy of its reconstruction",
        "linear prediction",
    ]
    print(table_of(predicted, rows, "PSNR of dropped frames"), "\n")
    probed = [arm for arm, figures in rows.items() if figures and "share" in figures[0]]
    if len(probed) > 2:
        print(correlations(rows, probed))


def check_arms(parser: argparse.ArgumentParser, arms: dict[str, Arm], names: list[str]) -> None:
    """End the process if some names are not of arms of the study, or an arm lacks the one that it depends on."""
    for name in names:
        if name not in arms:
            contract = f"some of {', '.join(arms)}"
            parser.error(f"`--arms` must be {contract}, but got {name}.")
        if arms[name].until_equal and "predictive" not in names:
            remedy = f'"{name}" stops at its PSNR.'
            parser.error(f"`--arms` must have predictive, but got {', '.join(names)}. {remedy}")


def check_lengths(
    parser: argparse.ArgumentParser, file: Path, figures: dict[str, float], lengths: dict[str, int]
) -> None:
    """End the process if figures were measured with other numbers of updates."""
    for name, length in lengths.items():
        if figures[name] != length:
            contract = f"{figures[name]}, with which {file} was measured"
            remedy = "Use another --output."
            parser.error(f"`--{name}` must be {contract}, but got {length}. {remedy}")


def main() -> None:
    """Train and measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos.py")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--probe_steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", help="some of the study; default: all")
    parser.add_argument(
        "--picture",
        type=Path,
        help="only write a picture of tenth passes, and print those of the codec",
    )
    parser.add_argument("--tables", action="store_true", help="compute nothing")
    options = parser.parse_args()
    arms = STUDIES[options.study]
    names = options.arms or list(arms)
    check_arms(parser, arms, names)
    if options.picture is not None:
        clips = read_data(options.videos, SHAPE, NUM_UNSEEN)
        write_picture(options.picture, clips, options.steps)
        print("the codec alone", round_trip_figures(None, clips))
        return
    folder = options.output / options.study
    folder.mkdir(parents=True, exist_ok=True)
    lengths = {"steps": options.steps, "probe_steps": options.probe_steps}
    data = None
    # In the order of the study: "predictive" comes before the arms that stop at its PSNR.
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms if arm in names}
    for seed, arm in itertools.product(options.seeds, rows):
        file = folder / f"{arm.replace(' ', '_').replace(',', '')}-{seed}.json"
        if arm == "linear" and seed != options.seeds[0]:
            continue  # it does not depend on the seed
        if not file.is_file() and not options.tables:
            if data is None:
                data = read_data(options.videos, SHAPE, NUM_UNSEEN)
            until_psnr = rows["predictive"][-1]["PSNR"] if arms[arm].until_equal else None
            figures = measured(
                arms[arm], seed, options.steps, options.probe_steps, data, until_psnr
            )
            write_json(file, {**lengths, **figures})
            print(arm, seed, file.read_text(), flush=True)
        if file.is_file():
            figures = json.loads(file.read_text())
            check_lengths(parser, file, figures, lengths)
            rows[arm].append(figures)
    print_tables(rows)


if __name__ == "__main__":
    main()
