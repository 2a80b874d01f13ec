"""Settings of the GAN, measured on held-out clips and on unseen videos: Markdown tables and pictures.

    python benchmarks/videos.py runs/videos
    python benchmarks/gan.py benchmarks/gan.yaml --videos runs/videos --runs runs/gan --seeds 1 2 3 4 5

Every run is the demo with changes, which a YAML file lists by name. A name that ends with "no GAN" is what those after
it are compared with; with the same seed they share its updates before the discriminators start. Finished runs stay in
the output folder, so that a stopped command repeats at most one run, and several processes can train different seeds.
With `--print` nothing is trained. Distances of networks, and FSIM, are of every third frame. A decoder that generates
is measured in one step and, in rows of their own, in two and four.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill

import torch
from demo import clip_sets
from gan_runs import HEALTH, Outcome, Outcomes, Runs
from image_distances import FSIM, OfflineDISTS, vgg16_features
from measure import machine, spread, table
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import make_grid

from telecine.autoencoders import VideoAutoencoder
from telecine.autoencoders.interface import sampling
from telecine.base.checks import check_choice
from telecine.data import bytes_from_video
from telecine.data.find import find_videos
from telecine.evaluation import ReconstructionMetrics
from telecine.evaluation.frechet import frechet_distance
from telecine.perceptual import LPIPS
from telecine.settings import TrainConfig
from telecine.training.build import build_autoencoder
from telecine.training.clips import build_clips
from telecine.training.state import TrainState

HELD_OUT, UNSEEN = "held out", "unseen"
CLIPS_OF_A_VIDEO = 6
# In pictures: pixels between clips, the enlargement, the width and size of a name, and which clip of each row is shown.
GAP = 2
SCALE = 3
LABEL = 90
FONT_SIZE = 14
SHOWN_COLUMNS = (0, 2, 4)
FRAME_STRIDE = 3
# Steps in which decoders that generate are measured beside one step.
DECODE_STEPS = (2, 4)
PIXEL_METRICS = ("psnr", "ssim", "flicker", "sharpness")
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


class Measure:
    """The metrics of a model on the held-out clips of a run and on clips of the unseen videos of `videos.py`."""

    def __init__(self, config: TrainConfig, videos: Path) -> None:
        unseen = [Path(str(video)) for video in find_videos(videos / "unseen", name="--videos")]
        held_out = build_clips(config, build_autoencoder(config)).val
        found = clip_sets(replace(config, val_clips=CLIPS_OF_A_VIDEO), held_out, unseen)
        self.sets = {HELD_OUT: found.pop(HELD_OUT), UNSEEN: [clip for clips in found.values() for clip in clips]}
        self.perceptual: dict[str, nn.Module] = {f"lpips_{net}": LPIPS(net) for net in ("alex", "vgg")}
        self.perceptual |= {"dists": OfflineDISTS(), "fsim": FSIM()}
        self.features = vgg16_features()[:FRECHET_LAYERS]

    def __call__(self, state: TrainState) -> tuple[dict[str, float], Tensor]:
        """Return metrics of the averaged weights of a run, and the middle frame of each clip in a picture.

        Returns:
            Means over the clips of each set, by "set/metric", with the Frechet distance of all clips, and again with
            the prefix of each number of steps; and a picture as bytes `(H, W, 3)`. The model is in evaluation mode.
        """
        model = state.autoencoder.eval()
        with state.ema.applied(), torch.no_grad():
            values, picture = self._measure(model)
            has_steps = model.sampler is not None and not model.config.flow.one_step
            for steps in DECODE_STEPS if has_steps else ():
                with sampling(model, steps=steps):
                    found, _ = self._measure(model)
                values |= {prefix_of(steps) + name: value for name, value in found.items()}
            return values, picture

    def _measure(self, model: VideoAutoencoder) -> tuple[dict[str, float], Tensor]:
        values: dict[str, float] = {}
        middle, of_model, of_clips = [], [], []
        for name, clips in self.sets.items():
            pixels = ReconstructionMetrics(metrics=PIXEL_METRICS)
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


def prefix_of(steps: int) -> str:
    """Return what stands before the names of metrics of several steps."""
    return f"{steps} steps/"


def rows_by_steps(name: str, outcomes: Mapping[tuple[str, int], Outcome]) -> dict[tuple[str, int], Outcome]:
    """Return the outcomes of the runs of a name, and those of each number of steps, in rows such as "flow, 2 steps"."""
    runs = {seed: outcome for (each, seed), outcome in outcomes.items() if each == name}
    rows = {(name, seed): outcome for seed, outcome in runs.items()}
    for prefix in map(prefix_of, DECODE_STEPS):
        for seed, outcome in runs.items():
            found = {key.removeprefix(prefix): x for key, x in outcome.metrics.items() if key.startswith(prefix)}
            if found:
                rows[f"{name}, {prefix.removesuffix('/')}", seed] = replace(outcome, metrics=found)
    return rows


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


def print_tables(runs: Runs, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Print the metrics on each set, their differences to the runs without a GAN, and the health of the GAN."""
    outcomes, bases = dict(runs.outcomes(names, seeds)), {}
    for name in names:
        found = rows_by_steps(name, outcomes)
        outcomes |= found
        bases |= {row: runs.bases[name] for row, _ in found} or {name: runs.bases[name]}
    for clips in (HELD_OUT, UNSEEN):
        print(f"\n{clips}:\n")
        print(metrics_table(clips, list(bases), seeds, outcomes))
        print(f"\n{clips}, difference to the run without a GAN and the same seed (* not of one sign in all seeds):\n")
        pairs = [(name, base) for name, base in bases.items() if base != name]
        rows = [difference_row(name, base, seeds, outcomes, columns_of(clips)) for name, base in pairs]
        print(table(["run", "seeds", *METRIC_HEADER], rows))
    print("\nwhile the adversarial terms count:\n")
    print(table(["run", *HEALTH.values(), "warnings"], [health_row(name, seeds, outcomes) for name in names]))


def columns_of(clips: str) -> dict[str, int]:
    """Return the metrics on a set of clips, with their numbers of decimals."""
    return {f"{clips}/{metric}": number for metric, number in DIGITS.items()} | {FRECHET: 2}


def metrics_table(clips: str, names: Sequence[str], seeds: Sequence[int], outcomes: Outcomes) -> str:
    """Return a table of the metrics on a set of clips."""
    rows = [value_row(name, seeds, outcomes, columns_of(clips)) for name in names]
    return table(["run", "seeds", *METRIC_HEADER], rows)


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
        measure = Measure(runs.config(names[0], arguments.seeds[0]), arguments.videos)
        for name, seed in missing:
            runs.train(name, seed, measure)
        if arguments.picture:
            pictures = runs.pictures(names, arguments.seeds[0])
            draw({"input": measure.inputs(), **pictures}, runs.config(names[0], 0).clips.width, arguments.picture)
    print(machine())
    print_tables(runs, names, arguments.seeds)


if __name__ == "__main__":
    main()
