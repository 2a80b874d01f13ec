"""The perceptual distance of an objective: LPIPS v0.1, or a custom one; the distance of Gram matrices."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error, describe
from telecine.base.files import named_errors
from telecine.base.frozen import FrozenModule, FrozenTensors
from telecine.base.precision import at_least_float32, autocast_off
from telecine.base.shapes import Frames, check_frame_pair, check_frames
from telecine.losses.perceptual.backbones import Backbone, FeatureMap, Stage, backbone_of
from telecine.losses.perceptual.weights import WeightsSource, load_backbone
from telecine.ops.unit_vectors import unit_vectors

# Map [-1, 1] to the statistics that the backbones were trained with.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
# Its square is added to the squared norm of features. On real frames that norm is above 1, and this is below float32's
# rounding error. Where all features are zero it bounds the gradient of the unit vector to 1e4.
_EPSILON = 1e-4
_CONTRACT = "a function or module that compares (reconstruction=, target=)"


class LPIPS(FrozenTensors):
    """Learned perceptual distance between frames: 0 for equal ones, larger is worse (arXiv:1801.03924, v0.1).

    Args:
        net: "vgg" (VGG16 up to relu1_2, 2_2, 3_3, 4_3, 5_3), the usual training loss, or "alex" (the five ReLUs of
            AlexNet), the usual metric.
        weights: Source of the backbone's weights, as `load_backbone` accepts it: `None` for torchvision's default, a
            member of its weights enum, a file, or a state dict. The linear heads are part of telecine.

    The module is deterministic and always in evaluation mode. It has no parameters and no buffers for optimizers,
    checkpoints and wrappers. It moves with `.to(device)` and `.double()`, and stays in float32 under `.half()`.

    Raises:
        ValueError: `net` is unknown, or `weights` do not fit it.
        WeightsNotFoundError: The weights are not on this machine and cannot be downloaded.

    Example:
        >>> distance = LPIPS("vgg")
        >>> distance(reconstruction=frames + 0.1, target=frames).shape  # frames: (8, 3, 64, 64)
        torch.Size([8])
    """

    def __init__(self, net: str = "vgg", *, weights: WeightsSource = None) -> None:
        # No buffers: data-parallel wrappers broadcast every buffer before each forward, here 59 MB that never change.
        scaling = {
            "shift": torch.tensor(_SHIFT).view(1, 3, 1, 1),
            "scale": torch.tensor(_SCALE).view(1, 3, 1, 1),
        }
        super().__init__({**load_backbone(net, weights), **_load_heads(net), **scaling})
        self.net = net
        self._backbone = backbone_of(net)

    def forward(
        self,
        *,
        reconstruction: Frames,
        target: Frames,
        feature_terms: Sequence[Callable[..., Tensor]] = (),
    ) -> Float[Tensor, " frame"] | tuple[Float[Tensor, " frame"], ...]:
        """Return one distance per frame, `(N,)`, at least float32, in [0, inf); the graph is kept.

        The computation uses the widest precision of the two and the weights, at least float32, also under autocast.

        Args:
            reconstruction: `(N, 3, H, W)` in [-1, 1]; H and W are at least 16 ("vgg") or 31 ("alex").
            target: The same shape and device. Without a gradient, its features are computed without a graph.
            feature_terms: Functions of `reconstruction_features` and `target_features`, the map `(N, C, H, W)` of each
                stage, not yet unit vectors. With them, the result is a tuple of the distance and their values `(N,)`.

        Raises:
            ValueError: An input is not a floating-point `(N, 3, H, W)` of that size, or shapes or devices differ.
        """
        check_frame_pair(reconstruction=reconstruction, target=target)
        _check_fits("reconstruction", reconstruction, self._backbone)
        with autocast_off(reconstruction.device):
            distances = []
            xs = []
            ys = []
            for x, y, head in self._stages(reconstruction, target):
                distances.append(feature_distance(x, y, head))
                if feature_terms:  # otherwise no map is kept
                    xs.append(x)
                    ys.append(y)
            distance = _sum(distances)
            if not feature_terms:
                return distance
            return (
                distance,
                *[term(reconstruction_features=xs, target_features=ys) for term in feature_terms],
            )

    def features(self, frames: Frames) -> list[FeatureMap]:
        """Return the feature maps of frames `(N, 3, H, W)` in [-1, 1], of each stage; the graph is kept.

        Raises:
            ValueError: The frames have another shape, or are too small.
        """
        check_frames("frames", frames)
        _check_fits("frames", frames, self._backbone)
        with autocast_off(frames.device):
            return list(_run_stages(self._backbone.stages, self._weights_for(frames.dtype), frames))

    def _stages(
        self, reconstruction: Frames, target: Frames
    ) -> Iterator[tuple[FeatureMap, FeatureMap, Tensor]]:
        """Yield the feature maps of both at the end of each stage, and the stage's linear head."""
        stages = self._backbone.stages
        weights = self._weights_for(reconstruction.dtype, target.dtype)
        # Not as one batch: a target that does not require gradients then gets no graph.
        xs = _run_stages(stages, weights, reconstruction)
        ys = _run_stages(stages, weights, target)
        for index, (x, y) in enumerate(zip(xs, ys, strict=True)):
            yield x, y, weights[f"head.{index}"]

    def _weights_for(self, *dtypes: torch.dtype) -> dict[str, Tensor]:
        # float32 or float64
        widest = reduce(torch.promote_types, dtypes, self.weights["scale"].dtype)
        return {name: tensor.to(widest) for name, tensor in self.weights.items()}


