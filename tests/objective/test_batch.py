"""Masks and the weights of clips, in every term."""

import pytest
import torch
from torch.nn import functional as F

from telecine.objective.region import clip_weights, frame_weights, share, within

EVERYTHING = {
    "adversarial_loss_weight": 0.5,
    "gan": {"feature_matching_loss_weight": 0.5},
    "terms": {"wavelet": 0.5, "temporal": 0.5, "gram": 0.5},
    "adaptive_weight": {"reference": "none"},
    "perceptual": {"num_frames": "all"},
    "discr_3d_kwargs": {"dim": 1, "image_size": 16, "frame_num": 4},
}


def left_half(like):
    mask = torch.zeros(1, 1, 1, *like.shape[-2:], dtype=torch.bool)
    mask[..., : like.shape[-1] // 2] = True
    return mask


def test_outside_of_the_mask_the_reconstruction_is_the_input():
    x, y = torch.zeros(2, 3, 2, 4, 4), torch.ones(2, 3, 2, 4, 4)
    seen = within(left_half(x), reconstruction=y, target=x)
    assert torch.equal(seen[..., :2], y[..., :2])
    assert torch.equal(seen[..., 2:], x[..., 2:])
    assert within(None, reconstruction=y, target=x) is y


def test_nan_outside_of_the_mask_does_not_matter(make_loss, clip):
    x, y = clip(), clip(seed=2)
    x[..., 9:] = y[..., 8:] = float("nan")
    y.requires_grad_()
    loss = make_loss(**EVERYTHING)
    total, _ = loss(x, y, 0, 0, mask=left_half(x))
    total.backward()
    assert total.isfinite()
    assert y.grad.isfinite().all()
    assert (y.grad[..., 8:] == 0).all()
    assert (y.grad[..., :8] != 0).any()
    assert loss(x, y, 1, 0, mask=left_half(x))[0].isfinite()


def test_weights_of_clips():
    like = torch.zeros(2, 3, 2, 4, 4)
    given = torch.tensor([1.0, 3.0])
    half, nothing = left_half(like), torch.zeros_like(left_half(like))
    assert clip_weights(share(None, like=like), None, like=like) is None
    assert clip_weights(share(None, like=like), given, like=like).tolist() == [1, 3]
    assert clip_weights(share(half, like=like), given, like=like).tolist() == [2, 6]
    assert clip_weights(share(half, like=like), None, like=like).tolist() == [2, 2]
    assert clip_weights(share(nothing, like=like), given, like=like).tolist() == [0, 0]


def test_frame_weights():
    indices = torch.tensor([[0, 3], [1, 2]])
    assert frame_weights(None, indices).tolist() == [0.25] * 4
    assert frame_weights(torch.tensor([2.0, 0.5]), indices).tolist() == [0.5, 0.5, 0.125, 0.125]


@pytest.mark.parametrize("recon_loss", ["mse", "l1", "charbonnier"])
def test_errors_are_means_over_what_counts(make_loss, clip, recon_loss):
    x, y = clip(), clip(seed=2)
    mask = torch.rand(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.7
    loss = make_loss(perceptual_weight=0, reconstruction={"loss": recon_loss})
    counted = mask.expand_as(x)
    error = {"mse": F.mse_loss, "l1": F.l1_loss}.get(recon_loss, lambda a, b: ((a - b) ** 2 + 1e-6).sqrt().mean())
    got = loss(x, y, 0, 0, mask=mask)[1]["train/recon_loss"].item()
    floor = 1e-3 * (~counted).sum() / counted.sum() if recon_loss == "charbonnier" else 0.0
    assert got == pytest.approx(float(error(x[counted], y[counted]) + floor), rel=1e-5)


def test_weights_multiply_each_clips_errors(make_loss, clip):
    arguments = {**EVERYTHING, "adversarial_loss_weight": 0, "gan": {"feature_matching_loss_weight": 0}}
    del arguments["discr_3d_kwargs"]
    loss = make_loss(**arguments)
    x, y = clip(), clip(seed=2)
    alone = [loss(x[b : b + 1], y[b : b + 1], 0, 0)[0] for b in range(2)]
    weighted = loss(x, y, 0, 0, sample_weight=torch.tensor([0.5, 3.0]))[0]
    torch.testing.assert_close(weighted, (0.5 * alone[0] + 3 * alone[1]) / 2)
    torch.testing.assert_close(loss(x, y, 0, 0, sample_weight=torch.ones(2))[0], loss(x, y, 0, 0)[0])


def test_a_mask_of_everything_changes_nothing(make_loss, clip):
    loss = make_loss(**EVERYTHING)
    x, y = clip(), clip(seed=2)
    mask = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
    for index in (0, 1):
        torch.testing.assert_close(loss(x, y, index, 0, mask=mask)[0], loss(x, y, index, 0)[0])


def test_a_mask_of_nothing_is_no_error(make_loss, clip):
    loss = make_loss(terms={"temporal": 1, "wavelet": 1, "gram": 1})
    y = clip(seed=2).requires_grad_()
    total, _ = loss(clip(), y, 0, 0, mask=torch.zeros(1, 1, 1, 1, 1, dtype=torch.bool))
    total.backward()
    assert total.item() == 0
    assert (y.grad == 0).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 1, 4, 16, 16), r"`mask` must be a bool tensor that broadcasts to \(2, 3, 4, 16, 16\)"),
        (torch.ones(4, 16, 16, dtype=torch.bool), "`mask` must be .*Keep all five axes"),
        (torch.ones(2, 1, 3, 16, 16, dtype=torch.bool), "`mask` must be .*Keep all five axes"),
        ([True], "`mask` must be a bool tensor"),
    ],
)
def test_bad_masks(make_loss, clip, mask, message):
    with pytest.raises(ValueError, match=message):
        make_loss()(clip(), clip(), 0, 0, mask=mask)


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(2, 1), torch.ones(2, dtype=torch.int64), [1.0, 2.0], 1.0])
def test_bad_weights_of_clips(make_loss, clip, weight):
    with pytest.raises(ValueError, match=r"`sample_weight` must be a floating-point tensor of shape \(2,\)"):
        make_loss()(clip(), clip(), 0, 0, sample_weight=weight)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("recon_loss", ["mse", "l1"])
