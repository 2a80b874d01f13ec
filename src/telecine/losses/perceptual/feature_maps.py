"""Feature maps of a frozen network at several of its layers; gradients reach the frames."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from importlib import import_module
from math import isqrt, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from telecine.base.checks import argument_error, check_count, describe, suggestion
from telecine.base.frozen import FrozenModule
from telecine.base.precision import at_least_float32, autocast_off
from telecine.base.shapes import Frames, Video
from telecine.losses.latent import resized
from telecine.losses.perceptual.backbones import BACKBONES, FeatureMap
from telecine.losses.perceptual.lpips import LPIPS
from telecine.losses.perceptual.weights import WeightsSource, load_state
from telecine.ops.pass_options import pass_options

# Mean and standard deviation of ImageNet's colours in [0, 1], the training data of torchvision's networks.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The modules of the libraries that have networks by name.
_LIBRARIES = {"torchvision": "torchvision.models", "timm": "timm"}
# Side of the frames from which the number of features is read.
PROBED_SIZE = 64


class FeatureMaps(FrozenModule[Callable[[Frames], Any]]):
    """A frozen network that returns several feature maps; it has no parameters and is in no state dict.

    Args:
        net: A module or function of frames `(N, 3, H, W)` in [-1, 1] that returns maps `(N, F, h, w)`, or tokens
            `(N, n, F)` of which the last `k * k` are a square map: one, or a list of them. Or one of clips
            `(N, 3, T, H, W)` that returns maps `(N, F, t, h, w)`. A module is frozen in place, and float32 at least.
        size: Height and width to which frames are resized first, e.g. 224 for transformers. Default: their own.
        token_grid: `(t, h, w)` of the map that the last `t * h * w` tokens of a clip are, if `net` returns tokens.
    """

    def __init__(
        self,
        net: Callable[..., Any],
        size: int | None = None,
        token_grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__(net)
        self.size = None if size is None else check_count("size", size)
        self.token_grid = token_grid
        if token_grid is not None:
            if len(token_grid) != 3:
                raise argument_error(
                    "token_grid", "three numbers: (t, h, w)", token_grid, "For example [8, 14, 14]."
                )
            for axis, number in enumerate(token_grid):
                check_count(f"token_grid[{axis}]", number)

    def forward(self, frames: Frames | Video) -> list[FeatureMap | Video]:
        """Return the maps, from first to last, in the precision of the network, also under autocast."""
        net = self.in_eval_mode()
        x = at_least_float32(frames)
        if isinstance(net, nn.Module):
            x = x.to(next(net.parameters(), x).dtype)
        if self.size is not None:
            size = [self.size, self.size]
            if x.ndim == 5:
                x = resized(x, size)
            else:
                x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        # The fused kernels of attention have no double backward.
        attention = (
            sdpa_kernel(SDPBackend.MATH)
            if pass_options().is_differentiated_twice
            else nullcontext()
        )
        with autocast_off(frames.device), attention:
            outputs = net(x)
        if not isinstance(outputs, (list, tuple)):
            outputs = [outputs]
        return [_as_map(output, frames, self.token_grid) for output in outputs]


def _as_map(output: object, inputs: Tensor, token_grid: Sequence[int] | None) -> FeatureMap | Video:
    """Return a map with the axes of the inputs as it is, and tokens `(N, n, F)` as the map that the last of them are.

    That map is `token_grid` of clips, and the largest square of frames.
    """
    is_video = inputs.ndim == 5
    if isinstance(output, Tensor) and len(output) == len(inputs):
        if output.ndim == inputs.ndim and token_grid is None:
            return output
        if output.ndim == 3:
            num_tokens = output.shape[1]
            grid = token_grid if is_video else [isqrt(num_tokens)] * 2
            if grid is not None and prod(grid) <= num_tokens:
                # The tokens before them are those of classes and registers.
                return output[:, -prod(grid) :].transpose(1, 2).unflatten(2, tuple(grid))
    if not is_video:
        kind = "maps (N, F, h, w) or of tokens (N, n, F)"
    elif token_grid is None:
        kind = "maps (N, F, t, h, w), or with a `token_grid` of tokens (N, n, F)"
    else:
        kind = f"tokens (N, n, F) with n of at least {prod(token_grid)}"
    batch = f"{len(inputs)} {'clips' if is_video else 'frames'}"
    contract = f"a list of {kind}, or one of them, for N = {batch}"
    remedy = "Choose other layers, or wrap it in a function that returns such a map."
    raise argument_error("the result of `net`", contract, describe(output), remedy)


class _BackboneMaps(nn.Module):
    """The feature maps of LPIPS' backbone, except VGG's map at full size. It shares LPIPS' weights."""

    def __init__(self, lpips: LPIPS) -> None:
        super().__init__()
        self.lpips = lpips

    def forward(self, frames: Frames) -> list[FeatureMap]:
        if self.lpips.net == "vgg":
            return self.lpips.features(frames)[1:]
        height, width = frames.shape[2:]
        padding = (0, _padding_for_alexnet(width), 0, _padding_for_alexnet(height))
        return self.lpips.features(F.pad(frames, padding, mode="replicate"))


