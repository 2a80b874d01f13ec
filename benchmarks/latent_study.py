"""Three small studies of latents on one set of runs: round trips, predictive reconstruction, measures that foretell.

    python benchmarks/videos.py runs/videos
    python benchmarks/latent_study.py --videos runs/videos -o runs/latent_study --steps 100 --seeds 0 1 2

Each arm is the model of the demo, trained without a GAN on clips of 9 x 32 x 32 of the demo's videos, and measured on
clips of five other videos. The update is that of `telecine train`; there is no validation and no checkpoint. The arm
"predictive" trains two thirds of the updates with dropped frames, then the decoder alone with all frames. The probe
is the smallest of `telecine latents --probe`. Figures are written to a JSON file for each arm and seed; a second call
computes what is missing, and prints the tables.
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
from telecine.evaluation.metrics.frechet import TransNetFeatures, frechet_distance
from telecine.evaluation.metrics.pixels import psnr
from telecine.evaluation.metrics.round_trips import RoundTrips
from telecine.evaluation.round_trips import round_trips, through_h264
from telecine.losses import mse
from telecine.losses.perceptual import LPIPS
from telecine.models import CausalVAE, DeterministicPosterior
from telecine.models.diffusers.denoiser import LatentDenoiser
from telecine.models.linear import LinearAutoencoder
from telecine.settings import PredictiveConfig, TrainableConfig, TrainConfig
from telecine.settings.parse import read_config
from telecine.tools.latents.denoising import LEVELS, WienerFilter, velocity_losses
from telecine.tools.latents.generator_quality import (
    interpolated_latents,
    velocity_irreducible_variance,
)
from telecine.training.build import build_accelerator, build_autoencoder, build_state
from telecine.training.prediction import FilledPosterior
from telecine.training.state import TrainState
from telecine.training.step import MicroBatch, set_learning_rates, train_step

SHAPE = (9, 32, 32)
NUM_TRAINING = 256
NUM_UNSEEN = 120
NUM_FRECHET = 264  # more than the 256 features of TransNet V2
NUM_MEASURED = 24
NUM_PASSES = 10
NUM_ROUND_TRIPS = 6
PROBE_STEPS = 200
PROBE_BATCH = 16
NO_LPIPS = {"perceptual_weight": 0.0}
PREDICTS = PredictiveConfig(max_dropped=1.0)
TEMPORAL = {"terms": {"temporal": 1.0}}


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    objective: dict[str, Any] = field(default_factory=dict)
    predictive: PredictiveConfig = field(default_factory=PredictiveConfig)
    time_kernel: int = 2
    is_trained: bool = True
    round_trips: bool = False
    probe: bool = True


ARMS = {
    "nothing": Arm(round_trips=True),
    "round_trip": Arm({"terms": {"round_trip": 1.0}}, round_trips=True, probe=False),
    "no LPIPS": Arm(NO_LPIPS, round_trips=True, probe=False),
    "no LPIPS, round_trip": Arm(
        {**NO_LPIPS, "terms": {"round_trip": 1.0}}, round_trips=True, probe=False
    ),
    "predictive": Arm(TEMPORAL, PREDICTS),
    "local_correlation": Arm({"terms": {"local_correlation": 0.02}}),
    "linear": Arm(is_trained=False, round_trips=True, probe=False),
}


@dataclass(frozen=True)
class Data:
    """Clips as tensors."""

    train: list[Video]
    """Each `(1, C, T, H, W)`."""
    unseen: list[Video]
    features: Tensor | None
    """Of unseen clips, by TransNet V2."""
    network: TransNetFeatures | None


def read_data(videos: Path, *, frechet: bool) -> Data:
    """Read the clips."""
    num_unseen = NUM_FRECHET if frechet else NUM_UNSEEN
    _, height, width = SHAPE
    demo = replace(read_config("demo").clips, height=height, width=width, cache=False)
    spans, _ = load_spans(str(videos / "seen"), demo)
    train = ClipDataset(spans, replace(demo, num_clips=NUM_TRAINING))
    plain = replace(
        demo,
        scale_jitter=1.0,
        random_orientation=False,
        random_flip=False,
        num_clips=num_unseen,
    )
    spans, _ = load_spans(str(videos / "unseen"), plain)
    held_out = ClipDataset(spans, plain, seed=1)
    unseen = [held_out[0, number]["video"][None] for number in range(num_unseen)]
    network = None
    features = None
    if frechet:
        network = TransNetFeatures(torch.device("cpu"))
        features = torch.cat([network(video) for video in unseen])
    return Data(
        [train[0, number]["video"][None] for number in range(NUM_TRAINING)],
        unseen,
        features,
        network,
    )


def settings_of(arm: Arm, steps: int, seed: int) -> TrainConfig:
    """Return the settings of an arm."""
    config = read_config("demo")
    num_frames, height, width = SHAPE
    clips = replace(config.clips, num_frames=num_frames, height=height, width=width)
    return replace(
        config,
        steps=steps,
        seed=seed,
        device="cpu",
        trackers=(),
        clips=clips,
        causal_vae=replace(config.causal_vae, time_kernel=arm.time_kernel),
        objective=replace(config.objective, adversarial_loss_weight=0.0, **arm.objective),
        discriminator=replace(config.discriminator, video="none"),
        predictive=arm.predictive,
    )


def train(
    config: TrainConfig,
    model: CausalVAE,
    data: Data,
    accelerator: Accelerator,
    first: int,
    num_steps: int,
) -> TrainState:
    """Train a model on clips in an order that the seed decides, and return the state, whose averages are the result."""
    state = build_state(config, accelerator, model)
    order = torch.Generator().manual_seed(config.seed)
    numbers = torch.randint(len(data.train), (config.steps, config.clips_per_pass), generator=order)
    for step in range(first, first + num_steps):
        state.step = step - first
        set_learning_rates(state, config.optimizer, num_steps)
        inputs = torch.cat([data.train[number] for number in numbers[step].tolist()])
        clips = range(2 * step, 2 * step + len(inputs))
        train_step(state, [MicroBatch(inputs, clips)])
    return state


@torch.no_grad()
def encoded(model: CausalVAE, videos: list[Video]) -> Tensor:
    """Return the latents of clips."""
    return torch.cat([model.encode(video).mode() for video in videos])


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
    if data.network is None or data.features is None:
        return figures
    for name, changed in {"rFD": latents, "iFD": interpolated_latents(latents)}.items():
        features = []
        for latent in changed.split(8):
            features.append(data.network(model.decode(latent).clamp(*VALUE_RANGE)))
        figures[name] = frechet_distance(features=torch.cat(features), reference=data.features)
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
            curves = RoundTrips(model, NUM_PASSES, codec)(video)  # type: ignore[arg-type]
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


def probe_figures(model: CausalVAE, data: Data, seed: int) -> dict[str, float]:
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
    for step in range(PROBE_STEPS):
        warmup = min(1.0, (step + 1) / (PROBE_STEPS // 10))
        cosine = 0.5 * (1 + math.cos(math.pi * step / PROBE_STEPS))
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


def write_picture(path: Path, data: Data, steps: int, linear: LinearAutoencoder) -> None:
    """Write a frame of unseen clips, and below it that frame after ten passes of "nothing" and of "round_trip"."""
    videos = data.unseen[: 8 * 10 : 10]
    rows = [torch.cat([video[0, :, 4] for video in videos], 2)]
    for name in ("nothing", "round_trip"):
        config = settings_of(ARMS[name], steps, 0)
        set_seed(0)
        model = build_autoencoder(config)
        assert isinstance(model, CausalVAE)
        model.start_from(linear)
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


def measured(name: str, seed: int, steps: int, data: Data, linear: LinearAutoencoder) -> Any:
    """Train and measure an arm."""
    arm = ARMS[name]
    start = time.process_time()
    config = settings_of(arm, steps, seed)
    set_seed(seed)
    accelerator = build_accelerator(config)
    model = build_autoencoder(config)
    assert isinstance(model, CausalVAE)
    model.start_from(linear)
    figures = {}
    if arm.is_trained:
        is_predictive = arm.predictive.max_dropped > 0
        num_first = steps * 2 // 3 if is_predictive else steps
        state = train(config, model, data, accelerator, 0, num_first)
        with state.ema.applied():
            model = copy.deepcopy(model)
        if is_predictive:
            figures |= prediction_figures(model.eval(), data, state)
            means = quality_of(model, data)
            figures["PSNR before the decoder's updates"] = means["psnr"]
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
        figures |= probe_figures(model, data, seed)
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


def correlations(rows: dict[str, list[dict[str, float]]], seeds: int) -> str:
    """Return the rank correlations of the figures with those of the probe, for each seed."""
    names = [
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
    arms = [arm for arm, figures in rows.items() if figures and "share" in figures[0]]
    lines = []
    for name in names:
        cells = []
        for target in probed:
            values = []
            for seed in range(seeds):
                figures = [rows[arm][seed] for arm in arms if len(rows[arm]) > seed]
                x = torch.tensor([one[name] for one in figures])
                y = torch.tensor([one[target] for one in figures])
                values.append(f"{float(spearman_corrcoef(x, y)):+.2f}")
            cells.append(", ".join(values))
        lines.append([name, *cells])
    return f"{len(arms)} arms\n\n" + measure.table(["rank correlation with", *probed], lines)


def main() -> None:
    """Train and measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos.py")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument(
        "--frechet", action="store_true", help="also measure Frechet distances, of 264 clips"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        help="only write a picture of tenth passes, and print those of the codec",
    )
    parser.add_argument("--tables", action="store_true", help="compute nothing")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.picture is not None:
        clips = read_data(options.videos, frechet=False)
        untrained = build_autoencoder(settings_of(ARMS["nothing"], 1, 0))
        start = untrained.linear_autoencoder(*SHAPE)
        assert start is not None
        write_picture(options.picture, clips, options.steps, start.fit(clips.train))
        print("the codec alone", round_trip_figures(None, clips))
        return
    data = None
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in options.arms}
    linear = None
    for seed, arm in itertools.product(options.seeds, options.arms):
        file = options.output / f"{arm.replace(' ', '_').replace(',', '')}-{seed}.json"
        if arm == "linear" and seed != options.seeds[0]:
            continue  # it does not depend on the seed
        if not file.is_file() and not options.tables:
            if data is None:
                data = read_data(options.videos, frechet=options.frechet)
            if linear is None:
                model = build_autoencoder(settings_of(ARMS["nothing"], 1, 0))
                linear = model.linear_autoencoder(*SHAPE)
                assert linear is not None
                linear.fit(data.train)
            write_json(file, measured(arm, seed, options.steps, data, linear))
            print(arm, seed, file.read_text(), flush=True)
        if file.is_file():
            rows[arm].append(json.loads(file.read_text()))
    quality = ["PSNR", "LPIPS", "seconds"]
    passes = ["PSNR", "colour", "sharpness", "latent"]
    for suffix in ("", " h264"):
        names = [f"{name} {number}{suffix}" for name in passes for number in (1, NUM_PASSES)]
        print(table_of([*quality, *names], rows, "round trips"), "\n")
    latent = ["neighbours, space", "neighbours, time", "high frequencies", "effective rank"]
    shares = ["VIV", "velocity loss", "share", "share at 0.8"]
    print(table_of(["PSNR", "LPIPS", *latent], rows, "latent"), "\n")
    print(table_of(["PSNR", *shares], rows, "probe"), "\n")
    predicted = [
        "PSNR before the decoder's updates",
        "prediction",
        "copy of the last frame",
        "copy of its reconstruction",
        "linear prediction",
    ]
    print(table_of(predicted, rows, "PSNR of dropped frames"), "\n")
    print(correlations(rows, len(options.seeds)))


if __name__ == "__main__":
    main()