def test_frames_that_are_masked_out_might_as_well_be_cut_off(make_loss, clip, reduction, recon_loss):
    loss = make_loss(
        perceptual_weight=0, reconstruction={"loss": recon_loss, "nll_reduction": reduction}, terms={"temporal": 1}
    )
    x, y = clip(), clip(seed=2)
    mask = (torch.arange(4) < 2).view(1, 1, 4, 1, 1)
    total, log = loss(x, y, 0, 0, mask=mask, sample_weight=torch.tensor([0.5, 2.0]))
    expected, log_2 = loss(x[:, :, :2], y[:, :, :2], 0, 0, sample_weight=torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(log, log_2)


def test_the_adaptive_weight_at_a_masked_reconstruction(make_loss, clip):
    """Gradients are compared at the whole reconstruction, of which the masked part has none."""
    options = {
        "adversarial_loss_weight": 1,
        "adaptive_weight": {"at": "reconstruction"},
        "perceptual": {"num_frames": "all"},
    }
    loss = make_loss(**options, discr_3d_kwargs={"dim": 1, "image_size": 16, "frame_num": 4})
    x, y = clip(), clip(seed=2).requires_grad_()
    weight = loss(x, y, 0, 0, mask=left_half(x))[1]["train/adaptive_weight"]
    composed = torch.where(left_half(x), y.detach(), x).requires_grad_()
    frames = [video.transpose(1, 2).flatten(0, 1) for video in (composed, x)]
    lpips = 2 * loss.perceptual_model(reconstruction=frames[0], target=frames[1]).lpips.mean()
    g = -loss.discr_3d(composed).logits.mean()
    norms = [torch.autograd.grad(t, composed)[0][..., :8].norm() for t in (lpips, g)]
    torch.testing.assert_close(weight, norms[0] / norms[1].clamp(min=1e-3), rtol=1e-4, atol=1e-6)
