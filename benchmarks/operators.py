"""Cheaper operators in the place of a decoder's causal 3D convolutions, by least squares: a Markdown table.

    python benchmarks/operators.py tiny --data videos/

For each convolution of `CausalVAE`'s decoder that sees earlier frames, on its real inputs and outputs for clips:

- `temporal`: a 2D convolution, then one over time alone. The 2D kernels are the best ones of the rank of the channels:
  principal components of the outputs of the kernel's frames. The temporal kernel is fitted by `torch.linalg.lstsq`.
- `depthwise`: a 3D convolution of each channel, then a map of the channels. The depthwise kernels are the first
  singular vectors of the 3D kernels of each input channel; the map is fitted by `torch.linalg.lstsq`.

Beside them: `2D`, the kernel summed over time, which is exact for still videos and sees no motion (the trivial
baseline), and both operators with random weights as PyTorch draws them. The error is that of other clips than those
of the fit: the squared error over the variance of the output.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from measure import table
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.evaluation.load_model import load_with_data
from telecine.evaluation.protocols.configured import ConfiguredClips
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.causal_blocks import CausalConv
from telecine.tools.prune.settings import PruneConfig

# Positions of a fit are at most this many, evenly spread.
MAX_POSITIONS = 20_000


@dataclass(frozen=True)
class Fitted:
    """Two convolutions, one after the other, in the place of one."""

    first: Tensor
    second: Tensor
    bias: Tensor
    groups: int

    def __call__(self, padded: Tensor) -> Tensor:
        """Return the output for an input with the earlier frames in front."""
        sides = (self.first.shape[3] // 2, self.first.shape[4] // 2)
        hidden = F.conv3d(padded, self.first, padding=(0, *sides), groups=self.groups)
        return F.conv3d(hidden, self.second, self.bias)

    def flops(self) -> int:
        """Return multiplications for one output position."""
        return self.first.numel() + self.second.numel()


def positions(video: Tensor) -> Tensor:
    """Return `(N, C)` of a video `(B, C, T, H, W)`, at most `MAX_POSITIONS`."""
    flat = video.movedim(1, -1).flatten(0, -2)
    return flat[:: max(1, len(flat) // MAX_POSITIONS)]


def solve(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrix `(in, out)` and the bias of the best affine map, in float64."""
    ones = torch.ones(len(inputs), 1, dtype=torch.float64)
    design = torch.cat([inputs.double(), ones], dim=1)
    solution = torch.linalg.lstsq(design, outputs.double(), driver="gelsd").solution
    return solution[:-1].float(), solution[-1].float()


