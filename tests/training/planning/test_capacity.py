import io
import multiprocessing
import re
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from telecine.base.terminal import PlainConsole
from telecine.settings import ClipConfig, ObjectiveConfig, PenaltyConfig
from telecine.settings.parse import read_config
from telecine.training import TrainingError, train
from telecine.training.build import build_accelerator
from telecine.training.planning import capacity
from telecine.training.planning.capacity import (
    _AS_CONFIGURED,
    _SWITCHES,
    _LargestBatch,
    _Plan,
    _plan_in_processes,
    largest_batch,
    make_plan,
    out_of_memory,
)
from telecine.training.planning.update import UpdatePlan, _remedies_in, plan_update
from telecine.training.prepare import prepare

MB = 10**6


def update_plan(peak):
    held = {"parameters": 10, "optimizer states": 20}
    return UpdatePlan(held, {**held, "autoencoder": peak - 30}, {**held, "gradients": 10}, {}, {}, {}, 0)


def test_the_largest_batch_follows_a_line_through_the_peak():
    plan = replace(update_plan(130), num_clips=10)
    assert plan.memory_for(10) == 130
    assert plan.memory_for(20) == 230
    assert plan.memory_for(5) == 85  # with the gradients, which need not be there at the peak
    assert [plan.largest_batch(memory) for memory in (30, 49, 50, 85, 130, 229, 230)] == [0, 1, 1, 5, 10, 19, 20]
    assert replace(plan, saved=20).largest_batch(210) == 20


@pytest.mark.skipif(sys.platform != "linux", reason="plans in one process")
def test_processes_are_forked_before_a_thread_draws_the_bar(monkeypatch):
    def bar(items, description, total):
        shown.append((total, len(multiprocessing.active_children()) - before))
        return items

    shown = []
    monkeypatch.setattr(capacity, "with_progress", bar)
    monkeypatch.setattr(capacity.os, "sched_getaffinity", lambda _: {0, 1})
    before = len(multiprocessing.active_children())
    assert _plan_in_processes(str, [1, 2, 3]) == ["1", "2", "3"]
    assert _plan_in_processes(str, [1]) == ["1"]
    assert shown == [(3, 2), (1, 0)]


@pytest.fixture
def light(light):
    """Return a function that creates settings that are planned faster yet: without a perceptual network."""
    return lambda **changes: light(**{"objective": ObjectiveConfig(perceptual_weight=0.0), **changes})


@pytest.fixture(scope="module")
def known_plans():
    return {}


@pytest.fixture
def plan_each_configuration_once(monkeypatch, known_plans):
    """Let searches in different folders share their plans. `test_update.py` tests these."""

    def plan(config, model=None, *, device_type):
        key = str(replace(config, output_dir="", val_clips=1, latent_clips=0, trackers=())), device_type
        if key not in known_plans:
            known_plans[key] = plan_update(config, model, device_type=device_type)
        return known_plans[key]

    monkeypatch.setattr(capacity, "plan_update", plan)


@pytest.fixture
def largest_within(monkeypatch, plan_each_configuration_once):
    """Return a function that returns the largest batch for a CPU with a memory."""

    def find(config, memory, max_on_cpu=10_000):
        monkeypatch.setattr(capacity, "free_memory", lambda device: memory)
        monkeypatch.setattr(capacity, "MAX_ON_CPU", max_on_cpu)
        return largest_batch(config, build_accelerator(config))

    return find


@pytest.mark.slow
def test_the_largest_batch_fits_and_is_not_far_from_the_limit(light, largest_within):
    config = light(batch_size="auto", steps=1)
    memory = 100 * MB
    found = largest_within(config, memory)
    peak = plan_update(replace(config, batch_size=found), device_type="cpu").peak
    assert 0.85 * memory < peak <= 0.9 * memory


@pytest.mark.slow
def test_a_batch_on_a_cpu_is_bounded_and_the_rates_are_named(light, largest_within, monkeypatch):
    config = light(batch_size="auto", steps=1)
    assert largest_within(config, 100 * MB, max_on_cpu=3) == 3
    console = Console(record=True, width=200, file=io.StringIO())
    monkeypatch.setattr("telecine.training.prepare.MAX_ON_CPU", 3)
    prepare(config, console).close()
    text = console.export_text()
    assert (
        "batch size 3 in each process, the most on a CPU, where more are no faster; learning rates stay 0.001" in text
    )


