"""Operations, memory and weights of published autoencoders at real size, without their weights or any time.

    python benchmarks/published_speed.py --num_frames 17 --height 480 --width 832

The models are built of tensors that have shapes but no values. The configurations are in the package.
"""

import argparse
from typing import cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from telecine.base.files import read_json
from telecine.evaluation.speed import count_needs, count_weights
from telecine.settings import TrainConfig
from telecine.settings.parse import PUBLISHED
from telecine.training.memory import fake_autoencoder


def main() -> None:
    """Print a table with a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_frames", type=int, default=17)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--models", nargs="*", default=[*read_json(PUBLISHED)])
    arguments = parser.parse_args()
    print("| model | clip | part | M weights | TFLOP | GFLOP a frame | GiB |")
    print("|---|---|---|---:|---:|---:|---:|")
    for name in arguments.models:
        for row in rows_of(name, (arguments.num_frames, arguments.height, arguments.width)):
            print(f"| {' | '.join(row)} |", flush=True)


@torch.no_grad()
def rows_of(name: str, size: tuple[int, int, int]) -> list[list[str]]:
    """Return the rows of encoder and decoder for clips of a size, or of the next one that the model accepts."""
    model = fake_autoencoder(TrainConfig(model=name)).eval()
    fake_mode = cast(FakeTensorMode, next(model.parameters()).fake_mode)  # type: ignore[attr-defined]
    device = torch.device("cpu")
    clip_size = model.covering_clip(*size)
    with fake_mode:
        clip = torch.zeros(1, 3, *clip_size)
        latent = model.encode(clip).mode()
        weights_and_buffers = [*model.parameters(), *model.buffers()]
        needs = {
            "encode": count_needs(
                lambda: model.encode(clip).mode(), [*weights_and_buffers, clip], device
            ),
            "decode": count_needs(
                lambda: model.decode(latent), [*weights_and_buffers, latent], device
            ),
        }
    rows = []
    for part, (memory, flops) in needs.items():
        weights = count_weights(model, is_decoder=part == "decode")
        row = [
            name,
            " x ".join(map(str, clip_size)),
            part,
            f"{weights / 1e6:.1f}",
            f"{flops / 1e12:.2f}",
            f"{flops / 1e9 / clip_size[0]:.0f}",
            f"{memory / 2**30:.2f}",
        ]
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
