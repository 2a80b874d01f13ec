"""A pruned model of an autoencoder: blocks, then channels are removed, then convolutions become cheaper."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Any

import torch
from torch import Tensor

from telecine.base.checks import argument_error, check_type
from telecine.base.devices import pick_device
from telecine.base.files import absolute_if_exists
from telecine.base.precision import tf32
from telecine.base.shapes import Video
from telecine.evaluation.load_model import load_with_data
from telecine.evaluation.metrics.pixels import psnr
from telecine.evaluation.protocols.configured import ConfiguredClips
from telecine.evaluation.speed import time_in_turns
from telecine.models import VideoAutoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.latent_autoencoder import LatentAutoencoder
from telecine.models.pretrained import digest_of_decoder
from telecine.models.removed_blocks import RemovedBlocks
from telecine.tools.prune.blocks import (
    choose_removed_blocks,
    find_removable_blocks,
    with_fewer_blocks,
    without_blocks,
)
from telecine.tools.prune.channels import ChannelGroup, build_on_meta, find_groups
from telecine.tools.prune.convolutions import (
    ConvolutionFit,
    check_convolutions,
    with_convolutions,
)
from telecine.tools.prune.cost import Cost, cost_of
from telecine.tools.prune.importance import (
    Scores,
    reconstruction_error,
    recorded_squares,
    score_by_gradient,
    score_by_loss,
    score_by_position,
    score_by_weight,
)
from telecine.tools.prune.parts import Prunable, prunable
from telecine.tools.prune.result import PruneResult
from telecine.tools.prune.settings import PruneConfig
from telecine.tools.prune.shares import kept_shares
from telecine.tools.prune.surgery import (
    MeanSquares,
    kept_outputs,
    kept_slices,
    pruned_weights,
)


@dataclass(frozen=True)
class _Narrower:
    """A model with fewer channels, and which of them it has."""

    model: VideoAutoencoder
    config: dict[str, Any]
    groups: list[ChannelGroup]
    shares: list[Fraction]
    """The share of the channels that stays, for each of `Widths.stage_groups`."""
    kept: dict[str, Tensor]
    """The kept slices of each group, by its name."""

    def sizes_of_groups(self) -> dict[str, tuple[int, int]]:
        """Return the channels of each group before and after, by its name."""
        sizes = {}
        for group in self.groups:
            num_kept = len(self.kept[group.name]) * group.num_channels // group.num_slices
            sizes[group.name] = (group.num_channels, num_kept)
        return sizes


@tf32(False)
def prune(model: str, config: PruneConfig) -> PruneResult:
    """Return a model with the most important channels of another one, and their weights.

    Channels are removed before convolutions are replaced: their importance and the weights that they have are those of
    the whole kernels, and the new kernels are fitted to the activations of the channels that stay.

    Args:
        model: The name or folder of the model, see `load_autoencoder`.
        config: The settings.

    Raises:
        ValueError: The model, the part or the data does not fit, or `keep` is too small for the model.
    """
    original, videos = _load(model, config)
    name = absolute_if_exists(model)
    latent = _latent_of(original, videos[0])
    original_target = prunable(original, name, config.part)
    cost_before = cost_of(original_target, original_target.config, latent)

    shallower = original
    removed_blocks = RemovedBlocks({})
    if config.blocks is not None:
        shallower, removed_blocks = _without_blocks(
            original, original_target, config.blocks, videos
        )

    target = prunable(shallower, name, config.part)
    narrower = _without_channels(shallower, target, config, videos, cost_before)

    pruned = narrower.model
    pruned_config = narrower.config
    fits: list[ConvolutionFit] = []
    if config.decoder_convolutions:
        assert isinstance(pruned, CausalAutoencoder)
        pruned_target = prunable(pruned, name, config.part)
        pruned, fits = with_convolutions(pruned, pruned_target, config.decoder_convolutions, videos)
        pruned_config = {**pruned_config, "decoder_convolutions": config.decoder_convolutions}

    seconds_before, seconds_after = _seconds(original, pruned, latent)
    return PruneResult(
        model=pruned,
        shares=[float(share) for share in narrower.shares],
        channels_before=original_target.widths.stage_channels(original_target.config),
        channels_after=original_target.widths.stage_channels(pruned_config),
        groups=narrower.sizes_of_groups(),
        removed_blocks=removed_blocks.indices,
        convolutions=fits,
        kept_outputs=kept_outputs(narrower.groups, narrower.kept, target.network.state_dict()),
        decoder_sha256=digest_of_decoder(original),
        cost_before=cost_before,
        cost_after=cost_of(target, pruned_config, latent),
        seconds_before=seconds_before,
        seconds_after=seconds_after,
        psnr_before=_mean_psnr(original, videos),
        psnr_after=_mean_psnr(pruned, videos),
    )


def _load(model: str, config: PruneConfig) -> tuple[LatentAutoencoder, list[Video]]:
    """Return the model in evaluation mode, and clips `(1, C, T, H, W)`, on the device of the settings.

    Args:
        model: Its name or folder.
        config: The settings.

    Raises:
        ValueError: The settings or the data do not fit the model.
    """
    check_type("config", config, PruneConfig, 'Use `PruneConfig(data="my_videos")`.')
    device = pick_device(config.device)
    measured, infos = load_with_data(model, config, device)
    original = measured.model.eval()
    if not isinstance(original, LatentAutoencoder):
        remedy = "Give your module `encode` and `decode`."
        raise argument_error("model", "one with a latent", type(original).__name__, remedy)
    if config.decoder_convolutions:
        check_convolutions(original, config.decoder_convolutions)
    protocol = ConfiguredClips(measured.clips, config.clip_limit)
    videos = [clip["video"][None].to(device) for _, clip in protocol.read_all(infos)]
    return original, videos


def _without_blocks(
    model: LatentAutoencoder, target: Prunable, num_blocks: int, videos: Sequence[Video]
) -> tuple[LatentAutoencoder, RemovedBlocks]:
    """Return a model with at most a number of blocks in each stage, in evaluation mode, and what it lacks.

    Args:
        model: The model.
        target: Its part that is pruned.
        num_blocks: The largest number of blocks of a stage.
        videos: Clips on which the loss without each block is measured.

    Raises:
        ValueError: Its configuration cannot state fewer blocks.
    """
    config = with_fewer_blocks(target.config, target.widths, num_blocks)
    removable = find_removable_blocks(target.network, build_on_meta(target.build, config))
    removed = choose_removed_blocks(target.network, removable, lambda: _mean_error(model, videos))
    shallower = target.wrap(config, without_blocks(target.network.state_dict(), removed))
    assert isinstance(shallower, LatentAutoencoder)
    return shallower.to(videos[0].device).eval(), removed


def _without_channels(
    model: LatentAutoencoder,
    target: Prunable,
    config: PruneConfig,
    videos: Sequence[Video],
    cost_before: Cost,
) -> _Narrower:
    """Return a model with the most important channels of another one, in evaluation mode.

    Args:
        model: The model.
        target: Its part that is pruned.
        config: The settings.
        videos: Clips on which importance is measured.
        cost_before: The cost of the model with all channels and blocks.

    Raises:
        ValueError: `keep` or `keep_stages` does not fit the model.
    """
    groups = find_groups(target.build, target.config, target.widths, target.network.state_dict())
    latent = _latent_of(model, videos[0])
    shares = kept_shares(target, groups, config, latent, cost_before)
    scores, squares = _importance(config.importance, model, target, groups, shares, videos)
    kept = {}
    for group in groups:
        kept[group.name] = kept_slices(group, scores[group.name], shares[group.stage_group_index])
    smaller = target.widths.scaled(target.config, shares)
    narrower = target.wrap(smaller, pruned_weights(target.network, groups, kept, squares))
    narrower.to(videos[0].device).eval()
    return _Narrower(narrower, smaller, groups, shares, kept)


def _importance(
    name: str,
    model: LatentAutoencoder,
    target: Prunable,
    groups: Sequence[ChannelGroup],
    shares: Sequence[Fraction],
    videos: Sequence[Video],
) -> tuple[Scores, MeanSquares]:
    """Return the importance of channels, and the mean squares of the input of norms.

    Args:
        name: See `PruneConfig.importance`.
        model: The model.
        target: Its part that is pruned.
        groups: The groups of its channels.
        shares: The share of the channels that stays, for each of `Widths.stage_groups`.
        videos: Clips.
    """
    if name == "gradient":
        with recorded_squares(target.network) as squares:
            scores = score_by_gradient(model, target.network, groups, videos)
        return scores, squares
    with recorded_squares(target.network) as squares:
        _mean_error(model, videos)
    if name == "greedy":
        scores = score_by_loss(
            target.network, groups, shares, squares, lambda: _mean_error(model, videos)
        )
        return scores, squares
    if name == "weight":
        return score_by_weight(target.network, groups), squares
    return score_by_position(groups), squares


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
    errors = [reconstruction_error(model, video) for video in videos]
    return float(torch.stack(errors).mean())


def _mean_psnr(model: VideoAutoencoder, videos: list[Video]) -> float:
    values = []
    for video in videos:
        with torch.no_grad():
            reconstruction = model.eval()(video, sample_posterior=False).video
        values.append(psnr(reconstruction=reconstruction, target=video).mean())
    return float(torch.stack(values).mean())
