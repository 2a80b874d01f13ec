"""Settings of the GAN, measured on held-out clips and on unseen videos: Markdown tables and pictures.

    python benchmarks/videos.py runs/videos
    python benchmarks/gan.py benchmarks/gan.yaml --videos runs/videos --runs runs/gan --seeds 1 2 3 4 5

Every run is the demo with changes, which a YAML file lists by name. A name that ends with "no GAN" is what those after
it are compared with; with the same seed they share its updates before the discriminators start. Finished runs stay in
the output folder, so that a stopped command repeats at most one run, and several processes can train different seeds.
With `--print` nothing is trained. Distances of networks, and FSIM, are of every third frame, or see `--frame_stride`.

Rows of their own have a decoder that generates in two and four steps, the linear autoencoder that a run starts from,
and the runs without a GAN after an unsharp mask of the strength at which unseen videos have a sharpness of 0.6: what a
filter of one line does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from textwrap import fill

import torch
from demo import clip_sets
from gan_runs import HEALTH, Outcome, Outcomes, Run, Runs
from image_distances import FSIM, OfflineDISTS, vgg16_features
from measure import interleaved, machine, spread, table
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur
from torchvision.utils import make_grid

from telecine.base.checks import check_choice
from telecine.data import bytes_from_video
from telecine.data.find import find_videos
from telecine.evaluation import ReconstructionMetrics
from telecine.evaluation.metrics.frechet import frechet_distance
from telecine.losses.perceptual import LPIPS
from telecine.models import VideoAutoencoder
from telecine.models.interface import decoding_options
from telecine.settings import TrainConfig
from telecine.training.build import build_autoencoder
from telecine.training.clips import build_clips

HELD_OUT, UNSEEN = "held out", "unseen"
# In pictures: clips in a row, pixels between clips, the enlargement, the width and size of a name, and which clip of
# each row is shown.
CLIPS_IN_A_ROW = 6
GAP = 2
SCALE = 3
LABEL = 90
FONT_SIZE = 14
SHOWN_COLUMNS = (0, 2, 4)
# Steps in which decoders that generate are measured beside one step.
DECODE_STEPS = (2, 4)
DECODINGS = 9
# Names of the trivial baselines, and the unsharp mask: the pixels of its Gaussian blur, the sharpness that its strength
# is chosen for, the largest strength, and the halvings of that range.
LINEAR, UNSHARP = "linear baseline", "unsharp mask"
BLUR_SIZE = 5
AIMED_SHARPNESS = 0.6
MAX_STRENGTH, BISECTIONS = 4.0, 12
Reconstruct = Callable[[Tensor], Tensor]
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
    """The metrics of a model on the held-out clips of a run and on clips of the unseen videos of `videos.py`.

    Args:
        config: A run, whose held-out clips are measured.
        videos: The folder of `videos.py`.
        unseen_clips: How many clips of each unseen video are measured.
        frame_stride: Distances of networks, and FSIM, are of every frame whose number is a multiple of it.
    """

    def __init__(
        self, config: TrainConfig, videos: Path, unseen_clips: int, frame_stride: int
    ) -> None:
        self.frame_stride = frame_stride
        unseen = [Path(str(video)) for video in find_videos(videos / "unseen", name="--videos")]
        held_out = build_clips(config, build_autoencoder(config)).val
        found = clip_sets(replace(config, val_clips=unseen_clips), held_out, unseen)
        self.sets = {
            HELD_OUT: found.pop(HELD_OUT),
            UNSEEN: [clip for clips in found.values() for clip in clips],
        }
        self.perceptual: dict[str, nn.Module] = {
            f"lpips_{net}": LPIPS(net) for net in ("alex", "vgg")
        }
        self.perceptual |= {"dists": OfflineDISTS(), "fsim": FSIM()}
        self.features = vgg16_features()[:FRECHET_LAYERS]

    def __call__(self, run: Run) -> tuple[dict[str, float], Tensor]:
        """Return metrics of the averaged weights of a run, and the middle frame of each clip in a picture.

        Returns:
            Means over the clips of each set, by "set/metric", with the Frechet distance of all clips, and again with
            the name of each variant and a slash before; and a picture as bytes `(H, W, 3)`. The model is in evaluation
            mode.
        """
        model = run.state.autoencoder.eval()
        with run.state.ema.applied(), torch.no_grad():
            values, picture = self._measure(reconstruction_of(model))
            for variant, reconstruct in self._variants(run, model):
                found, _ = self._measure(reconstruct)
                values |= {f"{variant}/{name}": value for name, value in found.items()}
            return values, picture

    def _variants(self, run: Run, model: VideoAutoencoder) -> Iterator[tuple[str, Reconstruct]]:
        """Yield what is measured beside the model itself, which is that of the run."""
        if model.validation_decodings():
            for steps in DECODE_STEPS:
                with decoding_options(model, steps=steps):
                    yield f"{steps} steps", reconstruction_of(model)
        if run.config.objective.adversarial_loss_weight == 0 and not model.describe_decoding():
            assert run.linear is not None
            yield LINEAR, run.linear.eval()
            strength = self._unsharp_strength(reconstruction_of(model))
            yield (
                UNSHARP,
                lambda video: unsharp(model(video, sample_posterior=False).video, strength),
            )

    def _unsharp_strength(self, reconstruct: Reconstruct) -> float:
        """Return the strength of `unsharp` with which reconstructions of unseen clips have `AIMED_SHARPNESS`."""
        targets = [clip["video"][None] for clip in self.sets[UNSEEN]]
        pairs = [(target, reconstruct(target)) for target in targets]
        low, high = 0.0, MAX_STRENGTH
        for _ in range(BISECTIONS):
            strength = (low + high) / 2
            metrics = ReconstructionMetrics(metrics=("sharpness",))
            for target, reconstruction in pairs:
                metrics.update(
                    reconstruction=unsharp(reconstruction, strength).clamp(-1, 1), target=target
                )
            low, high = (
                (strength, high)
                if metrics.compute()["sharpness"] < AIMED_SHARPNESS
                else (low, strength)
            )
        return low

    def _measure(self, reconstruct: Reconstruct) -> tuple[dict[str, float], Tensor]:
        values: dict[str, float] = {}
        middle, of_model, of_clips = [], [], []
        for name, clips in self.sets.items():
            pixels = ReconstructionMetrics(metrics=PIXEL_METRICS)
            networks = ReconstructionMetrics(self.perceptual, metrics=())
            for clip in clips:
                target = clip["video"][None]
                reconstruction = reconstruct(target).clamp(-1, 1)
                middle.append(reconstruction[0, :, target.shape[2] // 2])
                pixels.update(reconstruction=reconstruction, target=target)
                reconstruction = reconstruction[:, :, :: self.frame_stride]
                target = target[:, :, :: self.frame_stride]
                networks.update(reconstruction=reconstruction, target=target)
                of_model.append(self.cells(reconstruction))
                of_clips.append(self.cells(target))
            metrics = pixels.compute() | networks.compute()
            values |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        values[FRECHET] = frechet_distance(
            features=torch.cat(of_model), reference=torch.cat(of_clips)
        )
        return values, picture_of(middle)

    def inputs(self) -> Image.Image:
        """Return the picture of the clips themselves."""
        clips = [clip["video"] for each in self.sets.values() for clip in each]
        return Image.fromarray(
            picture_of([video[:, video.shape[1] // 2] for video in clips]).numpy()
        )

    def cells(self, video: Tensor) -> Tensor:
        """Return features `(N, 128)` of every cell of every frame."""
        maps = F.adaptive_avg_pool2d(self.features(video[0].transpose(0, 1)), FRECHET_GRID)
        return maps.permute(0, 2, 3, 1).flatten(0, 2)


def reconstruction_of(model: VideoAutoencoder) -> Reconstruct:
    """Return the function that encodes and decodes a video with the mode of the posterior."""
    return lambda video: model(video, sample_posterior=False).video


def unsharp(video: Tensor, strength: float) -> Tensor:
    """Return a video `(B, C, T, H, W)` plus its difference to a blurred one, times the strength."""
    blurred = gaussian_blur(video.transpose(1, 2), [BLUR_SIZE, BLUR_SIZE]).transpose(1, 2)
    return video + strength * (video - blurred)


def rows_by_variant(
    name: str, outcomes: Mapping[tuple[str, int], Outcome]
) -> dict[tuple[str, int], Outcome]:
    """Return the outcomes of the runs of a name, and those of each variant, in rows such as "flow, 2 steps"."""
    runs = {seed: outcome for (each, seed), outcome in outcomes.items() if each == name}
    rows = {(name, seed): outcome for seed, outcome in runs.items()}
    for variant in (*(f"{steps} steps" for steps in DECODE_STEPS), LINEAR, UNSHARP):
        for seed, outcome in runs.items():
            prefix = f"{variant}/"
            found = {
                key.removeprefix(prefix): x
                for key, x in outcome.metrics.items()
                if key.startswith(prefix)
            }
            if found:
                row = LINEAR if variant == LINEAR else f"{name}, {variant}"
                rows[row, seed] = replace(outcome, metrics=found)
    return rows


def picture_of(frames: Sequence[Tensor]) -> Tensor:
    """Return frames `(3, H, W)` in a grid, as bytes `(H, W, 3)`."""
    grid = make_grid(torch.stack([*frames]), nrow=CLIPS_IN_A_ROW, padding=GAP, pad_value=-1)
    return bytes_from_video(grid[:, None])[0]


def draw(pictures: Mapping[str, Image.Image], size: int, path: Path) -> None:
    """Write some columns of the pictures of clips of `size` pixels, enlarged: a row for each picture, with its name."""
    num_rows = next(iter(pictures.values())).height // (size + GAP)
    cells = [(SHOWN_COLUMNS[row % len(SHOWN_COLUMNS)], row) for row in range(num_rows)]
    large = size * SCALE
    whole = Image.new(
        "RGB", (LABEL + len(cells) * (large + GAP), len(pictures) * (large + GAP)), "white"
    )
    for index, (label, picture) in enumerate(pictures.items()):
        top = index * (large + GAP)
        lines = fill(label, LABEL // FONT_SIZE * 2 - 2)
        ImageDraw.Draw(whole).text(
            (GAP, top + large // 3), lines, fill="black", font_size=FONT_SIZE
        )
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
        found = rows_by_variant(name, outcomes)
        outcomes |= found
        bases |= {row: runs.bases[name] for row, _ in found} or {name: runs.bases[name]}
    for clips in (HELD_OUT, UNSEEN):
        print(f"\n{clips}:\n")
        print(metrics_table(clips, list(bases), seeds, outcomes))
        print(
            f"\n{clips}, difference to the run without a GAN and the same seed (* not of one sign in all seeds):\n"
        )
        pairs = [(name, base) for name, base in bases.items() if base != name]
        rows = [
            difference_row(name, base, seeds, outcomes, columns_of(clips)) for name, base in pairs
        ]
        print(table(["run", "seeds", *METRIC_HEADER], rows))
    print("\nwhile the adversarial terms count:\n")
    print(
        table(
            ["run", *HEALTH.values(), "warnings"],
            [health_row(name, seeds, outcomes) for name in names],
        )
    )
    print(
        f"\nprocessor time of the training, with its teacher's, and of decoding a clip (median of {DECODINGS}):\n"
    )
    print(table(["run", "training, s", "decoding, ms"], time_rows(runs, names, seeds, outcomes)))


def columns_of(clips: str) -> dict[str, int]:
    """Return the metrics on a set of clips, with their numbers of decimals."""
    return {f"{clips}/{metric}": number for metric, number in DIGITS.items()} | {FRECHET: 2}


def metrics_table(
    clips: str, names: Sequence[str], seeds: Sequence[int], outcomes: Outcomes
) -> str:
    """Return a table of the metrics on a set of clips."""
    rows = [value_row(name, seeds, outcomes, columns_of(clips)) for name in names]
    return table(["run", "seeds", *METRIC_HEADER], rows)


def metrics_of(name: str, seeds: Sequence[int], outcomes: Outcomes) -> dict[int, dict[str, float]]:
    """Return the metrics of each seed's run that is finished and did not diverge."""
    found = {seed: outcomes[name, seed].metrics for seed in seeds if (name, seed) in outcomes}
    return {seed: metrics for seed, metrics in found.items() if metrics}


