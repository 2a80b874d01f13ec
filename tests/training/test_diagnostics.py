"""Every rule fires in a run that is set up to fail, and none in a healthy run."""

import io
import logging
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from telecine.report.run import read_run
from telecine.runs import Run
from telecine.runs.history import History, TrainingWarning
from telecine.settings import (
    AdaptiveWeightConfig,
    ClipConfig,
    DiscriminatorConfig,
    GANConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PenaltyConfig,
    PerceptualConfig,
    ReconstructionConfig,
)
from telecine.settings.parse import read_config
from telecine.training.diagnostics import EMA_BEHIND, LONG, RECENT, RULES, Diagnostics, RecentValues
from telecine.training.interrupt import StopRequest
from telecine.training.loop import train_to_the_end
from telecine.training.prepare import prepare
from telecine.training.state import Rollback

DEMO = Path(__file__).parent / "demo_metrics.jsonl"
# Settings of each tiny run below, except for what makes it fail: a cheap perceptual network, a record each update.
OBJECTIVE = ObjectiveConfig(
    disc_start=0,
    adversarial_loss_weight=0.5,
    grad_penalty_loss_weight=10.0,
    quantizer_aux_loss_weight=1e-6,
    gan=GANConfig(disc_train_start=0),
    perceptual=PerceptualConfig(net="alex", num_frames=2),
    penalty=PenaltyConfig(every=2),
)
OPTIMIZER = OptimizerConfig(lr=5e-3, disc_lr=1e-4, warmup_steps=2, ema_decay=0.9, betas=(0.9, 0.99))
DISCRIMINATOR = DiscriminatorConfig(dim=2, video="patch", num_layers=1)
NO_DISCRIMINATOR = {"adversarial_loss_weight": 0.0}


