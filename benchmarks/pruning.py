"""Decoders with a part of their teacher's operations: inherited, or trained from nothing. A Markdown table.

    python benchmarks/pruning.py TEACHER --data runs/photographs --unseen runs/videos/unseen --runs runs/pruning \\
        --keep 0.5 0.25 0.125 --importance gradient first weight none --seeds 0 1 2 --steps 600

`--importance` has those of `telecine prune`, and `none`: the same architecture, trained from nothing, which starts as
the best linear map from the latent as every student does. All runs of a size have the same number of updates, which
take the same time. With `--minutes` that number is measured once for each size, and kept in the folder of the runs.

All is measured on clips of videos that no run has seen. Finished runs are not repeated: a stopped command goes on with
the checkpoint of the run that it was stopped in. With `--print` nothing is trained. A teacher that is no model of
telecine has no row `none`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from demo import clip_sets
from image_distances import OfflineDISTS
from measure import NOT_AVAILABLE, interleaved, machine, spread, table
from rich.console import Console
from torch import Tensor, nn

from telecine import load_autoencoder
from telecine.base.files import read_json, write_json
from telecine.data.find import find_videos
from telecine.evaluation import ReconstructionMetrics
from telecine.losses.perceptual import LPIPS
from telecine.models import VideoAutoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.runs import Run
from telecine.settings import DistillConfig
from telecine.settings.autoencoder import ConvolutionKind
from telecine.settings.parse import read_config
from telecine.tools.distill import distill
from telecine.tools.prune import prune
from telecine.tools.prune.settings import PruneConfig
from telecine.training.baseline import fit_linear
from telecine.training.clips import build_clips

FROM_NOTHING = "none"
# The metrics of the table, with their numbers of decimals.
DIGITS = {"psnr": 2, "lpips_alex": 3, "lpips_vgg": 3, "dists": 3, "flicker": 4}
NUM_THREADS = (1, 2)
DECODINGS = 9
# Updates whose time decides the steps of `--minutes`, after as many that are not measured.
TIMED_STEPS = 20

Reconstruct = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Study:
    """What all runs share."""

    teacher: str
    data: str
    settings: str
    """A recipe or a YAML file of `telecine distill`."""
    folder: Path
    steps: int
    minutes: float | None
    """Time of the updates of each run, in the place of `steps`."""
    prune_clips: int
    """Clips of the data that importance is measured on, and that convolutions are fitted to."""
    convolutions: tuple[ConvolutionKind, ...]
    """Convolutions of all decoders, see `telecine prune --decoder_convolutions`; empty for those of the teacher."""
    device: str

    def config(self, **changes: Any) -> DistillConfig:
        """Return the settings of a run.

        Args:
            changes: Settings of `DistillConfig`.
        """
        shared = {"teacher": self.teacher, "data": self.data, "device": self.device}
        config = read_config(self.settings, {**shared, **changes})
        assert isinstance(config, DistillConfig)
        return config

    def pruned(self, keep: float, importance: str) -> Path:
        """Return the folder of a pruned model, which is made if it is missing."""
        folder = self.folder / f"{keep:g}-{importance}"
        if not (folder / "prune.json").exists():
            clips = self.config().clips
            settings = PruneConfig(
                data=self.data,
                keep=keep,
                importance=importance,
                decoder_convolutions=self.convolutions,
                num_frames=clips.num_frames,
                height=clips.height,
                width=clips.width,
                max_clips=self.prune_clips,
                device=self.device,
            )
            result = prune(self.teacher, settings)
            result.model.save_pretrained(folder)
            write_json(folder / "prune.json", result.report())
        return folder

    def architecture(self, keep: float) -> Path:
        """Return a file with the settings of a decoder with the sizes of the pruned ones."""
        model = load_autoencoder(str(self.pruned(keep, "first")))
        if not isinstance(model, CausalAutoencoder):
            raise SystemExit(f"--importance {FROM_NOTHING} needs a teacher of telecine")
        path = self.folder / f"{keep:g}-architecture.json"
        names = (
            "base_channels",
            "channel_multipliers",
            "blocks_per_level",
            "patch_size",
            "time_kernel",
            "decoder_convolutions",
        )
        values = model.config.saved_values()
        write_json(path, {name: values[name] for name in names if name in values})
        return path

    def start(self, keep: float, importance: str) -> dict[str, str]:
        """Return the setting that says what a run starts from."""
        if importance == FROM_NOTHING:
            return {"student": str(self.architecture(keep))}
        return {"init": str(self.pruned(keep, importance))}

    def num_steps(self, keep: float) -> int:
        """Return the updates of the runs of a size, measured if the study has a time."""
        if self.minutes is None:
            return self.steps
        path = self.folder / f"{keep:g}-steps.json"
        if not path.exists():
            output = self.folder / f"{keep:g}-timed"
            config = self.config(
                **self.start(keep, "first"), output_dir=str(output), steps=2 * TIMED_STEPS
            )
            distill(replace(config, log_every=TIMED_STEPS, linear_baseline=False), console=quiet())
            speeds = []
            for record in Run(output).history.read():
                if "train/clips_per_second" in record:
                    speeds.append(record["train/clips_per_second"])
            updates_per_second = speeds[-1] / config.clips_per_pass
            write_json(path, {"steps": round(60 * self.minutes * updates_per_second)})
        steps = read_json(path)["steps"]
        assert isinstance(steps, int)
        return steps

    def train(self, keep: float, importance: str, seed: int) -> Path:
        """Train a run, or what is left of it, and return its folder."""
        output = self.folder / f"{keep:g}-{importance}-{seed}"
        steps = self.num_steps(keep)
        config = self.config(
            **self.start(keep, importance), output_dir=str(output), steps=steps, seed=seed
        )
        every = max(1, steps // 4)
        distill(
            replace(config, val_every=every, save_every=every, linear_baseline=False, keep=1),
            console=quiet(),
        )
        return output


def quiet() -> Console:
    """Return a console that prints nothing."""
    return Console(quiet=True)


class Measure:
    """The metrics of the table on clips of videos that no run has seen."""

    def __init__(self, config: DistillConfig, folder: Path, clips_of_each: int) -> None:
        videos = [Path(str(video)) for video in find_videos(folder, name="--unseen")]
        sets = clip_sets(replace(config, val_clips=clips_of_each), [], videos)
        self.clips = [clip["video"][None] for clips in sets.values() for clip in clips]
        self.networks: dict[str, nn.Module] = {
            "lpips_alex": LPIPS("alex"),
            "lpips_vgg": LPIPS("vgg"),
            "dists": OfflineDISTS(),
        }

    @torch.no_grad()
    def __call__(self, reconstruct: Reconstruct) -> dict[str, float]:
        """Return the mean of each metric over the clips."""
        metrics = ReconstructionMetrics(self.networks, metrics=("psnr", "flicker"))
        for video in self.clips:
            metrics.update(reconstruction=reconstruct(video).clamp(-1, 1), target=video)
        return metrics.compute()


def reconstruct_with(model: VideoAutoencoder) -> Reconstruct:
    """Return the reconstruction from the mode of the posterior."""
    model.eval()
    return lambda video: model(video, sample_posterior=False).video


@torch.no_grad()
def decode(model: Any, latent: Tensor) -> None:
    """Decode a latent."""
    model.decode(latent)


def decoding_times(models: dict[str, VideoAutoencoder], video: Tensor) -> dict[str, list[str]]:
    """Return the median time of decoding a clip in milliseconds, in turns, for each number of threads."""
    steps = {}
    for name, model in models.items():
        model.eval()
        with torch.no_grad():
            latent = model.encode(video).mode()
        steps[name] = partial(decode, model, latent)
    cells: dict[str, list[str]] = {name: [] for name in models}
    before = torch.get_num_threads()
    for number in NUM_THREADS:
        torch.set_num_threads(number)
        for name, seconds in interleaved(steps, rounds=DECODINGS).items():
            cells[name].append(f"{1000 * median(seconds):.1f}")
    torch.set_num_threads(before)
    return cells


def outcome_path(study: Study, name: str) -> Path:
    """Return the file with the metrics of a run or a baseline."""
    return study.folder / f"{name}.json"


def measure_missing(study: Study, arguments: argparse.Namespace) -> None:
    """Train and measure all that has no file yet, one seed after the other."""
    measure = Measure(study.config(), arguments.unseen, arguments.unseen_clips)
    path = outcome_path(study, "teacher")
    if not path.exists():
        write_json(path, measure(reconstruct_with(load_autoencoder(study.teacher))))
    path = outcome_path(study, "linear")
    if not path.exists():
        model = load_autoencoder(study.teacher)
        linear = fit_linear(model, build_clips(study.config(), model))
        write_json(path, measure(linear.eval()))
    for seed in arguments.seeds:
        for keep in arguments.keep:
            for importance in arguments.importance:
                path = outcome_path(study, f"{keep:g}-{importance}-{seed}")
                if path.exists():
                    continue
                inherited: dict[str, float] = {}
                if importance != FROM_NOTHING:
                    start = load_autoencoder(str(study.pruned(keep, importance)))
                    inherited = measure(reconstruct_with(start))
                run = study.train(keep, importance, seed)
                after = measure(reconstruct_with(load_autoencoder(str(run))))
                values = {f"before/{name}": value for name, value in inherited.items()}
                write_json(path, {**values, **after})
                print(f"{path.stem}: PSNR {after['psnr']:.2f}", flush=True)


def row(label: str, outcomes: Sequence[dict[str, float]], times: Sequence[str]) -> list[str]:
    """Return a row of the table.

    Args:
        label: The name of the row.
        outcomes: Metrics of the seeds.
        times: Cells of the decoding times.
    """
    before = [values["before/psnr"] for values in outcomes if "before/psnr" in values]
    cells = [label, str(len(outcomes)), spread(before, 2)]
    for name, digits in DIGITS.items():
        cells.append(spread([values[name] for values in outcomes], digits))
    return [*cells, *times]


def finished_runs(
    study: Study, arguments: argparse.Namespace
) -> dict[tuple[float, str], list[dict[str, float]]]:
    """Return the metrics of the finished runs of all seeds, by share and importance."""
    outcomes: dict[tuple[float, str], list[dict[str, float]]] = {}
    for keep in arguments.keep:
        for importance in arguments.importance:
            for seed in arguments.seeds:
                path = outcome_path(study, f"{keep:g}-{importance}-{seed}")
                if path.exists():
                    outcomes.setdefault((keep, importance), []).append(read_json(path))
    return outcomes


def print_table(study: Study, arguments: argparse.Namespace) -> None:
    """Print the rows of all finished runs. Decoding times are measured now, of all models in turns."""
    outcomes = finished_runs(study, arguments)
    models: dict[str, VideoAutoencoder] = {"teacher": load_autoencoder(study.teacher)}
    print(machine())
    for keep in dict.fromkeys(keep for keep, _ in outcomes):
        # All importances of a size have the same decoder.
        folder = study.pruned(keep, "first")
        models[f"{keep:g}"] = load_autoencoder(str(folder))
        values = read_json(folder / "prune.json")
        share = values["cost_after"]["flops"] / values["cost_before"]["flops"]
        sizes = f"channels {values['channels_after']} of {values['channels_before']}"
        steps = study.num_steps(keep)
        print(f"keep {keep:g}: {share:.1%} of the operations, {sizes}, {steps} updates")
    clips = study.config().clips
    times = decoding_times(models, torch.zeros(1, 3, clips.num_frames, clips.height, clips.width))
    no_times = [NOT_AVAILABLE] * len(NUM_THREADS)
    header = ["decoder", "seeds", "psnr before training", *DIGITS]
    for number in NUM_THREADS:
        header.append(f"decoding, ms, {number} thread{'s' if number > 1 else ''}")
    rows = []
    for name in ("teacher", "linear"):
        values = read_json(outcome_path(study, name))
        rows.append(row(name, [values], times.get(name, no_times)))
    for (keep, importance), runs in outcomes.items():
        rows.append(row(f"{keep:g}, {importance}", runs, times[f"{keep:g}"]))
    print()
    print(table(header, rows))


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", help="a run, or a saved model")
    parser.add_argument("--data", required=True, help="training data, as in `telecine train`")
    parser.add_argument("--unseen", type=Path, required=True, help="folder of other videos")
    parser.add_argument(
        "--runs", type=Path, required=True, help="folder of finished runs, which are not repeated"
    )
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5, 0.25, 0.125])
    parser.add_argument(
        "--importance", nargs="+", default=["gradient", "first", "weight", FROM_NOTHING]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=600, help="updates of each run")
    length.add_argument("--minutes", type=float, help="time of the updates of each run")
    parser.add_argument(
        "--config",
        default=str(Path(__file__).with_suffix(".yaml")),
        help="a recipe or YAML file of settings of the runs",
    )
    parser.add_argument("--unseen_clips", type=int, default=6, help="of each unseen video")
    parser.add_argument("--prune_clips", type=int, default=12, help="for the importances")
    parser.add_argument(
        "--decoder_convolutions", nargs="+", default=[], help="of all decoders, for other --runs"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--print", action="store_true", help="print finished runs, train nothing")
    arguments = parser.parse_args()
    study = Study(
        teacher=arguments.teacher,
        data=arguments.data,
        settings=arguments.config,
        folder=arguments.runs,
        steps=arguments.steps,
        minutes=arguments.minutes,
        prune_clips=arguments.prune_clips,
        convolutions=tuple(arguments.decoder_convolutions),
        device=arguments.device,
    )
    study.folder.mkdir(parents=True, exist_ok=True)
    if not arguments.print:
        measure_missing(study, arguments)
    print_table(study, arguments)


if __name__ == "__main__":
    main()
