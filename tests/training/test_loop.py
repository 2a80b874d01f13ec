"""Runs that are interrupted, that diverge, and whose data or disk fails."""

import json
import multiprocessing
import re
import shutil
import threading
from dataclasses import replace

import pytest
import torch
from torch import distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from telecine.data import DataError
from telecine.data.dataset import ClipDataset
from telecine.models import CausalVAE
from telecine.report.reported_run import read_run
from telecine.runs import Run
from telecine.runs.checkpoints import Checkpoints
from telecine.settings import OptimizerConfig
from telecine.training import Interrupted, TrainingError, train
from telecine.training.build import build_accelerator
from telecine.training.clips import read_batches
from telecine.training.interrupt import StopRequest
from telecine.training.loop import remedy_for_divergence, train_to_the_end
from telecine.training.prepare import prepare
from telecine.training.step import DivergenceError

from .helpers import (
    LIGHT,
    StopAfterValidation,
    assert_equal,
    assert_equal_runs,
    checkpoint_folder,
    checkpoint_steps,
    last_checkpoint,
    quiet,
    recorder,
    resumed_copy,
    run_to,
    statistics_in,
    tensors,
)


@pytest.mark.slow
def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(tiny, tmp_path):
    steps = {"steps": 4, "val_every": 2, "save_every": 2}
    straight, resumed = (
        tiny(output_dir=str(tmp_path / name), **steps) for name in ("straight", "resumed")
    )
    train(straight)
    run_to(resumed, 1)  # between two records, each a mean over two updates
    run_to(resumed, 2)
    train(resumed)
    assert assert_equal_runs(straight, resumed) > 200


@pytest.mark.slow
def test_a_resumed_run_restores_its_loss_scale(tiny, tmp_path, monkeypatch):
    """As in float16 on a GPU: the scale grows after a number of updates in a row, interrupted or not."""

    def with_scaler(config):
        accelerator = build_accelerator(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
        return accelerator

    monkeypatch.setattr("telecine.training.prepare.build_accelerator", with_scaler)
    straight = tiny(steps=3, save_every=2)
    train(straight)
    resumed = resumed_copy(straight, tmp_path / "resumed")
    assert_equal_runs(straight, resumed)
    scalers = [
        json.loads((last_checkpoint(run) / "state.json").read_text())["scaler"]
        for run in (straight, resumed)
    ]
    assert (scalers[0]["scale"], scalers[0]["_growth_tracker"]) == (2.0**9, 1)
    assert scalers[0] == scalers[1]


def test_a_validation_that_is_interrupted_is_made_when_the_run_resumes(tiny, tmp_path):
    settings = {
        **LIGHT,
        "steps": 3,
        "val_every": 2,
        "save_every": 3,
        "log_every": 1,
        "latent_clips": 1,
    }
    straight = tiny(output_dir=str(tmp_path / "straight"), **settings)
    train(straight)
    config = tiny(**settings)
    run_to(config, 0).close()
    assert checkpoint_steps(config) == []
    run_to(config, 2)
    assert [record["step"] for record in Run(config.output_dir).history.validations()] == [0]
    assert checkpoint_steps(config) == [2]
    run_to(config, 3)  # in the last validation
    train(config)
    assert statistics_in(checkpoint_folder(config, 3))[0]["step"] == 3
    assert_equal_runs(straight, config, num_files=5)
    console = recorder()
    train(config, console=console)
    assert "the curves have a gap" not in console.export_text()


def test_a_stop_between_the_first_validation_and_the_first_update_saves_nothing(tiny):
    config = tiny(**LIGHT)
    run = prepare(config, quiet())
    with pytest.raises(Interrupted, match="stopped before the first update"):
        train_to_the_end(run, StopAfterValidation(run, 0))
    assert checkpoint_steps(config) == []
    run.close()


def test_each_process_trains_on_its_part_of_the_clips(tiny):
    config = tiny(gradient_accumulation_steps=2)
    run = prepare(config, quiet())
    numbers = []
    run.state.step = 4
    for rank in range(3):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=3)
        batches = list(
            read_batches(config, run.state, run.clips.train, None, should_stop=lambda: False)
        )
        dist.destroy_process_group()
        assert len(batches) == config.steps - 4
        numbers += [
            number for batch in batches for micro_batch in batch for number in micro_batch.clips
        ]
    clips_per_update = 3 * 2 * 2
    assert sorted(numbers) == list(range(4 * clips_per_update, 6 * clips_per_update))
    run.close()


