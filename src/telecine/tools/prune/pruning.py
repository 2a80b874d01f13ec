"""A pruned model of an autoencoder: which channels stay, and what it costs and gains."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from telecine.base.checks import argument_error, check_choice, check_type
from telecine.base.devices import pick_device
from telecine.base.files import absolute_if_exists
from telecine.base.precision import tf32
from telecine.base.shapes import Video
from telecine.base.terminal import with_progress
from telecine.evaluation.metrics.pixels import psnr
from telecine.evaluation.protocols.configured import ConfiguredClips
from telecine.evaluation.reconstruction_sources import open_model
from telecine.models import CausalVAE, VideoAutoencoder, load_autoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.causal_networks import FlowDecoder, build_decoder
from telecine.models.latent_autoencoder import LatentAutoencoder
from telecine.models.student import StudentAutoencoder
from telecine.settings import CausalVAEConfig
from telecine.tools.prune.channels import find_groups, num_parts_of
from telecine.tools.prune.importance import measure, score_by_position, score_by_weight
from telecine.tools.prune.settings import PruneConfig
from telecine.tools.prune.surgery import kept_slices, pruned_weights
from telecine.tools.prune.widths import OF_CAUSAL_VAE, Configuration, Widths, widths_of


@dataclass(frozen=True)
class Prunable:
    """The part of an autoencoder that is pruned."""

    network: nn.Module
    """The module whose weights are cut."""
    config: Configuration
    widths: Widths
    """Where `config` states the channels of `network`."""
    build: Callable[[Configuration], nn.Module]
    """From a configuration to such a network with random weights."""
    wrap: Callable[[Configuration, dict[str, Tensor]], VideoAutoencoder]
    """From a configuration and the weights of a network to an autoencoder."""
    decode: Callable[[nn.Module, Tensor], object]
    """From such a network and a latent `(1, C, t, h, w)` to its video, for its operations."""


def prunable(model: VideoAutoencoder, name: str, part: str) -> Prunable:
    """Return the part of an autoencoder that is pruned.

    Args:
        model: The autoencoder.
        name: Its name, which a student of it keeps.
        part: "decoder" or "both".

    Raises:
        ValueError: Its configuration cannot state other channels of this part.
    """
    if isinstance(model, CausalAutoencoder):
        return _prunable_of_ours(model, name, part)
    module: Any = getattr(model, "module", None)
    if not hasattr(module, "config"):
        contract = "a CausalVAE, a student, or a model of diffusers"
        remedy = "`telecine distill` trains a small decoder for its latents."
        raise argument_error("model", contract, type(model).__name__, remedy)
    cls = cast(Any, type(module))
    config = {key: value for key, value in module.config.items() if not key.startswith("_")}
    widths = widths_of(cls, config)
    if widths.part != part:
        contract = f"{widths.part} for {cls.__name__}"
        if widths.part == "both":
            contract += ", whose configuration has the same channels for encoder and decoder"
        remedy = f"Use `--part {widths.part}`, or train a decoder with `telecine distill`."
        raise argument_error("part", contract, part, remedy)
    from telecine.models.diffusers import DiffusersAutoencoder
    from telecine.models.diffusers.families import family_of
    from telecine.models.diffusers.loading import build_module

    class_name = {"_class_name": cls.__name__}

    def build(config: Configuration) -> nn.Module:
        return cast(nn.Module, build_module({**config, **class_name}))

    def wrap(config: Configuration, weights: dict[str, Tensor]) -> VideoAutoencoder:
        pruned = build(config)
        pruned.load_state_dict(weights)
        return DiffusersAutoencoder(pruned)

    return Prunable(module, config, widths, build, wrap, family_of(module).decode)


def _prunable_of_ours(model: CausalAutoencoder, name: str, part: str) -> Prunable:
    config = {field.name: getattr(model.config, field.name) for field in fields(model.config)}
    if part == "decoder":

        def wrap_decoder(config: Configuration, weights: dict[str, Tensor]) -> VideoAutoencoder:
            architecture = CausalVAEConfig(**config)
            student = StudentAutoencoder.of(model, name, load_autoencoder, architecture)
            student.decoder.load_state_dict(weights)
            return student

        return Prunable(
            model.decoder,
            config,
            OF_CAUSAL_VAE,
            lambda values: build_decoder(CausalVAEConfig(**values)),
            wrap_decoder,
            _decode_once,
        )
    if not isinstance(model, CausalVAE):
        raise argument_error(
            "part", "decoder for a student", part, "Its encoder is that of its teacher."
        )

    def wrap(config: Configuration, weights: dict[str, Tensor]) -> VideoAutoencoder:
        pruned = CausalVAE(CausalVAEConfig(**config))
        pruned.load_state_dict(weights)
        return pruned

    return Prunable(
        model,
        config,
        OF_CAUSAL_VAE,
        lambda values: CausalVAE(CausalVAEConfig(**values)),
        wrap,
        lambda network, latent: _decode_once(cast(CausalVAE, network).decoder, latent),
    )


def _decode_once(decoder: nn.Module, latent: Tensor) -> object:
    """Call a decoder of `CausalVAE` once; the noise of one that generates has the size of its video."""
    if not isinstance(decoder, FlowDecoder):
        return decoder(latent)
    linear = decoder.linear(latent)
    return decoder(latent, torch.zeros_like(linear), latent.new_ones(len(latent)))


@dataclass(frozen=True)
class Cost:
    """What a network needs."""

    weights: int
    flops: int
    """Operations to decode one clip, two for a multiplication and an addition."""


@dataclass(frozen=True)
class PruneResult:
    """A pruned autoencoder, and what was measured before it is trained."""

    model: VideoAutoencoder
    num_kept: int
    """Channels that stay, of `num_parts`."""
    num_parts: int
    channels_before: list[int]
    channels_after: list[int]
    cost_before: Cost
    cost_after: Cost
    seconds_before: float
    """Time to decode a clip on the device of the settings: the fastest of several."""
    seconds_after: float
    psnr_before: float
    """Mean over the clips, in dB."""
    psnr_after: float
    """Without any training."""

    def report(self) -> dict[str, Any]:
        """Return the values for a file."""
        values = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "model"
        }
        values["cost_before"] = asdict(self.cost_before)
        values["cost_after"] = asdict(self.cost_after)
        return values

    def print_to(self, console: Console) -> None:
        """Print the values as a table."""
        table = Table("", "before", "after")
        table.add_row("channels of the stages", str(self.channels_before), str(self.channels_after))
        table.add_row("weights", f"{self.cost_before.weights:,}", f"{self.cost_after.weights:,}")
        before = self.cost_before.flops / 1e9
        after = self.cost_after.flops / 1e9
        table.add_row(
            "GFLOP to decode a clip", f"{before:.4g}", f"{after:.4g} ({after / before:.0%})"
        )
        seconds = f"{self.seconds_after * 1e3:.4g} ({self.seconds_before / self.seconds_after:.2f} x as fast)"
        table.add_row("ms to decode a clip", f"{self.seconds_before * 1e3:.4g}", seconds)
        table.add_row(
            "PSNR, dB, without training", f"{self.psnr_before:.2f}", f"{self.psnr_after:.2f}"
        )
        console.print(table)


@tf32(False)
def prune(model: str, config: PruneConfig) -> PruneResult:
    """Return a model with the most important channels of another one, and their weights.

    Args:
        model: The name or folder of the model, see `load_autoencoder`.
        config: The settings.

    Raises:
        ValueError: The model, the part or the data does not fit, or `keep` is too small for the model.
    """
    check_type("config", config, PruneConfig, 'Use `PruneConfig(data="my_videos")`.')
    check_choice("part", config.part, ("decoder", "both"))
    if config.data is None:
        raise argument_error(
            "data", "a file, or a folder of files", "nothing", "Add `--data my_videos/`."
        )
    device = pick_device(config.device)
    measured, infos = open_model(model, config, device)
    teacher = measured.model.eval()
    if not isinstance(teacher, LatentAutoencoder):
        remedy = "Give your module `encode` and `decode`."
        raise argument_error("model", "one with a latent", type(teacher).__name__, remedy)
    protocol = ConfiguredClips(measured.clips, config.clip_limit)
    clips = []
    for span in with_progress(protocol.select(infos), "reading"):
        clip = protocol.read(span)
        if clip is not None:
            clips.append(clip["video"][None])
    if not clips:
        raise argument_error("data", "files with a decodable clip", "none", "See the log.")
    what = prunable(teacher, absolute_if_exists(model), config.part)
    latent = _latent_of(teacher, clips[0].to(device))
    groups = find_groups(what.build, what.config, what.widths, what.network.state_dict())
    num_parts = num_parts_of(groups)
    costs = {num_parts: cost_of(what, what.config, latent)}
    num_kept = _largest_within(what, config.keep, latent, costs)

    def reconstruct(video: Video) -> Video:
        return teacher.decode_with_losses(_latent_of(teacher, video))[0]

    videos = [clip.to(device) for clip in clips]
    progress = with_progress(videos, "measuring channels")
    scores, squares = measure(teacher, what.network, groups, progress, reconstruct)
    if config.importance == "weight":
        scores = score_by_weight(what.network, groups)
    elif config.importance == "first":
        scores = score_by_position(groups)
    kept = {
        group.name: kept_slices(group, scores[group.name], num_kept, num_parts) for group in groups
    }
    weights = pruned_weights(what.network, groups, kept, squares)
    smaller = what.widths.scaled(what.config, num_kept, num_parts)
    pruned = what.wrap(smaller, weights).to(device)
    seconds = _seconds(teacher, pruned, latent)
    return PruneResult(
        pruned,
        num_kept,
        num_parts,
        what.widths.of_stages(what.config),
        what.widths.of_stages(smaller),
        costs[num_parts],
        costs[num_kept],
        seconds[0],
        seconds[1],
        _mean_psnr(teacher, videos),
        _mean_psnr(pruned, videos),
    )


def cost_of(what: Prunable, config: Configuration, latent: Tensor) -> Cost:
    """Return what the network of a configuration needs to decode a latent, without any memory.

    Args:
        what: The part of an autoencoder.
        config: The configuration.
        latent: `(1, C, t, h, w)`, whose shape counts.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network = what.build(config).eval()
        num_weights = sum(parameter.numel() for parameter in network.parameters())
        with FlopCounterMode(display=False) as counter:
            what.decode(network, torch.zeros(latent.shape))
    return Cost(num_weights, counter.get_total_flops())


