"""The perceptual term: LPIPS, or another distance of frames, of frames sampled from each clip."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from telecine.base.checks import argument_error, describe
from telecine.base.precision import at_least_float32
from telecine.base.shapes import Scalar
from telecine.objective.batch import Batch
from telecine.objective.eager import eager_backward
from telecine.objective.terms import Functions
from telecine.objective.weights import Weights
from telecine.perceptual import Perceptual, WeightsSource, in_chunks, pick_frames, sample_frame_indices
from telecine.settings import ObjectiveConfig


class PerceptualTerm(nn.Module):
    """The mean distance over the sampled frames, and additional terms of the same features.

    Args:
        config: The settings of the objective.
        vgg_weights: The weights of "vgg", as `LPIPS` takes them.
        functions: The network or distance, and the additional terms.

    Raises:
        ValueError: If `vgg_weights` are given for another network, or a term needs features of one without.
    """

    def __init__(self, config: ObjectiveConfig, vgg_weights: WeightsSource, functions: Functions) -> None:
        super().__init__()
        self.config, net = config.perceptual, functions.perceptual_net
        if net != "vgg" and vgg_weights is not VGG16_Weights.DEFAULT:
            contract = 'left out unless `perceptual.net` is "vgg"'
            remedy = "Load another network's weights with `net=LPIPS('alex', weights=...)`."
            raise argument_error("vgg_weights", contract, describe(self.config.net), remedy)
        self.feature_terms = {name: term for name, term in functions.terms.items() if term.uses_features}
        terms = config.all_terms()
        is_needed = any(terms[name].ramp.is_ever_on for name in ("perceptual", *self.feature_terms))
        weights = vgg_weights if net == "vgg" else None
        self.distance = Perceptual(net, weights=weights) if is_needed else None
        if self.distance is not None and self.feature_terms and not self.distance.has_features:
            contract, got = (
                "without terms of features for a distance that has none",
                repr(next(iter(self.feature_terms))),
            )
            raise argument_error("terms", contract, got, 'Use "vgg" or "alex" as `perceptual.net`.')

    def forward(self, batch: Batch, weights: Weights, *, eager: bool) -> dict[str, Scalar]:
        """Return the distance, named "perceptual", and the terms of features; those of weight 0 are left out.

        Args:
            batch: Both videos.
            weights: Of this step.
            eager: Compute each chunk's gradient before the next chunk. A chunk then has by default as many frames as
                there are clips.
        """
        names = [name for name in ("perceptual", *self.feature_terms) if weights[name] > 0]
        if not names:
            return {}
        config = self.config
        indices = sample_frame_indices(batch.fake, config.num_frames, batch.generator)
        # In float32, as they are compared: the backward of splitting half precision fails under CPU autocast.
        frames, targets = (at_least_float32(pick_frames(video, indices)) for video in (batch.fake, batch.real))
        weight = frame_weights(batch.clip_weight, indices)
        size = (config.chunk_size or len(indices)) if eager else len(frames)
        chunks = []
        for x, y, w in zip(frames.split(size), targets.split(size), weight.split(size), strict=True):
            compare = partial(self._compare, target=y, weight=w, names=names)
            chunks.append(eager_backward(compare, x) if eager else compare(x))
        return {name: torch.stack([chunk[name] for chunk in chunks]).sum() for name in names}

    def _compare(self, frames: Tensor, *, target: Tensor, weight: Tensor, names: Sequence[str]) -> dict[str, Scalar]:
        """Return the weighted sum over the frames of each distance."""
        assert self.distance is not None
        terms = [name for name in names if name != "perceptual"]
        compare = partial(self.distance, feature_terms=[self.feature_terms[name].function for name in terms])
        distances = in_chunks(compare, reconstruction=frames, target=target, chunk_size=self.config.chunk_size)
        for name, distance in zip(terms, distances[1:], strict=True):
            if distance.shape != frames.shape[:1]:
                contract = f"of shape ({len(frames)},), one value per frame"
                remedy = "Average what belongs to one frame."
                raise argument_error(f"the result of the term {name}", contract, distance, remedy)
        found = dict(zip(("perceptual", *terms), distances, strict=True))
        return {name: (weight * found[name]).sum() for name in names}


def frame_weights(clip_weight: Tensor | None, indices: Tensor) -> Tensor:
    """Return the weight `(B k,)` of each sampled frame, `indices` (B, k), such that the weighted sum is the mean."""
    batch, num_frames = indices.shape
    if clip_weight is None:
        return torch.full((batch * num_frames,), 1 / (batch * num_frames), device=indices.device)
    return (clip_weight / (batch * num_frames)).repeat_interleave(num_frames)


def drop_perceptual_weights(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Remove the frozen LPIPS from a state dict of the reference; a hook that runs before it is loaded."""
    for key in [key for key in state_dict if key.startswith(f"{prefix}perceptual_model.")]:
        del state_dict[key]