@pytest.mark.slow
def test_a_state_that_is_not_finite_is_never_saved(tiny):
    config = tiny(steps=4, save_every=1)
    run = run_to(config, 2)
    state = run.state
    state.step += 1
    weight = next(iter(state.autoencoder.parameters()))
    discriminator = state.objective.get_trainable_parameters()[0]
    moment = state.disc_optimizer.state[discriminator]["exp_avg_sq"]
    for tensor in (
        weight.data,
        next(iter(state.ema.averages.values())),
        discriminator.data,
        moment,
    ):
        value = tensor.view(-1)[0].item()
        tensor.view(-1)[0] = float("nan")
        run.checkpointer.save(state)
        tensor.view(-1)[0] = value  # what is saved is what counts, not what has become of it
        with pytest.raises(
            DivergenceError, match=r"` is not finite after step 3. No checkpoint was written."
        ):
            run.checkpointer.wait()
    assert checkpoint_steps(config) == [1, 2]
    assert run.checkpointer.save(state).name == "step-00000003"
    run.checkpointer.wait()
    assert checkpoint_steps(config) == [2, 3]


@pytest.mark.slow
def test_training_continues_while_a_checkpoint_is_written(tiny, tmp_path, monkeypatch):
    reached = threading.Event()
    opened = threading.Event()

    def wait_and_finish(*arguments, finish=Checkpoints.finish, **options):
        reached.set()
        assert opened.wait(60), "training waited for the checkpoint"
        finish(*arguments, **options)

    run = run_to(tiny(steps=4, save_every=1), 2)
    state = run.state
    monkeypatch.setattr(Checkpoints, "finish", wait_and_finish)
    state.step = 3
    weights = {name: weight.clone() for name, weight in state.autoencoder.state_dict().items()}
    moments = [values["exp_avg"].clone() for values in state.disc_optimizer.state.values()]
    run.checkpointer.save(state)
    assert reached.wait(60)
    # Training continues meanwhile. If the machine crashed, the checkpoint before would be used.
    for tensor in (*state.autoencoder.parameters(), *state.ema.averages.values()):
        tensor.data.add_(1)
    for values in state.disc_optimizer.state.values():
        values["exp_avg"].add_(1)
    shutil.copytree(run.files.folder, tmp_path / "crashed")
    newest, damaged = Run(tmp_path / "crashed").checkpoints.newest_intact()
    assert (newest.name, damaged) == ("step-00000002", [])
    opened.set()
    run.checkpointer.wait()
    saved = tensors(checkpoint_folder(run.config, 3))
    assert_equal(saved["model/model.safetensors"], weights)
    for index, moment in enumerate(moments):
        assert torch.equal(saved["disc_optimizer.safetensors"][f"{index}.exp_avg"], moment)


@pytest.fixture
def full_disk(monkeypatch):
    """Let each checkpoint fail, and return the steps of these."""
    steps = []

    def fail(checkpoints, step, folder, **options):
        steps.append(step)
        raise OSError(f"no space for step {step}")

    monkeypatch.setattr(Checkpoints, "finish", fail)
    return steps


