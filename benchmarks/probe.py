"""Probe a model's latent beside two controls of its size, the best linear autoencoder and noise: a page and its table.

    python benchmarks/probe.py MODEL [MODEL ...] --data DIR --val_data DIR -o FOLDER [--steps 3000] [--seed 0]

Other models are probed beside the first one, on clips of its size. All figures are of clips of `--val_data`, which
the probes do not see. With three models or more, the last table has the rank correlation (Spearman's) of each figure of
`telecine latents` with the probe's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import measure
import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from telecine.base.checks import argument_error
from telecine.base.devices import pick_device
from telecine.base.shapes import Video
from telecine.base.terminal import PlainConsole
from telecine.data import ClipDataset
from telecine.evaluation.load_model import load_with_clips
from telecine.models import CausalVAE, DeterministicPosterior
from telecine.settings import ClipConfig, LatentsConfig, ProbeConfig
from telecine.tools.latents.measures import measure_latent_spaces
from telecine.tools.latents.page import write_latents
from telecine.tools.latents.probe import train_probe
from telecine.tools.latents.space import LatentSpace
from telecine.training.clips import Spans

NUM_FITTED = 300
Figures = dict[str, float]


class Linear(CausalVAE):
    """The best linear autoencoder: principal components of patches, whitened."""


class Noise(CausalVAE):
    """Has noise in the place of its latent, which depends on the video alone."""

    def encode(self, video: Video) -> DeterministicPosterior:
        """Return noise of the size of the latent."""
        mean = super().encode(video).mode()
        seeds = video.double().flatten(1).sum(1).mul(1e6).long().tolist()
        noise = [
            torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(abs(seed)))
            for seed in seeds
        ]
        return DeterministicPosterior(torch.stack(noise).to(mean))

    def decode(self, latent: Tensor, noise: Video | None = None) -> Video:
        """Return grey."""
        return torch.zeros_like(super().decode(latent))


def controls(model: str, config: LatentsConfig) -> list[CausalVAE]:
    """Return the linear autoencoder of a model's size, fitted to training clips, and the noise."""
    source = load_with_clips(model, config, pick_device(config.device))
    clips = source.clips
    assert isinstance(clips, ClipConfig)  # these settings have no protocol
    if not isinstance(source.model, CausalVAE):
        raise argument_error(
            "model", "one of telecine's own", f"a {type(source.model).__name__}", "Use another one."
        )
    videos = ClipDataset(Spans.find(config.data, config.probe.val_data, clips).train, clips)
    torch.manual_seed(0)
    linear, noise = Linear(source.model.config), Noise(source.model.config)
    fitted = source.model.linear_autoencoder(clips.num_frames, clips.height, clips.width)
    linear.copy_linear(fitted.fit(videos[number]["video"][None] for number in range(NUM_FITTED)))
    return [linear, noise]


def figures_of(space: LatentSpace) -> Figures:
    """Return the figures of a model, with the correlation of neighbours in space and time."""
    lags = {axis: space.autocorrelation[axis] for axis in ("space", "time")}
    return {
        f"correlation of neighbours in {axis}": each[0] for axis, each in lags.items() if each
    } | space.table_values()


def table_of_correlations(figures: Sequence[Figures]) -> str:
    """Return the table of the rank correlations of all figures with those of the probe."""
    columns = {
        name: [each[name] for each in figures]
        for name in figures[0]
        if all(name in each for each in figures)
    }
    probed = [name for name in columns if name.startswith("probe") and "seconds" not in name]
    names = [name for name in columns if not name.startswith("probe")]
    rows = [
        [title, *(rank_correlation(columns[title], columns[name]) for name in names)]
        for title in probed
    ]
    return measure.table(["rank correlation", *names], rows)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> str:
    """Return Spearman's rank correlation as a cell, not available if all values of one are the same."""
    if len({*a}) == 1 or len({*b}) == 1:
        return measure.NOT_AVAILABLE
    return f"{float(spearman_corrcoef(torch.tensor(a), torch.tensor(b))):+.2f}"


def main() -> None:
    """Probe the models and the controls, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="runs, checkpoints or saved autoencoders")
    parser.add_argument("--data", required=True, help="training videos")
    parser.add_argument("--val_data", required=True, help="unseen videos")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the page")
    for name in ("num_frames", "height", "width", "max_clips"):
        parser.add_argument(
            f"--{name}", type=int, help="of the clips; by default as in the first model's run"
        )
    parser.add_argument("--features", help="network of the Frechet distances of `telecine latents`")
    for name in ("steps", "num_clips", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(ProbeConfig, name))
    options = vars(parser.parse_args())
    models, output = options.pop("models"), options.pop("output")
    probe = ProbeConfig(
        **{name: options.pop(name) for name in ("val_data", "steps", "num_clips", "seed")}
    )
    config = LatentsConfig(**options, probe=probe)
    train_one = partial(train_probe, folder=output / "probe", console=PlainConsole())
    first = load_with_clips(models[0], config, pick_device(config.device)).clips
    config = replace(
        config,
        **{name: getattr(first, name) for name in ("num_frames", "height", "width", "stride")},
    )
    report = measure_latent_spaces(
        [*models, *controls(models[0], config)],
        replace(config, data=probe.val_data),
        partial(train_one, config=config),
    )
    report.print_to(PlainConsole())
    if len(models) > 2:
        print(
            f"\n{table_of_correlations([figures_of(space) for space in report.models[: len(models)]])}\n"
        )
    print(f"written to {write_latents(report, output)}")


if __name__ == "__main__":
    main()
