from pathlib import Path

import pytest
import torch

from telecine.autoencoders import CausalVAE
from telecine.training import read_config

PAGE = (Path(__file__).parents[2] / "docs" / "autoencoder.md").read_text(encoding="utf-8")
LATENTS = {"4x8x8": "16x5x32x32", "4x16x16": "48x5x16x16", "8x32x32": "128x3x8x8"}


@pytest.mark.slow
def test_the_table_of_the_page(run_here, tables_in):
    """The smallest and the next size of one latent; the page's other rows are held by their weights."""
    text = run_here("sizes.py", "tiny_4x8x8", "small_4x8x8")
    ((header, rows),) = tables_in(text)
    assert header[:3] == ["recipe", "latent", "weights, M"]
    assert text.partition("\n\n")[2].strip() in PAGE, "run `python benchmarks/sizes.py`"
    tiny, small = ([float(cell) for cell in row[2:]] for row in rows)
    assert all(less < more for less, more in zip(tiny, small, strict=True))
    assert all(float(row[6]) < float(row[5]) for row in rows)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
@pytest.mark.parametrize("latent", LATENTS)
def test_the_weights_of_each_recipe(size, latent):
    with torch.device("meta"):
        model = CausalVAE(read_config(f"{size}_{latent}").causal_vae)
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    assert f"| {size}_{latent} | {LATENTS[latent]} | {millions:.1f} |" in PAGE
