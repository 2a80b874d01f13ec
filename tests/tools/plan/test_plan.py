"""`telecine plan`: what it prints about the memory of a run and what fits."""

import re
from dataclasses import replace

import pytest
from rich.console import Console

import telecine
from telecine.__main__ import main
from telecine.base.terminal import PlainConsole
from telecine.settings import (
    CausalVAEConfig,
    ClipConfig,
    DiscriminatorConfig,
    ObjectiveConfig,
    PenaltyConfig,
    TrainableConfig,
    TrainConfig,
)
from telecine.tools.plan.plan import LargestBatch, Plan
from telecine.training.update_memory import UpdateMemory

MB = 10**6
TINY = CausalVAEConfig(
    spatial_compression=4,
    base_channels=8,
    blocks_per_level=1,
    latent_channels=4,
    channel_multipliers=(1,),
    patch_size=4,
)
CONFIG = TrainConfig(
    causal_vae=TINY,
    clips=ClipConfig(num_frames=5, height=32, width=32),
    batch_size=2,
    objective=ObjectiveConfig(perceptual_weight=0.0),
    discriminator=DiscriminatorConfig(video="none"),
    device="cpu",
)
SWITCHES = (
    "as configured",
    "and --model_gradient_checkpointing true",
    "and --objective.gradient_checkpointing true",
    "and --mixed_precision bf16",
    "and --temporal_chunk 4",
)
# With these no switch is left.
ONE_ROW = {"dynamo_backend": "inductor", "mixed_precision": "bf16"}
SHARED_CLIPS = ("as configured, --context_parallel 2", "as configured, --context_parallel 4")


@pytest.fixture(scope="module")
def plan():
    return telecine.plan(replace(CONFIG, batch_size="auto"), "200MB", 4)


def printed(plan, width=80):
    console = PlainConsole()  # that of the commands
    console.record = True
    console.width = width
    plan.print_to(console)
    return console.export_text()


@pytest.mark.slow
def test_a_row_for_each_switch_for_sharding_and_for_shared_clips(plan):
    assert [largest.title for largest in plan.largest_batches] == [
        *SWITCHES,
        "and --sharding fsdp2, 4 processes",
        *SHARED_CLIPS,
    ]
    plain, recomputed = plan.largest_batches[:2]
    assert 0 < plain.batch_size < recomputed.batch_size
    assert plain.one_clip > recomputed.one_clip
    half, quarter = plan.largest_batches[-2:]
    assert plain.one_clip > half.one_clip > quarter.one_clip


@pytest.mark.slow
def test_the_plan_is_readable_in_80_columns(plan):
    text = printed(plan)
    assert "\\n" not in text
    assert "1 x 5 x 32 x 32, float32" in text
    for part in ("autoencoder", "parameters", "optimizer states", "copy for checkpoints", "all"):
        assert re.search(rf"│ {part} .*GiB", text)
    rows = [[cell.strip() for cell in line.split("│")] for line in text.splitlines()]
    for largest in plan.largest_batches:
        assert any(row[1:3] == [largest.title, str(largest.batch_size)] for row in rows)
    assert "The largest part of an update" in text


@pytest.mark.slow
def test_with_sharding_all_rows_are_of_sharded_weights(plan):
    objective = replace(CONFIG.objective, gradient_checkpointing=True)
    config = replace(CONFIG, batch_size=1, sharding="fsdp2", objective=objective)
    switched_on = {
        "model_gradient_checkpointing": True,
        "mixed_precision": "bf16",
        "temporal_chunk": 4,
    }
    sharded = telecine.plan(replace(config, **switched_on), 200 * MB, 4)
    titles = [largest.title for largest in sharded.largest_batches]
    assert titles == ["as configured", *SHARED_CLIPS]
    configured, half, quarter = sharded.largest_batches
    assert configured.one_clip == plan.largest_batches[len(SWITCHES)].one_clip
    assert configured.one_clip > half.one_clip > quarter.one_clip
    text = printed(sharded)
    assert re.search(r"bf16, sharded +\n? *over 4 processes", text)
    assert "saved by sharding" in text


