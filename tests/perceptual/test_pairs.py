import pytest
import torch

from telecine.perceptual.pairs import check_pair

FRAMES = torch.zeros(2, 3, 4, 5)


def test_accepts_frames_of_any_precision_number_and_channels():
    for frames in (FRAMES, FRAMES.half(), FRAMES[:0], FRAMES[:, :1], FRAMES.to("meta")):
        check_pair(reconstruction=frames, target=frames.double())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("target", FRAMES[0], r"floating-point tensor of shape \(N, C, H, W\), but got .*\(3, 4, 5\).*\[None\]"),
        ("reconstruction", FRAMES[0], r"\(N, C, H, W\)"),
        ("target", FRAMES[None], "pick_frames"),
        ("target", FRAMES.byte(), "127.5"),
        ("reconstruction", [1.0], r"but got \[1.0\] \(list\)"),
    ],
)
def test_no_frames(name, value, message):
    with pytest.raises(ValueError, match=f"`{name}` must be .*{message}"):
        check_pair(**{"reconstruction": FRAMES, "target": FRAMES, name: value})


@pytest.mark.parametrize("target", [FRAMES[:1], FRAMES[:, :1], FRAMES[..., :4], FRAMES.to("meta")])
def test_two_that_differ(target):
    with pytest.raises(ValueError, match=r"`target` must be of shape \(2, 3, 4, 5\) on cpu, as `reconstruction` is"):
        check_pair(reconstruction=FRAMES, target=target)
