"""Context parallel training against one process: values, memory and messages.

    python benchmarks/context_parallel.py values             # ten updates of each case in float64
    python benchmarks/context_parallel.py values --float32 --processes 2 --cases wan ltx
    python benchmarks/context_parallel.py memory             # the largest memory of a process at five sizes
    python benchmarks/context_parallel.py messages           # bytes sent and operators of an update
    python benchmarks/context_parallel.py resume             # a run that resumes with other numbers of processes

Trainings are the cases of `same_bits_cases.py` and those of `MORE_CASES`, on random clips, around the step at which the
discriminators begin to count. Compared with one process are the gradients and the log of each update, and after ten
updates the weights of all networks, the moving average and the states of the optimizers. `resume` compares the weights
of a run of `telecine train` in several parts with those of one process. Processes use gloo and a thread each.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from same_bits_cases import CASES, SMALL, WAN, Case, Settings, merged, prepare
from torch import Tensor
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from telecine.base.memory_counter import MemoryCounter
from telecine.data import ClipBatchSampler
from telecine.models import CausalVAE, StudentAutoencoder, VideoAutoencoder
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.ops.ranks import data_rank, num_data_ranks
from telecine.runs import Run
from telecine.settings import TrainConfig
from telecine.settings.errors import validate
from telecine.training.build import build_accelerator, build_autoencoder, build_state
from telecine.training.distributed import full_tensor, leave_context_group
from telecine.training.memory import plan_update
from telecine.training.state import TrainState
from telecine.training.step import MicroBatch, compute_gradients, train_step
from telecine.training.update_memory import AUTOENCODER

NUM_UPDATES = 10
LATENT_TERMS = {
    "latent_noise": 0.1,
    "equivariance": 0.1,
    "scale_equivariance": 0.1,
    "round_trip": {"target": "round_trip", "weight": 0.1, "params": {"trains": "both"}},
}
FLOW: Settings = {"causal_vae": {"decoder": "flow"}}
# Small networks for the short form, which a test runs.
SHORT: Settings = {
    "batch_size": 1,
    "causal_vae": {"base_channels": 4},
    "discriminator": {"video": "patch", "num_layers": 1},
    "clips": {"height": 40},
    "objective": {"penalty": {"every": 2}},
}
SHORT_EVERY_TERM: Settings = {
    "model_gradient_checkpointing": True,
    "objective": {
        "reconstruction": {"learn_logvar": True},
        "gan": {"feature_matching_loss_weight": 0.2, "lecam_loss_weight": 0.1},
        "terms": LATENT_TERMS,
    },
}
SHORT_FLOW: Settings = {
    "temporal_chunk": 4,
    "causal_vae": {
        "decoder": "flow",
        "first_frame_apart": False,
        "nested_channels": [2],
        "decoder_convolutions": ["depthwise", "2+1d"],
    },
    "clips": {"num_frames": 8},
    "objective": {"adaptive_weight": {"at": "reconstruction"}, "eager_gradients": False},
}
# Models of diffusers, as small as they can be.
WAN_RESIDUAL: Settings = {
    **WAN,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
LTX: Settings = {
    "_class_name": "AutoencoderKLLTXVideo",
    "latent_channels": 4,
    "block_out_channels": [8, 8, 8, 8],
    "decoder_block_out_channels": [8, 8, 8, 8],
    "layers_per_block": [1, 1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1, 1, 1],
}
# As of 0.9.5, but for its sizes.
LTX_095: Settings = {
    **LTX,
    "block_out_channels": [8, 8, 8, 16, 32],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "decoder_block_out_channels": [8, 16, 32],
    "decoder_layers_per_block": [1, 1, 1, 1],
    "spatio_temporal_scaling": [True] * 4,
    "decoder_spatio_temporal_scaling": [True] * 3,
    "decoder_inject_noise": [False] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "upsample_residual": [True] * 3,
    "upsample_factor": [2, 2, 2],
    "timestep_conditioning": True,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
COGVIDEOX: Settings = {
    "_class_name": "AutoencoderKLCogVideoX",
    "block_out_channels": [4, 4, 4, 4],
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}
SMALL_DISCRIMINATOR: Settings = {
    "discriminator": {"video": "patch", "num_layers": 1},
    "objective": {"penalty": {"every": 2}},
}
CHECKPOINTING: Settings = {**SMALL_DISCRIMINATOR, "model_gradient_checkpointing": True}
# What the cases of `same_bits_cases.py` lack, and matters for a split: other layers, and rows that divide unevenly.
MORE_CASES: dict[str, Case] = {
    "short_every_term": Case(merged(SHORT, SHORT_EVERY_TERM)),
    "short_flow": Case(merged(SHORT, SHORT_FLOW)),
    "reconstruction": Case({"objective": {"adaptive_weight": {"at": "reconstruction"}}}),
    "latent_terms": Case({"objective": {"terms": LATENT_TERMS}}),
    "uneven_rows": Case({"clips": {"height": 40, "width": 32}}),
    "temporal_chunk": Case({"temporal_chunk": 4, "clips": {"num_frames": 9}}),
    "checkpointing": Case({"model_gradient_checkpointing": True}),
    "flow": Case(FLOW),
    "fsq": Case({"causal_vae": {"bottleneck": "fsq", "fsq_levels": [8, 5, 5, 5]}}),
    "rgba": Case({"causal_vae": {"in_channels": 4}, "clips": {"channels": "rgba"}}),
    "student": Case(SHORT),
    # The number of dropped frames is drawn for each batch of a process.
    "predictive": Case(
        {
            "batch_size": 1,
            "clips": {"num_frames": 9, "height": 40},
            "predictive": {"max_dropped": 0.9},
        }
    ),
    "wan": Case(merged(SMALL_DISCRIMINATOR, {"clips": {"height": 40}}), model=WAN),
    "wan_residual": Case(
        merged(SMALL_DISCRIMINATOR, {"clips": {"height": 80}}), model=WAN_RESIDUAL
    ),
    "wan_chunks": Case(
        merged(CHECKPOINTING, {"clips": {"num_frames": 9, "height": 40}, "temporal_chunk": 4}),
        model=WAN,
    ),
    "wan_sharded": Case(
        merged(SMALL_DISCRIMINATOR, {"clips": {"height": 40}, "sharding": "fsdp2"}), model=WAN
    ),
    "wan_lora": Case(
        merged(SMALL_DISCRIMINATOR, {"clips": {"height": 40}, "trainable": {"weights": "lora"}}),
        model=WAN,
    ),
    "ltx": Case(
        merged(SMALL_DISCRIMINATOR, {"clips": {"num_frames": 9, "height": 160}}), model=LTX
    ),
    "short_ltx": Case(
        merged(SMALL_DISCRIMINATOR, {"batch_size": 1, "clips": {"num_frames": 9, "height": 160}}),
        model=LTX,
    ),
    "ltx_095": Case(
        merged(CHECKPOINTING, {"clips": {"num_frames": 9, "height": 160}}), model=LTX_095
    ),
    "cogvideox": Case(
        merged(SMALL_DISCRIMINATOR, {"clips": {"num_frames": 9, "height": 40}}), model=COGVIDEOX
    ),
    "cogvideox_chunks": Case(
        merged(CHECKPOINTING, {"clips": {"num_frames": 17, "height": 40}, "temporal_chunk": 8}),
        model=COGVIDEOX,
    ),
    "first_frame_with_others": Case(
        {
            "causal_vae": {"first_frame_apart": False, "nested_channels": [2]},
            "clips": {"num_frames": 8},
        }
    ),
}
# Two passes of a clip in one process have the transformations of a pass in each of two groups.
MORE_CASES["latent_terms_in_groups"] = Case(
    {
        "batch_size": 1,
        "gradient_accumulation_steps": 2,
        "discriminator": {"video": "none"},
        "objective": {"adversarial_loss_weight": 0.0, "terms": LATENT_TERMS},
    }
)
# The term `equivariance` draws one transformation for all clips of a pass.
DRAWS_FOR_A_PASS = {"latent_terms"}
# Values of options of the objective and of the model that the cases above lack.
SUM_LEAST_SQUARES: Settings = merged(
    CASES["bfloat16"].changes, {"mixed_precision": "no", "channels_last": True}
)
WINDOW_AUGMENT_R1: Settings = {
    "clips": {"num_frames": 9},
    "objective": {
        "gan": {"window": 5, "augment": ["color", "translation", "cutout"]},
        "penalty": {"kind": "r1"},
    },
    "discriminator": {"video": "patch", "num_layers": 2, "norm": "none"},
}
ALL_FRAMES_R2: Settings = {
    "objective": {
        "perceptual": {"num_frames": "all"},
        "penalty": {"kind": "r2"},
    },
}
OTHER_LATENT_TERMS: Settings = {
    "local_correlation": 0.1,
    "latent_masking": 0.1,
    "alignment": {"target": "alignment", "weight": 0.1, "params": {"latent_channels": 4}},
}
WITHOUT_COLOURS: Settings = {
    "clips": {"channels": "grey"},
    "causal_vae": {"in_channels": 1},
    "objective": {
        "perceptual_weight": 0.0,
        "adaptive_weight": {"reference": "recon_and_perceptual"},
    },
}
FLOW_VELOCITY: Settings = {
    "causal_vae": {
        "decoder": "flow",
        "decoder_convolutions": ["2d", "3d"],
        "flow": {
            "prediction": "velocity",
            "weighting": "velocity",
            "noise_fraction": 0.5,
            "shift_pixels": 512,
        },
    }
}
OPTION_CASES: dict[str, Case] = {
    "sum_least_squares": Case(SUM_LEAST_SQUARES),
    "window_augment_r1": Case(WINDOW_AUGMENT_R1),
    "all_frames_r2": Case(ALL_FRAMES_R2),
    "other_latent_terms": Case({"objective": {"terms": OTHER_LATENT_TERMS}}),
    "features": Case({"discriminator": {"video": "features", "features": {"net": "alex"}}}),
    "without_colours": Case(WITHOUT_COLOURS),
    "flow_velocity": Case(FLOW_VELOCITY),
    "flow_one_step": Case({"causal_vae": {"decoder": "flow", "flow": {"one_step": True}}}),
    "decoder_alone": Case({"trainable": {"weights": "decoder"}}),
    "some_weights": Case({"trainable": {"patterns": ["decoder.network.*"]}}),
    "predictive_zero": Case(
        {
            "batch_size": 1,
            "clips": {"num_frames": 9, "height": 40},
            "predictive": {"max_dropped": 0.9, "fill": "zero"},
        }
    ),
    "wan_images": Case(
        merged(SMALL_DISCRIMINATOR, {"clips": {"height": 40}}), images=True, model=WAN
    ),
    "cogvideox_images": Case(
        merged(SMALL_DISCRIMINATOR, {"clips": {"num_frames": 9, "height": 40}}),
        images=True,
        model=COGVIDEOX,
    ),
    "ltx_images": Case(
        merged(SMALL_DISCRIMINATOR, {"clips": {"num_frames": 9, "height": 160}}),
        images=True,
        model=LTX,
    ),
}
# Not run unless named: autocast rounds to 8 bits, and does not take float64.
LEFT_OUT = {"bfloat16"}
ALL_CASES = {**CASES, **MORE_CASES, **OPTION_CASES}
# Processes, and those of them that share a clip.
LAYOUTS = [(2, 2), (4, 4), (4, 2)]
# A weight of LTX whose gradient diffusers computes in float32.
IN_FLOAT32 = "timestep_scale_multiplier"
# Logged values that depend on how a batch is divided.
OF_PARTS = ("_std", "frame_gradient", "adversarial_gradient_share")
# A bias of the discriminators whose first gradient is rounding, since those of real and fake clips cancel out. AdamW
# makes a step of it.
ROUNDING = "to_logits.bias"


class Difference(NamedTuple):
    """The largest difference of one kind of values, relative to the largest value of a tensor."""

    kind: str
    name: str
    relative: float


def config_of(case: Case, num_processes: int, context_parallel: int) -> TrainConfig:
    """Return the settings of a case, whose updates have the same clips for any number of processes."""
    settings = merged(SMALL, case.changes)
    num_groups = num_processes // context_parallel
    settings |= {
        "steps": 1000,
        "val_every": 1000,
        "save_every": 1000,
        "data": None,
        "context_parallel": context_parallel,
    }
    settings[_divided_setting(settings, num_groups)] //= num_groups
    if num_processes == 1:
        settings["sharding"] = "none"
    return validate(TrainConfig, settings)


def _divided_setting(settings: Settings, num_groups: int) -> str:
    """Return the setting by which the clips of an update are divided over groups: passes, or clips of a pass.

    Passes are divided where there is no adaptive weight: one process compares the gradients of one pass.
    """
    has_adaptive_weight = settings["discriminator"]["video"] != "none"
    if has_adaptive_weight or settings["gradient_accumulation_steps"] % num_groups != 0:
        return "batch_size"
    return "gradient_accumulation_steps"


def reason_not_in_groups(name: str, num_groups: int) -> str | None:
    """Return why a case cannot be compared in several groups; None if it can."""
    if num_groups > 1 and name in DRAWS_FOR_A_PASS:
        return "it draws for a pass, and a pass of a group has other clips"
    settings = merged(SMALL, ALL_CASES[name].changes)
    if settings[_divided_setting(settings, num_groups)] % num_groups != 0:
        return f"{num_groups} does not divide its batch"
    return None


def build(
    config: TrainConfig,
    dtype: torch.dtype,
    *,
    is_student: bool = False,
    model_of_diffusers: Settings | None = None,
) -> TrainState:
    """Return the state of a run whose weights are not 0; a student has a random teacher."""
    torch.manual_seed(config.seed)
    accelerator = build_accelerator(config)
    module: VideoAutoencoder | None = None
    if is_student:
        teacher = CausalVAE(config.causal_vae)
        module = StudentAutoencoder.of(teacher, "teacher", lambda _: teacher, config.causal_vae)
    if model_of_diffusers is not None:
        module = DiffusersAutoencoder.from_config(model_of_diffusers)
        for layer in module.modules():
            if type(layer).__name__ == "RMSNorm":
                layer.forward = partial(rms_norm, layer)
    model = build_autoencoder(config, module).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator, dtype=dtype))
    state = build_state(config, accelerator, model)
    state.objective.to(dtype)
    return state


def rms_norm(norm: Any, x: Tensor) -> Tensor:
    """Do what the `RMSNorm` of diffusers does, which computes in float32, in the precision of `x`."""
    assert norm.weight is None
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)


def micro_batches(
    config: TrainConfig, update: int, dtype: torch.dtype, *, is_image: bool
) -> list[MicroBatch]:
    """Return random clips, which depend on their numbers alone."""
    clips = config.clips
    num_batches = config.gradient_accumulation_steps
    sampler = ClipBatchSampler(
        range(update * num_batches, (update + 1) * num_batches),
        config.clips_per_pass,
        num_batches,
        rank=data_rank(),
        num_ranks=num_data_ranks(),
    )
    num_frames = 1 if is_image else clips.num_frames
    shape = (clips.num_channels, num_frames, clips.height, clips.width)
    batches = []
    for items in sampler:
        numbers = [number for _, number in items]
        videos = []
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            videos.append(2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
        batches.append(MicroBatch(torch.stack(videos).to(dtype), numbers))
    return batches


def train(
    case: Case,
    num_processes: int,
    context_parallel: int,
    dtype: torch.dtype,
    num_updates: int = NUM_UPDATES,
) -> Any:
    """Train a case, and return its logs, gradients and tensors by kind and name.

    Args:
        case: The training.
        num_processes: All processes.
        context_parallel: Those of them that share a clip.
        dtype: Of networks and clips.
        num_updates: Half of them before the step at which the discriminators begin to count.
    """
    config = config_of(case, num_processes, context_parallel)
    is_student = case is ALL_CASES["student"]
    state = build(config, dtype, is_student=is_student, model_of_diffusers=case.model)
    state.step = max(state.objective.schedule.disc_start - num_updates // 2, 0)
    gradients: dict[str, Tensor] = {}
    names = {weight: name for name, weight in state.autoencoder.named_parameters()}
    names |= {weight: name for name, weight in state.objective.named_parameters()}

    def keep_gradients(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    gradients[f"{update} {names[weight]}"] = full_tensor(weight.grad).clone()

    for optimizer in state.optimizers.values():
        optimizer.register_step_pre_hook(keep_gradients)
    logs: dict[str, float] = {}
    for update in range(num_updates):
        is_image = case.images and update % 2 == 1
        batches = micro_batches(config, update, dtype, is_image=is_image)
        log = train_step(state, batches, measure_update_ratio=True)
        logs |= {f"{update} {name}": value for name, value in log.items()}
    tensors = tensors_of(state, names)
    leave_context_group()
    return {"log": logs, "gradients": gradients, **tensors}


def tensors_of(state: TrainState, names: dict[Tensor, str]) -> dict[str, dict[str, Tensor]]:
    """Return the weights, their average and the optimizers' states, by kind and name."""
    weights = {}
    for network in (state.autoencoder, state.objective):
        weights |= {name: full_tensor(value) for name, value in network.state_dict().items()}
    averages = {name: full_tensor(value) for name, value in state.ema.averages.items()}
    states = {}
    for optimizer_name, optimizer in state.optimizers.items():
        for weight, values in optimizer.state.items():
            for name, value in values.items():
                states[f"{optimizer_name} {names[weight]} {name}"] = full_tensor(value)
    return {"weights": weights, "moving average": averages, "optimizer states": states}


