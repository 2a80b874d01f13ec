"""Settings of the GAN, measured on held-out clips and on unseen videos: Markdown tables and pictures.

    python benchmarks/videos.py runs/videos
    python benchmarks/gan.py benchmarks/gan.yaml --videos runs/videos --runs runs/gan --seeds 1 2 3 4 5

Every run is the demo with changes, which a YAML file lists by name. A name that ends with "no GAN" is what those after
it are compared with; with the same seed they share its updates before the discriminators start. Finished runs stay in
the output folder, so that a stopped command repeats at most one run, and several processes can train different seeds.
With `--print` nothing is trained. Distances of networks, and FSIM, are of every third frame.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

import torch
from demo import clip_sets
from image_distances import FSIM, OfflineDISTS, vgg16_features
from measure import machine, spread, table
from outcome_runs import BUILT_IN, DIVERGED, Outcome, OutcomeFolder, Run, plain_values
from PIL import Image, ImageDraw
from telecine.training.config_file import config_from
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import make_grid

from telecine.autoencoders import CausalVAE
from telecine.base.checks import argument_error, check_choice
from telecine.base.files import atomic_write
from telecine.data import bytes_from_video
from telecine.data.find import find_videos
from telecine.evaluation import ReconstructionMetrics
from telecine.evaluation.frechet import frechet_distance
from telecine.perceptual import LPIPS
from telecine.settings import TrainConfig
from telecine.settings.recipes import find_recipe
from telecine.settings.yaml_file import read_yaml
from telecine.training.build import Clips, build_autoencoder, build_clips
from telecine.training.state import TrainState
from telecine.training.step import DivergenceError

HELD_OUT, UNSEEN = "held out", "unseen"
NO_GAN = "no GAN"
# Settings that have no effect before the discriminators train.
OF_THE_OBJECTIVE = (
    "adversarial_loss_weight",
    "grad_penalty_loss_weight",
    "disc_start",
    "gan",
    "penalty",
    "adaptive_weight",
)
OF_THE_OPTIMIZER = ("disc_lr", "disc_betas")
CLIPS_OF_A_VIDEO = 6
# In pictures: pixels between clips, the enlargement, the width and size of a name, and which clip of each row is shown.
GAP = 2
SCALE = 3
LABEL = 90
FONT_SIZE = 14
SHOWN_COLUMNS = (0, 2, 4)
FRAME_STRIDE = 3
# The metrics of the tables, with their numbers of decimals.
DIGITS = {
    "psnr": 2,
    "ssim": 3,
    "lpips_alex": 3,
    "lpips_vgg": 3,
    "dists": 3,
    "fsim": 3,
    "sharpness": 3,
    "flicker": 4,
}
# Differences of these are not relative.
ABSOLUTE = ("psnr", "sharpness")
METRIC_HEADER = [*DIGITS, "frechet, all clips"]
# The Frechet distance of all clips: of VGG16's features up to relu2_2 on frames in [-1, 1] as they are, 128 values,
# averaged in each cell of a grid of a frame.
FRECHET = "frechet"
FRECHET_LAYERS = 9
FRECHET_GRID = 4
# Logged values of the time in which the adversarial terms count, and their columns.
HEALTH = {
    "grad_clipped": "clipped",
    "grad_norm": "gradient norm",
    "disc_grad_clipped": "clipped, discriminators",
    "disc_grad_norm": "gradient norm, discriminators",
    "adversarial_gradient_share": "adversarial share",
    "accuracy_real": "accuracy, real",
    "accuracy_fake": "accuracy, fake",
}

Outcomes = Mapping[tuple[str, int], Outcome]


class Measure:
    """The metrics of a model on held-out clips and on clips of unseen videos."""

    def __init__(self, config: TrainConfig, unseen: Sequence[Path]) -> None:
        held_out = build_clips(config, build_autoencoder(config)).val
        found = clip_sets(replace(config, val_clips=CLIPS_OF_A_VIDEO), held_out, unseen)
        self.sets = {HELD_OUT: found.pop(HELD_OUT), UNSEEN: [clip for clips in found.values() for clip in clips]}
        self.perceptual: dict[str, nn.Module] = {f"lpips_{net}": LPIPS(net) for net in ("alex", "vgg")}
        self.perceptual |= {"dists": OfflineDISTS(), "fsim": FSIM()}
        self.features = vgg16_features()[:FRECHET_LAYERS]

    def averaged(self, state: TrainState) -> tuple[dict[str, float], Tensor]:
        """Return what `__call__` returns for the averaged weights of a run."""
        assert isinstance(state.autoencoder, CausalVAE)
        with state.ema.applied():
            return self(state.autoencoder)

    @torch.no_grad()
    def __call__(self, model: CausalVAE) -> tuple[dict[str, float], Tensor]:
        """Return metrics of a model, and the middle frame of each clip in a picture.

        Returns:
            Means over the clips of each set, by "set/metric", with the Frechet distance of all clips; and a picture as
            bytes `(H, W, 3)`. The model is in evaluation mode then.
        """
        model.eval()
        values: dict[str, float] = {}
        middle, of_model, of_clips = [], [], []
        for name, clips in self.sets.items():
            pixels = ReconstructionMetrics(metrics=BUILT_IN)
            networks = ReconstructionMetrics(self.perceptual, metrics=())
            for clip in clips:
                target = clip["video"][None]
                reconstruction = model(target, sample_posterior=False).video.clamp(-1, 1)
                middle.append(reconstruction[0, :, target.shape[2] // 2])
                pixels.update(reconstruction=reconstruction, target=target)
                reconstruction, target = (video[:, :, ::FRAME_STRIDE] for video in (reconstruction, target))
                networks.update(reconstruction=reconstruction, target=target)
                of_model.append(self.cells(reconstruction))
                of_clips.append(self.cells(target))
            metrics = pixels.compute() | networks.compute()
            values |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        values[FRECHET] = frechet_distance(features=torch.cat(of_model), reference=torch.cat(of_clips))
        return values, picture_of(middle)

    def inputs(self) -> Image.Image:
        """Return the picture of the clips themselves."""
        clips = [clip["video"] for each in self.sets.values() for clip in each]
        return Image.fromarray(picture_of([video[:, video.shape[1] // 2] for video in clips]).numpy())

    def cells(self, video: Tensor) -> Tensor:
        """Return features `(N, 128)` of every cell of every frame."""
        maps = F.adaptive_avg_pool2d(self.features(video[0].transpose(0, 1)), FRECHET_GRID)
        return maps.permute(0, 2, 3, 1).flatten(0, 2)


def measure_for(config: TrainConfig, videos: Path) -> Measure:
    """Return the metrics for the clips of a run, with the unseen videos of `videos.py`."""
    unseen = find_videos(videos / "unseen", name="--videos")
    return Measure(config, [Path(str(video)) for video in unseen])


def picture_of(frames: Sequence[Tensor]) -> Tensor:
    """Return frames `(3, H, W)` in a grid, as bytes `(H, W, 3)`."""
    grid = make_grid(torch.stack([*frames]), nrow=CLIPS_OF_A_VIDEO, padding=GAP, pad_value=-1)
    return bytes_from_video(grid[:, None])[0]


def draw(pictures: Mapping[str, Image.Image], size: int, path: Path) -> None:
    """Write some columns of the pictures of clips of `size` pixels, enlarged: a row for each picture, with its name."""
    num_rows = next(iter(pictures.values())).height // (size + GAP)
    cells = [(SHOWN_COLUMNS[row % len(SHOWN_COLUMNS)], row) for row in range(num_rows)]
    large = size * SCALE
    whole = Image.new("RGB", (LABEL + len(cells) * (large + GAP), len(pictures) * (large + GAP)), "white")
    for index, (label, picture) in enumerate(pictures.items()):
        top = index * (large + GAP)
        lines = fill(label, LABEL // FONT_SIZE * 2 - 2)
        ImageDraw.Draw(whole).text((GAP, top + large // 3), lines, fill="black", font_size=FONT_SIZE)
        for place, (column, row) in enumerate(cells):
            left, upper = (GAP + number * (size + GAP) for number in (column, row))
            cell = picture.crop((left, upper, left + size, upper + size)).resize(
                (large, large), Image.Resampling.NEAREST
            )
            whole.paste(cell, (LABEL + place * (large + GAP), top))
    whole.save(path)


class Runs:
    """The runs of a file of settings, and their outcomes in a folder.

    Args:
        path: A YAML file: for each name, changes of the demo's settings, or the name of a recipe that has them. Names
            that end with "no GAN" are the runs that those after them are compared with.
        folder: Where outcomes are, or will be.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.settings: dict[str, dict[str, Any]] = {
            name: read_yaml(find_recipe(each)) if isinstance(each, str) else each
            for name, each in read_yaml(path).items()
        }
        self.bases: dict[str, str] = {}
        base = ""
        for name in self.settings:
            base = name if name.endswith(NO_GAN) else base
            if not base:
                raise argument_error(str(path), f"runs of which the first ends with {NO_GAN!r}", name, "Add that run.")
            self.bases[name] = base
        self.folder = OutcomeFolder(folder)

    def config(self, name: str, seed: int) -> TrainConfig:
        """Return the settings of a run."""
        demo = read_yaml(find_recipe("demo"))
        return replace(config_from(demo, self.settings[name]), seed=seed, trackers=())

    def outcome(self, name: str, seed: int) -> Outcome | None:
        """Return the outcome of a finished run."""
        return self.folder.load(name, seed, plain_values(self.config(name, seed)))

    def outcomes(self, names: Sequence[str], seeds: Sequence[int]) -> Outcomes:
        """Return the outcomes of all finished runs among these, and of those that they are compared with."""
        needed = dict.fromkeys([*names, *(self.bases[name] for name in names)])
        found = {(name, seed): self.outcome(name, seed) for name in needed for seed in seeds}
        return {key: outcome for key, outcome in found.items() if outcome is not None}

    def start(self, name: str, seed: int, clips: Clips) -> dict[str, Any]:
        """Return the state of a run without a GAN at the step from which the discriminators of others train.

        It is read from a file if one has it.
        """
        config, path = self.config(name, seed), self.folder.path(f"start of {name}", seed).with_suffix(".pt")
        settings = plain_values(config)
        if path.exists():
            saved: dict[str, Any] = torch.load(path, weights_only=False)
            if saved["settings"] == settings:
                return saved
        with tempfile.TemporaryDirectory() as folder:
            run = Run(config, clips, Path(folder))
            run.train_until(config.objective.gan.disc_train_start)
            saved = {**run.save(), "settings": settings}
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda partial: torch.save(saved, partial))
        return saved

    def train(self, name: str, seed: int, measure: Measure) -> None:
        """Train a run, and write its outcome and its frames."""
        config, base = self.config(name, seed), self.config(self.bases[name], seed)
        clips = build_clips(config, build_autoencoder(config))
        outcome, frames = Outcome(plain_values(config), {}, [DIVERGED]), None
        with tempfile.TemporaryDirectory() as folder:
            run = Run(config, clips, Path(folder))
            try:
                if shares_start(config, base):
                    run.load(self.start(self.bases[name], seed, clips))
                run.train_until(config.steps)
            except DivergenceError as error:
                print(error, file=sys.stderr)
            else:
                metrics, frames = measure.averaged(run.state)
                outcome = replace(outcome, metrics=metrics, warnings=sorted(run.diagnostics.warned), health=health(run))
        self.folder.save(name, seed, outcome, frames)
        print(f"{name}, seed {seed}: {outcome.metrics or DIVERGED}", file=sys.stderr, flush=True)


