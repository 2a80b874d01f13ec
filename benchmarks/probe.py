"""Train a small generator on the latents of autoencoders, and measure it on unseen videos: Markdown tables.

    python benchmarks/probe.py MODEL [MODEL ...] --data DIR [--val_data DIR] -o FOLDER [--steps 3000] [--controls]
        [--latents]

Each model's generator is trained by flow matching on the same clips, with as many updates, and is an ordinary run in
FOLDER; the same command again resumes it. The tables have its velocity loss beside that of the best linear denoiser.
With `--latents` two more have figures of `telecine latents` on the same clips, and how well each of them predicts the
order of the models: Spearman's rank correlation with the share and with the velocity loss.

FOLDER also has `probe.json` and, for each model, a video of unseen clips, their reconstructions and samples. The
results of 2026-11-28 are those of

    python benchmarks/videos.py runs/videos
    telecine train --config demo --steps 600 --objective.adversarial_loss_weight 0 --discriminator.video none
    python benchmarks/probe.py runs/demo --data runs/videos/seen --val_data runs/videos/unseen -o runs/probe \\
        --steps 500 --num_clips 256 --num_frames 9 --height 64 --width 64 --max_clips 30 --device cpu --controls
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import measure
import torch
from probe_denoiser import SIZES
from probe_measures import LEVELS, LatentProbe
from probe_runs import ProbeConfig, probe
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from telecine.autoencoders import CausalVAE, DeterministicPosterior
from telecine.base.checks import argument_error
from telecine.base.devices import pick_device
from telecine.base.files import write_json
from telecine.base.shapes import Video
from telecine.base.terminal import PlainConsole
from telecine.data import ClipDataset
from telecine.evaluation.latents import measure_latent_spaces
from telecine.evaluation.source import ModelSource, model_source, open_model
from telecine.settings import ClipConfig, LatentsConfig, MeasuredClips
from telecine.training.clips import Spans

NUM_FITTED = 300
# Figures of `telecine latents` that are the same for all of these models, or say nothing about a generator.
_OMITTED = ("dead channels", "mean std", "high frequencies of the video")
Figures = dict[str, float]
_SIZE_OF_CLIPS = ("num_frames", "height", "width", "stride")


class Linear(CausalVAE):
    """The best linear autoencoder: principal components of patches, whitened."""


class Noise(CausalVAE):
    """Has noise in the place of its latent, which depends on the video alone."""

    def encode(self, video: Video) -> DeterministicPosterior:
        """Return noise of the size of the latent."""
        mean = super().encode(video).mode()
        seeds = video.double().flatten(1).sum(1).mul(1e6).long().tolist()
        noise = [torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(abs(seed))) for seed in seeds]
        return DeterministicPosterior(torch.stack(noise).to(mean))

    def decode(self, latent: Tensor, noise: Video | None = None) -> Video:
        """Return grey."""
        return torch.zeros_like(super().decode(latent))


def open_sources(
    models: Sequence[str], measured: MeasuredClips, config: ProbeConfig, *, with_controls: bool
) -> list[ModelSource]:
    """Return the models, and the controls of the first one if asked for, with clips of the size of the first one's."""
    device = pick_device(measured.device)
    first, _ = open_model(models[0], measured, device)
    same = replace(measured, **_size_of(first))
    others = [*models[1:], *(controls(first, measured, config) if with_controls else [])]
    return [first, *(model_source(model, same, device) for model in others)]


def _size_of(source: ModelSource) -> dict[str, Any]:
    return {name: getattr(source.clips, name) for name in _SIZE_OF_CLIPS}


def controls(source: ModelSource, measured: MeasuredClips, config: ProbeConfig) -> list[CausalVAE]:
    """Return the linear autoencoder of a model's size, fitted to training clips, and the noise."""
    model, clips = source.model, source.clips
    assert isinstance(clips, ClipConfig)  # these settings have no protocol
    if not isinstance(model, CausalVAE):
        got = f"a {type(model).__name__}"
        raise argument_error("model", "telecine's own with `--controls`", got, "Leave out `--controls`.")
    videos = ClipDataset(Spans.find(measured.data, config.val_data, clips).train, clips)
    torch.manual_seed(0)
    linear, noise = Linear(model.config), Noise(model.config)
    fitted = model.linear_autoencoder(clips.num_frames, clips.height, clips.width)
    linear.start_from(fitted.fit(videos[number]["video"][None] for number in range(NUM_FITTED)))
    return [linear, noise]


def table_of_figures(probes: Mapping[str, LatentProbe]) -> str:
    """Return the table of each model's figures."""
    distances = dict.fromkeys(name for each in probes.values() for name in each.frechet)
    header = ["latent", "velocity loss", "share of the linear denoiser's", "seconds", *distances]
    rows = [
        [
            name,
            f"{sum(each.losses) / len(LEVELS):.3f}",
            f"{each.share:.3f}",
            f"{each.seconds:.0f}",
            *(f"{each.frechet[pair]:.4g}" if pair in each.frechet else measure.NOT_AVAILABLE for pair in distances),
        ]
        for name, each in probes.items()
    ]
    return measure.table(header, rows)