def differences(ours: Any, theirs: Any, *, is_divided: bool) -> list[Difference]:
    """Return the largest difference of each kind; infinity if a difference is NaN.

    Args:
        ours: The result of `train` with one process.
        theirs: That of several.
        is_divided: Whether these have parts of the batch.

    Raises:
        ValueError: They have other names.
    """
    result = []
    for kind, values in ours.items():
        others = theirs[kind]
        if values.keys() != others.keys():
            raise ValueError(f"{kind}: {sorted(values.keys() ^ others.keys())} in one of them only")
        worst = Difference(kind, "", 0.0)
        for name, value in values.items():
            if is_divided and any(part in name for part in (*OF_PARTS, ROUNDING)):
                continue
            if IN_FLOAT32 in name:
                continue
            value = torch.as_tensor(value, dtype=torch.float64)
            other = torch.as_tensor(others[name], dtype=torch.float64)
            if value.numel() == 0:
                continue
            scale = max(float(value.abs().max()), 1e-3)
            relative = float((value - other).abs().max()) / scale
            if math.isnan(relative):
                relative = math.inf
            if relative > worst.relative:
                worst = Difference(kind, name, relative)
        result.append(worst)
    return result


def launch(num_processes: int, *words: str) -> None:
    """Run this script in several processes.

    Raises:
        RuntimeError: If it fails.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command = [sys.executable, *launcher, str(num_processes), __file__, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-4000:]}")


def train_cases(
    num_updates: Mapping[str, int],
    folder: Path,
    num_processes: int,
    context_parallel: int,
    dtype: torch.dtype,
) -> None:
    """Train cases, and save the result of each; every process calls this.

    Args:
        num_updates: Updates of each case, by its name in `ALL_CASES`.
        folder: Where results are saved.
        num_processes: All processes.
        context_parallel: Those of them that share a clip.
        dtype: Of networks and clips.
    """
    for name, number in num_updates.items():
        result = train(ALL_CASES[name], num_processes, context_parallel, dtype, number)
        if not dist.is_initialized() or dist.get_rank() == 0:
            torch.save(result, folder / f"{name}-{num_processes}-{context_parallel}.pt")


def compare(
    num_updates: Mapping[str, int], dtype: torch.dtype, layouts: list[tuple[int, int]]
) -> bool:
    """Print the differences of cases from one process, and return whether all are small.

    Args:
        num_updates: Updates of each case, by its name in `ALL_CASES`.
        dtype: Of networks and clips.
        layouts: All processes, and those of them that share a clip.
    """
    bound = 1e-10 if dtype == torch.float64 else 2e-3
    is_small = True
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        train_cases(num_updates, folder, 1, 1, dtype)
        for num_processes, context_parallel in layouts:
            num_groups = num_processes // context_parallel
            divisible = []
            for name in num_updates:
                reason = reason_not_in_groups(name, num_groups)
                if reason is None:
                    divisible.append(name)
                else:
                    row = f"{name:25} {num_processes} processes, {context_parallel} for a clip"
                    print(f"{row}  skipped: {reason}", flush=True)
            if not divisible:
                continue
            words = ["work", "--folder", folder_name, "--context", str(context_parallel)]
            words += ["--processes", str(num_processes)]
            words += ["--cases", *[f"{name}={num_updates[name]}" for name in divisible]]
            if dtype == torch.float32:
                words.append("--float32")
            launch(num_processes, *words)
            for name in divisible:
                ours = torch.load(folder / f"{name}-1-1.pt")
                theirs = torch.load(folder / f"{name}-{num_processes}-{context_parallel}.pt")
                for difference in differences(ours, theirs, is_divided=num_groups > 1):
                    # Logs are float32 in every run, and under autocast networks are bfloat16.
                    allowed = 2e-6 if difference.kind == "log" else bound
                    allowed = max(allowed, bound)
                    mark = ""
                    if not difference.relative <= allowed and name != "bfloat16":
                        is_small = False
                        mark = "  LARGE"
                    row = f"{name:25} {num_processes} processes, {context_parallel} for a clip"
                    value = f"{difference.kind:17} {difference.relative:8.1e}"
                    print(f"{row}  {value}  {difference.name}{mark}", flush=True)
    return is_small


# Processes of each part of a run, those of them that share a clip, and clips in a batch.
PARTS_OF_A_RUN = [(2, 2, 2), (4, 4, 2), (4, 2, 1), (2, 2, 2)]
UPDATES_PER_PART = 2
# Ten rows of the latent. All terms of the GAN are on before the first part ends.
RESUMED: Settings = {
    "clips": {"height": 40},
    "objective": {"disc_start": 1, "gan": {"disc_train_start": 0}, "penalty": {"every": 2}},
}


def resume() -> bool:
    """Print how far the weights of a run are from those of one process, and return whether they are close.

    Each part of the run resumes with another number of processes, or of those that share a clip.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole = train_in_parts(Path(folder) / "whole", [(1, 1, 2)])
        parts = train_in_parts(Path(folder) / "parts", PARTS_OF_A_RUN)
    (worst,) = differences({"weights": whole}, {"weights": parts}, is_divided=True)
    layouts = ", ".join(f"{processes} ({shared})" for processes, shared, _ in PARTS_OF_A_RUN)
    print(f"{UPDATES_PER_PART} updates each with {layouts} processes (of them for a clip):")
    print(f"{len(whole)} tensors, largest difference {worst.relative:.1e}, of {worst.name}")
    return worst.relative < 2e-3


