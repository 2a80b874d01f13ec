"""The probe of a latent: a small generator is trained on it, in a run of its own, and measured on unseen videos."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.frozen import freeze
from telecine.base.randomness import seed_of
from telecine.base.shapes import Video
from telecine.base.terminal import with_progress
from telecine.data import ClipDataset, Span, iterate_validation_clips, read_validation_clips
from telecine.data.fingerprint import fingerprint_of
from telecine.evaluation.load_model import MeasuredModel
from telecine.evaluation.metrics.frechet import features_of, load_frechet_network
from telecine.models import VideoAutoencoder
from telecine.models.diffusers.denoiser import LatentDenoiser
from telecine.models.pretrained import digest_of_tensors
from telecine.runs import Run
from telecine.settings import (
    ClipConfig,
    LatentsConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ProbeConfig,
    TrainConfig,
)
from telecine.tools.latents.denoising import (
    NUM_SHOWN,
    LatentProbe,
    measure_denoiser,
)
from telecine.tools.latents.generator_quality import check_enough_clips
from telecine.tools.latents.wiener import WienerFilter
from telecine.training.build import build_accelerator
from telecine.training.clips import Spans
from telecine.training.latent_cache import identity_of, open_cache
from telecine.training.run import train
from telecine.training.tensor_files import EMA


def train_probe(
    measured: MeasuredModel, config: LatentsConfig, folder: Path, console: Console
) -> LatentProbe:
    """Train a generator on the latents of a model, in a run of its own, and return its measures.

    The same call again resumes the run; another model, other files, clips or settings have another run.

    Args:
        measured: The model, and the clips.
        config: The settings; those of the generator are `config.probe`.
        folder: Has the folders of the run and of the latents, and the video of samples.
        console: Where the progress is printed.

    Raises:
        ValueError: The model has no `encode` and `decode`, there are no unseen videos, or too few clips of them for the
            Frechet distances.
        TrainingError: See `train`.
        Interrupted: See `train`.
    """
    probe = config.probe
    model = measured.model
    device = next(model.parameters()).device
    settings = _train_config(measured.clips, config)
    spans = Spans.find(settings.data, settings.val_data, settings.clips)
    _check_unseen(spans, settings.clips, probe.val_data)
    unseen_videos = partial(
        _read_unseen, spans.held_out.exact, settings.clips, config.clip_limit, device
    )
    network = load_frechet_network(probe.features, settings.clips, device)
    if network is not None:
        features = features_of(unseen_videos(), network)
        check_enough_clips(
            features, name="probe.features", value=probe.features, clips="unseen videos"
        )

    clips = ClipDataset(spans.train, settings.clips, seed=settings.seed)
    accelerator = build_accelerator(settings)
    latents_identity = repr(identity_of(model.encoder_model, clips, accelerator.mixed_precision))
    name = _run_name(latents_identity, model, spans.held_out.exact, probe)
    cache = str(folder / f"{_folder_name(latents_identity)}-latents")
    settings = replace(settings, output_dir=str(folder / name), latent_cache=cache)
    latents = _cached_latents(clips, model, cache, accelerator)

    text = f"training a generator on the latents of {measured.title}, in {settings.output_dir}"
    console.print(text, soft_wrap=True)
    set_seed(settings.seed)
    denoiser = LatentDenoiser(model, latents, size=probe.size, causal=probe.causal)
    linear = WienerFilter.fit(denoiser.normalised(latents.to(denoiser.mean)))
    # The same files may have moved. Other files have another run, see `_run_name`.
    result = train(settings, autoencoder=denoiser, console=console, change_data=True)
    denoiser.load_weights(result.checkpoint / EMA)
    summary = Run(result.run).summary()
    assert summary is not None
    samples = folder / f"{name}.mp4"
    return measure_denoiser(
        denoiser.eval(), linear, unseen_videos, samples, probe.seed, network, summary.seconds
    )


def _check_unseen(spans: Spans, clips: ClipConfig, val_data: str | None) -> None:
    """Raise a `ValueError` unless there are unseen videos, none of which is trained on, and one can be read."""
    train_files = {span.source for span in spans.train}
    if any(span.source in train_files for span in spans.held_out):
        if val_data is not None:
            contract = "other videos than `data`"
            raise argument_error("probe.val_data", contract, val_data, "Name unseen videos.")
        contract = "ten videos or more, of which some are held out whole"
        raise argument_error("data", contract, "fewer", "Add some, or set `probe.val_data`.")
    read_validation_clips(spans.held_out.exact, clips, 1, name="probe.val_data")


def _read_unseen(
    spans: Sequence[Span], clips: ClipConfig, max_clips: int, device: torch.device
) -> Iterator[Video]:
    """Yield unseen clips, each `(1, C, T, H, W)`."""
    for clip in iterate_validation_clips(spans, clips, max_clips):
        yield clip["video"][None].to(device)


def _run_name(
    latents_identity: str, model: VideoAutoencoder, held_out: Sequence[Span], probe: ProbeConfig
) -> str:
    """Return the name of the run of a generator, which depends on all that it is trained and measured on."""
    weights = digest_of_tensors(model.named_parameters())
    unseen = []
    for span in held_out:
        unseen.append((fingerprint_of(span.info.source), span.first_frame, span.last_frame))
    # The network of the Frechet distances only measures the generator.
    return _folder_name(
        latents_identity, weights, repr(unseen), repr(replace(probe, features=None))
    )


def _folder_name(*texts: str) -> str:
    """Return a hash of texts."""
    return f"{seed_of(*texts):x}"


def _train_config(clips: ClipConfig, config: LatentsConfig) -> TrainConfig:
    """Return the settings of the run: the squared error of the velocity alone, and clips without augmentation.

    The data is indexed ahead: latents are cached before the run, by exact indices.
    """
    probe = config.probe
    holdout = clips.holdout
    if holdout.startswith("column:"):  # the data is a folder or a video, which has no columns
        holdout = "file"
    warmup_steps = min(100, probe.steps // 10)
    return TrainConfig(
        data=config.data,
        val_data=probe.val_data,
        steps=probe.steps,
        batch_size=probe.batch_size,
        seed=probe.seed,
        device=config.device,
        val_every=probe.steps,
        val_clips=NUM_SHOWN,
        save_every=max(1, probe.steps // 4),
        latent_clips=0,
        linear_baseline=False,
        linear_start=False,
        trackers=(),
        clips=replace(
            clips, index="ahead", holdout=holdout, num_clips=probe.num_clips, random_flip=False
        ),
        objective=ObjectiveConfig(perceptual_weight=0.0),
        optimizer=OptimizerConfig(
            lr=probe.lr, betas=(0.9, 0.99), warmup_steps=warmup_steps, schedule="cosine"
        ),
    )


@torch.no_grad()
def _cached_latents(
    clips: ClipDataset, model: VideoAutoencoder, folder: str, accelerator: Accelerator
) -> Tensor:
    """Return the latents of the training clips, on the CPU, and leave them in the run's cache, a folder."""
    freeze(model)
    model.eval()
    cache = open_cache(folder, model, clips, accelerator)
    assert cache is not None
    assert clips.config.num_clips is not None
    device = next(model.parameters()).device
    names = clips.names_of([(0, number) for number in range(clips.config.num_clips)])
    for number, name in enumerate(with_progress(names, "encoding")):
        if name not in cache:
            video = clips[0, number]["video"][None].to(device)
            cache.add([name], model.encoder_model.encode(video))
    cache.write()
    return cache.read(names, torch.device("cpu")).mode()