class CopiesTheFirstFrame(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv3d(3, 12, (1, 2, 2), stride=(1, 2, 2))
        self.decoder = nn.ConvTranspose3d(12, 3, (1, 2, 2), stride=(1, 2, 2))

    def forward(self, video):
        decoded = self.decoder(self.encoder(video))
        return torch.cat([video[:, :, :1], decoded[:, :, 1:]], dim=2)


@pytest.fixture
def run(tiny):
    """Return a function that trains a tiny run and returns its settings, warnings and console."""

    def start(steps, *, objective=None, optimizer=None, change_run=None, autoencoder=None, **changes):
        config = tiny(
            steps=steps,
            clips=ClipConfig(num_frames=5, height=32, width=32, num_workers=0, cache=True),
            causal_vae=replace(tiny().causal_vae, patch_size=4, channel_multipliers=(1,)),
            batch_size=1,
            log_every=1,
            val_clips=1,
            latent_clips=0,
            save_every=steps,
            trackers=(),
            objective=replace(OBJECTIVE, **(objective or {})),
            optimizer=replace(OPTIMIZER, **(optimizer or {})),
            **{"val_every": steps, "discriminator": DISCRIMINATOR, **changes},
        )
        console = Console(record=True, width=40, highlight=False, file=io.StringIO())
        trainer = prepare(config, console, autoencoder)
        if change_run is not None:
            change_run(trainer)
        train_to_the_end(trainer, StopRequest())
        trainer.close()
        return config, warnings(config), console.export_text()

    return start


def warnings(config):
    return {warning.rule: warning for warning in Run(config.output_dir).warnings.all()}


@pytest.mark.slow
def test_no_rule_fires_in_a_healthy_run(run):
    config, warned, text = run(LONG + 8, val_every=14)
    # After so few updates discriminators may still guess. The test of the demo run below includes that rule.
    assert set(warned) <= {"discriminator_collapsed"}
    assert text.count("warning: ") == len(warned)
    records = Run(Path(config.output_dir)).history.read()
    assert sum("train/accuracy_real" in record for record in records) == LONG + 8
    assert sum(EMA_BEHIND in record for record in records) == 2
    assert len(read_run(Path(config.output_dir), "run").warnings) == len(warned)


@pytest.mark.slow
def test_a_discriminator_that_wins_and_an_autoencoder_that_does_not_learn(run, caplog):
    caplog.set_level(logging.WARNING, logger="telecine.training.diagnostics")
    wrong = {"objective": {"grad_penalty_loss_weight": 0.0}, "optimizer": {"lr": 1e-10, "disc_lr": 1e-3}}
    config, warned, text = run(28, **wrong)
    assert set(warned) == {"discriminator_saturated", "learns_nothing", "perceptual_flat"}
    for line in warned.values():
        assert f"step {line.step}: {line.message} ({line.rule}). {line.remedy}" in text
        assert sum(line.message in message for message in caplog.messages) == 1
    before = (Path(config.output_dir) / "health.jsonl").read_text()
    run(29, **wrong)
    assert (Path(config.output_dir) / "health.jsonl").read_text() == before, "a resumed run does not repeat warnings"


@pytest.mark.slow
def test_a_discriminator_that_does_not_learn_and_has_no_effect(run):
    objective = {"adaptive_weight": AdaptiveWeightConfig(min_norm=1e9)}
    _, warned, _ = run(LONG + 4, objective=objective, optimizer={"disc_lr": 1e-10, "grad_clip": 1e-3})
    expected = {"discriminator_collapsed", "learns_nothing", "adaptive_weight_at_bound", "always_clipped"}
    assert set(warned) == expected
    assert "below" in warned["adaptive_weight_at_bound"].message
    assert "discriminators" in warned["learns_nothing"].message


@pytest.mark.slow
def test_an_adversarial_term_that_is_too_strong(run):
    objective = {"adversarial_loss_weight": 1e6, "adaptive_weight": AdaptiveWeightConfig(max=1e-3)}
    _, warned, _ = run(RECENT + 4, objective=objective)
    assert {"adversarial_dominates", "adaptive_weight_at_bound"} <= set(warned)
    assert "maximum" in warned["adaptive_weight_at_bound"].message


@pytest.mark.slow
def test_a_learning_rate_that_is_too_large(run):
    _, warned, _ = run(
        RECENT + 4, objective=NO_DISCRIMINATOR, optimizer={"lr": 0.3}, discriminator=DiscriminatorConfig("none")
    )
    assert "learns_too_fast" in warned


@pytest.mark.slow
def test_a_frame_without_gradient_and_an_average_that_lags(run):
    """The weights are seeded: with some, little improves in the 12 updates before the first validation."""
    torch.manual_seed(0)

    def start_late(trainer):
        trainer.state.ema.num_updates = 10**6  # past its early decay, as late in a run whose data has changed

    _, warned, _ = run(
        24,
        objective=NO_DISCRIMINATOR,
        optimizer={"ema_decay": 0.9999, "lr": 1e-2},
        discriminator=DiscriminatorConfig("none"),
        val_every=12,
        change_run=start_late,
        autoencoder=CopiesTheFirstFrame(),
    )
    assert set(warned) == {"frames_without_gradient", "ema_behind"}
    assert "frames [0] of 5" in warned["frames_without_gradient"].message


@pytest.mark.slow
def test_gradients_that_overflow(run):
    def scale(trainer):
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=0.99)

    config, warned, _ = run(
        RECENT + 2,
        objective={**NO_DISCRIMINATOR, "reconstruction": ReconstructionConfig(nll_reduction="sum")},
        discriminator=DiscriminatorConfig("none"),
        change_run=scale,
    )
    assert "gradients_overflow" in warned
    records = Run(Path(config.output_dir)).history.read()
    assert all("train/grad_norm" not in r for r in records if r.get("train/grad_overflow") == 1)


@pytest.mark.slow
def test_a_model_that_starts_at_random_and_ends_below_the_linear_baseline(run, monkeypatch):
    monkeypatch.setattr("telecine.training.baseline.NUM_CLIPS", 12)
    _, warned, text = run(
        2, linear_baseline=True, objective=NO_DISCRIMINATOR, discriminator=DiscriminatorConfig("none")
    )
    assert set(warned) == {"below_linear"}
    assert warned["below_linear"].step == 2
    assert "the model is worse than the linear baseline of the same latent: psnr" in text


def test_every_rule_fires_in_a_run_above():
    source = Path(__file__).read_text().partition("def test_every_rule")[0]
    assert len(RULES) == 12
    assert [rule for rule in RULES if f'"{rule}"' not in source] == []


def test_no_rule_fires_on_the_records_of_a_demo_run():
    """The records hold the values that the rules use, of the 2100 updates that the demo once had."""
    config = read_config("demo")
    records = History(DEMO).read()
    assert len(records) == 217
    assert fired(records, config) == {}


def values_of(config):
    return RecentValues(config.objective, config.optimizer, config.steps)


def diagnostics_of(folder, config, **options):
    return Diagnostics(Run(folder), values_of(config), **options)


