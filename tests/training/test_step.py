import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from telecine import Ramp, Term
from telecine.objective.log import check_names_of_aux_losses
from telecine.settings import DiscriminatorConfig, GANConfig, ObjectiveConfig, OptimizerConfig, ReconstructionConfig
from telecine.training.build import build_accelerator, build_autoencoder, build_state
from telecine.training.prepare import describe_short_warmup
from telecine.training.step import (
    FINAL_LR_SCALE,
    MicroBatch,
    TrainingError,
    clip_gradients,
    finite_values,
    set_learning_rates,
    train_step,
)


def lr_scale(config, step, num_steps, num_rollbacks=0):
    optimizer = SimpleNamespace(param_groups=[])
    state = SimpleNamespace(step=step, rollbacks=[None] * num_rollbacks, optimizer=optimizer, disc_optimizer=None)
    return set_learning_rates(state, replace(config, lr=1.0), num_steps)


def test_warmup_rises_linearly_to_one():
    config = OptimizerConfig(warmup_steps=4)
    assert [lr_scale(config, step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_without_warmup_the_first_step_has_the_full_rate():
    assert lr_scale(OptimizerConfig(warmup_steps=0), 0, 10) == 1.0


def test_a_run_that_ends_within_its_warmup_says_so():
    config = OptimizerConfig(warmup_steps=500)
    line = describe_short_warmup(config, 40)
    assert "after 40 of 500 steps, 0.08 of `optimizer.lr` is reached" in line
    assert lr_scale(config, 39, 40) == 0.08


def test_each_rollback_halves_the_learning_rates():
    config = OptimizerConfig(warmup_steps=0)
    assert [lr_scale(config, 12, 20, num_rollbacks) for num_rollbacks in range(3)] == [1.0, 0.5, 0.25]


def test_cosine_falls_from_one_to_its_final_scale():
    config = OptimizerConfig(warmup_steps=10, schedule="cosine")
    scales = [lr_scale(config, step, 110) for step in range(10, 111)]
    assert scales[0] == 1.0
    assert scales[50] == pytest.approx((1 + FINAL_LR_SCALE) / 2)
    assert scales[-1] == pytest.approx(FINAL_LR_SCALE)
    assert all(later <= earlier for earlier, later in pairwise(scales))
    assert lr_scale(config, 200, 110) == pytest.approx(FINAL_LR_SCALE)


def test_a_run_that_ends_with_its_warmup_starts_the_cosine_at_one():
    assert lr_scale(OptimizerConfig(warmup_steps=20, schedule="cosine"), 20, 20) == 1.0


def weights_with_gradients(*gradients):
    weights = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = torch.tensor(gradient)
    return [*weights, nn.Parameter(torch.zeros(3))]  # the last one has no gradient


@pytest.mark.parametrize("max_norm", [1.0, 13.0, 100.0])
def test_clipping_equals_pytorchs_and_changes_no_gradient_below_the_limit(max_norm):
    gradients = ([3.0, 4.0], [12.0])
    ours, theirs = weights_with_gradients(*gradients), weights_with_gradients(*gradients)
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
        return build_state(config, build_accelerator(config), build_autoencoder(config))

    return make


@pytest.fixture
def video():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 5, 32, 32, generator=generator) * 2 - 1


def update(state, video, step):
    state.step = step
    return train_step(state, [MicroBatch(video, range(len(video)))])


def test_an_update_takes_one_step_of_the_power_iteration(build, video):
    """In two micro-batches, each with two passes."""
    spectral = DiscriminatorConfig(video="patch", image="none", dim=2, num_layers=2, norm="spectral")
    state = build(discriminator=spectral)
    state.step = 10
    network = state.objective.discr_3d.train()
    expected, passes = copy.deepcopy(network), []
    expected(video)
    network.register_forward_hook(lambda *_: passes.append(1))
    log = train_step(state, [MicroBatch(clip, [index]) for index, clip in enumerate(video.split(1))])
    assert log["train/discr_loss"] > 0, "the discriminators train at this step"
    assert len(passes) >= 4
    names = [name for name in network.state_dict() if name.endswith(("_u", "_v"))]
    assert len(names) == 8
    for name in names:
        torch.testing.assert_close(network.state_dict()[name], expected.state_dict()[name])


def test_a_summed_likelihood_sums_the_divergence(build, video):
    mean = build(objective=ObjectiveConfig(perceptual_weight=0.0))
    reconstruction = ReconstructionConfig(nll_reduction="sum")
    summed = build(objective=ObjectiveConfig(perceptual_weight=0.0, reconstruction=reconstruction))
    num_values = mean.autoencoder.encode(video).mode()[0].numel()
    mean_kl = update(mean, video, step=0)["train/kl_loss"]
    assert update(summed, video, step=0)["train/kl_loss"] == pytest.approx(num_values * mean_kl, rel=1e-5)


@pytest.mark.parametrize("is_apart", [True, False])
def test_terms_know_whether_the_first_latent_frame_is_apart(build, tiny, is_apart):
    vae = replace(tiny().causal_vae, first_frame_apart=is_apart)
    clips = replace(tiny().clips, num_frames=4 + is_apart)
    objective = ObjectiveConfig(perceptual_weight=0.0, terms={"apart": Term(value_of_apart, 0.1)})
    state = build(objective=objective, causal_vae=vae, clips=clips, discriminator=DiscriminatorConfig("none"))
    video = torch.zeros(1, 3, 4 + is_apart, 32, 32)
    assert update(state, video, step=0)["train/apart_loss"] == is_apart


def value_of_apart(*, latent, first_frame_apart):
    return latent.sum() * 0 + int(first_frame_apart)


def snapshot(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def changed(before, parameters):
    return [not torch.equal(old, new) for old, new in zip(before, parameters, strict=True)]


@pytest.mark.slow
def test_both_networks_train_on_one_forward_of_the_autoencoder(build, video):
    state = build()
    calls = []
    state.model.register_forward_hook(lambda *_: calls.append(1))
    before = snapshot(state.model.parameters()), snapshot(state.objective.get_trainable_parameters())
    update(state, video, step=2)  # the last layers and those of residual blocks start at zero: the weights before
    update(state, video, step=3)  # them change from the second or third update on
    values = update(state, video, step=4)
    assert len(calls) == 3
    assert all(changed(before[0], state.model.parameters()))
    assert any(changed(before[1], state.objective.get_trainable_parameters()))
    for name in ("total_loss", "gen_loss", "adaptive_weight", "grad_norm", "discr_loss", "disc_grad_norm"):
        assert math.isfinite(values[f"train/{name}"])
    assert values["train/gen_loss"] != 0
    assert values["train/grad_penalty_loss"] > 0
    assert "train/grad_penalty_loss" not in update(state, video, step=5), "computed on every second step only"


def test_discriminators_do_not_train_before_their_start(build, video):
    state = build()
    before = snapshot(state.objective.get_trainable_parameters())
    values = update(state, video, step=0)
    assert not any(changed(before, state.objective.get_trainable_parameters()))
    assert "train/discr_loss" not in values
    assert "data" not in values
    assert state.step == 1


def test_random_numbers_depend_on_the_clips_alone(build, video):
    logs = []
    for seed in (1, 2):
        state = build()
        torch.manual_seed(seed)
        logs.append(update(state, video, step=4))
    assert logs[0] == logs[1]


def test_both_learning_rates_follow_the_schedule(build):
    state = build()
    assert state.step == 0
    settings = OptimizerConfig(lr=1.0, disc_lr=3.0, warmup_steps=4)
    assert set_learning_rates(state, settings, num_steps=10) == 0.25
    state.step = 1
    assert set_learning_rates(state, settings, num_steps=10) == 0.5
    assert [optimizer.param_groups[0]["lr"] for optimizer in (state.optimizer, state.disc_optimizer)] == [0.5, 1.5]
    state.disc_optimizer = None
    assert set_learning_rates(state, settings, num_steps=10) == 0.5


def test_without_an_adversarial_term_there_is_no_discriminator_step(build, video):
    state = build(
        objective=ObjectiveConfig(adversarial_loss_weight=0.0), discriminator=DiscriminatorConfig(video="none")
    )
    assert state.disc_optimizer is None
    assert "train/discr_loss" not in update(state, video, step=0)


@pytest.mark.slow
def test_all_discriminators_train_together(build, video):
    state = build(
        objective=ObjectiveConfig(
            disc_start=0,
            adversarial_loss_weight=0.5,
            grad_penalty_loss_weight=10.0,
            quantizer_aux_loss_weight=1e-6,
            gan=GANConfig(disc_train_start=0),
            multiscale_adversarial_loss_weight=0.1,
        ),
        discriminator=DiscriminatorConfig(video="plain", image="attention", num_scales=1, dim=1),
    )
    values = update(state, video, step=0)
    for name in ("discr", "discr_3d", "multiscale_discrs.0"):
        assert f"train/adaptive_weight_{name}" in values
        assert f"train/discr_loss_{name}" in values


def test_the_moving_average_is_updated(build, video):
    state = build()
    for step in range(3):
        update(state, video, step)
    name = next(name for name, weight in state.model.named_parameters() if weight is state.last_layer)
    averaged, current = state.ema.averages[name], state.last_layer
    assert not torch.equal(averaged, current)
    assert (averaged - current).abs().max() < 0.1


def test_gradients_are_clipped(build, video):
    state = build()
    state.grad_clip = 1e-3
    norms = []
    state.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.stack([p.grad.norm() for p in state.model.parameters()]).norm().item())
    )
    values = update(state, video, step=0)
    assert norms == [pytest.approx(1e-3, rel=1e-3)]
    assert values["train/grad_norm"] > 1e-2, "what is logged is the norm before clipping"
    assert all(p.grad is None for p in state.model.parameters()), "gradients are freed"


