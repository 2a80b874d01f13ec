"""The networks and optimizers of a run from its settings: the autoencoder, the objective with its discriminators."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from telecine.base.checks import argument_error, describe
from telecine.base.devices import pick_device
from telecine.base.imports import is_class_path
from telecine.discriminators.build import build_discriminators
from telecine.models import CausalVAE, VideoAutoencoder, as_video_autoencoder, load_autoencoder
from telecine.models.context_parallel import split_over_processes
from telecine.models.custom import CustomAutoencoder
from telecine.models.custom_reload import build_custom
from telecine.models.frozen_encoder import TeacherEncoderModel
from telecine.models.load import is_custom
from telecine.models.pretrained import check_tensors
from telecine.objective import VideoAutoencoderLoss
from telecine.objective.gradient_probes import GradientProbe, TensorProbe
from telecine.objective.layer_activations import LayerActivations
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
from telecine.training.compilation import compile_networks, keep_buffers_of_compiled_code
from telecine.training.distributed import (
    broadcast_module,
    destroy_process_group_at_exit,
    enter_context_group,
    process_group_settings,
    shard,
)
from telecine.training.optimizers import build_optimizers
from telecine.training.prediction import build_prediction
from telecine.training.state import MovingAverage, TrainState
from telecine.training.tensor_files import OBJECTIVE_FILE, load_tensors
from telecine.training.trackers import check_trackers
from telecine.training.trainable import select_trainable

logger = logging.getLogger(__name__)
# Where the state dict of the objective has the discriminators.
_DISCRIMINATORS = ("discr.", "discr_3d.", "multiscale_discrs.")


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Return Accelerate's handle of the device, the processes, the precision and the trackers.

    Raises:
        ValueError: The device does not have the precision or is not the one that the process has used, there is
            nothing to shard, or a tracker is unknown or not installed.
    """
    device = pick_device(config.device)
    if config.mixed_precision == "fp16" and device.type == "cpu":
        # Accelerate would train in float32.
        remedy = "Use bf16, or no: half precision with a loss scale is for GPUs."
        raise argument_error("mixed_precision", "no or bf16 on a CPU", "fp16", remedy)
    if config.mixed_precision == "bf16" and not _computes_in_bfloat16(device):
        remedy = "NVIDIA's GPUs compute in bfloat16 from Ampere on: add `--mixed_precision fp16`."
        raise argument_error("mixed_precision", "fp16 or no on this GPU", "bf16", remedy)
    check_trackers(config.trackers)
    # Accelerate keeps the precision of the first run of a process; the device and the process group stay.
    AcceleratorState._reset_state()
    destroy_process_group_at_exit()
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers) or None,
        project_dir=config.output_dir,
        kwargs_handlers=[process_group_settings(config.process_timeout)],
    )
    # Losses are scaled here, whatever the launcher exports.
    accelerator.gradient_accumulation_steps = 1
    if accelerator.device.type != device.type:
        got = f"{device.type} after {accelerator.device.type} in the same process"
        raise argument_error(
            "device", "the same for all runs of a process", got, "Start another process."
        )
    if config.sharding != "none" and accelerator.num_processes == 1:
        remedy = "Launch several, e.g. with `torchrun --nproc-per-node 2 -m telecine train ...`."
        raise argument_error("sharding", '"none" in a single process', config.sharding, remedy)
    num_processes = accelerator.num_processes
    if num_processes % config.context_parallel != 0:
        remedy = "Launch a multiple of them, e.g. with `torchrun --nproc-per-node`."
        contract = f"a divisor of the number of processes ({num_processes})"
        raise argument_error("context_parallel", contract, config.context_parallel, remedy)
    unused = set(config.tracker_options) - set(config.trackers)
    if unused:
        remedy = "Add them to `trackers`, or remove their options."
        raise argument_error(
            "tracker_options", f"of {sorted(config.trackers)}", str(sorted(unused)), remedy
        )
    enter_context_group(config.context_parallel, config.process_timeout)
    return accelerator


