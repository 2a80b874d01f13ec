"""The trainings of `same_bits.py`: settings are explicit, so that a changed default changes no case.

Older versions have more settings, whose defaults are what the present one does. They lack those of `LATER`.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from telecine.data import sample_videos

Settings = dict[str, Any]

NUM_STEPS = 40
# Settings that older versions lack and refuse, with the defaults that do what those versions do. No case sets them.
LATER: Settings = {
    "tracker_project": "telecine",
    "init": None,
    "allow_tf32": None,
    "context_parallel": 1,
    "predictive": {"max_dropped": 0.0, "fill": "learned"},
    "clips": {
        "weighting": "frames",
        "fps": None,
        "hdr": "as_stored",
        "channels": "rgb",
        "bit_depth": 8,
        "layout": None,
        "range": [],
        "holdout": "earlier",
        "file_identity": "path",
        "colour_matrix": "bt601",
        "order": "independent",
        "index": "ahead",
    },
    "optimizer": {"name": "adamw"},
    "causal_vae": {
        "nested_channels": [],
        "first_frame_apart": True,
        "in_channels": 3,
        "decoder": "direct",
        "decoder_convolutions": [],
        "flow": {
            "prediction": "x0",
            "level_mean": 0.0,
            "level_std": 1.0,
            "shift": 1.0,
            "shift_pixels": None,
            "noise_fraction": 0.0,
            "weighting": "uniform",
            "one_step": False,
        },
    },
}
# A small run on clips of 5 frames of 32 x 32 pixels. The discriminators train from step 5 and count from step 10 on.
SMALL: Settings = {
    "val_data": None,
    "model": None,
    "random_weights": False,
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "seed": 0,
    "device": "cpu",
    "mixed_precision": "no",
    "sharding": "none",
    "process_timeout": 900.0,
    "model_gradient_checkpointing": False,
    "temporal_chunk": None,
    "channels_last": False,
    "dynamo_backend": "no",
    "log_every": 1,
    "val_clips": 2,
    "keep": 1,
    "latent_clips": 0,
    "latent_cache": None,
    "best_metric": None,
    "on_divergence": "stop",
    "push_to_hub": False,
    "hub_model_id": None,
    "trackers": [],
    "linear_baseline": False,
    "linear_start": False,
    "clips": {
        "num_frames": 5,
        "height": 32,
        "width": 32,
        "buckets": [],
        "image_ratio": 0.0,
        "stride": 1,
        "random_flip": True,
        "random_orientation": False,
        "scale_jitter": 1.5,
        "num_clips": None,
        "num_workers": 0,
        "timeout": 180.0,
        "cache": False,
        "max_pixels": 2**26,
        "val_fraction": 0.2,
    },
    "causal_vae": {
        "time_compression": 4,
        "spatial_compression": 4,
        "latent_channels": 4,
        "patch_size": 2,
        "base_channels": 8,
        "channel_multipliers": [1, 2],
        "blocks_per_level": 1,
        "time_kernel": 2,
        "bottleneck": "gaussian",
        "fsq_levels": [8, 5, 5, 5],
        "lfq_bits": 8,
        "lfq_entropy_weight": 0.1,
        "lfq_commitment_weight": 0.25,
    },
    "trainable": {"weights": "all", "patterns": [], "lora_rank": 16, "lora_alpha": 16.0},
    "objective": {
        "disc_start": 10,
        "perceptual_weight": 1.0,
        "adversarial_loss_weight": 0.5,
        "multiscale_adversarial_loss_weight": 0.0,
        "grad_penalty_loss_weight": 10.0,
        "quantizer_aux_loss_weight": 1e-6,
        "reconstruction": {"loss": "mse", "nll_reduction": "mean", "learn_logvar": False},
        "perceptual": {"net": "alex", "num_frames": 1, "chunk_size": None},
        "gan": {
            "loss": "hinge",
            "disc_train_start": 5,
            "window": None,
            "augment": [],
            "feature_matching_loss_weight": 0.0,
            "lecam_loss_weight": 0.0,
        },
        "penalty": {"kind": "one_centered", "every": 4},
        "adaptive_weight": {
            "reference": "perceptual",
            "at": "last_layer",
            "min_norm": 1e-3,
            "max": 1e3,
        },
        "terms": {},
        "eager_gradients": True,
        "gradient_checkpointing": False,
    },
    "discriminator": {
        "init": None,
        "video": "first_frame",
        "features": {"net": "vgg", "weights": None, "layers": [], "size": None},
        "image": "none",
        "num_scales": 0,
        "dim": 2,
        "max_dim": 512,
        "antialiased_downsample": True,
        "time_weighting": "positions",
        "num_layers": 3,
        "num_temporal_layers": 2,
        "norm": "group",
    },
    "optimizer": {
        "lr": 1e-3,
        "disc_lr": 1e-3,
        "betas": [0.5, 0.9],
        "disc_betas": [0.5, 0.9],
        "weight_decay": 0.01,
        "warmup_steps": 5,
        "schedule": "cosine",
        "grad_clip": 1.0,
        "ema_decay": 0.9,
    },
}
# The recipe `demo` with a shorter schedule.
DEMO: Settings = {
    "data": None,
    "linear_baseline": True,
    "linear_start": True,
    "val_clips": 4,
    "clips": {"num_frames": 9, "height": 64, "width": 64, "num_workers": 1, "cache": True},
    "causal_vae": {
        "spatial_compression": 8,
        "latent_channels": 16,
        "patch_size": 4,
        "base_channels": 64,
    },
    "objective": {
        "disc_start": 20,
        "perceptual_weight": 0.25,
        "adversarial_loss_weight": 0.1,
        "perceptual": {"net": "vgg"},
        "gan": {"disc_train_start": 12},
        "penalty": {"every": 8},
    },
    "discriminator": {"dim": 4},
    "optimizer": {
        "lr": 4e-3,
        "disc_lr": 4e-4,
        "betas": [0.9, 0.99],
        "weight_decay": 0.0,
        "ema_decay": 0.99,
    },
}
# Every optional term but LeCam, whose own case takes the gradients in another way.
EVERY_TERM: Settings = {
    "objective": {
        "perceptual_weight": {"weight": 1.0, "start": 0, "steps": 30, "initial": 0.5},
        "adversarial_loss_weight": {"weight": 0.5, "start": 10, "steps": 20, "initial": 0.1},
        "multiscale_adversarial_loss_weight": 0.1,
        "quantizer_aux_loss_weight": {"weight": 1e-4, "start": 0, "steps": 40, "initial": 1e-6},
        "reconstruction": {"loss": "charbonnier", "learn_logvar": True},
        "perceptual": {"num_frames": 2, "chunk_size": 1},
        "gan": {"feature_matching_loss_weight": 0.2},
        "adaptive_weight": {"reference": "recon_and_perceptual"},
        # In the order in which the first version adds them.
        "terms": {
            "gram": {
                "target": "gram",
                "weight": {"weight": 1e-4, "start": 8, "steps": 0, "initial": 0.0},
            },
            "wavelet": {"target": "wavelet", "weight": 0.5, "params": {"levels": 2}},
            "temporal": {
                "target": "temporal",
                "weight": {"weight": 0.0, "start": 20, "steps": 10, "initial": 0.5},
            },
        },
    },
    "clips": {"num_frames": 5, "height": 48, "width": 48},
    "discriminator": {"image": "patch", "num_scales": 1, "dim": 2, "norm": "spectral"},
}
# The least that a video autoencoder of diffusers has.
WAN: Settings = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
}


@dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        changes: What differs from `SMALL`, nested.
        num_processes: With two, `torchrun` starts them.
        images: Train on still images as well as on a video.
        model: The configuration of a diffusers autoencoder, in place of telecine's own.
    """

    changes: Settings = field(default_factory=dict)
    num_processes: int = 1
    images: bool = False
    model: Settings | None = None


