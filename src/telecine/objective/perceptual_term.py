"""The perceptual term: LPIPS, or another distance of frames, of frames sampled from each clip."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from telecine.base.checks import argument_error, describe
from telecine.base.imports import choose
from telecine.base.precision import at_least_float32
from telecine.base.shapes import Scalar
from telecine.objective.batch import Batch, frame_weights
from telecine.objective.eager import eager_backward
from telecine.objective.terms import TermFunction
from telecine.objective.weights import Weights, WeightSchedule
from telecine.perceptual import Perceptual, WeightsSource, in_chunks, pick_frames, sample_frame_indices
from telecine.settings import ObjectiveConfig


class PerceptualTerm(nn.Module):
    """The mean distance over the sampled frames, and further terms of the same features.

    Args:
        objective: Its settings of the perceptual loss and its terms.
        vgg_weights: The weights of "vgg", as `LPIPS` takes them.
        terms: The additional terms.
        schedule: Decides whether the network is needed at any step.

    Raises:
        ValueError: If `vgg_weights` are given for another network, or a term needs features of one without.
    """

    def __init__(
        self,
        objective: ObjectiveConfig,
        vgg_weights: WeightsSource,
        schedule: WeightSchedule,
        terms: Mapping[str, TermFunction],
    ) -> None:
        super().__init__()
        self.config = config = objective.perceptual
        net = choose("perceptual.net", config.net, {name: name for name in ("vgg", "alex")})
        if net != "vgg" and vgg_weights is not VGG16_Weights.DEFAULT:
            contract = 'left out unless `perceptual.net` is "vgg"'
            remedy = "Load another network's weights with `net=LPIPS('alex', weights=...)`."
            raise argument_error("vgg_weights", contract, describe(config.net), remedy)
        feature_terms = [name for name, term in terms.items() if term.uses_features]
        is_needed = schedule.is_ever_on("perceptual_weight") or any(map(schedule.is_term_ever_on, feature_terms))
        weights = vgg_weights if net == "vgg" else None
        self.distance = Perceptual(net, weights=weights) if is_needed else None
        if self.distance is not None and feature_terms and not self.distance.has_features:
            contract = "without terms of features for a distance that has none"
            raise argument_error("terms", contract, repr(feature_terms[0]), 'Use "vgg" or "alex" as `perceptual.net`.')

    def forward(
        self, batch: Batch, weights: Weights, terms: Mapping[str, TermFunction], *, eager: bool
    ) -> tuple[Scalar, dict[str, Scalar]]:
        """Return the distance and the terms of features by name; those of weight 0 are 0 and left out.

        Args:
            batch: Both videos.
            weights: Of this step.
            terms: All additional terms of the objective.
            eager: Compute each chunk's gradient before the next chunk; without `chunk_size`, a chunk is then as
                many frames as there are clips.
        """
        used = {name: term for name, term in terms.items() if term.uses_features and weights.terms[name] > 0}
        zero = torch.zeros((), device=batch.real.device)
        if self.distance is None or not (weights.perceptual > 0 or used):
            return zero, {}
        config = self.config
        indices = sample_frame_indices(batch.fake, config.num_frames, batch.generator)
        # In float32, as they are compared: the backward of splitting half precision fails under CPU autocast.
        frames, targets = (at_least_float32(pick_frames(video, indices)) for video in (batch.fake, batch.real))
        frame_weight = frame_weights(batch.clip_weight, indices)
        size = (config.chunk_size or len(indices)) if eager else len(frames)
        chunks = zip(frames.split(size), targets.split(size), frame_weight.split(size), strict=True)
        compare = partial(self._compare, terms=used)
        if eager:
            values = [eager_backward(partial(compare, target=y, weight=w), x) for x, y, w in chunks]
        else:
            values = [compare(x, target=y, weight=w) for x, y, w in chunks]
        lpips, *rest = (torch.stack(column).sum() for column in zip(*values, strict=True))
        return (lpips if weights.perceptual > 0 else zero), dict(zip(used, rest, strict=True))

    def _compare(
        self, frames: Tensor, *, target: Tensor, weight: Tensor, terms: Mapping[str, TermFunction]
    ) -> tuple[Scalar, ...]:
        assert self.distance is not None
        compare = partial(self.distance, feature_terms=[term.function for term in terms.values()])
        distances = in_chunks(compare, reconstruction=frames, target=target, chunk_size=self.config.chunk_size)
        for name, distance in zip(terms, distances[1:], strict=True):
            if distance.shape != frames.shape[:1]:
                contract, remedy = (
                    f"of shape ({len(frames)},), one value per frame",
                    "Average what belongs to one frame.",
                )
                raise argument_error(f"the result of the term {name}", contract, distance, remedy)
        return tuple((weight * distance).sum() for distance in distances)


def drop_perceptual_weights(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Remove the frozen LPIPS from a state dict of the reference; a hook that runs before it is loaded."""
    for key in [key for key in state_dict if key.startswith(f"{prefix}perceptual_model.")]:
        del state_dict[key]