def train_in_parts(folder: Path, parts: list[tuple[int, int, int]]) -> dict[str, Tensor]:
    """Train with `telecine train`, and return the last weights of all networks and the moving average.

    Args:
        folder: Where data and run are written; it is created.
        parts: As `PARTS_OF_A_RUN`.
    """
    folder.mkdir()
    num_updates = UPDATES_PER_PART * len(PARTS_OF_A_RUN)
    settings = prepare(Case(merged(SMALL, RESUMED)), folder, num_updates)
    for number, (num_processes, context_parallel, batch_size) in enumerate(parts, start=1):
        words = ["-m", "torch.distributed.run", "--nproc-per-node", str(num_processes)]
        words += ["-m", "telecine", "train", "--config", str(settings)]
        words += ["--steps", str(num_updates * number // len(parts))]
        words += ["--context_parallel", str(context_parallel), "--batch_size", str(batch_size)]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-4000:]}")
    _, checkpoint = Run(folder / "run").checkpoints.all()[-1]
    tensors = load_file(checkpoint / "objective.safetensors")
    for kind in ("model", "ema"):
        (path,) = (checkpoint / kind).glob("*.safetensors")
        for key, value in load_file(path).items():
            tensors[f"{kind} {key}"] = value
    return tensors


# Frames, height and width of the clips whose memory is measured, with telecine's own model as it is by default.
MEMORY_SIZES = [(9, side, side) for side in (128, 192, 256, 384, 512, 640)]
RECONSTRUCTION_ALONE: Settings = {
    "batch_size": 1,
    "causal_vae": {
        "spatial_compression": 8,
        "latent_channels": 16,
        "patch_size": 4,
        "base_channels": 64,
        "channel_multipliers": [1, 2],
        "blocks_per_level": 2,
    },
    "objective": {"perceptual_weight": 0.0, "adversarial_loss_weight": 0.0},
    "discriminator": {"video": "none"},
}


