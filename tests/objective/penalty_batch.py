"""Double backward through both forms of attention in float32: `penalty_batch.py BATCH` prints JSON.

A heap error ends the process. The error needs more than one thread, so the number of threads is set here.
"""

import collections
import faulthandler
import json
import sys

import torch

from telecine import VideoAutoencoderLoss
from telecine.discriminators import attention

# With 8 channels a head the quadratic form serves up to 73 tokens, with 2 up to 7.
NETWORKS = {
    "quadratic": {"dim": 2, "image_size": 16, "linear_attn_heads": 4},
    "linear": {"dim": 2, "image_size": 16, "linear_attn_heads": 4, "linear_attn_dim_head": 2},
    "both": {"dim": 2, "image_size": 32, "linear_attn_heads": 4},
    "default": {"dim": 2, "image_size": 32},
}
# The penalties with a double backward: at real samples, at both, and at points between them.
CASES = [("one_centered", name) for name in NETWORKS] + [("r1_and_r2", "both"), ("wgan_gp", "both")]


def count_forms():
    """Count the calls of each form from now on."""
    calls = collections.Counter()
    for form in ("quadratic_attention", "linear_attention"):
        original = getattr(attention, form)
        setattr(attention, form, lambda *qkv, f=form, o=original: (calls.update([f]), o(*qkv))[1])
    return calls


def penalise(batch):
    faulthandler.enable()
    torch.set_num_threads(2)
    calls = count_forms()
    finished = []
    for penalty, name in CASES:
        network = NETWORKS[name]
        torch.manual_seed(0)
        loss = VideoAutoencoderLoss(
            0,
            perceptual_weight=0,
            grad_penalty_loss_weight=10,
            penalty={"kind": penalty},
            discr_kwargs=network,
        )
        size = network["image_size"]
        real, fake = (torch.rand(batch, 3, 2, size, size) * 2 - 1 for _ in range(2))
        total, log = loss(real, fake, 1, 0)
        total.backward()
        gradients = [weight.grad for weight in loss.get_trainable_parameters()]
        assert log["train/grad_penalty_loss"] > 0
        assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
        finished.append([penalty, name])
    print(json.dumps({"finished": finished, "calls": calls}))


if __name__ == "__main__":
    penalise(int(sys.argv[1]))
