import pytest
from PIL import Image


@pytest.mark.slow
def test_table_and_plot(run_here, tables_in, tmp_path):
    plot = tmp_path / "scaling.png"
    text = run_here("scaling.py", "--smoke", "-o", str(plot))
    assert text.startswith("update, penalty; dim 1, 16 px, 4 frames, batch 1; ")
    ((header, rows),) = tables_in(text)
    columns = ["telecine, s", "baseline, s", "baseline / telecine", "telecine, MB", "baseline, MB"]
    assert header[1:] == [*columns, "telecine / baseline"]
    axes = ["frames", "height and width, pixels", "clips in a batch", "perceptual frames of a clip"]
    values = [(2, 4), (16,), (1,), (1, 4)]
    assert [title for title, *_ in rows] == [
        f"{axis}: {value}" for axis, along in zip(axes, values, strict=True) for value in along
    ]
    for _, *cells in rows:
        assert all(float(cell.removesuffix(" x")) > 0 for cell in cells)
    picture = Image.open(plot)
    assert picture.width > picture.height > 400
    assert len(picture.convert("RGB").getcolors(1 << 20)) > 10, "the plot is not empty"