def fit_temporal(conv: nn.Conv3d, padded: Tensor, output: Tensor) -> Fitted:
    """Return a 2D convolution and a temporal one."""
    num_outputs, num_inputs, time, height, width = conv.weight.shape
    kernels = conv.weight.transpose(1, 2).transpose(0, 1)  # of each frame: (time, out, in, h, w)
    kernels = kernels.reshape(time * num_outputs, num_inputs, 1, height, width)
    responses = F.conv3d(padded, kernels, padding=(0, height // 2, width // 2))
    values = positions(responses).double()
    covariance = values.T @ values
    components = torch.linalg.eigh(covariance).eigenvectors[:, -num_outputs:].float()
    first = torch.einsum("kr,kihw->rihw", components, kernels[:, :, 0])[:, :, None]
    hidden = F.conv3d(padded, first, padding=(0, height // 2, width // 2))
    frames = []
    for offset in range(time):
        frames.append(hidden[:, :, offset : offset + output.shape[2]])
    matrix, bias = solve(positions(torch.cat(frames, dim=1)), positions(output))
    second = matrix.view(time, num_outputs, num_outputs).permute(2, 1, 0)[..., None, None]
    return Fitted(first, second.contiguous(), bias, groups=1)


def fit_depthwise(conv: nn.Conv3d, padded: Tensor, output: Tensor) -> Fitted:
    """Return a depthwise 3D convolution and a map of the channels."""
    num_inputs = conv.weight.shape[1]
    by_input = conv.weight.transpose(0, 1).flatten(2)  # (in, out, time * h * w)
    first = torch.linalg.svd(by_input, full_matrices=False).Vh[:, 0]
    first = first.view(num_inputs, 1, *conv.weight.shape[2:])
    sides = (first.shape[3] // 2, first.shape[4] // 2)
    hidden = F.conv3d(padded, first, padding=(0, *sides), groups=num_inputs)
    matrix, bias = solve(positions(hidden), positions(output))
    return Fitted(first, matrix.T[..., None, None, None].contiguous(), bias, groups=num_inputs)


def random_like(fitted: Fitted) -> Fitted:
    """Return the same operators with the weights that PyTorch draws for a new convolution, and no bias."""
    weights = []
    for weight in (fitted.first, fitted.second):
        new = torch.empty_like(weight)
        nn.init.kaiming_uniform_(new, a=5**0.5)
        weights.append(new)
    return Fitted(weights[0], weights[1], torch.zeros_like(fitted.bias), fitted.groups)


def error(approximation: Tensor, output: Tensor) -> str:
    """Return the squared error over the variance of the output of each channel, as a cell."""
    variance = output.var((0, 2, 3, 4), keepdim=True, correction=0).mean()
    return f"{float((approximation - output).square().mean() / variance):.4f}"


def record_convolutions(
    model: CausalAutoencoder, clips: list[Tensor]
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Return the padded inputs and the outputs of the convolutions over time, one pair for each clip."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    names = {}
    handles = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pairs.setdefault(names[layer], []).append((inputs[0], output))

    for name, layer in model.decoder.named_modules():
        if isinstance(layer, CausalConv) and layer.num_repeats > 0:
            names[layer.conv] = f"{name}.conv"
            handles.append(layer.conv.register_forward_hook(record))
    for clip in clips:
        model(clip, sample_posterior=False)
    for handle in handles:
        handle.remove()
    return pairs


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="a model with a decoder of telecine")
    parser.add_argument("--data", required=True)
    parser.add_argument("--max_clips", type=int, default=8, help="half of them are fitted")
    parser.add_argument("--num_frames", type=int, default=9)
    parser.add_argument("--size", type=int, default=64, help="height and width")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = PruneConfig(
        data=arguments.data,
        max_clips=arguments.max_clips,
        num_frames=arguments.num_frames,
        height=arguments.size,
        width=arguments.size,
        device="cpu",
    )
    source, infos = load_with_data(arguments.model, config, torch.device("cpu"))
    model = source.model.eval()
    assert isinstance(model, CausalAutoencoder)
    protocol = ConfiguredClips(source.clips, config.clip_limit)
    clips = []
    for span in protocol.select(infos):
        clip = protocol.read(span)
        if clip is not None:
            clips.append(clip["video"][None])
    rows = []
    for name, pairs in record_convolutions(model, clips).items():
        conv = model.decoder.get_submodule(name)
        assert isinstance(conv, nn.Conv3d)
        fitted_pairs = pairs[::2]
        padded = torch.cat([inputs for inputs, _ in fitted_pairs])
        output = torch.cat([outputs for _, outputs in fitted_pairs])
        other_padded = torch.cat([inputs for inputs, _ in pairs[1::2]])
        other_output = torch.cat([outputs for _, outputs in pairs[1::2]])
        still = conv.weight.sum(2, keepdim=True)
        sides = (still.shape[3] // 2, still.shape[4] // 2)
        current = other_padded[:, :, conv.weight.shape[2] - 1 :]
        trivial = F.conv3d(current, still, conv.bias, padding=(0, *sides))
        rows.append(
            [
                name,
                "2D",
                f"{still.numel() / conv.weight.numel():.2f}",
                error(trivial, other_output),
                "n/a",
            ]
        )
        for kind, fit in (("temporal", fit_temporal), ("depthwise", fit_depthwise)):
            operator = fit(conv, padded, output)
            share = operator.flops() / conv.weight.numel()
            rows.append(
                [
                    name,
                    kind,
                    f"{share:.2f}",
                    error(operator(other_padded), other_output),
                    error(random_like(operator)(other_padded), other_output),
                ]
            )
    header = ["convolution", "operators", "of the operations", "error, fitted", "error, random"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