def _largest_within(what: Prunable, keep: float, latent: Tensor, costs: dict[int, Cost]) -> int:
    """Return the most channels, in parts, with at most a share of the operations; add what was tried to `costs`.

    Raises:
        ValueError: Even the fewest channels need more.
    """
    num_parts = max(costs)
    largest = keep * costs[num_parts].flops
    lower = 0  # the most that is known to fit
    upper = num_parts + 1
    while upper - lower > 1:
        middle = (lower + upper) // 2
        if middle not in costs:
            costs[middle] = cost_of(
                what, what.widths.scaled(what.config, middle, num_parts), latent
            )
        if costs[middle].flops <= largest:
            lower = middle
        else:
            upper = middle
    if lower == 0:
        share = costs[1].flops / costs[num_parts].flops
        contract = f"at least {share:.2g}, as {num_parts} equal parts of the channels can be kept or removed"
        raise argument_error("keep", contract, keep, f"Use {share:.2g} or more.")
    return lower


def _latent_of(model: LatentAutoencoder, video: Video) -> Tensor:
    with torch.no_grad():
        return model.encode(video).mode()


def _seconds(before: LatentAutoencoder, after: VideoAutoencoder, latent: Tensor) -> list[float]:
    """Return the time that each of two decoders needs: the fastest of five calls, in turns, after one each."""
    times: list[list[float]] = [[], []]
    for _ in range(6):
        for index, model in enumerate((before, cast(LatentAutoencoder, after))):
            _wait_for(latent.device)
            start = time.perf_counter()
            with torch.no_grad():
                model.eval().decode_with_losses(latent)
            _wait_for(latent.device)
            times[index].append(time.perf_counter() - start)
    return [min(calls[1:]) for calls in times]


def _mean_psnr(model: VideoAutoencoder, videos: list[Video]) -> float:
    values = []
    for video in videos:
        with torch.no_grad():
            reconstruction = model.eval()(video, sample_posterior=False).video
        values.append(psnr(reconstruction=reconstruction, target=video).mean())
    return float(torch.stack(values).mean())


def _wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
