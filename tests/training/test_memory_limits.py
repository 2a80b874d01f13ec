"""What fits a memory: batches that are chosen, runs on a CPU, and errors when memory runs out."""

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from rich.console import Console
from torch import nn

from telecine.models import CausalVAE
from telecine.settings import (
    CausalVAEConfig,
    ClipConfig,
    DiscriminatorConfig,
    ObjectiveConfig,
    TrainConfig,
)
from telecine.settings.parse import read_config
from telecine.training import TrainingError, train
from telecine.training.build import build_accelerator
from telecine.training.memory import plan_update
from telecine.training.memory_limits import (
    MAX_ON_CPU,
    describe_on_cpu,
    largest_batch,
    out_of_memory,
)
from telecine.training.update_memory import PARAMETERS, UpdateMemory

MB = 10**6
GIB = 2**30


@pytest.fixture
def free(monkeypatch):
    """Return a function that sets the free memory of this machine."""

    def set_free(size):
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda: SimpleNamespace(available=size, total=size)
        )

    return set_free


@pytest.fixture
def light(tiny):
    """Return a function that creates settings that are planned fast: only with the loss of pixels."""
    few = {"val_clips": 1, "latent_clips": 0, "trackers": (), "steps": 1}
    return lambda **changes: tiny(
        **{"objective": ObjectiveConfig(perceptual_weight=0.0), **few, **changes}
    )


def update_memory(peak, **changes):
    resident = {"parameters": 10, "optimizer states": 20}
    at_peak = {**resident, "autoencoder": peak - 30}
    return UpdateMemory(
        resident, at_peak, {**resident, "gradients": 10}, {}, checkpoint=0, **changes
    )


def test_the_largest_batch_follows_a_line_through_the_peak():
    plan = update_memory(130, num_clips=10)
    assert plan.memory_for(10) == 130
    assert plan.memory_for(20) == 230
    assert plan.memory_for(5) == 85  # with the gradients, which need not be there at the peak
    assert [plan.largest_batch(memory) for memory in (30, 49, 50, 85, 130, 229, 230)] == [
        0,
        1,
        1,
        5,
        10,
        19,
        20,
    ]
    assert replace(plan, saved_by_sharding=20).largest_batch(210) == 20


@pytest.mark.slow
def test_the_largest_batch_fits_and_is_not_far_from_the_limit(light, free):
    config = light(batch_size="auto")
    memory = 14 * MB
    free(memory)
    batch_size = largest_batch(config, build_accelerator(config))
    assert 1 < batch_size < MAX_ON_CPU
    peaks = [
        plan_update(replace(config, batch_size=size), device_type="cpu").peak
        for size in (batch_size, batch_size + 1)
    ]
    assert peaks[0] <= 0.9 * memory < peaks[1]


@pytest.mark.slow
def test_an_automatic_batch_size_is_said_recorded_and_kept(light, free):
    free(GIB)
    config = light(batch_size="auto")
    console = Console(record=True, width=200, file=io.StringIO())
    result = train(config, console=console)
    assert read_config(result.run / "config.yaml").batch_size == MAX_ON_CPU
    said = f"batch size {MAX_ON_CPU} in each process, the most on a CPU, where more are no faster; learning rates stay"
    assert said in console.export_text()
    free(20 * MB)
    resumed = train(replace(config, steps=2))
    assert read_config(resumed.run / "config.yaml").batch_size == MAX_ON_CPU


def test_a_memory_that_nothing_fits_names_the_smallest(light, free):
    free(2 * MB)
    config = light(batch_size="auto")
    with pytest.raises(
        ValueError,
        match=r"the free memory must be at least the 0\.0\d GiB that one clip needs.*largest part",
    ) as raised:
        largest_batch(config, build_accelerator(config))
    assert "--batch_size" not in str(raised.value)


def test_an_automatic_batch_size_needs_a_model_by_name(tiny):
    with pytest.raises(ValueError, match=r"batch_size.*a number for a custom module"):
        train(tiny(batch_size="auto"), autoencoder=nn.Conv3d(3, 3, 1))


