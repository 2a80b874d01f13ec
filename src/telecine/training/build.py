"""The networks and optimizers of a run from its settings: the autoencoder, the objective with its discriminators."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from telecine.base.checks import argument_error, describe
from telecine.base.devices import pick_device
from telecine.base.imports import how_to_install, is_class_path
from telecine.discriminators.build import build_discriminators
from telecine.models import VideoAutoencoder, as_video_autoencoder, load_autoencoder
from telecine.models.custom import build_custom
from telecine.models.load import build_custom_in, class_in, folder_without_weights, without_weights
from telecine.models.pretrained import check_tensors
from telecine.models.student import Student
from telecine.objective import VideoAutoencoderLoss
from telecine.objective.adaptive_weight import LayerActivations
from telecine.objective.weights import WeightSchedule
from telecine.runs import find_checkpoint
from telecine.settings import (
    AdaptiveWeightConfig,
    ClipConfig,
    DiscriminatorConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)
from telecine.training.compilation import compile_networks
from telecine.training.distributed import broadcast_module, process_group_settings, shard
from telecine.training.state import MovingAverage, TrainState
from telecine.training.tensor_files import OBJECTIVE_FILE, load_tensors
from telecine.training.trainable import select_trainable

logger = logging.getLogger(__name__)
# Where the state dict of the objective has the discriminators.
_DISCRIMINATORS = ("discr.", "discr_3d.", "multiscale_discrs.")


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Return Accelerate's handle of the device, the processes, the precision and the trackers."""
    device = pick_device(config.device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers) or None,
        project_dir=config.output_dir,
        kwargs_handlers=[process_group_settings(config.process_timeout)],
    )
    accelerator.gradient_accumulation_steps = 1  # losses are scaled here, whatever the launcher exports
    if accelerator.device.type != device.type:
        got = f"{device.type} after {accelerator.device.type} in the same process"
        raise argument_error("device", "the same for all runs of a process", got, "Start another process.")
    if config.sharding != "none" and accelerator.num_processes == 1:
        remedy = "Launch several, e.g. with `torchrun --nproc-per-node 2 -m telecine train ...`."
        raise argument_error("sharding", '"none" in a single process', config.sharding, remedy)
    if missing := set(config.trackers) - {str(tracker) for tracker in accelerator.log_with}:
        raise argument_error("trackers", "installed", str(sorted(missing)), "Install them with pip.")
    if unused := set(config.tracker_options) - {*config.trackers}:
        got, remedy = str(sorted(unused)), "Add them to `trackers`, or remove their options."
        raise argument_error("tracker_options", f"of {sorted(config.trackers)}", got, remedy)
    return accelerator


def build_autoencoder(config: TrainConfig, own: nn.Module | None = None) -> VideoAutoencoder:
    """Return the autoencoder that `config` names, or `own`, on the CPU; weights that are not trained are frozen."""
    if own is not None:
        model: VideoAutoencoder = as_video_autoencoder(own)
    elif config.model is None or config.random_weights:
        if config.model is None and config.init is None and config.trainable.weights == "decoder":
            logger.warning("only the decoder is trained, and the encoder is new: add `--model` for a trained one")
        if config.model is None and config.trainable.weights == "lora":
            remedy = "Low-rank updates change a trained model: name it with `--model`."
            raise argument_error("trainable.weights", "all or decoder without `model`", "lora", remedy)
        model = without_weights(config.model, config.causal_vae)
        if isinstance(model, Student):
            remedy = "Use `telecine distill`, or as `model` the config.json of a decoder of diffusers."
            raise argument_error("random_weights", "false for a student, which has a teacher", "true", remedy)
    else:
        model = load_autoencoder(config.model)
    model.use_training_settings(config.causal_vae)
    if own is None and config.model is not None and model.in_channels != config.clips.num_channels:
        text = "the first and the last layer of %s change from %d to %d channels, its other weights stay"
        logger.warning(text, config.model, model.in_channels, config.clips.num_channels)
        model = model.with_channels(config.clips.num_channels)
    if config.model_gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if config.temporal_chunk is not None:
        model.enable_temporal_chunks(config.temporal_chunk)
    select_trainable(model, config.trainable)
    return model.train()


