"""The probe of latents: a run that trains a small generator on them, and its measures on unseen videos."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor, nn

from telecine.autoencoders.diffusers.denoiser import LatentDenoiser
from telecine.autoencoders.pretrained import digest_of_encoder
from telecine.base.checks import argument_error
from telecine.base.devices import pick_device
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
from telecine.settings import ClipConfig, LatentsConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from telecine.training.build import build_accelerator
from telecine.training.clips import find_spans
from telecine.training.latents import open_cache
from telecine.training.run import train
from telecine.training.weight_files import EMA

# Training clips whose latents say how to normalise all.
_NUM_NORMALISED = 128
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
    clips = {name: report.protocol[name] for name in ("num_frames", "height", "width")}
    same = replace(config, **clips, stride=report.protocol["frame_stride"])
    sources = (model_source(model, same, pick_device(config.device)) for model in models)
    probes = [_probe(source, same, folder, console) for source in sources]
    spaces = [replace(space, probe=probe) for space, probe in zip(report.models, probes, strict=True)]
    return LatentReport(spaces, {**report.protocol, "probe": asdict(config.probe)})


def _probe(source: ModelSource, config: LatentsConfig, folder: Path, console: Console | None) -> Probe:
    """Train and measure the generator of one model's latents."""
    name, seed = f"probe/{digest_of_encoder(source.model.latent_model)[:8]}", config.probe.seed
    settings = _train_config(source, config, folder / name)
    spans = find_spans(settings.data, settings.val_data, settings.clips)
    if {span.info.path for span in spans.train} & {span.info.path for span in spans.held_out}:
        contract, remedy = "ten videos or more, of which some are held out whole", "Add some, or set `probe.val_data`."
        raise argument_error("data", contract, "fewer", remedy)
    clips = ClipDataset(spans.train, settings.clips, seed=seed)
    numbers = range(min(config.probe.num_clips, _NUM_NORMALISED))
    latents = torch.cat(_encoded(source, (clips[number]["video"][None] for number in numbers), len(numbers)))
    set_seed(seed)
    denoiser = LatentDenoiser(source.model, latents, size=config.probe.size, causal=config.probe.causal)
    result = train(settings, autoencoder=denoiser, console=console)
    denoiser.load_weights(result.checkpoint / EMA)
    denoiser.eval()
    unseen_clips = partial(iterate_validation_clips, spans.held_out, settings.clips, config.clip_limit)
    found = _encoded(source, (clip["video"][None] for clip in unseen_clips()), config.clip_limit)
    unseen = [denoiser.normalised(latent) for latent in found]
    linear = WienerFilter.fit(_training_latents(denoiser, settings, clips))
    network = load_feature_network(config.probe.features, unseen[0].device) if config.probe.features else None
    sets = {
        "unseen clips": (clip["video"][None] for clip in unseen_clips()),
        "reconstructions": map(denoiser.decode, unseen),
        "samples": _samples(denoiser, len(unseen) if network else min(len(unseen), _NUM_SHOWN), seed),
    }
    rows, features = zip(*(_row_and_features(videos, network) for videos in sets.values()), strict=True)
    write_preview(folder / f"{name}.mp4", torch.cat(rows, dim=1), _FPS)
    absent = "needs `probe.features`" if network is None else frechet_undefined(*features)
    pairs = [] if absent else combinations(zip(sets, features, strict=True), 2)
    summary = Run(result.run).summary()
    assert summary is not None
    return Probe(
        losses=velocity_losses(denoiser.velocity, unseen, seed=seed),
        linear_losses=velocity_losses(linear.velocity, unseen, seed=seed),
        patch=linear.patch,
        num_weights=summary.num_trained,
        seconds=summary.seconds,
        picture=f"{name}.mp4",
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
def _encoded(source: ModelSource, videos: Iterable[Video], total: int) -> list[Tensor]:
    """Return the latents of up to `total` clips, on the model's device."""
    model, device = source.model.latent_model, next(source.model.parameters()).device
    return [model.encode(video.to(device)).mode() for video in with_progress(videos, "encoding", total)]


def _training_latents(denoiser: LatentDenoiser, settings: TrainConfig, clips: ClipDataset) -> Tensor:
    """Return the normalised latents of all training clips of the run, on the CPU."""
    cache = open_cache(settings.latent_cache, denoiser, clips, build_accelerator(settings))
    assert cache is not None
    assert clips.config.num_clips is not None
    numbers = range(min(clips.config.num_clips, settings.steps * settings.clips_per_pass))
    names = clips.names_of([(0, number) for number in numbers])
    return denoiser.normalised(cache.read(names, denoiser.mean.device).mode()).cpu()


@torch.no_grad()
def _samples(denoiser: LatentDenoiser, num: int, seed: int) -> Iterator[Video]:
    """Yield the videos of generated latents."""
    generator = torch.Generator().manual_seed(seed)
    for _ in with_progress(range(num), "generating"):
        yield denoiser.decode(denoiser.sample(1, _SAMPLE_STEPS, generator))


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
