"""Every rule fires in a run that is set up to fail, and none in a healthy run."""

import logging
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from telecine.report.reported_run import read_run
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

from .helpers import quiet, recorder

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
PIXELS_ALONE = {
    "objective": replace(OBJECTIVE, adversarial_loss_weight=0.0, perceptual_weight=0.0),
    "discriminator": DiscriminatorConfig("none"),
}


class CopiesTheFirstFrame(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv3d(3, 12, (1, 2, 2), stride=(1, 2, 2))
        self.decoder = nn.ConvTranspose3d(12, 3, (1, 2, 2), stride=(1, 2, 2))

    def forward(self, video):
        decoded = self.decoder(self.encoder(video))
        return torch.cat([video[:, :, :1], decoded[:, :, 1:]], dim=2)


@pytest.fixture
def train_tiny(tiny):
    """Return a function that trains a tiny run and returns its folder, its warnings and what it printed."""

    def start(steps, *, change_run=None, autoencoder=None, **changes):
        settings = {
            "clips": ClipConfig(num_frames=5, height=32, width=32, num_workers=0, cache=True),
            "batch_size": 1,
            "log_every": 1,
            "val_every": steps,
            "val_clips": 1,
            "latent_clips": 0,
            "save_every": steps,
            "objective": OBJECTIVE,
            "optimizer": OPTIMIZER,
            "discriminator": DiscriminatorConfig(dim=2, video="patch", num_layers=1),
        }
        config = tiny(steps=steps, **settings | changes)
        console = recorder()
        run = prepare(config, console, autoencoder)
        if change_run is not None:
            change_run(run)
        train_to_the_end(run, StopRequest())
        run.close()
        warned = {warning.rule: warning for warning in Run(config.output_dir).warnings.all()}
        return Run(config.output_dir), warned, console.export_text()

    return start


@pytest.mark.slow
def test_no_rule_fires_in_a_healthy_run(train_tiny):
    run, warned, text = train_tiny(LONG + 4, val_every=12)
    # After so few updates discriminators may still guess. The test of the demo run below includes that rule.
    assert set(warned) <= {"discriminator_collapsed"}
    assert text.count("warning: ") == len(warned)
    records = run.history.read()
    assert sum("train/accuracy_real" in record for record in records) == LONG + 4
    assert sum(EMA_BEHIND in record for record in records) == 2
    assert len(read_run(run.folder, "run").warnings) == len(warned)


NO_PROGRESS = {
    "objective": replace(OBJECTIVE, grad_penalty_loss_weight=0.0),
    "optimizer": replace(OPTIMIZER, lr=1e-10, disc_lr=1e-3),
}
NO_PROGRESS_RULES = {"discriminator_saturated", "learns_nothing", "perceptual_flat"}


@pytest.mark.slow
def test_warnings_are_printed_logged_and_not_repeated_by_a_resumed_run(train_tiny, caplog):
    """Of a discriminator that wins and an autoencoder that does not learn."""
    caplog.set_level(logging.WARNING, logger="telecine.training.diagnostics")
    run, warned, text = train_tiny(28, **NO_PROGRESS)
    assert set(warned) == NO_PROGRESS_RULES
    for line in warned.values():
        assert f"step {line.step}: {line.message} ({line.rule}). {line.remedy}" in text
        assert sum(line.message in message for message in caplog.messages) == 1
    before = run.warnings.path.read_text()
    train_tiny(29, **NO_PROGRESS)
    assert run.warnings.path.read_text() == before


def start_average_late(run):
    run.state.ema.num_updates = (
        10**6
    )  # past its early decay, as late in a run whose data has changed


def overflow(run):
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=0.99)