def value_row(
    name: str, seeds: Sequence[int], outcomes: Outcomes, digits: Mapping[str, int]
) -> list[str]:
    """Return the mean and standard deviation of each metric over the seeds."""
    found = metrics_of(name, seeds, outcomes).values()
    return [
        name,
        f"{len(found)}",
        *(spread([each[key] for each in found], digits[key]) for key in digits),
    ]


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


def time_rows(
    runs: Runs, names: Sequence[str], seeds: Sequence[int], outcomes: Outcomes
) -> Iterator[list[str]]:
    """Yield the rows of the times: decoding is measured anew, with models whose weights are random."""
    steps = {}
    for name in names:
        config = runs.config(name, seeds[0])
        model = build_autoencoder(config).eval()
        latent = model.encode(
            torch.zeros(1, 3, config.clips.num_frames, config.clips.height, config.clips.width)
        ).mode()
        steps[name] = partial(decode, model, latent)
        if model.validation_decodings():
            steps |= {
                f"{name}, {number} steps": partial(decode, model, latent, number)
                for number in DECODE_STEPS
            }
    decoding = interleaved(steps, rounds=DECODINGS, clock=time.process_time)
    for row, seconds in decoding.items():
        found = [outcomes[row, seed].seconds for seed in seeds if (row, seed) in outcomes]
        yield [row, spread(found, 0), f"{1000 * median(seconds):.1f}"]


