"""The table and the plot of how the cost of an update grows are written, and complete."""

from PIL import Image


def test_the_table_and_the_plot(run, tables_in, tmp_path):
    plot = tmp_path / "scaling.png"
    text = run("scaling.py", "--smoke", "-o", str(plot))
    assert text.startswith("update, penalty; dim 1, 16 px, 4 frames, batch 1; ")
    ((header, lines),) = tables_in(text)
    assert header[1:] == ["ours, s", "twin, s", "twin / ours", "ours, MB", "twin, MB", "ours / twin"]
    axes = ["frames", "height and width, pixels", "clips in a batch", "perceptual frames of a clip"]
    values = [(2, 4), (16, 32), (1, 2), (1, 4)]
    assert list(lines) == [f"{axis}: {value}" for axis, pair in zip(axes, values, strict=True) for value in pair]
    for ours, twin, faster, our_peak, twin_peak, smaller in lines.values():
        assert all(float(cell) > 0 for cell in (ours, twin, our_peak, twin_peak))
        assert faster.endswith(" x")
        assert smaller.endswith(" x")
    picture = Image.open(plot)
    assert picture.width > picture.height > 400
    assert len(picture.convert("RGB").getcolors(1 << 20)) > 10, "something is drawn"
