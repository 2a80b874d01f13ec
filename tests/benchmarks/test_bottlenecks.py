from dataclasses import replace

import pytest
import torch

from telecine.evaluation.latent_measures import code_usage
from telecine.settings import CausalVAEConfig

CODES = CausalVAEConfig(bottleneck="fsq", fsq_levels=(5, 4), latent_channels=4)


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_table(run_here, tables_in, benchmark_module, tmp_path):
    text = run_here("bottlenecks.py", "--smoke", "--runs", str(tmp_path), "--seeds", "0")
    ((header, rows),) = tables_in(text)
    assert header[:3] == ["bottleneck", "bits of a position", "PSNR, dB"]
    names = ["gaussian", "fsq", "lfq", "gaussian, rounded as fsq", "gaussian, rounded as lfq"]
    assert [row[0] for row in rows] == [title for name in names for title in (f"{name}, linear start", name)]
    assert [row[1] for row in rows[::2]] == ["no limit", "4.3", "2.0", "4.3", "2.0"]
    psnr = {row[0]: float(row[2]) for row in rows}
    assert psnr["gaussian"] > psnr["gaussian, rounded as fsq"] > psnr["gaussian, rounded as lfq"]
    assert [row[5] == "" for row in rows[::2]] == [True, False, False, False, False]
    assert all(0 < float(row[5]) <= 1 for row in rows[2:])
    benchmark = benchmark_module("bottlenecks")
    config = benchmark.settings_of("lfq", 0, steps=2, folder=tmp_path, smoke=True)
    assert benchmark.trained(config).config.lfq_bits == 2
    with pytest.raises(ValueError, match="`--runs` must be a folder of runs with these settings"):
        benchmark.trained(replace(config, steps=3))


def test_rounding_to_evenly_spaced_values(benchmark_module):
    latents = torch.randn(8, 4, 3, 8, 8) * torch.tensor([1.0, 2.0, 0.1, 5.0]).view(1, 4, 1, 1, 1) + 3
    rounding = benchmark_module("bottlenecks").Rounding(CODES, latents)
    quantized = rounding.quantize(latents)
    torch.testing.assert_close(rounding.quantize(quantized), quantized)
    for channel, levels in enumerate((5, 4, 5, 4)):
        values = quantized[:, channel].unique()
        values = values[torch.diff(values, prepend=values[:1] - 1) > 1e-4]
        assert len(values) == levels
        torch.testing.assert_close(values.diff(), values.diff()[:1].expand(levels - 1), rtol=1e-4, atol=1e-4)
    usage = code_usage(rounding, quantized)
    assert usage["codes_used"] == 1
    assert 3.5 < usage["code_entropy"] < 4.33


def test_the_distance_has_the_smallest_error_for_a_normal_distribution(benchmark_module):
    torch.manual_seed(0)
    latents = torch.randn(64, 4, 4, 16, 16)
    rounding = benchmark_module("bottlenecks").Rounding(CODES, latents)
    # Max, "Quantizing for minimum distortion", 1960, table 2: 0.8430 for 5 values, 0.9957 for 4.
    expected = torch.tensor([0.8430, 0.9957, 0.8430, 0.9957]).view(4, 1, 1, 1)
    torch.testing.assert_close(rounding.distance, expected, atol=0.03, rtol=0)
