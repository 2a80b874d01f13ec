"""What tests of whole runs share: settings of a small objective, runs that stop, and comparisons bit for bit."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from telecine.runs import Run
from telecine.settings import DiscriminatorConfig, ObjectiveConfig
from telecine.training import Interrupted, train
from telecine.training.build import build_accelerator, build_autoencoder, build_state
from telecine.training.interrupt import StopRequest
from telecine.training.loop import train_to_the_end
from telecine.training.prepare import prepare

# A reconstruction loss alone, for tests of what a run reads, saves and prints.
LIGHT = {
    "objective": ObjectiveConfig(perceptual_weight=0.0),
    "discriminator": DiscriminatorConfig("none"),
    "batch_size": 1,
    "val_clips": 1,
    "latent_clips": 0,
    "trackers": (),
}


def quiet():
    return Console(quiet=True)


def recorder():
    """Return a console whose text can be exported."""
    return Console(record=True, width=1000, file=io.StringIO())


def new_state(config, model=None):
    """Return the state of a new run with this model, or with that of its settings."""
    return build_state(config, build_accelerator(config), model or build_autoencoder(config))


class StopAfter:
    """Stops a run once it has done a number of updates."""

    def __init__(self, run, num_steps):
        self.run = run
        self.num_steps = num_steps

    @property
    def is_set(self):
        return self.run.state.step >= self.num_steps


class StopAfterValidation(StopAfter):
    """Stops a run once it has recorded the validation of a step."""

    @property
    def is_set(self):
        return any(
            record["step"] == self.num_steps for record in self.run.files.history.validations()
        )


def run_to(config, num_steps, console=None, autoencoder=None, stop=StopAfter):
    """Train up to a step, at which the run is interrupted; return its parts."""
    run = prepare(config, console or quiet(), autoencoder)
    with pytest.raises(Interrupted):
        train_to_the_end(run, stop(run, num_steps))
    return run


def train_all(config, console=None, autoencoder=None):
    """Train up to the last step, and return the parts of the run."""
    run = prepare(config, console or quiet(), autoencoder)
    train_to_the_end(run, StopRequest())
    return run


def checkpoint_folder(config, step):
    return Path(config.output_dir) / "checkpoints" / f"step-{step:08d}"


def checkpoint_steps(config):
    return [step for step, _ in Run(config.output_dir).checkpoints.all()]


def last_checkpoint(config):
    return Run(config.output_dir).checkpoints.all()[-1][1]


def resumed_copy(config, folder):
    """Train on in a copy of a finished run without its last checkpoint, as after a crash, and return its settings."""
    resumed = replace(config, output_dir=str(folder))
    shutil.copytree(config.output_dir, folder, symlinks=True)
    shutil.rmtree(last_checkpoint(resumed))
    train(resumed)
    return resumed


def tensors(folder):
    return {
        str(path.relative_to(folder)): load_file(path)
        for path in sorted(folder.rglob("*.safetensors"))
    }


def statistics_in(folder):
    """Return the statistics of the latent that a checkpoint and the models in it have."""
    configs = [json.loads((folder / kind / "config.json").read_text()) for kind in ("model", "ema")]
    return json.loads((folder / "state.json").read_text())["latents"], configs


def assert_equal(ours, theirs):
    """Compare tensors, or mappings or sequences of them, bit for bit."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def assert_equal_tensors(ours, theirs):
    """Compare tensors by file and name, bit for bit, and return their number."""
    compared = 0
    assert ours.keys() == theirs.keys()
    for name, group in ours.items():
        assert group.keys() == theirs[name].keys()
        for key, tensor in group.items():
            assert torch.equal(tensor, theirs[name][key]), f"{name}: {key}"
            compared += 1
    return compared


def assert_equal_runs(straight, resumed, num_files=6):
    """Compare all tensors of the last checkpoints, their statistics of the latent, and all records, bit for bit.

    Return the number of tensors.
    """
    ours = last_checkpoint(straight)
    theirs = last_checkpoint(resumed)
    assert statistics_in(ours) == statistics_in(theirs)
    assert len(tensors(ours)) == num_files
    compared = assert_equal_tensors(tensors(ours), tensors(theirs))
    records = [Run(config.output_dir).history.read() for config in (straight, resumed)]
    for record in (*records[0], *records[1]):
        record.pop("train/clips_per_second", None)  # differs between machines
    assert records[0] == records[1]
    return compared


def graph_breaks():
    """Return where TorchDynamo has broken graphs, but for PyTorch 2.8's at each entry of `torch.autocast`."""
    from torch._dynamo.utils import counters  # takes seconds

    autocast_of_2_8 = "qualname: _is_autocast_available"
    return [reason for reason in counters["graph_break"] if autocast_of_2_8 not in reason]
