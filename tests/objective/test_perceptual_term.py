"""The perceptual term: its network, the frames that it compares, chunks, and terms of its features."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VGG16_Weights

from telecine import VideoAutoencoderLoss
from telecine.losses.perceptual import LPIPS


def absolute_distance(*, reconstruction, target):
    return (reconstruction - target).abs().mean((1, 2, 3))


def inputs_of(distance):
    """Return a list that collects the frames of every call."""
    calls = []
    distance.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    return calls


class TestNetworks:
    @pytest.mark.slow
    def test_alex_by_name_and_as_an_object(self, cached_weights, clip):
        x = clip((1, 3, 2, 32, 32))
        y = clip((1, 3, 2, 32, 32), seed=2)
        lpips = LPIPS("alex")
        expected = lpips(
            reconstruction=y.transpose(1, 2).flatten(0, 1), target=x.transpose(1, 2).flatten(0, 1)
        ).mean()
        for net in ("alex", lpips):
            loss = VideoAutoencoderLoss(0, perceptual={"net": net, "num_frames": "all"})
            log = loss(x, y, 0, 0)[1]
            torch.testing.assert_close(log["train/perceptual_loss"], expected)
        assert loss.perceptual.distance is lpips

    def test_a_function(self, pair):
        perceptual = {"net": absolute_distance, "num_frames": "all"}
        loss = VideoAutoencoderLoss(0, perceptual=perceptual, perceptual_weight=2)
        total, log = loss(*pair, 0, 0)
        torch.testing.assert_close(log["train/perceptual_loss"], F.l1_loss(*pair).detach())
        torch.testing.assert_close(total, F.mse_loss(*pair) + 2 * F.l1_loss(*pair))

    def test_a_function_that_returns_something_else(self, pair):
        def distance(*, reconstruction, target):
            return (reconstruction - target).square()

        with pytest.raises(ValueError, match="`net` must be"):
            VideoAutoencoderLoss(0, perceptual={"net": distance})(*pair, 0, 0)

    def test_a_module_is_frozen_and_not_saved(self, pair):
        net = nn.Conv2d(3, 4, 3)
        module = nn.Module()
        module.net = net
        module.forward = lambda *, reconstruction, target: (
            (net(reconstruction) - net(target)).abs().mean((1, 2, 3))
        )
        loss = VideoAutoencoderLoss(0, perceptual={"net": module})
        loss(*pair, 0, 0)[0].backward()
        assert net.weight.grad is None
        assert loss.state_dict() == {}
        assert list(loss.parameters()) == []

    def test_a_term_of_features_returns_one_value_per_frame(self, make_loss, clip):
        def mean(reconstruction_features, target_features):
            return (reconstruction_features[0] - target_features[0]).abs().mean()

        with pytest.raises(
            ValueError,
            match=r"the result of the term x must be of shape \(2,\), one value per frame",
        ):
            make_loss(terms={"x": {"target": mean}})(clip(), clip(seed=2), 0, 0)

    @pytest.mark.parametrize("eager", [True, False])
    @pytest.mark.parametrize("chunk_size", [None, 1])
    def test_the_weights_of_a_term_of_features_are_trained(
        self, make_loss, clip, eager, chunk_size
    ):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.factor = nn.Parameter(torch.tensor(2.0))
                self.offset = nn.Parameter(torch.zeros(()), requires_grad=False)

            def forward(self, target_features):
                return self.factor * target_features[-1].mean((1, 2, 3))

        perceptual = {"num_frames": "all", "chunk_size": chunk_size}
        loss = make_loss(
            terms={"scaled": {"target": Scaled, "weight": 0.5}},
            perceptual=perceptual,
            eager_gradients=eager,
        )
        (factor,) = loss.get_trainable_autoencoder_parameters()
        total, log = loss(clip(), clip(seed=2).requires_grad_(), 0, 0)
        (3 * total).backward()
        torch.testing.assert_close(factor.grad, 3 * 0.5 * log["train/scaled_loss"] / 2)

    def test_a_term_of_features_needs_a_network_with_features(self):
        message = (
            r'`terms` must be without terms of features .*but got \'gram\'. Use "vgg" or "alex"'
        )
        with pytest.raises(ValueError, match=message):
            VideoAutoencoderLoss(
                0, perceptual={"net": absolute_distance}, terms={"wavelet": 1, "gram": 1}
            )

    @pytest.mark.parametrize("net", ["alex", absolute_distance])
    def test_weights_of_vgg_for_another_network(self, vgg, net):
        with pytest.raises(
            ValueError,
            match=r'`vgg_weights` must be left out unless `perceptual.net` is "vgg", but got',
        ):
            VideoAutoencoderLoss(0, perceptual={"net": net}, vgg_weights=vgg)

    def test_the_default_weights_of_vgg_can_be_passed_with_every_network(self):
        loss = VideoAutoencoderLoss(
            0, perceptual={"net": absolute_distance}, vgg_weights=VGG16_Weights.DEFAULT
        )
        assert loss.perceptual.distance is not None

    def test_without_a_weight_no_network_is_built(self):
        loss = VideoAutoencoderLoss(
            0, perceptual_weight=0, vgg_weights="nowhere.pth", terms={"gram": 0}
        )
        assert loss.perceptual.distance is None
        x = torch.zeros(1, 1, 2, 8, 8)
        assert loss(x, x + 1, 0, 0)[0] == 1

    def test_a_weight_of_0_at_this_step_computes_nothing(self, make_loss, pair):
        loss = make_loss(
            perceptual_weight={"weight": 1, "start": 5},
            terms={"gram": {"weight": {"weight": 1, "start": 3}}},
        )
        calls = inputs_of(loss.perceptual.distance)
        assert [len(calls) for step in (0, 2, 3, 5) if loss(*pair, 0, step)] == [0, 0, 1, 2]


class TestFrames:
    @pytest.mark.parametrize(("frames", "expected"), [(1, 1), (3, 3), ("all", 5), (99, 5)])
    @pytest.mark.parametrize("eager", [True, False])
    def test_number(self, make_loss, clip, frames, expected, eager):
        loss = make_loss(perceptual={"num_frames": frames}, eager_gradients=eager)
        calls = inputs_of(loss.perceptual.distance)
        real = clip((2, 3, 5, 16, 16))
        fake = clip((2, 3, 5, 16, 16), seed=2)
        loss(real, fake, 0, 0)
        assert len(calls) == (expected if eager else 1), "one frame of each clip at a time"
        targets = torch.cat([call["target"] for call in calls]).unflatten(0, (2, expected))
        reconstructions = torch.cat([call["reconstruction"] for call in calls]).unflatten(
            0, (2, expected)
        )
        for b in range(2):
            indices = [
                [torch.equal(frame, real[b, :, t]) for t in range(5)].index(True)
                for frame in targets[b]
            ]
            assert len(set(indices)) == expected
            assert torch.equal(reconstructions[b], fake[b, :, indices].transpose(0, 1))

    @pytest.mark.parametrize("eager", [True, False])
    def test_chunks_change_nothing(self, make_loss, pair, eager):
        def run(chunk_size):
            perceptual = {"num_frames": "all", "chunk_size": chunk_size}
            loss = make_loss(perceptual=perceptual, terms={"gram": 1}, eager_gradients=eager)
            calls = inputs_of(loss.perceptual.distance)
            total, _ = loss(*pair, 0, 0, sample_weight=torch.tensor([0.5, 3.0]))
            return (
                [len(call["target"]) for call in calls],
                total,
                torch.autograd.grad(total, pair[1])[0],
            )

        whole = run(None)
        chunks = run(3)
        assert whole[0] == ([2] * 4 if eager else [8])
        assert chunks[0] == [3, 3, 2]
        torch.testing.assert_close(chunks[1:], whole[1:])

    def test_the_backward_computes_each_of_several_chunks_again(self, make_loss, pair):
        def num_frames_of_calls(chunk_size):
            perceptual = {"num_frames": "all", "chunk_size": chunk_size}
            loss = make_loss(perceptual=perceptual, eager_gradients=False)
            calls = inputs_of(loss.perceptual.distance)
            loss(*pair, 0, 0)[0].backward()
            return [len(call["target"]) for call in calls]

        assert num_frames_of_calls(3) == [3, 3, 2, 2, 3, 3]
        assert num_frames_of_calls(8) == [8]
