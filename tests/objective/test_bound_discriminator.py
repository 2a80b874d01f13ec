"""The input of each discriminator, and the checks that every weight has a discriminator of the right kind."""

import pytest
import torch
from torch import nn

from telecine import PatchDiscriminator, PatchDiscriminator3D
from telecine.objective.bound_discriminator import BoundDiscriminator

INDICES = torch.tensor([[2], [0], [3]])


def build(module=None, sees="video", factor=1):
    module = nn.Flatten() if module is None else module
    return BoundDiscriminator("discr_3d", module, sees, factor=factor)


@pytest.mark.parametrize(("factor", "size"), [(2, (8, 8)), (2, (7, 9)), (4, (16, 5))])
def test_down_scaled_videos_are_means_of_cells(factor, size):
    x = torch.randn(2, 3, 2, *size, dtype=torch.float64)
    small = build(factor=factor).input_of(x, INDICES)
    assert small.shape == (2, 3, 2, *(-(-n // factor) for n in size))
    for row in range(small.shape[-2]):
        for column in range(small.shape[-1]):
            cell = x[
                ..., row * factor : (row + 1) * factor, column * factor : (column + 1) * factor
            ]
            torch.testing.assert_close(small[..., row, column], cell.mean((-1, -2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_videos_are_scaled_down(dtype):
    small = build(factor=2).input_of(torch.ones(1, 3, 1, 4, 4, dtype=dtype), INDICES)
    assert small.dtype == torch.float32
    assert small.eq(1).all()


def test_inputs_are_cast_to_the_parameters_type():
    x = torch.zeros(1, 4)
    assert build(nn.Linear(4, 1).double())(x.bfloat16()).logits.dtype == torch.float64
    assert build()(x.half()).logits.dtype == torch.float16, "there are no parameters"


def test_a_discriminator_of_the_wrong_kind(make_loss):
    with pytest.raises(
        ValueError,
        match=r"`discr_kwargs` must be a discriminator of frames, .*PatchDiscriminator3D",
    ):
        make_loss(
            discr_kwargs={"target": "telecine.PatchDiscriminator3D", "params": {"base_channels": 1}}
        )
    with pytest.raises(
        ValueError, match=r"`discr_3d_kwargs` must be a discriminator of video, .*one of frames"
    ):
        make_loss(discr_3d_kwargs=PatchDiscriminator(base_channels=1))
    assert isinstance(
        make_loss(discr_3d_kwargs=PatchDiscriminator3D(base_channels=1)).discr_3d,
        PatchDiscriminator3D,
    )


def test_each_argument_of_a_discriminator_is_named(make_loss):
    for name in ("discr_kwargs", "discr_3d_kwargs"):
        message = rf"`{name}` must be arguments of .*'imagesize'.*Did you mean `image_size`"
        with pytest.raises(ValueError, match=message):
            make_loss(**{name: {"imagesize": 16}})
    with pytest.raises(
        ValueError, match=r"`multiscale_discr_kwargs\[0\]` must be arguments of .*'imagesize'"
    ):
        make_loss(multiscale_discr_kwargs=[{"imagesize": 16}])


@pytest.mark.parametrize("one", [{"dim": 2}, nn.Sequential(nn.Flatten())])
def test_a_single_discriminator_of_a_scale(make_loss, one):
    message = (
        r"`multiscale_discr_kwargs` must be a list, but got (dict|Sequential). Put it into a list"
    )
    with pytest.raises(ValueError, match=message):
        make_loss(multiscale_discr_kwargs=one)


def test_a_discriminator_without_gradient_checkpointing(make_loss, make_discriminator):
    message = r"`gradient_checkpointing` must be False .*a MeanDiscriminator as `discr_3d`"
    with pytest.raises(ValueError, match=message):
        make_loss(gradient_checkpointing=True, discr_3d_kwargs=make_discriminator())
