"""The results of an evaluation, and the files that hold them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from telecine.base.checks import argument_error
from telecine.base.files import named_errors, read_json, write_json
from telecine.base.plain_values import as_dataclass
from telecine.evaluation.evaluation_record import EvaluationRecord, describe_clips
from telecine.evaluation.metrics.metric import METRICS
from telecine.evaluation.plots import plot_frames, plot_passes
from telecine.evaluation.speed import SPEED_FILE, Speed

METRICS_FILE = "metrics.json"
CLIPS_FILE = "clips.json"
FRAMES_FILE = "frames.json"
ROUND_TRIPS_FILE = "round_trips.json"
PROTOCOL_FILE = "protocol.json"


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation: of the set, of each clip and of each frame position, and its protocol."""

    metrics: dict[str, float]
    """Each metric's mean over clips, and the Frechet distance of the whole set."""
    per_clip: list[dict[str, float | str]]
    """Each clip's metrics, with its file (`source`) and first frame (`start`)."""
    per_frame: dict[str, list[float]]
    """Mean over clips at each frame position, of PSNR (of that frame alone), SSIM and LPIPS."""
    protocol: EvaluationRecord
    """What was measured and how."""
    per_pass: dict[str, list[float]] = field(default_factory=dict)
    """Mean over clips after each pass of round trips, see `RoundTrips`; empty without them."""
    speed: Speed | None = None
    """How fast the autoencoder is, if that was requested."""

    def write(self, folder: Path) -> None:
        """Write metrics.json, clips.json, frames.json, frames.png and protocol.json into a folder.

        An evaluation of round trips also writes round_trips.json and round_trips.png, one of speed speed.json.
        """
        # protocol.json marks a complete evaluation: remove it first, and write it last.
        (folder / PROTOCOL_FILE).unlink(missing_ok=True)
        write_json(folder / METRICS_FILE, self.metrics)
        write_json(folder / CLIPS_FILE, self.per_clip)
        write_json(folder / FRAMES_FILE, self.per_frame)
        plot_frames({"": self.per_frame}, folder / "frames.png")
        passes_plot = folder / "round_trips.png"
        if self.per_pass:
            write_json(folder / ROUND_TRIPS_FILE, self.per_pass)
            plot_passes(self.per_pass, passes_plot)
        else:  # remove those of an earlier evaluation
            (folder / ROUND_TRIPS_FILE).unlink(missing_ok=True)
            passes_plot.unlink(missing_ok=True)
        if self.speed is None:
            (folder / SPEED_FILE).unlink(missing_ok=True)
        else:
            write_json(folder / SPEED_FILE, asdict(self.speed))
        write_json(folder / PROTOCOL_FILE, asdict(self.protocol))

    def print_to(self, console: Console) -> None:
        """Print each metric with its better direction, the passes of round trips, and why a metric is missing."""
        table = Table("metric", "mean", "better", title=describe_clips(asdict(self.protocol)))
        for name in self.protocol.metrics:
            table.add_row(name, f"{self.metrics[name]:.4f}", self.protocol.better[name])
        console.print(table)
        if self.per_pass:
            columns = [name.removeprefix("round_trip_") for name in self.per_pass]
            passes = Table("pass", *columns, title="round trips")
            for number, values in enumerate(zip(*self.per_pass.values(), strict=True), start=1):
                passes.add_row(str(number), *[f"{value:.3f}" for value in values])
            console.print(passes)
        if self.speed is not None:
            console.print(_speed_table(self.speed, self.protocol.speed))
        for name, reason in self.protocol.absent.items():
            console.print(f"no {name}: {reason}", soft_wrap=True)


@dataclass(frozen=True)
class SavedEvaluation:
    """An evaluation as its files hold it. A protocol of an older version lacks fields."""

    protocol: dict[str, Any]
    """The content of protocol.json."""
    metrics: dict[str, float]
    """See `Evaluation.metrics`."""
    per_clip: list[dict[str, float | str]]
    """See `Evaluation.per_clip`."""

    @staticmethod
    def read(folder: Path) -> "SavedEvaluation":
        """Read an evaluation from its output folder.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, or the files do not fit each other.
        """
        if not (folder / PROTOCOL_FILE).exists():
            contract = f"the output folder of an evaluation, with {PROTOCOL_FILE}"
            got = "another one" if folder.is_dir() else "no folder"
            remedy = "Pass the `--output` of `telecine evaluate`."
            raise argument_error(str(folder), contract, got, remedy, FileNotFoundError)
        protocol = read_json(folder / PROTOCOL_FILE)
        metrics = read_json(folder / METRICS_FILE)
        contract = "an evaluation as it was written"
        remedy = "Evaluate again."
        try:
            with named_errors(folder / CLIPS_FILE):
                clips = json.loads((folder / CLIPS_FILE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise argument_error(
                str(folder / CLIPS_FILE), "JSON", f"other text ({error})", remedy
            ) from error
        # The record of an older version gets defaults here, such as the present versions, which would be wrong in what
        # is returned.
        record = as_dataclass(
            EvaluationRecord, protocol, str(folder / PROTOCOL_FILE), contract, remedy
        )
        values = {"protocol": protocol, "metrics": metrics, "per_clip": clips}
        saved = as_dataclass(SavedEvaluation, values, str(folder), contract, remedy)
        clip_keys = {"source"}
        for name in record.metrics:
            if name not in METRICS or METRICS[name].is_per_clip:
                clip_keys.add(name)
        is_whole = (
            record.metrics.keys() <= record.better.keys()
            and record.metrics.keys() <= saved.metrics.keys()
            and all(clip_keys <= clip.keys() for clip in saved.per_clip)
            and len(saved.per_clip) == record.num_clips > 0
        )
        if not is_whole:
            raise argument_error(
                str(folder), contract, "other clips or metrics than in its protocol", remedy
            )
        return saved


def _speed_table(speed: Speed, conditions: Mapping[str, object]) -> Table:
    size = f"{conditions['num_frames']} x {conditions['height']} x {conditions['width']}"
    device = f"{conditions['device']}, threads: {conditions['threads']}"
    title = f"speed of a clip of {size}, {conditions['dtype']}, {device}"
    table = Table("", "frames/s", "slowest to fastest", "GFLOP", "MiB", "weights", title=title)
    for name, part in speed.parts.items():
        table.add_row(
            name,
            f"{part.frames_per_second:.4g}",
            f"{part.slowest:.4g} to {part.fastest:.4g}",
            f"{part.flops / 1e9:.4g}",
            f"{part.memory / 2**20:.4g}",
            f"{part.weights:,}",
        )
    return table
