"""The perceptual metrics of evaluations: LPIPS of two networks."""

from collections.abc import Sequence

import torch
from torch import nn

from telecine.evaluation.metrics.metric import Metric, register
from telecine.losses.perceptual import LPIPS, load_backbone
from telecine.losses.perceptual.weights import tensor_sha256

LPIPS_NETWORKS = {"lpips_vgg": "vgg", "lpips_alex": "alex"}

register(
    Metric(
        name="lpips_vgg",
        label="LPIPS (VGG)",
        definition="LPIPS v0.1, arXiv 1801.03924, VGG16",
        averaging="mean over frames, then clips",
        better="smaller",
        min_side=16,
    )
)
register(
    Metric(
        name="lpips_alex",
        label="LPIPS (Alex)",
        definition="LPIPS v0.1, arXiv 1801.03924, AlexNet",
        averaging="mean over frames, then clips",
        better="smaller",
        min_side=31,
    )
)


def load_lpips(
    names: Sequence[str], device: torch.device
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the LPIPS modules among the names of metrics, and the hashes of their weights, both by metric name."""
    modules: dict[str, nn.Module] = {}
    sources: dict[str, str] = {}
    for name in names:
        if name in LPIPS_NETWORKS:
            network = LPIPS_NETWORKS[name]
            weights = load_backbone(network)
            modules[name] = LPIPS(network, weights=weights).to(device)
            sources[name] = f"sha256 {tensor_sha256(weights)}"
    return modules, sources
