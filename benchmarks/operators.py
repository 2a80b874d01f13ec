"""Cheaper convolutions in the decoder of `CausalVAE`, fitted as `telecine prune` does: a Markdown table.

    python benchmarks/operators.py tiny --data videos/

Each kind of convolution that a level can have is fitted to half of the clips, and its error is that of the others; see
`telecine.tools.prune.least_squares`.
"""

from __future__ import annotations

import argparse

from measure import table

from telecine.models import load_autoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.tools.prune import prune
from telecine.tools.prune.settings import PruneConfig


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="a model with a decoder of telecine")
    parser.add_argument("--data", required=True)
    parser.add_argument("--max_clips", type=int, default=8, help="half of them are fitted")
    parser.add_argument("--num_frames", type=int, default=9)
    parser.add_argument("--size", type=int, default=64, help="height and width")
    arguments = parser.parse_args()
    model = load_autoencoder(arguments.model)
    assert isinstance(model, CausalAutoencoder)
    num_levels = len(model.config.channels)
    lowest = num_levels - 1
    rows = []
    for level in range(num_levels):
        kinds = ["depthwise"]
        if level == lowest and model.config.time_kernel > 1:
            kinds = ["2d", "2+1d", "depthwise"]
        for kind in kinds:
            convolutions = ["3d"] * num_levels
            convolutions[level] = kind
            config = PruneConfig(
                data=arguments.data,
                max_clips=arguments.max_clips,
                num_frames=arguments.num_frames,
                height=arguments.size,
                width=arguments.size,
                device="cpu",
                keep=1,
                importance="first",
                decoder_convolutions=convolutions,
            )
            result = prune(arguments.model, config)
            for fit in result.convolutions:
                rows.append(
                    [
                        fit.layer,
                        fit.kind,
                        f"{fit.operations:.2f}",
                        "n/a" if fit.error is None else f"{fit.error:.4f}",
                        f"{fit.error_trivial:.4f}",
                        f"{fit.error_random:.4f}",
                        f"{result.psnr_before - result.psnr_after:.2f}",
                    ]
                )
    header = ["convolution", "by", "of the operations", "error, fitted", "error, trivial"]
    header += ["error, random", "PSNR lost by the level, dB"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
