"""A run with a discrete latent: its linear start, its counted codes, resuming, and the page about its latents."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from telecine.__main__ import main
from telecine.runs import Run, find_checkpoint
from telecine.training import train

from .helpers import resumed_copy

pytestmark = pytest.mark.usefixtures("few_clips")


def discrete(tiny, **changes):
    """Return the settings of a tiny run of one update with a discrete latent, with its linear start and baseline."""
    return tiny(
        steps=1,
        val_every=1,
        linear_baseline=True,
        linear_start=True,
        causal_vae=replace(tiny().causal_vae, **changes),
        objective=replace(
            tiny().objective, adversarial_loss_weight=0.0, quantizer_aux_loss_weight=1.0
        ),
    )


def latents_page(run, small_video, folder):
    """Measure the latents of a run with the command line; return its figures and its page."""
    command = f"latents {run} --data {small_video} --max_clips 1 --device cpu -o {folder}"
    assert main(command.split()) == 0
    (figures,) = json.loads((folder / "latents.json").read_text())["models"]
    return figures, (folder / "latents.html").read_text()


@pytest.mark.slow
def test_a_run_with_finite_scalar_quantization(tiny, small_video, tmp_path):
    config = discrete(tiny, bottleneck="fsq", fsq_levels=(5, 4))
    train(config)
    run = train(replace(config, steps=2)).run
    first, *_, last = Run(run).history.read()
    assert first["val/psnr"] == pytest.approx(first["linear/psnr"], rel=1e-5)
    assert last["step"] == 2
    assert 0 < last["latent/codes_used"] <= 1
    assert 1 < last["latent/code_perplexity"] <= 20
    figures, page = latents_page(run, small_video, tmp_path / "page")
    assert figures["codes"].keys() == {"codes_used", "code_entropy", "code_perplexity"}
    assert "entropy of the codes, bits" in page


@pytest.mark.slow
def test_a_run_with_lookup_free_quantization(tiny):
    run = train(discrete(tiny, bottleneck="lfq", lfq_bits=4)).run
    records = Run(run).history.read()
    losses = {name for record in records for name in record if name.startswith("train/")}
    assert {"train/entropy_loss", "train/commitment_loss"} <= losses
    assert 1 < records[-1]["latent/code_perplexity"] <= 16


@pytest.mark.slow
def test_a_run_with_nested_channels_resumes_to_the_bit(tiny, small_video, tmp_path):
    channels = tiny().causal_vae.latent_channels
    config = discrete(tiny, nested_channels=(channels // 2,))
    config = replace(config, steps=2, save_every=1, latent_clips=0)
    whole = train(config).run
    resumed = Path(resumed_copy(config, tmp_path / "part").output_dir)
    files = [find_checkpoint(run) / "model" / "model.safetensors" for run in (whole, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()
    figures, page = latents_page(resumed, small_video, tmp_path / "page")
    assert figures["nested_psnr"].keys() == {str(channels // 2)}
    assert f"PSNR with {channels // 2} channels, dB" in page