def test_parameters_of_the_loss_are_trained_and_clipped_with_the_autoencoder(build, video):
    state = build(
        objective=ObjectiveConfig(
            disc_start=0,
            adversarial_loss_weight=0.5,
            grad_penalty_loss_weight=10.0,
            quantizer_aux_loss_weight=1e-6,
            gan=GANConfig(disc_train_start=0),
            reconstruction=ReconstructionConfig(learn_logvar=True),
        )
    )
    state.grad_clip = 1e-3
    logvar = state.objective.logvar
    weights = [*state.model.parameters(), logvar]
    norms = []
    state.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.stack([weight.grad.norm() for weight in weights]).norm().item())
    )
    before = logvar.item()
    values = update(state, video, step=0)
    assert norms == [pytest.approx(1e-3, rel=1e-3)]
    assert logvar.item() < before, "the error is smaller than exp(0)"
    assert logvar.grad is None
    assert values["train/logvar"] == before, "the log is of the value before the update"


@pytest.mark.parametrize("recon_loss", ["mse", "l1", "charbonnier"])
def test_the_squared_error_is_logged_for_any_reconstruction_loss(build, video, recon_loss):
    state = build(objective=ObjectiveConfig(reconstruction=ReconstructionConfig(loss=recon_loss)))
    values = update(state, video, step=0)
    assert 0.1 < values["train/mse"] < 2
    assert (values["train/recon_loss"] == pytest.approx(values["train/mse"], rel=1e-5)) == (recon_loss == "mse")


