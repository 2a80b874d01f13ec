"""Any batch, number of frames, height and width: every pixel counts and no clip sees another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.discriminators import Discriminator, Discriminator3D, Discriminator3DWithfirstframe

VIDEO_CLASSES = (Discriminator3D, Discriminator3DWithfirstframe)
LENGTHS = (1, 2, 3, 4, 5, 8, 9, 13, 16, 17, 33)
SMALL = {"dim": 1, "linear_attn_heads": 2, "linear_attn_dim_head": 4, "max_dim": 8}


def build(cls, seed=0, **config):
    torch.manual_seed(seed)
    return cls(**{**SMALL, **config}).double()


def check_every_pixel_counts(network, shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    logits = network(x)
    assert logits.shape == shape[:1]
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert (gradient != 0).all()


@pytest.mark.parametrize("cls", VIDEO_CLASSES)
@pytest.mark.parametrize("frame_num", [1, 5, 8, 16])
@pytest.mark.parametrize("time", LENGTHS)
def test_any_number_of_frames(cls, frame_num, time):
    check_every_pixel_counts(build(cls, image_size=16, frame_num=frame_num), (2, 3, time, 16, 16))


@pytest.mark.parametrize("cls", VIDEO_CLASSES)
@pytest.mark.parametrize("size", [(60, 90), (48, 80), (17, 31), (16, 16), (33, 16), (64, 64)])
@pytest.mark.parametrize("built_for", [16, "itself", 128])
def test_any_height_and_width(cls, size, built_for):
    network = build(cls, image_size=size if built_for == "itself" else built_for, frame_num=8)
    check_every_pixel_counts(network, (1, 3, 5, *size))


@pytest.mark.parametrize("size", [(60, 90), (48, 80), (17, 31), (16, 16), (33, 16), (64, 64)])
@pytest.mark.parametrize("built_for", [16, "itself", 128])
@pytest.mark.parametrize("antialiased", [False, True])
def test_any_image(size, built_for, antialiased):
    size_built = size if built_for == "itself" else built_for
    network = build(Discriminator, image_size=size_built, antialiased_downsample=antialiased)
    check_every_pixel_counts(network, (2, 3, *size))


@settings(max_examples=12, deadline=None)
@given(
    cls=st.sampled_from(VIDEO_CLASSES),
    built=st.tuples(st.integers(16, 80), st.integers(16, 80), st.integers(1, 70)),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(16, 40), st.integers(16, 40)),
    antialiased=st.booleans(),
)
def test_any_network_takes_any_video(cls, built, shape, antialiased):
    network = build(cls, image_size=built[:2], frame_num=built[2], antialiased_downsample=antialiased)
    check_every_pixel_counts(network, (shape[0], 3, *shape[1:]))


@pytest.mark.parametrize("cls", VIDEO_CLASSES)
def test_a_network_for_large_long_clips_takes_small_short_ones(cls):
    """Space ends before the blocks do."""
    network = build(cls, image_size=256, frame_num=64)
    for time in (1, 3, 64):
        check_every_pixel_counts(network, (1, 3, time, 16, 17))


@pytest.mark.parametrize("cls", VIDEO_CLASSES)
@pytest.mark.parametrize("time", [1, 5, 16])
@pytest.mark.parametrize("batch", range(1, 10))
def test_clips_do_not_see_each_other(cls, time, batch):
    network = build(cls, image_size=16, frame_num=8)
    x = torch.randn(batch, 3, time, 16, 17, dtype=torch.float64, requires_grad=True)
    logits = network(x)
    for index in range(batch):
        torch.testing.assert_close(logits[index : index + 1], network(x[index : index + 1]))
    (gradient,) = torch.autograd.grad(logits[0], x)
    assert gradient[1:].abs().sum() == 0
    assert gradient[0].abs().sum() > 0


def test_images_do_not_see_each_other():
    network = build(Discriminator, image_size=16)
    x = torch.randn(9, 3, 20, 19, dtype=torch.float64)
    logits = network(x)
    for index in range(9):
        torch.testing.assert_close(logits[index : index + 1], network(x[index : index + 1]))


@pytest.mark.parametrize("size", [4, 5, 8, 12, 15, (8, 64)])
@pytest.mark.parametrize("cls", [Discriminator, Discriminator3D, Discriminator3DWithfirstframe])
def test_networks_built_for_tiny_pictures_run(cls, size):
    video = {} if cls is Discriminator else {"frame_num": 4}
    network = cls(dim=1, image_size=size, **video)
    height, width = (size, size) if isinstance(size, int) else size
    shape = (2, 3, height, width) if cls is Discriminator else (2, 3, 4, height, width)
    assert network(torch.zeros(shape)).shape == (2,)