@pytest.mark.slow
def test_checkpoints_of_discriminators_save_memory():
    switched_on = {"model_gradient_checkpointing": True, "temporal_chunk": 4}
    config = replace(
        CONFIG,
        objective=ObjectiveConfig(perceptual_weight=0.0, adversarial_loss_weight=0.5),
        discriminator=DiscriminatorConfig(video="patch", dim=8, num_layers=1),
        mixed_precision="bf16",
        **switched_on,
    )
    plain, recomputed, *_ = telecine.plan(config, 900 * MB, 1).largest_batches
    assert recomputed.title == "and --objective.gradient_checkpointing true"
    assert plain.one_clip > recomputed.one_clip


@pytest.mark.slow
def test_a_penalty_at_some_steps_counts_for_its_share(plan):
    assert plan.mean_flops == plan.update.flops, "there is no penalty"
    discriminator = DiscriminatorConfig(video="patch", dim=4, num_layers=1)
    objective = ObjectiveConfig(
        penalty=PenaltyConfig(every=4),
        adversarial_loss_weight=1.0,
        grad_penalty_loss_weight=10.0,
        perceptual_weight=0.0,
    )
    config = replace(CONFIG, discriminator=discriminator, objective=objective, **ONE_ROW)
    planned = telecine.plan(config, 900 * MB, 1)
    assert 0.3 * planned.update.flops < planned.mean_flops < planned.update.flops


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        (
            {"latent_cache": "latents", "trainable": TrainableConfig(weights="decoder")},
            SWITCHES,
        ),
        ({"dynamo_backend": "inductor"}, ("as configured", "and --mixed_precision bf16")),
    ],
)
def test_what_the_settings_refuse_together_is_no_row(monkeypatch, settings, rows):
    update = UpdateMemory({"all": 1}, {"all": 1}, {"all": 1}, {"all": 1}, checkpoint=1)
    monkeypatch.setattr("telecine.tools.plan.plan.plan_update", lambda *_, **__: update)
    plan = telecine.plan(replace(CONFIG, **settings), "200MB", 4)
    assert tuple(largest.title for largest in plan.largest_batches) == rows


@pytest.mark.slow
def test_a_memory_that_nothing_fits():
    with pytest.raises(
        ValueError, match=r"`memory` must be enough for one clip, but got 0\.00 GiB, and"
    ) as raised:
        telecine.plan(replace(CONFIG, **ONE_ROW), MB, 1)
    assert "--batch_size" not in str(raised.value)


@pytest.mark.parametrize(("memory", "fits"), [(100, True), (99, False)])
def test_a_plan_says_whether_the_settings_fit(memory, fits):
    """Nine tenths of the memory are used."""
    update = UpdateMemory(
        {"parameters": 10}, {"parameters": 10, "autoencoder": 80}, {"parameters": 10}, {}, 0
    )
    plan = Plan(
        "4 x 17 x 256 x 256, float32",
        update,
        "",
        1e12,
        memory,
        [LargestBatch("as configured", 1, 90)],
    )
    console = Console(record=True, width=200)
    plan.print_to(console)
    assert ("With these settings an update does not fit." in console.export_text()) != fits


def test_a_memory_needs_a_unit(capsys):
    assert main(["plan", "--memory", "80"]) == 2
    assert (
        "`--memory` must be a number with a unit (MB, MiB, GB, GiB), but got '80'"
        in capsys.readouterr().err
    )


def test_a_folder_whose_class_is_no_autoencoder_is_an_error(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    assert main(["plan", "--model", str(tmp_path), "--memory", "8GiB"]) == 2
    assert (
        "must be an autoencoder, with `encode` and `decode`, but got UNet2DCond"
        in capsys.readouterr().err
    )