def shares_start(config: TrainConfig, base: TrainConfig) -> bool:
    """Return whether a run trains as its base does until the base's discriminators would start."""
    first = base.objective.gan.disc_train_start
    if min(config.objective.gan.disc_train_start, config.objective.disc_start) < first:
        return False
    ours, others = (plain_values(each) for each in (config, base))
    for each in (ours, others):
        del each["discriminator"]
        for name in OF_THE_OBJECTIVE:
            del each["objective"][name]
        for name in OF_THE_OPTIMIZER:
            del each["optimizer"][name]
    return bool(ours == others)


def health(run: Run) -> dict[str, float]:
    """Return the mean of each of `HEALTH` over the updates in which the adversarial terms count."""
    first = run.config.objective.disc_start + run.config.log_every
    records = [each for step, each in run.records if step >= first]
    found = {name: [each[f"train/{name}"] for each in records if f"train/{name}" in each] for name in HEALTH}
    return {name: fmean(values) for name, values in found.items() if values}


def print_tables(runs: Runs, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Print the metrics on each set, their differences to the runs without a GAN, and the health of the GAN."""
    outcomes = runs.outcomes(names, seeds)
    for clips in (HELD_OUT, UNSEEN):
        print(f"\n{clips}:\n")
        print(metrics_table(clips, names, seeds, outcomes))
        print(f"\n{clips}, difference to the run without a GAN and the same seed (* not of one sign in all seeds):\n")
        pairs = [(name, runs.bases[name]) for name in names if runs.bases[name] != name]
        rows = [difference_row(name, base, seeds, outcomes, columns_of(clips)) for name, base in pairs]
        print(table(["run", "seeds", *METRIC_HEADER], rows))
    print("\nwhile the adversarial terms count:\n")
    print(table(["run", *HEALTH.values(), "warnings"], [health_row(name, seeds, outcomes) for name in names]))


def columns_of(clips: str) -> dict[str, int]:
    """Return the metrics on a set of clips, with their numbers of decimals."""
    return {f"{clips}/{metric}": number for metric, number in DIGITS.items()} | {FRECHET: 2}


def metrics_table(
    clips: str, names: Sequence[str], seeds: Sequence[int], outcomes: Outcomes, others: Mapping[str, int] | None = None
) -> str:
    """Return a table of the metrics on a set of clips, and of other values with their numbers of decimals."""
    others = others or {}
    rows = [value_row(name, seeds, outcomes, {**columns_of(clips), **others}) for name in names]
    return table(["run", "seeds", *METRIC_HEADER, *others], rows)


def metrics_of(name: str, seeds: Sequence[int], outcomes: Outcomes) -> dict[int, dict[str, float]]:
    """Return the metrics of each seed's run that is finished and did not diverge."""
    found = {seed: outcomes[name, seed].metrics for seed in seeds if (name, seed) in outcomes}
    return {seed: metrics for seed, metrics in found.items() if metrics}


def value_row(name: str, seeds: Sequence[int], outcomes: Outcomes, digits: Mapping[str, int]) -> list[str]:
    """Return the mean and standard deviation of each metric over the seeds."""
    found = metrics_of(name, seeds, outcomes).values()
    return [name, f"{len(found)}", *(spread([each[key] for each in found], digits[key]) for key in digits)]


def difference_row(
    name: str, base: str, seeds: Sequence[int], outcomes: Outcomes, digits: Mapping[str, int]
) -> list[str]:
    """Return the differences to the runs of the same seed without a GAN, in per cent but for PSNR and sharpness."""
    ours, others = (metrics_of(each, seeds, outcomes) for each in (name, base))
    pairs = [(ours[seed], others[seed]) for seed in ours if seed in others]
    cells = []
    for key in digits:
        is_absolute = key.endswith(ABSOLUTE)
        changes = [(run[key] - without[key], without[key]) for run, without in pairs]
        values = [change if is_absolute else 100 * change / without for change, without in changes]
        unit = "" if is_absolute or not values else " %"
        mixed = "*" if len({value > 0 for value in values}) > 1 else ""
        cells.append(spread(values, digits[key] if is_absolute else 1, "+") + unit + mixed)
    return [name, f"{len(pairs)}", *cells]


def health_row(name: str, seeds: Sequence[int], outcomes: Outcomes) -> list[str]:
    """Return the means over the seeds, and the diagnostic rules that warned in any of them."""
    found = [outcomes[name, seed] for seed in seeds if (name, seed) in outcomes]
    cells = [spread([run.health[key] for run in found if key in run.health], 3) for key in HEALTH]
    warnings = sorted({warning for run in found for warning in run.warnings})
    return [name, *cells, ", ".join(warnings) or "none"]


def main() -> None:
    """Train what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="YAML file of settings by name")
    parser.add_argument("--videos", type=Path, required=True, help="the folder of benchmarks/videos.py")
    parser.add_argument("--runs", type=Path, required=True, help="folder of finished runs, which are not repeated")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--only", nargs="+", help="names of runs; all by default")
    parser.add_argument("--picture", type=Path, help="where to write a picture of the runs of the first seed")
    parser.add_argument("--print", action="store_true", help="print finished runs, train nothing")
    arguments = parser.parse_args()
    runs = Runs(arguments.settings, arguments.runs)
    names = arguments.only or list(runs.settings)
    for name in names:
        check_choice("--only", name, list(runs.settings))
    missing = [(name, seed) for seed in arguments.seeds for name in names if runs.outcome(name, seed) is None]
    missing = [] if arguments.print else missing
    if missing or arguments.picture:
        measure = measure_for(runs.config(names[0], arguments.seeds[0]), arguments.videos)
        for name, seed in missing:
            runs.train(name, seed, measure)
        if arguments.picture:
            pictures = runs.folder.all_frames(names, arguments.seeds[0])
            draw({"input": measure.inputs(), **pictures}, runs.config(names[0], 0).clips.width, arguments.picture)
    print(machine())
    print_tables(runs, names, arguments.seeds)


if __name__ == "__main__":
    main()
