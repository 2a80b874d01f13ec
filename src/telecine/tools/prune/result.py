"""A pruned autoencoder, what was removed, and what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich.console import Console
from rich.table import Table

from telecine.models import VideoAutoencoder
from telecine.tools.prune.convolutions import ConvolutionFit
from telecine.tools.prune.cost import Cost


@dataclass(frozen=True)
class PruneResult:
    """A pruned autoencoder, what was removed, and what was measured before it is trained."""

    model: VideoAutoencoder
    shares: list[float]
    """The share of the channels that stays, for each of `Widths.stage_groups`."""
    channels_before: list[int]
    channels_after: list[int]
    """Channels of each stage."""
    groups: dict[str, tuple[int, int]]
    """Channels before and after of each group of channels that are kept or removed together."""
    removed_blocks: Mapping[str, Sequence[int]]
    """The removed blocks, by the name of their list."""
    convolutions: list[ConvolutionFit]
    """The convolutions of the decoder that were replaced by cheaper ones."""
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
        values["convolutions"] = [asdict(fit) for fit in self.convolutions]
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
        if self.convolutions:
            console.print(self._convolutions_table())

    def _convolutions_table(self) -> Table:
        table = Table("error of", "by", "operations", "fitted", "trivial", "random")
        for fit in self.convolutions:
            table.add_row(
                fit.layer,
                fit.kind,
                f"{fit.operations:.0%}",
                "n/a" if fit.error is None else f"{fit.error:.3f}",
                f"{fit.error_trivial:.3f}",
                f"{fit.error_random:.3f}",
            )
        return table