def _computes_in_bfloat16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def build_autoencoder(config: TrainConfig, module: nn.Module | None = None) -> VideoAutoencoder:
    """Return the autoencoder of a run on the CPU, in training mode. Weights that are not trained are frozen.

    Args:
        config: The settings of the run.
        module: A module to train instead of the model that `config.model` names.

    Raises:
        ValueError: If the settings do not fit the model.
    """
    if module is not None:
        model = as_video_autoencoder(module)
    elif config.model is None or config.random_weights:
        if config.model is None and config.init is None and config.trainable.weights == "decoder":
            logger.warning(
                "only the decoder is trained, and the encoder is new: add `--model` for a trained one"
            )
        if config.model is None and config.trainable.weights == "lora":
            remedy = "LoRA adapters change a trained model: name it with `--model`."
            raise argument_error(
                "trainable.weights", "all or decoder without `model`", "lora", remedy
            )
        if config.model is None:
            model = CausalVAE.from_config(config.causal_vae, "causal_vae")
        else:
            model = load_autoencoder(config.model, with_weights=False)
        if isinstance(model, TeacherEncoderModel):
            remedy = (
                "Use `telecine distill`, or as `model` the config.json of a decoder of diffusers."
            )
            raise argument_error(
                "random_weights", "false for a student, which has a teacher", "true", remedy
            )
    else:
        model = load_autoencoder(config.model)
    model.use_training_settings(config.causal_vae)
    if (
        module is None
        and config.model is not None
        and model.in_channels != config.clips.num_channels
    ):
        num_channels = model.in_channels
        model = model.with_channels(config.clips.num_channels)
        text = "the first and the last layer of %s change from %d to %d channels, its other weights stay"
        logger.warning(text, config.model, num_channels, config.clips.num_channels)
    if config.model_gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if config.temporal_chunk is not None:
        model.enable_temporal_chunks(config.temporal_chunk)
    select_trainable(model, config.trainable)
    heights = [bucket.height for bucket in config.clips.train_buckets]
    split_over_processes(model, config.context_parallel, heights)
    return model.train()


def custom_module(
    name: str | None, arguments: Mapping[str, object], *, random_weights: bool = False
) -> VideoAutoencoder | None:
    """Return the custom module that `TrainConfig.model` names by its class, folder or run, or None.

    Args:
        name: `TrainConfig.model`.
        arguments: `TrainConfig.model_arguments`, for the class.
        random_weights: Whether a module in a folder or a run starts with new weights.

    Raises:
        ValueError: If there are arguments for another kind of model.
    """
    if name is not None and is_class_path(name) and not Path(name).exists():
        return build_custom(name, arguments, "model")
    if arguments:
        contract = "left out unless `model` is the dotted path of a class"
        raise argument_error("model_arguments", contract, describe(arguments), "Remove it.")
    if name is None or not is_custom(name):
        return None
    return load_autoencoder(name, with_weights=not random_weights)


def build_objective(
    objective: ObjectiveConfig,
    discriminator: DiscriminatorConfig,
    clips: ClipConfig,
    *,
    load: bool = True,
) -> VideoAutoencoderLoss:
    """Return the loss with the discriminators that have a weight.

    Args:
        objective: The settings of the loss.
        discriminator: The settings of the discriminators.
        clips: The settings of the clips, whose size the discriminators depend on.
        load: Whether a discriminator's frozen network has its weights. Otherwise they are random.
    """
    schedule = WeightSchedule(objective)
    has_adversarial = schedule.is_ever_on("adversarial")
    factors: list[int] = []  # by which clips are made smaller, for each video discriminator
    if has_adversarial:
        factors.append(1)
    if schedule.is_ever_on("multiscale_adversarial"):
        factors += [2**scale for scale in range(1, discriminator.num_scales + 1)]
    image, videos = build_discriminators(discriminator, clips, factors, load=load)
    full_size = None
    if videos and has_adversarial:
        full_size = videos.pop(0)
    return VideoAutoencoderLoss(
        **objective.arguments(),
        discr_kwargs=image,
        discr_3d_kwargs=full_size,
        multiscale_discr_kwargs=videos,
    )


def _load_discriminators(objective: VideoAutoencoderLoss, source: str) -> None:
    """Copy the discriminators of another run, of its last checkpoint, into an objective."""
    setting = "discriminator.init"
    checkpoint = find_checkpoint(Path(source))
    if checkpoint is None:
        raise argument_error(
            setting, "a run with a checkpoint", f"{source!r}, without one", "Check the spelling."
        )
    weights = _discriminators_in(objective.state_dict())
    saved = _discriminators_in(load_tensors(checkpoint / OBJECTIVE_FILE))
    if not weights:
        remedy = "Set a weight that needs them, such as `objective.adversarial_loss_weight`."
        raise argument_error(
            setting, "left out in a run without discriminators", repr(source), remedy
        )
    if not saved:
        remedy = "Name a run with a GAN."
        raise argument_error(setting, "a run with discriminators", f"{source!r}, without", remedy)
    remedy = "Use the `discriminator` settings and the size of the clips of that run."
    check_tensors(
        weights, saved, name=setting, contract="a run with the same discriminators", remedy=remedy
    )
    objective.load_state_dict(saved, strict=False)