def merged(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return a copy of settings with changes; groups are merged, weights and other values replaced."""
    result = copy.deepcopy(settings)
    for name, value in changes.items():
        is_group = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if is_group else copy.deepcopy(value)
    return result


CASES: dict[str, Case] = {
    "demo": Case(DEMO),
    "every_term": Case(merged(DEMO, EVERY_TERM)),
    "patch_relativistic_r1_r2": Case(
        {
            "objective": {
                "reconstruction": {"loss": "l1"},
                "gan": {"loss": "relativistic"},
                "penalty": {"kind": "r1_and_r2"},
            },
            "discriminator": {"video": "patch", "image": "patch", "num_layers": 2},
        }
    ),
    "lecam": Case(
        {
            "objective": {
                "gan": {
                    "lecam_loss_weight": {"weight": 0.1, "start": 8, "steps": 8, "initial": 0.01}
                }
            }
        }
    ),
    "image_batches": Case(
        {"clips": {"image_ratio": 0.4}, "discriminator": {"image": "attention"}}, images=True
    ),
    "two_processes": Case(
        {"gradient_accumulation_steps": 2, "batch_size": 1, "discriminator": {"image": "patch"}},
        num_processes=2,
    ),
    "fsdp2": Case({"sharding": "fsdp2", "batch_size": 1}, num_processes=2),
    "diffusers": Case({"objective": {"adaptive_weight": {"at": "reconstruction"}}}, model=WAN),
    "whole_graph": Case(
        {
            "objective": {
                "eager_gradients": False,
                "gradient_checkpointing": True,
                "gan": {"loss": "vanilla", "feature_matching_loss_weight": 0.2},
                "penalty": {"kind": "wgan_gp"},
            },
            "discriminator": {"video": "plain"},
        }
    ),
    "bfloat16": Case(
        {
            "mixed_precision": "bf16",
            "objective": {
                "adversarial_loss_weight": 50.0,
                "reconstruction": {"nll_reduction": "sum"},
                "gan": {"loss": "least_squares"},
                "penalty": {"kind": "approximate_r1"},
                "adaptive_weight": {"reference": "none"},
            },
            "discriminator": {"time_weighting": "frames", "antialiased_downsample": False},
        }
    ),
}


def prepare(case: Case, folder: Path, num_steps: int) -> Path:
    """Write the data, the model's configuration and the settings of a case, and return the path of the settings.

    Args:
        case: The training.
        folder: An empty folder; the run is written to `folder / "run"`.
        num_steps: Updates of the autoencoder.
    """
    settings = merged(SMALL, {"data": str(folder / "data"), **case.changes})
    settings |= {"output_dir": str(folder / "run"), "steps": num_steps}
    settings |= {"val_every": num_steps, "save_every": num_steps}
    if settings["data"] is not None:
        write_data(folder / "data", images=case.images)
    if case.model is not None:
        settings["model"] = str(folder / "config.json")
        (folder / "config.json").write_text(json.dumps(case.model), encoding="utf-8")
    path = folder / "settings.yaml"
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")  # JSON is YAML
    return path


def write_data(folder: Path, *, images: bool) -> None:
    """Write a sample video and, if asked for, six still images of two colour ramps."""
    folder.mkdir()
    video = sample_videos()[0]
    shutil.copyfile(video, folder / video.name)
    if images:
        red, green = Image.linear_gradient("L"), Image.radial_gradient("L")
        for index in range(6):
            picture = Image.merge("RGB", (red, green, red.rotate(90 * index)))
            picture.resize((64 + 8 * index, 64)).save(folder / f"image{index}.png")