# Without a perceptual loss, which takes a third of the time.
PIXELS_AND_DISCRIMINATOR = replace(OBJECTIVE, grad_penalty_loss_weight=0.0, perceptual_weight=0.0)
# The rules that fire, with a part of the message; whether others may fire, too; the number of updates; the settings.
FAILING_RUNS = {
    "a discriminator that does not learn and has no effect": (
        {
            "discriminator_collapsed": "",
            "learns_nothing": "discriminators",
            "adaptive_weight_at_bound": "below",
            "always_clipped": "",
        },
        False,
        LONG + 4,
        {
            "objective": replace(
                PIXELS_AND_DISCRIMINATOR,
                adaptive_weight=AdaptiveWeightConfig("recon_and_perceptual", min_norm=1e9),
            ),
            "optimizer": replace(OPTIMIZER, disc_lr=1e-10, grad_clip=1e-3),
        },
    ),
    "an adversarial term that is too strong": (
        {"adversarial_dominates": "", "adaptive_weight_at_bound": "maximum"},
        True,
        RECENT + 4,
        {
            "objective": replace(
                PIXELS_AND_DISCRIMINATOR,
                adversarial_loss_weight=1e6,
                adaptive_weight=AdaptiveWeightConfig("recon_and_perceptual", max=1e-3),
            )
        },
    ),
    "a learning rate that is too large": (
        {"learns_too_fast": ""},
        True,
        RECENT + 4,
        {**PIXELS_ALONE, "optimizer": replace(OPTIMIZER, lr=0.3)},
    ),
    "a frame without gradient and an average that lags": (
        {"frames_without_gradient": "frames [0] of 5", "ema_behind": ""},
        False,
        24,
        {
            **PIXELS_ALONE,
            "optimizer": replace(OPTIMIZER, ema_decay=0.9999, lr=1e-2),
            "val_every": 12,
            "change_run": start_average_late,
            "autoencoder": CopiesTheFirstFrame,
        },
    ),
    "gradients that overflow": (
        {"gradients_overflow": ""},
        True,
        RECENT + 2,
        {
            **PIXELS_ALONE,
            "objective": replace(
                PIXELS_ALONE["objective"],
                reconstruction=ReconstructionConfig(nll_reduction="sum"),
            ),
            "change_run": overflow,
        },
    ),
    "a model that starts at random and ends below the linear baseline": (
        {"below_linear": "the model is worse than the linear baseline of the same latent: psnr"},
        False,
        2,
        {**PIXELS_ALONE, "linear_baseline": True},
    ),
}


@pytest.mark.slow
@pytest.mark.usefixtures("few_clips")
@pytest.mark.parametrize("name", FAILING_RUNS)
def test_rules_fire_in_a_run_that_is_set_up_to_fail(train_tiny, name):
    messages, may_have_others, steps, settings = FAILING_RUNS[name]
    torch.manual_seed(
        0
    )  # with some weights, little improves in the 12 updates before the first validation
    if "autoencoder" in settings:
        settings = {**settings, "autoencoder": settings["autoencoder"]()}
    run, warned, text = train_tiny(steps, **settings)
    assert messages.keys() <= warned.keys()
    assert may_have_others or messages.keys() == warned.keys()
    for rule, message in messages.items():
        assert message in warned[rule].message
        assert warned[rule].message in text
    for record in run.history:
        assert record.get("train/grad_overflow") != 1 or "train/grad_norm" not in record


def test_every_rule_fires_in_a_run_above():
    rules = set(NO_PROGRESS_RULES)
    for messages, *_ in FAILING_RUNS.values():
        rules |= messages.keys()
    assert len(RULES) == 12
    assert rules == {*RULES}


def test_no_rule_fires_on_the_records_of_a_demo_run():
    """The records hold the values that the rules use, of the 2100 updates that the demo once had."""
    records = History(DEMO).read()
    assert len(records) == 217
    assert fired(records, read_config("demo")) == {}


def fired(records, config):
    """Return the message of each rule by its name, after all records."""
    history = RecentValues(config)
    for record in records:
        history.add(
            record["step"], {name: value for name, value in record.items() if name != "step"}
        )
    findings = {name: rule(history) for name, rule in RULES.items()}
    return {name: finding.message for name, finding in findings.items() if finding is not None}