def memory_case(size: tuple[int, int, int]) -> Case:
    """Return a case of one size whose memory is that of the autoencoder."""
    num_frames, height, width = size
    clips = {"num_frames": num_frames, "height": height, "width": width}
    return Case(merged(RECONSTRUCTION_ALONE, {"clips": clips}))


def measure_memory(num_processes: int) -> None:
    """Print the most that the tensors of forward and backward hold in this process; every process calls this."""
    for size in MEMORY_SIZES:
        config = config_of(memory_case(size), num_processes, num_processes)
        state = build(config, torch.float32)
        (batch,) = micro_batches(config, 0, torch.float32, is_image=False)
        with MemoryCounter("all") as counter:
            compute_gradients(state, [batch])
        tensors = counter.largest_by_part["all"] / 2**20
        leave_context_group()
        planned = plan_update(config, device_type="cpu").largest_by_part[AUTOENCODER] / 2**20
        if not dist.is_initialized() or dist.get_rank() == 0:
            shape = " x ".join(map(str, size))
            text = f"{shape}, {num_processes} processes for a clip: {tensors:.1f} MiB"
            print(f"{text}; of the autoencoder by the plan: {planned:.1f} MiB", flush=True)


class Messages(TorchDispatchMode):
    """Counts operators, and the bytes that this process sends by collective."""

    def __init__(self) -> None:
        super().__init__()
        self.num_operators = 0
        self.num_messages: Counter[str] = Counter()
        self.num_bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_operators += 1
        name = str(func.overloadpacket)
        if name.startswith("c10d.") and not name.startswith("c10d.recv"):
            # Of a gathering, the second argument is what this process sends.
            sent = args[1] if name == "c10d.allgather_" else args[0]
            self.num_messages[name] += 1
            self.num_bytes[name] += sum(tensor.nbytes for tensor in tree_leaves(sent))
        return func(*args, **(kwargs or {}))


