"""`torch.compile` of the networks of a run, for `TrainConfig.dynamo_backend`."""

from typing import Any

import einops
import torch
from accelerate.utils import TorchDynamoPlugin
from torch._functorch import config as functorch_config
from torch.nn.utils.parametrize import is_parametrized

from telecine.models import VideoAutoencoder
from telecine.models.custom import CustomAutoencoder
from telecine.models.load import DIFFUSION_DECODER
from telecine.models.unwrapping import class_name, unwrapped
from telecine.objective import VideoAutoencoderLoss


def keep_buffers_of_compiled_code() -> None:
    """Let compiled code keep its buffers in this process: gradients of several terms are taken through one graph.

    It has to be called before the code runs first.
    """
    functorch_config.donated_buffer = False


def compile_networks(
    backend: str, model: VideoAutoencoder, loss: VideoAutoencoderLoss
) -> list[str]:
    """Compile the autoencoder, LPIPS and the discriminators in place; return what stays eager, with the reason.

    PyTorch does not differentiate compiled code twice (https://github.com/pytorch/pytorch/issues/91469).

    Args:
        backend: The name of the compiler. Its further options are those of `accelerate launch`.
        model: The autoencoder. Its state dict stays as it is, as that of the loss does.
        loss: The objective.
    """
    keep_buffers_of_compiled_code()
    # TorchDynamo would trace how einops reads its patterns, which takes most of the time of a compilation.
    for function in (einops.rearrange, einops.reduce, einops.repeat, einops.einsum):
        torch.compiler.allow_in_graph(function)
    plugin = TorchDynamoPlugin(backend=backend)
    options: dict[str, Any] = {
        "backend": backend,
        "mode": plugin.mode,
        "dynamic": plugin.dynamic or None,
    }
    eager = []
    if isinstance(model, CustomAutoencoder):
        eager.append("the autoencoder (a module of yours)")
    elif class_name(model) == DIFFUSION_DECODER:
        eager.append("the decoder (its stages are called one by one)")
    else:
        for network in unwrapped(model).children():
            network.compile(**options)
    if loss.perceptual.distance is not None:
        loss.perceptual.distance.compile(**options)
    for d in loss.discriminators:
        if loss.schedule.is_ever_on("grad_penalty") and loss.penalty.double_backward:
            eager.append(f"{d.name} (the gradient penalty differentiates it twice)")
        elif any(is_parametrized(module) for module in d.module.modules()):
            eager.append(f"{d.name} (its spectral norms are shared by all passes of an update)")
        else:
            d.module.compile(**options)
    return eager