def _discriminators_in(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the discriminators in the state dict of an objective."""
    return {name: tensor for name, tensor in state.items() if name.startswith(_DISCRIMINATORS)}


def to_channels_last(loss: VideoAutoencoderLoss, device: torch.device) -> None:
    """Change the memory layout of discriminators and LPIPS in place; values change by rounding.

    Raises:
        ValueError: On the CPU with a penalty that is differentiated twice.
    """
    if (
        loss.schedule.is_ever_on("grad_penalty")
        and loss.penalty.double_backward
        and device.type == "cpu"
    ):
        # PyTorch 2.13 with oneDNN corrupts the heap there, with several threads and odd batches of three and more.
        remedy = "Use `objective.penalty.kind: approximate_r1`, or turn the penalty off."
        raise argument_error(
            "channels_last", "false on the CPU with an exact gradient penalty", "true", remedy
        )
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    loss._apply(lambda x: x.contiguous(memory_format=formats[x.ndim]) if x.ndim in formats else x)


def build_state(
    config: TrainConfig,
    accelerator: Accelerator,
    model: VideoAutoencoder,
    *,
    is_resumed: bool = False,
) -> TrainState:
    """Return the state of a run on the accelerator's device, the same on every process.

    Args:
        config: The settings of the run.
        accelerator: The device and the processes.
        model: The autoencoder, which is moved, compiled and sharded in place.
        is_resumed: Whether a checkpoint is loaded next. Then `discriminator.init` is not needed.

    Raises:
        ValueError: If a setting does not fit the networks.
    """
    device = accelerator.device
    objective = build_objective(config.objective, config.discriminator, config.clips)
    prediction = build_prediction(config.predictive, model, config.clips.train_buckets)
    if prediction is not None and prediction.fill is not None:
        objective.learn_with_autoencoder("predictive_fill", prediction.fill)
    if config.discriminator.init is not None and not is_resumed:
        _load_discriminators(objective, config.discriminator.init)
    objective.to(device)
    if config.channels_last:
        to_channels_last(objective, device)
    broadcast_module(objective)
    model.to(device)
    adaptive = config.objective.adaptive_weight
    is_sharded = config.sharding != "none"
    probe = last_layer_probe(model, adaptive, config.temporal_chunk, is_sharded=is_sharded)
    broadcast_module(model)
    if isinstance(model, CustomAutoencoder):  # a part of it may be compiled
        keep_buffers_of_compiled_code()
    if config.dynamo_backend != "no":
        eager = compile_networks(config.dynamo_backend, model, objective)
        if eager:
            logger.warning("not compiled: %s", ", ".join(eager))
    if is_sharded:
        shard(model)
    state = new_state(config.optimizer, accelerator, model, objective, probe, seed=config.seed)
    state.prediction = prediction
    state.is_sharded = is_sharded
    if not is_sharded and accelerator.num_processes > 1:
        # Accelerate's `prepare_model` would also let the model compute in half precision wherever it is called; here
        # training does, and validation does not.
        state.model = DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )
    return state


def new_state(
    settings: OptimizerConfig,
    accelerator: Accelerator,
    model: VideoAutoencoder,
    objective: VideoAutoencoderLoss,
    gradient_probe: GradientProbe | None,
    *,
    seed: int,
) -> TrainState:
    """Return the state of a run before its first update. The optimizers and the moving average are new.

    Args:
        settings: The settings of the optimizers.
        accelerator: The device and the processes.
        model: The autoencoder on its device.
        objective: The loss on the same device.
        gradient_probe: Where the adaptive weight compares gradients, see `last_layer_probe`.
        seed: Of the random numbers that are drawn for each clip.
    """
    optimizer, disc_optimizer = build_optimizers(settings, model, objective)
    return TrainState(
        accelerator=accelerator,
        model=model,
        autoencoder=model,
        objective=objective,
        optimizer=optimizer,
        disc_optimizer=disc_optimizer,
        ema=MovingAverage(model, settings.ema_decay),
        gradient_probe=gradient_probe,
        grad_clip=settings.grad_clip,
        seed=seed,
    )


def last_layer_probe(
    model: VideoAutoencoder,
    adaptive: AdaptiveWeightConfig,
    temporal_chunk: int | None,
    *,
    is_sharded: bool,
) -> GradientProbe | None:
    """Return where the adaptive weight compares gradients in the autoencoder; None if it does not do that there.

    It is the weight of the last layer. Its activations replace a weight that is sharded, and one whose gradient needs
    those of all temporal chunks at once.

    Args:
        model: The autoencoder, before it is sharded.
        adaptive: The settings of the adaptive weight.
        temporal_chunk: Frames of a temporal chunk, `TrainConfig.temporal_chunk`.
        is_sharded: Whether the weights will be sharded.

    Raises:
        ValueError: If the last layer is frozen.
    """
    if adaptive.reference == "none" or adaptive.at != "last_layer":
        return None
    weight = model.last_layer
    if not weight.requires_grad and not is_sharded:
        contract = "`reconstruction` if the last layer is frozen"
        remedy = "Set it to `reconstruction`, which needs no layer."
        raise argument_error("objective.adaptive_weight.at", contract, adaptive.at, remedy)
    if not is_sharded and temporal_chunk is None:
        return TensorProbe(weight)
    layers = [layer for layer in model.modules() if getattr(layer, "weight", None) is weight]
    return LayerActivations(layers[0])