def count_messages(num_processes: int) -> None:
    """Print the operators and the messages of an update of several cases; every process calls this."""
    cases = {"telecine's own": memory_case(MEMORY_SIZES[1])}
    for name in ("wan", "cogvideox", "ltx"):
        # Five rows of the latent.
        height = 160 if name == "ltx" else 40
        changes = merged(RECONSTRUCTION_ALONE, {"clips": {"num_frames": 9, "height": height}})
        cases[name] = Case(changes, model=ALL_CASES[name].model)
    for name, case in cases.items():
        config = config_of(case, num_processes, num_processes)
        state = build(config, torch.float32, model_of_diffusers=case.model)
        train_step(state, micro_batches(config, 0, torch.float32, is_image=False))
        with Messages() as messages:
            train_step(state, micro_batches(config, 1, torch.float32, is_image=False))
        leave_context_group()
        # The second process of four has two neighbours.
        if not dist.is_initialized() or dist.get_rank() == num_processes // 2:
            shape = " x ".join(map(str, config.clips.train_buckets[0].shape))
            count = f"{messages.num_operators} operators"
            print(f"{name}, {shape}, {num_processes} processes for a clip: {count}")
            for operator, number in messages.num_messages.items():
                size = messages.num_bytes[operator] / 2**20
                print(f"    {operator}: {number} messages, {size:.3f} MiB", flush=True)