def test_ddp_does_not_wait_for_weights_that_are_not_used(build, video, monkeypatch):
    state, seen = build(), []
    monkeypatch.setattr(type(state), "gradient_sync", lambda _, *, enabled: seen.append(enabled) or nullcontext())
    for state.autoencoder.leaves_weights_unused in (False, True):
        update(state, video, step=0)
    assert seen == [True, False]


def test_buffers_are_those_of_the_first_process_at_each_update(build, video, monkeypatch):
    """`no_sync`, in which weights may be unused, also turns the next broadcast of buffers off."""
    state = build()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        state.model, state.autoencoder.leaves_weights_unused = DistributedDataParallel(state.model), True
        monkeypatch.setattr(type(state), "gradient_sync", lambda state, enabled: state.model.no_sync())
        update(state, video, step=0)
        assert state.model.require_forward_param_sync
    finally:
        dist.destroy_process_group()


def test_lpips_is_not_logged_before_it_starts(build, video):
    state = build(objective=ObjectiveConfig(perceptual_weight=Ramp(1.0, start=1)))
    found = ["train/perceptual_loss" in update(state, video, step) for step in (0, 1)]
    assert found == [False, True]


@pytest.mark.slow
def test_terms_without_a_weight_at_a_step_are_not_logged(build, video, everything):
    state = build(**everything)
    first, later, last = (update(state, video, step) for step in (0, 1, 3))
    assert "train/gram_loss" not in first
    assert "train/feature_matching_loss" not in first
    assert {"train/gram_loss", "train/feature_matching_loss", "train/temporal_loss"} <= set(later)
    assert "train/temporal_loss" not in last
    assert "train/grad_penalty_loss" in first
    assert "train/grad_penalty_loss" not in later
    assert [values["train/temporal_loss_weight"] for values in (first, later, last)] == [0.5, 0.5, 0.0]
    assert "train/wavelet_loss_weight" not in first, "it does not change"


def test_nan_in_the_data_is_named_and_no_weight_changes(build, video):
    state = build()
    before = snapshot(state.model.parameters())
    video[1, 0, 2, 5, 5] = float("nan")
    with pytest.raises(TrainingError, match=r"`data` must be finite, but got nan at step 4.*last checkpoint"):
        update(state, video, step=4)
    assert not any(changed(before, state.model.parameters()))


def test_the_term_that_is_not_finite_is_named_before_the_total():
    log = {name: torch.tensor(1.0) for name in ("train/total_loss", "train/recon_loss", "train/perceptual_loss")}
    log["train/total_loss"] = log["train/perceptual_loss"] = torch.tensor(float("inf"))
    with pytest.raises(TrainingError, match="`train/perceptual_loss` must be finite, but got inf at step 9"):
        finite_values(log, 9)


