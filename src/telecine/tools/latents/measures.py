"""Measurement of latents, and of the latent spaces of autoencoders on clips: `telecine latents`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn

from telecine.base.checks import argument_error, check_type
from telecine.base.devices import pick_device
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.base.terminal import with_progress
from telecine.base.yaml_files import read_package_yaml
from telecine.data import DataError, Span, VideoInfo, bytes_from_video, clips_sha256, pixels_sha256
from telecine.evaluation.latent_measures import (
    EPSILON,
    autocorrelation,
    channel_rows,
    code_usage,
    covariance_eigenvalues,
    dead_channels,
    effective_rank,
    high_frequency_share,
    kurtosis,
    num_dead,
    radial_spectrum,
)
from telecine.evaluation.pixel_metrics import psnr
from telecine.evaluation.source import CLIP_SELECTION, ModelSource, model_source, open_model, read_span, select_clips
from telecine.losses import mse
from telecine.losses.latent import resized
from telecine.losses.perceptual import pick_frames
from telecine.models import VideoAutoencoder
from telecine.settings import ClipConfig, LatentsConfig
from telecine.tools.latents.denoising import LEVELS, LatentProbe

NOISE = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)  # standard deviations, in units of each channel's
MAX_LAG = 8
DEFINITIONS: dict[str, str] = read_package_yaml("telecine.evaluation", "definitions.yaml")["latents"]

_HALF = "scale_1/2"
TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    _HALF: lambda x: resized(x, [max(side // 2, 1) for side in x.shape[-2:]]),
    "flip_horizontal": partial(torch.flip, dims=(-1,)),
    "flip_vertical": partial(torch.flip, dims=(-2,)),
    "turn_90": partial(torch.rot90, k=1, dims=(-2, -1)),
    "turn_180": partial(torch.rot90, k=2, dims=(-2, -1)),
    "turn_270": partial(torch.rot90, k=3, dims=(-2, -1)),
}


def _scaled_video(video: Video, latent: Tensor, first_apart: bool) -> Video:
    """Return the video scaled down to its latent, with the last frame that each latent frame depends on."""
    num_latent, num_frames = latent.shape[2], video.shape[2]
    step = (num_frames - first_apart) / max(num_latent - first_apart, 1)
    last = num_frames - 1 - torch.arange(num_latent - 1, -1, -1, device=video.device) * step
    frames = pick_frames(video, last.round().long().expand(len(video), -1))
    return resized(frames.unflatten(0, (len(video), -1)).transpose(1, 2), list(latent.shape[-2:]))


@dataclass(frozen=True)
class Channels:
    """Statistics of each channel, and the indices of dead ones."""

    mean: list[float]
    std: list[float]
    kurtosis: list[float]
    dead: list[int]


@dataclass(frozen=True)
class _Spectrum:
    """Share of the spatial power at each frequency, and at high ones, of the latent and of the scaled-down video."""

    frequency: list[float]
    latent: list[float]
    video: list[float]
    high_frequencies: dict[str, float]


@dataclass(frozen=True)
class LatentSpace:
    """The measures of one model; `DEFINITIONS` says how each is defined."""

    title: str
    shape: list[int]  # of the latent of a clip: channels, frames, height, width
    channels: Channels
    eigenvalues: list[float]
    effective_rank: float
    spectrum: _Spectrum
    autocorrelation: dict[str, list[float]]
    """By "space" and "time" of the latent, "video_space" and "video_time" of the scaled-down video."""
    equivariance: dict[str, dict[str, float]]
    """`mse` and `psnr` by transformation; "none" is the reconstruction."""
    noise_psnr: dict[str, float]
    codes: dict[str, float] = field(default_factory=dict)  # see `code_usage`; empty for a continuous latent
    nested_psnr: dict[str, float] = field(default_factory=dict)
    """By the number of channels to which the latent is cut, of a model with nested channels."""
    drift: dict[str, list[float] | float] = field(default_factory=dict)
    """`correlation` of each channel and `relative_error`, if there is a base model."""
    probe: LatentProbe | None = None  # how well a generator does that was trained on it, if one was

    def figures(self) -> dict[str, float]:
        """Return the figures of a line of a table."""
        changed = [values["mse"] for name, values in self.equivariance.items() if name != "none"]
        without = "" if _HALF in self.equivariance else f" without {_HALF}"
        found = {
            "channels": float(len(self.channels.std)),
            "dead channels": num_dead(self.channels.std),
            "mean std": sum(self.channels.std) / len(self.channels.std),
            "effective rank": self.effective_rank,
            "high frequencies": self.spectrum.high_frequencies["latent"],
            "high frequencies of the video": self.spectrum.high_frequencies["video"],
            "PSNR, dB": self.equivariance["none"]["psnr"],
            "PSNR with noise 0.2, dB": self.noise_psnr["0.2"],
            f"equivariance error{without}, MSE": sum(changed) / len(changed),
        }
        found |= {f"PSNR with {number} channels, dB": value for number, value in self.nested_psnr.items()}
        names = ("codes used", "entropy of the codes, bits", "perplexity of the codes")
        found |= dict(zip(names, self.codes.values(), strict=False))  # as `code_usage` orders them, if any
        if isinstance(drift := self.drift.get("relative_error"), float):
            found["drift from the base"] = drift
        return found | (self.probe.figures() if self.probe else {})


@dataclass(frozen=True)
class LatentReport:
    """The measures of all models on the same clips, and the protocol: the content of `latents.json`."""

    models: list[LatentSpace]
    protocol: dict[str, object]

    def summary(self) -> list[tuple[str, list[str]]]:
        """Return the lines of a table: the name of each figure, and its value of each model."""
        found = [space.figures() for space in self.models]
        names = dict.fromkeys(name for figures in found for name in figures)
        return [(name, [f"{figures[name]:.4g}" if name in figures else "-" for figures in found]) for name in names]

    def print_to(self, console: Console) -> None:
        """Print a few numbers about each model."""
        table = Table("latent", *(Column(space.title, overflow="fold") for space in self.models))
        for name, values in self.summary():
            table.add_row(name, *values)
        console.print(table)


def measure_latent_spaces(
    models: Sequence[str | Path | nn.Module],
    config: LatentsConfig,
    probe: Callable[[ModelSource], LatentProbe] | None = None,
) -> LatentReport:
    """Measure the latents of models on clips of `config.data`.

    `models` are folders of runs, of checkpoints or of saved autoencoders, or modules, at least one. Clips have the size
    of the first one's run. `probe` trains a generator on the latents of a model, see `telecine.tools.latents.probe`.

    Raises:
        ValueError: A model, the data or the size of the clips does not fit; or a model does not offer its latent.
    """
    check_type("config", config, LatentsConfig, 'Use `LatentsConfig(data="my_videos")`.')
    if config.data is None:
        raise argument_error("data", "a file, or a folder of files", "nothing", "Add `--data my_videos/`.")
    device = pick_device(config.device)
    first, infos = open_model(models[0], config, device)
    clips = first.clips
    assert isinstance(clips, ClipConfig)  # these settings have no protocol
    size = {name: getattr(clips, name) for name in ("num_frames", "height", "width")}
    same = replace(config, **size, stride=clips.stride)  # all models encode the same clips
    sources = [first, *(model_source(model, same, device) for model in models[1:])]
    base = None if config.base is None else model_source(config.base, same, device)
    if base is not None:
        blank = [torch.zeros(1, first.model.in_channels, *size.values())]
        for source in sources:
            expected, got = (tuple(_encode_all(each, blank).shape[1:]) for each in (source, base))
            if got != expected:
                contract = f"a model with latents of shape {expected}"
                raise argument_error("base", contract, f"one with {got}", "Leave it out.")
    # The longest part first: it refuses unseen videos that are missing, and resumes if something fails later.
    probes = [None if probe is None else probe(source) for source in sources]
    videos, digest = _find_clips(infos, clips, config.clip_limit)
    reference = None if base is None else _encode_all(base, videos)
    protocol: dict[str, object] = {
        "data": config.data,
        "base": None if base is None else base.title,
        "num_clips": len(videos),
        **size,
        "frame_stride": clips.stride,
        "places": CLIP_SELECTION,
        "clips_sha256": digest,
        "noise_seed": 0,
        "samplers": [source.model.describe_decoding() for source in sources],
        "definitions": DEFINITIONS,
    }
    if probe is not None:
        protocol["probe"] = asdict(config.probe) | {"levels": LEVELS}
    measured = [_measure_space(source, videos, reference, each) for source, each in zip(sources, probes, strict=True)]
    return LatentReport(measured, protocol)


@dataclass(frozen=True)
class _ClipsOnDisk:
    """Clips `(1, 3, T, H, W)` on the CPU, each read when it is needed: all of them may be larger than the memory."""

    spans: Sequence[Span]
    config: ClipConfig

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[Video]:
        for span in self.spans:
            clip = read_span(span, self.config)
            if clip is None:
                contract, got = "readable until the end", f"{span.info.path}, which was before"
                raise argument_error("data", contract, got, "See the log.", DataError)
            yield clip["video"][None]


def _find_clips(infos: Sequence[VideoInfo], clips: ClipConfig, max_clips: int) -> tuple[_ClipsOnDisk, str]:
    spans = select_clips(infos, clips, max_clips)
    found = [
        (span, pixels_sha256(bytes_from_video(clip["video"])))
        for span in with_progress(spans, "reading")
        if (clip := read_span(span, clips)) is not None
    ]
    if not found:
        raise argument_error("data", "files with a decodable clip", f"{len(spans)} broken ones", "See the log.")
    decodable, hashes = zip(*found, strict=True)
    return _ClipsOnDisk(decodable, clips), clips_sha256(hashes)


@torch.no_grad()
def _encode_all(source: ModelSource, videos: _ClipsOnDisk | list[Video]) -> Tensor:
    """Return the latents of clips, `(B, C, t, h, w)` on the CPU."""
    device = next(source.model.parameters()).device
    latents = []
    for video in with_progress(videos, "encoding", total=len(videos)):
        latent = source.model(video.to(device), sample_posterior=False).latent
        if latent is None:
            remedy = "A custom module returns (reconstruction, losses, latent)."
            raise argument_error(source.title, "a model that offers its latent", "one without", remedy)
        latents.append(latent.float().cpu())
    return torch.cat(latents)


def _measure_space(
    source: ModelSource, videos: _ClipsOnDisk, reference: Tensor | None, probe: LatentProbe | None
) -> LatentSpace:
    """Return the measures of one model on clips; `reference` has the latents of the base model."""
    latents = _encode_all(source, videos)
    std, mean = (values.tolist() for values in torch.std_mean(channel_rows(latents), 1, correction=0))
    eigenvalues = covariance_eigenvalues(latents)
    linear = source.model.linear_autoencoder(*videos.config.val_bucket.shape)
    first_apart = linear is None or linear.encoder.first is not None
    small = torch.cat([_scaled_video(*pair, first_apart) for pair in zip(videos, latents.split(1), strict=True)])
    frequency, latent_power = radial_spectrum(latents)
    equivariance, noise_psnr, nested_psnr = _decode_changed(source.model, videos, latents, std)
    shares = {"latent": high_frequency_share(latents), "video": high_frequency_share(small)}
    return LatentSpace(
        title=source.title,
        shape=list(latents.shape[1:]),
        channels=Channels(mean, std, kurtosis(latents), dead_channels(std)),
        eigenvalues=eigenvalues,
        effective_rank=effective_rank(eigenvalues),
        spectrum=_Spectrum(frequency, latent_power, radial_spectrum(small)[1], shares),
        autocorrelation={
            f"{prefix}{name}": autocorrelation(values, axes, MAX_LAG)
            for prefix, values in (("", latents), ("video_", small))
            for name, axes in (("space", (3, 4)), ("time", (2,)))
        },
        equivariance=equivariance,
        noise_psnr=noise_psnr,
        nested_psnr=nested_psnr,
        codes=code_usage(source.model.codebook, latents.to(next(source.model.parameters()).device)),
        drift={} if reference is None else _drift(latents, reference),
        probe=probe,
    )


@torch.no_grad()
def _decode_changed(
    model: VideoAutoencoder, videos: _ClipsOnDisk, latents: Tensor, std: Sequence[float]
) -> tuple[dict[str, dict[str, float]], dict[str, float], dict[str, float]]:
    """Return the equivariance error by transformation, and the PSNR by noise and by channels kept; means over clips."""
    device = next(model.parameters()).device

    def decode(latent: Tensor) -> Video:
        return model.decode(latent.to(device)).float().clamp(*VALUE_RANGE).cpu()

    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor(std).view(1, -1, 1, 1, 1)
    (num_frames, height, width), (rows, columns) = videos.config.val_bucket.shape, latents.shape[-2:]
    half = num_frames, height * max(rows // 2, 1) // rows, width * max(columns // 2, 1) // columns
    names = [name for name in TRANSFORMS if name != _HALF or model.covering_clip(*half) == half]
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in ("none", *names)}
    noisy: dict[str, list[float]] = {f"{size:g}": [] for size in NOISE}
    cut: dict[str, list[float]] = {str(number): [] for number in sorted(model.nested_channels)}
    for video, latent in with_progress(zip(videos, latents.split(1), strict=True), "decoding", total=len(videos)):
        for name, found in errors.items():
            transform = TRANSFORMS.get(name, torch.clone)
            decoded, target = decode(transform(latent.to(device))), transform(video)
            if target.shape != decoded.shape:
                target = resized(video, list(decoded.shape[-2:]))
            pair = {"reconstruction": decoded, "target": target}
            found.append((mse(**pair).item(), psnr(**pair).item()))
        noise = torch.randn(latent.shape, generator=generator) * scale
        for size, values in noisy.items():
            values.append(psnr(reconstruction=decode(latent + float(size) * noise), target=video).item())
        for number, values in cut.items():
            values.append(psnr(reconstruction=decode(latent[:, : int(number)]), target=video).item())
    means = {name: [sum(values) / len(found) for values in zip(*found, strict=True)] for name, found in errors.items()}
    equivariance = {name: {"mse": error, "psnr": decibel} for name, (error, decibel) in means.items()}
    noise_psnr, nested_psnr = ({key: sum(all_) / len(all_) for key, all_ in each.items()} for each in (noisy, cut))
    return equivariance, noise_psnr, nested_psnr


def _drift(latents: Tensor, reference: Tensor) -> dict[str, list[float] | float]:
    z, z_base = channel_rows(latents), channel_rows(reference)
    centred, centred_base = (x - x.mean(1, keepdim=True) for x in (z, z_base))
    norms = centred.norm(dim=1) * centred_base.norm(dim=1)
    correlation = (centred * centred_base).sum(1) / norms.clamp(min=EPSILON)
    return {"correlation": correlation.tolist(), "relative_error": ((z - z_base).norm() / z_base.norm()).item()}