def layouts_of(parser: argparse.ArgumentParser, num_processes: int | None) -> list[tuple[int, int]]:
    """Return the layouts with a number of processes, or all for None; end with an error if there is none."""
    if num_processes is None:
        return list(LAYOUTS)
    layouts = [layout for layout in LAYOUTS if layout[0] == num_processes]
    if not layouts:
        numbers = sorted({number for number, _ in LAYOUTS})
        contract = f"one of {', '.join(map(str, numbers))}, which have a layout"
        parser.error(f"`--processes` must be {contract}, but got {num_processes}.")
    return layouts


def main() -> int:
    """Run a command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["values", "memory", "messages", "resume", "work"])
    parser.add_argument(
        "--cases",
        nargs="*",
        default=[name for name in ALL_CASES if name not in LEFT_OUT],
        help="NAME, or NAME=UPDATES for another number of updates",
    )
    parser.add_argument("--updates", type=int, default=NUM_UPDATES)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--context", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dtype = torch.float32 if arguments.float32 else torch.float64
    num_updates = {}
    for case in arguments.cases:
        name, _, number = case.partition("=")
        num_updates[name] = int(number or arguments.updates)
    if arguments.command == "values":
        layouts = layouts_of(parser, arguments.processes)
        return 0 if compare(num_updates, dtype, layouts) else 1
    if arguments.command == "resume":
        return 0 if resume() else 1
    if arguments.command == "work":
        train_cases(num_updates, arguments.folder, arguments.processes, arguments.context, dtype)
    elif arguments.processes is None:
        for num_processes in (1, 2, 4):
            launch(num_processes, arguments.command, "--processes", str(num_processes))
    elif arguments.command == "memory":
        measure_memory(arguments.processes)
    else:
        count_messages(arguments.processes)
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
