"""Rank correlations of figures of latents with the shares of the probe, over thirteen models of several seeds.

    python benchmarks/rank_correlations.py runs/none-0 runs/equivariance-0 ... --videos runs/videos -o FIGURES

The runs are those of `results/2026-11-28-probe-order.md`, whose shares are the means over three seeds; their names are
those of its rows, or of `ROWS`, with a seed. Figures are of clips of 5 x 64 x 64 pixels of the unseen videos. They are
written to a JSON file for each run; a second call computes what is missing, and prints the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from latent_study import (
    Data,
    correlations,
    encoded,
    figures_of,
    read_unseen,
    table_of,
)
from torch import Tensor

from telecine.base.files import write_json
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.evaluation.load_model import load_model
from telecine.evaluation.metrics.frechet import TransNetFeatures, frechet_distance
from telecine.models import CausalVAE
from telecine.settings import EvaluateConfig
from telecine.tools.latents.generator_quality import interpolated_latents

SHAPE = (5, 64, 64)
TIME_COMPRESSION = 4
NUM_CLIPS = 264  # more than the 256 features of TransNet V2
NAMES = ["PSNR", "rFD", "iFD", "VIV", "neighbours, space", "high frequencies", "effective rank"]
# The page with the shares of the probe: the columns of its first table, and its rows where they have another name.
PUBLISHED = Path(__file__).parent / "results" / "2026-11-28-probe-order.md"
COLUMNS = {
    "velocity loss": "velocity loss",
    "share": "share of the linear denoiser's",
    "share at 0.8": "share at 0.8",
}
ROWS = {
    "none": "no term, KL 1e-6",
    "kl8": "KL 1e-8",
    "kl4": "KL 1e-4",
    "kl2": "KL 1e-2",
    "ch4": "4 channels",
    "ch8": "8 channels",
    "ch64": "64 channels",
}
OTHER_CHANNELS = ("ch4", "ch8", "ch64")
SAME_AS_NONE = ("kl8", "kl4")


def published_means() -> dict[str, dict[str, float]]:
    """Return the means in the first table of the page, by row and column."""
    rows = []
    for line in PUBLISHED.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            rows.append([cell.strip(" *") for cell in line.strip("|").split("|")])
        elif rows:
            break
    heading, _, *others = rows
    means = {}
    for label, *cells in others:
        numbers = [float(cell.partition(" ±")[0]) for cell in cells]
        means[label] = dict(zip(heading[1:], numbers, strict=True))
    return means


@torch.no_grad()
def features_of(network: TransNetFeatures, videos: Iterable[Video]) -> Tensor:
    """Return the features of clips, `(N, D)`, of the last frame of each latent frame."""
    return torch.cat([network(video[:, :, ::TIME_COMPRESSION]) for video in videos])


@torch.no_grad()
def measured(
    model: CausalVAE, unseen: list[Video], network: TransNetFeatures, reference: Tensor
) -> dict[str, float]:
    """Return the figures of a model."""
    figures = figures_of(model, Data([], unseen))
    latents = encoded(model, unseen)
    for name, changed in {"rFD": latents, "iFD": interpolated_latents(latents)}.items():
        decoded = [model.decode(latent).clamp(*VALUE_RANGE) for latent in changed.split(8)]
        features = features_of(network, decoded)
        figures[name] = frechet_distance(features=features, reference=reference)
    return figures


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos.py")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the figures")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    files = {run: options.output / f"{run.name}.json" for run in options.runs}
    missing = [run for run, file in files.items() if not file.is_file()]
    if missing:
        unseen = read_unseen(options.videos, SHAPE, NUM_CLIPS)
        network = TransNetFeatures(torch.device("cpu"))
        reference = features_of(network, unseen)
    for run in missing:
        model = load_model(run, EvaluateConfig(device="cpu"), torch.device("cpu")).eval()
        assert isinstance(model, CausalVAE)
        write_json(files[run], measured(model, unseen, network, reference))
        print(run, files[run].read_text(), flush=True)
    rows: dict[str, list[dict[str, float]]] = {}
    means = published_means()
    for run, file in files.items():
        name = run.name.rpartition("-")[0]
        published = means[ROWS.get(name, name)]
        shares = {short: published[column] for short, column in COLUMNS.items()}
        rows.setdefault(name, []).append({**json.loads(file.read_text()), **shares})
    print(table_of(NAMES, rows, "model"), "\n")
    alike = [name for name in rows if name not in OTHER_CHANNELS]
    different = [name for name in alike if name not in SAME_AS_NONE]
    for names in (list(rows), different):
        print(correlations(rows, names), "\n")


if __name__ == "__main__":
    main()