@pytest.mark.slow
def test_one_checkpoint_is_written_at_a_time_and_its_error_ends_the_run(tiny, full_disk):
    """Every way out of the run waits for the thread that writes."""
    with pytest.raises(OSError, match="no space for step 2"):
        train(tiny(steps=5, save_every=2, val_every=5, **LIGHT))
    assert full_disk == [2]
    console = recorder()
    run = prepare(tiny(), console)
    run.checkpointer.save(run.state)
    run.close()  # as after another error
    assert "warning: no space for step 0\n" in console.export_text()


@pytest.mark.slow
def test_an_error_of_writing_a_finished_run_again_ends_it(tiny, request):
    """It is saved again with statistics of the latent."""
    config = tiny(steps=1, save_every=1, **LIGHT)
    train(config)
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="no space"):
        train(replace(config, latent_clips=2))


class Diverging:
    """A model whose decoder returns NaN in some passes of training, counted from 1 over all runs."""

    def __init__(self, config, *passes):
        self.passes = passes
        self.num_passes = 0
        self.model = CausalVAE(config.causal_vae)
        self.model.decoder.register_forward_hook(self._after_pass)

    def _after_pass(self, module, inputs, output):
        if not module.training:
            return output
        self.num_passes += 1
        return output * float("nan") if self.num_passes in self.passes else output


@pytest.mark.slow
def test_after_a_divergence_the_run_goes_back_and_lowers_the_learning_rates(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = {"steps": 4, "log_every": 1, "val_every": 4, "val_clips": 1, "save_every": 1, "keep": 4}
    settings = {"on_divergence": "rollback", "trackers": ("tensorboard",), **steps}
    straight, resumed = (
        tiny(output_dir=str(tmp_path / name), **settings) for name in ("straight", "resumed")
    )
    straight = replace(
        straight, clips=replace(straight.clips, num_workers=1)
    )  # the workers of before are replaced
    diverging = Diverging(straight, 3)
    console = recorder()
    train(straight, console=console, autoencoder=diverging.model)
    assert multiprocessing.active_children() == []
    text = "was not finite after step 2; went back to step 2, learning rates times 0.5"
    assert re.search(rf"warning: `train/\w+` {text}\n", console.export_text())
    run = Run(straight.output_dir)
    rates = {
        record["step"]: record["train/lr"] for record in run.history.read() if "train/lr" in record
    }
    assert rates == {1: 5e-4, 2: 1e-3, 3: 5e-4, 4: 5e-4}, "warm-up, then half"
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert {event.step: event.value for event in events.Scalars("train/lr")} == pytest.approx(rates)
    assert len(events.Scalars("train/lr")) == len(rates)
    (warning,) = read_run(run.folder, "straight").warnings
    assert (warning.step, warning.rule) == (2, "rolled_back")
    assert warning.message.endswith(text)
    shutil.copytree(run.folder, resumed.output_dir)
    shutil.rmtree(checkpoint_folder(resumed, 4))
    train(resumed, autoencoder=diverging.model)
    assert_equal_runs(straight, resumed)
    lines = [(tmp_path / name / "health.jsonl").read_text() for name in ("straight", "resumed")]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_divergence_that_ends_the_run_says_how_to_resume(tiny):
    config = tiny(save_every=1, **LIGHT)
    diverging = Diverging(config, *range(2, 10))
    remedy = "off. Run the same command with --optimizer.lr 0.0005 --optimizer.disc_lr 5e-05: it resumes from step 1."
    with pytest.raises(
        TrainingError, match=rf"`train/\w+` must be .* at step 1\..*{re.escape(remedy)}"
    ):
        train(config, autoencoder=diverging.model)
    remedy = r"off\. It went back 3 times already\. Run .*lr 6\.25e-05 .* step 1\."
    with pytest.raises(TrainingError, match=remedy):
        train(replace(config, on_divergence="rollback"), autoencoder=diverging.model)
    assert diverging.num_passes == 1 + 1 + 4


@pytest.mark.slow
def test_a_run_does_not_go_back_for_data_that_is_not_finite(tiny):
    run = run_to(tiny(save_every=1, on_divergence="rollback", **LIGHT), 1)

    class NotFinite:
        def __getattr__(self, name):
            return getattr(dataset, name)

        def __getitem__(self, item):
            clip = dataset[item]
            return {**clip, "video": clip["video"] * float("nan")}

    dataset = run.clips.train
    run.clips = replace(run.clips, train=NotFinite())
    with pytest.raises(TrainingError, match=r"`data` must be finite.*Check the data"):
        train_to_the_end(run, StopRequest())
    assert run.state.rollbacks == []


@pytest.mark.slow
def test_no_worker_outlives_an_error_that_is_kept(tiny):
    config = tiny(**LIGHT)
    config = replace(config, clips=replace(config.clips, num_workers=1))
    with pytest.raises(TrainingError) as raised:
        train(config, autoencoder=Diverging(config, 1).model)
    assert raised.value.__traceback__ is not None
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("num_saved", "num_rollbacks", "expected"),
    [
        (None, 0, "Run the same command with {}: it starts again, as it has no checkpoint."),
        (0, 0, "Run the same command with {}: it resumes from step 10."),
        (
            2,
            2,
            "It went back 2 times already. Run the same command with {}: it resumes from step 10.",
        ),
        (
            0,
            3,
            "It went back 3 times already. Run the same command with {}: it resumes from step 10.",
        ),
    ],
)
def test_the_remedy_names_rates_below_the_last_and_the_checkpoint(
    num_saved, num_rollbacks, expected
):
    """A checkpoint has lower rates only if it was saved after the run went back."""
    checkpoint = None
    if num_saved is not None:
        checkpoint = {"step": 10, "rollbacks": num_saved * [(1, 0, "x")]}
    rates = "--optimizer.lr 5e-05 --optimizer.disc_lr 0.00015"
    if num_rollbacks == 3:
        rates = "--optimizer.lr 6.25e-06 --optimizer.disc_lr 1.875e-05"
    remedy = remedy_for_divergence(
        OptimizerConfig(lr=1e-4, disc_lr=3e-4), checkpoint, num_rollbacks
    )
    assert remedy == expected.format(rates)


