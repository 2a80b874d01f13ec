"""A run with a discrete latent: its linear start, its counted codes, resuming, and the commands that look at it."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from telecine.cli import main
from telecine.report.run import read_records
from telecine.runs import METRICS_FILE
from telecine.training import train


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("changes", [{"bottleneck": "fsq", "fsq_levels": (5, 4)}, {"bottleneck": "lfq", "lfq_bits": 4}])
def test_a_run_with_codes(tiny, small_video, tmp_path, monkeypatch, changes):
    monkeypatch.setattr("telecine.training.baseline.NUM_CLIPS", 4)
    config = tiny(
        steps=1,
        val_every=1,
        linear_baseline=True,
        linear_start=True,
        causal_vae=replace(tiny().causal_vae, **changes),
        objective=replace(tiny().objective, adversarial_loss_weight=0.0, quantizer_aux_loss_weight=1.0),
    )
    train(config, console=Console(quiet=True))
    run = train(replace(config, steps=2), console=Console(quiet=True)).run
    first, *_, last = read_records(run / METRICS_FILE)
    assert first["val/psnr"] == pytest.approx(first["linear/psnr"], rel=1e-5)
    assert last["step"] == 2
    assert 0 < last["latent/codes_used"] <= 1
    assert 1 < last["latent/code_perplexity"] <= (20 if changes["bottleneck"] == "fsq" else 16)
    size = ["--num_frames", "5", "--height", "32", "--width", "32", "--max_clips", "2", "--device", "cpu"]
    data = ["--data", str(small_video), *size]
    assert main(["latents", str(run), *data, "-o", str(tmp_path / "page")]) == 0
    (found,) = json.loads((tmp_path / "page" / "latents.json").read_text())["models"]
    assert found["codes"].keys() == {"codes_used", "code_entropy", "code_perplexity"}
    assert "entropy of the codes, bits" in (tmp_path / "page" / "latents.html").read_text()
    assert main(["evaluate", str(run), *data, "-o", str(tmp_path / "figures")]) == 0
