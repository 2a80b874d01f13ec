"""Any batch, number of frames, height and width: the logits depend on every pixel, and samples are independent."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.discriminators import (
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
    PatchDiscriminator,
    PatchDiscriminator3D,
)

from .small_networks import built_in_classes, features

SMALL = {"dim": 1, "linear_attn_heads": 2, "linear_attn_dim_head": 4, "max_dim": 8}
EVEN = {"time_weighting": "frames", "pad_mode": "constant"}

# Built for a size and a number of frames.
SIZED = {
    "plain": Discriminator3D,
    "first frame": Discriminator3DWithfirstframe,
    "first frame, even": partial(Discriminator3DWithfirstframe, **EVEN),
}
# Built for any.
PATCHES = {
    norm: partial(PatchDiscriminator3D, base_channels=2, norm=norm)
    for norm in ("group", "none", "spectral")
}
IMAGE_PATCHES = {
    norm: partial(PatchDiscriminator, base_channels=2, norm=norm)
    for norm in ("group", "none", "spectral")
}
VIDEO = {
    **{name: partial(make, image_size=16, frame_num=8, **SMALL) for name, make in SIZED.items()},
    **PATCHES,
}
# On frozen features.
VIDEO["features"] = features
IMAGE = {"residual": partial(Discriminator, image_size=16, **SMALL), **IMAGE_PATCHES}


def build(make, seed=0, **config):
    torch.manual_seed(seed)
    return make(**config).double()


def test_the_lists_have_all_built_in_discriminators():
    classes = {type(build(make)) for make in [*VIDEO.values(), *IMAGE.values()]}
    assert classes == built_in_classes()


def check_every_pixel_counts(network, shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    logits = network(x).logits
    assert logits.shape[0] == shape[0]
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert (gradient != 0).all()


@pytest.mark.parametrize("size", [(16, 16), (60, 90), (17, 31)])
def test_patches_of_any_image(size):
    """The contract has tests of the residual networks."""
    check_every_pixel_counts(build(IMAGE_PATCHES["none"]), (2, 3, *size))


@settings(max_examples=12, deadline=None)
@given(
    norm=st.sampled_from(["group", "none", "spectral"]),
    num_layers=st.integers(1, 4),
    shape=st.tuples(
        st.integers(1, 3), st.integers(1, 12), st.integers(16, 40), st.integers(16, 40)
    ),
    data=st.data(),
)
def test_patches_of_any_video(norm, num_layers, shape, data):
    num_temporal_layers = data.draw(st.integers(0, num_layers))
    network = build(
        PatchDiscriminator3D,
        base_channels=2,
        norm=norm,
        num_layers=num_layers,
        num_temporal_layers=num_temporal_layers,
    )
    check_every_pixel_counts(network, (shape[0], 3, *shape[1:]))


@pytest.mark.parametrize("make", SIZED.values(), ids=SIZED)
def test_a_network_for_large_long_clips_accepts_small_short_ones(make):
    """Height and width are 1 before the last block."""
    network = build(make, **SMALL, image_size=256, frame_num=64)
    for time in (1, 3, 64):
        check_every_pixel_counts(network, (1, 3, time, 16, 17))


CASES = [
    *((make, shape) for make in VIDEO.values() for shape in ((3, 3, 1, 16, 17), (3, 3, 5, 16, 17))),
    *((make, (3, 3, 20, 19)) for make in IMAGE.values()),
]


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_samples_are_independent(make, shape):
    """Compare with each sample alone, in evaluation mode: in training mode each forward changes a spectral norm."""
    network = build(make).eval()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    logits = network(x).logits
    for index in range(3):
        torch.testing.assert_close(logits[index : index + 1], network(x[index : index + 1]).logits)
        (gradient,) = torch.autograd.grad(logits[index].sum(), x, retain_graph=True)
        reached = gradient.flatten(1).abs().sum(1) > 0
        assert reached.tolist() == [other == index for other in range(3)]


@pytest.mark.parametrize("size", [4, 15, (8, 64)])
@pytest.mark.parametrize("cls", [Discriminator, Discriminator3D, Discriminator3DWithfirstframe])
def test_networks_for_tiny_images(cls, size):
    video = {} if cls is Discriminator else {"frame_num": 4}
    network = cls(dim=1, image_size=size, **video)
    height, width = (size, size) if isinstance(size, int) else size
    shape = (2, 3, *video.values(), height, width)
    assert network(torch.zeros(shape)).logits.shape == (2,)
    assert network.samples_are_independent, "or an update takes another backward"
