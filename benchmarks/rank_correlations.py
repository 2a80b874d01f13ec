"""Rank correlations of figures of latents with those of the probes that `probe.py` trained on them.

    python benchmarks/probe.py RUN-0 ... --data runs/videos/seen --val_data runs/videos/unseen -o ... --seed 0 > LOG-0
    python benchmarks/rank_correlations.py LOG-0 [LOG-1 ...] --videos runs/videos -o FIGURES

A log has the models of a seed, whose names end with it. Clips have 5 x 64 x 64 pixels, as those of the probes, and are
of videos that neither models nor probes saw. Figures are written to a JSON file for each model; a second call computes
what is missing, and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from latent_study import (
    NUM_UNSEEN,
    Data,
    correlations,
    encoded,
    figures_of,
    read_unseen,
    shares_of,
    table_of,
)
from torch import Tensor

from telecine.base.files import write_json
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.evaluation.load_model import load_model
from telecine.evaluation.metrics.frechet import TransNetFeatures, frechet_distance
from telecine.models import CausalVAE
from telecine.models.diffusers.denoiser import LatentDenoiser
from telecine.models.latent_shards import LatentShards
from telecine.settings import EvaluateConfig
from telecine.settings.parse import read_config
from telecine.tools.latents.denoising import WienerFilter
from telecine.tools.latents.generator_quality import interpolated_latents
from telecine.training.tensor_files import EMA

PROBE = re.compile(r"training a generator on the latents of (\S+), weights ema, in (\S+)")
NAMES = ["PSNR", "rFD", "iFD", "VIV", "neighbours, space", "high frequencies", "effective rank"]
SHAPE = (5, 64, 64)
TIME_COMPRESSION = 4
NUM_CLIPS = 264  # more than the 256 features of TransNet V2
SHARES = ["velocity loss", "share", "share at 0.8"]


@torch.no_grad()
def features_of(network: TransNetFeatures, videos: Iterable[Video]) -> Tensor:
    """Return the features of clips, `(N, D)`, of the last frame of each latent frame."""
    return torch.cat([network(video[:, :, ::TIME_COMPRESSION]) for video in videos])


@torch.no_grad()
def measured(
    run: str, probe: Path, unseen: list[Video], network: TransNetFeatures, reference: Tensor
) -> dict[str, float]:
    """Return the figures of a model, and of the probe that was trained on its latents."""
    model = load_model(run, EvaluateConfig(device="cpu"), torch.device("cpu")).eval()
    assert isinstance(model, CausalVAE)
    figures = figures_of(model, Data([], unseen))
    latents = encoded(model, unseen)
    for name, changed in {"rFD": latents, "iFD": interpolated_latents(latents)}.items():
        decoded = [model.decode(latent).clamp(*VALUE_RANGE) for latent in changed.split(8)]
        features = features_of(network, decoded)
        figures[name] = frechet_distance(features=features, reference=reference)
    settings = read_config(str(probe / "config.yaml"))
    assert settings.latent_cache is not None
    shards = LatentShards(settings.latent_cache)
    trained_on = shards.stacked(shards.names)["mean"]
    denoiser = LatentDenoiser(model, trained_on)
    denoiser.load_weights(max((probe / "checkpoints").iterdir()) / EMA)
    linear = WienerFilter.fit(denoiser.normalised(trained_on))
    figures |= shares_of(denoiser, linear, latents[:NUM_UNSEEN], settings.seed)
    return {**figures, "channels": latents.shape[1]}


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", type=Path, nargs="+", help="what probe.py printed, for each seed")
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos.py")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the figures")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    unseen = read_unseen(options.videos, SHAPE, NUM_CLIPS)
    network = TransNetFeatures(torch.device("cpu"))
    reference = features_of(network, unseen)
    rows: dict[str, list[dict[str, float]]] = {}
    for log in options.logs:
        for run, probe in PROBE.findall(log.read_text()):
            name = Path(run).name
            file = options.output / f"{name}.json"
            if not file.is_file():
                write_json(file, measured(run, Path(probe), unseen, network, reference))
                print(name, file.read_text(), flush=True)
            rows.setdefault(name.rpartition("-")[0], []).append(json.loads(file.read_text()))
    print(table_of(NAMES, rows, "model"), "\n")
    print(table_of(["PSNR", *SHARES], rows, "model"), "\n")
    alike = [name for name, figures in rows.items() if figures[0]["channels"] == 16]
    for names in (list(rows), alike):
        print(correlations(rows, names), "\n")


if __name__ == "__main__":
    main()
