from pathlib import Path

import pytest

from telecine.autoencoders import CausalVAE
from telecine.training import read_config

PAGE = Path(__file__).parents[2] / "docs" / "autoencoder.md"


@pytest.mark.slow
def test_the_table_of_the_page(run_here, tables_in):
    text = run_here("sizes.py")
    ((header, rows),) = tables_in(text)
    assert header[:3] == ["recipe", "latent", "weights, M"]
    assert text.partition("\n\n")[2].strip() in PAGE.read_text(encoding="utf-8"), "run `python benchmarks/sizes.py`"
    assert [row[1] for row in rows[::4]] == ["16x5x32x32", "48x5x16x16", "128x3x8x8"]
    for start in (0, 4, 8):
        for column in (2, 3, 4, 5, 6):
            values = [float(row[column].replace(",", "")) for row in rows[start : start + 4]]
            assert values == sorted(set(values))
    assert all(float(row[6]) < float(row[5]) for row in rows)
    tiny = CausalVAE(read_config("tiny_4x8x8").causal_vae)
    assert rows[0][2] == f"{sum(weight.numel() for weight in tiny.parameters()) / 1e6:.1f}"