def custom_module(
    name: str | None, arguments: Mapping[str, object], *, random_weights: bool = False
) -> VideoAutoencoder | None:
    """Return the custom module that `TrainConfig.model` names by its class, folder or run; None for another model."""
    if name is not None and is_class_path(name) and not Path(name).exists():
        return build_custom(name, arguments, "model")
    if arguments:
        contract = "left out unless `model` is the dotted path of a class"
        raise argument_error("model_arguments", contract, describe(arguments), "Remove it.")
    if name is None or "." not in class_in(folder := folder_without_weights(name)[1]):
        return None
    return build_custom_in(folder) if random_weights else load_autoencoder(name)


def build_objective(
    objective: ObjectiveConfig, discriminator: DiscriminatorConfig, clips: ClipConfig, *, load: bool = True
) -> VideoAutoencoderLoss:
    """Return the loss with the discriminators that have a weight; without `load`, their frozen network is random."""
    is_on = WeightSchedule(objective).is_ever_on
    has_adversarial, has_scales = is_on("adversarial"), is_on("multiscale_adversarial")
    factors = [1] * has_adversarial + [2**scale for scale in range(1, discriminator.num_scales + 1)] * has_scales
    image, videos = build_discriminators(discriminator, clips, factors, load=load)
    return VideoAutoencoderLoss(
        **objective.arguments(),
        discr_kwargs=image,
        discr_3d_kwargs=videos.pop(0) if videos and has_adversarial else None,
        multiscale_discr_kwargs=videos,
    )


def _load_discriminators(objective: VideoAutoencoderLoss, source: str) -> None:
    """Copy the discriminators of another run, of its last checkpoint, into an objective."""
    setting, checkpoint = "discriminator.init", find_checkpoint(Path(source))
    if checkpoint is None:
        raise argument_error(setting, "a run with a checkpoint", f"{source!r}, without one", "Check the spelling.")
    weights, found = (
        {name: weight for name, weight in state.items() if name.startswith(_DISCRIMINATORS)}
        for state in (objective.state_dict(), load_tensors(checkpoint / OBJECTIVE_FILE))
    )
    for run, each in (("this run", weights), (source, found)):
        if not each:
            remedy = "They are built only for `objective.adversarial_loss_weight`."
            raise argument_error(setting, f"given with discriminators of {run}", "none", remedy)
    remedy = "Use the `discriminator` settings and the size of the clips of that run."
    check_tensors(weights, found, name=setting, contract="a run with the same discriminators", remedy=remedy)
    objective.load_state_dict(found, strict=False)


def _to_channels_last(loss: VideoAutoencoderLoss, device: torch.device) -> None:
    """Change the memory layout of discriminators and LPIPS in place; values change by rounding."""
    if loss.schedule.is_ever_on("grad_penalty") and loss.penalty.double_backward and device.type == "cpu":
        # PyTorch 2.13 with oneDNN corrupts the heap there, with several threads and odd batches of three and more.
        remedy = "Use `objective.penalty.kind: approximate_r1`, or turn the penalty off."
        raise argument_error("channels_last", "false on the CPU with an exact gradient penalty", "true", remedy)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    loss._apply(lambda x: x.contiguous(memory_format=formats[x.ndim]) if x.ndim in formats else x)