def fired(records, config):
    """Return the message of each rule by its name, after all records."""
    history = values_of(config)
    for record in records:
        history.add(record["step"], {name: value for name, value in record.items() if name != "step"})
    findings = {name: rule(history) for name, rule in RULES.items()}
    return {name: finding.message for name, finding in findings.items() if finding is not None}


def steady(count=LONG, **values):
    return [{"step": 100 + step, **{f"train/{k}": v for k, v in values.items()}} for step in range(count)]


PERFECT = {"accuracy_real": 1.0, "accuracy_fake": 1.0, "discr_loss": 0.0}
GUESSING = {"accuracy_real": 1.0, "accuracy_fake": 0.0, "logits_real": 0.31, "logits_fake": 0.3}
CLIPPED = {"grad_clipped": 1.0, "grad_norm": 50.0}
CASES = [
    ("discriminator_saturated", PERFECT | {"hinge_active": 0.0}, {"hinge_active": 0.2}),
    ("discriminator_saturated", PERFECT, {"discr_loss": 0.5}),
    ("discriminator_saturated", PERFECT, {"accuracy_fake": 0.9}),
    ("discriminator_collapsed", GUESSING, {"logits_fake": 0.0}),
    ("discriminator_collapsed", GUESSING, {"accuracy_fake": 0.3}),
    ("adversarial_dominates", {"adversarial_gradient_share": 0.97}, {"adversarial_gradient_share": 0.6}),
    ("adaptive_weight_at_bound", {"adaptive_weight": 1e3}, {"adaptive_weight": 900.0}),
    ("adaptive_weight_at_bound", {"adaptive_weight": 0.0}, {"adaptive_weight": 1e-3}),
    ("adaptive_weight_at_bound", {"adaptive_weight": 0.0}, {"gen_loss": 0.0}),
    ("perceptual_flat", {"perceptual_loss": 0.5}, {"perceptual_loss": 0.09}),
    ("perceptual_flat", {"perceptual_loss": 0.5}, {"perceptual_weight": 0.0}),
    ("frames_without_gradient", {"frame_gradient_003": 0.0}, {"frame_gradient_003": 0.04}),
    ("ema_behind", {"ema_psnr_behind": 1.5}, {"ema_psnr_behind": 0.5}),
    ("always_clipped", CLIPPED, {"grad_clipped": 0.9}),
    ("always_clipped", CLIPPED, {"grad_norm": 2.0}),
    ("gradients_overflow", {"grad_overflow": 0.6}, {"grad_overflow": 0.05}),
    ("gradients_overflow", {"disc_grad_overflow": 0.6}, {"disc_grad_overflow": 0.05}),
    ("learns_nothing", {"update_ratio": 1e-8}, {"update_ratio": 1e-4}),
    ("learns_nothing", {"disc_update_ratio": 0.0}, {"disc_update_ratio": 1e-3}),
    ("learns_too_fast", {"disc_update_ratio": 0.3}, {"disc_update_ratio": 0.02}),
]


@pytest.mark.parametrize(("name", "wrong", "right"), CASES)
def test_each_rule_at_its_threshold(tiny, name, wrong, right):
    config = tiny()
    assert set(fired(steady(**wrong), config)) == {name}
    assert fired(steady(**{**wrong, **right}), config) == {}
    assert fired(steady(1, **wrong), config) == {}, "one record is not enough"


def test_each_threshold_has_a_case():
    assert {name for name, _, _ in CASES} | {"below_linear"} == {*RULES}


def test_the_linear_baseline_counts_at_the_last_step(tiny):
    config = tiny(steps=200)
    linear = {"linear/psnr": 25.0, "linear/ssim": 0.8, "linear/lpips_alex": 0.2}
    better = {"val/psnr": 25.1, "val/ssim": 0.81, "val/lpips_alex": 0.19}
    for changed, message in (
        ({}, None),
        ({"val/psnr": 24.9}, "psnr 24.9 against 25"),
        ({"val/ssim": 0.79}, "ssim 0.79 against 0.8"),
        ({"val/lpips_alex": 0.21}, "lpips_alex 0.21 against 0.2"),
        ({"val/psnr": 24.98, "val/lpips_alex": 0.20001}, None),
        ({"val/psnr": 24.9, "val/ssim": 0.7}, "psnr 24.9 against 25, ssim 0.7 against 0.8"),
    ):
        values = {**linear, **better, **changed}
        assert fired([{"step": 199, **values}], config) == {}
        found = fired([{"step": 200, **values}], config)
        assert list(found) == ([] if message is None else ["below_linear"])
        assert message is None or found["below_linear"].endswith(f": {message}")
    assert fired([{"step": 200, **better}], config) == {}, "a run without a baseline"