def steady(count=LONG, **values):
    return [
        {"step": 100 + step, **{f"train/{k}": v for k, v in values.items()}}
        for step in range(count)
    ]


PERFECT = {"accuracy_real": 1.0, "accuracy_fake": 1.0, "discr_loss": 0.0}
GUESSING = {"accuracy_real": 1.0, "accuracy_fake": 0.0, "logits_real": 0.31, "logits_fake": 0.3}
CLIPPED = {"grad_clipped": 1.0, "grad_norm": 50.0}
# A rule, values with which it fires, and changes of them with which it does not.
CASES = [
    ("discriminator_saturated", PERFECT | {"hinge_active": 0.0}, [{"hinge_active": 0.2}]),
    ("discriminator_saturated", PERFECT, [{"discr_loss": 0.5}, {"accuracy_fake": 0.9}]),
    (
        "discriminator_saturated",
        {"accuracy_real": 0.99, "accuracy_fake": 0.99, "hinge_active": 0.05},
        [],
    ),
    (
        "discriminator_saturated",
        {"accuracy_real": 0.99, "accuracy_fake": 1.0, "discr_loss": 0.1},
        [],
    ),
    ("discriminator_collapsed", GUESSING, [{"logits_fake": 0.0}, {"accuracy_fake": 0.3}]),
    (
        "adversarial_dominates",
        {"adversarial_gradient_share": 0.95},
        [{"adversarial_gradient_share": 0.6}],
    ),
    ("adaptive_weight_at_bound", {"adaptive_weight": 990.0}, [{"adaptive_weight": 900.0}]),
    ("adaptive_weight_at_bound", {"adaptive_weight": 1e-5}, [{"adaptive_weight": 1e-3}]),
    ("adaptive_weight_at_bound", {"adaptive_weight": 0.0}, [{"gen_loss": 0.0}]),
    (
        "perceptual_flat",
        {"perceptual_loss": 0.5},
        [{"perceptual_loss": 0.09}, {"perceptual_weight": 0.0}],
    ),
    ("frames_without_gradient", {"frame_gradient_003": 0.0}, [{"frame_gradient_003": 0.04}]),
    ("ema_behind", {"ema_psnr_behind": 1.0}, [{"ema_psnr_behind": 0.5}]),
    ("always_clipped", CLIPPED, [{"grad_clipped": 0.9}, {"grad_norm": 2.0}]),
    ("always_clipped", {"grad_clipped": 0.98, "grad_norm": 10.0}, []),
    ("gradients_overflow", {"grad_overflow": 0.5}, [{"grad_overflow": 0.05}]),
    ("gradients_overflow", {"disc_grad_overflow": 0.6}, [{"disc_grad_overflow": 0.05}]),
    ("learns_nothing", {"update_ratio": 1e-6}, [{"update_ratio": 1e-4}]),
    ("learns_nothing", {"disc_update_ratio": 0.0}, [{"disc_update_ratio": 1e-3}]),
    ("learns_too_fast", {"update_ratio": 0.1}, [{"update_ratio": 0.02}]),
    ("learns_too_fast", {"disc_update_ratio": 0.3}, [{"disc_update_ratio": 0.02}]),
]


@pytest.mark.parametrize(("name", "wrong", "right"), CASES)
def test_each_rule_at_its_threshold(tiny, name, wrong, right):
    config = tiny()
    assert set(fired(steady(**wrong), config)) == {name}
    assert fired(steady(1, **wrong), config) == {}, "one record is not enough"
    for change in right:
        assert fired(steady(**wrong | change), config) == {}


