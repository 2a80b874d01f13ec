"""Processes of `torchrun` that average over ranks: `two_ranks.py FOLDER` writes their logs to FOLDER/RANK.json.

The test also uses the functions below: it computes the expected values in one process.
"""

import gc
import json
import runpy
import sys
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from telecine import VideoAutoencoderLoss
from telecine.losses.perceptual import LPIPS
from telecine.ops.ranks import average_over_ranks

helpers = runpy.run_path(str(Path(__file__).with_name("conftest.py")))


@cache
def perceptual():
    """Return settings of a small LPIPS that compares all frames."""
    lpips = LPIPS("vgg", weights=helpers["random_vgg"]())
    lpips.weights.update(
        {name: helpers["narrowed"](tensor) for name, tensor in lpips.weights.items()}
    )
    return {"net": lpips, "num_frames": "all"}


def build_loss_and_autoencoder():
    """Return the loss and the autoencoder, the same on every rank."""
    autoencoder = helpers["TinyAutoencoder"](seed=0)
    torch.manual_seed(0)
    loss = VideoAutoencoderLoss(
        disc_start=0,
        adversarial_loss_weight=1.0,
        discr_3d_kwargs={"dim": 1, "image_size": 16, "frame_num": 4, "linear_attn_heads": 2},
        perceptual=perceptual(),
    )
    return loss, autoencoder


class StageWeights(torch.nn.Module):
    """Compares features with a learned weight of each stage."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(5))

    def forward(self, reconstruction_features, target_features):
        pairs = zip(reconstruction_features, target_features, strict=True)
        return (
            torch.stack([(x - y).square().mean((1, 2, 3)) for x, y in pairs], dim=1) @ self.weight
        )


def build_averaging_loss():
    """Return a loss with everything that ranks must agree on: an adaptive weight, running averages, a parameter."""
    torch.manual_seed(0)
    return VideoAutoencoderLoss(
        disc_start=0,
        adversarial_loss_weight=1.0,
        gan={"lecam_loss_weight": 0.1},
        reconstruction={"learn_logvar": True},
        adaptive_weight={"at": "reconstruction", "min_norm": 1.0},
        terms={"stages": {"target": StageWeights}},
        discr_3d_kwargs={"dim": 1, "image_size": 16, "frame_num": 4, "linear_attn_heads": 2},
        perceptual=perceptual(),
    )


def averaged(loss, real, fake):
    """Return the values after both steps that must be equal on every rank."""
    total, log = loss(real, fake, 0, 0)
    total.backward()
    loss(real, fake, 1, 0)
    return {
        "adaptive_weight": log["train/adaptive_weight"].item(),
        "logvar_gradient": loss.logvar.grad.item(),
        "stages_gradient": loss.loss_terms["stages"].function.weight.grad.norm().item(),
        **{name: value.item() for name, value in loss.state_dict().items() if "lecam" in name},
    }


def discriminator_gradients(loss, wrapped, real, fake):
    """Return the norms of the discriminators' gradients through the wrapper, after a step of the autoencoder."""
    loss(real, fake, 0, 0)[0].backward()
    wrapped(real, fake, 1, 0)[0].backward()
    return [weight.grad.double().norm().item() for weight in loss.get_trainable_parameters()]


def batch(rank):
    """Return the clips of a rank."""
    return helpers["random_clip"]((2, 3, 3, 16, 16), seed=10 + rank) * (0.2 + rank) / 1.2


def main(folder):
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank = dist.get_rank()
    loss, autoencoder = build_loss_and_autoencoder()
    total, log = loss(
        batch(rank), autoencoder(batch(rank)), 0, 0, last_layer=autoencoder.last_layer
    )
    total.backward()
    result = {name: value.item() for name, value in log.items()}
    values = torch.tensor([1.0 + rank, 10.0])
    result["average"] = average_over_ranks(values).tolist()
    assert values.tolist() == [1.0 + rank, 10.0], "it is not changed in place"
    averaging = build_averaging_loss()
    real = batch(rank)
    result["averaged"] = averaged(averaging, real, (0.5 * real).requires_grad_())
    wrapped = DistributedDataParallel(parallel := build_averaging_loss())
    result["gradients"] = [
        discriminator_gradients(parallel, wrapped, real, (0.5 * real).requires_grad_())
        for _ in range(2)
    ]
    # Free the graphs before the interpreter ends: Gloo's threads may still use their tensors.
    del loss, autoencoder, averaging, wrapped, parallel, total, log
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
