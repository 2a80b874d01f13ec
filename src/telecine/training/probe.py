"""The probe of latents: a run that trains a small generator on them, and its measures on unseen videos."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor, nn

from telecine.autoencoders.diffusers.denoiser import LatentDenoiser
from telecine.autoencoders.pretrained import digest_of_encoder
from telecine.base.checks import argument_error
from telecine.base.devices import pick_device
from telecine.base.frozen import Frozen
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.base.terminal import with_progress
from telecine.data import ClipDataset, bytes_from_video
from telecine.data.validation import iterate_validation_clips
from telecine.evaluation.denoising import Probe, WienerFilter, velocity_losses
from telecine.evaluation.frechet import FeatureNetwork, frechet_distance, load_feature_network
from telecine.evaluation.latents import LatentReport
from telecine.evaluation.measure import frechet_undefined
from telecine.evaluation.source import ModelSource, model_source
from telecine.perceptual import as_rgb
from telecine.report.clips import write_preview
from telecine.runs import Run
from telecine.settings import ClipConfig, LatentsConfig, ObjectiveConfig, OptimizerConfig, ProbeConfig, TrainConfig
from telecine.training.build import build_accelerator
from telecine.training.clips import find_spans
from telecine.training.latents import open_cache
from telecine.training.run import train
from telecine.training.weight_files import EMA

_NUM_SHOWN = 6
_SAMPLE_STEPS = 50
_FPS = 8.0


def add_probes(
    report: LatentReport,
    models: Sequence[str | Path | nn.Module],
    config: LatentsConfig,
    folder: Path,
    console: Console | None = None,
) -> LatentReport:
    """Train a generator on the latents of each model of a report, and return the report with its measures.

    Each is a run in a folder of `folder/probe`, with the clips of the report. The same call again resumes it.

    Raises:
        ValueError: A model has no `encode` and `decode`, or there are no unseen videos.
        TrainingError, Interrupted: See `train`.
    """
    clips: dict[str, Any] = {name: report.protocol[name] for name in ("num_frames", "height", "width")}
    same = replace(config, **clips, stride=cast(int, report.protocol["frame_stride"]))
    sources = (model_source(model, same, pick_device(config.device)) for model in models)
    probes = [_probe(source, same, folder, console) for source in sources]
    spaces = [replace(space, probe=probe) for space, probe in zip(report.models, probes, strict=True)]
    return LatentReport(spaces, {**report.protocol, "probe": asdict(config.probe)})


def _probe(source: ModelSource, config: LatentsConfig, folder: Path, console: Console | None) -> Probe:
    """Train and measure the generator of one model's latents."""
    name = f"probe/{digest_of_encoder(source.model.latent_model)[:8]}"
    settings = _train_config(source, config, folder / name)
    spans = find_spans(settings.data, settings.val_data, settings.clips)
    if {span.info.path for span in spans.train} & {span.info.path for span in spans.held_out}:
        contract, remedy = "ten videos or more, of which some are held out whole", "Add some, or set `probe.val_data`."
        raise argument_error("data", contract, "fewer", remedy)
    known = _training_latents(source, settings, ClipDataset(spans.train, settings.clips, seed=settings.seed))
    set_seed(settings.seed)
    denoiser = LatentDenoiser(source.model, known, size=config.probe.size, causal=config.probe.causal)
    result = train(settings, autoencoder=denoiser, console=console)
    denoiser.load_weights(result.checkpoint / EMA)
    linear = WienerFilter.fit(denoiser.normalised(known.to(denoiser.mean)))
    summary = Run(result.run).summary()
    assert summary is not None

    def videos() -> Iterator[Video]:
        clips = iterate_validation_clips(spans.held_out, settings.clips, config.clip_limit)
        return (clip["video"][None].to(denoiser.mean) for clip in clips)

    return _measure(denoiser.eval(), linear, videos, config.probe, folder / f"{name}.mp4", summary.seconds)


