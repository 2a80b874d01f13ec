"""The nineteen faults of the published reference, with at least one test for each line of the contract.

Every test states what must hold and fails with the reference's behaviour. The last test counts the names
`test_line_NN_...`.
"""

import copy
import inspect
import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import telecine
from telecine.discriminators import (
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
    PatchDiscriminator3D,
)
from telecine.discriminators.blocks import (
    Blur,
    DiscriminatorBlock,
    DiscriminatorBlock3D,
    DiscriminatorBlock3DWithfirstframe,
)

HERE = Path(__file__).parent
IMAGE = {"dim": 1, "image_size": 16, "linear_attn_heads": 2}
VIDEO = {**IMAGE, "frame_num": 4}
NETWORKS = {"discr_kwargs": IMAGE, "discr_3d_kwargs": VIDEO}
LENGTHS = (1, 2, 3, 4, 5, 8, 9, 13, 16, 17, 33)
BATCHES = (3, 5, 7)
SIZES = ((16, 16), (60, 90), (48, 80), (17, 31), (33, 16))


def ratio_by_hand(perceptual, g, last_layer):
    norms = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
        for loss in (perceptual, g)
    ]
    return min(norms[0] / max(norms[1], torch.tensor(1e-3)), torch.tensor(1e3)).item()


def assert_every_pixel_counts(network, shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    logits = network(x).logits
    assert logits.shape == shape[:1]
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert (gradient != 0).all()


# 1. The gate is inverted: the adversarial term is on only before `disc_start`.


def test_line_01_the_adversarial_term_is_on_from_disc_start_and_off_before(
    make_loss, make_discriminator, clip
):
    for training in (True, False):
        loss = make_loss(
            disc_start=5,
            adversarial_loss_weight=2,
            discr_3d_kwargs=make_discriminator(3),
            perceptual_weight=0,
        )
        loss.train(training)
        real = clip()
        fake = clip(seed=2)
        mse = (real - fake).square().mean().item()
        for step, on in ((0, False), (4, False), (5, True), (1000, True)):
            loss.discr_3d.inputs.clear()
            total, log = loss(real, fake, 0, step)
            g = -3 * fake.mean().item() if on else 0
            assert log["train/gen_loss"].item() == pytest.approx(g, rel=1e-4)
            assert total.item() == pytest.approx(mse + 2 * g, rel=1e-5)
            assert len(loss.discr_3d.inputs) == on, (
                "nothing of the term is computed before `disc_start`"
            )


# 2. The adaptive weight is computed and logged, but nothing is multiplied by it.


def test_line_02_the_adaptive_weight_multiplies_each_adversarial_term(
    make_loss, make_discriminator, clip, autoencoder
):
    loss = make_loss(
        adversarial_loss_weight=0.5,
        multiscale_adversarial_loss_weight=0.25,
        discr_3d_kwargs=make_discriminator(5),
        multiscale_discr_kwargs=[make_discriminator(-3)],
        perceptual={"num_frames": "all"},
    )
    real = clip()
    fake = autoencoder(real)
    total, log = loss(real, fake, 0, 0, last_layer=autoencoder.last_layer)
    fake_frames, real_frames = (video.transpose(1, 2).flatten(0, 1) for video in (fake, real))
    perceptual = loss.perceptual.distance(reconstruction=fake_frames, target=real_frames).mean()
    terms = [-5 * fake.mean(), 3 * fake.mean()]
    weights = [ratio_by_hand(perceptual, g, autoencoder.last_layer) for g in terms]
    assert not any(0.9 < weight < 1.1 for weight in weights)
    logged = [
        log["train/adaptive_weight_discr_3d"].item(),
        log["train/adaptive_weight_multiscale_discrs.0"].item(),
    ]
    assert logged == pytest.approx(weights)
    expected = (
        (real - fake).square().mean()
        + perceptual
        + 0.5 * weights[0] * terms[0]
        + 0.25 * weights[1] * terms[1]
    )
    torch.testing.assert_close(total, expected)
    ours, theirs = (
        torch.autograd.grad(t, autoencoder.last_layer, retain_graph=True)[0]
        for t in (total, expected)
    )
    torch.testing.assert_close(ours, theirs)


# 3. The 2D discriminator is never called; the multi-scale weight is read nowhere; `vgg_weights` is ignored.


def test_line_03_the_2d_discriminator_is_called_in_both_steps_and_trained(make_loss, clip):
    loss = make_loss(adversarial_loss_weight=1, discr_kwargs=IMAGE, perceptual_weight=0)
    shapes = []
    loss.discr.register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    real = clip()
    fake = clip(seed=2).requires_grad_()
    total, log = loss(real, fake, 0, 0)
    total.backward()
    assert shapes == [(2, 3, 16, 16)]
    assert log["train/gen_loss"] != 0
    mse_gradient = 2 * (fake.detach() - real) / real.numel()
    with_gradient = [(fake.grad - mse_gradient)[b].abs().amax((0, 2, 3)) > 1e-7 for b in range(2)]
    assert [frames.sum().item() for frames in with_gradient] == [1, 1], "one frame of each clip"
    loss(real, fake, 1, 0)[0].backward()
    assert len(shapes) == 3
    assert loss.discr.blocks[0][0].net[0].weight.grad.abs().sum() > 0


def test_line_03_the_multiscale_weight_counts(make_loss, make_discriminator, clip):
    totals = []
    for weight in (0, 1, 3):
        loss = make_loss(
            multiscale_adversarial_loss_weight=weight,
            multiscale_discr_kwargs=[make_discriminator()],
            perceptual_weight=0,
        )
        totals.append(loss(clip(), clip(seed=2), 0, 0)[0].item())
    assert totals[1] - totals[0] == pytest.approx(-clip(seed=2).mean().item(), rel=1e-3)
    assert totals[2] - totals[0] == pytest.approx(-3 * clip(seed=2).mean().item(), rel=1e-3)
    loss(clip(), clip(seed=2), 1, 0)[0].backward()
    assert loss.multiscale_discrs[0].weight.grad.abs() > 0


@pytest.mark.slow
def test_line_03_vgg_weights_decide_what_lpips_is(make_loss, vgg, clip):
    other = {name: tensor.flip(0) * 0.9 for name, tensor in vgg.items()}
    values = []
    for weights in (vgg, other):
        loss = make_loss(vgg_weights=weights)
        log = loss(clip((1, 3, 1, 16, 16)), clip((1, 3, 1, 16, 16), seed=2), 0, 0)[1]
        values.append(log["train/perceptual_loss"])
    assert abs(values[0] - values[1]) > 1e-4
    with pytest.raises(FileNotFoundError):
        make_loss(vgg_weights="/nowhere/vgg16.pth")


# 4. `Blur` raises in every mode but time-only; 3D blocks should blur space only.


@pytest.mark.parametrize("flags", [{}, {"space_only": True}, {"time_only": True}])
def test_line_04_blur_runs_in_every_mode(flags):
    x = torch.zeros(1, 2, 3, 3, 3)
    x[..., 1, 1, 1] = 64
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    point = torch.tensor([0.0, 1.0, 0.0])
    time = point if "space_only" in flags else kernel
    space = point if "time_only" in flags else kernel
    out = Blur()(x, **flags)
    assert torch.equal(out[0, 1], 64 * torch.einsum("t,h,w->thw", time, space, space))
    if "time_only" not in flags:
        assert torch.equal(Blur()(x[:, :, 1], **flags)[0, 0], 64 * torch.outer(kernel, kernel))


@pytest.mark.parametrize("block", [DiscriminatorBlock3D, DiscriminatorBlock3DWithfirstframe])
def test_line_04_blocks_that_stride_time_blur_space_only(block):
    module = block(2, 3, True)
    videos = []
    module.maybe_blur.register_forward_hook(
        lambda blur, args, output: videos.extend([*args, output])
    )
    module(torch.randn(1, 2, 4, 4, 4))
    before, after = videos
    frames = torch.stack([Blur()(frame) for frame in before.unbind(2)], dim=2)
    assert torch.allclose(after, frames)
    assert not torch.allclose(after, Blur()(before))


@pytest.mark.slow
@pytest.mark.parametrize("cls", [Discriminator, Discriminator3D, Discriminator3DWithfirstframe])
def test_line_04_antialiased_discriminators_run_and_are_penalised(cls, make_loss, clip):
    config = {**(IMAGE if cls is Discriminator else VIDEO), "antialiased_downsample": True}
    name = "discr_kwargs" if cls is Discriminator else "discr_3d_kwargs"
    loss = make_loss(**{name: cls(**config)}, grad_penalty_loss_weight=1, perceptual_weight=0)
    total, _ = loss(clip(), clip(seed=2), 1, 0)
    total.backward()
    assert total.isfinite()
    assert DiscriminatorBlock(1, 1).maybe_blur is not None


# 5. `requires_grad_()` is called on the caller's batch.


def test_line_05_the_callers_batch_is_not_touched(make_loss, clip):
    loss = make_loss(grad_penalty_loss_weight=1, **NETWORKS, perceptual_weight=0)
    videos = [clip(), clip(seed=2)]
    versions = [video._version for video in videos]
    loss(*videos, 1, 0)[0].backward()
    assert [video._version for video in videos] == versions
    for seed, video in enumerate(videos, start=1):
        assert not video.requires_grad
        assert video.grad is None
        assert torch.equal(video, clip(seed=seed))


# 6. A gradient penalty under `no_grad` raises; an inference-mode batch raises.


@pytest.mark.slow
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_line_06_validation_without_gradients_has_no_penalty(make_loss, clip, autoencoder, context):
    loss = make_loss(grad_penalty_loss_weight=5, adversarial_loss_weight=1, **NETWORKS)
    with context():
        for idx in (0, 1):
            total, log = loss(
                clip(), autoencoder(clip()), idx, 0, last_layer=autoencoder.last_layer, split="val"
            )
            assert total.isfinite()
            assert not total.requires_grad
    assert log["val/grad_penalty_loss"] == 0
    assert total == log["val/discr_loss"]


@pytest.mark.slow
def test_line_06_a_batch_made_in_inference_mode_trains_both_networks(make_loss, clip, autoencoder):
    loss = make_loss(grad_penalty_loss_weight=5, adversarial_loss_weight=1, **NETWORKS)
    with torch.inference_mode():
        real = clip()
        fake = clip(seed=2)
        aux = torch.tensor(1.0)
    total, log = loss(real, fake, 1, 0)
    total.backward()
    assert log["train/grad_penalty_loss"] > 0
    loss(real, fake, 0, 0, aux_losses=aux, last_layer=autoencoder.last_layer)
    loss(real, autoencoder(clip()), 0, 0, aux_losses=aux, last_layer=autoencoder.last_layer)[
        0
    ].backward()
    assert autoencoder.last_layer.grad is not None


# 7. `.train()` on the loss turns LPIPS's dropout back on: the perceptual loss becomes random.


def test_line_07_the_perceptual_loss_is_not_random_in_training_mode(make_loss, clip):
    loss = make_loss(perceptual={"num_frames": "all"})
    values = []
    for mode in (True, True, False, True):
        loss.train(mode)
        assert loss.training == mode
        values.append(loss(clip(), clip(seed=2), 0, 0)[1]["train/perceptual_loss"].item())
        assert not loss.perceptual.distance.training
    assert len(set(values)) == 1


# 8. LPIPS: a zero feature vector gives a NaN gradient, and in half precision large features overflow.


@pytest.mark.slow
def test_line_08_frames_without_features_have_a_finite_gradient(make_loss, vgg, clip):
    no_bias = {name: tensor * (not name.endswith("bias")) for name, tensor in vgg.items()}
    loss = make_loss(vgg_weights=no_bias, perceptual={"num_frames": "all"})
    # The colour that LPIPS subtracts: every feature is exactly zero.
    mean = (
        torch.tensor([-0.030, -0.088, -0.188])
        .view(1, 3, 1, 1, 1)
        .expand(1, 3, 2, 16, 16)
        .contiguous()
    )
    for real, fake in ((clip((1, 3, 2, 16, 16)), mean), (mean, mean)):
        fake = fake.clone().requires_grad_()
        total, log = loss(real, fake, 0, 0)
        total.backward()
        assert log["train/perceptual_loss"].isfinite()
        assert fake.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_line_08_large_features_do_not_overflow_in_half_precision(make_loss, vgg, clip, dtype):
    large = {
        name: tensor * (1e4 if name.startswith("features.0.") else 1)
        for name, tensor in vgg.items()
    }
    loss = make_loss(vgg_weights=large, perceptual={"num_frames": "all"})
    real, fake = (clip((1, 3, 1, 16, 16), seed=seed, dtype=dtype) for seed in (1, 2))
    expected = loss(real.float(), fake.float(), 0, 0)[1]["train/perceptual_loss"]
    fake.requires_grad_()
    with torch.autocast("cpu", dtype):
        total, log = loss(real, fake, 0, 0)
    total.backward()
    torch.testing.assert_close(log["train/perceptual_loss"], expected)
    assert fake.grad.isfinite().all()


# 9. Hinge, norms, LPIPS and penalty are computed in half precision under autocast.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_line_09_every_loss_is_float32_under_autocast(
    make_loss, make_discriminator, clip, autoencoder, dtype
):
    """Autocast does not change the elementwise discriminators, so only the losses themselves could differ."""
    logs = []
    gradients = []
    for enabled in (False, True):
        loss = make_loss(
            adversarial_loss_weight=1,
            discr_3d_kwargs=make_discriminator(7),
            grad_penalty_loss_weight=1,
            perceptual={"num_frames": "all"},
        )
        fake = autoencoder(clip())
        with torch.autocast("cpu", dtype, enabled=enabled):
            steps = [
                loss(clip(), fake, idx, 0, last_layer=autoencoder.last_layer) for idx in (0, 1)
            ]
        assert all(total.dtype == torch.float32 for total, _ in steps)
        logs.append({name: value for _, log in steps for name, value in log.items()})
        gradients.append(torch.autograd.grad(steps[0][0], fake)[0])
    assert len(logs[0]) >= 11
    for name, value in logs[0].items():
        torch.testing.assert_close(
            logs[1][name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_line_09_the_penalty_of_a_convolutional_discriminator_is_the_float32_one(
    make_loss, clip, dtype
):
    loss = make_loss(**NETWORKS, grad_penalty_loss_weight=1, perceptual_weight=0)
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        loss.zero_grad()
        with torch.autocast("cpu", dtype, enabled=enabled):
            total, log = loss(clip(), clip(seed=2), 1, 0)
        total.backward()
        results.append(
            (log["train/grad_penalty_loss"], loss.discr_3d.blocks[0].net[0].weight.grad.clone())
        )
    for plain, autocast in zip(*results, strict=True):
        assert torch.equal(plain, autocast)


# 10. Every discriminator parameter gets a gradient in the autoencoder step.


def test_line_10_the_autoencoder_step_leaves_the_discriminators_alone(make_loss, clip, autoencoder):
    loss = make_loss(
        adversarial_loss_weight=1,
        multiscale_adversarial_loss_weight=1,
        **NETWORKS,
        multiscale_discr_kwargs=[VIDEO],
    )
    loss.discr.blocks[0].requires_grad_(False)  # one that the caller froze stays frozen
    before = {name: parameter.requires_grad for name, parameter in loss.named_parameters()}
    assert set(before.values()) == {False, True}
    real = clip()
    total, log = loss(real, autoencoder(real), 0, 0, last_layer=autoencoder.last_layer)
    total.backward()
    assert log["train/gen_loss"] != 0
    assert all(parameter.grad is None for parameter in loss.parameters())
    assert {name: parameter.requires_grad for name, parameter in loss.named_parameters()} == before
    assert all(parameter.grad.abs().sum() > 0 for parameter in autoencoder.parameters())


# 11. `Discriminator3D`: 1, 5, 9, 17, 49 frames raise, and 16 frames of 32 px; 16 frames in a network for 8 mix clips.


def assert_any_number_of_frames(cls, frame_num, sizes):
    """Check a network of `frame_num` frames with clips of other lengths, and networks of other sizes."""
    torch.manual_seed(0)
    network = cls(**{**VIDEO, "frame_num": frame_num}).double()
    for time in (*LENGTHS, 49):
        assert_every_pixel_counts(network, (2, 3, time, 16, 16))
    for time, size in sizes:
        network = cls(**{**IMAGE, "image_size": size, "frame_num": time}).double()
        assert_every_pixel_counts(network, (1, 3, time, size, size))


@pytest.mark.slow
def test_line_11_any_number_of_frames_gives_one_logit_per_clip():
    sizes = ((1, 16), (5, 16), (9, 16), (16, 32), (17, 32), (49, 32))
    assert_any_number_of_frames(Discriminator3D, 8, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [Discriminator3D, Discriminator3DWithfirstframe])
def test_line_11_frames_stay_with_their_clip_at_every_batch(cls):
    torch.manual_seed(0)
    network = cls(**{**VIDEO, "frame_num": 8}).double()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 16, 16, 16, dtype=torch.float64, requires_grad=True)
        logits = network(x).logits
        alone = torch.cat([network(x[b : b + 1]).logits for b in range(batch)])
        torch.testing.assert_close(logits, alone)
        (gradient,) = torch.autograd.grad(logits[-1], x)
        assert gradient[:-1].abs().sum() == 0


# 12. `Discriminator3DWithfirstframe`: 1, 2, 4, 8, 16 frames raise; with 13 or 49 the last ones get zero gradient.


@pytest.mark.slow
def test_line_12_every_frame_of_any_number_gets_a_gradient():
    sizes = ((1, 16), (2, 16), (4, 16), (13, 32), (16, 32), (49, 32))
    assert_any_number_of_frames(Discriminator3DWithfirstframe, 17, sizes)


# 13. Sizes that are not multiples of 2^levels raise; a linear head ties a discriminator to one resolution.


@pytest.mark.slow
@pytest.mark.parametrize("cls", [Discriminator, Discriminator3D, Discriminator3DWithfirstframe])
def test_line_13_any_height_and_width(cls):
    torch.manual_seed(0)
    for built_for in (16, (60, 90)):
        config = {**IMAGE, "image_size": built_for} | (
            {} if cls is Discriminator else {"frame_num": 4}
        )
        network = cls(**config).double()
        for size in SIZES:
            assert_every_pixel_counts(
                network, (1, 3, *(() if cls is Discriminator else (3,)), *size)
            )


@pytest.mark.slow
def test_line_13_any_height_and_width_in_the_loss(make_loss, clip, autoencoder):
    loss = make_loss(adversarial_loss_weight=1, grad_penalty_loss_weight=1, **NETWORKS)
    for shape in ((1, 3, 5, 60, 90), (3, 3, 1, 17, 31)):
        fake = autoencoder(clip(shape))
        for idx in (0, 1):
            total, _ = loss(clip(shape), fake, idx, 0, last_layer=autoencoder.last_layer)
            total.backward()
            assert total.isfinite()


# 14. A missing discriminator raises `'NoneType' object is not callable`; an unknown `optimizer_idx` returns `None`;
# `aux_losses` as a float raises.


def test_line_14_a_missing_discriminator_is_named(make_loss, pair):
    for name, argument in (
        ("adversarial_loss_weight", "`discr_3d_kwargs` or `discr_kwargs`"),
        ("multiscale_adversarial_loss_weight", "`multiscale_discr_kwargs`"),
        ("feature_matching_loss_weight", "`discr_3d_kwargs`"),
        ("lecam_loss_weight", "`discr_3d_kwargs`"),
    ):
        message = rf"`{name}` must be 0 without a discriminator, but got 0.5 \(float\). Pass one as {argument}."
        with pytest.raises(ValueError, match=message):
            make_loss(**({name: 0.5} if "adversarial" in name else {"gan": {name: 0.5}}))
    with pytest.raises(
        ValueError, match="`adversarial_loss_weight` must be 0 without a discriminator"
    ):
        make_loss(adversarial_loss_weight=telecine.Ramp(0, initial=1, start=5))
    loss = make_loss()
    message = (
        r"`discriminators` must be at least one for their step, but got none.*Build the loss with"
    )
    with pytest.raises(ValueError, match=message):
        loss(*pair, 1, 0)
    with pytest.raises(ValueError, match=message):
        loss.both_losses(*pair, 0)


@pytest.mark.parametrize("value", [2, -1, "0", None])
def test_line_14_an_unknown_optimizer_idx_raises(make_loss, clip, value):
    with pytest.raises(ValueError, match=r"`optimizer_idx` must be one of 0, 1, but got"):
        make_loss()(clip(), clip(), value, 0)


def test_line_14_aux_losses_may_be_a_float(make_loss, clip):
    total, log = make_loss(perceptual_weight=0, quantizer_aux_loss_weight=2)(
        clip(), clip(), 0, 0, aux_losses=1.5
    )
    assert total == 3
    assert log["train/aux_losses"] == 1.5


# 15. The steps synchronise host and device.


class NoSync(TorchDispatchMode):
    """Raise if the host would wait for the device: a value is read, a shape depends on values, devices differ."""

    READS = (
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "equal",
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        name = func.overloadpacket.__name__
        if name in self.READS:
            raise AssertionError(f"{name} makes the host wait for the device")
        if name == "index" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            raise AssertionError("indexing with a mask makes the host wait for the device")
        out = func(*args, **(kwargs or {}))
        moved = isinstance(out, torch.Tensor) and any(
            isinstance(arg, torch.Tensor) and arg.device != out.device for arg in args
        )
        if moved:
            raise AssertionError(f"{name} moves a tensor between devices")
        return out


def test_line_15_the_detector_works():
    x = torch.ones(2)
    for read in (
        x.sum().item,
        lambda: bool(x.sum()),
        x.nonzero,
        lambda: x[x > 0],
        lambda: x.to("meta"),
    ):
        with NoSync(), pytest.raises(AssertionError, match=r"wait for the device|between devices"):
            read()


@pytest.mark.slow
def test_line_15_no_value_is_read_on_the_host(make_loss, clip, autoencoder):
    """The meta device has no values to read, and a tensor from the CPU is detected as a move between devices."""
    loss = make_loss(
        perceptual={"num_frames": 2},
        adversarial_loss_weight=1,
        multiscale_adversarial_loss_weight=1,
        grad_penalty_loss_weight=1,
        quantizer_aux_loss_weight=1,
        discr_kwargs=IMAGE,
        discr_3d_kwargs={"target": "telecine.Discriminator3DWithfirstframe", "params": VIDEO},
        multiscale_discr_kwargs=[PatchDiscriminator3D(base_channels=2, num_layers=1)],
    ).to("meta")
    autoencoder.to("meta")
    real = clip((2, 3, 5, 18, 16)).to("meta")
    fake = autoencoder(real)
    with NoSync() as mode:
        for idx in (0, 1):
            total, log = loss(
                real, fake, idx, 0, {"kl": fake.square().mean(), "b": 0.5}, autoencoder.last_layer
            )
            total.backward()
            assert {value.device.type for value in log.values()} == {"meta"}
        both = loss.both_losses(real, autoencoder(real), 0, {"b": 0.5}, autoencoder.last_layer)
        for total in (both.loss, both.disc_loss):
            total.backward()
    assert mode.count > 800


# 16. The state dict contains the frozen weights of LPIPS.


def test_line_16_the_state_dict_holds_no_lpips(make_loss):
    assert make_loss().state_dict() == {}
    assert list(make_loss().parameters()) == []
    assert list(make_loss().buffers()) == []
    loss = make_loss(adversarial_loss_weight=1, **NETWORKS)
    assert {name.split(".")[0] for name in loss.state_dict()} == {"discr", "discr_3d"}
    num_values = sum(tensor.numel() for tensor in loss.state_dict().values())
    assert num_values == sum(p.numel() for d in (loss.discr, loss.discr_3d) for p in d.parameters())


# 17. The adaptive weight differs between ranks.


@pytest.fixture(scope="module")
def script():
    """Return the functions of `two_ranks.py`."""
    return runpy.run_path(str(HERE / "two_ranks.py"))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, forks):
    """Return the logs of two processes with different batches."""
    folder = tmp_path_factory.mktemp("ranks")
    file = str(HERE / "two_ranks.py")
    done = forks.run("-m", "torch.distributed.run", "--nproc-per-node", "2", file, str(folder))
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_line_17_the_adaptive_weight_is_that_of_rank_averaged_gradients(two_ranks, script):
    loss, autoencoder = script["build_loss_and_autoencoder"]()
    gradients = []
    for rank in range(2):
        real = script["batch"](rank)
        fake = autoencoder(real)
        fake_frames, real_frames = (video.transpose(1, 2).flatten(0, 1) for video in (fake, real))
        perceptual = loss.perceptual.distance(reconstruction=fake_frames, target=real_frames).mean()
        g = -loss.discr_3d(fake).logits.mean()
        gradients.append(
            [
                torch.autograd.grad(t, autoencoder.last_layer, retain_graph=True)[0]
                for t in (perceptual, g)
            ]
        )
    alone = [(perceptual.norm() / g.norm()).item() for perceptual, g in gradients]
    averaged = [(first + second) / 2 for first, second in zip(*gradients, strict=True)]
    expected = (averaged[0].norm() / averaged[1].norm()).item()
    assert min(abs(weight / expected - 1) for weight in alone) > 1e-3, "the ranks must differ"
    weights = [log["train/adaptive_weight"] for log in two_ranks]
    assert weights[0] == weights[1]
    assert weights[0] == pytest.approx(expected, rel=1e-5)
    assert [log["average"] for log in two_ranks] == [[1.5, 10.0]] * 2
    assert two_ranks[0]["train/recon_loss"] != two_ranks[1]["train/recon_loss"]


@pytest.mark.slow
def test_line_17_every_average_and_the_gradient_of_the_variance(two_ranks, script):
    ranks = [log["averaged"] for log in two_ranks]
    assert ranks[0] == ranks[1]
    # One process with all clips has the same means, because the ranks have the same number of clips.
    real = torch.cat([script["batch"](rank) for rank in range(2)])
    together = script["averaged"](
        script["build_averaging_loss"](), real, (0.5 * real).requires_grad_()
    )
    assert ranks[0] == pytest.approx(together, rel=1e-4)


@pytest.mark.slow
def test_line_17_a_data_parallel_wrapper_averages_the_discriminators_gradients(two_ranks, script):
    """The wrapper does not wait for the gradient of `logvar`, which the discriminators' step does not compute."""
    ranks = [log["gradients"] for log in two_ranks]
    assert ranks[0] == ranks[1]
    loss = script["build_averaging_loss"]()
    real = torch.cat([script["batch"](rank) for rank in range(2)])
    for gradients in ranks[0]:
        expected = script["discriminator_gradients"](
            loss, loss, real, (0.5 * real).requires_grad_()
        )
        assert gradients == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert max(gradients) > 1e-2


# 18. The engine of the reference's repository cannot call the loss.


class Engine(nn.Module):
    """The training loop of sgm's engine in plain PyTorch: optimizers in turn, the other's parameters frozen."""

    def __init__(self, autoencoder, loss, learning_rate=1e-2):
        super().__init__()
        self.autoencoder = autoencoder
        self.loss = loss
        self.optimizers = [
            torch.optim.Adam(autoencoder.parameters(), lr=learning_rate),
            torch.optim.Adam(list(loss.get_trainable_parameters()), lr=learning_rate),
        ]
        self.global_step = 0

    def forward(self, x):
        z = self.autoencoder.encoder(x)
        return (
            z,
            self.autoencoder.decoder(z),
            {"kl_loss": z.square().mean(), "perplexity": z.detach().exp()},
        )

    def call_loss(self, x, optimizer_idx, split):
        z, xrec, regularization_log = self(x)
        info = {
            "z": z,
            "optimizer_idx": optimizer_idx,
            "global_step": self.global_step,
            "last_layer": self.autoencoder.last_layer,
            "split": split,
            "regularization_log": regularization_log,
            "autoencoder": self.autoencoder,
        }
        return self.loss(x, xrec, **{key: info[key] for key in self.loss.forward_keys})

    def training_step(self, x, batch_idx):
        optimizer_idx = batch_idx % len(self.optimizers)
        optimizer = self.optimizers[optimizer_idx]
        (other,) = (other for other in self.optimizers if other is not optimizer)
        others = other.param_groups[0]["params"]
        optimizer.zero_grad()
        for parameter in others:
            parameter.requires_grad_(False)
        loss, log = self.call_loss(x, optimizer_idx, "train")
        loss.backward()
        for parameter in others:
            parameter.requires_grad_(True)
        optimizer.step()
        self.global_step += 1
        return log

    @torch.no_grad()
    def validation_step(self, x):
        return {**self.call_loss(x, 0, "val")[1], **self.call_loss(x, 1, "val")[1]}


@pytest.mark.slow
def test_line_18_such_an_engine_trains_both_networks(make_loss, clip, autoencoder):
    loss = make_loss(
        disc_start=2,
        adversarial_loss_weight=0.5,
        grad_penalty_loss_weight=1,
        quantizer_aux_loss_weight=1e-2,
        **NETWORKS,
    )
    engine = Engine(autoencoder, loss)
    before = copy.deepcopy(engine.state_dict())
    first = engine.validation_step(clip())
    logs = [engine.training_step(clip(seed=1), batch_idx) for batch_idx in range(8)]
    last = engine.validation_step(clip())
    moved = set()
    for name, weight in engine.state_dict().items():
        if (weight != before[name]).any():
            moved.add(".".join(name.split(".")[:2]))
    assert moved == {"autoencoder.encoder", "autoencoder.decoder", "loss.discr", "loss.discr_3d"}
    assert all(parameter.requires_grad for parameter in engine.parameters())
    assert ["train/total_loss" in log for log in logs] == [True, False] * 4
    assert ["train/total_disc_loss" in log for log in logs] == [False, True] * 4
    assert logs[0]["train/aux_losses"] == logs[0]["train/kl_loss"] > 0
    assert logs[0]["train/gen_loss"] == 0 != logs[2]["train/gen_loss"]
    assert last["val/recon_loss"] < first["val/recon_loss"]
    assert last["val/discr_loss"] != first["val/discr_loss"]
    assert last["val/grad_penalty_loss"] == 0


# 19. The reference's double backward through its attention corrupts the heap at batch 3, 5 or 7 in float32 on the CPU.


@pytest.mark.slow
@pytest.mark.parametrize("batch", BATCHES)
def test_line_19_double_backward_through_both_attentions(forks, batch):
    done = forks.run(str(HERE / "penalty_batch.py"), str(batch))
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    report = json.loads(done.stdout)
    names = ("quadratic", "linear", "both", "default")
    cases = [["one_centered", name] for name in names] + [
        ["r1_and_r2", "both"],
        ["wgan_gp", "both"],
    ]
    assert report["finished"] == cases
    # Two batches (wgan_gp: three) run through the blocks of each network. Per network, these blocks use each form:
    quadratic = 2 * (3 + 0 + 3 + 3) + (2 + 3) * 3
    linear = 2 * (0 + 3 + 1 + 1) + (2 + 3) * 1
    assert report["calls"] == {"quadratic_attention": quadratic, "linear_attention": linear}


# All of them.


def test_every_line_of_the_contract_has_a_test():
    functions = [name for name, value in globals().items() if inspect.isfunction(value)]
    numbers = {
        int(match[1]) for name in functions if (match := re.match(r"test_line_(\d\d)_", name))
    }
    assert numbers == set(range(1, 20))
    assert telecine.VideoAutoencoderLoss.__module__.startswith("telecine.objective")
