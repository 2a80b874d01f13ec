"""One update of both networks: learning rates, gradients, the log, and values that are not finite."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from telecine import Term
from telecine.objective.log import check_names_of_aux_losses
from telecine.settings import (
    DiscriminatorConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ReconstructionConfig,
)
from telecine.training.logging import check_names_in_training
from telecine.training.step import (
    FINAL_LR_SCALE,
    MicroBatch,
    TrainingError,
    clip_gradients,
    compute_gradients,
    finite_values,
    set_learning_rates,
    train_step,
)

from .helpers import new_state

CONSTANT = OptimizerConfig(lr=1.0, disc_lr=3.0, warmup_steps=0)
COSINE = replace(CONSTANT, warmup_steps=10, schedule="cosine")


@pytest.mark.parametrize(
    ("config", "num_steps", "scales"),
    [
        (CONSTANT, 10, {0: 1.0, 9: 1.0}),
        (
            replace(CONSTANT, warmup_steps=4),
            100,
            {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0, 99: 1.0},
        ),
        (replace(CONSTANT, warmup_steps=500), 40, {39: 0.08}),
        (
            COSINE,
            110,
            {
                9: 1.0,
                10: 1.0,
                60: (1 + FINAL_LR_SCALE) / 2,
                110: FINAL_LR_SCALE,
                200: FINAL_LR_SCALE,
            },
        ),
        (replace(COSINE, warmup_steps=20), 20, {20: 1.0}),  # it ends with its warm-up
    ],
)
def test_both_learning_rates_follow_the_schedule_and_halve_at_each_rollback(
    config, num_steps, scales
):
    for step, scale in scales.items():
        for num_rollbacks in range(3):
            optimizers = [SimpleNamespace(param_groups=[{}]) for _ in range(2)]
            state = SimpleNamespace(
                step=step, rollbacks=[None] * num_rollbacks, optimizer=optimizers[0]
            )
            state.disc_optimizer = optimizers[1]
            lr = scale * 0.5**num_rollbacks
            assert set_learning_rates(state, config, num_steps) == pytest.approx(lr)
            assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == pytest.approx(
                [lr, 3 * lr]
            )
    state.disc_optimizer = None
    assert set_learning_rates(state, config, num_steps) == pytest.approx(lr)


def weights_with_gradients(*gradients):
    weights = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = torch.tensor(gradient)
    return [*weights, nn.Parameter(torch.zeros(3))]  # the last one has no gradient


@pytest.mark.parametrize("max_norm", [1.0, 13.0, 100.0])
def test_clipping_equals_pytorchs_and_changes_no_gradient_below_the_limit(max_norm):
    gradients = ([3.0, 4.0], [12.0])
    ours = weights_with_gradients(*gradients)
    theirs = weights_with_gradients(*gradients)
    assert clip_gradients(ours, max_norm).item() == pytest.approx(13.0)
    nn.utils.clip_grad_norm_(theirs, max_norm)
    for weight, other in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(weight.grad, other.grad)
    if max_norm == 100.0:
        assert [weight.grad.tolist() for weight in ours[:2]] == [[3.0, 4.0], [12.0]]


@pytest.fixture
def build(tiny):
    def make(**changes):
        torch.manual_seed(0)
        config = tiny(**changes)
        return new_state(config)

    return make


@pytest.fixture
def video():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 5, 32, 32, generator=generator) * 2 - 1


def update(state, video, step, **options):
    state.step = step
    return train_step(state, [MicroBatch(video, range(len(video)))], **options)


def test_an_update_takes_one_step_of_the_power_iteration(build, video):
    """In two micro-batches, each with two passes."""
    spectral = DiscriminatorConfig(
        video="patch", image="none", dim=2, num_layers=2, norm="spectral"
    )
    state = build(discriminator=spectral)
    state.step = 10
    network = state.objective.discr_3d.train()
    expected = copy.deepcopy(network)
    passes = []
    expected(video)
    network.register_forward_hook(lambda *_: passes.append(1))
    log = train_step(
        state, [MicroBatch(clip, [index]) for index, clip in enumerate(video.split(1))]
    )
    assert log["train/discr_loss"] > 0, "the discriminators train at this step"
    assert len(passes) >= 4
    names = [name for name in network.state_dict() if name.endswith(("_u", "_v"))]
    assert len(names) == 8
    for name in names:
        torch.testing.assert_close(network.state_dict()[name], expected.state_dict()[name])


def test_gradients_are_those_of_the_mean_over_micro_batches(build, video):
    gradients = []
    for split in ([[0, 1]], [[0], [1]]):
        state = build(
            objective=ObjectiveConfig(perceptual_weight=0.0),
            discriminator=DiscriminatorConfig("none"),
        )
        batches = [MicroBatch(video[clips], clips) for clips in split]
        compute_gradients(state, batches)
        gradients.append([weight.grad for weight in state.model.parameters()])
    assert len(gradients[0]) > 10
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_a_summed_likelihood_sums_the_divergence(build, video):
    mean = build(objective=ObjectiveConfig(perceptual_weight=0.0))
    reconstruction = ReconstructionConfig(nll_reduction="sum")
    summed = build(objective=ObjectiveConfig(perceptual_weight=0.0, reconstruction=reconstruction))
    num_values = mean.autoencoder.encode(video).mode()[0].numel()
    mean_kl = update(mean, video, step=0)["train/kl_loss"]
    assert update(summed, video, step=0)["train/kl_loss"] == pytest.approx(
        num_values * mean_kl, rel=1e-5
    )


@pytest.mark.parametrize("is_apart", [True, False])
def test_terms_know_whether_the_first_latent_frame_is_apart(build, tiny, is_apart):
    vae = replace(tiny().causal_vae, first_frame_apart=is_apart)
    clips = replace(tiny().clips, num_frames=4 + is_apart)
    objective = ObjectiveConfig(perceptual_weight=0.0, terms={"apart": Term(value_of_apart, 0.1)})
    state = build(
        objective=objective, causal_vae=vae, clips=clips, discriminator=DiscriminatorConfig("none")
    )
    video = torch.zeros(1, 3, 4 + is_apart, 32, 32)
    assert update(state, video, step=0)["train/apart_loss"] == is_apart


@pytest.mark.parametrize("trains", ["decoder", "both"])
def test_a_round_trip_trains_with_recomputed_activations(build, video, trains):
    term = Term("round_trip", 0.1, {"trains": trains})
    values = []
    for recomputes in (False, True):
        state = build(
            objective=ObjectiveConfig(perceptual_weight=0.0, terms={"trip": term}),
            discriminator=DiscriminatorConfig("none"),
            model_gradient_checkpointing=recomputes,
        )
        log = update(state, video, step=0)
        values.append((log["train/trip_loss"], log["train/grad_norm"]))
    assert values[0][0] > 0
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def value_of_apart(*, latent, first_frame_apart):
    return latent.sum() * 0 + int(first_frame_apart)


def snapshot(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def changed(before, parameters):
    return [not torch.equal(old, new) for old, new in zip(before, parameters, strict=True)]


@pytest.mark.slow
def test_both_networks_and_the_average_train_on_one_forward_of_the_autoencoder(build, video):
    state = build()
    calls = []
    state.model.register_forward_hook(lambda *_: calls.append(1))
    before = snapshot(state.model.parameters())
    disc_before = snapshot(state.objective.get_trainable_parameters())
    update(
        state, video, step=2
    )  # the last layers and those of residual blocks start at zero: the weights before
    update(state, video, step=3)  # them change from the second or third update on
    values = update(state, video, step=4)
    assert len(calls) == 3
    assert all(changed(before, state.model.parameters()))
    assert any(changed(disc_before, state.objective.get_trainable_parameters()))
    for name in (
        "total_loss",
        "gen_loss",
        "adaptive_weight",
        "grad_norm",
        "discr_loss",
        "disc_grad_norm",
    ):
        assert math.isfinite(values[f"train/{name}"])
    assert values["train/gen_loss"] != 0
    assert values["train/grad_penalty_loss"] > 0
    last_layer = state.autoencoder.last_layer
    (name,) = (name for name, weight in state.model.named_parameters() if weight is last_layer)
    assert 0 < (state.ema.averages[name] - last_layer).abs().max() < 0.1
    assert "train/grad_penalty_loss" not in update(state, video, step=5), (
        "computed on every second step only"
    )


NO_DISCRIMINATOR = {
    "objective": ObjectiveConfig(adversarial_loss_weight=0.0),
    "discriminator": DiscriminatorConfig(video="none"),
}


@pytest.mark.parametrize("settings", [{}, NO_DISCRIMINATOR])
def test_discriminators_do_not_train_before_their_start_or_without_a_term(build, video, settings):
    state = build(**settings)
    assert (state.disc_optimizer is None) == bool(settings)
    before = snapshot(state.objective.get_trainable_parameters())
    values = update(state, video, step=0)
    assert not any(changed(before, state.objective.get_trainable_parameters()))
    assert not {"train/discr_loss", "train/adversarial_gradient_share", "data"} & values.keys()
    assert state.step == 1


def test_random_numbers_depend_on_the_clips_alone(build, video):
    logs = []
    for seed in (1, 2):
        state = build()
        torch.manual_seed(seed)
        logs.append(update(state, video, step=4))
    assert logs[0] == logs[1]


@pytest.mark.parametrize("learn_logvar", [False, True])
def test_gradients_are_clipped_with_those_of_parameters_of_the_loss(
    build, tiny, video, learn_logvar
):
    reconstruction = ReconstructionConfig(learn_logvar=learn_logvar)
    state = build(objective=replace(tiny().objective, reconstruction=reconstruction))
    state.grad_clip = 1e-3
    weights = [*state.model.parameters()]
    before = None
    if learn_logvar:
        weights.append(state.objective.logvar)
        before = state.objective.logvar.item()
    norms = []

    def measure(*_):
        norms.append(torch.stack([weight.grad.norm() for weight in weights]).norm().item())

    state.optimizer.register_step_pre_hook(measure)
    values = update(state, video, step=0)
    assert norms == [pytest.approx(1e-3, rel=1e-3)]
    assert values["train/grad_norm"] > 1e-2, "what is logged is the norm before clipping"
    assert all(weight.grad is None for weight in weights), "gradients are freed"
    if learn_logvar:
        assert state.objective.logvar.item() < before, "the error is smaller than exp(0)"
    assert values.get("train/logvar") == before, "the log is of the value before the update"


def test_ddp_does_not_wait_for_weights_that_are_not_used(build, video, monkeypatch):
    state = build()
    without_sync = []

    def no_sync(model):
        without_sync.append(model)
        return nullcontext()

    monkeypatch.setattr(state.accelerator, "no_sync", no_sync)
    update(state, video, step=0)
    assert without_sync == []
    state.autoencoder.leaves_weights_unused = True
    update(state, video, step=0)
    assert without_sync == [state.model]


def test_buffers_are_those_of_the_first_process_at_each_update(build, video, monkeypatch):
    """`no_sync`, in which weights may be unused, also turns the next broadcast of buffers off."""
    state = build()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        state.model = DistributedDataParallel(state.model)
        state.autoencoder.leaves_weights_unused = True
        monkeypatch.setattr(state.accelerator, "no_sync", lambda model: model.no_sync())
        update(state, video, step=0)
        assert state.model.require_forward_param_sync
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_terms_without_a_weight_at_a_step_are_not_logged(build, video, everything):
    state = build(**everything)
    first, later, last = (update(state, video, step) for step in (0, 1, 3))
    assert "train/grad_penalty_loss" in first
    assert (
        not {"train/gram_loss", "train/feature_matching_loss", "train/wavelet_loss_weight"}
        & first.keys()
    )
    assert {"train/gram_loss", "train/feature_matching_loss", "train/temporal_loss"} <= later.keys()
    assert "train/grad_penalty_loss" not in later
    assert "train/temporal_loss" not in last
    assert [values["train/temporal_loss_weight"] for values in (first, later, last)] == [
        0.5,
        0.5,
        0.0,
    ]


def spoil_data(state, video):
    video[1, 0, 2, 5, 5] = math.nan


def spoil_discriminator(state, video):
    list(state.objective.discr_3d.parameters())[-1].data.fill_(math.nan)


def spoil_gradient(state, video):
    state.model.last_layer.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_data, r"`data` must be finite, but got nan at step 4.*last checkpoint"),
        (spoil_discriminator, "gen_loss"),
        (spoil_gradient, "`train/grad_norm` must be finite"),
    ],
)
def test_a_value_that_is_not_finite_is_named_and_no_weight_changes(build, video, spoil, message):
    state = build()
    spoil(state, video)
    before = snapshot(state.model.parameters())
    with pytest.raises(TrainingError, match=message):
        update(state, video, step=4)
    assert not any(changed(before, state.model.parameters()))


def test_an_error_about_the_discriminators_says_that_the_autoencoder_was_updated(build, video):
    state = build()
    weight = next(state.objective.discr_3d.parameters())
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = snapshot(state.objective.get_trainable_parameters())
    message = (
        "`train/disc_grad_norm` must be finite.* Only the autoencoder was updated at this step"
    )
    with pytest.raises(TrainingError, match=message):
        update(state, video, step=4)
    assert not any(changed(before, state.objective.get_trainable_parameters()))


def test_the_term_that_is_not_finite_is_named_before_the_total():
    log = {"train/total_loss": torch.tensor(math.inf), "train/recon_loss": torch.tensor(1.0)}
    log["train/perceptual_loss"] = torch.tensor(math.inf)
    with pytest.raises(
        TrainingError, match="`train/perceptual_loss` must be finite, but got inf at step 9"
    ):
        finite_values(log, 9)


@pytest.mark.slow
def test_a_loss_scale_does_not_change_the_update_and_is_updated_once(build, video):
    """As in float16 on a GPU: both optimizers share a scale, which changes after both have stepped."""
    logs = []
    weights = []
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    for used in (None, scaler):
        state = build()
        state.accelerator.scaler = used
        logs.append([update(state, video, step) for step in (3, 4)])
        weights.append(snapshot([*state.model.parameters(), *state.objective.parameters()]))
    assert scaler.get_scale() == 2.0**12, (
        "twice as large after each update, not after each optimizer"
    )
    for plain, scaled in zip(*logs, strict=True):
        assert scaled.pop("train/grad_overflow") == scaled.pop("train/disc_grad_overflow") == 0
        assert scaled == pytest.approx(plain, rel=1e-3, abs=1e-6)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-6)


def test_an_overflow_under_a_loss_scale_skips_that_step_and_lowers_the_scale(build, video):
    state = build()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    state.accelerator.scaler = scaler
    spoil_gradient(state, video)
    before = snapshot(state.model.parameters())
    disc_before = snapshot(state.objective.get_trainable_parameters())
    values = update(state, video, step=4)
    assert not any(changed(before, state.model.parameters()))
    assert any(changed(disc_before, state.objective.get_trainable_parameters())), (
        "its gradients were finite"
    )
    assert scaler.get_scale() == 2.0**9
    assert (values["train/grad_overflow"], values["train/disc_grad_overflow"]) == (1.0, 0.0)
    assert "train/grad_norm" not in values
    assert values["train/disc_grad_norm"] > 0


def test_what_is_logged_of_gradients_and_updates(build, video):
    state = build()
    networks = {
        "": [*state.model.parameters()],
        "disc_": state.objective.get_trainable_parameters(),
    }
    before = {
        prefix: torch.cat([w.detach().flatten() for w in weights])
        for prefix, weights in networks.items()
    }
    state.grad_clip = 1e-3
    values = update(state, video, step=3, measure_update_ratio=True)
    for prefix, weights in networks.items():
        after = torch.cat([weight.detach().flatten() for weight in weights])
        ratio = ((after - before[prefix]).norm() / after.norm()).item()
        assert values[f"train/{prefix}update_ratio"] == pytest.approx(ratio, rel=1e-4)
        assert values[f"train/{prefix}grad_clipped"] == 1.0
    assert "train/grad_overflow" not in values, "without a scaler an overflow is an error"
    shares = [values[f"train/frame_gradient_{frame:03d}"] for frame in range(5)]
    assert sum(shares) == pytest.approx(5, rel=1e-5)
    assert min(shares) > 0
    assert 0 < values["train/adversarial_gradient_share"] < 1
    state.grad_clip = 1e9
    later = update(state, video, step=3)
    assert later["train/grad_clipped"] == later["train/disc_grad_clipped"] == 0.0
    assert "train/update_ratio" not in later

    objective_log = state.objective(video, video, 0, 3)[1]
    names = values.keys() - objective_log.keys() - {"train/kl_loss"} | {
        "train/lr",
        "train/clips_per_second",
    }
    assert len(names) > 10

    def check_name(name):
        check_names_of_aux_losses({name: torch.ones(())}, [])
        check_names_in_training([name])

    for name in names:
        with pytest.raises(ValueError, match="`aux_losses` must be named unlike all else in the"):
            check_name(name.removeprefix("train/"))


def test_only_auxiliary_losses_must_be_named_unlike_what_training_logs(build, video):
    terms = {"frame_gradient_l1": Term(value_of_apart), "grad_norm": Term(value_of_apart)}
    objective = ObjectiveConfig(perceptual_weight=0.0, terms=terms)
    state = build(objective=objective, discriminator=DiscriminatorConfig("none"))
    values = update(state, video, step=0)
    assert values["train/frame_gradient_l1_loss"] == values["train/grad_norm_loss"] == 1
    model = state.model

    def with_another_loss(*args, **options):
        output = model(*args, **options)
        return output._replace(aux={**output.aux, "disc_grad_norm": torch.ones(())})

    state.model = with_another_loss
    with pytest.raises(ValueError, match=r"must be named unlike .*'disc_grad_norm'"):
        update(state, video, step=0)
