"""What each discriminator is shown."""

import pytest
import torch
from torch import nn

from telecine import Discriminator, Discriminator3D, PatchDiscriminator
from telecine.objective.critics import Critic, build_critic, one_frame, scaled_down, view_of, whole_video


def test_the_whole_video():
    x = torch.randn(2, 3, 4, 5, 6)
    assert whole_video(x, torch.zeros(2, 1, dtype=torch.int64)) is x


def test_one_frame_of_each_clip():
    x = torch.randn(3, 2, 4, 5, 6)
    frames = one_frame(x, torch.tensor([[2], [0], [3]]))
    assert torch.equal(frames, torch.stack([x[0, :, 2], x[1, :, 0], x[2, :, 3]]))


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (16, 5)])
def test_scaled_down_are_means_of_cells(factor, size):
    x = torch.randn(2, 3, 2, *size, dtype=torch.float64)
    small = scaled_down(factor)(x, torch.zeros(2, 1, dtype=torch.int64))
    assert small.shape == (2, 3, 2, *(-(-n // factor) for n in size))
    for row in range(small.shape[-2]):
        for column in range(small.shape[-1]):
            cell = x[..., row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            torch.testing.assert_close(small[..., row, column], cell.mean((-1, -2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_videos_are_scaled_down(dtype):
    assert scaled_down(2)(torch.ones(1, 3, 1, 4, 4, dtype=dtype), None).eq(1).all()


def test_a_view_is_cast_to_the_parameters_type():
    critic = Critic("discr", nn.Linear(4, 1).double(), whole_video)
    assert critic.judge(torch.zeros(1, 4, dtype=torch.bfloat16)).logits.dtype == torch.float64
    assert Critic("discr", nn.Flatten(), whole_video).judge(torch.zeros(1, 4).half()).logits.dtype == torch.float16


def test_one_frame_of_the_scaled_video():
    x = torch.randn(2, 3, 4, 8, 8)
    indices = torch.tensor([[3], [1]])
    seen = scaled_down(2, one_frame)(x, indices)
    torch.testing.assert_close(seen, scaled_down(2)(one_frame(x, indices)[:, :, None], indices)[:, :, 0])


def test_the_view_that_a_discriminator_asks_for():
    assert view_of(PatchDiscriminator(dim=1)) is one_frame
    assert view_of(Discriminator3D(dim=1, image_size=16, frame_num=2)) is whole_video
    assert view_of(nn.Flatten()) is whole_video


def test_a_discriminator_of_the_wrong_kind_is_refused():
    frames = {"default": Discriminator, "name": "discr_kwargs", "sees": "frames"}
    assert build_critic(None, **frames) is None
    assert isinstance(build_critic({"dim": 1, "image_size": 16}, **frames), Discriminator)
    own = nn.Flatten()
    assert build_critic(own, **frames) is own
    with pytest.raises(ValueError, match=r"`discr_kwargs` must be a discriminator of frames, .*PatchDiscriminator3D"):
        build_critic({"target": "telecine.PatchDiscriminator3D", "params": {"dim": 1}}, **frames)
    with pytest.raises(ValueError, match=r"`discr_3d_kwargs` must be a discriminator of video, .*one of frames"):
        build_critic(PatchDiscriminator(dim=1), default=Discriminator3D, name="discr_3d_kwargs", sees="video")


def test_a_key_of_a_module_dict():
    assert Critic("multiscale_discrs.0", nn.Flatten(), whole_video).key == "multiscale_discrs_0"


def test_a_discriminator_that_cannot_keep_less(make_loss, make_judge):
    with pytest.raises(ValueError, match=r"`gradient_checkpointing` must be False .*a Judge as `discr_3d`"):
        make_loss(gradient_checkpointing=True, discr_3d_kwargs=make_judge())
