"""Memory of an autoencoder with gradient checkpointing and with temporal chunks.

    python benchmarks/autoencoder_memory.py checkpointing    # Wan 2.1 in its published size, minutes
    python benchmarks/autoencoder_memory.py chunks -o .      # clips of 17 to 129 frames, and a plot

Prints by how much the peak of one forward and backward, or of a whole update, exceeds the memory in use before. The
gradients of the weights count in an update, and not in a forward and backward.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import diffusers
import torch
from matplotlib.figure import Figure
from measure import Step, device, extra_peak, machine, table
from torch import Tensor
from torch.utils._pytree import tree_leaves

from telecine.autoencoders import CausalVAE, VideoAutoencoder
from telecine.autoencoders.diffusers import DiffusersAutoencoder
from telecine.autoencoders.interface import Reconstruction
from telecine.base.randomness import Generators
from telecine.objective import VideoAutoencoderLoss
from telecine.objective.layer_activations import LayerActivations
from telecine.ops.checkpointing import CheckpointedCall
from telecine.settings import CausalVAEConfig
from telecine.training.build import owner_of

MIB = 2**20
# Frames, and height and width, of the clips of `checkpointing`; frames of those of `chunks`.
SIZES = ((9, 64), (17, 96))
LENGTHS = (17, 33, 65, 129)
CHUNK = 8
# Frames that the discriminator sees, and LPIPS.
WINDOW = 9
NUM_LPIPS_FRAMES = 4
KINDS = ("whole", "chunks")


def wan() -> VideoAutoencoder:
    """Return Wan 2.1 in its published size, 127 M weights."""
    return DiffusersAutoencoder(diffusers.AutoencoderKLWan())


def small_wan() -> VideoAutoencoder:
    """Return Wan 2.1 with a sixth of its channels."""
    return DiffusersAutoencoder(diffusers.AutoencoderKLWan(base_dim=16))


def causal_vae() -> VideoAutoencoder:
    """Return telecine's model in the size "small" with a latent of 4x8x8."""
    return CausalVAE(CausalVAEConfig(base_channels=128, blocks_per_level=2))


SMALL = {"CausalVAE small": causal_vae, "Wan 2.1, base_dim 16": small_wan}
MODELS = {"Wan 2.1": wan, **SMALL}


def make_backward(name: str, num_frames: int, size: int, checkpointing: bool) -> Step:
    """Return one forward and backward of an autoencoder."""
    torch.manual_seed(0)
    model = MODELS[name]().to(device())
    if checkpointing:
        model.enable_gradient_checkpointing()
    video = clip(num_frames, size)

    def step() -> None:
        model.zero_grad()  # these gradients are in the memory before, so that the new ones do not count
        model(video).video.square().mean().backward()

    return step


def make_update(name: str, num_frames: int, size: int, chunk: int | None) -> Step:
    """Return one update without the optimizers: autoencoder, LPIPS, a video discriminator, both backwards."""
    torch.manual_seed(0)
    model = MODELS[name]().to(device())
    if chunk is not None:
        model.enable_temporal_chunks(chunk)
    loss = VideoAutoencoderLoss(
        disc_start=0,
        discr_3d_kwargs={"dim": 4, "image_size": size, "frame_num": WINDOW},
        perceptual={"net": "alex", "num_frames": NUM_LPIPS_FRAMES},
        gan={"window": WINDOW},
    ).to(device())
    activations = LayerActivations(owner_of(model.last_layer, model))
    video = clip(num_frames, size)

    def step() -> None:
        activations.clear()
        output = model(video)
        both = loss.update(video, output.video, 0, output.aux, activations)
        both.loss.backward()
        both.disc_loss.backward()
        model.zero_grad()
        loss.zero_grad()

    return step


def clip(num_frames: int, size: int) -> Tensor:
    """Return a random clip in [-1, 1]."""
    return 2 * torch.rand(1, 3, num_frames, size, size, device=device()) - 1