def table_of_shares(probes: Mapping[str, LatentProbe]) -> str:
    """Return the table of each model's velocity loss as a share of the linear denoiser's, by the level of the noise."""
    rows = [
        [name, *(f"{a / b:.3f}" for a, b in zip(each.losses, each.linear_losses, strict=True))]
        for name, each in probes.items()
    ]
    return measure.table(["latent", *map(str, LEVELS)], rows)


def latent_figures(sources: Sequence[ModelSource], measured: MeasuredClips, config: ProbeConfig) -> list[Figures]:
    """Return figures of `telecine latents` about each model, on the unseen clips."""
    values = asdict(measured) | _size_of(sources[0]) | {"data": config.val_data}
    found = []
    for space in measure_latent_spaces([source.model for source in sources], LatentsConfig(**values)).models:
        lags = {axis: space.autocorrelation[axis] for axis in ("space", "time")}
        neighbours = {f"correlation of neighbours in {axis}": each[0] for axis, each in lags.items() if each}
        found.append({name: value for name, value in space.figures().items() if name not in _OMITTED} | neighbours)
    return found


def tables_of_latents(probes: Mapping[str, LatentProbe], latents: Sequence[Figures]) -> str:
    """Return the table of the figures, and that of their rank correlations with those of the probe, over the models."""
    names = [name for name in latents[0] if all(name in each for each in latents)]
    rows = [[title, *(f"{each[name]:.4g}" for name in names)] for title, each in zip(probes, latents, strict=True)]
    of_probe = {
        "share of the linear denoiser's": [each.share for each in probes.values()],
        "velocity loss": [sum(each.losses) for each in probes.values()],
    }
    correlations = [
        [title, *(rank_correlation(values, [each[name] for each in latents]) for name in names)]
        for title, values in of_probe.items()
    ]
    return "\n\n".join(
        [measure.table(["latent", *names], rows), measure.table(["rank correlation", *names], correlations)]
    )


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> str:
    """Return Spearman's rank correlation as a cell, not available if all values of one are the same."""
    if len({*a}) == 1 or len({*b}) == 1:
        return measure.NOT_AVAILABLE
    return f"{float(spearman_corrcoef(torch.tensor(a), torch.tensor(b))):+.2f}"


def parse_arguments() -> argparse.Namespace:
    """Return the arguments: options have the names of the fields of `MeasuredClips` and `ProbeConfig`."""
    default = {each.name: each.default for each in fields(ProbeConfig)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="runs, checkpoints, saved autoencoders or names on the Hub")
    parser.add_argument("--data", required=True, help="training videos")
    parser.add_argument("--val_data", help="unseen videos; by default a tenth of ten training videos or more")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder, made if needed")
    parser.add_argument("--controls", action="store_true", help="also the linear autoencoder of this size, and noise")
    parser.add_argument("--latents", action="store_true", help="also figures of `telecine latents`, and correlations")
    parser.add_argument("--size", choices=[*SIZES], default=default["size"], help="of the transformer")
    parser.add_argument("--causal", action="store_true", help="attend to no later latent frame")
    for name in ("steps", "batch_size", "num_clips", "seed"):
        parser.add_argument(f"--{name}", type=int, default=default[name])
    parser.add_argument("--lr", type=float, default=default["lr"])
    parser.add_argument("--features", help="network of the Frechet distances, see `telecine evaluate`")
    for name in _SIZE_OF_CLIPS:
        parser.add_argument(f"--{name}", type=int, help="of a clip; by default as in the first model's run")
    parser.add_argument("--max_clips", type=int, help="unseen clips, 100 by default")
    parser.add_argument("--weights", choices=["ema", "model"], default="ema")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    return parser.parse_args()


def _settings(kind: type[Any], options: argparse.Namespace) -> Any:
    known = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in vars(options).items() if name in known})


def main() -> None:
    """Train, measure, print the tables, and write them as JSON."""
    options = parse_arguments()
    if options.latents and options.val_data is None:
        remedy = "Add `--val_data my_unseen_videos/`."
        raise argument_error("val_data", "given with `--latents`, which measures its clips", "nothing", remedy)
    measured, config = _settings(MeasuredClips, options), _settings(ProbeConfig, options)
    sources = open_sources(options.models, measured, config, with_controls=options.controls)
    probes = {source.title: probe(source, measured, config, options.output, PlainConsole()) for source in sources}
    latents = latent_figures(sources, measured, config) if options.latents else [{} for _ in sources]
    pairs = zip(probes.items(), latents, strict=True)
    models = [{"title": title, **asdict(each), "latent": figures} for (title, each), figures in pairs]
    clips = asdict(measured) | _size_of(sources[0])
    protocol = {"clips": clips, "probe": asdict(config), "levels": LEVELS, "machine": measure.machine()}
    write_json(options.output / "probe.json", {"models": models, "protocol": protocol})
    print(f"\n{table_of_figures(probes)}\n\n{table_of_shares(probes)}\n")
    if options.latents:
        print(f"{tables_of_latents(probes, latents)}\n")
    for reason in dict.fromkeys(each.absent for each in probes.values() if options.features and each.absent):
        print(f"no Frechet distance: {reason}")
    print(f"written to {options.output / 'probe.json'}")


if __name__ == "__main__":
    main()
