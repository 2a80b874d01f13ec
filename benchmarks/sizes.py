"""What the named sizes of telecine's autoencoder cost: weights, operations, and memory for a clip.

    python benchmarks/sizes.py                          # clips of 17 x 256 x 256
    python benchmarks/sizes.py --clip 33 512 512
    python benchmarks/sizes.py tiny_4x8x8 small_4x8x8

Computed from shapes, without a device: operations of the forward pass of encoder and decoder, and activations in
float32 that a backward pass keeps, with and without gradient checkpointing.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from measure import count_flops, table

from telecine.autoencoders import CausalVAE
from telecine.training import read_config

SIZES = ("tiny", "small", "base", "large")
LATENTS = ("4x8x8", "4x16x16", "8x32x32")


def kept_bytes(model: CausalVAE, video: torch.Tensor) -> int:
    """Return the size of the different tensors that a forward pass keeps for the backward pass, without weights."""
    weights = {id(weight) for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in weights:
            kept[id(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(video, sample_posterior=False)
    return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())


def row(name: str, clip: tuple[int, int, int]) -> list[str]:
    """Return the row of a recipe."""
    config = read_config(name).causal_vae
    with torch.device("meta"):
        model, video = CausalVAE(config), torch.empty(1, 3, *clip)
    with torch.no_grad():
        latent = model.encode(video).mode()
        encode, decode = count_flops(partial(model.encode, video)), count_flops(partial(model.decode, latent))
    kept = kept_bytes(model, video)
    model.enable_gradient_checkpointing()
    weights = sum(weight.numel() for weight in model.parameters()) / 1e6
    costs = [f"{flops / 1e9:,.0f}" for flops in (encode, decode)]
    memory = [f"{size / 1e9:.2f}" for size in (kept, kept_bytes(model, video))]
    return [name, "x".join(map(str, latent.shape[1:])), f"{weights:.1f}", *costs, *memory]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clip", nargs=3, type=int, default=(17, 256, 256), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("recipes", nargs="*", default=[f"{size}_{latent}" for latent in LATENTS for size in SIZES])
    arguments = parser.parse_args()
    clip = tuple(arguments.clip)
    memory = ["kept, GB", "kept with checkpointing, GB"]
    header = ["recipe", "latent", "weights, M", "encode, GFLOP", "decode, GFLOP", *memory]
    print(f"one clip of {' x '.join(map(str, clip))}\n")
    print(table(header, [row(name, clip) for name in arguments.recipes]))


if __name__ == "__main__":
    main()
