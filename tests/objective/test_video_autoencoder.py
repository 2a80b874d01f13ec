"""Both steps against an implementation with plain loops, and the promises that the loss makes to its caller."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine import VideoAutoencoderLoss
from telecine.perceptual.lpips import load_heads

IMAGE = {"dim": 1, "image_size": 16, "linear_attn_heads": 2}
VIDEO = {**IMAGE, "frame_num": 4}
EVERYTHING = {
    "perceptual_weight": 0.7,
    "adversarial_loss_weight": 0.3,
    "multiscale_adversarial_loss_weight": 0.2,
    "grad_penalty_loss_weight": 1.5,
    "quantizer_aux_loss_weight": 0.9,
    "discr_kwargs": IMAGE,
    "discr_3d_kwargs": VIDEO,
    "multiscale_discr_kwargs": [VIDEO],
}
AUTOENCODER_LOG = {"total_loss", "recon_loss", "perceptual_loss", "gen_loss", "aux_losses", "adaptive_weight"}
DISCRIMINATOR_LOG = {"total_disc_loss", "discr_loss", "grad_penalty_loss", "logits_real", "logits_fake"}


def still(video):
    """Repeat the first frame: whichever frames are drawn, they are the same."""
    return video[:, :, :1].expand_as(video).contiguous()


def lpips_by_hand(vgg, x, y):
    """Return LPIPS of single frames (3, H, W), stage by stage and channel by channel."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    heads = load_heads("vgg")
    features = [(frame - shift.view(3, 1, 1).to(frame)) / scale.view(3, 1, 1).to(frame) for frame in (x, y)]
    positions = [[0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]]
    total = 0
    for stage, layers in enumerate(positions):
        if stage:
            features = [F.max_pool2d(f[None], 2)[0] for f in features]
        for layer in layers:
            weight, bias = (vgg[f"features.{layer}.{kind}"].to(x) for kind in ("weight", "bias"))
            features = [F.conv2d(f[None], weight, bias, padding=1)[0].relu() for f in features]
        unit = [f / (f.square().sum(0) + 1e-8).sqrt() for f in features]
        for channel, head in enumerate(heads[f"head.{stage}"].tolist()):
            total = total + head * (unit[0][channel] - unit[1][channel]).square().mean()
    return total


def half_size(video):
    rows = (video[..., 0::2, :] + video[..., 1::2, :]) / 2
    return (rows[..., 0::2] + rows[..., 1::2]) / 2


def views_by_hand(loss, video):
    """Return (discriminator, what it sees) for a still video: a frame, everything, everything at half the size."""
    return [
        (loss.discr, video[:, :, 0]),
        (loss.discr_3d, video),
        (loss.multiscale_discrs[0], half_size(video)),
    ]


def autoencoder_step_by_hand(loss, vgg, real, fake, aux, last_layer):
    recon = sum((f - r) ** 2 for f, r in zip(fake.flatten(), real.flatten(), strict=True)) / real.numel()
    perceptual = sum(lpips_by_hand(vgg, fake[b, :, 0], real[b, :, 0]) for b in range(len(real))) / len(real)
    total = recon + 0.7 * perceptual + 0.9 * aux
    weights = []
    reference = torch.autograd.grad(perceptual, last_layer, retain_graph=True)[0].float().norm()
    for (critic, view), term_weight in zip(views_by_hand(loss, fake), (0.3, 0.3, 0.2), strict=True):
        g = -sum(critic(view[b : b + 1]).logits[0] for b in range(len(view))) / len(view)
        norm = torch.autograd.grad(g, last_layer, retain_graph=True)[0].float().norm()
        weights.append(min((reference / max(norm, 1e-3)).item(), 1e3))
        total = total + term_weight * weights[-1] * g
    return total, {
        "reconstruction": {"loss": recon},
        "perceptual_loss": perceptual,
        "adaptive_weight": sum(weights) / 3,
    }


