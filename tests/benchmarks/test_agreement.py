import pytest

# scikit-image pads borders differently, and they are a tenth of the pixels at this size.
LIMITS = {"scikit-image (other borders)": 5e-3}


@pytest.mark.slow
@pytest.mark.benchmarks
def test_metrics_agree_with_other_implementations(run_here, tables_in):
    ((_, rows),) = tables_in(run_here("agreement.py", "--smoke"))
    assert {name for name, *_ in rows} >= {
        "psnr",
        "ssim",
        "ms_ssim",
        "lpips_vgg",
        "flicker",
        "Frechet distance",
    }
    for metric, value, other, difference in rows:
        assert float(value) != 0, metric
        assert float(difference) < LIMITS.get(other, 1e-3), metric
