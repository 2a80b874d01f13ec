"""Chunks of a video: every frame once, and seams that fade."""

import pytest
import torch

from telecine.evaluation.chunks import blended_chunks, count_chunks, overlapping


def numbered(count):
    return [torch.full((2, 2, 3), number, dtype=torch.uint8) for number in range(count)]


def numbers(chunk):
    return chunk[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("total", "overlap", "expected"),
    [
        (10, 0, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),
        (8, 0, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (10, 1, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]),
        (8, 2, [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]),
        (9, 2, [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8]]),
        (5, 3, [[0, 1, 2, 3], [1, 2, 3, 4]]),
        (2, 3, [[0, 1]]),
        (0, 1, []),
    ],
)
def test_chunks_overlap(total, overlap, expected):
    chunks = [numbers(chunk) for chunk in overlapping(numbered(total), 4, overlap)]
    assert chunks == expected
    if total:
        assert count_chunks(total, 4, overlap) == len(expected)


@pytest.mark.parametrize("overlap", range(4))
@pytest.mark.parametrize("total", range(1, 15))
def test_every_frame_comes_once_in_order_beside_its_reconstruction(total, overlap):
    chunks = overlapping(numbered(total), 4, overlap)
    pairs = list(blended_chunks(chunks, overlap, lambda chunk: chunk.float() + 0.5))
    frames, reconstructions = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    assert numbers(frames) == list(range(total))
    torch.testing.assert_close(reconstructions, frames.float() + 0.5)


def test_seams_fade_linearly():
    levels = iter([0.0, 1.0])
    chunks = overlapping(numbered(9), 6, 3)
    pairs = blended_chunks(chunks, 3, lambda chunk: torch.full(chunk.shape, next(levels)))
    values = torch.cat([reconstruction for _, reconstruction in pairs])[:, 0, 0, 0]
    assert values.tolist() == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_no_chunk_is_longer_than_it_may_be():
    sizes = [len(chunk) for chunk in overlapping(numbered(100), 7, 2)]
    assert max(sizes) == 7
    assert len(sizes) == count_chunks(100, 7, 2) == 20


@pytest.mark.parametrize("overlap", [-1, 4])
def test_chunks_that_do_not_get_on_are_refused(overlap):
    with pytest.raises(ValueError, match="`overlap_frames` must be at least 0 and below the chunk's 4"):
        list(overlapping(numbered(9), 4, overlap))