@torch.no_grad()
def decode(model: VideoAutoencoder, latent: Tensor, steps: int = 1) -> None:
    """Decode a latent, in this number of steps if the decoder generates."""
    if not model.describe_decoding():
        model.decode(latent)
    else:
        with decoding_options(model, steps=steps):
            model.decode(latent)


def main() -> None:
    """Train what is missing and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", type=Path, help="YAML file of settings by name")
    parser.add_argument(
        "--videos", type=Path, required=True, help="the folder of benchmarks/videos.py"
    )
    parser.add_argument(
        "--runs", type=Path, required=True, help="folder of finished runs, which are not repeated"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--share", type=float, default=1.0, help="of the updates of each run")
    parser.add_argument("--unseen_clips", type=int, default=6, help="of each unseen video")
    parser.add_argument("--frame_stride", type=int, default=3, help="of distances of networks")
    parser.add_argument("--only", nargs="+", help="names of runs; all by default")
    parser.add_argument(
        "--picture", type=Path, help="where to write a picture of the runs of the first seed"
    )
    parser.add_argument("--print", action="store_true", help="print finished runs, train nothing")
    arguments = parser.parse_args()
    runs = Runs(arguments.settings, arguments.runs, arguments.share)
    names = arguments.only or list(runs.settings)
    for name in names:
        check_choice("--only", name, list(runs.settings))
    missing = [
        (name, seed)
        for seed in arguments.seeds
        for name in names
        if runs.outcome(name, seed) is None
    ]
    missing = [] if arguments.print else missing
    if missing or arguments.picture:
        measure = Measure(
            runs.config(names[0], arguments.seeds[0]),
            arguments.videos,
            arguments.unseen_clips,
            arguments.frame_stride,
        )
        for name, seed in missing:
            runs.train(name, seed, measure)
        if arguments.picture:
            pictures = runs.pictures(names, arguments.seeds[0])
            draw(
                {"input": measure.inputs(), **pictures},
                runs.config(names[0], 0).clips.width,
                arguments.picture,
            )
    print(machine())
    print_tables(runs, names, arguments.seeds)


if __name__ == "__main__":
    main()
