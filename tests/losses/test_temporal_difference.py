"""The temporal difference equals a loop over frames, penalises flicker and ignores constant errors."""

import inspect

import torch

from telecine.losses import temporal_difference

from .harness import LossCase, LossTester, random

SHAPES = [(2, 3, 4, 3, 2), (3, 1, 3, 2, 2), (1, 2, 2, 1, 1), (2, 1, 5, 1, 3)]


def video(*frames):
    """Return a video of single pixels."""
    return torch.tensor(frames, dtype=torch.float64).reshape(1, 1, -1, 1, 1)


def example(seed):
    """Return a pair without weights and mask for seed 0, with weights for 1, with a mask for 2, with both for 3."""
    shape = SHAPES[seed % len(SHAPES)]
    inputs = {"reconstruction": random(shape, seed), "target": random(shape, seed + 100)}
    if seed % 2:
        inputs["sample_weight"] = 1 + random(shape[:1], seed + 200)
    if seed % 4 > 1:
        # Of every frame, or of every pixel.
        mask_shape = (shape[0], 1, *shape[2:]) if seed % 2 else (1, 1, 1, *shape[3:])
        inputs["mask"] = random(mask_shape, seed + 300) > -0.8
    return inputs


def loop_over_frames(reconstruction, target, sample_weight=None, mask=None):
    weights = [1.0] * len(target) if sample_weight is None else sample_weight.tolist()
    kept = torch.ones_like(target) if mask is None else mask.expand_as(target)
    total, count = 0.0, 0
    for x, y, m, w in zip(reconstruction, target, kept, weights, strict=True):
        for t in range(x.shape[1] - 1):
            for a, b in zip(
                (x[:, t + 1] - x[:, t]).flatten(), (y[:, t + 1] - y[:, t]).flatten(), strict=True
            ):
                total += w * abs(a.item() - b.item())
            both = (m[:, t] * m[:, t + 1]).bool()
            total -= (
                w * ((x[:, t + 1] - x[:, t]) - (y[:, t + 1] - y[:, t])).abs()[~both].sum().item()
            )
            count += both.sum().item()
    return total / count


class TestTemporalDifference(LossTester):
    cases = (
        LossCase(
            name="temporal_difference",
            loss=temporal_difference,
            example=example,
            reference=loop_over_frames,
            learns=("reconstruction", "target", "sample_weight"),
            known=(
                ({"reconstruction": video(0, 1, -1), "target": video(0, 0.5, 0.5)}, (0.5 + 2) / 2),
                ({"reconstruction": video(1, -1, 1), "target": video(-1, 1, -1)}, 4.0),
                # A constant error is ignored.
                ({"reconstruction": video(1.5, 0.5), "target": video(1, 0)}, 0.0),
                # Nothing counts where every change has a masked frame.
                (
                    {
                        "reconstruction": video(0, 1, 0),
                        "target": video(0, 0, 0),
                        "mask": video(1, 0, 1).bool(),
                    },
                    0.0,
                ),
                (
                    {
                        "reconstruction": video(0, 1, 3),
                        "target": video(0, 0, 0),
                        "mask": video(1, 1, 0).bool(),
                    },
                    1.0,
                ),
            ),
            optima=(
                *(
                    ({"reconstruction": x, "target": x}, 0.0)
                    for x in (video(1, 1, 1), random((2, 3, 5, 4, 4), 0))
                ),
                (
                    {
                        "reconstruction": random((2, 3, 1, 4, 4), 0),
                        "target": random((2, 3, 1, 4, 4), 1),
                    },
                    0.0,
                ),
            ),
            increasing=tuple(
                {"reconstruction": video(0, x, 0), "target": video(0, 0, 0)} for x in (0, 0.1, 1)
            ),
            large={"reconstruction": video(4e4, -4e4), "target": video(-4e4, 4e4)},
            errors=(
                (
                    {"reconstruction": torch.zeros(2, 3, 1, 3, 2)},
                    "`reconstruction` must be of `target`'s shape (2, 3, 4, 3, 2), but got a torch.float32 tensor of "
                    "shape (2, 3, 1, 3, 2) on cpu. Crop or pad one to match the other.",
                ),
                (
                    {"sample_weight": torch.ones(3)},
                    "the sample weights must be of shape (2,), but got a torch.float32 tensor of shape (3,) on cpu. "
                    "Pass one weight per sample.",
                ),
            ),
            unchecked=inspect.unwrap(temporal_difference),
        ),
    )
