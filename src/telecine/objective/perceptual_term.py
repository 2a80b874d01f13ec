"""The perceptual term: LPIPS of the sampled frames, and the terms that compare features of its network."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from telecine.base.checks import argument_error, describe
from telecine.base.precision import at_least_float32
from telecine.base.shapes import Frames, Scalar
from telecine.losses.perceptual import (
    LPIPS,
    CustomDistance,
    WeightsSource,
    as_rgb,
    pick_frames,
    sample_frame_indices,
)
from telecine.losses.perceptual.weights import is_default_source
from telecine.objective.batch import Batch
from telecine.objective.functions import Functions
from telecine.objective.terms import LossTerm
from telecine.objective.weights import Weights
from telecine.ops.eager_gradients import eager_backward
from telecine.settings import ObjectiveConfig


class PerceptualTerm(nn.Module):
    """The mean distance over the sampled frames, and further terms of the same features.

    Args:
        config: The settings of the objective.
        functions: The functions that they name.
        terms: All terms by name; those that read features are computed here.
        vgg_weights: See `VideoAutoencoderLoss`.

    Raises:
        ValueError: `vgg_weights` are for another network, or a distance without features has terms of features.
    """

    distance: LPIPS | CustomDistance | None
    """The network; None if neither LPIPS nor a term of its features is ever on."""

    def __init__(
        self,
        config: ObjectiveConfig,
        functions: Functions,
        terms: Mapping[str, LossTerm],
        vgg_weights: WeightsSource,
    ) -> None:
        super().__init__()
        self.num_frames = config.perceptual.num_frames
        self.chunk_size = config.perceptual.chunk_size
        self.feature_terms = {name: term for name, term in terms.items() if term.reads_features}
        net = functions.perceptual_net
        if net != "vgg" and not is_default_source("vgg", vgg_weights):
            contract = 'left out unless `perceptual.net` is "vgg"'
            remedy = "Load another network's weights with `net=LPIPS('alex', weights=...)`."
            raise argument_error("vgg_weights", contract, describe(config.perceptual.net), remedy)
        schedules = [
            config.term_schedules()["perceptual"],
            *(term.schedule for term in self.feature_terms.values()),
        ]
        if not any(schedule.ramp.is_ever_on for schedule in schedules):
            self.distance = None
        elif isinstance(net, str):
            self.distance = LPIPS(net, weights=vgg_weights if net == "vgg" else None)
        elif isinstance(net, LPIPS):
            self.distance = net
        else:
            self.distance = CustomDistance(net)
        if self.feature_terms and isinstance(self.distance, CustomDistance):
            contract = "without terms of features for a distance that has none"
            got = repr(next(iter(self.feature_terms)))
            raise argument_error("terms", contract, got, 'Use "vgg" or "alex" as `perceptual.net`.')

    def forward(self, batch: Batch, weights: Weights, *, eager: bool) -> dict[str, Scalar]:
        """Return the distance, named "perceptual", and the terms of features. A weight of 0 leaves one out.

        Args:
            batch: The videos.
            weights: The weights at this step.
            eager: Compute the gradient of each chunk of frames before the next chunk. By default, a chunk has as many
                frames as there are clips. False: by default, one chunk has all frames. If there are several, the
                backward computes each again (arXiv:1604.06174).
        """
        names = [name for name in ("perceptual", *self.feature_terms) if weights[name] > 0]
        if not names:
            return {}
        indices = sample_frame_indices(batch.reconstruction, self.num_frames, batch.rng)
        # In float32, as they are compared: the backward of splitting half precision fails under CPU autocast.
        frames = as_rgb(
            at_least_float32(pick_frames(batch.reconstruction, indices)), batch.background
        )
        targets = as_rgb(at_least_float32(pick_frames(batch.target, indices)), batch.background)
        # The weighted sum over the frames is the mean.
        if batch.clip_weight is None:
            frame_weights = torch.full((len(frames),), 1 / len(frames), device=frames.device)
        else:
            frame_weights = (batch.clip_weight / len(frames)).repeat_interleave(indices.shape[1])
        trained: list[nn.Parameter] = []
        for name in names:
            if name != "perceptual":
                trained += self.feature_terms[name].trained_parameters().values()
        size = self.chunk_size
        if size is None:
            size = len(batch.reconstruction) if eager else len(frames)
        chunks: list[dict[str, Scalar]] = []
        for x, y, w in zip(
            frames.split(size), targets.split(size), frame_weights.split(size), strict=True
        ):
            compare = partial(self._weighted_sums, target=y, frame_weights=w, names=names)
            if eager:
                chunks.append(eager_backward(compare, x, trained))
            elif size < len(frames):
                # No random state is stored: the distances are deterministic.
                chunks.append(checkpoint(compare, x, use_reentrant=False, preserve_rng_state=False))
            else:
                chunks.append(compare(x))
        return {name: torch.stack([chunk[name] for chunk in chunks]).sum() for name in names}

    def _weighted_sums(
        self, reconstruction: Frames, *, target: Frames, frame_weights: Tensor, names: Sequence[str]
    ) -> dict[str, Scalar]:
        """Return the weighted sum over frames of the distance and the terms of features in `names`, by name.

        Args:
            reconstruction: `(N, 3, H, W)`.
            target: Of the same shape.
            frame_weights: `(N,)`.
            names: What is computed.
        """
        by_name = self._distances(reconstruction=reconstruction, target=target, names=names)
        return {name: (frame_weights * value).sum() for name, value in by_name.items()}

    def _distances(
        self, *, reconstruction: Frames, target: Frames, names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return the distance and the terms of features in `names`, by name: a value of each frame, `(N,)`."""
        assert self.distance is not None
        terms = [self.feature_terms[name] for name in names if name != "perceptual"]
        if not terms:
            return {"perceptual": self.distance(reconstruction=reconstruction, target=target)}
        distance, *values = self.distance(
            reconstruction=reconstruction, target=target, feature_terms=terms
        )
        by_name = {"perceptual": distance}
        for term, value in zip(terms, values, strict=True):
            if value.shape != reconstruction.shape[:1]:
                contract = f"of shape ({len(reconstruction)},), one value per frame"
                remedy = "Average what belongs to one frame."
                raise argument_error(f"the result of the term {term.name}", contract, value, remedy)
            by_name[term.name] = value
        return {name: by_name[name] for name in names}


def drop_lpips_weights(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Remove the frozen LPIPS from a state dict of the reference; a hook that runs before it is loaded.

    Args:
        module: The loss.
        state_dict: The state dict, which is changed in place.
        prefix: What the names of the loss in it begin with.
    """
    for key in list(state_dict):
        if key.startswith(f"{prefix}perceptual_model."):
            del state_dict[key]
