"""The runs of `probe.py`: each trains a small generator on the latents of a model, and is measured on unseen videos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from probe_denoiser import LatentDenoiser
from probe_measures import NUM_SHOWN, LatentProbe, WienerFilter, measure_denoiser
from rich.console import Console
from torch import Tensor

from telecine.autoencoders import VideoAutoencoder
from telecine.autoencoders.pretrained import digest_of_encoder
from telecine.base.checks import argument_error
from telecine.base.frozen import Frozen
from telecine.base.shapes import Video
from telecine.base.terminal import with_progress
from telecine.data import ClipDataset
from telecine.data.validation import iterate_validation_clips
from telecine.evaluation.source import ModelSource
from telecine.runs import Run
from telecine.settings import ClipConfig, MeasuredClips, ObjectiveConfig, OptimizerConfig, TrainConfig
from telecine.settings.group import PATH, Count, Positive, Settings
from telecine.training.build import build_accelerator
from telecine.training.clips import Spans
from telecine.training.latents import open_cache
from telecine.training.run import train
from telecine.training.tensor_files import EMA


@dataclass(frozen=True)
class ProbeConfig(Settings):
    """A small generator that is trained on the latents, and measured on those of unseen videos."""

    val_data: str | None = field(default=None, metadata=PATH)
    """The unseen videos. Without it, whole videos of the data are held out: a tenth, of ten videos or more."""
    steps: Count = 3000
    """Updates."""
    size: str = "tiny"
    """The transformer, a key of `SIZES`: 2 layers of 96 features ("tiny", for a CPU), 12 of 384 or 12 of 768."""
    causal: bool = False
    """Let a latent frame attend to itself and earlier frames alone."""
    batch_size: Count = 16
    """Clips in an update."""
    num_clips: Count = 512
    """Training clips. They are encoded once; a folder beside the run keeps their latents."""
    lr: Positive = 2e-3
    """Learning rate after a warm-up, before half a cosine. Larger sizes need a smaller one."""
    seed: int = 0
    """Seed of the weights, the clips and the noise."""
    features: str | None = field(default=None, metadata=PATH)
    """Network of the Frechet distances between unseen clips, their reconstructions and as many samples, as `telecine
    evaluate` has it: they need more clips than the network has features. Without it, they are not measured."""


def probe(
    source: ModelSource, measured: MeasuredClips, config: ProbeConfig, folder: Path, console: Console | None = None
) -> LatentProbe:
    """Train a generator on the latents of a model, in a run in a folder of `folder`, and return its measures.

    The same call again resumes the run.

    Raises:
        ValueError: The model has no `encode` and `decode`, or there are no unseen videos.
        TrainingError, Interrupted: See `train`.
    """
    name = digest_of_encoder(source.model.latent_model)[:8]
    settings = _train_config(source, measured, config, folder / name)
    spans = Spans.find(settings.data, settings.val_data, settings.clips)
    if {span.info.path for span in spans.train} & {span.info.path for span in spans.held_out}:
        contract, remedy = "ten videos or more, of which some are held out whole", "Add some, or set `--val_data`."
        raise argument_error("data", contract, "fewer", remedy)
    clips = ClipDataset(spans.train, settings.clips, seed=settings.seed)
    known = _latents_of(clips, source.model, f"{folder / name}-latents", build_accelerator(settings))
    set_seed(settings.seed)
    denoiser = LatentDenoiser(source.model, known, size=config.size, causal=config.causal)
    result = train(settings, autoencoder=denoiser, console=console)
    denoiser.load_weights(result.checkpoint / EMA)
    linear = WienerFilter.fit(denoiser.normalised(known.to(denoiser.mean)))
    summary = Run(result.run).summary()
    assert summary is not None

    def videos() -> Iterator[Video]:
        clips = iterate_validation_clips(spans.held_out, settings.clips, measured.clip_limit)
        return (clip["video"][None].to(denoiser.mean) for clip in clips)

    return measure_denoiser(
        denoiser.eval(),
        linear,
        videos,
        folder / f"{name}.mp4",
        seed=config.seed,
        features=config.features,
        seconds=summary.seconds,
    )


def _train_config(source: ModelSource, measured: MeasuredClips, config: ProbeConfig, folder: Path) -> TrainConfig:
    """Return the settings of the run: the squared error of the velocity alone, and clips without augmentation."""
    clips = source.clips
    assert isinstance(clips, ClipConfig)  # these settings have no protocol
    return TrainConfig(
        data=measured.data,
        val_data=config.val_data,
        output_dir=str(folder),
        steps=config.steps,
        batch_size=config.batch_size,
        seed=config.seed,
        device=measured.device,
        val_every=config.steps,
        val_clips=NUM_SHOWN,
        save_every=max(1, config.steps // 4),
        latent_clips=0,
        latent_cache=f"{folder}-latents",
        linear_baseline=False,
        linear_start=False,
        trackers=(),
        clips=replace(clips, num_clips=config.num_clips, random_flip=False),
        objective=ObjectiveConfig(perceptual_weight=0.0),
        optimizer=OptimizerConfig(
            lr=config.lr, betas=(0.9, 0.99), warmup_steps=min(100, config.steps // 10), schedule="cosine"
        ),
    )


@torch.no_grad()
def _latents_of(clips: ClipDataset, model: VideoAutoencoder, folder: str, accelerator: Accelerator) -> Tensor:
    """Return the latents of the training clips, on the CPU; the run's cache, in a folder, has them then."""
    cache = open_cache(folder, Frozen(model).module, clips, accelerator)
    assert cache is not None
    assert clips.config.num_clips is not None
    names = clips.names_of([(0, number) for number in range(clips.config.num_clips)])
    for number, name in enumerate(with_progress(names, "encoding")):
        if name not in cache:
            video = clips[0, number]["video"][None].to(next(model.parameters()).device)
            cache.add([name], model.latent_model.encode(video))
    cache.write()
    return cache.read(names, torch.device("cpu")).mode()