@pytest.mark.slow
def test_a_memory_that_nothing_fits_names_the_smallest(light, largest_within, monkeypatch):
    monkeypatch.setattr(capacity, "_SWITCHES", {})
    with pytest.raises(ValueError, match=r"`memory` must be enough for one clip.*needs 0\.0\d GiB.*largest part"):
        largest_within(light(steps=1), 5 * MB)
    image = light(clips=ClipConfig(num_frames=1, height=32, width=32))
    monkeypatch.setattr(capacity, "_plan_in_processes", lambda plan, configs: [*map(plan, configs)])
    with pytest.raises(ValueError, match=r"enough for one clip"):
        make_plan(replace(image, temporal_chunk=4), 5 * MB, 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the GPU")
def test_a_plan_for_a_card_has_no_time_of_this_cpu(light, monkeypatch):
    monkeypatch.setattr(capacity, "_plan_in_processes", lambda plan, configs: [update_plan(30 * MB)] * len(configs))
    made = make_plan(light(device="auto"), 200 * MB, 4)
    assert made.speed.endswith("TFLOP an update. For the time, run this command where the GPU is.")
    assert not re.search(r"\d h\b", made.speed)


def test_with_sharding_every_row_is_of_sharded_weights(light, monkeypatch):
    monkeypatch.setattr(capacity, "_plan_in_processes", lambda plan, configs: [update_plan(30 * MB)] * len(configs))
    monkeypatch.setattr(capacity, "_describe_speed", lambda *_: "")
    monkeypatch.setattr(capacity, "_saved_by_sharding", lambda model, num_processes: num_processes * MB)
    plain, sharded = (make_plan(light(sharding=name), 200 * MB, 4) for name in ("none", "fsdp2"))
    extra = plain.largest[-1]
    assert "sharding" in extra.title
    assert [row.one_clip for row in sharded.largest] == [extra.one_clip] * (len(plain.largest) - 1)
    console = Console(record=True, width=200)
    sharded.print_to(console)
    text = console.export_text()
    assert re.search(r"float32, sharded +\n? *over 4 processes", text)
    assert re.search(r"saved by sharding .* -0\.00 GiB .*\n.* all .* 0\.02 GiB", text)


def test_clips_of_one_frame_have_no_number_of_frames_that_fits(light, monkeypatch):
    monkeypatch.setattr(capacity, "_plan_in_processes", lambda plan, configs: [update_plan(30 * MB)] * len(configs))
    monkeypatch.setattr(capacity, "_describe_speed", lambda *_: "")
    made = make_plan(light(clips=ClipConfig(num_frames=1, height=32, width=32)), 200 * MB, 4)
    console = Console(record=True, width=200)
    made.print_to(console)
    row = next(line for line in console.export_text().splitlines() if "as configured" in line)
    assert row.split("│")[3].strip() == "-"


@pytest.mark.parametrize(("weight", "every", "expected"), [(0.0, 2, []), (10.0, 1, []), (10.0, 2, [0.0])])
def test_updates_without_the_penalty_are_planned_if_there_are_both(light, monkeypatch, weight, every, expected):
    def plan_in_processes(plan, configs):
        planned.extend(configs)
        return [update_plan(30 * MB)] * len(configs)

    planned = []
    monkeypatch.setattr(capacity, "_plan_in_processes", plan_in_processes)
    monkeypatch.setattr(capacity, "_measured_flops", lambda device, dtype: 1e9)
    config = light()
    objective = replace(config.objective, grad_penalty_loss_weight=weight, penalty=PenaltyConfig(every=every))
    make_plan(replace(config, objective=objective), 200 * MB, 1)
    weights = [each.objective.grad_penalty_loss_weight for each in planned]
    assert [each for each in weights if each != weight] == expected
    assert len({*map(str, planned)}) == len(planned) > 4, "none is planned twice"


@pytest.mark.parametrize(
    ("part", "changes", "advice"),
    [
        ("autoencoder", {}, "--model_gradient_checkpointing true, --mixed_precision bf16, a smaller --batch_size"),
        ("autoencoder", {"model_gradient_checkpointing": True}, "--mixed_precision bf16, a smaller --batch_size"),
        ("autoencoder", {"mixed_precision": "fp16"}, "--model_gradient_checkpointing true, a smaller --batch_size"),
        (
            "autoencoder",
            {"mixed_precision": "bf16", "model_gradient_checkpointing": True, "batch_size": 1},
            "smaller clips.",
        ),
        ("video discriminator", {}, "--objective.gradient_checkpointing true, a smaller --discriminator.dim"),
        ("frozen networks", {}, "a smaller --batch_size"),
        ("parameters", {}, "--sharding fsdp2 with more processes, --trainable.weights lora, a smaller"),
    ],
)
def test_nothing_that_is_on_is_advised(tiny, part, changes, advice):
    plan = replace(update_plan(130), at_peak={part: 100, "data": 1}, is_on=_remedies_in(tiny(**changes)))
    assert f"What helps: {advice}" in plan.describe_largest_part()


@pytest.mark.slow
def test_a_plan_knows_what_its_settings_have(light):
    plan = plan_update(light(mixed_precision="bf16", batch_size=1), device_type="cpu")
    assert {"--mixed_precision bf16", "a smaller --batch_size"} <= {*plan.is_on}
    assert "--model_gradient_checkpointing true" not in plan.is_on


@pytest.mark.slow
def test_switches_and_sharding_are_listed_once_each_beside_an_estimate_of_the_time(light, monkeypatch):
    monkeypatch.setattr(capacity, "_CALIBRATION_SHAPE", (1, 16, 5, 32, 32))
    monkeypatch.setattr(capacity, "_CALIBRATION_SECONDS", 0.05)
    made = make_plan(light(batch_size="auto", mixed_precision="bf16"), 200 * MB, 4)
    fits = made.largest
    titles = [
        "as configured",
        "model_gradient",
        "objective.gradient",
        "temporal_chunk 4",
        "sharding fsdp2, 4 processes",
    ]
    assert len(fits) == len(titles)
    assert all(title in fit.title for title, fit in zip(titles, fits, strict=True))
    plain, recomputed = fits[:2]
    assert 0 < plain.batch_size < recomputed.batch_size
    assert 5 < plain.num_frames < recomputed.num_frames
    assert plain.num_frames % 4 == 1, "a length that the model reproduces"

    assert "Estimate" in made.speed
    assert float(re.search(r"cpu in bfloat16, (\S+) TFLOP/s", made.speed)[1]) > 1e-4


@pytest.mark.slow
def test_an_automatic_batch_size_is_recorded_and_kept(light, largest_within, monkeypatch):
    config = light(batch_size="auto", steps=1, val_clips=1, latent_clips=0, trackers=())
    expected = largest_within(config, 40 * MB)
    result = train(config, console=Console(quiet=True))
    chosen = read_config(result.run / "config.yaml").batch_size
    assert chosen == expected > 1
    monkeypatch.setattr(capacity, "free_memory", lambda device: 90 * MB)
    resumed = train(replace(config, steps=2), console=Console(quiet=True))
    assert read_config(resumed.run / "config.yaml").batch_size == chosen


def test_an_automatic_batch_size_needs_a_model_by_name(tiny):
    config = tiny(batch_size="auto")
    with pytest.raises(ValueError, match=r"batch_size.*a number for a custom module"):
        train(config, autoencoder=torch.nn.Conv3d(3, 3, 1), console=Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize("is_own", [False, True])
def test_out_of_memory_ends_with_what_helps(light, monkeypatch, is_own):
    def step(state, batches, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("telecine.training.loop.train_step", step)
    own = torch.nn.Conv3d(3, 3, 1) if is_own else None
    with pytest.raises(TrainingError, match=r"out of memory at step 0.*What helps: .*smaller") as raised:
        train(light(), autoencoder=own, console=Console(quiet=True))
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)


def test_out_of_memory_before_the_first_update(tiny, tmp_path, monkeypatch):
    def build(*_, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("telecine.training.prepare.build_state", build)
    with pytest.raises(TrainingError, match=r"^out of memory at the start\. What helps: "):
        train(tiny(), autoencoder=torch.nn.Conv3d(3, 3, 1), console=Console(quiet=True))
    assert not (tmp_path / "run" / ".lock").exists()


def test_out_of_memory_is_named_if_no_update_can_be_planned(tiny, tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "Moved"}')
    expected = r"out of memory at step 3 with a batch size of 2. What helps: a smaller --batch_size.*planned.*'Moved'"
    for name in (tmp_path, tmp_path / "gone"):
        error = out_of_memory(tiny(model=str(name)), "at step 3", is_own=False)
        assert isinstance(error, TrainingError)
        assert re.match(expected.replace("'Moved'", "Moved" if name == tmp_path else "gone"), str(error))
        assert "\n" not in str(error)


@pytest.mark.parametrize(("memory", "fits"), [(100, True), (99, False)])
def test_a_plan_says_whether_the_settings_fit(memory, fits):
    """Nine tenths of the memory are used."""
    console = Console(record=True, width=200)
    update = UpdatePlan({"parameters": 10}, {"parameters": 10, "autoencoder": 80}, {"parameters": 10}, {}, {}, {}, 0)
    largest = [_LargestBatch("as configured", 1, 9, 90)]
    _Plan("4 x 17 x 256 x 256, float32", update, "1 h", memory, largest, False).print_to(console)
    text = console.export_text()
    assert ("\nWith these settings an update does not fit." in text) != fits


def test_what_fits_is_readable_in_80_columns():
    console = PlainConsole()  # that of the commands
    console.record, console.width = True, 80
    switches = [f"and --{name} {value}".lower() for name, value in _SWITCHES.items()]
    titles = (_AS_CONFIGURED, *switches, "and --sharding fsdp2, 8 processes")
    fits = [_LargestBatch(title, 4, 165, 90 * 2**30) for title in titles]
    update = UpdatePlan({"parameters": 10}, {"parameters": 10, "autoencoder": 80}, {"parameters": 10}, {}, {}, {}, 0)
    _Plan("4 x 17 x 256 x 256, float32", update, "1 h", 100, fits, False).print_to(console)
    lines = console.export_text().splitlines()
    assert not any("\\n" in line for line in lines)
    assert len(fits) == 5
    for fit in fits:
        row = ["", fit.title, "4", "165", "90.00 GiB", ""]
        assert row in [[cell.strip() for cell in line.split("│")] for line in lines]
