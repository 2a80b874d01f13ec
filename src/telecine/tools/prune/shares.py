"""How many channels of each stage stay."""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from math import gcd

from torch import Tensor

from telecine.base.checks import argument_error
from telecine.tools.prune.channels import ChannelGroup, share_denominators
from telecine.tools.prune.cost import Cost, cost_of
from telecine.tools.prune.parts import Prunable
from telecine.tools.prune.settings import PruneConfig


def kept_shares(
    target: Prunable,
    groups: Sequence[ChannelGroup],
    config: PruneConfig,
    latent: Tensor,
    cost_before: Cost,
) -> list[Fraction]:
    """Return the share of the channels that stays, for each of `Widths.stage_groups`.

    Args:
        target: The part that is pruned.
        groups: The groups of its channels.
        config: The settings.
        latent: A latent, whose shape counts.
        cost_before: The cost of the model with all channels and blocks.

    Raises:
        ValueError: The configuration cannot state the shares, or even the fewest channels need more operations.
    """
    denominators = share_denominators(groups)
    if config.keep_stages:
        return _shares_of_stages(target, denominators, config.keep_stages)
    common = gcd(*denominators)
    largest = config.keep * cost_before.flops

    def flops_of(num_kept: int) -> int:
        shares = [Fraction(num_kept, common)] * len(denominators)
        smaller = target.widths.scaled(target.config, shares)
        if config.decoder_convolutions:
            smaller["decoder_convolutions"] = config.decoder_convolutions
        return cost_of(target, smaller, latent).flops

    fewest = flops_of(1)
    if fewest > largest:
        share = fewest / cost_before.flops
        if max(denominators) == 1:
            contract = (
                f"{share:.2g} or more, as the groups of the norms leave no channels to remove"
            )
            raise argument_error("keep", contract, config.keep, _without_channels(target))
        contract = (
            f"at least {share:.2g}, as {common} equal parts of the channels can be kept or removed"
        )
        raise argument_error("keep", contract, config.keep, f"Use {share:.2g} or more.")
    # Operations grow with the number of parts that stay: the most that fit.
    num_kept = 1 + bisect_right(range(2, common + 1), largest, key=flops_of)
    return [Fraction(num_kept, common)] * len(denominators)


def _without_channels(target: Prunable) -> str:
    """Return what makes a part smaller whose channels cannot be removed."""
    distill = "distil a smaller model with `telecine distill`"
    if target.widths.blocks_setting is None:
        return f"To have a faster decoder, {distill}."
    return f"Remove residual blocks with `--blocks` and `--keep 1`, or {distill}."


def _shares_of_stages(
    target: Prunable, denominators: Sequence[int], keep_stages: Sequence[float]
) -> list[Fraction]:
    """Return the largest shares of the stages' channels that the configuration can state.

    Args:
        target: The part that is pruned.
        denominators: Those of the shares, for each of `Widths.stage_groups`.
        keep_stages: The largest shares.

    Raises:
        ValueError: There are more or fewer stages, they need equal shares, or a stage would have no channel.
    """
    stage_groups = target.widths.stage_groups(target.config)
    names = []
    for stage_group, denominator in zip(stage_groups, denominators, strict=True):
        names.append(
            f"{stage_group.name} ({stage_group.num_channels} channels in {denominator} parts)"
        )
    got = list(keep_stages)
    if len(got) != len(stage_groups):
        contract = f"a share for each of: {'; '.join(names)}"
        raise argument_error("keep_stages", contract, got, "Use `--keep` for equal shares.")
    if target.widths.needs_equal_shares and len(set(got)) > 1:
        contract = "equal shares for this class, whose norms all have the same number of groups"
        raise argument_error("keep_stages", contract, got, "Use `--keep`.")
    shares = []
    for share, denominator, name in zip(got, denominators, names, strict=True):
        num_kept = int(share * denominator + 1e-9)
        if num_kept == 0:
            contract = f"at least 1/{denominator} for {name}"
            if max(denominators) == 1:
                contract = f"1 for {name}, as the groups of the norms leave no channels to remove"
                raise argument_error("keep_stages", contract, share, _without_channels(target))
            raise argument_error("keep_stages", contract, share, "Keep more of it.")
        shares.append(Fraction(num_kept, denominator))
    if target.widths.needs_equal_shares:
        # Shares of parts of different sizes were rounded differently: all parts take the smallest.
        shares = [min(shares)] * len(shares)
    return shares
