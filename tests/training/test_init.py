"""Runs that start from the weights of another model of telecine."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from telecine.models import CausalVAE
from telecine.models.load import load_autoencoder
from telecine.report.page import write_report
from telecine.runs import Run, find_checkpoint
from telecine.settings import TrainableConfig
from telecine.settings.parse import read_config
from telecine.training import train
from telecine.training.memory import fake_autoencoder

from .helpers import LIGHT, assert_equal, last_checkpoint, recorder


@pytest.fixture
def source(tiny, tmp_path):
    """Return the folder of weights of the tiny run's model, with other values than a new one's."""
    model = CausalVAE(tiny().causal_vae)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
    model.save_pretrained(tmp_path / "weights")
    return str(tmp_path / "weights")


def run(config):
    """Return the summary of a run, what it printed, and the weights of its last checkpoint."""
    console = recorder()
    folder = Path(train(config, console=console).run)
    weights = load_file(find_checkpoint(folder) / "model" / "model.safetensors")
    return Run(folder).summary(), console.export_text(), weights


def test_a_run_of_another_compression_starts_from_weights_and_resumes(
    tiny, few_clips, source, tmp_path
):
    other = replace(tiny().causal_vae, spatial_compression=8, channel_multipliers=(1, 2))
    config = tiny(
        **LIGHT,
        causal_vae=other,
        init=source,
        linear_start=True,
        steps=2,
        save_every=1,
        val_every=2,
    )
    summary, text, straight = run(config)
    counts = {name: some for name, (some, _) in summary.copied.items()}
    first = (
        9 * 3 * 4 * 4**2 * 8 + 8
    )  # the convolution of patches; the blocks saw earlier frames, and do not here
    assert counts == {
        "encoder.linear": 0,
        "encoder.network": first,
        "decoder.linear": 0,
        "decoder.network": 8,
    }
    assert f"encoder.network {first:,} of " in text
    assert "encoder.linear none of" in text
    assert "fitting the linear baseline" in text, "the linear maps are new"
    assert f"encoder.network {first:,} of " in write_report([Path(config.output_dir)]).read_text()
    shutil.copytree(config.output_dir, tmp_path / "resumed")
    other = replace(config.discriminator, init="elsewhere")
    config = replace(
        config, output_dir=str(tmp_path / "resumed"), init="elsewhere", discriminator=other
    )
    shutil.rmtree(last_checkpoint(config))
    for path in Path(source).iterdir():
        path.unlink()
    resumed_summary, text, resumed = run(config)
    assert "parameters from" not in text
    assert f"warning: `init` stays {source!r}, as the run started" in text
    assert "warning: `discriminator.init` stays None, as the run started" in text
    recorded = read_config(Path(config.output_dir) / "config.yaml")
    assert (recorded.init, recorded.discriminator.init) == (source, None)
    assert resumed_summary.copied == summary.copied
    assert_equal(resumed, straight)


def test_linear_maps_that_are_copied_are_not_fitted_again(tiny, source):
    config = tiny(**LIGHT, init=source, linear_start=True, steps=1)
    _, text, weights = run(replace(config, optimizer=replace(config.optimizer, lr=1e-9)))
    assert "fitting" not in text
    torch.testing.assert_close(
        weights, dict(load_autoencoder(source).state_dict()), rtol=0, atol=1e-5
    )


def test_what_does_not_go_together_is_refused(tiny, source, tmp_path):
    for changes in ({"model": "a/model"}, {"trainable": TrainableConfig(weights="lora")}):
        with pytest.raises(
            ValueError, match=r"`init` must be left out with `model` or LoRA, but got"
        ):
            tiny(init=source, **changes)
    fake_autoencoder(tiny(init=source))
    with pytest.raises(ValueError, match=r"`init` must be a run or weights of a CausalVAE"):
        fake_autoencoder(tiny(init=str(tmp_path)))
