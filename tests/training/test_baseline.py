"""The linear baseline of a run, and the start of telecine's own autoencoder from it."""

from dataclasses import replace

import pytest
import torch

from telecine.evaluation import ReconstructionMetrics
from telecine.models import CausalVAE, CustomAutoencoder, LinearAutoencoder
from telecine.report.reported_run import read_run
from telecine.runs import Run
from telecine.settings import Bucket
from telecine.training import train
from telecine.training.baseline import (
    NoBaselineError,
    fit_linear,
    measure_linear,
    recorded_linear,
    training_clips,
)
from telecine.training.build import build_autoencoder
from telecine.training.clips import build_clips
from telecine.training.prepare import prepare

from .helpers import assert_equal, quiet, recorder, run_to


@pytest.fixture
def config(tiny):
    return tiny(
        linear_baseline=True,
        linear_start=True,
        steps=2,
        val_every=2,
        save_every=1,
        log_every=1,
        trackers=(),
    )


class Repeats(torch.nn.Module):
    """Reconstructs itself: a module of whose latent nothing is known."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.decoder = torch.nn.Conv3d(3, 3, 1)

    def forward(self, video):
        return self.decoder(self.scale * video)


@pytest.mark.slow
def test_it_is_fitted_to_the_first_training_clips_and_measured_on_the_held_out_ones(
    config, few_clips
):
    model = build_autoencoder(config)
    clips = build_clips(config, model)
    linear = fit_linear(model, clips)
    expected = LinearAutoencoder(4, 4, 4).fit(clips.train[i]["video"][None] for i in range(12))
    video = clips.val[0]["video"][None]
    torch.testing.assert_close(linear(video), expected(video), rtol=0, atol=0)
    assert len(list(training_clips(clips))) == 12
    metrics = ReconstructionMetrics()
    with torch.no_grad():
        for clip in clips.val:
            metrics.update(reconstruction=expected(clip["video"][None]), target=clip["video"][None])
    measured = measure_linear(linear, clips.val, {}, torch.device("cpu"))
    assert measured == {name: pytest.approx(value) for name, value in metrics.compute().items()}


@pytest.mark.parametrize(("time", "has_one"), [(4, True), (7, False)])
def test_clips_of_every_size_must_consist_of_its_patches(config, few_clips, time, has_one):
    class Declares(Repeats):
        def linear_autoencoder(self, num_frames, height, width):
            return LinearAutoencoder(time, 4, 4)

    num_frames = time + 1
    buckets = (Bucket(num_frames, 32, 32), Bucket(17, 32, 32))
    sizes = replace(config.clips, num_frames=num_frames, buckets=buckets)
    model = CustomAutoencoder(Declares())
    clips = build_clips(replace(config, clips=sizes), model)
    if has_one:
        assert isinstance(fit_linear(model, clips), LinearAutoencoder)
        return
    with pytest.raises(NoBaselineError, match="clips of 17x32x32 do not consist of its patches"):
        fit_linear(model, clips)


@pytest.mark.slow
def test_a_run_starts_as_the_baseline_and_shows_it_everywhere(config, few_clips):
    console = recorder()
    result = train(config, console=console)
    before, *_, after = [
        record for record in Run(result.run).history.read() if "val/psnr" in record
    ]
    for name in ("psnr", "ssim", "lpips_alex"):
        assert before[f"val/{name}"] == pytest.approx(before[f"linear/{name}"], rel=1e-4)
        assert after[f"linear/{name}"] == before[f"linear/{name}"]
        assert after[f"val/{name}"] != before[f"val/{name}"]
    text = console.export_text()
    assert f"linear baseline: held-out psnr {before['linear/psnr']:.4g}" in text
    assert (
        "2 steps may end below this linear start, with which training first has to catch up; use --steps 300 or"
        in text
    )
    assert read_run(result.run, "run").held_out()["psnr"].linear == before["linear/psnr"]


@pytest.mark.slow
def test_settings_switch_the_measurement_and_the_start_off(config, few_clips):
    for baseline in (False, True):
        for start in (False, True):
            changed = replace(
                config, linear_baseline=baseline, linear_start=start, steps=299 if start else 300
            )
            console = recorder()
            trainer = prepare(changed, console)
            assert ("299 steps may end below" in console.export_text()) == start
            assert bool(trainer.linear_metrics) == baseline
            components = trainer.state.autoencoder.encoder.linear.rest.weight
            unfitted = 1 / components.shape[1] ** 0.5  # the bound of PyTorch's initial weights
            assert (components.abs().max() <= unfitted) == (not start)
            trainer.close()


@pytest.mark.slow
def test_a_resumed_run_reads_the_baseline_and_keeps_its_weights(config, few_clips, monkeypatch):
    trainer = run_to(config, 1)
    before = trainer.linear_metrics
    trainer.close()
    monkeypatch.setattr("telecine.training.first_weights.fit_linear", None)
    assert recorded_linear(Run(config.output_dir)) == before
    result = train(config)
    assert Run(result.run).history.read()[-1]["linear/psnr"] == before["linear/psnr"]


@pytest.mark.slow
def test_a_custom_model_has_none_and_the_console_says_so(config):
    console = recorder()
    train(config, autoencoder=Repeats(), console=console)
    text = console.export_text()
    assert "no linear baseline: Repeats has no method `linear_autoencoder`" in text
    assert "fitting" not in text
    assert recorded_linear(Run(config.output_dir)) == {}


@pytest.mark.slow
def test_a_given_model_of_ours_keeps_its_weights(config, few_clips):
    model = CausalVAE(config.causal_vae)
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = prepare(config, quiet(), model)
    assert_equal(dict(model.state_dict()), expected)
    assert trainer.linear_metrics
    trainer.close()
