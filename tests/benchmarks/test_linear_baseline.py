import pytest

# The demo's clips, smaller and fewer.
SMALL = "val_clips: 3\nclips: {num_frames: 9, height: 32, width: 32, num_workers: 0, val_fraction: 0.2}\n"


@pytest.mark.slow
def test_more_channels_are_better_on_held_out_clips(run_here, tables_in, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    small = ["--config", str(tmp_path / "small.yaml"), "--num_clips", "6"]
    text = run_here("linear_baseline.py", *small, "--latents", "4x8x8x2", "4x8x8x8")
    ((header, rows),) = tables_in(text)
    assert header == ["latent", "PSNR", "SSIM", "LPIPS-Alex", "LPIPS-VGG", "seconds to fit"]
    (few, *a), (many, *b) = rows
    assert (few, many) == ("4x8x8x2", "4x8x8x8")
    better = [float(y) - float(x) for x, y in zip(a[:4], b[:4], strict=True)]
    assert better[0] > 1
    assert better[1] > 0 > max(better[2:])
    assert text.endswith("3 held-out clips, fitted to 6 training clips\n")