def discriminator_step_by_hand(loss, real, fake):
    hinge, penalty = 0, 0
    for (critic, real_view), (_, fake_view) in zip(views_by_hand(loss, real), views_by_hand(loss, fake), strict=True):
        for b in range(len(real)):
            sample = real_view[b : b + 1].detach().clone().requires_grad_()
            d_real, d_fake = critic(sample).logits[0], critic(fake_view[b : b + 1].detach()).logits[0]
            hinge = hinge + (F.relu(1 - d_real) + F.relu(1 + d_fake)) / len(real)
            (gradient,) = torch.autograd.grad(d_real, sample, create_graph=True)
            norm = sum(torch.dot(row, row) for row in gradient.flatten(0, -2)) ** 0.5
            penalty = penalty + (norm - 1) ** 2 / len(real)
    return hinge + 1.5 * penalty, {"discr_loss": hinge, "grad_penalty_loss": penalty}


def check_log(log, expected, tolerance):
    for name, value in expected.items():
        assert log[f"train/{name}"].item() == pytest.approx(torch.as_tensor(value).item(), rel=tolerance), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-4)])
class TestAgainstLoops:
    """Float64 is held to 1e-6 only because adaptive weights are ratios of float32 norms, and logs are float32."""

    @pytest.fixture
    def setup(self, make_loss, autoencoder, clip, dtype):
        loss = make_loss(**EVERYTHING).to(dtype)
        autoencoder.to(dtype)
        real = still(clip((2, 3, 4, 32, 32), dtype=dtype))
        return loss, autoencoder, real

    def test_the_autoencoders_step(self, setup, vgg, tolerance):
        loss, autoencoder, real = setup
        parameters = list(autoencoder.parameters())
        ours = []
        for by_hand in (False, True):
            fake = autoencoder(real)
            aux = autoencoder.encoder.weight.square().sum()
            if by_hand:
                total, expected = autoencoder_step_by_hand(loss, vgg, real, fake, aux, autoencoder.last_layer)
            else:
                total, log = loss(real, fake, 0, 0, aux_losses=aux, last_layer=autoencoder.last_layer)
            ours.append((total, *torch.autograd.grad(total, parameters)))
        check_log(log, {**expected, "aux_losses": aux, "total_loss": total}, tolerance)
        assert not 0.9 < expected["adaptive_weight"] < 1.1
        for our, theirs in zip(*ours, strict=True):
            torch.testing.assert_close(our, theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())

    def test_the_discriminators_step(self, setup, tolerance):
        loss, autoencoder, real = setup
        fake = autoencoder(real)
        total, log = loss(real, fake, 1, 0)
        expected_total, expected = discriminator_step_by_hand(loss, real, fake)
        check_log(log, {**expected, "total_disc_loss": expected_total}, tolerance)
        assert expected["grad_penalty_loss"] > 1e-3
        torch.testing.assert_close(total, expected_total, rtol=tolerance, atol=0)
        parameters = loss.get_trainable_parameters()
        gradients = [torch.autograd.grad(t, parameters, allow_unused=True) for t in (total, expected_total)]
        largest = max(gradient.abs().max().item() for gradient in gradients[1] if gradient is not None)
        for our, theirs in zip(*gradients, strict=True):
            assert (our is None) == (theirs is None)
            if our is not None:
                torch.testing.assert_close(our, theirs, rtol=tolerance, atol=tolerance * largest)


