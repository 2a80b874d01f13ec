"""Build discriminators: from the settings of a run, a module, constructor arguments, or a target with params."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from telecine.base.checks import argument_error, describe, shorten
from telecine.base.imports import CODE_ERRORS, check_arguments, import_allowed
from telecine.discriminators.features import FeatureDiscriminator
from telecine.discriminators.patch import PatchDiscriminator, PatchDiscriminator3D
from telecine.discriminators.residual import (
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
)
from telecine.losses.perceptual.feature_maps import build_maps
from telecine.settings import ClipConfig, DiscriminatorConfig

DiscriminatorSpec: TypeAlias = nn.Module | Mapping[str, object]


def _image_attention(
    config: DiscriminatorConfig, clips: ClipConfig, factor: int, backbone: nn.Module | None
) -> nn.Module:
    return Discriminator(**_residual_options(config, clips, factor))


def _image_patch(
    config: DiscriminatorConfig, clips: ClipConfig, factor: int, backbone: nn.Module | None
) -> nn.Module:
    return PatchDiscriminator(
        base_channels=4 * config.dim,
        channels=clips.num_channels,
        num_layers=config.num_layers,
        max_dim=config.max_dim,
        norm=config.norm,
    )


def _first_frame(
    config: DiscriminatorConfig, clips: ClipConfig, factor: int, backbone: nn.Module | None
) -> nn.Module:
    return Discriminator3DWithfirstframe(
        **_residual_options(config, clips, factor),
        frame_num=clips.num_frames,
        time_weighting=config.time_weighting,
    )


def _plain(
    config: DiscriminatorConfig, clips: ClipConfig, factor: int, backbone: nn.Module | None
) -> nn.Module:
    return Discriminator3D(**_residual_options(config, clips, factor), frame_num=clips.num_frames)


def _residual_options(
    config: DiscriminatorConfig, clips: ClipConfig, factor: int
) -> dict[str, Any]:
    return {
        "dim": config.dim,
        "image_size": _image_size(clips, factor),
        "channels": clips.num_channels,
        "max_dim": config.max_dim,
        "antialiased_downsample": config.antialiased_downsample,
    }


def _image_size(clips: ClipConfig, factor: int) -> tuple[int, int]:
    return math.ceil(clips.height / factor), math.ceil(clips.width / factor)


def _patch(
    config: DiscriminatorConfig, clips: ClipConfig, factor: int, backbone: nn.Module | None
) -> nn.Module:
    return PatchDiscriminator3D(
        base_channels=4 * config.dim,
        channels=clips.num_channels,
        num_layers=config.num_layers,
        num_temporal_layers=config.num_temporal_layers,
        max_dim=config.max_dim,
        norm=config.norm,
    )


def _features(
    config: DiscriminatorConfig, clips: ClipConfig, factor: int, backbone: nn.Module | None
) -> nn.Module:
    assert backbone is not None
    return FeatureDiscriminator(
        net=backbone, base_channels=4 * config.dim, size=config.features.size
    )


Build: TypeAlias = Callable[[DiscriminatorConfig, ClipConfig, int, nn.Module | None], nn.Module]
"""From the settings, the number by which the height and width of the clips are divided, and the frozen network of
"features", to a discriminator."""
# By the names that the settings have, without "none". `dim` is a quarter of the channels of the first block, in the
# settings and in the residual networks, as in CogVideo.
IMAGE: Mapping[str, Build] = {
    "attention": _image_attention,
    "patch": _image_patch,
}
VIDEO: Mapping[str, Build] = {
    "first_frame": _first_frame,
    "plain": _plain,
    "patch": _patch,
    "features": _features,
}


def build_discriminators(
    config: DiscriminatorConfig, clips: ClipConfig, factors: Sequence[int], *, load: bool
) -> tuple[nn.Module | None, list[nn.Module]]:
    """Build the discriminators of a run.

    Args:
        config: Their settings.
        clips: The settings of the clips that they see.
        factors: The video discriminators see clips whose height and width are divided by one of these factors each.
        load: Whether the frozen network of discriminators on features gets its weights; without, it is random.

    Returns:
        The discriminator of single frames, `None` without one or if 1 is no factor; and the discriminators of clips, by
        factor.
    """
    build_video = choose_video(config)
    backbone: nn.Module | None = None
    if config.video == "features" and factors:
        features = config.features  # one network, which all of them share
        backbone = build_maps(
            features.net,
            features.weights,
            features.layers,
            load=load,
            prefix="discriminator.features.",
        )
    videos: list[nn.Module] = []
    if build_video is not None:
        videos = [build_video(config, clips, factor, backbone) for factor in factors]
    # After the others: the order decides which random numbers the weights are.
    image: nn.Module | None = None
    if config.image != "none" and 1 in factors:
        image = IMAGE[config.image](config, clips, 1, backbone)
    return image, videos


def choose_video(config: DiscriminatorConfig) -> Build | None:
    """Return the function that builds a discriminator of clips; None without one.

    Raises:
        ValueError: `video` is a path that cannot be imported, or that of something else; or `params` are not its
            arguments.
    """
    name = "discriminator.video"
    kind = config.video
    if kind == "none":
        return None
    if isinstance(kind, str) and kind in VIDEO:
        return VIDEO[kind]
    cls = import_allowed(kind, name) if isinstance(kind, str) else kind
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        names = ", ".join([*VIDEO, "none"])
        contract = f"one of {names}, or the dotted path of a class of modules"
        raise argument_error(name, contract, f"{kind}, which is another object", "Check the path.")
    if getattr(cls, "sees", "video") != "video":
        remedy = 'Set its attribute `sees` to "video" if its input is (B, C, T, H, W).'
        raise argument_error(name, "a class that sees video", f"{kind}, which sees frames", remedy)
    check_arguments("discriminator.params", cls, config.params, are_all=False)
    return partial(_custom, cls)


def _custom(
    cls: type[nn.Module],
    config: DiscriminatorConfig,
    clips: ClipConfig,
    factor: int,
    backbone: nn.Module | None,
) -> nn.Module:
    """Build a class with the size of its clips and with settings that are arguments of it; `params` count more."""
    options = {field.name: getattr(config, field.name) for field in fields(config)}
    options["channels"] = clips.num_channels
    options["frame_num"] = clips.num_frames
    options["image_size"] = _image_size(clips, factor)
    parameters = inspect.signature(cls).parameters
    arguments = {name: value for name, value in options.items() if name in parameters}
    arguments |= config.params
    try:
        return cls(**arguments)
    except CODE_ERRORS as error:
        raised = f"{type(error).__name__} with {shorten(repr(arguments))}: {error}"
        remedy = "Set its arguments by `discriminator.params`, or correct it."
        got = f"{config.video}, which raises {raised}"
        raise argument_error("discriminator.video", "a class of modules", got, remedy) from error


def build_discriminator(spec: object, *, default: type[nn.Module], name: str) -> nn.Module:
    """Build the discriminator that `spec` describes.

    Args:
        spec: An `nn.Module`, which is returned unchanged, a mapping of constructor arguments of `default`, or
            `{"target": "<dotted class>", "params": {...}}`. Mappings may come from YAML or OmegaConf.
        default: The class for a mapping without a target.
        name: The argument's name, for errors.

    Raises:
        TypeError: If `spec` is none of these.
        ValueError: If the class cannot be found or does not accept the arguments.
    """
    if isinstance(spec, nn.Module):
        return spec
    if not isinstance(spec, Mapping):
        contract = 'an nn.Module, a dict of arguments, or {"target": ..., "params": ...}'
        remedy = "Pass for example {'dim': 64, 'image_size': 256}."
        raise argument_error(name, contract, describe(spec), remedy, TypeError)
    if "target" not in spec:
        return _construct(default, spec, name)
    extra = set(spec) - {"target", "params"}
    if extra:
        contract = "a dict of only `target` and `params`"
        raise argument_error(name, contract, f"also {sorted(extra)}", "Move them under `params`.")
    params = spec.get("params") or {}
    if not isinstance(params, Mapping):
        remedy = "Write `key: value` under `params`."
        raise argument_error(f"{name}.params", "a dict of arguments", describe(params), remedy)
    return _construct(_resolve_class(spec["target"], name), params, f"{name}.params")


def _resolve_class(target: str, name: str) -> type[nn.Module]:
    """Return the class at a dotted path; CogVideo's paths return telecine's classes."""
    module_name, _, class_name = str(target).rpartition(".")
    # CogVideo's modules need not be installed.
    if module_name.removeprefix("sat.") == "sgm.modules.autoencoding.losses.video_loss":
        target = f"telecine.cogvideo.{class_name}"
    cls = import_allowed(str(target), f"{name}.target")
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        remedy = "Use the full dotted path of a class, such as 'telecine.Discriminator3D'."
        raise argument_error(
            f"{name}.target", "a subclass of nn.Module", f"{target!r}, which is {cls!r}", remedy
        )
    return cls


def _construct(cls: type[nn.Module], params: Mapping[str, object], name: str) -> nn.Module:
    check_arguments(name, cls, params, are_all=True)
    return cls(**params)
