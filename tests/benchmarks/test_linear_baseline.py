import pytest


@pytest.mark.slow
def test_more_channels_are_better_on_held_out_clips(run_here, tables_in):
    text = run_here("linear_baseline.py", "--num_clips", "6", "--latents", "4x8x8x2", "4x8x8x8")
    ((header, rows),) = tables_in(text)
    assert header == ["latent", "PSNR", "SSIM", "LPIPS-Alex", "LPIPS-VGG", "seconds to fit"]
    (few, *a), (many, *b) = rows
    assert (few, many) == ("4x8x8x2", "4x8x8x8")
    better = [float(y) - float(x) for x, y in zip(a[:4], b[:4], strict=True)]
    assert better[0] > 1
    assert better[1] > 0 > max(better[2:])
    assert text.endswith("9 held-out clips, fitted to 6 training clips\n")