def _measure(
    denoiser: LatentDenoiser,
    linear: WienerFilter,
    videos: Callable[[], Iterator[Video]],
    config: ProbeConfig,
    picture: Path,
    seconds: float,
) -> Probe:
    """Return the measures on unseen videos `(1, C, T, H, W)`, and write a picture of some beside samples."""
    latents = [denoiser.normalised(denoiser.encode(video).mode()) for video in videos()]
    network = load_feature_network(config.features, denoiser.mean.device) if config.features else None
    num_samples = len(latents) if network else min(len(latents), _NUM_SHOWN)
    sets = {
        "unseen clips": videos(),
        "reconstructions": map(denoiser.decode, latents),
        "samples": map(denoiser.decode, denoiser.samples(num_samples, _SAMPLE_STEPS, config.seed)),
    }
    rows, features = zip(*(_row_and_features(each, network) for each in sets.values()), strict=True)
    write_preview(picture, torch.cat(rows, dim=1), _FPS)
    absent = "needs `probe.features`" if network is None else frechet_undefined(*features)
    pairs = combinations(() if absent else zip(sets, features, strict=True), 2)
    return Probe(
        losses=velocity_losses(denoiser.velocity, latents, seed=config.seed),
        linear_losses=velocity_losses(linear.velocity, latents, seed=config.seed),
        patch=linear.patch,
        seconds=seconds,
        picture=f"{picture.parent.name}/{picture.name}",
        frechet={f"{b} to {a}": frechet_distance(features=y, reference=x) for (a, x), (b, y) in pairs},
        absent=absent,
    )


def _train_config(source: ModelSource, config: LatentsConfig, folder: Path) -> TrainConfig:
    """Return the settings of the run: the squared error of the velocity alone, and clips without augmentation."""
    probe, clips = config.probe, source.clips
    assert isinstance(clips, ClipConfig)  # these settings have no protocol
    return TrainConfig(
        data=config.data,
        val_data=probe.val_data,
        output_dir=str(folder),
        steps=probe.steps,
        batch_size=probe.batch_size,
        seed=probe.seed,
        device=config.device,
        val_every=probe.steps,
        val_clips=_NUM_SHOWN,
        save_every=max(1, probe.steps // 4),
        latent_clips=0,
        latent_cache=f"{folder}-latents",
        linear_baseline=False,
        linear_start=False,
        trackers=(),
        clips=replace(clips, num_clips=probe.num_clips, random_flip=False),
        objective=ObjectiveConfig(perceptual_weight=0.0),
        optimizer=OptimizerConfig(
            lr=probe.lr, betas=(0.9, 0.99), warmup_steps=min(100, probe.steps // 10), schedule="cosine"
        ),
    )


@torch.no_grad()
def _training_latents(source: ModelSource, settings: TrainConfig, clips: ClipDataset) -> Tensor:
    """Return the latents of the training clips, on the CPU; the run's cache has them then."""
    model = Frozen(source.model).module
    cache = open_cache(settings.latent_cache, model, clips, build_accelerator(settings))
    assert cache is not None
    assert clips.config.num_clips is not None
    names = [clips.names_of([(0, number)])[0] for number in range(clips.config.num_clips)]
    for number, name in enumerate(with_progress(names, "encoding")):
        if name not in cache:
            video = clips[0, number]["video"][None].to(next(model.parameters()).device)
            cache.add([name], model.latent_model.encode(video))
    cache.write()
    return cache.read(names, torch.device("cpu")).mode()


@torch.no_grad()
def _row_and_features(videos: Iterable[Video], network: FeatureNetwork | None) -> tuple[Tensor, Tensor]:
    """Return the first videos beside each other, uint8 `(T, H, W, 3)`, and the features of all, on the CPU."""
    shown: list[Tensor] = []
    features = [torch.empty(0, 0)]
    for video in videos:
        frames = as_rgb(video.clamp(*VALUE_RANGE))
        if len(shown) < _NUM_SHOWN:
            shown.append(bytes_from_video(frames[0]).cpu())
        if network is not None:
            features.append(network(frames).cpu())
    return torch.cat(shown, dim=2), torch.cat(features[1:] or features)