LARGE = TrainConfig(
    causal_vae=CausalVAEConfig(
        spatial_compression=4, base_channels=256, channel_multipliers=(1,), blocks_per_level=1
    ),
    clips=ClipConfig(num_frames=17, height=256, width=256),
    batch_size=1,
    objective=ObjectiveConfig(perceptual_weight=0.0),
    discriminator=DiscriminatorConfig(video="none"),
    device="cpu",
)


@pytest.mark.slow
def test_a_large_run_on_a_cpu_says_what_an_update_needs(free):
    free(64 * GIB)
    with torch.device("meta"):
        model = CausalVAE(LARGE.causal_vae)
    line = describe_on_cpu(LARGE, model, num_processes=1)
    assert re.fullmatch(r"on this CPU an update needs 0\.\d\d GiB and 0\.\d+ TFLOP", line)
    larger = replace(LARGE, batch_size=4)
    warning = describe_on_cpu(larger, model, num_processes=1)
    assert warning.startswith("warning: on this CPU an update needs ")
    assert "`--config demo`" in warning
    free(GIB // 8)
    with pytest.raises(
        ValueError,
        match=r"the free memory must be at least the 0\.\d+ GiB that an update needs.* got 0\.12 GiB",
    ):
        describe_on_cpu(LARGE, model, num_processes=1)


def test_a_small_run_on_a_cpu_is_not_planned():
    assert describe_on_cpu(TrainConfig(), nn.Linear(10, 10), num_processes=1) is None


class OutOfMemory(nn.Conv3d):
    """An autoencoder whose memory runs out in its third backward pass."""

    def __init__(self):
        super().__init__(3, 3, 1)
        self.num_passes = 0

    def forward(self, x):
        reconstruction = super().forward(x)
        if reconstruction.requires_grad:
            reconstruction.register_hook(self.count)
        return reconstruction

    def count(self, gradient):
        self.num_passes += 1
        if self.num_passes == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.slow
def test_out_of_memory_ends_with_what_helps(light):
    with pytest.raises(
        TrainingError, match=r"^out of memory at step 2\. What helps: a smaller --batch_size"
    ) as raised:
        train(light(steps=4), autoencoder=OutOfMemory())
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        (
            {},
            "--model_gradient_checkpointing true, --mixed_precision bf16, a smaller --batch_size, smaller clips.",
        ),
        (
            {"mixed_precision": "bf16", "model_gradient_checkpointing": True, "batch_size": 1},
            "smaller clips.",
        ),
    ],
)
def test_nothing_that_is_on_is_advised(light, changes, advice):
    clips = ClipConfig(num_frames=17, height=128, width=128)
    error = out_of_memory(light(clips=clips, **changes), "at step 3", is_custom=False)
    assert "The largest part of an update, by its plan: autoencoder" in str(error)
    assert f"What helps: {advice}" in str(error)
    assert str(error).endswith("`telecine plan` with these settings shows what fits.")


def test_what_helps_against_many_weights(tiny):
    plan = replace(update_memory(130), peak_by_part={PARAMETERS: 100, "data": 1})
    assert (
        "--sharding fsdp2 with more processes, --trainable.weights lora, a"
        in plan.describe_largest_part(tiny())
    )
    plan = replace(plan, peak_by_part={"video discriminator": 100})
    assert (
        "--objective.gradient_checkpointing true, a smaller --disc"
        in plan.describe_largest_part(tiny())
    )


def test_out_of_memory_is_named_if_no_update_can_be_planned(tiny, tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "Moved"}')
    for name, reason in ((tmp_path, "Moved"), (tmp_path / "gone", "gone")):
        error = out_of_memory(tiny(model=str(name)), "at step 3", is_custom=False)
        assert isinstance(error, TrainingError)
        text = "out of memory at step 3 with a batch size of 2. What helps: a smaller --batch_size"
        expected = rf"{text}.*planned.*{reason}"
        assert re.match(expected, str(error))
        assert "\n" not in str(error)
