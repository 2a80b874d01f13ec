"""What is drawn for a clip depends on its generator alone."""

import pytest
import torch

from telecine.base.randomness import (
    clip_generators,
    numbers_for_batch,
    rand,
    randint,
    randn,
    seed_of,
)

CPU = torch.device("cpu")
DRAWS = [
    lambda shape, generator: rand(shape, generator=generator, device=CPU),
    lambda shape, generator: randn(shape, generator=generator, device=CPU, dtype=torch.float64),
    lambda shape, generator: randint(1000, shape, generator=generator, device=CPU),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_a_clip_draws_the_same_in_any_batch(draw):
    together = draw((4, 3, 5), clip_generators(0, range(4), CPU))
    apart = [draw((2, 3, 5), clip_generators(0, clips, CPU)) for clips in ((0, 1), (2, 3))]
    assert together.shape == (4, 3, 5)
    assert torch.equal(together, torch.cat(apart))
    assert len({tuple(clip.flatten().tolist()) for clip in together}) == 4


@pytest.mark.parametrize("draw", DRAWS)
def test_one_generator_or_none_draw_as_pytorch_does(draw):
    generator = torch.Generator().manual_seed(3)
    first = draw((2, 6), generator)
    second = draw((2, 6), generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, draw((2, 6), torch.Generator().manual_seed(3)))
    torch.manual_seed(3)
    assert torch.equal(first, draw((2, 6), None))


def test_numbers_are_uniform_normal_and_whole():
    generators = clip_generators(1, range(50), CPU)
    uniform = rand((50, 400), generator=generators, device=CPU)
    assert 0 <= uniform.min() < uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    normal = randn((50, 400), generator=generators, device=CPU)
    assert normal.std().item() == pytest.approx(1, abs=0.02)
    assert set(randint(3, (50, 40), generator=generators, device=CPU).flatten().tolist()) == {
        0,
        1,
        2,
    }


def test_seeds_depend_on_every_number():
    seeds = {seed_of(*numbers) for numbers in [(0, 1), (1, 0), (0, 2), (0, 12), (0, 1, 2), (1, 2)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_wrong_number_or_device_is_named():
    with pytest.raises(
        ValueError, match="`generator` must be one generator or 3, but got 2 of them"
    ):
        rand((3, 2), generator=clip_generators(0, range(2), CPU), device=CPU)
    with pytest.raises(
        ValueError, match=r'`generator` must be on meta.*Create it with `torch.Generator\("meta"\)`'
    ):
        rand((1, 2), generator=torch.Generator(), device=torch.device("meta"))


class OnMPS(torch.Generator):
    device = torch.device("mps")


def test_numbers_for_the_host_from_a_generator_without_float64(monkeypatch):
    """MPS has no float64; this stands in for it on a machine without one."""
    drawn = torch.rand

    def draw(count, *, generator, device, dtype):
        if torch.device(device).type == "mps" and dtype == torch.float64:
            raise TypeError("MPS has no float64")
        return drawn(count, dtype=dtype)

    monkeypatch.setattr(torch, "rand", draw)
    numbers = numbers_for_batch("", count=3, generator=OnMPS())
    assert len(set(numbers)) == 3
    assert all(0 <= number < 1 for number in numbers)
    monkeypatch.undo()
    expected = torch.rand(
        2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).tolist()
    assert numbers_for_batch("", count=2, generator=torch.Generator().manual_seed(1)) == expected


def test_numbers_for_the_host_are_those_of_the_first_clip_and_of_what_they_are_for():
    generators = clip_generators(0, [3, 4], CPU)
    numbers = numbers_for_batch("equivariance", count=2, generator=generators)
    assert numbers == numbers_for_batch("equivariance", count=2, generator=generators[:1])
    assert set(numbers).isdisjoint(
        numbers_for_batch("scale_equivariance", count=2, generator=generators)
    )