class TestLog:
    def check(self, log, names, split):
        assert {f"{split}/{name}" for name in names} <= set(log)
        for value in log.values():
            assert value.shape == ()
            assert value.dtype == torch.float32
            assert not value.requires_grad
            assert value.isfinite()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("autocast", [False, True])
    def test_float32_values_and_a_loss_of_at_least_float32(self, make_loss, clip, autoencoder, dtype, autocast):
        loss = make_loss(**EVERYTHING)
        real = clip((2, 3, 3, 16, 16), dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            fake = autoencoder(real.float()).to(dtype)
            for idx, names in ((0, AUTOENCODER_LOG), (1, DISCRIMINATOR_LOG)):
                total, log = loss(real, fake, idx, 0, aux_losses=torch.tensor(0.5).to(dtype), split="val")
                self.check(log, names, "val")
                assert total.shape == ()
                assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
                assert total.isfinite()
                total.backward()
        assert all(parameter.grad.isfinite().all() for parameter in autoencoder.parameters())

    def test_before_disc_start_and_without_discriminators(self, make_loss, clip):
        for loss in (make_loss(), make_loss(**{**EVERYTHING, "disc_start": 9})):
            self.check(loss(clip(), clip(seed=2), 0, 0)[1], AUTOENCODER_LOG, "train")

    def test_each_auxiliary_loss_is_logged_and_their_sum_is_weighted(self, make_loss, clip):
        loss = make_loss(perceptual_weight=0, quantizer_aux_loss_weight=10)
        kl = torch.tensor(2.0, requires_grad=True)
        total, log = loss(clip(), clip(), 0, 0, aux_losses={"kl_loss": kl, "commit": 0.5}, split="val")
        assert total.item() == pytest.approx(25)
        assert log["val/kl_loss"].item() == 2
        assert log["val/commit"].item() == 0.5
        assert log["val/aux_losses"].item() == 2.5
        total.backward()
        assert kl.grad.item() == 10

    @pytest.mark.parametrize("aux", [None, 3, 3.0, torch.tensor(3.0), torch.tensor([3.0])])
    def test_one_auxiliary_loss_in_every_form(self, make_loss, clip, aux):
        loss = make_loss(perceptual_weight=0, quantizer_aux_loss_weight=2)
        total, log = loss(clip(), clip(), 0, 0, aux_losses=aux)
        assert total.item() == (0 if aux is None else 6)
        assert log["train/aux_losses"].item() == (0 if aux is None else 3)
        assert "train/" not in log

    def test_an_auxiliary_loss_of_weight_0_is_logged_and_not_added(self, make_loss, clip):
        total, log = make_loss(perceptual_weight=0)(clip(), clip(), 0, 0, aux_losses=math.inf)
        assert total == 0
        assert log["train/aux_losses"] == math.inf

    def test_several_discriminators_are_logged_one_by_one(self, make_loss, make_judge, clip):
        loss = make_loss(
            adversarial_loss_weight=1,
            multiscale_adversarial_loss_weight=1,
            discr_kwargs=make_judge(1.0),
            discr_3d_kwargs=make_judge(2.0),
            multiscale_discr_kwargs=[make_judge(4.0)],
        )
        names = ("discr", "discr_3d", "multiscale_discrs.0")
        x = still(clip())
        _, log = loss(x, x, 0, 0)
        assert log["train/gen_loss"].item() == pytest.approx(-7 * x.mean().item(), rel=1e-4)
        for scale, name in zip((1, 2, 4), names, strict=True):
            assert log[f"train/gen_loss_{name}"].item() == pytest.approx(-scale * x.mean().item(), rel=1e-4)
            assert log[f"train/adaptive_weight_{name}"] == 1
        _, log = loss(x, x, 1, 0)
        assert {
            f"train/{kind}_{name}" for name in names for kind in ("discr_loss", "logits_real", "logits_fake")
        } < set(log)
        assert log["train/logits_real"].item() == pytest.approx(7 / 3 * x.mean().item(), rel=1e-4)

    def test_a_lone_multiscale_discriminator_is_logged(self, make_loss, make_judge, clip):
        loss = make_loss(multiscale_adversarial_loss_weight=1, multiscale_discr_kwargs=[make_judge()])
        _, log = loss(clip(), clip(), 0, 0)
        assert log["train/gen_loss"].item() == pytest.approx(-clip().mean().item(), rel=1e-4)


class TestAdaptiveWeight:
    def weight(self, loss, clip, autoencoder, **arguments):
        return loss(clip(), autoencoder(clip()), 0, 0, **arguments)[1]["train/adaptive_weight"].item()

    def test_it_is_one_where_it_cannot_be_had(self, make_loss, make_judge, clip, autoencoder):
        loss = make_loss(adversarial_loss_weight=1, discr_3d_kwargs=make_judge())
        last = autoencoder.last_layer
        assert self.weight(loss, clip, autoencoder, last_layer=last) not in (0, 1)
        assert self.weight(loss, clip, autoencoder) == 1
        with torch.no_grad():
            assert self.weight(loss, clip, autoencoder, last_layer=last) == 1
        blind = make_loss(adversarial_loss_weight=1, discr_3d_kwargs=make_judge(), perceptual_weight=0)
        assert self.weight(blind, clip, autoencoder, last_layer=last) == 1
        frozen = last.detach()
        assert self.weight(loss, clip, autoencoder, last_layer=frozen) == 1
        broken = make_loss(adversarial_loss_weight=1, discr_3d_kwargs=make_judge(float("nan")))
        assert self.weight(broken, clip, autoencoder, last_layer=last) == 1
        # Reconstructions without a graph, as in an evaluation that forgot to turn gradients off.
        _, log = loss(clip(), autoencoder(clip()).detach(), 0, 0, last_layer=last)
        assert log["train/adaptive_weight"] == 1

    def test_it_makes_the_term_independent_of_the_discriminators_scale(self, make_loss, make_judge, clip, autoencoder):
        """D and 8 D pull equally hard."""
        gradients = []
        for scale in (1.0, 8.0):
            loss = make_loss(
                adversarial_loss_weight=1, discr_3d_kwargs=make_judge(scale), perceptual={"num_frames": "all"}
            )
            total, _ = loss(clip(), autoencoder(clip()), 0, 0, last_layer=autoencoder.last_layer)
            gradients.append(torch.autograd.grad(total, autoencoder.last_layer)[0])
        torch.testing.assert_close(*gradients)

    def test_the_custom_reduction_is_used(self, make_loss, make_judge, clip, autoencoder):
        seen = []
        judge = {"adversarial_loss_weight": 1, "discr_3d_kwargs": make_judge()}
        loss = make_loss(**judge, reduce=lambda gradient: (seen.append(gradient.shape), torch.ones(4))[1])
        assert self.weight(loss, clip, autoencoder, last_layer=autoencoder.last_layer) == 1
        assert seen == [autoencoder.last_layer.shape] * 2


class TestOptions:
    @pytest.mark.parametrize(("frames", "expected"), [(1, 1), (3, 3), ("all", 5), (99, 5)])
    def test_perceptual_frames(self, make_loss, clip, frames, expected):
        loss = make_loss(perceptual={"num_frames": frames})
        seen = []
        loss.perceptual_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
        )
        real, fake = clip((2, 3, 5, 16, 16)), clip((2, 3, 5, 16, 16), seed=2)
        loss(real, fake, 0, 0)
        frames_seen = {side: torch.cat([call[side] for call in seen]) for side in ("target", "reconstruction")}
        assert frames_seen["target"].shape == (2 * expected, 3, 16, 16)
        for clip_index in range(2):
            chosen = frames_seen["target"][clip_index * expected : (clip_index + 1) * expected]
            partners = frames_seen["reconstruction"][clip_index * expected : (clip_index + 1) * expected]
            indices = [[torch.equal(frame, real[clip_index, :, t]) for t in range(5)].index(True) for frame in chosen]
            assert len(set(indices)) == expected
            assert all(torch.equal(p, fake[clip_index, :, t]) for p, t in zip(partners, indices, strict=True))

    def test_all_frames_give_the_mean_of_all(self, make_loss, clip, vgg):
        real, fake = clip((1, 3, 3, 16, 16)), clip((1, 3, 3, 16, 16), seed=2)
        _, log = make_loss(perceptual={"num_frames": "all"})(real, fake, 0, 0)
        expected = sum(lpips_by_hand(vgg, fake[0, :, t], real[0, :, t]) for t in range(3)) / 3
        assert log["train/perceptual_loss"].item() == pytest.approx(expected.item(), rel=1e-4)

    def test_every_frame_is_drawn_and_clips_independently(self, make_loss, make_judge, clip):
        loss = make_loss(perceptual_weight=0, adversarial_loss_weight=1, discr_kwargs=make_judge())
        x = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(2, 3, 4, 16, 16) / 10
        torch.manual_seed(0)
        for _ in range(100):
            loss(x, x, 0, 0)
        pairs = {tuple(round(10 * frame.mean().item()) for frame in frames) for frames in loss.discr.seen}
        assert pairs == {(i, j) for i in range(4) for j in range(4)}

    def test_real_and_fake_are_judged_on_the_same_frame(self, make_loss, make_judge, clip):
        loss = make_loss(perceptual_weight=0, discr_kwargs=make_judge())
        x = clip()
        for _ in range(5):
            loss(x, -x, 1, 0)
            real, fake = loss.discr.seen[-2:]
            assert real.shape == (2, 3, 16, 16)
            assert torch.equal(real, -fake)

    def test_a_generator_makes_it_reproducible(self, make_loss, clip):
        loss = make_loss(generator=torch.Generator(), **EVERYTHING)
        logs = []
        for _ in range(2):
            loss.generator.manual_seed(3)
            logs.append([loss(clip(), clip(seed=2), idx, 0)[1] for idx in (0, 1)])
            torch.rand(3)  # the global source does not matter
        assert logs[0] == logs[1]
        assert len({loss(clip(), clip(seed=2), 0, 0)[1]["train/perceptual_loss"].item() for _ in range(8)}) > 1

    def test_disc_train_start(self, make_loss, clip):
        loss = make_loss(**{**EVERYTHING, "gan": {"disc_train_start": 3}})
        for step, trains in ((0, False), (2, False), (3, True), (4, True)):
            total, log = loss(clip(), clip(seed=2), 1, step)
            assert (total != 0) == trains
            assert set(DISCRIMINATOR_LOG) <= {name.removeprefix("train/") for name in log}
            loss.zero_grad()
            total.backward()
            assert any(weight.grad is not None for weight in loss.get_trainable_parameters()) == trains

    def test_discriminators_train_before_disc_start(self, make_loss, clip):
        loss = make_loss(**{**EVERYTHING, "disc_start": 100})
        assert loss(clip(), clip(seed=2), 1, 0)[0] != 0

    @pytest.mark.parametrize("every", [1, 4])
    def test_grad_penalty_every(self, make_loss, clip, every):
        loss = make_loss(discr_3d_kwargs=VIDEO, grad_penalty_loss_weight=2, penalty={"every": every})
        for step in range(9):
            total, log = loss(clip(), clip(seed=2), 1, step)
            penalty = log["train/grad_penalty_loss"]
            assert (penalty > 0) == (step % every == 0)
            assert (total - log["train/discr_loss"]).item() == pytest.approx(2 * every * penalty.item(), rel=1e-5)

    def test_the_penalty_is_not_computed_at_weight_0(self, make_loss, clip):
        _, log = make_loss(discr_3d_kwargs=VIDEO)(clip(), clip(seed=2), 1, 0)
        assert log["train/grad_penalty_loss"] == 0

    def test_a_missing_perceptual_weight_needs_no_vgg(self):
        loss = VideoAutoencoderLoss(0, perceptual_weight=0, vgg_weights="nowhere.pth")
        assert loss.perceptual_model is None
        x = torch.zeros(1, 1, 2, 8, 8)
        assert loss(x, x + 1, 0, 0)[0] == 1

    def test_modules_arguments_and_targets(self, make_loss, make_judge):
        judge = make_judge()
        target = {
            "target": "sat.sgm.modules.autoencoding.losses.video_loss.Discriminator3DWithfirstframe",
            "params": VIDEO,
        }
        loss = make_loss(discr_kwargs=IMAGE, discr_3d_kwargs=target, multiscale_discr_kwargs=[judge, VIDEO])
        kinds = [type(critic.module).__name__ for critic in loss.critics + loss.multiscale_critics]
        assert kinds == ["Discriminator", "Discriminator3DWithfirstframe", "Judge", "Discriminator3D"]
        assert loss.multiscale_discrs[0] is judge

    def test_scales(self, make_loss, make_judge, clip):
        loss = make_loss(multiscale_adversarial_loss_weight=1, multiscale_discr_kwargs=[make_judge(), make_judge()])
        loss(clip(), clip(), 0, 0)
        loss(clip(), clip(), 1, 0)
        for module, size in zip(loss.multiscale_discrs, (8, 4), strict=True):
            assert [tuple(view.shape) for view in module.seen] == [(2, 3, 4, size, size)] * 3