def _run_stages(
    stages: Iterable[Stage], weights: Mapping[str, Tensor], frames: Frames
) -> Iterator[FeatureMap]:
    """Yield the feature map `(N, C', H', W')` at the end of each stage, in the precision of `weights`."""
    x = (frames.to(weights["shift"].dtype) - weights["shift"]) / weights["scale"]
    for stage in stages:
        if stage.pool:
            x = F.max_pool2d(x, kernel_size=stage.pool, stride=2)
        for layer in stage.convolutions:
            weight = weights[f"{layer.name}.weight"]
            bias = weights[f"{layer.name}.bias"]
            # In place: frozen convolutions store no input, so the graph holds one activation per layer.
            x = torch.relu_(F.conv2d(x, weight, bias, layer.stride, layer.padding))
        yield x


def feature_distance(
    x: FeatureMap, y: FeatureMap, head: Float[Tensor, " feature"]
) -> Float[Tensor, " frame"]:
    """Return the distance of feature maps: the squared difference of unit vectors, averaged and weighted.

    Args:
        x: `(N, C, H, W)`.
        y: The same shape.
        head: The weight of each channel, `(C,)`.

    Returns:
        One distance for each frame, `(N,)`.
    """
    # Smooth: the gradient of a pixel whose features are all zero would be NaN.
    x = unit_vectors(x, _EPSILON, is_smooth=True)
    y = unit_vectors(y, _EPSILON, is_smooth=True)
    return (x - y).square().mean(dim=(2, 3)) @ head


def _load_heads(net: str) -> dict[str, Tensor]:
    """Return the published v0.1 linear heads of `net` as `head.0` ... `head.4`, each `(C,)`, non-negative, float32."""
    path = Path(__file__).with_name("heads.safetensors")
    with named_errors(path):
        heads = load_safetensors(path.read_bytes())
    return {
        f"head.{index}": heads[f"{net}.{index}"] for index in range(len(backbone_of(net).stages))
    }


class CustomDistance(FrozenModule[Callable[..., Tensor]]):
    """A custom distance: called in float32 or wider, with its result checked, and frozen if it is a module.

    Args:
        net: Called as `net(reconstruction=..., target=...)`, or as `net(reconstruction, target)` if its parameters
            have other names or cannot be read, with frames `(N, C, H, W)`. It returns a floating-point tensor on their
            device: `(N,)`, `(N, 1, 1, 1)` as the `lpips` package does, or a scalar, the mean over the frames.

    An `nn.Module` is frozen in place, as `FrozenModule` does, and moves with this module. The caller freezes and moves
    the networks that a plain function uses.

    Raises:
        ValueError: `net` cannot be called in these ways.
    """

    def __init__(self, net: Callable[..., Tensor]) -> None:
        takes_names = _takes_names(net)  # checked before anything is frozen
        super().__init__(net)
        self._takes_names = takes_names

    def forward(self, *, reconstruction: Frames, target: Frames) -> Float[Tensor, " frame"]:
        """Return one distance per frame, `(N,)`, at least float32; the graph is kept as far as the net keeps it.

        The net receives both, `(N, C, H, W)`, in the wider precision of the two, at least float32, without autocast.

        Raises:
            ValueError: The two are not such frames, or the net returns something else than `CustomDistance` says.
        """
        check_frame_pair(reconstruction=reconstruction, target=target)
        widest = torch.promote_types(
            torch.promote_types(reconstruction.dtype, target.dtype), torch.float32
        )
        x = reconstruction.to(widest)
        y = target.to(widest)
        with autocast_off(x.device):
            net = self.in_eval_mode()
            if self._takes_names:
                distance = net(reconstruction=x, target=y)
            else:
                distance = net(x, y)
        return _one_per_frame(distance, reconstruction)