def test_nan_in_a_discriminator_is_named(build, video):
    state = build()
    with torch.no_grad():
        list(state.objective.discr_3d.parameters())[-1].fill_(float("nan"))
    before = snapshot(state.model.parameters())
    with pytest.raises(TrainingError, match="gen_loss"):
        update(state, video, step=4)
    assert not any(changed(before, state.model.parameters()))


def test_a_gradient_that_is_not_finite_raises_before_the_optimizer_steps(build, video):
    state = build()
    state.model.last_layer.register_hook(lambda gradient: gradient * float("inf"))
    before = snapshot(state.model.parameters())
    with pytest.raises(TrainingError, match="`train/grad_norm` must be finite"):
        update(state, video, step=0)
    assert not any(changed(before, state.model.parameters()))


@pytest.mark.slow
def test_a_loss_scale_does_not_change_the_update_and_is_updated_once(build, video):
    """As in float16 on a GPU: both optimizers share a scale, which changes after both have stepped."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    results = []
    for used in (None, scaler):
        state = build()
        state.accelerator.scaler = used
        values = [update(state, video, step) for step in (3, 4)]
        results.append((values, snapshot([*state.model.parameters(), *state.objective.parameters()])))
    assert scaler.get_scale() == 2.0**12, "twice as large after each update, not after each optimizer"
    (ours, weights), (theirs, others) = results
    for one, other in zip(ours, theirs, strict=True):
        assert other.pop("train/grad_overflow") == other.pop("train/disc_grad_overflow") == 0
        assert other == pytest.approx(one, rel=1e-3, abs=1e-6)
    torch.testing.assert_close(others, weights, rtol=1e-4, atol=1e-6)


def test_an_overflow_under_a_loss_scale_skips_that_step_and_lowers_the_scale(build, video):
    state = build()
    state.accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    state.model.last_layer.register_hook(lambda gradient: gradient * float("inf"))
    before = snapshot(state.model.parameters()), snapshot(state.objective.get_trainable_parameters())
    values = update(state, video, step=4)
    assert not any(changed(before[0], state.model.parameters()))
    assert any(changed(before[1], state.objective.get_trainable_parameters())), "its gradients were finite"
    assert scaler.get_scale() == 2.0**9
    assert "train/grad_norm" not in values
    assert values["train/disc_grad_norm"] > 0


def test_the_update_ratio_is_logged_on_request(build, video):
    state = build()
    weights = [*state.model.parameters()], state.objective.get_trainable_parameters()
    before = [torch.cat([weight.detach().flatten() for weight in of]) for of in weights]
    state.step = 3
    values = train_step(state, [MicroBatch(video, range(len(video)))], measure_update_ratio=True)
    for prefix, of, old in zip(("", "disc_"), weights, before, strict=True):
        new = torch.cat([weight.detach().flatten() for weight in of])
        assert values[f"train/{prefix}update_ratio"] == pytest.approx(
            ((new - old).norm() / new.norm()).item(), rel=1e-4
        )
    assert "train/update_ratio" not in update(state, video, step=4)


def test_clipping_and_overflow_are_counted(build, video):
    state = build()
    state.grad_clip = 1e-3
    values = update(state, video, step=3)
    assert values["train/grad_clipped"] == values["train/disc_grad_clipped"] == 1.0
    assert "train/grad_overflow" not in values, "without a scaler an overflow is an error"
    state.grad_clip = 1e9
    state.accelerator.scaler = torch.amp.GradScaler("cpu")
    values = update(state, video, step=4)
    state.accelerator.scaler = None
    assert values["train/grad_clipped"] == values["train/grad_overflow"] == values["train/disc_grad_overflow"] == 0.0


def test_the_gradient_at_the_reconstruction_is_logged(build, video):
    values = update(build(), video, step=3)
    shares = [values[f"train/frame_gradient_{frame:03d}"] for frame in range(5)]
    assert sum(shares) == pytest.approx(5, rel=1e-5)
    assert min(shares) > 0
    assert 0 < values["train/adversarial_gradient_share"] < 1
    assert "train/adversarial_gradient_share" not in update(build(), video, step=0)


def test_no_auxiliary_loss_hides_what_training_logs(build, video):
    state = build()
    state.step = 3
    values = train_step(state, [MicroBatch(video, range(len(video)))], measure_update_ratio=True)
    own = state.objective(video, video, 0, 3)[1]
    one = torch.ones(())
    for name in (values.keys() - own.keys() - {"train/kl_loss"}) | {"train/lr", "train/clips_per_second"}:
        with pytest.raises(ValueError, match="`aux_losses` must be named unlike all else in the log"):
            check_names_of_aux_losses({name.removeprefix("train/"): one}, [])
