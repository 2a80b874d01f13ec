"""The tables of what the objective's steps cost are printed, and complete."""

import importlib.util

import pytest

VIDEO = ["autoencoder's step", "discriminators' step", "discriminators' step, penalty", "update", "update, penalty"]
FRAMES = [f"4 single frames: {title}" for title in VIDEO[:3]]
LAZY = "update, penalty at every 16th step of ours, every step of the twin"
HAS_MAGVIT2 = importlib.util.find_spec("magvit2_pytorch") is not None


def factor(cell):
    assert cell.endswith(" x")
    return float(cell.removesuffix(" x"))


def about(ratio):
    """Compare with a ratio of rounded figures."""
    return pytest.approx(ratio, rel=0.2, abs=0.02)


def assert_compared(header, lines, ratio):
    """Check that ours and the twin are everywhere, and the other package where it can do the work."""
    assert header[1:3] == ["ours", "twin"]
    for title, (ours, twin, to_twin, other, to_other) in lines.items():
        assert factor(to_twin) == about(ratio(float(ours), float(twin)))
        if title in FRAMES and HAS_MAGVIT2:
            assert factor(to_other) == about(ratio(float(ours), float(other)))
        else:
            assert other == to_other == "n/a"


def test_the_tables(run, tables_in):
    text = run("objective.py", "--smoke")
    assert text.startswith("Discriminator3D; ")
    assert "\n## dim 1, 16 px, 4 frames, batch 1\n" in text
    times, memory, work, frames = tables_in(text)

    assert times[0] == ["seconds", "ours", "twin", "twin / ours", "magvit2-pytorch", "magvit2-pytorch / ours"]
    assert list(times[1]) == [*VIDEO, *FRAMES, LAZY]
    assert_compared(*times, ratio=lambda ours, other: other / ours)
    lazy, plain, penalised = (float(times[1][title][0]) for title in (LAZY, "update", "update, penalty"))
    assert lazy == pytest.approx((15 * plain + penalised) / 16, rel=0.02)
    assert times[1][LAZY][1] == times[1]["update, penalty"][1]

    assert memory[0][0] == "extra peak, MB"
    assert list(memory[1]) == [*VIDEO, *FRAMES]
    assert_compared(*memory, ratio=lambda ours, other: ours / other)

    assert list(work[1]) == VIDEO
    for ours, twin, ratio, *shares in work[1].values():
        assert factor(ratio) == about(float(ours) / float(twin))
        assert all(0 < int(share.removesuffix("%")) < 100 for share in shares)

    assert frames[0][1:] == ["1", "4", "4 / 1"]
    assert list(frames[1]) == [
        f"{name}, {title}" for title in ("autoencoder's step", "update") for name in ("ours", "twin")
    ]
    for one, all_frames, ratio in frames[1].values():
        assert factor(ratio) == about(float(all_frames) / float(one))


def test_other_sizes_parts_and_options(run_here, tables_in):
    text = run_here(
        *("objective.py", "--smoke", "--configs", "1,16,2,2", "1,16,5,1", "--only", "time"),
        *("--discriminator", "Discriminator3DWithfirstframe", "--option", "perceptual_chunk_size=1"),
    )
    assert text.startswith("Discriminator3DWithfirstframe, perceptual_chunk_size=1; ")
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## dim 1, 16 px, 2 frames, batch 2",
        "## dim 1, 16 px, 5 frames, batch 1",
    ]
    assert len(tables_in(text)) == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--configs", "1,16"], "must be dim,size,frames,batch, but got '1,16'"),
        (["--option", "perceptual_chunk_size"], "must be key=value, but got 'perceptual_chunk_size'"),
        (["--option", "disc_start=3"], "but got disc_start"),
    ],
)
def test_mistakes(run_here, arguments, error):
    assert error in run_here("objective.py", *arguments, returns=2)
