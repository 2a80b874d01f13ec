"""Build discriminators: from the settings of a run, a module, constructor arguments, or a target with params."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TypeAlias

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


# By the names that the settings have, without "none".
IMAGE: Mapping[str, type[nn.Module]] = {
    "attention": Discriminator,
    "patch": PatchDiscriminator,
}
VIDEO: Mapping[str, type[nn.Module]] = {
    "first_frame": Discriminator3DWithfirstframe,
    "plain": Discriminator3D,
    "patch": PatchDiscriminator3D,
    "features": FeatureDiscriminator,
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
    video_class = choose_video(config)
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
    if video_class is not None:
        is_custom = config.video not in VIDEO
        videos = [
            _build(video_class, config, clips, factor, backbone, is_custom=is_custom)
            for factor in factors
        ]
    # After the others: the order decides which random numbers the weights are.
    image: nn.Module | None = None
    if config.image != "none" and 1 in factors:
        image = _build(IMAGE[config.image], config, clips, 1, backbone, is_custom=False)
    return image, videos


def choose_video(config: DiscriminatorConfig) -> type[nn.Module] | None:
    """Return the class of the discriminators of clips; None without one.

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
    return cls


def _build(
    cls: type[nn.Module],
    config: DiscriminatorConfig,
    clips: ClipConfig,
    factor: int,
    backbone: nn.Module | None,
    *,
    is_custom: bool,
) -> nn.Module:
    """Build a class with the size of its clips and with the settings that are arguments of it.

    Args:
        cls: The class.
        config: The settings.
        clips: The settings of the clips.
        factor: The number by which the height and width of the clips are divided.
        backbone: The frozen network of "features".
        is_custom: Whether the class is the user's. It then gets `params`, too, which count more, and not what only
            telecine's classes have.

    Raises:
        ValueError: The class is the user's, and raises an error.
    """
    options = {field.name: getattr(config, field.name) for field in fields(config)}
    options["channels"] = clips.num_channels
    options["frame_num"] = clips.num_frames
    options["image_size"] = (math.ceil(clips.height / factor), math.ceil(clips.width / factor))
    if not is_custom:
        # `dim` is a quarter of the channels of the first block, in the settings and in the residual networks, as in
        # CogVideo.
        options["base_channels"] = 4 * config.dim
        options["net"] = backbone
        options["size"] = config.features.size
    parameters = inspect.signature(cls).parameters
    arguments = {name: value for name, value in options.items() if name in parameters}
    if not is_custom:
        return cls(**arguments)
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