def test_each_rule_has_a_threshold_that_is_tested():
    assert {name for name, *_ in CASES} | {"below_linear"} == {*RULES}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"val/psnr": 24.9}, "psnr 24.9 against 25"),
        ({"val/ssim": 0.79}, "ssim 0.79 against 0.8"),
        ({"val/lpips_alex": 0.21}, "lpips_alex 0.21 against 0.2"),
        ({"val/psnr": 24.98, "val/lpips_alex": 0.20001}, None),
        ({"val/psnr": 24.9, "val/ssim": 0.7}, "psnr 24.9 against 25, ssim 0.7 against 0.8"),
    ],
)
def test_the_linear_baseline_counts_at_the_last_step(tiny, change, message):
    config = tiny(steps=200)
    linear = {"linear/psnr": 25.0, "linear/ssim": 0.8, "linear/lpips_alex": 0.2}
    values = {"val/psnr": 25.1, "val/ssim": 0.81, "val/lpips_alex": 0.19} | change
    assert fired([{"step": 199, **linear, **values}], config) == {}
    assert fired([{"step": 200, **values}], config) == {}, "a run without a baseline"
    messages = fired([{"step": 200, **linear, **values}], config)
    if message is None:
        assert messages == {}
    else:
        assert list(messages) == ["below_linear"]
        assert messages["below_linear"].endswith(f": {message}")


@pytest.mark.parametrize("missing", PERFECT)
def test_rules_need_all_of_their_values(tiny, missing):
    values = {name: value for name, value in PERFECT.items() if name != missing}
    assert fired(steady(**values), tiny()) == {}


def test_perceptual_loss_has_a_fifth_of_the_run_to_fall(tiny):
    start = steady(perceptual_loss=0.5)
    assert set(fired(start, tiny(steps=485))) == {"perceptual_flat"}
    assert fired(start, tiny(steps=490)) == {}
    assert fired(start[:10] + steady(perceptual_loss=0.485), tiny()) == {}, "by 3 %"
    rising = start[:10] + steady(perceptual_loss=0.44)[:-10] + start[-10:]
    assert fired(rising, tiny()) == {}, "ten records of harder clips are noise"
    assert set(fired(start[:10] + steady(perceptual_loss=0.98 * 0.5), tiny())) == {
        "perceptual_flat"
    }, "by 2 %"


def test_no_rule_fires_during_the_warmup(tiny):
    config = tiny(steps=10_000, optimizer=OptimizerConfig(warmup_steps=500))
    assert fired(steady(**CLIPPED, update_ratio=1e-8, perceptual_loss=0.5), config) == {}


def test_warnings_after_the_checkpoint_are_dropped_and_may_be_given_again(tiny, tmp_path):
    run = Run(tmp_path)
    lines = [TrainingWarning(105, "x", "", ""), TrainingWarning(130, "ema_behind", "", "")]
    run.warnings.write(map(asdict, lines))
    run.history.write({"step": step, "val/psnr": 1.0, EMA_BEHIND: 2.0} for step in (100, 110, 120))
    console = recorder()
    run.cut(105)
    diagnostics = Diagnostics(run, tiny(), console)
    assert run.warnings.all() == lines[:1]
    assert diagnostics.warned == {"x"}
    diagnostics.check(130, {EMA_BEHIND: 2.0})
    diagnostics.check(131, {EMA_BEHIND: 3.0})
    _, again = run.warnings.all()
    assert (again.step, again.rule) == (130, "ema_behind")
    (line,) = console.export_text().splitlines()
    assert line.startswith(
        f"warning: step 130: {again.message} (ema_behind). Lower `optimizer.ema_decay`"
    )


def test_rollbacks_are_lines_that_the_checkpoint_gives(tiny, tmp_path):
    run = Run(tmp_path)
    lines = [TrainingWarning(step, str(step), "", "") for step in (10, 30)]
    run.warnings.write(map(asdict, lines))
    rollbacks = [Rollback(25, 20, "a"), Rollback(29, 20, "b")]
    for _ in range(2):
        Diagnostics(run, tiny(), quiet()).rewrite_warnings(rollbacks)
        first, one, two, last = run.warnings.all()
        assert [first, last] == lines
        assert (
            one.message
            == "`a` was not finite after step 25; went back to step 20, learning rates times 0.5"
        )
        assert two.message.endswith("learning rates times 0.25")
        assert (one.step, two.step, one.rule, two.rule) == (20, 20, "rolled_back", "rolled_back")