EXACTLY = [
    ("discriminator_saturated", {"accuracy_real": 0.99, "accuracy_fake": 0.99, "hinge_active": 0.05}),
    ("discriminator_saturated", {"accuracy_real": 0.99, "accuracy_fake": 1.0, "discr_loss": 0.1}),
    ("adversarial_dominates", {"adversarial_gradient_share": 0.95}),
    ("adaptive_weight_at_bound", {"adaptive_weight": 990.0}),
    ("adaptive_weight_at_bound", {"adaptive_weight": 1e-5}),
    ("ema_behind", {"ema_psnr_behind": 1.0}),
    ("always_clipped", {"grad_clipped": 0.98, "grad_norm": 10.0}),
    ("gradients_overflow", {"grad_overflow": 0.5}),
    ("learns_nothing", {"update_ratio": 1e-6}),
    ("learns_too_fast", {"update_ratio": 0.1}),
]


@pytest.mark.parametrize(("name", "values"), EXACTLY)
def test_rules_fire_exactly_at_their_threshold(tiny, name, values):
    assert set(fired(steady(**values), tiny())) == {name}


@pytest.mark.parametrize("missing", PERFECT)
def test_rules_need_all_of_their_values(tiny, missing):
    values = {name: value for name, value in PERFECT.items() if name != missing}
    assert fired(steady(**values), tiny()) == {}


def test_perceptual_loss_has_a_fifth_of_the_run_to_fall(tiny):
    assert set(fired(steady(perceptual_loss=0.5), tiny(steps=485))) == {"perceptual_flat"}
    assert fired(steady(perceptual_loss=0.5), tiny(steps=490)) == {}
    falling = steady(perceptual_loss=0.5)[:10] + steady(perceptual_loss=0.485)
    assert fired(falling, tiny()) == {}, "by 3 %"
    rising = steady(perceptual_loss=0.5)[:10] + steady(perceptual_loss=0.44)[:-10] + steady(perceptual_loss=0.5)[-10:]
    assert fired(rising, tiny()) == {}, "ten records of harder clips are noise"
    exactly = steady(perceptual_loss=0.5)[:10] + steady(perceptual_loss=0.98 * 0.5)
    assert set(fired(exactly, tiny())) == {"perceptual_flat"}, "by 2 %"


def test_no_rule_fires_during_the_warmup(tiny):
    config = tiny(steps=10_000, optimizer=OptimizerConfig(warmup_steps=500))
    assert fired(steady(**CLIPPED, update_ratio=1e-8, perceptual_loss=0.5), config) == {}


def test_warnings_after_the_checkpoint_are_dropped_and_may_be_given_again(tiny, tmp_path):
    run = Run(tmp_path)
    lines = [TrainingWarning(105, "x", "", ""), TrainingWarning(130, "ema_behind", "", "")]
    run.warnings.write(map(asdict, lines))
    run.history.write({"step": step, "val/psnr": 1.0, EMA_BEHIND: 2.0} for step in (100, 110, 120))
    console = Console(record=True, width=40, file=io.StringIO())
    run.cut(105)
    diagnostics = diagnostics_of(tmp_path, tiny(), console=console)
    assert run.warnings.all() == lines[:1]
    assert diagnostics.warned == {"x"}
    diagnostics.check(130, {EMA_BEHIND: 2.0})
    diagnostics.check(131, {EMA_BEHIND: 3.0})
    _, again = run.warnings.all()
    assert (again.step, again.rule) == (130, "ema_behind")
    (line,) = console.export_text().splitlines()
    assert line.startswith(f"warning: step 130: {again.message} (ema_behind). Lower `optimizer.ema_decay`")


def test_rollbacks_are_lines_that_the_checkpoint_gives(tiny, tmp_path):
    run = Run(tmp_path)
    lines = [TrainingWarning(step, str(step), "", "") for step in (10, 30)]
    run.warnings.write(map(asdict, lines))
    rollbacks = [Rollback(25, 20, "a"), Rollback(29, 20, "b")]
    for _ in range(2):
        diagnostics_of(tmp_path, tiny(), console=Console(quiet=True), rollbacks=rollbacks)
        first, one, two, last = run.warnings.all()
        assert [first, last] == lines
        assert one.message == "`a` was not finite after step 25; went back to step 20, learning rates times 0.5"
        assert two.message.endswith("learning rates times 0.25")
        assert (one.step, two.step, one.rule, two.rule) == (20, 20, "rolled_back", "rolled_back")