def _padding_for_alexnet(size: int) -> int:
    """Return the rows that a frame needs: the first convolution, of stride 4, leaves out the last row of some sizes."""
    is_left_out = size % 4 == 2 and size > BACKBONES["alex"].minimum_size
    return 2 if is_left_out else 0


class _LayerMaps(nn.Module):
    """The outputs of some layers of a network, whose parameters become buffers; later layers are not computed.

    `layers` are named as in `torchvision.models.feature_extraction`; `mean` and `std` are of colours in [0, 1].
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, net: nn.Module, layers: Sequence[str], mean: Iterable[float], std: Iterable[float]
    ) -> None:
        from torchvision.models.feature_extraction import create_feature_extractor  # slow to import

        super().__init__()
        try:
            self.net = create_feature_extractor(net.eval(), {layer: layer for layer in layers})
        except ValueError as error:
            children = ", ".join(name for name, _ in net.named_children())
            remedy = f"Name some of its modules, below: {children}."
            raise argument_error(
                "layers", f"layers of {type(net).__name__}", repr(layers), remedy
            ) from error
        for module in self.net.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                # As plans need it: PyTorch moves no fake parameters.
                module.register_buffer(name, parameter.detach())
        self.register_buffer(
            "shift", 2 * torch.tensor(tuple(mean)).view(1, 3, 1, 1) - 1, persistent=False
        )
        self.register_buffer(
            "scale", 2 * torch.tensor(tuple(std)).view(1, 3, 1, 1), persistent=False
        )

    def forward(self, frames: Frames) -> list[Tensor]:
        normalised = (frames.to(self.scale.dtype) - self.shift) / self.scale
        return list(self.net(normalised).values())


def build_maps(
    net: str,
    weights: WeightsSource = None,
    layers: Sequence[str] = (),
    *,
    load: bool = True,
    prefix: str = "",
) -> nn.Module:
    """Return the network that `net` names, as `FeatureMaps` needs it.

    Args:
        net, weights, layers: See `FeatureDiscriminator`.
        load: Whether to load the weights; without, they are random.
        prefix: Stands before the names of arguments in errors.

    Raises:
        ValueError: An argument is invalid, or the weights do not fit.
        FileNotFoundError: There are no such weights.
    """
    if net in BACKBONES:
        if layers:
            remedy = "Leave it out: there is a head for each of LPIPS' layers that is smaller than the frame."
            raise argument_error(
                f"{prefix}layers", f"empty for {net!r}", repr(tuple(layers)), remedy
            )
        empty = {name: torch.empty(shape) for name, shape in BACKBONES[net].tensor_shapes().items()}
        return _BackboneMaps(LPIPS(net, weights=weights if load else empty))
    library, _, name = net.partition("/")
    if library not in _LIBRARIES or not name:
        contract = '"vgg", "alex", "torchvision/NAME" or "timm/NAME"'
        raise argument_error(
            f"{prefix}net", contract, repr(net), 'For example "torchvision/resnet50".'
        )
    if not layers:
        remedy = 'For example ["layer1", "layer2", "layer3"] of a ResNet.'
        raise argument_error(f"{prefix}layers", f"the names of layers of {net!r}", "none", remedy)
    if load and not isinstance(weights, (str, Path)):
        remedy = f"Download it from the authors of {name}: random weights are never used instead."
        raise argument_error(
            f"{prefix}weights", f"the path of a state dict for {net!r}", repr(weights), remedy
        )
    module, (mean, std) = _build_module(library, name)
    if load:
        load_state(module, Path(str(weights)))
    return _LayerMaps(module, layers, mean, std)


def _build_module(library: str, name: str) -> tuple[nn.Module, Any]:
    """Return a network of a library with random weights, and the mean and standard deviation of its colours."""
    try:
        models = import_module(_LIBRARIES[library])  # slow
    except ModuleNotFoundError as error:
        got = f"{library}/{name} without the package"
        remedy = f"Run `pip install {library}`."
        raise argument_error("net", "a network of an installed package", got, remedy) from error
    names = models.list_models()
    is_available = name in names or (library == "timm" and name in models.list_pretrained())
    if not is_available:
        raise argument_error("net", f"a model of {library}", repr(name), suggestion(name, names))
    if library == "torchvision":
        return models.get_model(name, weights=None), IMAGENET
    module = models.create_model(name, pretrained=False)
    return module, (module.pretrained_cfg["mean"], module.pretrained_cfg["std"])