@pytest.mark.slow
def test_when_a_batch_cannot_be_read_what_is_trained_is_saved(tiny, monkeypatch):
    def read(dataset, item, decode=ClipDataset.__getitem__):
        if item[0] == 2:
            raise DataError("deleted") from OSError("the reason")
        return decode(dataset, item)

    config = tiny(steps=4, save_every=4, **LIGHT)
    console = recorder()
    monkeypatch.setattr(ClipDataset, "__getitem__", read)
    with pytest.raises(DataError, match="deleted") as raised:
        train(config, console=console)
    assert isinstance(raised.value.__cause__, OSError)
    assert (
        f"cannot read the clips of step 2; saved {checkpoint_folder(config, 2)}"
        in console.export_text()
    )
    assert checkpoint_steps(config) == [2]


@pytest.mark.slow
@pytest.mark.parametrize("error", [DataError("deleted"), None])
def test_an_error_or_a_stop_while_the_latent_is_measured_loses_nothing(tiny, monkeypatch, error):
    def read(dataset, item, decode=ClipDataset.__getitem__):
        if isinstance(item, int):  # clips are measured by their numbers
            stop.is_set = error is None
            if error is not None:
                raise error
        return decode(dataset, item)

    stop = StopRequest()
    config = tiny(steps=4, save_every=2, val_every=4, **LIGHT | {"latent_clips": 2})
    run = prepare(config, quiet())
    monkeypatch.setattr(ClipDataset, "__getitem__", read)
    with pytest.raises(
        DataError if error else Interrupted, match="deleted" if error else "step-00000002"
    ):
        train_to_the_end(run, stop)
    assert checkpoint_steps(config) == [2]
    run.close()