def build_state(
    config: TrainConfig, accelerator: Accelerator, model: VideoAutoencoder, *, is_resumed: bool = False
) -> TrainState:
    """Return the state of a run on the accelerator's device, the same on every process; the model is moved in place.

    A resumed run does not need `discriminator.init`: a checkpoint is loaded next.
    """
    device = accelerator.device
    objective = build_objective(config.objective, config.discriminator, config.clips)
    if config.discriminator.init is not None and not is_resumed:
        _load_discriminators(objective, config.discriminator.init)
    objective.to(device)
    if config.channels_last:
        _to_channels_last(objective, device)
    broadcast_module(objective)
    model.to(device)
    adaptive, is_sharded = config.objective.adaptive_weight, config.sharding != "none"
    last_layer = last_layer_of(model, adaptive, config.temporal_chunk, is_sharded=is_sharded)
    broadcast_module(model)
    if config.dynamo_backend != "no":
        eager = compile_networks(config.dynamo_backend, model, objective)
        if eager:
            logger.warning("not compiled: %s", ", ".join(eager))
    if config.sharding != "none":
        shard(model)
    state = new_state(config.optimizer, accelerator, model, objective, last_layer, seed=config.seed)
    if config.sharding == "none" and accelerator.num_processes > 1:
        # Accelerate's `prepare_model` would also let the model compute in half precision wherever it is called; here
        # training does, and validation does not.
        state.model = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    return state


def new_state(
    settings: OptimizerConfig,
    accelerator: Accelerator,
    model: VideoAutoencoder,
    objective: VideoAutoencoderLoss,
    last_layer: Tensor | LayerActivations | None,
    *,
    seed: int,
) -> TrainState:
    """Return the state of a run before its first update: AdamW (arXiv:1711.05101) and the moving average are new."""
    groups: list[dict[str, Any]] = [{"params": [weight for weight in model.parameters() if weight.requires_grad]}]
    if learned := objective.get_trainable_autoencoder_parameters():
        groups.append({"params": learned, "weight_decay": 0.0})  # decay would change a variance
    disc_optimizer, decay = None, settings.weight_decay
    fused = next(model.parameters()).is_cuda or None  # one kernel for all weights; elsewhere PyTorch's default
    kind = partial(AdamW, fused=fused) if settings.name == "adamw" else _adamw_8bit(accelerator.device)
    if discriminators := objective.get_trainable_parameters():
        disc_optimizer = kind(discriminators, settings.disc_lr, betas=settings.disc_betas, weight_decay=decay)
    return TrainState(
        accelerator=accelerator,
        model=model,
        autoencoder=model,
        objective=objective,
        optimizer=kind(groups, settings.lr, betas=settings.betas, weight_decay=decay),
        disc_optimizer=disc_optimizer,
        ema=MovingAverage(model, settings.ema_decay),
        last_layer=last_layer,
        grad_clip=settings.grad_clip,
        seed=seed,
    )


def _adamw_8bit(device: torch.device) -> Any:
    """Return the class of AdamW with states of 8 bits, arXiv:2110.02861."""
    if device.type not in ("cuda", "cpu"):
        raise argument_error("optimizer.name", f"adamw on {device.type}", "adamw_8bit", "bitsandbytes has no kernels.")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as missing:
        raise ImportError(f"`optimizer.name: adamw_8bit` needs bitsandbytes. {how_to_install('8bit')}") from missing
    return AdamW8bit


def last_layer_of(
    model: VideoAutoencoder, adaptive: AdaptiveWeightConfig, temporal_chunk: int | None, *, is_sharded: bool
) -> Tensor | LayerActivations | None:
    """Return the last layer's weight if the adaptive weight compares gradients there, otherwise None.

    Its activations replace a weight that is sharded, and one whose gradient needs those of all temporal chunks at once.
    """
    if adaptive.reference == "none" or adaptive.at != "last_layer":
        return None
    weight = model.last_layer
    if not weight.requires_grad and not is_sharded:
        contract = "`reconstruction` if the last layer is frozen"
        remedy = "Set it to `reconstruction`, which needs no layer."
        raise argument_error("objective.adaptive_weight.at", contract, adaptive.at, remedy)
    if not is_sharded and temporal_chunk is None:
        return weight
    return LayerActivations(next(layer for layer in model.modules() if getattr(layer, "weight", None) is weight))
