"""The metrics that clips of a size have, with the networks that some of them need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from telecine.data import ClipConfig
from telecine.evaluation.features import VideoFeatures, load_features
from telecine.evaluation.metrics import BUILT_IN, ReconstructionMetrics, applicable
from telecine.perceptual import LPIPS, load_backbone
from telecine.perceptual.weights import tensor_sha256
from telecine.shapes import argument_error

PERCEPTUAL = {"lpips_vgg": "vgg", "lpips_alex": "alex"}


@dataclass(frozen=True)
class Networks:
    """What clips are measured with."""

    metrics: Sequence[str]
    """Built-in metrics."""
    perceptual: Mapping[str, nn.Module]
    """LPIPS, by name."""
    features: VideoFeatures | None
    """The network of the Frechet distance."""
    backbones: Mapping[str, str]
    """The weights of each network, by the name of the metric."""
    absent: Mapping[str, str]
    """Metrics that clips of this size do not have, and why."""

    def accumulator(self) -> ReconstructionMetrics:
        """Return an empty accumulation of the metrics of clips and frames."""
        return ReconstructionMetrics(self.perceptual, metrics=self.metrics)

    def definitions(self, num_clips: int) -> tuple[tuple[str, str], ...]:
        """Return the Frechet distance's name and what it is, over so many clips; nothing without a network for it."""
        if self.features is None:
            return ()
        return ((self.features.name, f"{self.features.definition}; {num_clips} clips; smaller is better"),)


def load_networks(clips: ClipConfig, features: str | None, device: torch.device) -> Networks:
    """Load what clips of this length and size can be measured with.

    Raises:
        ValueError: a network cannot be had, or the clips are too short for that of the Frechet distance.
    """
    names, absent = applicable(
        [*BUILT_IN, *PERCEPTUAL], num_frames=clips.num_frames, height=clips.height, width=clips.width
    )
    weights = {name: load_backbone(net) for name, net in PERCEPTUAL.items() if name in names}
    perceptual = {name: LPIPS(PERCEPTUAL[name], weights=tensors).to(device) for name, tensors in weights.items()}
    backbones = {name: f"sha256 {tensor_sha256(tensors)}" for name, tensors in weights.items()}
    network = None if features is None else load_features(features, device)
    if network is not None:
        check_length(network, clips.num_frames)
        backbones[network.name] = network.source
    built_in = [name for name in names if name not in PERCEPTUAL]
    return Networks(built_in, perceptual, network, backbones, absent)


def check_length(network: VideoFeatures, num_frames: int) -> None:
    """Raise a `ValueError` unless clips are long enough for the network."""
    if num_frames < network.min_frames:
        remedy = "Ask for longer clips, or leave `features` out."
        raise argument_error("num_frames", f"at least {network.min_frames} for {network.name}", num_frames, remedy)
