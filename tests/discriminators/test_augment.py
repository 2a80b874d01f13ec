"""Differentiable augmentation: known values of each change, the same for pairs and frames, and gradients."""

import pytest
import torch

from telecine.discriminators.augment import AUGMENTATIONS, augment, color, cutout, translation


def video(shape=(2, 3, 3, 8, 12), seed=0):
    return (
        torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
        - 1
    )


def draws(*values):
    return [torch.tensor([value, 0.5]) for value in values]


def testcolor():
    x = video()
    for unchanged in (color(x, *[torch.full((2,), 0.5)] * 3), color(x, *draws(0.5, 0.5, 0.5))):
        torch.testing.assert_close(unchanged, x)
    torch.testing.assert_close(color(x, *draws(0.75, 0.5, 0.5))[0], x[0] + 0.25)
    grey = x[0].mean(0, keepdim=True).expand_as(x[0])
    torch.testing.assert_close(color(x, *draws(0.5, 0.0, 0.5))[0], grey)
    expected = x[0].mean() + 1.25 * (x[0] - x[0].mean())
    torch.testing.assert_close(color(x, *draws(0.5, 0.5, 0.75))[0], expected)


@pytest.mark.parametrize(
    ("vertical", "horizontal"), [(0.0, 0.0), (0.5, 0.999), (0.999, 0.5), (0.4, 0.3)]
)
def testtranslation(vertical, horizontal):
    """By at most round(8 / 8) = 1 row and round(12 / 8) = 2 columns."""
    down, right = int(vertical * 3) - 1, int(horizontal * 5) - 2
    x = video()
    expected = torch.zeros_like(x[0])
    for row in range(8):
        for column in range(12):
            if 0 <= row + down < 8 and 0 <= column + right < 12:
                expected[..., row, column] = x[0, ..., row + down, column + right]
    moved = translation(x, *draws(vertical, horizontal))
    assert torch.equal(moved[0], expected)
    assert torch.equal(moved[1], x[1]), "each clip moves by itself"


@pytest.mark.parametrize(
    ("size", "length"), [((8, 12), (4, 6)), ((5, 7), (3, 4)), ((1, 1), (1, 1))]
)
def testcutout(size, length):
    """The rectangle's middle is anywhere in the frame, as in the authors' code."""
    x = torch.ones(1, 1, 2, *size)
    generator, hidden = torch.Generator().manual_seed(0), set()
    for _ in range(60):
        is_hidden = cutout(x, *torch.rand(2, 1, generator=generator))[0, 0] == 0
        assert torch.equal(is_hidden[0], is_hidden[1]), "the same in all frames"
        rows, columns = is_hidden[0].any(1), is_hidden[0].any(0)
        assert torch.equal(is_hidden[0], rows[:, None] & columns)
        hidden.add((int(rows.sum()), int(columns.sum())))
    assert max(rows for rows, _ in hidden) == length[0]
    assert max(columns for _, columns in hidden) == length[1]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_pairs_stay_pairs_and_gradients_are_exact(name):
    x, generator = video((2, 3, 2, 5, 6)), torch.Generator()
    first, second = augment((x, x), (name,), generator.manual_seed(1))
    assert torch.equal(first, second)
    assert not torch.equal(first, x)
    assert not torch.equal(first, augment((x,), (name,), generator.manual_seed(2))[0])
    function = lambda y: augment((y,), (name,), generator.manual_seed(1))[0]  # noqa: E731
    assert torch.autograd.gradcheck(function, x[:, :, :1, :3, :3].clone().requires_grad_())


def test_a_clip_is_changed_by_its_own_generator():
    x = video()
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    together = augment((x,), tuple(AUGMENTATIONS), generators)[0]
    alone = augment((x[1:],), tuple(AUGMENTATIONS), [torch.Generator().manual_seed(4)])[0]
    torch.testing.assert_close(together[1:], alone)
