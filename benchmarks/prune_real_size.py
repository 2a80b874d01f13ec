"""The surgery of `telecine prune` on published decoders at real size, on tensors without values: a Markdown table.

    python benchmarks/prune_real_size.py

Weights are on the meta device, decoding is traced on fake tensors: what counts is shapes. The largest shares of the
channels within each share of the operations are found as the command finds them; which channels stay does not matter
here. Launches are the operators that are no views, in eager mode: a GPU runs one kernel or more for each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Any

import torch
from measure import table
from torch._subclasses.fake_tensor import FakeTensorMode

from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.diffusers.loading import build_module
from telecine.tools.prune.channels import build_on_meta, find_groups, share_denominators
from telecine.tools.prune.importance import score_by_position
from telecine.tools.prune.parts import Prunable, prunable
from telecine.tools.prune.surgery import kept_slices, pruned_weights
from telecine.training.memory import PARAMETERS, MemoryCounter


@dataclass(frozen=True)
class Decoding:
    """A class of diffusers with its default sizes, and the latent of a clip."""

    cls: str
    clip: tuple[int, int, int]
    latent: tuple[int, int, int, int]
    """Channels, frames, height and width."""


DECODINGS = {
    "Wan 2.1": Decoding("AutoencoderKLWan", (17, 480, 832), (16, 5, 60, 104)),
    "LTX-Video": Decoding("AutoencoderKLLTXVideo", (121, 512, 768), (128, 16, 16, 24)),
}


class Launches(MemoryCounter):
    """Counts operators that are no views, beside memory and operations."""

    def __init__(self) -> None:
        super().__init__("decoding")
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.prim.device.default and not func.is_view:
            self.launches += 1
        return super().__torch_dispatch__(func, types, args, kwargs)


def trace(what: Prunable, config: Any, decoding: Decoding) -> Launches:
    """Return the counts of decoding a clip with the network of a configuration, in half precision."""
    counter = Launches()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            network = what.build(config).eval()
            latent = torch.zeros(1, *decoding.latent)
            counter.assign(PARAMETERS, network.get_submodule("decoder").parameters())
            with counter:
                what.decode(network, latent)
    finally:
        torch.set_default_dtype(torch.float32)
    return counter


def cut(what: Prunable, share: Fraction) -> dict[str, Any]:
    """Return the configuration of a pruned network, whose weights are cut and loaded without values."""
    weights = what.network.state_dict()
    groups = find_groups(what.build, what.config, what.widths, weights)
    scores = score_by_position(groups)
    kept = {group.name: kept_slices(group, scores[group.name], share) for group in groups}
    num_stages = len(share_denominators(groups))
    config = what.widths.scaled(what.config, [share] * num_stages)
    smaller = build_on_meta(what.build, config)
    smaller.load_state_dict(pruned_weights(what.network, groups, kept, {}), assign=True)
    return config


def rows_of(name: str, decoding: Decoding, keep: Sequence[float]) -> list[list[str]]:
    """Return the rows of a class.

    Args:
        name: The name of the model.
        decoding: The class and the clip.
        keep: The largest shares of the operations.
    """
    module = build_on_meta(build_module, {"_class_name": decoding.cls})
    what = prunable(DiffusersAutoencoder(module), name, "decoder")
    weights = what.network.state_dict()
    groups = find_groups(what.build, what.config, what.widths, weights)
    denominator = gcd(*share_denominators(groups))
    whole = trace(what, what.config, decoding)
    rows = []
    for share in keep:
        num_kept = denominator
        config = dict(what.config)
        counts = whole
        lower = 0
        upper = denominator + 1
        while upper - lower > 1 and share < 1:
            middle = (lower + upper) // 2
            config_of_middle = what.widths.scaled(
                what.config, [Fraction(middle, denominator)] * len(share_denominators(groups))
            )
            counts_of_middle = trace(what, config_of_middle, decoding)
            if counts_of_middle.flops_by_part.total() <= share * whole.flops_by_part.total():
                lower = middle
                num_kept = middle
                counts = counts_of_middle
            else:
                upper = middle
        config = cut(what, Fraction(num_kept, denominator))
        flops = counts.flops_by_part.total()
        num_weights = counts.peak_by_part[PARAMETERS] / 2
        rows.append(
            [
                name,
                f"{share:g}",
                str(what.widths.stage_channels(config)),
                f"{num_weights / 1e6:.1f}",
                f"{flops / 1e12:.2f}",
                f"{flops / whole.flops_by_part.total():.1%}",
                f"{sum(counts.peak_by_part.values()) / 2**30:.2f}",
                f"{counts.launches:,}",
            ]
        )
        print("  ".join(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", nargs="+", type=float, default=[1.0, 0.5, 0.25, 0.125])
    parser.add_argument("--models", nargs="+", choices=list(DECODINGS), default=list(DECODINGS))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models:
        rows += rows_of(name, DECODINGS[name], arguments.keep)
    header = [
        "decoder",
        "keep",
        "channels of the stages",
        "weights, M",
        "TFLOP",
        "of the operations",
        "peak memory, GiB",
        "launches",
    ]
    for name in arguments.models:
        frames, height, width = DECODINGS[name].clip
        print(f"{name}: a clip of {frames} x {height} x {width}, bfloat16")
    print()
    print(table(header, rows))


if __name__ == "__main__":
    main()
