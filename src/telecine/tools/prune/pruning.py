"""A pruned model of an autoencoder: which channels stay, and what it costs and gains."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from math import gcd
from statistics import median
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
from telecine.evaluation.load_model import load_with_data
from telecine.evaluation.metrics.pixels import psnr
from telecine.evaluation.protocols.configured import ConfiguredClips
from telecine.evaluation.speed import time_in_turns
from telecine.models import CausalVAE, VideoAutoencoder, load_autoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.causal_networks import FlowDecoder, build_decoder
from telecine.models.latent_autoencoder import LatentAutoencoder
from telecine.models.pretrained import digest_of_decoder
from telecine.models.student import StudentAutoencoder
from telecine.settings import CausalVAEConfig
from telecine.tools.prune.blocks import (
    find_runs,
    removed_blocks,
    with_fewer_blocks,
    without_blocks,
)
from telecine.tools.prune.channels import (
    ChannelGroup,
    build_on_meta,
    find_groups,
    num_parts_of_stages,
)
from telecine.tools.prune.importance import (
    Scores,
    measure,
    recorded_squares,
    score_by_loss,
    score_by_position,
    score_by_weight,
)
from telecine.tools.prune.settings import PruneConfig
from telecine.tools.prune.surgery import (
    MeanSquares,
    kept_outputs,
    kept_slices,
    pruned_weights,
)
from telecine.tools.prune.widths import CAUSAL_VAE_WIDTHS, Configuration, Widths, widths_of


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
            CAUSAL_VAE_WIDTHS,
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
        CAUSAL_VAE_WIDTHS,
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
    """A pruned autoencoder, what was removed, and what was measured before it is trained."""

    model: VideoAutoencoder
    shares: list[float]
    """The share of the channels that stays, for each of `Widths.stages`."""
    channels_before: list[int]
    channels_after: list[int]
    """Channels of each stage."""
    groups: dict[str, tuple[int, int]]
    """Channels before and after of each group of channels that are kept or removed together."""
    removed_blocks: dict[str, list[int]]
    """The removed blocks, by the name of their list."""
    kept_outputs: dict[str, list[int]]
    """Which outputs of each convolution of the decoder stay, for the term that compares features."""
    decoder_sha256: str
    """Digest of the decoder with all channels, in which `kept_outputs` and `removed_blocks` count."""
    cost_before: Cost
    cost_after: Cost
    seconds_before: float
    """Time to decode a clip on the device of the settings: the median of several."""
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
        if self.removed_blocks:
            removed = sum(len(indices) for indices in self.removed_blocks.values())
            table.add_row("residual blocks", "", f"{removed} removed")
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
    measured, infos = load_with_data(model, config, device)
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
    videos = [clip.to(device) for clip in clips]
    latent = _latent_of(teacher, videos[0])
    name = absolute_if_exists(model)
    what = prunable(teacher, name, config.part)
    cost_before = cost_of(what, what.config, latent)
    smaller = teacher
    removed: dict[str, list[int]] = {}
    if config.blocks is not None:
        smaller, removed = _without_blocks(teacher, what, config.blocks, videos)
        smaller.to(device).eval()
    narrowed = prunable(smaller, name, config.part)
    groups = find_groups(
        narrowed.build, narrowed.config, narrowed.widths, narrowed.network.state_dict()
    )
    shares = _shares(narrowed, groups, config, latent, cost_before)
    scores, squares = _importance(config.importance, smaller, narrowed, groups, shares, videos)
    kept = {}
    for group in groups:
        kept[group.name] = kept_slices(group, scores[group.name], shares[group.stages])
    weights = pruned_weights(narrowed.network, groups, kept, squares)
    pruned_config = narrowed.widths.scaled(narrowed.config, shares)
    pruned = narrowed.wrap(pruned_config, weights).to(device)
    seconds_before, seconds_after = _seconds(teacher, pruned, latent)
    channels_of_groups = {}
    for group in groups:
        num_kept = len(kept[group.name]) * group.num_channels // group.num_slices
        channels_of_groups[group.name] = (group.num_channels, num_kept)
    return PruneResult(
        model=pruned,
        shares=[float(share) for share in shares],
        channels_before=what.widths.stage_channels(what.config),
        channels_after=what.widths.stage_channels(pruned_config),
        groups=channels_of_groups,
        removed_blocks=removed,
        kept_outputs=kept_outputs(groups, kept, narrowed.network.state_dict()),
        decoder_sha256=digest_of_decoder(teacher),
        cost_before=cost_before,
        cost_after=cost_of(narrowed, pruned_config, latent),
        seconds_before=seconds_before,
        seconds_after=seconds_after,
        psnr_before=_mean_psnr(teacher, videos),
        psnr_after=_mean_psnr(pruned, videos),
    )


def _without_blocks(
    model: LatentAutoencoder, what: Prunable, num_blocks: int, videos: Sequence[Video]
) -> tuple[LatentAutoencoder, dict[str, list[int]]]:
    """Return a model with at most a number of blocks in each stage, and the removed ones by the name of their list.

    Args:
        model: The model.
        what: Its part that is pruned.
        num_blocks: The largest number of blocks of a stage.
        videos: Clips on which the loss without each block is measured.

    Raises:
        ValueError: Its configuration cannot state fewer blocks.
    """
    config = with_fewer_blocks(what.config, what.widths, num_blocks)
    runs = find_runs(what.network, build_on_meta(what.build, config))
    removed = removed_blocks(what.network, runs, lambda: _mean_error(model, videos))
    smaller = what.wrap(config, without_blocks(what.network.state_dict(), removed))
    assert isinstance(smaller, LatentAutoencoder)
    return smaller, removed


def _importance(
    name: str,
    model: LatentAutoencoder,
    what: Prunable,
    groups: Sequence[ChannelGroup],
    shares: Sequence[Fraction],
    videos: Sequence[Video],
) -> tuple[Scores, MeanSquares]:
    """Return the importance of channels, and the mean squares of the input of norms.

    Args:
        name: See `PruneConfig.importance`.
        model: The model.
        what: Its part that is pruned.
        groups: The groups of its channels.
        shares: The share of the channels that stays, for each of `Widths.stages`.
        videos: Clips.
    """

    def reconstruct(video: Video) -> Video:
        return model.decode_with_losses(_latent_of(model, video))[0]

    if name == "gradient":
        return measure(model, what.network, groups, videos, reconstruct)
    with recorded_squares(what.network) as squares:
        _mean_error(model, videos)
    if name == "greedy":
        scores = score_by_loss(
            what.network, groups, shares, squares, lambda: _mean_error(model, videos)
        )
        return scores, squares
    if name == "weight":
        return score_by_weight(what.network, groups), squares
    return score_by_position(groups), squares


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


def _shares(
    what: Prunable,
    groups: Sequence[ChannelGroup],
    config: PruneConfig,
    latent: Tensor,
    cost_before: Cost,
) -> list[Fraction]:
    """Return the share of the channels that stays, for each of `Widths.stages`.

    Args:
        what: The part that is pruned.
        groups: The groups of its channels.
        config: The settings.
        latent: A latent, whose shape counts.
        cost_before: The cost of the model with all channels and blocks.

    Raises:
        ValueError: The configuration cannot state the shares, or even the fewest channels need more operations.
    """
    num_parts = num_parts_of_stages(groups)
    if config.keep_stages:
        return _shares_of_stages(what, num_parts, config.keep_stages)
    common = gcd(*num_parts)
    largest = config.keep * cost_before.flops

    def flops_of(num_kept: int) -> int:
        shares = [Fraction(num_kept, common)] * len(num_parts)
        return cost_of(what, what.widths.scaled(what.config, shares), latent).flops

    fewest = flops_of(1)
    if fewest > largest:
        share = fewest / cost_before.flops
        contract = (
            f"at least {share:.2g}, as {common} equal parts of the channels can be kept or removed"
        )
        raise argument_error("keep", contract, config.keep, f"Use {share:.2g} or more.")
    num_kept = 1  # the most that is known to fit
    upper = common + 1
    while upper - num_kept > 1:
        middle = (num_kept + upper) // 2
        if flops_of(middle) <= largest:
            num_kept = middle
        else:
            upper = middle
    return [Fraction(num_kept, common)] * len(num_parts)


def _shares_of_stages(
    what: Prunable, num_parts: Sequence[int], keep_stages: Sequence[float]
) -> list[Fraction]:
    """Return the largest shares of the stages' channels that the configuration can state.

    Args:
        what: The part that is pruned.
        num_parts: Into how many parts the channels of each of `Widths.stages` are cut.
        keep_stages: The largest shares.

    Raises:
        ValueError: There are more or fewer stages, they need equal shares, or a stage would have no channel.
    """
    stages = what.widths.stages(what.config)
    names = []
    for stage, number in zip(stages, num_parts, strict=True):
        names.append(f"{stage.name} ({stage.num_channels} channels in {number} parts)")
    got = list(keep_stages)
    if len(got) != len(stages):
        contract = f"a share for each of: {'; '.join(names)}"
        raise argument_error("keep_stages", contract, got, "Use `--keep` for equal shares.")
    if what.widths.needs_equal_shares and len(set(got)) > 1:
        contract = "equal shares for this class, whose norms all have the same number of groups"
        raise argument_error("keep_stages", contract, got, "Use `--keep`.")
    shares = []
    for share, number, name in zip(got, num_parts, names, strict=True):
        num_kept = int(share * number + 1e-9)
        if num_kept == 0:
            contract = f"at least 1/{number} for {name}"
            raise argument_error("keep_stages", contract, share, "Keep more of it.")
        shares.append(Fraction(num_kept, number))
    if what.widths.needs_equal_shares:
        # Equal shares of parts of different sizes: the coarsest decides.
        shares = [min(shares)] * len(shares)
    return shares


def _latent_of(model: LatentAutoencoder, video: Video) -> Tensor:
    with torch.no_grad():
        return model.encode(video).mode()


@torch.no_grad()
def _seconds(
    before: LatentAutoencoder, after: VideoAutoencoder, latent: Tensor
) -> tuple[float, float]:
    """Return the time that each of two decoders needs: the median of several calls, in turns."""
    after.eval()
    calls = [lambda: before.decode(latent), lambda: after.decode(latent)]
    times = time_in_turns(calls, latent.device, min_seconds=0.0)
    return median(times[0]), median(times[1])


@torch.no_grad()
def _mean_error(model: LatentAutoencoder, videos: Sequence[Video]) -> float:
    """Return the mean absolute error of reconstructions."""
    errors = []
    for video in videos:
        reconstruction = model.decode_with_losses(_latent_of(model, video))[0]
        errors.append((reconstruction - video).abs().mean())
    return float(torch.stack(errors).mean())


def _mean_psnr(model: VideoAutoencoder, videos: list[Video]) -> float:
    values = []
    for video in videos:
        with torch.no_grad():
            reconstruction = model.eval()(video, sample_posterior=False).video
        values.append(psnr(reconstruction=reconstruction, target=video).mean())
    return float(torch.stack(values).mean())