def _takes_names(net: object) -> bool:
    if not callable(net) or isinstance(net, type):
        raise argument_error(
            "net",
            _CONTRACT,
            describe(net),
            "Pass a function, or an instance of the module's class.",
        )
    try:
        signature = inspect.signature(net.forward if isinstance(net, nn.Module) else net)
    except (TypeError, ValueError):  # compiled code without a readable signature
        return False
    with suppress(TypeError):
        signature.bind(reconstruction=None, target=None)
        return True
    with suppress(TypeError):
        signature.bind(None, None)
        return False
    remedy = "Fix its other arguments with `functools.partial`."
    raise argument_error("net", _CONTRACT, f"one of the signature {signature}", remedy)


def _one_per_frame(distance: Any, frames: Frames) -> Float[Tensor, " frame"]:
    n = len(frames)
    shapes = [(), (n,), (n, 1), (n, 1, 1), (n, 1, 1, 1)]
    is_float = (
        isinstance(distance, Tensor)
        and distance.is_floating_point()
        and distance.device == frames.device
    )
    if not is_float or tuple(distance.shape) not in shapes:
        contract = f"{_CONTRACT} and returns floating point of shape ({n},), ({n}, 1, 1, 1) or () on {frames.device}"
        raise argument_error(
            "net",
            contract,
            describe(distance),
            "Average over the pixels of each frame, or over all.",
        )
    return at_least_float32(distance).reshape(-1).expand(len(frames))


def gram(
    *, reconstruction_features: Sequence[FeatureMap], target_features: Sequence[FeatureMap]
) -> Float[Tensor, " frame"]:
    """Return the distance of Gram matrices, summed over the feature maps of a network, one value per frame `(N,)`.

    The squared Frobenius norm of the difference of two matrices (equation 4 of "Perceptual Losses for Real-Time Style
    Transfer", Johnson et al., arXiv:1603.08155) compares which features occur together anywhere in a frame, that is,
    the textures. Maps `(N, C, H, W)` and `(N, C, H', W')` have a distance in [0, inf), at least float32, also under
    autocast; 0 for equal textures, larger is worse. The graph is kept. The norm is squared, so the gradient is finite
    where the two are equal or all features are zero.
    """
    distances = []
    for x, y in zip(reconstruction_features, target_features, strict=True):
        difference = gram_matrix(x) - gram_matrix(y)
        distances.append(difference.square().sum(dim=(1, 2)))
    return _sum(distances)


def gram_matrix(features: FeatureMap) -> Float[Tensor, "frame feature feature"]:
    """Return `F F^T / (C H W)` of each feature map, with F its C rows of H W values (equation 3)."""
    with autocast_off(features.device):
        rows = at_least_float32(features).flatten(2)
        return rows @ rows.transpose(1, 2) / rows[0].numel()


def _sum(distances: Iterable[Float[Tensor, " frame"]]) -> Float[Tensor, " frame"]:
    return reduce(torch.add, distances)


def _check_fits(name: str, frames: Tensor, backbone: Backbone) -> None:
    if frames.shape[1] != 3:
        remedy = "Repeat one channel with `frames.expand(-1, 3, -1, -1)`, or select three of more."
        remedy += " For a video (B, T, C, H, W) use `video.transpose(1, 2)`."
        raise argument_error(name, "a floating-point tensor of shape (N, 3, H, W)", frames, remedy)
    if min(frames.shape[2:]) < backbone.minimum_size:
        size = f"at least {backbone.minimum_size} pixels high and wide for {backbone.title}"
        remedy = "Use larger crops, or scale the frames up with `torch.nn.functional.interpolate`."
        raise argument_error(name, size, frames, remedy)