class Identity(VideoAutoencoder):
    """An autoencoder that takes no memory: its update shows what the videos and the objective take."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, video: Tensor, sample_posterior: bool = True, generator: Generators = None) -> Reconstruction:
        """Return a linear map of the colours."""
        return Reconstruction(self.layer(video.movedim(1, -1)).movedim(-1, 1), {})

    @property
    def last_layer(self) -> torch.nn.Parameter:
        """The only weight."""
        return self.layer.weight

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Accept all sizes."""

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the size."""
        return num_frames, height, width

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write nothing."""

    def load_weights(self, folder: str | PathLike[str]) -> None:
        """Read nothing."""


MODELS["none"] = Identity


def held_between_chunks(name: str, num_frames: int, size: int, chunk: int) -> int:
    """Return the bytes of what the layers keep between chunks for the backward."""
    model = MODELS[name]().to(device())
    model.enable_temporal_chunks(chunk)
    video = clip(num_frames, size)
    gc.collect()  # the calls of an earlier measurement
    output = model(video)
    calls = [item for item in gc.get_objects() if isinstance(item, CheckpointedCall)]
    kept = [leaf for call in calls for leaf in tree_leaves((call.args[1:], call.kwargs)) if isinstance(leaf, Tensor)]
    del output
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}.values())


def compare_checkpointing() -> None:
    """Print the table of gradient checkpointing."""
    rows = []
    for num_frames, size in SIZES:
        plain, less = (extra_peak(make_backward, "Wan 2.1", num_frames, size, on) for on in (False, True))
        rows.append([f"{num_frames} x {size} x {size}", in_mib(plain), in_mib(less), f"{less / plain:.2f}"])
        print("  ".join(rows[-1]), flush=True)
    print(table(["Wan 2.1, 127 M", "plain, MiB", "checkpointing, MiB", "ratio"], rows))


def compare_chunks(names: Sequence[str], size: int, folder: Path) -> None:
    """Print the table of temporal chunks, and draw it."""
    videos = "videos and objective"
    peaks: dict[str, list[int]] = {videos: [], **{f"{name}, {kind}": [] for name in names for kind in KINDS}}
    rows = []
    for num_frames in LENGTHS:
        objective = extra_peak(make_update, "none", num_frames, size, None)
        peaks[videos].append(objective)
        for name in names:
            whole, chunks = (extra_peak(make_update, name, num_frames, size, chunk) for chunk in (None, CHUNK))
            held = held_between_chunks(name, num_frames, size, CHUNK)
            for kind, peak in zip(KINDS, (whole, chunks), strict=True):
                peaks[f"{name}, {kind}"].append(peak)
            cells = (whole, chunks, objective, held, chunks - objective - held)
            rows.append([name, str(num_frames), *map(in_mib, cells)])
            print("  ".join(rows[-1]), flush=True)
    print(f"\n{machine()}; MiB; clips of {size} x {size}, chunks of {CHUNK} frames\n")
    print(table(["model", "frames", *KINDS, videos, "kept between chunks", "rest"], rows))
    draw(peaks, folder / "temporal_chunks.png")


def in_mib(num_bytes: int) -> str:
    """Return bytes in MiB."""
    return f"{num_bytes / MIB:.0f}"


def draw(peaks: dict[str, list[int]], path: Path) -> None:
    """Write the plot of peaks over the number of frames."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in peaks.items():
        style = {"linestyle": "--" if name.endswith("whole") else "-", "marker": "o"}
        axes.plot(LENGTHS, [value / MIB for value in values], label=name, **style)
    axes.set(xlabel="frames of a clip", ylabel="extra memory of an update, MiB", xticks=LENGTHS, yscale="log")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("checkpointing", "chunks"))
    parser.add_argument(
        "--models", nargs="+", choices=list(MODELS), default=["CausalVAE small", "Wan 2.1, base_dim 16"]
    )
    parser.add_argument("--size", type=int, default=64, help="Height and width of the clips of `chunks`.")
    parser.add_argument("-o", "--output", type=Path, default=Path(), help="Folder of the plot.")
    arguments = parser.parse_args()
    if arguments.what == "checkpointing":
        compare_checkpointing()
    else:
        compare_chunks(arguments.models, arguments.size, arguments.output)


if __name__ == "__main__":
    main()