class TestPromises:
    def test_the_callers_tensors_stay_as_they_are(self, make_loss, clip, autoencoder):
        loss = make_loss(**EVERYTHING)
        real, fake = clip(), autoencoder(clip())
        aux, last = torch.tensor(1.0), autoencoder.last_layer
        before = [(t.detach().clone(), t.requires_grad, t._version) for t in (real, fake, aux, last)]
        torch.autograd.grad(loss(real, fake, 0, 0, aux_losses=aux, last_layer=last)[0], fake)
        loss(real, fake, 1, 0)[0].backward()
        for tensor, (value, requires_grad, version) in zip((real, fake, aux, last), before, strict=True):
            assert torch.equal(tensor, value)
            assert tensor.requires_grad == requires_grad
            assert tensor._version == version
        assert real.grad is aux.grad is last.grad is None

    def test_an_input_that_requires_a_gradient_gets_none(self, make_loss, clip):
        real = clip().requires_grad_()
        loss = make_loss(**EVERYTHING)
        fake = clip(seed=2).requires_grad_()
        loss(real, fake, 0, 0)[0].backward()
        assert fake.grad is not None
        fake.grad = None
        loss(real, fake, 1, 0)[0].backward()
        assert real.grad is None
        assert fake.grad is None

    def test_the_state_dict_holds_the_discriminators_only(self, make_loss):
        loss = make_loss(**EVERYTHING)
        assert {name.split(".")[0] for name in loss.state_dict()} == {"discr", "discr_3d", "multiscale_discrs"}
        assert make_loss().state_dict() == {}
        other = make_loss(seed=1, **EVERYTHING)
        other.load_state_dict(loss.state_dict(), strict=True)
        assert all(map(torch.equal, other.state_dict().values(), loss.state_dict().values()))

    def test_the_frozen_lpips_of_a_published_checkpoint_is_passed_over(self, make_loss):
        loss = make_loss(**EVERYTHING)
        theirs = {**loss.state_dict(), "perceptual_model.net.slice1.0.weight": torch.zeros(1)}
        loss.load_state_dict(theirs, strict=True)
        engine = nn.ModuleDict({"loss": loss})
        engine.load_state_dict({f"loss.{name}": weight for name, weight in theirs.items()}, strict=True)
        assert "perceptual_model.net.slice1.0.weight" in theirs
        with pytest.raises(RuntimeError, match="Unexpected"):
            loss.load_state_dict({**theirs, "stranger": torch.zeros(1)}, strict=True)

    def test_trainable_parameters(self, make_loss):
        loss = make_loss(**EVERYTHING)
        trainable = list(loss.get_trainable_parameters())
        assert {id(p) for p in trainable} == {id(p) for p in loss.parameters()}
        assert len(trainable) == len({id(p) for p in trainable}) > 0
        assert list(make_loss().get_trainable_parameters()) == []

    @pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
    def test_copies(self, make_loss, clip, way):
        loss = make_loss(**{**EVERYTHING, "perceptual": {"num_frames": "all"}})
        loss(clip(), clip(seed=2), 1, 0)[0].backward()
        if way == "deepcopy":
            copied = copy.deepcopy(loss)
        elif way == "pickle":
            copied = pickle.loads(pickle.dumps(loss))
        else:
            file = io.BytesIO()
            torch.save(loss, file)
            file.seek(0)
            copied = torch.load(file, weights_only=False)
        logs = []
        for each in (loss, copied):
            torch.manual_seed(0)
            logs.append([each(clip(), clip(seed=2), idx, 0)[1] for idx in (0, 1)])
        assert logs[0] == logs[1]
        assert not {id(p) for p in loss.parameters()} & {id(p) for p in copied.parameters()}

    def test_a_copy_with_a_generator(self, make_loss):
        loss = make_loss(perceptual_weight=0, generator=torch.Generator().manual_seed(7))
        for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert copied.generator.initial_seed() == 7

    def test_training_and_evaluation_mode_are_the_same(self, make_loss, clip):
        loss = make_loss(generator=torch.Generator(), **EVERYTHING)
        values = []
        for mode in (True, False, True):
            loss.train(mode)
            loss.generator.manual_seed(0)
            values.append([loss(clip(), clip(seed=2), idx, 0)[0].item() for idx in (0, 1)])
        assert values[0] == values[1] == values[2]
        assert not any(module.training for module in loss.perceptual_model.distance.modules())
        assert loss.training

    def test_moving_the_loss_moves_all_of_it(self, make_loss, clip):
        loss = make_loss(**EVERYTHING).double()
        total, _ = loss(clip(dtype=torch.float64), clip(seed=2, dtype=torch.float64), 0, 0)
        assert total.dtype == torch.float64
        assert all(parameter.dtype == torch.float64 for parameter in loss.parameters())

    def test_perfect_reconstructions_cost_nothing(self, make_loss, clip):
        total, _ = make_loss()(clip(), clip(), 0, 0)
        assert total == 0

    def test_reconstructions_may_leave_the_range(self, make_loss, clip):
        assert make_loss()(clip(), 40 * clip(seed=2), 0, 0)[0].isfinite()
